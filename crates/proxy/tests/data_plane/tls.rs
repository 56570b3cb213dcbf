//! TLS, HTTP/2 and gRPC: certificates by name, streams both ways, trailers, and abuse that is bounded.

use crate::support::http2::{client_config, connect, h2c_backend, read, run, tls};
use crate::support::memory::resident_bytes;
use crate::support::plane::{Plane, eventually};
use crate::support::wire::Backend;
use crate::support::world::World;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use model::Kind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What a flood may make the process grow by, the test's own client included: far less than what it sends.
const FLOOD_BYTES_MAX: usize = 32 << 20;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A plane with a rule on 443 for `a.example` and `*.b.example`, and the roots that verify them.
fn secure(mut world: World) -> (Plane, Vec<Vec<u8>>) {
    let roots = vec![
        world.certificate("first", &["a.example"]),
        world.certificate("second", &["*.b.example", "exact.b.example"]),
        world.certificate("third", &["exact.b.example"]),
    ];
    world.https_proxy("secure", "map", &["first", "second", "third"]);
    world.rule("secure", 443, Kind::TargetHttpsProxy, "secure");
    (Plane::start(world), roots)
}

fn get(uri: &str) -> Request<()> {
    Request::builder().uri(uri).body(()).unwrap()
}

#[test]
fn the_certificate_follows_the_server_name() {
    let (plane, roots) = secure(World::new());
    let address = plane.address(443);
    run(async {
        for (name, root) in [
            ("a.example", 0),
            ("x.b.example", 1),
            ("exact.b.example", 1),
            // No certificate fits these: the first answers, and the client can tell.
            ("unknown.example", 0),
            ("x.y.b.example", 0),
        ] {
            let config = client_config(&roots, &["h2", "http/1.1"]);
            let fits = !["unknown.example", "x.y.b.example"].contains(&name);
            match tls(address, &config, name).await {
                Ok(stream) => {
                    assert!(fits, "{name}");
                    let shown = stream.get_ref().1.peer_certificates().unwrap();
                    assert_eq!(shown[0].as_ref(), roots[root], "{name}");
                }
                Err(error) => assert!(!fits, "{name}: {error}"),
            }
        }
    });
}

#[test]
fn http_1_1_over_tls_says_so_to_the_backend() {
    let (plane, roots) = secure(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, _)) = conn.message() {
            assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    run(async {
        let config = client_config(&roots, &["http/1.1"]);
        let mut stream = tls(plane.address(443), &config, "a.example").await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
            let mut answer = vec![0; 1024];
            let count = stream.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
            assert!(
                answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"),
                "{answer}"
            );
        }
    });
}

#[test]
fn http_2_reaches_an_http_1_1_service_on_many_streams() {
    let (plane, roots) = secure(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, body)) = conn.message() {
            assert!(!head.contains("transfer-encoding"), "{head}");
            let path = head.split(' ').nth(1).unwrap();
            let text = format!("{path} {}", body.len());
            conn.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nConnection: keep-alive\r\n\r\n{text}",
                text.len()
            ));
        }
    });
    plane.instances.place("app", backend.address);
    run(async {
        let config = client_config(&roots, &["h2"]);
        let client = connect(plane.address(443), &config, "a.example").await;
        let mut requests = Vec::new();
        for number in 0..50 {
            let mut client = client.clone().ready().await.unwrap();
            requests.push(tokio::spawn(async move {
                let request = Request::post(format!("https://a.example/{number}"))
                    .header("content-length", "1000")
                    .body(())
                    .unwrap();
                let (response, mut body) = client.send_request(request, false).unwrap();
                body.send_data(vec![b'x'; 1000].into(), true).unwrap();
                let response = response.await.unwrap();
                assert_eq!(response.status(), 200);
                assert_eq!(response.headers()["via"], "1.1 google");
                assert!(!response.headers().contains_key("connection"));
                let (body, _) = read(response.into_body()).await.unwrap();
                assert_eq!(String::from_utf8(body).unwrap(), format!("/{number} 1000"));
            }));
        }
        for request in requests {
            request.await.unwrap();
        }
        let refused = client.clone().ready().await.unwrap().send_request(
            Request::get("https://a.example/").header("host", "b.example").body(()).unwrap(),
            true,
        );
        assert_eq!(refused.unwrap().0.await.unwrap().status(), 400);
    });
    eventually("leases are given back", || plane.instances.in_flight() == 0);
}

#[test]
fn a_body_without_a_length_crosses_from_http_2_to_chunks_and_back() {
    let (plane, roots) = secure(World::new());
    let backend = Backend::start(|mut conn| {
        let head = conn.head().unwrap();
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        let body = conn.until("0\r\n").unwrap();
        let trailers = conn.until("\r\n\r\n").unwrap();
        assert_eq!(body, "5\r\nhello\r\n0\r\n");
        assert_eq!(trailers, "x-sum: 5\r\n\r\n");
        conn.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Total: 3\r\n\r\n");
    });
    plane.instances.place("app", backend.address);
    run(async {
        let config = client_config(&roots, &["h2"]);
        let mut client = connect(plane.address(443), &config, "a.example").await;
        let request = Request::post("https://a.example/").body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", 5.into());
        body.send_trailers(trailers).unwrap();
        let (body, trailers) = read(response.await.unwrap().into_body()).await.unwrap();
        assert_eq!(body, b"abc");
        assert_eq!(trailers.unwrap()["x-total"], "3");
    });
}

