//! What two parsers could read differently is refused: by status and by closing, on both sides.

use crate::support::payloads::{ACCEPTED, BAD_RESPONSES, REFUSED};
use crate::support::plane::Plane;
use crate::support::wire::{Backend, Conn};
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A backend that counts the smuggled requests that reach it, and answers plainly. A body that turns out
/// to be malformed has sent its head ahead, which is no harm: its connection is cut.
fn counting() -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let backend = Backend::start(move |mut conn| {
        while let Some((head, _)) = conn.message() {
            seen.fetch_add(usize::from(head.contains("/smuggled")), Ordering::SeqCst);
            if head.contains("chunked") {
                conn.rest();
                return;
            }
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    (backend, count)
}

#[test]
fn a_request_that_can_be_read_in_two_ways_is_refused_and_its_connection_closed() {
    let plane = Plane::start(World::new());
    let (backend, count) = counting();
    plane.instances.place("app", backend.address);
    for (status, name, request) in REFUSED {
        let mut client = Conn::connect(plane.address(80));
        client.send(request);
        // What is smuggled must never be answered.
        client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.rest();
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{name}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer:?}");
        assert!(answer.contains("connection: close\r\n"), "{name}: {answer:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn the_same_requests_cut_into_bytes_are_refused_the_same_way() {
    let plane = Plane::start(World::new());
    let (backend, count) = counting();
    plane.instances.place("app", backend.address);
    for (status, name, request) in REFUSED.iter().step_by(7) {
        let mut client = Conn::connect(plane.address(80));
        for byte in request.as_bytes() {
            use std::io::Write;
            // A refusal may come before the last byte is out.
            if client.stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
        client.end_sending();
        let answer = client.rest();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn what_is_unusual_and_has_one_reading_passes() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, _)) = conn.message() {
            if head.contains("transfer-encoding: chunked") {
                conn.until("0\r\n\r\n");
            }
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    plane.instances.place("app", backend.address);
    for (name, request) in ACCEPTED {
        let mut client = Conn::connect(plane.address(80));
        client.send(request);
        let (head, body) = client.message().expect(name);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {head}");
        assert_eq!(body, b"ok", "{name}");
    }
}

#[test]
fn a_response_that_can_be_read_in_two_ways_is_a_502_and_its_connection_is_not_used_again() {
    for (name, response) in BAD_RESPONSES {
        let plane = Plane::start(World::new());
        let backend = Backend::start(move |mut conn| {
            if conn.message().is_some() {
                conn.send(response);
                conn.end_sending();
                conn.rest();
            }
        });
        plane.instances.place("app", backend.address);
        let mut client = Conn::connect(plane.address(80));
        // A POST is not tried again, so there is exactly one attempt to look at.
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let (head, body) = client.message().expect(name);
        assert!(head.starts_with("HTTP/1.1 502 "), "{name}: {head}");
        assert!(String::from_utf8_lossy(&body).ends_with("reset reason: protocol error"), "{name}");
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        client.message().expect(name);
        assert_eq!(backend.connections(), 2, "{name}");
    }
}

#[test]
fn a_connection_with_more_than_its_response_on_it_is_not_used_again() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while conn.message().is_some() {
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison");
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let (_, body) = client.message().unwrap();
        assert_eq!(body, b"ok");
    }
    assert_eq!(backend.connections(), 3);
}
