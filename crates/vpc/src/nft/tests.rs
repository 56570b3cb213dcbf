//! The text of a ruleset, and whether the kernel agrees with the plan about what it means.

use super::*;
use crate::instance::{Order, attach};
use crate::links;
use crate::namespace::{Namespace, set_kernel_options};
use expect_test::expect;
use ipnet::IpNet;
use model::firewall::{Direction, Firewall};
use model::forwarding_rule::ForwardingRule;
use model::instance::{Instance, NetworkInterface};
use model::network::Network;
use model::subnetwork::{Purpose, Subnetwork};
use model::{Inventory, Kind, Resource, ResourceName};
use plan::network::{Networks, Packet, compile};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The one forwarding rule's address.
const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 99);
/// A probe answers at once; one that does not has failed.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);
/// Ports the probes try; something listens on each of them everywhere.
const PORTS: RangeInclusive<u16> = 20..=23;

fn network() -> ResourceName {
    ResourceName::global("p", Kind::Network, "n")
}

fn subnet() -> ResourceName {
    ResourceName::regional("p", "us-west1", Kind::Subnetwork, "s")
}

/// Three instances, `a`, `b` and `c`, at .2, .3 and .4, each with its own name as a tag.
fn base() -> Inventory {
    let mut inventory = Inventory::default();
    inventory.insert(Resource::Network(Arc::new(Network {
        name: network(),
        id: 1,
        auto_create_subnetworks: false,
        mtu_bytes: 1460,
        routing_mode: Default::default(),
    })));
    inventory.insert(Resource::Subnetwork(Arc::new(Subnetwork {
        name: subnet(),
        id: 2,
        network: network(),
        range: "10.1.2.0/24".parse().expect("a range"),
        purpose: Purpose::Private,
        role: None,
        secondary_ranges: Vec::new(),
        private_google_access: false,
        log_config: None,
    })));
    inventory.insert(Resource::ForwardingRule(Arc::new(ForwardingRule {
        name: ResourceName::regional("p", "us-west1", Kind::ForwardingRule, "fr"),
        id: 3,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        network: network(),
        subnetwork: subnet(),
        address: FRONTEND,
        reserved_address: None,
        port: 80,
        target: ResourceName::regional("p", "us-west1", Kind::TargetHttpProxy, "proxy"),
        allow_global_access: false,
        service_label: None,
    })));
    for (name, last) in [("a", 2), ("b", 3), ("c", 4)] {
        inventory.insert(Resource::Instance(Arc::new(Instance {
            name: ResourceName::zonal("p", "us-west1-a", Kind::Instance, name),
            id: u64::from(last) * 100,
            interfaces: vec![NetworkInterface {
                network: network(),
                subnetwork: subnet(),
                address: Some(Ipv4Addr::new(10, 1, 2, last)),
                external: false,
            }],
            tags: vec![name.into()],
            metadata: Vec::new(),
            service_accounts: Vec::new(),
            can_ip_forward: name == "c",
            deletion_protection: false,
            hostname: None,
            running: true,
            boot: 0,
        })));
    }
    inventory
}

/// A rule in few words.
#[derive(Clone, Debug)]
struct Draft {
    allows: bool,
    egress: bool,
    priority: u32,
    protocol: Protocol,
    ports: Vec<RangeInclusive<u16>>,
    sources: Vec<&'static str>,
    destinations: Vec<&'static str>,
    source_tags: Vec<&'static str>,
    target_tags: Vec<&'static str>,
}

fn with_rules(drafts: &[Draft]) -> Arc<NetworkPlan> {
    let mut inventory = base();
    for (draft, index) in drafts.iter().zip(0..) {
        let ranges = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().expect(text)).collect()
        };
        let ports = if draft.protocol.has_ports() { draft.ports.clone() } else { Vec::new() };
        let traffic = vec![Traffic { protocol: draft.protocol, ports }];
        let (allowed, denied) =
            if draft.allows { (traffic, Vec::new()) } else { (Vec::new(), traffic) };
        let source_tags = if draft.egress { &[][..] } else { &draft.source_tags };
        inventory.insert(Resource::Firewall(Arc::new(Firewall {
            name: ResourceName::global("p", Kind::Firewall, &format!("f{index}")),
            id: 10 + index,
            network: network(),
            priority: draft.priority,
            direction: if draft.egress { Direction::Egress } else { Direction::Ingress },
            allowed,
            denied,
            source_ranges: ranges(&draft.sources),
            destination_ranges: ranges(&draft.destinations),
            source_tags: source_tags.iter().map(|tag| (*tag).into()).collect(),
            target_tags: draft.target_tags.iter().map(|tag| (*tag).into()).collect(),
            source_service_accounts: Vec::new(),
            target_service_accounts: Vec::new(),
            disabled: false,
        })));
    }
    let (networks, problems) = compile(&inventory, &Networks::default());
    assert_eq!(problems, []);
    networks.get(&network()).expect("the network").clone()
}

