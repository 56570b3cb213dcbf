//! One request and its response, byte for byte.

use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn, settled};
use crate::support::world::World;

#[test]
fn a_request_reaches_its_service_and_the_answer_comes_back() {
    let plane = Plane::start(World::new());
    let (sender, seen) = std::sync::mpsc::channel();
    let backend = Backend::start(move |mut conn| {
        while let Some((head, _)) = conn.message() {
            sender.send(head).unwrap();
            conn.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
            );
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for _ in 0..3 {
        client.send("GET /a?b=c HTTP/1.1\r\nHost: Example.com\r\nX-Mine: 1\r\n\r\n");
        let (head, body) = client.message().unwrap();
        assert_eq!(
            settled(&head),
            "HTTP/1.1 200 OK\ncontent-type: text/plain\nvia: 1.1 google\ncontent-length: 5"
        );
        assert_eq!(body, b"hello");
        assert_eq!(
            settled(&seen.recv().unwrap()),
            "GET /a?b=c HTTP/1.1\nhost: Example.com\nx-mine: 1\nx-forwarded-for: 127.0.0.1,127.0.0.1\n\
             x-forwarded-proto: http\nvia: 1.1 google\ntraceparent: …\nx-cloud-trace-context: …"
        );
    }
    assert_eq!(backend.connections(), 1);
    eventually("the lease is given back", || plane.instances.in_flight() == 0);
    assert_eq!(plane.proxy.status()[0].requests, 3);
}