/// A gRPC-like server: says each message back, twice as often for `/double`, and ends with trailers.
async fn grpc(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["x-forwarded-proto"], "https");
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    if request.uri().path() == "/fail" {
        let response = Response::builder().header("grpc-status", "5").body(()).unwrap();
        respond.send_response(response, true).unwrap();
        return;
    }
    let times = if request.uri().path() == "/double" { 2 } else { 1 };
    let mut out = respond.send_response(response, false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(message)) = body.data().await {
        body.flow_control().release_capacity(message.len()).unwrap();
        for _ in 0..times {
            out.send_data(message.clone(), false).unwrap();
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", 0.into());
    out.send_trailers(trailers).unwrap();
}

#[test]
fn grpc_works_in_all_four_kinds_of_call() {
    let mut world = World::new();
    world.h2c_service("app");
    let (plane, roots) = secure(world);
    plane.instances.place("app", h2c_backend(grpc));
    run(async {
        let config = client_config(&roots, &["h2"]);
        let client = connect(plane.address(443), &config, "a.example").await;
        for (path, sent, expected) in [
            ("/unary", &["a"][..], "a"),
            ("/client-streaming", &["a", "b", "c"], "abc"),
            ("/double", &["a"], "aa"),
            ("/double", &["a", "b"], "aabb"),
        ] {
            let request = Request::post(format!("https://a.example{path}"))
                .header("te", "trailers")
                .header("content-type", "application/grpc")
                .body(())
                .unwrap();
            let mut client = client.clone().ready().await.unwrap();
            let (response, mut body) = client.send_request(request, false).unwrap();
            // Each message is answered before the next one is sent: both directions are open at once.
            body.send_data(Bytes::copy_from_slice(sent[0].as_bytes()), sent.len() == 1).unwrap();
            let response = response.await.unwrap();
            let mut answers = response.into_body();
            let mut got = answers.data().await.unwrap().unwrap().to_vec();
            for (at, message) in sent.iter().enumerate().skip(1) {
                let piece = Bytes::copy_from_slice(message.as_bytes());
                body.send_data(piece, at + 1 == sent.len()).unwrap();
            }
            let (rest, trailers) = read(answers).await.unwrap();
            got.extend(rest);
            assert_eq!(String::from_utf8(got).unwrap(), expected, "{path}");
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
        let request =
            Request::post("https://a.example/fail").header("te", "trailers").body(()).unwrap();
        let (response, _) =
            client.clone().ready().await.unwrap().send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().headers()["grpc-status"], "5");
    });
    eventually("leases are given back", || plane.instances.in_flight() == 0);
}

/// Sends `early` hints before each answer.
fn hinting(early: usize) -> std::net::SocketAddr {
    h2c_backend(move |_request, mut respond| async move {
        for _ in 0..early {
            let hints = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
            respond.send_informational(hints).unwrap();
        }
        respond.send_response(Response::new(()), true).unwrap();
    })
}

#[test]
fn informational_responses_reach_http2_clients_from_either_protocol() {
    let backend = Backend::start(|mut conn| {
        while conn.message().is_some() {
            conn.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
            conn.send(OK);
        }
    });
    for (h2c, address, expected) in
        [(false, backend.address, 1), (true, hinting(2), 2), (true, hinting(100), 8)]
    {
        let mut world = World::new();
        if h2c {
            world.h2c_service("app");
        }
        let (plane, roots) = secure(world);
        plane.instances.place("app", address);
        run(async {
            let config = client_config(&roots, &["h2"]);
            let mut client = connect(plane.address(443), &config, "a.example").await;
            let (mut response, _) = client.send_request(get("https://a.example/"), true).unwrap();
            let mut hints = 0;
            let head = std::future::poll_fn(|cx| {
                while let Poll::Ready(Some(hint)) = response.poll_informational(cx) {
                    let hint = hint.unwrap();
                    assert_eq!(hint.status(), 103);
                    assert_eq!(hint.headers()["link"], "</a>");
                    hints += 1;
                }
                Pin::new(&mut response).poll(cx)
            });
            assert_eq!(head.await.unwrap().status(), 200);
            assert_eq!(hints, expected);
        });
    }
}

#[test]
fn an_http2_client_that_waits_to_send_its_body_is_told_to() {
    let (plane, roots) = secure(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, body)) = conn.message() {
            assert!(!head.contains("expect"), "{head}");
            assert_eq!(body, b"data");
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    run(async {
        let config = client_config(&roots, &["h2"]);
        let mut client = connect(plane.address(443), &config, "a.example").await;
        let request = Request::post("https://a.example/")
            .header("expect", "100-continue")
            .header("content-length", "4")
            .body(())
            .unwrap();
        let (mut response, mut body) = client.send_request(request, false).unwrap();
        let told = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
        assert_eq!(told.unwrap().unwrap().status(), 100);
        body.send_data(Bytes::from_static(b"data"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn a_client_that_resets_its_stream_releases_the_instance() {
    let (plane, roots) = secure(World::new());
    let backend = Backend::start(|mut conn| {
        conn.head();
        conn.rest();
    });
    plane.instances.place("app", backend.address);
    run(async {
        let config = client_config(&roots, &["h2"]);
        let mut client = connect(plane.address(443), &config, "a.example").await;
        let (response, mut stream) = client.send_request(get("https://a.example/"), true).unwrap();
        while plane.instances.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        while plane.instances.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

/// The bytes of one frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// `GET https://a.example/` in HPACK: indexed fields and a literal authority.
fn request_block() -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84, 0x41, 9];
    block.extend_from_slice(b"a.example");
    block
}

#[test]
fn a_flood_of_frames_that_ask_for_nothing_ends_its_connection() {
    let (plane, roots) = secure(World::new());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let backend = Backend::start(move |mut conn| {
        while conn.message().is_some() {
            counted.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(20));
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    let block = request_block();
    let rapid_reset = |turn: u32| {
        let stream = 2 * turn + 1;
        [frame(1, 5, stream, &block), frame(3, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let continuation = |turn: u32| {
        if turn == 0 { frame(1, 1, 1, &block) } else { frame(9, 0, 1, &[0x40, 1, b'x', 1, b'y']) }
    };
    let empty_data = |turn: u32| {
        if turn == 0 { frame(1, 4, 1, &block) } else { frame(0, 0, 1, &[]) }
    };
    type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let window = |_| frame(8, 0, 0, &[0, 0, 0, 1]);
    let resized_table = |_| frame(4, 0, 0, &[0, 1, 0, 0x10, 0, 0]);
    // Field names that are all different, to fill the table of the other side.
    let large_heads = |turn: u32| {
        if turn == 0 {
            return frame(1, 1, 1, &block);
        }
        let name = format!("x-{turn:08}");
        let mut field = vec![0x40, 10];
        field.extend_from_slice(name.as_bytes());
        field.extend([0x7f, 0x81, 7]);
        field.resize(field.len() + 1024, b'y');
        frame(9, 0, 1, &field)
    };
    let floods: [(&str, Flood<'_>); 10] = [
        ("rapid reset", &rapid_reset),
        ("continuation", &continuation),
        ("empty data", &empty_data),
        ("ping", &|_| frame(6, 0, 0, &[0; 8])),
        ("settings", &|_| frame(4, 0, 0, &[])),
        ("priority", &|turn| frame(2, 0, 2 * turn + 1, &[0, 0, 0, 0, 1])),
        ("unknown", &|_| frame(200, 0, 0, b"x")),
        ("window update", &window),
        ("table size", &resized_table),
        ("large heads", &large_heads),
    ];
    run(async {
        let config = client_config(&roots, &["h2"]);
        let before = resident_bytes();
        for (name, flood) in floods {
            let stream = tls(plane.address(443), &config, "a.example").await.unwrap();
            let (mut reading, mut writing) = tokio::io::split(stream);
            let reader = tokio::spawn(async move {
                let mut sink = vec![0; 64 << 10];
                while matches!(reading.read(&mut sink).await, Ok(count) if count > 0) {}
            });
            let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            start.extend(frame(4, 0, 0, &[]));
            writing.write_all(&start).await.unwrap();
            let mut turn = 0;
            while turn < 100_000 {
                let burst: Vec<u8> = (turn..turn + 50).flat_map(flood).collect();
                if writing.write_all(&burst).await.is_err() {
                    break;
                }
                turn += 50;
                tokio::task::yield_now().await;
            }
            assert!(turn < 100_000, "{name} was never stopped");
            reader.await.unwrap();
            let grown = resident_bytes().saturating_sub(before);
            assert!(grown < FLOOD_BYTES_MAX, "{name} made us hold {grown} bytes");
        }
        // Whoever behaves is still served.
        let mut client = connect(plane.address(443), &config, "a.example").await;
        let (response, _) = client.send_request(get("https://a.example/"), true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
    });
    assert!(asked.load(Ordering::SeqCst) < 1000, "{}", asked.load(Ordering::SeqCst));
    eventually("leases are given back", || plane.instances.in_flight() == 0);
}

#[test]
fn heads_have_a_size_in_http_2_too() {
    let (plane, roots) = secure(World::new());
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    run(async {
        let config = client_config(&roots, &["h2"]);
        let mut client = connect(plane.address(443), &config, "a.example").await;
        let request = Request::get("https://a.example/")
            .header("x-pad", "x".repeat(70 << 10))
            .body(())
            .unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        match response.await {
            Ok(response) => assert_eq!(response.status(), 431),
            Err(error) => assert!(error.is_reset() || error.is_go_away(), "{error}"),
        }
    });
}
