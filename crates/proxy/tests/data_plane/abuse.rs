//! Clients that want to cost much and give little: what they can make us hold is bounded by name, they are
//! given up in time, and whoever behaves is served meanwhile.

use crate::support::memory::resident_bytes;
use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn};
use crate::support::world::World;
use proxy::{Config, Limits};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// What the process may grow by besides buffers: stacks of the test's own threads, the allocator's slack.
const SLACK_BYTES: usize = 24 << 20;

fn limited(limits: Limits) -> Plane {
    Plane::with(World::new(), Config { workers: 1, limits, ..Config::default() })
}

fn is_served(plane: &Plane) {
    let mut client = Conn::connect(plane.address(80));
    client.send(GET);
    assert_eq!(client.message().expect("an answer").1, b"ok");
}

#[test]
fn heads_that_never_end_are_given_up_and_hold_a_small_buffer_each() {
    const CLIENTS: usize = 400;
    let plane = limited(Limits { head_timeout: Duration::from_secs(2), ..Limits::default() });
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    is_served(&plane);
    let before = resident_bytes();
    let mut clients: Vec<Conn> = (0..CLIENTS).map(|_| Conn::connect(plane.address(80))).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ");
    }
    for _ in 0..20 {
        for client in &mut clients {
            // The head may be given up at any moment from here on.
            let _ = client.stream.write_all(b"x");
        }
    }
    is_served(&plane);
    let grown = resident_bytes().saturating_sub(before);
    let bound = CLIENTS * proxy::SMALL_BUFFER_BYTES + SLACK_BYTES;
    assert!(grown < bound, "{grown} bytes for {CLIENTS} heads");
    for client in &mut clients {
        let answer = client.rest();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
}

#[test]
fn many_long_heads_share_one_bound() {
    const BOUND: usize = 4 << 20;
    const CLIENTS: usize = 200;
    let limits = Limits { buffer_bytes_max: BOUND, ..Limits::default() };
    let plane = limited(limits);
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    is_served(&plane);
    let before = resident_bytes();
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}", "x".repeat(50 << 10));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Conn::connect(plane.address(80));
        // A connection that needs one buffer more than there is, is closed.
        let _ = client.stream.write_all(head.as_bytes());
        clients.push(client);
    }
    let open = || plane.proxy.status().iter().map(|rule| rule.connections).sum::<u64>();
    eventually("what is over the bound is closed", || {
        open() <= (BOUND / proxy::BUFFER_BYTES + 1) as u64
    });
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < BOUND + SLACK_BYTES, "{grown} bytes for {CLIENTS} heads");
    drop(clients);
    eventually("all of them are gone", || open() == 0);
    is_served(&plane);
}

#[test]
fn bodies_that_drip_are_given_up_and_give_their_instance_back() {
    const CLIENTS: usize = 100;
    let limits = Limits { stream_idle_timeout: Duration::from_millis(300), ..Limits::default() };
    let plane = limited(limits);
    let backend = Backend::start(|mut conn| {
        while let Some(head) = conn.head() {
            if head.starts_with("POST") {
                conn.rest();
                return;
            }
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    is_served(&plane);
    let before = resident_bytes();
    let mut clients: Vec<Conn> = (0..CLIENTS).map(|_| Conn::connect(plane.address(80))).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send("POST / HTTP/1.1\r\nHost: a\r\n");
        client.send(if number % 2 == 0 {
            "Content-Length: 100000\r\n\r\nx"
        } else {
            "Transfer-Encoding: chunked\r\n\r\n186a0\r\nx"
        });
    }
    eventually("all of them have an instance", || plane.instances.in_flight() == CLIENTS);
    is_served(&plane);
    let grown = resident_bytes().saturating_sub(before);
    // Each has a head on its way and two sides; none holds a large buffer while it waits. The test's own
    // backend has a thread for each.
    assert!(grown < CLIENTS * 2 * proxy::SMALL_BUFFER_BYTES + SLACK_BYTES, "{grown} bytes");
    for client in &mut clients {
        let answer = client.rest();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    }
    eventually("leases are given back", || plane.instances.in_flight() == 0);
}

#[test]
fn clients_that_do_not_read_hold_one_buffer_each() {
    const CLIENTS: usize = 50;
    const SIZE: usize = 64 << 20;
    let plane = limited(Limits::default());
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let backend = Backend::start(move |mut conn| {
        while let Some(head) = conn.head() {
            if !head.contains("/large") {
                conn.send(OK);
                continue;
            }
            conn.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"));
            let piece = [b'x'; 16 << 10];
            while !stopping.load(Ordering::SeqCst) && conn.stream.write_all(&piece).is_ok() {}
        }
    });
    plane.instances.place("app", backend.address);
    is_served(&plane);
    let before = resident_bytes();
    let mut clients: Vec<Conn> = (0..CLIENTS).map(|_| Conn::connect(plane.address(80))).collect();
    for client in &mut clients {
        client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.head().expect("a head").starts_with("HTTP/1.1 200 "));
    }
    is_served(&plane);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < CLIENTS * proxy::BUFFER_BYTES + SLACK_BYTES, "{grown} bytes");
    // The backend goes on sending: a client that is gone shows itself by what cannot be sent to it.
    drop(clients);
    eventually("leases are given back", || plane.instances.in_flight() == 0);
    stop.store(true, Ordering::SeqCst);
}

#[test]
fn a_handshake_that_never_ends_is_given_up() {
    let limits = Limits { handshake_timeout: Duration::from_millis(200), ..Limits::default() };
    let mut world = World::new();
    world.certificate("first", &["a.example"]);
    world.https_proxy("secure", "map", &["first"]);
    world.rule("secure", 443, model::Kind::TargetHttpsProxy, "secure");
    let plane = Plane::with(world, Config { workers: 1, limits, ..Config::default() });
    let mut clients: Vec<Conn> = (0..50).map(|_| Conn::connect(plane.address(443))).collect();
    for client in &mut clients {
        // The beginning of a record that says it holds a handshake of 512 bytes.
        client.send([0x16, 3, 1, 2, 0, 1]);
        assert_eq!(client.rest(), "");
    }
}
