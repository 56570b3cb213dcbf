//! The header work, limits and answers of the balancer itself, by their bytes.

use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn, settled};
use crate::support::world::{World, host, to};
use model::url_map::{
    CorsPolicy, Destination, FaultInjection, HeaderAction, PathMatcher, PathRule, Percentage,
    RouteAction, UrlRedirect, UrlRewrite,
};
use proxy::{Config, Limits};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A backend that hands every head to the test and answers with the same bytes.
fn recording(response: &'static str) -> (Backend, Receiver<String>) {
    let (sender, seen) = channel();
    let backend = Backend::start(move |mut conn| {
        while let Some((head, _)) = conn.message() {
            let _ = sender.send(head);
            conn.send(response);
        }
    });
    (backend, seen)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn ask(plane: &Plane, request: &str) -> (String, Vec<u8>) {
    let mut client = Conn::connect(plane.address(80));
    client.send(request);
    client.message().expect("an answer")
}

#[test]
fn hop_by_hop_fields_end_here_and_names_are_lower_case() {
    let plane = Plane::start(World::new());
    let (backend, seen) = recording(
        "HTTP/1.1 200 Sure\r\nX-Up: 1\r\nConnection: X-Drop\r\nX-Drop: 2\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: x\r\nVia: 1.0 inner\r\nContent-Length: 0\r\n\r\n",
    );
    plane.instances.place("app", backend.address);
    let (head, _) = ask(
        &plane,
        "GET / HTTP/1.1\r\nHOST: a\r\nX-Keep: Value\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\n\
         TE: trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nVia: 1.1 outer\r\nX-Forwarded-For: 9.9.9.9\r\n\
         X-Forwarded-Proto: https\r\n\r\n",
    );
    assert_eq!(
        settled(&head),
        "HTTP/1.1 200 OK\nx-up: 1\nvia: 1.0 inner\nvia: 1.1 google\ncontent-length: 0"
    );
    assert_eq!(
        settled(&seen.recv().unwrap()),
        "GET / HTTP/1.1\nhost: a\nx-keep: Value\nvia: 1.1 outer\n\
         x-forwarded-for: 9.9.9.9,127.0.0.1,127.0.0.1\nx-forwarded-proto: http\nvia: 1.1 google\n\
         traceparent: …\nx-cloud-trace-context: …"
    );
}

#[test]
fn a_trace_that_comes_in_goes_on() {
    let plane = Plane::start(World::new());
    let (backend, seen) = recording(OK);
    plane.instances.place("app", backend.address);
    let id = "0af7651916cd43dd8448eb211c80319c";
    ask(
        &plane,
        &format!("GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-{id}-00f067aa0ba902b7-01\r\n\r\n"),
    );
    let head = seen.recv().unwrap();
    assert!(head.contains(&format!("traceparent: 00-{id}-00f067aa0ba902b7-01\r\n")), "{head}");
    assert!(head.contains(&format!("x-cloud-trace-context: {id}/67667974448284343\r\n")), "{head}");
}

#[test]
fn a_rewrite_is_told_to_the_backend() {
    let mut world = World::new();
    world.url_map("map", "app", |map| {
        let mut matcher =
            PathMatcher { name: "m".into(), default: to("app"), ..Default::default() };
        let rewrite = UrlRewrite {
            host: Some("inner.example".into()),
            path_prefix: Some("/new/".into()),
            ..UrlRewrite::default()
        };
        let action = RouteAction { url_rewrite: Some(rewrite), ..RouteAction::default() };
        let destination = Destination { route_action: Some(action), ..to("app") };
        matcher.path_rules.push(PathRule { paths: vec!["/old/*".into()], destination });
        host(map, "*", matcher);
    });
    let plane = Plane::start(world);
    let (backend, seen) = recording(OK);
    plane.instances.place("app", backend.address);
    ask(&plane, "GET /old/x?q=1 HTTP/1.1\r\nHost: a\r\nX-Envoy-Original-Path: /lie\r\n\r\n");
    let head = seen.recv().unwrap();
    assert!(head.starts_with("GET /new/x?q=1 HTTP/1.1\r\nhost: inner.example\r\n"), "{head}");
    assert!(head.contains("x-envoy-original-path: /old/x?q=1\r\n"), "{head}");
    assert!(!head.contains("/lie"), "{head}");
}

#[test]
fn header_actions_and_custom_headers_apply_in_their_order() {
    let mut world = World::new();
    world.backend("app", |backend| {
        backend.custom_request_headers =
            vec!["X-Client:{client_ip_address}:{client_protocol}".into()];
        backend.custom_response_headers = vec!["X-Served-By:{server_port}".into()];
    });
    world.url_map("map", "app", |map| {
        map.header_action = HeaderAction {
            request_remove: vec!["x-gone".into()],
            request_add: vec![model::url_map::HeaderToAdd {
                name: "x-added".into(),
                value: "v".into(),
                replace: Some(true),
            }],
            response_remove: vec!["server".into()],
            response_add: Vec::new(),
        };
    });
    let plane = Plane::start(world);
    let (backend, seen) =
        recording("HTTP/1.1 200 OK\r\nserver: secret\r\ncontent-length: 0\r\n\r\n");
    plane.instances.place("app", backend.address);
    let (head, _) = ask(&plane, "GET / HTTP/1.1\r\nHost: a\r\nX-Gone: 1\r\nX-Added: old\r\n\r\n");
    assert!(!head.contains("server:") && head.contains("x-served-by: "), "{head}");
    let head = seen.recv().unwrap();
    assert!(head.contains("x-added: v\r\n") && !head.contains("old"), "{head}");
    assert!(!head.contains("x-gone"), "{head}");
    assert!(head.contains("x-client: 127.0.0.1:HTTP/1.1\r\n"), "{head}");
}

#[test]
fn a_redirect_a_fault_and_a_missing_route_are_answered_here() {
    let mut world = World::new();
    world.url_map("map", "app", |map| {
        let redirect = UrlRedirect { path: Some("/there".into()), ..UrlRedirect::default() };
        let redirect = Destination { url_redirect: Some(redirect), ..Destination::default() };
        let abort = FaultInjection { abort: Some((418, Percentage::ALL)), delay: None };
        let action = RouteAction { fault_injection: Some(abort), ..RouteAction::default() };
        let fault = Destination { route_action: Some(action), ..to("app") };
        let mut matcher =
            PathMatcher { name: "m".into(), default: to("app"), ..Default::default() };
        matcher.path_rules.push(PathRule { paths: vec!["/here".into()], destination: redirect });
        matcher.path_rules.push(PathRule { paths: vec!["/fault".into()], destination: fault });
        host(map, "*", matcher);
    });
    world.backend_of("masked", None, Some("/<service>"), |_| {});
    let plane = Plane::start(world);
    let mut client = Conn::connect(plane.address(80));
    client.send("GET /here HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(
        settled(&client.message().unwrap().0),
        "HTTP/1.1 301 Moved Permanently\nlocation: http://a/there\ndate: …\nvia: 1.1 google\n\
         content-length: 0"
    );
    // The connection goes on after an answer of the balancer's own.
    client.send("HEAD /fault HTTP/1.1\r\nHost: a\r\n\r\nGET /fault HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 418 ") && head.contains("content-length: 18"), "{head}");
    let (head, body) = client.message().unwrap();
    assert!(head.contains("content-type: text/plain\r\n"), "{head}");
    assert_eq!(body, b"fault filter abort");
}

