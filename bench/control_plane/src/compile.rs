//! How long compiling a world takes: from nothing, after one change, and when nothing changed.

use bench_report::Report;
use model::backend_service::{Backend, BackendService, LogConfig, TIMEOUT_SECONDS_DEFAULT};
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::forwarding_rule::ForwardingRule;
use model::inventory::Resource;
use model::network::{MTU_BYTES_DEFAULT, Network, RoutingMode};
use model::subnetwork::{Purpose, Role, Subnetwork};
use model::target_proxy::TargetHttpProxy;
use model::url_map::{Destination, HeaderAction, HostRule, PathMatcher, PathRule, UrlMap};
use model::{Inventory, Kind, ResourceName};
use plan::Compiled;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many worlds of each size are compiled.
const ROUNDS: usize = 15;

/// How many path rules each of a map's two matchers has.
const PATH_RULES: usize = 5;

pub(crate) fn measure(report: &mut Report) {
    for (maps, aim) in [(100, ""), (1000, "under 50 ms"), (5000, "")] {
        let world = world(maps);
        let (mut whole, mut changed, mut same) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (compiled, took) = timed(&world, &Compiled::default());
            whole.push(took);
            let mut other = world.clone();
            other.insert(url_map(round % maps, "/changed"));
            changed.push(timed(&other, &compiled).1);
            same.push(timed(&world, &compiled).1);
        }
        report.durations(&format!("compile {maps} URL maps from nothing"), whole, aim);
        report.durations(&format!("compile {maps} URL maps after one changed"), changed, "");
        report.durations(&format!("compile {maps} URL maps, nothing changed"), same, "");
    }
}

fn timed(world: &Inventory, previous: &Compiled) -> (Compiled, Duration) {
    let started = Instant::now();
    let compiled = plan::compile(world, 1, previous);
    let took = started.elapsed();
    assert!(compiled.problems.is_empty(), "the world is sound: {:?}", compiled.problems.first());
    (compiled, took)
}

fn regional(kind: Kind, name: &str) -> ResourceName {
    ResourceName::regional("p", "us-west1", kind, name)
}

/// A world of load balancers, each with its endpoint group, backend service, map, proxy and rule.
fn world(maps: usize) -> Inventory {
    let mut world = Inventory::default();
    let network = ResourceName::global("p", Kind::Network, "n");
    world.insert(Resource::Network(Arc::new(Network {
        name: network.clone(),
        id: 1,
        auto_create_subnetworks: false,
        mtu_bytes: MTU_BYTES_DEFAULT,
        routing_mode: RoutingMode::Regional,
    })));
    let subnets = [
        ("subnet", "10.0.0.0/16", Purpose::Private, None),
        ("proxies", "10.128.0.0/16", Purpose::RegionalManagedProxy, Some(Role::Active)),
    ];
    for (name, range, purpose, role) in subnets {
        world.insert(Resource::Subnetwork(Arc::new(Subnetwork {
            name: regional(Kind::Subnetwork, name),
            id: 2,
            network: network.clone(),
            range: range.parse().expect("a range"),
            purpose,
            role,
            secondary_ranges: Vec::new(),
            private_google_access: false,
            log_config: None,
        })));
    }
    for number in 0..maps {
        balancer(&mut world, &network, number);
    }
    world
}

fn balancer(world: &mut Inventory, network: &ResourceName, number: usize) {
    let id = 1000 + number as u64;
    let (group, service) = (format!("neg-{number}"), format!("bs-{number}"));
    world.insert(Resource::NetworkEndpointGroup(Arc::new(EndpointGroup {
        name: regional(Kind::NetworkEndpointGroup, &group),
        id,
        endpoints: Endpoints::CloudRun {
            service: None,
            tag: None,
            url_mask: Some("/<service>".to_owned()),
        },
    })));
    world.insert(Resource::BackendService(Arc::new(BackendService {
        name: regional(Kind::BackendService, &service),
        id,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        protocol: "HTTP".into(),
        port_name: None,
        timeout_seconds: TIMEOUT_SECONDS_DEFAULT,
        backends: vec![Backend {
            group: regional(Kind::NetworkEndpointGroup, &group),
            balancing_mode: None,
            capacity_scaler: None,
        }],
        health_checks: Vec::new(),
        session_affinity: "NONE".into(),
        custom_request_headers: Vec::new(),
        custom_response_headers: Vec::new(),
        log: LogConfig::default(),
        draining_timeout_seconds: 0,
        outlier_detection: false,
        circuit_breakers: false,
        consistent_hash: false,
        locality_policy: None,
    })));
    world.insert(url_map(number, "/static"));
    world.insert(Resource::TargetHttpProxy(Arc::new(TargetHttpProxy {
        name: regional(Kind::TargetHttpProxy, &format!("proxy-{number}")),
        id,
        url_map: regional(Kind::UrlMap, &format!("map-{number}")),
        keepalive_seconds: None,
    })));
    let offset = u32::try_from(number).unwrap_or(0) + 2;
    world.insert(Resource::ForwardingRule(Arc::new(ForwardingRule {
        name: regional(Kind::ForwardingRule, &format!("rule-{number}")),
        id,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        network: network.clone(),
        subnetwork: regional(Kind::Subnetwork, "subnet"),
        address: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + offset),
        reserved_address: None,
        port: 80,
        target: regional(Kind::TargetHttpProxy, &format!("proxy-{number}")),
        allow_global_access: false,
        service_label: None,
    })));
}

/// A map of two hosts, each with a handful of paths.
fn url_map(number: usize, prefix: &str) -> Resource {
    let service = regional(Kind::BackendService, &format!("bs-{number}"));
    let to_service = || Destination { service: Some(service.clone()), ..Destination::default() };
    let path_matchers = ["a", "b"].map(|name| PathMatcher {
        name: name.into(),
        path_rules: (0..PATH_RULES)
            .map(|rule| PathRule {
                paths: vec![format!("{prefix}/{rule}/*")],
                destination: to_service(),
            })
            .collect(),
        default: to_service(),
        ..PathMatcher::default()
    });
    let host_rules = ["a", "b"].map(|name| HostRule {
        hosts: vec![format!("{name}-{number}.example.com")],
        path_matcher: name.into(),
    });
    Resource::UrlMap(Arc::new(UrlMap {
        name: regional(Kind::UrlMap, &format!("map-{number}")),
        id: 1000 + number as u64,
        host_rules: host_rules.into(),
        path_matchers: path_matchers.into(),
        default: to_service(),
        header_action: HeaderAction::default(),
        tests: Vec::new(),
        document_bytes: 0,
    }))
}
