//! Services' own `run.app` addresses: found by the host, judged as coming from outside, and logged and
//! counted as Cloud Run does.

use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn, settled};
use crate::support::world::World;
use model::run::{Ingress, Member, Service};
use model::{Kind, Location, Resource, ResourceName};
use plan::decision::Scheme;
use plan::fleet::Arrival;
use plan::load_balancer::Listener;
use proxy::{Config, LogTarget, RequestLog};
use serde_json::Value;
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};

const OK: &str = "HTTP/1.1 200 OK\r\nserver: mine\r\ncontent-length: 2\r\n\r\nok";
const HOST: &str = "app-4711.us-west1.run.app";

fn named(kind: Kind, name: &str) -> ResourceName {
    let (project, location) = ("".into(), Location::Global);
    ResourceName { project, location, kind, name: name.into() }
}

fn open(plane: &Plane) -> SocketAddr {
    let anywhere: SocketAddrV4 = "127.0.0.1:0".parse().unwrap();
    let (name, host) = (named(Kind::ForwardingRule, "run-app"), named(Kind::Network, "host"));
    let arrival = Arrival::Outside;
    let listener = Listener::run_app(name, u64::MAX, host, anywhere, Scheme::Http, arrival);
    plane.proxy.open_run_app(listener, None).unwrap().into()
}

fn ask(at: SocketAddr, host: &str, fields: &str) -> (String, String) {
    let mut client = Conn::connect(at);
    client.send(format!("GET /a HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"));
    let (head, body) = client.message().expect("an answer");
    (head, String::from_utf8(body).unwrap())
}

fn status(at: SocketAddr, host: &str, fields: &str) -> u16 {
    let (head, _) = ask(at, host, fields);
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

fn change(world: &mut World, change: impl FnOnce(&mut Service)) {
    let mut service = Service::clone(world.inventory.services.values().next().unwrap());
    change(&mut service);
    world.insert(Resource::Service(Arc::new(service)));
}

#[test]
fn a_service_answers_under_its_own_address_with_the_headers_of_the_front_end() {
    let plane = Plane::start(World::new());
    let seen = Arc::new(Mutex::new(String::new()));
    let sees = seen.clone();
    let backend = Backend::start(move |mut conn| {
        while let Some((head, _)) = conn.message() {
            *sees.lock().unwrap() = settled(&head);
            conn.send(OK);
        }
    });
    plane.instances.place("app", backend.address);
    let at = open(&plane);
    let (head, body) = ask(at, HOST, "X-Forwarded-For: 1.2.3.4\r\nVia: 1.1 mine\r\n");
    assert_eq!(body, "ok");
    assert!(head.contains("server: Google Frontend\r\n"), "{head}");
    assert!(!head.contains("via:") && !head.contains("mine"), "{head}");
    let seen = seen.lock().unwrap().clone();
    for line in [
        "GET /a HTTP/1.1",
        "host: app-4711.us-west1.run.app",
        "x-forwarded-for: 1.2.3.4,127.0.0.1",
        "x-forwarded-proto: http",
        "forwarded: for=\"127.0.0.1\";proto=http",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line}: {seen}");
    }
    assert!(!seen.contains("via:"), "{seen}");
    for host in ["APP-4711.us-west1.run.app:443", HOST] {
        assert_eq!(status(at, host, ""), 200, "{host}");
    }
    for host in ["app-4712.us-west1.run.app", "no-4711.us-west1.run.app", "example.com"] {
        let (head, body) = ask(at, host, "");
        assert!(head.starts_with("HTTP/1.1 404 "), "{host}: {head}");
        assert!(head.contains("content-type: text/html; charset=UTF-8\r\n"), "{head}");
        assert!(body.contains("The requested URL was not found on this server."), "{body}");
    }
    assert_eq!(status(at, &format!("red---{HOST}"), ""), 404);
}

#[test]
fn whoever_comes_from_outside_is_judged_by_ingress_first_and_then_by_token() {
    let mut plane = Plane::start(World::new());
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    let at = open(&plane);
    let everybody: &[Member] = &[Member::AllUsers];
    let nobody: &[Member] = &[];
    let somebody: &[Member] = &[Member::User("a@example.com".into())];
    let good = "Authorization: Bearer good\r\n";
    let bad = "Authorization: Bearer bad\r\n";
    for (ingress, invokers, fields, expected) in [
        (Ingress::All, everybody, "", 200),
        (Ingress::Internal, everybody, "", 404),
        (Ingress::InternalAndCloudLoadBalancing, everybody, "", 404),
        (Ingress::None, everybody, "", 404),
        (Ingress::Internal, nobody, bad, 404),
        (Ingress::All, nobody, "", 403),
        (Ingress::All, nobody, bad, 401),
        (Ingress::All, nobody, good, 403),
        (Ingress::All, somebody, good, 200),
        (
            Ingress::All,
            somebody,
            "X-Serverless-Authorization: Bearer good\r\nAuthorization: Basic x\r\n",
            200,
        ),
    ] {
        change(&mut plane.world, |service| {
            service.ingress = ingress;
            service.access.invokers = invokers.iter().cloned().collect();
            service.access.custom_audiences = vec!["custom".into()];
        });
        plane.apply();
        assert_eq!(status(at, HOST, fields), expected, "{ingress:?} {invokers:?} {fields}");
    }
}

