//! Worlds of one network, changed one thing at a time; what is served and what is refused.

use super::*;
use crate::{Compiled, compile};
use model::address::{Address, AddressPurpose, AddressType};
use model::network::Network;
use model::subnetwork::Subnetwork;
use model::target_proxy::{TargetHttpProxy, TargetHttpsProxy};
use model::url_map::{Destination, UrlMap};
use model::{Kind, Resource};

mod changes;

const REGION: &str = "us-west1";

fn regional(kind: Kind, name: &str) -> ResourceName {
    ResourceName::regional("p", REGION, kind, name)
}

fn network() -> ResourceName {
    ResourceName::global("p", Kind::Network, "lb-network")
}

fn subnet(name: &str, range: &str, purpose: Purpose, role: Option<Role>) -> Resource {
    Resource::Subnetwork(Arc::new(Subnetwork {
        name: regional(Kind::Subnetwork, name),
        id: 2,
        network: network(),
        range: range.parse().unwrap(),
        purpose,
        role,
        secondary_ranges: Vec::new(),
        private_google_access: false,
        log_config: None,
    }))
}

fn rule(name: &str, address: [u8; 4], port: u16) -> ForwardingRule {
    ForwardingRule {
        name: regional(Kind::ForwardingRule, name),
        id: u64::from(name.as_bytes()[0]),
        load_balancing_scheme: SCHEME.into(),
        network: network(),
        subnetwork: regional(Kind::Subnetwork, "lb-subnet"),
        address: address.into(),
        reserved_address: None,
        port,
        target: regional(Kind::TargetHttpProxy, "proxy"),
        allow_global_access: false,
        service_label: None,
    }
}

fn https_proxy(certificates: &[&str]) -> TargetHttpsProxy {
    TargetHttpsProxy {
        name: regional(Kind::TargetHttpsProxy, "secure"),
        id: 7,
        url_map: regional(Kind::UrlMap, "map"),
        keepalive_seconds: None,
        certificates: certificates.iter().map(|c| regional(Kind::SslCertificate, c)).collect(),
        ssl_policy: None,
    }
}

/// A network with its subnets, a URL map that sends everything to nothing, and one HTTP proxy.
fn world() -> Inventory {
    let mut world = Inventory::default();
    let (auto_create_subnetworks, mtu_bytes, routing_mode) = (false, 1460, Default::default());
    let name = network();
    let network = Network { name, id: 1, auto_create_subnetworks, mtu_bytes, routing_mode };
    world.insert(Resource::Network(Arc::new(network)));
    world.insert(subnet("lb-subnet", "10.1.2.0/24", Purpose::Private, None));
    let active = Some(Role::Active);
    world.insert(subnet("proxies", "10.129.0.0/23", Purpose::RegionalManagedProxy, active));
    let redirect =
        model::url_map::UrlRedirect { host: Some("example.com".into()), ..Default::default() };
    world.insert(Resource::UrlMap(Arc::new(UrlMap {
        name: regional(Kind::UrlMap, "map"),
        id: 3,
        host_rules: Vec::new(),
        path_matchers: Vec::new(),
        default: Destination { url_redirect: Some(redirect), ..Destination::default() },
        header_action: Default::default(),
        tests: Vec::new(),
        document_bytes: 0,
    })));
    world.insert(Resource::TargetHttpProxy(Arc::new(TargetHttpProxy {
        name: regional(Kind::TargetHttpProxy, "proxy"),
        id: 4,
        url_map: regional(Kind::UrlMap, "map"),
        keepalive_seconds: None,
    })));
    world
}

fn with(world: &Inventory, rules: Vec<ForwardingRule>) -> Inventory {
    let mut world = world.clone();
    for rule in rules {
        world.insert(Resource::ForwardingRule(Arc::new(rule)));
    }
    world
}

fn served(compiled: &Compiled) -> Vec<String> {
    let listeners = compiled.plan.listeners.values();
    listeners.map(|l| format!("{} {}:{}", l.name.name, l.address, l.port)).collect()
}

fn problems(compiled: &Compiled) -> Vec<String> {
    compiled.problems.iter().map(|p| format!("{}: {p}", p.resource.name)).collect()
}

#[test]
fn a_sound_chain_is_a_listener_with_googles_default_keepalive() {
    let compiled =
        compile(&with(&world(), vec![rule("f", [10, 1, 2, 2], 80)]), 1, &Compiled::default());
    assert_eq!(problems(&compiled), [""; 0]);
    assert_eq!(served(&compiled), ["f 10.1.2.2:80"]);
    let listener = compiled.plan.listeners.values().next().unwrap();
    assert_eq!(listener.keepalive, Duration::from_secs(610));
}

#[test]
fn a_listener_that_did_not_change_is_the_same_in_the_next_plan() {
    let first =
        compile(&with(&world(), vec![rule("f", [10, 1, 2, 2], 80)]), 1, &Compiled::default());
    let more = with(first.inventory(), vec![rule("g", [10, 1, 2, 3], 80)]);
    let second = compile(&more, 2, &first);
    let name = regional(Kind::ForwardingRule, "f");
    assert!(Arc::ptr_eq(&first.plan.listeners[&name], &second.plan.listeners[&name]));
    assert_eq!(served(&second), ["f 10.1.2.2:80", "g 10.1.2.3:80"]);
}