#[test]
fn a_link_name_fits_whatever_the_id() {
    for (id, name) in [(0, "i0"), (35, "iz"), (36, "i10"), (u64::MAX, "i3w5e11264sgsf")] {
        assert_eq!(link_name(id), name);
        assert!(name.len() <= 15);
    }
}

#[test]
fn rules_become_chains_in_evaluation_order() {
    let draft = Draft {
        allows: true,
        egress: false,
        priority: 1000,
        protocol: Protocol::TCP,
        ports: vec![22..=22, 80..=90],
        sources: vec!["35.235.240.0/20", "10.1.2.4/32"],
        destinations: vec![],
        source_tags: vec![],
        target_tags: vec!["a"],
    };
    let text = render(&with_rules(&[
        draft.clone(),
        Draft { allows: false, priority: 900, protocol: Protocol::All, ..draft.clone() },
        Draft { egress: true, allows: false, protocol: Protocol::ICMP, ..draft },
    ]));
    expect![[r#"
        table inet tidegate
        delete table inet tidegate
        table inet tidegate {
        	chain egress_i5k { # projects/p/zones/us-west1-a/instances/a
        		ip saddr != 10.1.2.2 drop
        		ip saddr 10.1.2.2 ip daddr 169.254.169.254 tcp dport 80 return
        		ip saddr 10.1.2.2 ip daddr 169.254.169.254 udp dport 53 return
        		ip daddr 169.254.169.254 drop
        		meta nfproto ipv4 ip saddr { 10.1.2.4, 35.235.240.0/20 } meta l4proto 1 drop comment "f2"
        		return
        	}
        	chain ingress_i5k { # projects/p/zones/us-west1-a/instances/a
        		meta nfproto ipv4 ip saddr { 10.1.2.4, 35.235.240.0/20 } drop comment "f1"
        		meta nfproto ipv4 ip saddr { 10.1.2.4, 35.235.240.0/20 } meta l4proto 6 th dport { 22, 80-90 } accept comment "f0"
        		drop
        	}
    "#]]
    .assert_eq(&text.split_inclusive("\t}\n").take(2).collect::<String>());
    let hooks = text.find("\tchain on_forward").map(|at| &text[at..]).unwrap_or_default();
    expect![[r#"
        	chain on_forward {
        		type filter hook forward priority filter; policy drop;
        		ct state established,related accept
        		ct state invalid drop
        		iifname vmap { "i5k" : jump egress_i5k, "i8c" : jump egress_i8c, "ib4" : jump egress_ib4 }
        		oifname vmap { "i5k" : goto ingress_i5k, "i8c" : goto ingress_i8c, "ib4" : goto ingress_ib4 }
        	}
        	chain on_input {
        		type filter hook input priority filter; policy drop;
        		ct state established,related accept
        		ct state invalid drop
        		iifname "lo" accept
        		iifname vmap { "i5k" : jump egress_i5k, "i8c" : jump egress_i8c, "ib4" : jump egress_ib4 }
        		iifname { "i5k", "i8c", "ib4" } accept
        	}
        	chain on_output {
        		type filter hook output priority filter; policy drop;
        		ct state established,related accept
        		ct state invalid drop
        		oifname "lo" accept
        		oifname vmap { "i5k" : goto ingress_i5k, "i8c" : goto ingress_i8c, "ib4" : goto ingress_ib4 }
        	}
        }
    "#]]
    .assert_eq(hooks);
}

/// The network of [`base`] on this host, with a listener on every probed port of everyone.
struct Bench {
    network: Namespace,
    members: Vec<(Ipv4Addr, Namespace)>,
    listeners: Vec<TcpListener>,
}

impl Bench {
    fn build() -> Bench {
        let plan = with_rules(&[]);
        let label = Path::new("a firewall test");
        let network = Namespace::make(label).expect("a namespace");
        let prepare = || {
            set_kernel_options(&[("ipv4/ip_forward", "1")])?;
            links::run(async |links| {
                links.bring_up_loopback().await?;
                links.set_loopback_addresses(&[FRONTEND, plan.subnets[0].gateway].into()).await
            })
        };
        network.within(prepare).and_then(|done| done).expect("a network");
        let mut members = vec![];
        let mut listeners = listen(&network, FRONTEND);
        for instance in plan.instances.values() {
            let own = Namespace::make(label).expect("a namespace");
            let order = Order {
                plan: instance.clone(),
                network: network.clone(),
                mtu_bytes: 1460,
                routes: Vec::new(),
            };
            attach(&link_name(instance.id), &order, &own).expect("attached");
            listeners.extend(listen(&own, instance.address));
            members.push((instance.address, own));
        }
        Bench { network, members, listeners }
    }

    /// Whether a connection comes about under the rules. Denials answer at once here.
    fn connects(&self, source: Ipv4Addr, to: SocketAddrV4) -> bool {
        let sender = self.members.iter().find(|(address, _)| *address == source);
        let namespace = sender.map_or(&self.network, |(_, own)| own);
        let connect = || TcpStream::connect_timeout(&to.into(), PROBE_DEADLINE).is_ok();
        namespace.within(connect).expect("inside")
    }

    fn apply(&self, plan: &NetworkPlan) {
        // What nobody takes from a listener would fill it up.
        for listener in &self.listeners {
            while listener.accept().is_ok() {}
        }
        let text: String = render(plan).lines().map(|line| refusing(line) + "\n").collect();
        let replaced = self.network.within(|| replace(&text)).expect("inside");
        replaced.unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

/// The line with a drop of TCP turned into an answer, so that no probe waits for silence.
fn refusing(line: &str) -> String {
    let is_tcp = !line.contains("l4proto 17 ");
    let is_verdict = !line.contains("policy") && !line.contains("invalid");
    let refusal = match line.contains("l4proto") {
        true => "reject with tcp reset",
        false => "meta l4proto tcp reject with tcp reset",
    };
    match is_tcp && is_verdict {
        true => line.replace("drop", refusal),
        false => line.to_owned(),
    }
}

fn listen(namespace: &Namespace, address: Ipv4Addr) -> Vec<TcpListener> {
    let bind = |port| {
        let listener = TcpListener::bind((address, port)).expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        listener
    };
    let bind = || PORTS.map(bind).collect();
    namespace.within(bind).expect("inside")
}

fn draft() -> impl Strategy<Value = Draft> {
    let protocol =
        prop::sample::select(vec![Protocol::TCP, Protocol::TCP, Protocol::All, Protocol::UDP]);
    let ports = prop::collection::vec(
        prop::sample::select(vec![20..=20, 21..=22, 22..=23, 20..=23, 80..=80]),
        0..3,
    );
    let some =
        |pool: &[&'static str]| prop::collection::vec(prop::sample::select(pool.to_vec()), 0..3);
    let ranges = ["10.1.2.2/32", "10.1.2.2/31", "10.1.2.0/24", "10.1.2.99/32", "0.0.0.0/0", "::/0"];
    let tags = ["a", "b", "c", "nobody"];
    let priority = prop::sample::select(vec![900, 1000, 1100]);
    let words = (some(&ranges), some(&ranges), some(&tags), some(&tags));
    (any::<bool>(), any::<bool>(), priority, protocol, ports, words).prop_map(
        |(allows, egress, priority, protocol, ports, words)| {
            let (sources, destinations, source_tags, target_tags) = words;
            Draft {
                allows,
                egress,
                priority,
                protocol,
                ports,
                sources,
                destinations,
                source_tags,
                target_tags,
            }
        },
    )
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that does not run says why")]
fn the_kernel_and_the_plan_agree_about_every_packet() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: namespaces need root");
        return;
    }
    let bench = Bench::build();
    // The gateway stands for senders outside the instances, such as the SSH tunnel.
    let gateway = Ipv4Addr::new(10, 1, 2, 1);
    let instances = [2, 3, 4].map(|last| Ipv4Addr::new(10, 1, 2, last));
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let agree = |drafts: Vec<Draft>| {
        let plan = with_rules(&drafts);
        bench.apply(&plan);
        for source in instances.into_iter().chain([gateway]) {
            let receivers = instances.into_iter().chain((source != gateway).then_some(FRONTEND));
            for destination in receivers.filter(|receiver| *receiver != source) {
                for port in PORTS {
                    let packet = Packet { source, destination, protocol: 6, port: Some(port) };
                    let expected = plan.verdict(&packet);
                    let connects = bench.connects(source, SocketAddrV4::new(destination, port));
                    prop_assert_eq!(
                        connects,
                        expected.action == Action::Allow,
                        "{:?}: {:?}\n{}",
                        packet,
                        expected,
                        render(&plan)
                    );
                }
            }
        }
        Ok(())
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(draft(), 0..8), agree)
        .unwrap_or_else(|error| panic!("{error}"));
}
