//! What goes wrong between the balancer and an instance, and what the client sees of it.

use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn};
use crate::support::world::World;
use model::url_map::{RetryCondition, RetryPolicy, RouteAction};
use proxy::{Acquire, Refusal};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn ask(plane: &Plane, request: &str) -> (String, String) {
    let mut client = Conn::connect(plane.address(80));
    client.send(request);
    let (head, body) = client.message().expect("an answer");
    (head, String::from_utf8(body).unwrap())
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";

/// A backend that answers its nth request with the nth status, and the last one for ever.
fn statuses(statuses: &'static [u16]) -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let turn = count.clone();
    let backend = Backend::start(move |mut conn| {
        while conn.message().is_some() {
            let turn = turn.fetch_add(1, Ordering::SeqCst);
            let status = statuses[turn.min(statuses.len() - 1)];
            conn.send(format!("HTTP/1.1 {status} S\r\ncontent-length: 1\r\n\r\n{}", turn % 10));
        }
    });
    (backend, count)
}

#[test]
fn an_idempotent_request_is_tried_once_more_and_a_post_never() {
    for (request, answers, status, attempts) in [
        (GET, &[503, 200][..], 200, 2),
        (GET, &[502, 504, 200], 504, 2),
        (GET, &[500, 200], 500, 1),
        (POST, &[503, 200], 503, 1),
    ] {
        let plane = Plane::start(World::new());
        let (backend, count) = statuses(answers);
        plane.instances.place("app", backend.address);
        let (head, _) = ask(&plane, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(count.load(Ordering::SeqCst), attempts);
    }
}

#[test]
fn a_retry_policy_says_how_often_and_when() {
    let mut world = World::new();
    world.url_map("map", "app", |map| {
        let policy = RetryPolicy {
            retries: Some(3),
            per_try_timeout: None,
            conditions: vec![RetryCondition::ServerError],
        };
        let action = RouteAction { retry_policy: Some(policy), ..RouteAction::default() };
        map.default.route_action = Some(action);
    });
    let plane = Plane::start(world);
    let (backend, count) = statuses(&[500, 500, 500, 200]);
    plane.instances.place("app", backend.address);
    // With a policy of its own, a POST whose body is at hand is sent again too.
    let (head, _) = ask(&plane, POST);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert_eq!(count.load(Ordering::SeqCst), 4);
}

#[test]
fn an_instance_that_cannot_be_reached_is_a_503() {
    let plane = Plane::start(World::new());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    plane.instances.place("app", closed);
    let (head, body) = ask(&plane, GET);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(
        body,
        "upstream connect error or disconnect/reset before headers. reset reason: connection failure"
    );
    eventually("leases are given back", || plane.instances.in_flight() == 0);
}

#[test]
fn a_connection_that_ends_before_its_response_is_a_503_after_one_more_try() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        conn.head();
    });
    plane.instances.place("app", backend.address);
    let (head, body) = ask(&plane, GET);
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(body.ends_with("reset reason: connection termination"), "{body}");
    assert_eq!(backend.connections(), 2);
    ask(&plane, POST);
    assert_eq!(backend.connections(), 3);
}

#[test]
fn a_pooled_connection_that_died_costs_no_request() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        conn.message();
        conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for request in [GET, POST, GET, POST] {
        client.send(request);
        assert_eq!(client.message().unwrap().1, b"ok");
        // The backend closes after each response; the balancer has seen it by the next request.
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(backend.connections(), 4);
}

#[test]
fn a_response_that_is_cut_cuts_the_clients_connection() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        let Some(head) = conn.head() else { return };
        if head.contains("/chunks") {
            conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n");
        } else {
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello");
        }
    });
    plane.instances.place("app", backend.address);
    for path in ["/chunks", "/length"] {
        let mut client = Conn::connect(plane.address(80));
        client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let answer = client.rest();
        assert!(answer.contains("hello"), "{answer}");
        assert!(!answer.contains("\r\n0\r\n"), "{answer}");
    }
}

#[test]
fn a_route_that_takes_too_long_is_a_504() {
    let mut world = World::new();
    world.url_map("map", "app", |map| {
        let timeout = Some(Duration::from_millis(100));
        map.default.route_action = Some(RouteAction { timeout, ..RouteAction::default() });
    });
    let plane = Plane::start(world);
    let backend = Backend::start(|mut conn| {
        conn.head();
        conn.rest();
    });
    plane.instances.place("app", backend.address);
    let (head, body) = ask(&plane, GET);
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert_eq!(body, "upstream request timeout");
}

#[test]
fn a_request_waits_for_its_instance_and_gives_up_its_place_when_the_client_does() {
    let plane = Plane::start(World::new());
    let backend = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    plane.instances.place("app", backend.address);
    plane.instances.answer_with(Arc::new(|_, lease| {
        Acquire::Wait(Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(lease)
        }))
    }));
    let mut client = Conn::connect(plane.address(80));
    client.send("POST / HTTP/1.1\r\nHost: a\r\nX: y\r\nContent-Length: 1\r\n\r\nx");
    client.send(GET);
    assert_eq!(client.message().unwrap().1, b"ok");
    assert_eq!(client.message().unwrap().1, b"ok");
}

#[test]
fn a_client_that_aborts_gives_up_its_place_in_the_waiting_room() {
    let plane = Plane::start(World::new());
    let backend = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    plane.instances.place("app", backend.address);
    plane.instances.answer_with(Arc::new(|_, lease| {
        Acquire::Wait(Box::pin(async move {
            // The lease stands for the place; it is given back when the wait is.
            std::future::pending::<()>().await;
            Ok(lease)
        }))
    }));
    let mut client = Conn::connect(plane.address(80));
    let socket = socket2::SockRef::from(&client.stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    client.send(GET);
    eventually("the request waits", || plane.instances.in_flight() == 1);
    drop(client);
    eventually("the place is given up", || plane.instances.in_flight() == 0);
}

#[test]
fn a_refusal_is_passed_on_in_its_words() {
    let plane = Plane::start(World::new());
    let backend = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    plane.instances.place("app", backend.address);
    plane.instances.answer_with(Arc::new(|_, _| {
        Acquire::Refused(Refusal {
            status: 429,
            body: "Rate exceeded.".into(),
            reason: "no available instance".into(),
        })
    }));
    let (head, body) = ask(&plane, GET);
    assert!(head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{head}");
    assert_eq!(body, "Rate exceeded.");
}

#[test]
fn a_panic_costs_one_connection() {
    let plane = Plane::start(World::new());
    let backend = Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    plane.instances.place("app", backend.address);
    let mut bystander = Conn::connect(plane.address(80));
    bystander.send(GET);
    bystander.message().unwrap();
    let panics = Arc::new(AtomicUsize::new(0));
    let counted = panics.clone();
    plane.instances.answer_with(Arc::new(move |_, lease| {
        if counted.fetch_add(1, Ordering::SeqCst) == 0 {
            panic!("a bug on the path of one request");
        }
        Acquire::Ready(lease)
    }));
    let mut unlucky = Conn::connect(plane.address(80));
    unlucky.send(GET);
    assert_eq!(unlucky.rest(), "");
    bystander.send(GET);
    assert_eq!(bystander.message().unwrap().1, b"ok");
    assert_eq!(ask(&plane, GET).1, "ok");
    assert!(plane.proxy.render_openmetrics().contains("tidegate_panics_total 1\n"));
    eventually("leases are given back", || plane.instances.in_flight() == 0);
}
