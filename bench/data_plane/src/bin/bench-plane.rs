//! The data plane alone on loopback, as the race measures it: every feature on, no control plane.
//!
//! Usage: `bench-plane HTTP_PORT HTTPS_PORT BACKEND_PORT WORKERS ROUTES LOG_FILE|off CERT KEY`. The URL map
//! has three hosts besides the address, path rules, as many further routes as asked for, and a URL mask
//! that finds the service.

use model::certificate::Certificate;
use model::url_map::{PathMatcher, PathRule};
use model::{Kind, Resource};
use plane::{Instances, TestCallers};
use proxy::{Config, LogTarget, Parties, Proxy, RequestLog, Sockets};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Arc;
use world::{World, host, regional, to};

#[path = "../../../../crates/proxy/tests/data_plane/support/plane.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
#[allow(clippy::unwrap_used, reason = "it is written for tests, where a panic is an answer")]
mod plane;
#[path = "../../../../crates/proxy/tests/data_plane/support/world.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
#[allow(clippy::unwrap_used, reason = "it is written for tests, where a panic is an answer")]
mod world;

/// The plan's ports, on loopback.
struct SamePort;

impl Sockets for SamePort {
    fn listen(
        &self,
        _network: &model::ResourceName,
        address: SocketAddrV4,
        count: usize,
    ) -> io::Result<Vec<TcpListener>> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port());
        proxy::sockets::listen_here(address, count)
    }
}

/// Cloud Logging as the data plane knows it: it takes the entries of so many requests a second.
struct Taking;

impl RequestLog for Taking {
    fn take(&self, lines: &[u8]) {
        std::hint::black_box(lines);
    }
}

/// The services the mask can find; the backend answers for all of them.
const SERVICES: [&str; 5] = ["small", "s64k", "s10m", "s1k", "echo"];

fn rule(path: &str, backend: &str) -> PathRule {
    PathRule { paths: vec![path.to_owned()], destination: to(backend) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [http, https, backend, workers, routes, log, chain, key] = &arguments[..] else {
        return Err("HTTP_PORT HTTPS_PORT BACKEND_PORT WORKERS ROUTES LOG|off CERT KEY".into());
    };
    let mut world = World::new();
    for service in SERVICES {
        world.service(service, |revision| revision.concurrency = 1000);
    }
    world.backend_of("masked", None, Some("/<service>"), |backend| {
        backend.log.enable = log != "off";
    });
    let routes: usize = routes.parse()?;
    world.url_map("race", "masked", |map| {
        let v1 = vec![rule("/v1/*", "app")];
        let matcher = |name: &str, path_rules, default| PathMatcher {
            name: name.into(),
            path_rules,
            default: to(default),
            ..PathMatcher::default()
        };
        host(map, "api.test", matcher("api", v1, "app"));
        host(map, "www.test", matcher("www", Vec::new(), "app"));
        let fixed = vec![rule("/static/*", "app")];
        host(map, "app.test", matcher("app", fixed, "masked"));
        for more in 0..routes / 10 {
            let rules = (0..10).map(|n| rule(&format!("/part-{n}/*"), "app")).collect();
            let name = format!("more-{more}");
            host(map, &format!("h{more}.test"), matcher(&name, rules, "app"));
        }
    });
    world.remove_rule("web");
    world.http_proxy("race", "race", Some(600));
    world.rule("http", http.parse()?, Kind::TargetHttpProxy, "race");
    world.insert(Resource::SslCertificate(Arc::new(Certificate {
        name: regional(Kind::SslCertificate, "race"),
        id: 7,
        chain_pem: std::fs::read_to_string(chain)?,
        private_key_pem: std::fs::read_to_string(key)?,
        dns_names: vec!["app.test".to_owned()],
        expires_at_seconds: i64::MAX,
    })));
    world.https_proxy("race", "race", &["race"]);
    world.rule("https", https.parse()?, Kind::TargetHttpsProxy, "race");

    let instances = Arc::new(Instances::default());
    let backend = SocketAddrV4::new(Ipv4Addr::LOCALHOST, backend.parse()?);
    for service in SERVICES.into_iter().chain(["app"]) {
        instances.place(service, backend.into());
    }
    let log = match log.as_str() {
        "off" => LogTarget::Off,
        path => LogTarget::File(path.into()),
    };
    let request_log: Option<Arc<dyn RequestLog>> = Some(Arc::new(Taking));
    let config = Config { workers: workers.parse()?, log, request_log, ..Config::default() };
    let parties = Parties {
        endpoints: instances,
        sockets: Arc::new(SamePort),
        callers: Arc::new(TestCallers),
    };
    let proxy = Proxy::start(config, parties)?;
    let failures = proxy.apply(&world.plan());
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure.into());
    }
    loop {
        std::thread::park();
    }
}