#[test]
fn a_rule_without_an_active_proxy_only_subnet_is_refused_in_googles_words() {
    let mut world = world();
    world.remove(&regional(Kind::Subnetwork, "proxies"));
    let compiled =
        compile(&with(&world, vec![rule("f", [10, 1, 2, 2], 80)]), 1, &Compiled::default());
    assert_eq!(
        problems(&compiled),
        ["f: Invalid value for field 'resource.target': \
          'projects/p/regions/us-west1/targetHttpProxies/proxy'. An active proxy-only subnetwork is \
          required in the same region and VPC as the forwarding rule."]
    );
    assert_eq!(served(&compiled), [""; 0]);
}

#[test]
fn whoever_is_served_keeps_the_address_whatever_the_newcomer_is_called() {
    let first =
        compile(&with(&world(), vec![rule("m", [10, 1, 2, 2], 80)]), 1, &Compiled::default());
    for newcomer in ["a", "z"] {
        let both = with(first.inventory(), vec![rule(newcomer, [10, 1, 2, 2], 80)]);
        let second = compile(&both, 2, &first);
        assert_eq!(served(&second), ["m 10.1.2.2:80"]);
        let refused: Vec<_> = second.problems_since(&first).map(|p| &*p.resource.name).collect();
        assert!(refused.contains(&newcomer), "{:?}", problems(&second));
    }
}

#[test]
fn two_ports_share_an_address_only_if_it_is_reserved_for_sharing() {
    let mut world = world();
    let reserved = regional(Kind::Address, "vip");
    let mut reserve = |purpose| {
        world.insert(Resource::Address(Arc::new(Address {
            name: reserved.clone(),
            id: 5,
            address: Some([10, 1, 2, 9].into()),
            address_type: AddressType::Internal,
            purpose,
            subnetwork: Some(regional(Kind::Subnetwork, "lb-subnet")),
            network: None,
        })));
        world.clone()
    };
    let on = |port, name| ForwardingRule {
        reserved_address: Some(reserved.clone()),
        ..rule(name, [10, 1, 2, 9], port)
    };
    for (purpose, served_count) in
        [(AddressPurpose::GceEndpoint, 1), (AddressPurpose::SharedLoadBalancerVip, 2)]
    {
        let world = with(&reserve(purpose), vec![on(80, "f"), on(443, "g")]);
        let compiled = compile(&world, 1, &Compiled::default());
        assert_eq!(served(&compiled).len(), served_count, "{:?}", problems(&compiled));
    }
}

#[test]
fn what_a_rule_or_proxy_may_not_say_is_said_back_with_its_field() {
    let elsewhere = ResourceName::regional("p", "europe-west1", Kind::TargetHttpProxy, "proxy");
    type Change<'a> = &'a dyn Fn(&mut ForwardingRule);
    let cases: [(&str, Change<'_>); 3] = [
        ("loadBalancingScheme", &|rule| rule.load_balancing_scheme = "INTERNAL".into()),
        ("target", &|rule| rule.target = elsewhere.clone()),
        ("portRange", &|rule| rule.port = 0),
    ];
    for (field, change) in cases {
        let mut changed = rule("f", [10, 1, 2, 2], 80);
        change(&mut changed);
        let compiled = compile(&with(&world(), vec![changed]), 1, &Compiled::default());
        assert!(compiled.problems.iter().any(|p| p.field == field), "{:?}", problems(&compiled));
        assert_eq!(served(&compiled), [""; 0], "{field}");
    }
}

#[test]
fn keepalive_is_bounded_to_what_google_takes() {
    for (seconds, taken) in [(4, false), (5, true), (600, true), (601, false)] {
        let mut world = world();
        let mut proxy = TargetHttpProxy::clone(world.target_http_proxies.values().next().unwrap());
        proxy.keepalive_seconds = Some(seconds);
        world.insert(Resource::TargetHttpProxy(Arc::new(proxy)));
        let compiled = compile(&world, 1, &Compiled::default());
        assert_eq!(compiled.problems.is_empty(), taken, "{seconds}: {:?}", problems(&compiled));
    }
}

#[test]
fn an_https_proxy_needs_certificates_of_one_family_and_not_too_many() {
    let sixteen: Vec<String> = (0..16).map(|i| format!("c{i}")).collect();
    let sixteen: Vec<&str> = sixteen.iter().map(String::as_str).collect();
    let mixed = TargetHttpsProxy {
        certificates: vec![regional(Kind::SslCertificate, "a"), regional(Kind::Certificate, "b")],
        ..https_proxy(&[])
    };
    for (proxy, words) in [
        (https_proxy(&[]), "At least 1 SSL certificate must be specified"),
        (https_proxy(&sixteen), "At most 15 SSL certificates"),
        (mixed, "cannot be mixed"),
    ] {
        let mut world = world();
        world.insert(Resource::TargetHttpsProxy(Arc::new(proxy)));
        let compiled = compile(&world, 1, &Compiled::default());
        assert!(problems(&compiled).iter().any(|p| p.contains(words)), "{:?}", problems(&compiled));
    }
}