#[test]
fn a_mask_that_finds_no_service_is_a_404() {
    let mut world = World::new();
    world.backend_of("masked", None, Some("/<service>"), |_| {});
    world.url_map("map", "masked", |_| {});
    let plane = Plane::start(world);
    let (backend, seen) = recording(OK);
    plane.instances.place("app", backend.address);
    assert!(ask(&plane, "GET /app/x HTTP/1.1\r\nHost: a\r\n\r\n").0.starts_with("HTTP/1.1 200 "));
    assert!(seen.recv().unwrap().starts_with("GET /app/x HTTP/1.1\r\n"));
    assert!(ask(&plane, "GET /nope HTTP/1.1\r\nHost: a\r\n\r\n").0.starts_with("HTTP/1.1 404 "));
}

#[test]
fn cors_is_decided_by_the_url_map() {
    let mut world = World::new();
    world.url_map("map", "app", |map| {
        let cors = CorsPolicy {
            allow_origins: vec!["https://good.example".into()],
            allow_methods: vec!["GET".into(), "PUT".into()],
            expose_headers: vec!["x-total".into()],
            allow_credentials: true,
            ..CorsPolicy::default()
        };
        map.default.route_action =
            Some(RouteAction { cors_policy: Some(cors), ..RouteAction::default() });
    });
    let plane = Plane::start(world);
    let (backend, _seen) = recording(OK);
    plane.instances.place("app", backend.address);
    let preflight = "OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: https://good.example\r\n\
                     Access-Control-Request-Method: PUT\r\n\r\n";
    let (head, _) = ask(&plane, preflight);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("access-control-allow-methods: GET,PUT\r\n"), "{head}");
    let simple = |origin: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\n\r\n");
    let (head, _) = ask(&plane, &simple("https://good.example"));
    for line in [
        "access-control-allow-origin: https://good.example\r\n",
        "access-control-allow-credentials: true\r\n",
        "access-control-expose-headers: x-total\r\n",
    ] {
        assert!(head.contains(line), "{head}");
    }
    let (head, _) = ask(&plane, &simple("https://bad.example"));
    assert!(!head.contains("access-control"), "{head}");
}

