//! Bodies of every kind, in both directions, at the pace of the slower side.

use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn};
use crate::support::world::World;
use proxy::{Config, Limits};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_chunked_request_arrives_chunk_by_chunk_with_its_trailers() {
    let plane = Plane::start(World::new());
    let (sender, seen) = channel();
    let backend = Backend::start(move |mut conn| {
        while let Some(head) = conn.head() {
            let body = conn.until("\r\n\r\n").unwrap();
            sender.send((head, body)).unwrap();
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for pieces in [
        vec![
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
        ],
        vec![
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "3",
            "\r\na",
            "bc\r",
            "\n0\r\nX-Su",
            "m: 1\r\n\r",
            "\n",
        ],
    ] {
        for piece in pieces {
            client.send(piece);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(client.message().unwrap().1, b"ok");
        let (head, body) = seen.recv().unwrap();
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(body, "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n");
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, body)) = conn.message() {
            let path = head.split(' ').nth(1).unwrap().to_owned();
            let text = format!("{path}{}", String::from_utf8_lossy(&body));
            conn.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()));
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    let mut requests = String::new();
    for number in 0..50 {
        requests += &format!("POST /{number} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody");
    }
    client.send(requests);
    for number in 0..50 {
        assert_eq!(client.message().unwrap().1, format!("/{number}body").as_bytes());
    }
}

#[test]
fn a_stream_of_events_is_never_held_back() {
    let plane = Plane::start(World::new());
    let (next, turns) = channel::<()>();
    let turns = std::sync::Mutex::new(turns);
    let backend = Backend::start(move |mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for event in 0..5 {
            turns.lock().unwrap().recv().unwrap();
            let text = format!("data: {event}\n\n");
            conn.send(format!("{:x}\r\n{text}\r\n", text.len()));
        }
        conn.send("0\r\n\r\n");
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    // The head arrives before there is any body.
    assert!(client.head().unwrap().contains("transfer-encoding: chunked\r\n"));
    for event in 0..5 {
        next.send(()).unwrap();
        assert_eq!(client.until("\n\n\r\n").unwrap(), format!("9\r\ndata: {event}\n\n\r\n"));
    }
    assert_eq!(client.until("0\r\n\r\n").unwrap(), "0\r\n\r\n");
}

#[test]
fn large_bodies_pass_in_little_memory_and_slow_readers_slow_their_writers() {
    const SIZE: usize = 64 << 20;
    let plane = Plane::start(World::new());
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let backend = Backend::start(move |mut conn| {
        let head = conn.head().unwrap();
        if head.starts_with("POST") {
            for _ in 0..SIZE / (64 << 10) {
                conn.exactly(64 << 10);
            }
            conn.send(OK);
            return;
        }
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..SIZE / piece.len() {
            if conn.stream.write_all(&piece).is_err() {
                return;
            }
            counted.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n"));
    let piece = vec![b'y'; 64 << 10];
    for _ in 0..SIZE / piece.len() {
        client.send(&piece);
    }
    assert_eq!(client.message().unwrap().1, b"ok");

    let mut client = Conn::connect(plane.address(80));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head().unwrap();
    // A client that does not read stops the backend once the kernel's buffers are full.
    let mut last = usize::MAX;
    eventually("the backend is stopped", || {
        let now = sent.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        std::mem::replace(&mut last, now) == now && now > 0
    });
    assert!(sent.load(Ordering::SeqCst) < SIZE / 2, "{}", sent.load(Ordering::SeqCst));
    assert_eq!(client.exactly(SIZE).len(), SIZE);
}

#[test]
fn a_client_that_expects_to_be_asked_is_asked() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, body)) = conn.message() {
            assert!(!head.contains("expect"), "{head}");
            assert_eq!(body, b"data");
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head().unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("data");
    assert_eq!(client.message().unwrap().1, b"ok");
    // One that does not wait is not told.
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\ndata",
    );
    assert!(client.message().unwrap().0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn informational_responses_pass_and_come_before_the_answer() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while conn.message().is_some() {
            conn.send(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            );
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let hints = client.head().unwrap();
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nvia: 1.1 google\r\n\r\n");
    assert!(client.message().unwrap().0.starts_with("HTTP/1.1 200 "));
    // HTTP/1.0 knows no informational responses.
    let mut old = Conn::connect(plane.address(80));
    old.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert!(old.rest().starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_answer_to_head_has_a_length_and_no_body() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, _)) = conn.message() {
            assert!(head.starts_with("HEAD "));
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n");
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.head().unwrap().contains("content-length: 1234\r\n"));
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_body_that_ends_with_its_connection_becomes_chunks_or_ends_the_clients() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.head().unwrap().contains("transfer-encoding: chunked\r\n"));
        assert_eq!(client.until("0\r\n\r\n").unwrap(), "d\r\nuntil the end\r\n0\r\n\r\n");
    }
    let mut old = Conn::connect(plane.address(80));
    old.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let answer = old.rest();
    assert!(answer.ends_with("connection: close\r\n\r\nuntil the end"), "{answer}");
}

#[test]
fn chunks_are_undone_for_http_1_0_and_its_connection_can_be_kept() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, _)) = conn.message() {
            assert!(head.contains(" HTTP/1.1\r\n"), "{head}");
            if head.contains("/chunks") {
                conn.send(
                    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                );
            } else {
                conn.send(OK);
            }
        }
    });
    plane.instances.place("app", backend.address);
    let mut old = Conn::connect(plane.address(80));
    old.send("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    let (head, _) = old.message().unwrap();
    assert!(head.contains("connection: keep-alive\r\n"), "{head}");
    old.send("GET /chunks HTTP/1.0\r\nHost: a\r\n\r\n");
    let answer = old.rest();
    assert!(answer.ends_with("connection: close\r\n\r\nabc"), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");
}

#[test]
fn a_websocket_is_a_tunnel_only_after_101() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        let Some(head) = conn.head() else { return };
        if !head.contains("connection: upgrade\r\nupgrade: websocket\r\n") {
            conn.send("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n");
            return;
        }
        assert!(head.contains("sec-websocket-key: k\r\n"), "{head}");
        if head.contains("/refused") {
            conn.send("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno");
            return;
        }
        conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: z\r\n\r\nfirst");
        while let Some(line) = conn.until("\n") {
            conn.send(line.to_uppercase());
        }
        conn.send("bye");
    });
    plane.instances.place("app", backend.address);
    let upgrade = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
        )
    };
    let mut client = Conn::connect(plane.address(80));
    client.send(upgrade("/"));
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: z\r\n"), "{head}");
    assert_eq!(client.exactly(5), b"first");
    for line in ["one\n", "GET / HTTP/1.1\r\n", "two\n"] {
        client.send(line);
        assert_eq!(client.until("\n").unwrap(), line.to_uppercase());
    }
    client.end_sending();
    assert_eq!(client.rest(), "bye");
    let mut refused = Conn::connect(plane.address(80));
    refused.send(upgrade("/refused"));
    assert_eq!(refused.message().unwrap().1, b"no");
    // Only a WebSocket can be asked for; anything else is a plain request.
    refused.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n");
    assert!(refused.head().unwrap().starts_with("HTTP/1.1 426 "));
    eventually("the lease of the tunnel is given back", || plane.instances.in_flight() == 0);
}

