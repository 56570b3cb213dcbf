//! The shipped image, from the store through the runtime to its page. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::time::Duration;

use serverless::images::{ImageStore, ImageStoreConfig};
use serverless::runtime::launch::LiveInstance;
use serverless::runtime::{ContainerSpec, Probe, ProbeAction};
use support::{World, container, get, root};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn hello(world: &World) -> LiveInstance {
    let images = ImageStore::open(ImageStoreConfig {
        directory: world.directory.path().join("images"),
        credentials: None,
    })
    .unwrap();
    let image = images.resolve("localhost/tidegate/hello:latest", &|_| ()).await.unwrap();
    let mut spec = world.spec("hello", &[]);
    spec.containers = vec![ContainerSpec {
        port: Some(8080),
        environment: vec![("WHO".to_owned(), "<Ann>".to_owned())],
        ..container("hello", image, &[])
    }];
    world.launch(spec).await.unwrap()
}

/// Sends bytes as they are and reads to the end.
async fn raw(live: &LiveInstance, request: &str) -> String {
    let stream = live.instance().dial(8080).await.unwrap();
    let mut stream = TcpStream::from_std(stream).unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn the_page_says_that_it_is_running_and_as_what() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = hello(&world).await;
    let (status, page) = get(live.instance(), "/").await;
    assert_eq!(status, 200);
    for text in ["It's running!", "shop-00001-abc", "Hello, &lt;Ann&gt;!"] {
        assert!(page.contains(text), "{text}");
    }
    live.stop(Duration::ZERO).await;
    world.end().await;
}

#[tokio::test]
async fn the_echo_tells_the_request_as_it_arrived() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = hello(&world).await;
    let answer = raw(
        &live,
        "POST /a/b?x=1&y=%20 HTTP/1.1\r\nHost: shop.example\r\nX-Mixed-CASE: \"quoted\"\r\n\
         Accept: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         3\r\none\r\n4;ext=1\r\n two\r\n0\r\nTrailer: t\r\n\r\n",
    )
    .await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let echo: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(echo["method"], "POST");
    assert_eq!(echo["path"], "/a/b");
    assert_eq!(echo["query"], "x=1&y=%20");
    assert_eq!(echo["protocol"], "HTTP/1.1");
    assert_eq!(echo["headers"][1], serde_json::json!(["X-Mixed-CASE", "\"quoted\""]));
    assert_eq!(echo["body"], "one two");
    assert_eq!(echo["bodyBytes"], 7);
    assert_eq!(echo["environment"]["K_SERVICE"], "shop");
    assert_eq!(echo["environment"]["WHO"], "<Ann>");
    live.stop(Duration::ZERO).await;
    world.end().await;
}

#[tokio::test]
async fn it_helps_to_look_at_a_load_balancer() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = hello(&world).await;
    let close = "Host: h\r\nConnection: close\r\n\r\n";
    let cases = [
        (format!("GET /status/503 HTTP/1.1\r\n{close}"), "HTTP/1.1 503 Service Unavailable\r\n"),
        (format!("GET /sleep/0.01 HTTP/1.1\r\n{close}"), "slept well"),
        (format!("HEAD / HTTP/1.1\r\n{close}"), "content-length: "),
        (format!("GET /stream/2 HTTP/1.1\r\n{close}"), "data: event 2 of 2"),
        (format!("GET /bytes/5 HTTP/1.1\r\n{close}"), "\r\n\r\nxxxxx"),
        // Two requests on one connection.
        (
            format!("GET /bytes/1 HTTP/1.1\r\nHost: h\r\n\r\nGET /bytes/3 HTTP/1.1\r\n{close}"),
            "\r\n\r\nxHTTP/1.1 200 OK\r\n",
        ),
        ("nonsense\r\n\r\n".to_owned(), "HTTP/1.1 400 Bad Request\r\n"),
        // The example of the protocol's own specification.
        (
            "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\
             \u{1}\u{0}"
                .to_owned(),
            "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
        ),
    ];
    for (request, expected) in cases {
        let answer = raw(&live, &request).await;
        assert!(answer.contains(expected), "{request}\n{answer}");
    }
    let head = raw(&live, &format!("HEAD / HTTP/1.1\r\n{close}")).await;
    assert!(head.ends_with("\r\n\r\n"), "HEAD has no body");
    live.stop(Duration::ZERO).await;
    world.end().await;
}

#[tokio::test]
async fn a_grpc_probe_does_not_take_plain_http_for_an_answer() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut spec = world.spec("one", &["serve", "0.0.0.0:8080"]);
    spec.containers[0].probes.startup = Some(Probe {
        failure_threshold: 1,
        ..Probe::with_defaults(ProbeAction::Grpc { port: 8080, service: String::new() })
    });
    let failure = world.launch(spec).await.unwrap_err();
    assert!(
        failure.detail.starts_with(
            "STARTUP GRPC probe failed 1 time consecutively for container \"app\" on port 8080."
        ),
        "{}",
        failure.detail
    );
    world.end().await;
}
