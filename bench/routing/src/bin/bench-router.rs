//! The data plane with so many rules of one kind, each of which answers by a redirect: what is left of a
//! request when there is no backend, so that the cost of deciding shows.
//!
//! Usage: `bench-router KIND RULES PORT`. A kind is the number of a row of `worlds::KINDS`.

use model::forwarding_rule::ForwardingRule;
use model::network::{MTU_BYTES_DEFAULT, Network, RoutingMode};
use model::subnetwork::{Purpose, Role, Subnetwork};
use model::target_proxy::TargetHttpProxy;
use model::url_map::{Destination, UrlMap, UrlRedirect};
use model::{Inventory, Kind, Resource, ResourceName};
use plan::Compiled;
use plane::{Instances, TestCallers};
use proxy::{Config, LogTarget, Parties, Proxy, Sockets};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Arc;

#[path = "../../../../crates/proxy/tests/data_plane/support/plane.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
#[allow(clippy::unwrap_used, reason = "it is written for tests, where a panic is an answer")]
mod plane;
#[path = "../../../../crates/proxy/tests/data_plane/support/world.rs"]
#[allow(dead_code, reason = "the tests use it; here it only comes along with the instances")]
#[allow(clippy::unwrap_used, reason = "it is written for tests, where a panic is an answer")]
mod world;
#[path = "../worlds.rs"]
#[allow(dead_code, reason = "the benchmark beside this program uses the rest of it")]
mod worlds;

/// The plan's port, on loopback.
struct SamePort;

impl Sockets for SamePort {
    fn listen(
        &self,
        _network: &ResourceName,
        address: SocketAddrV4,
        count: usize,
    ) -> io::Result<Vec<TcpListener>> {
        proxy::sockets::listen_here(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()), count)
    }
}

fn regional(kind: Kind, name: &str) -> ResourceName {
    ResourceName::regional("p", "us-west1", kind, name)
}

/// The map, with a redirect wherever a request could go.
fn answering(mut map: UrlMap) -> UrlMap {
    let to_the_answer = || Destination {
        url_redirect: Some(UrlRedirect {
            host: Some("answer.example.com".to_owned()),
            path: Some("/".to_owned()),
            ..UrlRedirect::default()
        }),
        ..Destination::default()
    };
    map.default = to_the_answer();
    for matcher in &mut map.path_matchers {
        matcher.default = to_the_answer();
        matcher.path_rules.iter_mut().for_each(|rule| rule.destination = to_the_answer());
        matcher.route_rules.iter_mut().for_each(|rule| rule.destination = to_the_answer());
    }
    map
}

fn subnet(name: &str, range: &str, purpose: Purpose, role: Option<Role>) -> Resource {
    Resource::Subnetwork(Arc::new(Subnetwork {
        name: regional(Kind::Subnetwork, name),
        id: 2,
        network: ResourceName::global("p", Kind::Network, "n"),
        range: range.parse().expect("a range"),
        purpose,
        role,
        secondary_ranges: Vec::new(),
        private_google_access: false,
        log_config: None,
    }))
}

/// A load balancer on a port with that map.
fn load_balancer(map: UrlMap, port: u16) -> Inventory {
    let mut world = Inventory::default();
    world.insert(Resource::Network(Arc::new(Network {
        name: ResourceName::global("p", Kind::Network, "n"),
        id: 1,
        auto_create_subnetworks: false,
        mtu_bytes: MTU_BYTES_DEFAULT,
        routing_mode: RoutingMode::Regional,
    })));
    world.insert(subnet("s", "10.0.0.0/16", Purpose::Private, None));
    let active = Some(Role::Active);
    world.insert(subnet("proxies", "10.128.0.0/16", Purpose::RegionalManagedProxy, active));
    world.insert(Resource::TargetHttpProxy(Arc::new(TargetHttpProxy {
        name: regional(Kind::TargetHttpProxy, "t"),
        id: 3,
        url_map: map.name.clone(),
        keepalive_seconds: None,
    })));
    world.insert(Resource::UrlMap(Arc::new(map)));
    world.insert(Resource::ForwardingRule(Arc::new(ForwardingRule {
        name: regional(Kind::ForwardingRule, "f"),
        id: 4,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        network: ResourceName::global("p", Kind::Network, "n"),
        subnetwork: regional(Kind::Subnetwork, "s"),
        address: Ipv4Addr::new(10, 0, 0, 2),
        reserved_address: None,
        port,
        target: regional(Kind::TargetHttpProxy, "t"),
        allow_global_access: false,
        service_label: None,
    })));
    world
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, rules, port] = &arguments[..] else { return Err("KIND RULES PORT".into()) };
    let kind = worlds::KINDS.get(kind.parse::<usize>()?).ok_or("no such kind of rule")?;
    let (map, _) = (kind.build)(rules.parse()?);
    // More rules than Google allows are a problem of the world and compiled all the same.
    let compiled =
        plan::compile(&load_balancer(answering(map), port.parse()?), 1, &Compiled::default());
    let parties = Parties {
        endpoints: Arc::new(Instances::default()),
        sockets: Arc::new(SamePort),
        callers: Arc::new(TestCallers),
    };
    let config = Config { workers: 1, log: LogTarget::Off, ..Config::default() };
    let proxy = Proxy::start(config, parties)?;
    if let Some(failure) = proxy.apply(&compiled.plan).into_iter().next() {
        return Err(failure.into());
    }
    loop {
        std::thread::park();
    }
}