#[test]
fn an_answer_before_the_end_of_the_request_arrives_and_closes() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        conn.head().unwrap();
        conn.send("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 3\r\n\r\nbig");
        conn.rest();
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\npart");
    let (head, body) = client.message().unwrap();
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    assert_eq!(body, b"big");
    assert_eq!(client.rest(), "");
}

#[test]
fn a_client_that_stops_sending_still_gets_its_answer() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while conn.message().is_some() {
            std::thread::sleep(Duration::from_millis(20));
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.end_sending();
    assert!(client.rest().ends_with("\r\n\r\nok"));
}

#[test]
fn a_client_that_aborts_releases_its_instance() {
    let plane = Plane::start(World::new());
    let (sender, arrived) = channel();
    let backend = Backend::start(move |mut conn| {
        conn.head().unwrap();
        sender.send(()).unwrap();
        conn.rest();
    });
    plane.instances.place("app", backend.address);
    let client = Conn::connect(plane.address(80));
    let socket = socket2::SockRef::from(&client.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    (&client.stream).write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    arrived.recv().unwrap();
    assert_eq!(plane.instances.in_flight(), 1);
    drop(client);
    eventually("the lease is given back", || plane.instances.in_flight() == 0);
}

#[test]
fn a_body_that_stands_still_is_given_up() {
    let limits = Limits { stream_idle_timeout: Duration::from_millis(100), ..Limits::default() };
    let plane = Plane::with(World::new(), Config { workers: 1, limits, ..Config::default() });
    let backend = Backend::start(|mut conn| {
        if let Some(head) = conn.head() {
            if head.starts_with("GET") {
                conn.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            }
            conn.rest();
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    let answer = client.rest();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let mut client = Conn::connect(plane.address(80));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.rest();
    assert!(answer.ends_with("\r\n\r\nhalf"), "{answer}");
}