#[derive(Default)]
struct Kept(Mutex<Vec<Value>>);

impl RequestLog for Kept {
    fn take(&self, lines: &[u8]) {
        let text = std::str::from_utf8(lines).unwrap();
        let read = text.lines().map(|line| serde_json::from_str(line).expect(line));
        self.0.lock().unwrap().extend(read);
    }
}

#[test]
fn every_request_to_a_service_is_kept_for_cloud_logging_and_a_balancers_share_beside_it() {
    let mut world = World::new();
    world.backend("app", |backend| backend.log.enable = true);
    let kept = Arc::new(Kept::default());
    let config = Config {
        workers: 1,
        log: LogTarget::Off,
        request_log: Some(kept.clone()),
        ..Config::default()
    };
    let mut plane = Plane::with(world, config);
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    let at = open(&plane);
    assert_eq!(status(at, HOST, ""), 200);
    assert_eq!(status(at, "nobody-4711.us-west1.run.app", ""), 404);
    assert_eq!(status(plane.address(80), "a", ""), 200);
    change(&mut plane.world, |service| service.ingress = Ingress::None);
    plane.apply();
    assert_eq!(status(at, HOST, ""), 404);
    eventually("four entries are kept", || kept.0.lock().unwrap().len() == 4);
    let kept = kept.0.lock().unwrap().clone();
    let told: Vec<String> = kept
        .iter()
        .map(|entry| {
            let labels = &entry["resource"]["labels"];
            format!(
                "{} {} {} {} {} {}",
                entry["logName"].as_str().unwrap(),
                entry["resource"]["type"].as_str().unwrap(),
                labels["revision_name"]
                    .as_str()
                    .or(labels["forwarding_rule_name"].as_str())
                    .unwrap(),
                entry["httpRequest"]["status"],
                entry["severity"].as_str().unwrap(),
                entry["textPayload"].as_str().unwrap_or("-"),
            )
        })
        .collect();
    let run = "projects/p/logs/run.googleapis.com%2Frequests cloud_run_revision app-00001-x";
    let balancer =
        "projects/p/logs/loadbalancing.googleapis.com%2Frequests internal_http_lb_rule web";
    let refused = "The request was not allowed by the ingress settings of the service.";
    assert_eq!(
        told,
        [
            format!("{run} 200 INFO -"),
            format!("{balancer} 200 INFO -"),
            format!("{run} 200 INFO -"),
            format!("{run} 404 WARNING {refused}"),
        ]
    );
    let metrics = plane.proxy.render_openmetrics();
    let labels =
        "project_id=\"p\",location=\"us-west1\",service_name=\"app\",revision_name=\"app-00001-x\"";
    let line = format!(
        "run_googleapis_com:request_count_total{{{labels},response_code=\"200\",response_code_class=\"2xx\"}} 2\n"
    );
    assert!(metrics.contains(&line), "{line}{metrics}");
}

#[test]
fn a_flood_of_requests_is_counted_and_only_some_of_it_is_kept() {
    let kept = Arc::new(Kept::default());
    let mut config = Config { workers: 1, request_log: Some(kept.clone()), ..Config::default() };
    config.limits.stored_requests_per_second_max = 1;
    let plane = Plane::with(World::new(), config);
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    let at = open(&plane);
    let mut client = Conn::connect(at);
    for _ in 0..50 {
        client.send(format!("GET /a HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        client.message().expect("an answer");
    }
    let dropped = || -> u64 {
        let metrics = plane.proxy.render_openmetrics();
        let name = "tidegate_request_log_entries_dropped_total ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        line.parse().unwrap()
    };
    eventually("each request was kept or counted", || {
        kept.0.lock().unwrap().len() as u64 + dropped() == 50
    });
    assert!(dropped() > 0);
}

#[test]
fn a_client_comes_back_to_its_instance_by_a_cookie_where_the_revision_wants_it() {
    let mut world = World::new();
    world.service("app", |revision| revision.session_affinity = true);
    let plane = Plane::start(world);
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    let cookie = |head: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix("set-cookie: "));
        line.map(|value| value.split(';').next().unwrap().to_owned())
    };
    for at in [open(&plane), plane.address(80)] {
        let (head, _) = ask(at, HOST, "");
        let first = cookie(&head).expect("a cookie");
        assert!(first.starts_with("GAESA="), "{first}");
        let (head, _) = ask(at, HOST, &format!("Cookie: a=b; {first}\r\n"));
        assert_eq!(cookie(&head), None, "the client is where it was");
        let (head, _) = ask(at, HOST, "Cookie: GAESA=0123\r\n");
        assert_eq!(cookie(&head), Some(first), "what cannot be read is replaced");
    }
}