#[test]
fn a_request_that_runs_in_circles_is_stopped() {
    let plane = Plane::start(World::new());
    let (backend, _seen) = recording(OK);
    plane.instances.place("app", backend.address);
    let hops = |count: usize| {
        let via = vec!["1.1 google"; count].join(", ");
        ask(&plane, &format!("GET / HTTP/1.1\r\nHost: a\r\nVia: {via}\r\n\r\n"))
    };
    assert!(hops(proxy::VIA_HOPS_MAX).0.starts_with("HTTP/1.1 200 "));
    let (head, body) = hops(proxy::VIA_HOPS_MAX + 1);
    assert!(head.starts_with("HTTP/1.1 502 "), "{head}");
    assert_eq!(body, b"loop detected");
}

#[test]
fn heads_have_a_size_and_a_time() {
    let limits = Limits { head_timeout: Duration::from_millis(100), ..Limits::default() };
    let plane = Plane::with(World::new(), Config { workers: 1, limits, ..Config::default() });
    let (backend, _seen) = recording(OK);
    plane.instances.place("app", backend.address);
    let padded =
        |field: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Pad: {}\r\n\r\n", "x".repeat(field));
    assert!(ask(&plane, &padded(59 << 10)).0.starts_with("HTTP/1.1 200 "));
    for (request, status) in [
        (padded(61 << 10), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(61 << 10)), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(200)), 431),
        ("GET / HTTP/1.1\r\nHost: a".to_owned(), 408),
    ] {
        let mut client = Conn::connect(plane.address(80));
        client.send(&request);
        let answer = client.rest();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
}

#[test]
fn an_idle_client_is_kept_as_long_as_its_proxy_says() {
    let mut world = World::new();
    world.http_proxy("proxy", "map", Some(5));
    let plane = Plane::start(world);
    let (backend, _seen) = recording(OK);
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.message().unwrap();
    let idle_since = Instant::now();
    assert_eq!(client.rest(), "");
    assert!(idle_since.elapsed() >= Duration::from_secs(5));
    eventually("the connection is gone", || plane.proxy.status()[0].connections == 0);
}

#[test]
fn a_service_that_is_not_public_asks_who_calls() {
    let mut world = World::new();
    let service = crate::support::world::regional(model::Kind::Service, "app");
    let mut private = (**world.inventory.services.get(&service).unwrap()).clone();
    private.access.invokers = [model::run::Member::User("a@example.com".into())].into();
    private.access.custom_audiences = vec!["custom".into()];
    world.insert(model::Resource::Service(std::sync::Arc::new(private)));
    let plane = Plane::start(world);
    let (backend, _seen) = recording(OK);
    plane.instances.place("app", backend.address);
    for (field, status) in [
        ("", 403),
        ("Authorization: Bearer bad\r\n", 401),
        ("Authorization: Bearer good\r\n", 200),
        ("Authorization: Bearer bad\r\nX-Serverless-Authorization: bearer good\r\n", 200),
    ] {
        let (head, body) = ask(&plane, &format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n"));
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{field}: {head}");
        if status != 200 {
            assert!(head.contains("content-type: text/html; charset=UTF-8\r\n"), "{head}");
            assert!(body.starts_with(b"<html>") || body.starts_with(b"\n<html>"), "{field}");
        }
    }
}
