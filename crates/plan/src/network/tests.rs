//! The VPC part of a world, drawn in a few lines, and what it compiles to.

use super::*;
use model::address::{Address, AddressPurpose, AddressType};
use model::firewall::{Direction, Firewall, Protocol, Traffic, parse_ports};
use model::forwarding_rule::ForwardingRule;
use model::instance::NetworkInterface;
use model::route::Route;
use model::subnetwork::{Role, Subnetwork};
use model::{Kind, Name, Resource};

mod changes;

/// Reads one resource a line: kind, name, then `key=value` words. Ids count up from 1 by line.
fn world(text: &str) -> Inventory {
    let mut inventory = Inventory::default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    for (line, id) in lines.zip(1..) {
        let mut words = line.split(' ');
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let pairs: BTreeMap<&str, &str> =
            words.map(|word| word.split_once('=').unwrap_or((word, "yes"))).collect();
        let of = |key: &str| pairs.get(key).copied();
        inventory.insert(resource(kind, name, id, &of));
    }
    inventory
}

fn regional(kind: Kind, name: &str) -> ResourceName {
    ResourceName::regional("p", "us-west1", kind, name)
}

fn network_name(name: Option<&str>) -> ResourceName {
    ResourceName::global("p", Kind::Network, name.unwrap_or("n"))
}

fn list<T>(value: Option<&str>, read: impl Fn(&str) -> T) -> Vec<T> {
    value.unwrap_or_default().split(',').filter(|word| !word.is_empty()).map(read).collect()
}

fn names(value: Option<&str>) -> Vec<Name> {
    list(value, |word| Name::from(word))
}

fn ranges(value: Option<&str>) -> Vec<IpNet> {
    list(value, |word| word.parse().expect(word))
}

fn traffic(value: Option<&str>) -> Vec<Traffic> {
    list(value, |word| {
        let (protocol, ports) = word.split_once(':').unwrap_or((word, ""));
        let ports = ports.split('+').filter(|p| !p.is_empty());
        let ports = ports.map(|p| parse_ports(p).expect(p)).collect();
        Traffic { protocol: Protocol::parse(protocol).expect(protocol), ports }
    })
}

fn resource<'a>(kind: &str, name: &str, id: u64, of: &dyn Fn(&str) -> Option<&'a str>) -> Resource {
    match kind {
        "network" => Resource::Network(Arc::new(Network {
            name: network_name(Some(name)),
            id,
            auto_create_subnetworks: false,
            mtu_bytes: of("mtu").map_or(1460, |mtu| mtu.parse().expect(mtu)),
            routing_mode: Default::default(),
        })),
        "subnet" => Resource::Subnetwork(Arc::new(subnet(name, id, of))),
        "address" => Resource::Address(Arc::new(Address {
            name: regional(Kind::Address, name),
            id,
            address: of("ip").map(|ip| ip.parse().expect(ip)),
            address_type: AddressType::Internal,
            purpose: match of("shared") {
                Some(_) => AddressPurpose::SharedLoadBalancerVip,
                None => AddressPurpose::GceEndpoint,
            },
            subnetwork: of("subnet").map(|subnet| regional(Kind::Subnetwork, subnet)),
            network: None,
        })),
        "rule" => Resource::ForwardingRule(Arc::new(ForwardingRule {
            name: regional(Kind::ForwardingRule, name),
            id,
            load_balancing_scheme: "INTERNAL_MANAGED".into(),
            network: network_name(of("network")),
            subnetwork: regional(Kind::Subnetwork, of("subnet").unwrap_or("s")),
            address: of("ip").map(|ip| ip.parse().expect(ip)).expect("a rule has an ip"),
            reserved_address: None,
            port: of("port").map_or(80, |port| port.parse().expect(port)),
            target: regional(Kind::TargetHttpProxy, "proxy"),
            allow_global_access: false,
            service_label: of("label").map(Name::from),
        })),
        "firewall" => Resource::Firewall(Arc::new(firewall(name, id, of))),
        "route" => Resource::Route(Arc::new(Route {
            name: ResourceName::global("p", Kind::Route, name),
            id,
            network: network_name(of("network")),
            destination: of("to").map(|to| to.parse().expect(to)).expect("a route has a range"),
            priority: of("priority").map_or(1000, |p| p.parse().expect(p)),
            next_hop: NextHop::Instance(ResourceName::zonal(
                "p",
                "us-west1-a",
                Kind::Instance,
                of("via").unwrap_or_default(),
            )),
            tags: names(of("tags")),
        })),
        "vm" => Resource::Instance(Arc::new(instance(name, id, of))),
        other => panic!("no such kind: {other}"),
    }
}

fn subnet<'a>(name: &str, id: u64, of: &dyn Fn(&str) -> Option<&'a str>) -> Subnetwork {
    Subnetwork {
        name: ResourceName::regional(
            "p",
            of("region").unwrap_or("us-west1"),
            Kind::Subnetwork,
            name,
        ),
        id,
        network: network_name(of("network")),
        range: of("range").map(|range| range.parse().expect(range)).expect("a subnet has a range"),
        purpose: match of("proxy") {
            Some("old") => Purpose::InternalHttpsLoadBalancer,
            Some(_) => Purpose::RegionalManagedProxy,
            None => Purpose::Private,
        },
        role: match of("role") {
            Some("ACTIVE") => Some(Role::Active),
            Some(_) => Some(Role::Backup),
            None => None,
        },
        secondary_ranges: Vec::new(),
        private_google_access: false,
        log_config: of("log").map(str::to_owned),
    }
}

fn firewall<'a>(name: &str, id: u64, of: &dyn Fn(&str) -> Option<&'a str>) -> Firewall {
    Firewall {
        name: ResourceName::global("p", Kind::Firewall, name),
        id,
        network: network_name(of("network")),
        priority: of("priority").map_or(1000, |p| p.parse().expect(p)),
        direction: match of("egress") {
            Some(_) => Direction::Egress,
            None => Direction::Ingress,
        },
        allowed: traffic(of("allow")),
        denied: traffic(of("deny")),
        source_ranges: ranges(of("from")),
        destination_ranges: ranges(of("to")),
        source_tags: names(of("from-tags")),
        target_tags: names(of("tags")),
        source_service_accounts: names(of("from-accounts")),
        target_service_accounts: names(of("accounts")),
        disabled: of("disabled").is_some(),
    }
}

fn instance<'a>(name: &str, id: u64, of: &dyn Fn(&str) -> Option<&'a str>) -> Instance {
    Instance {
        name: ResourceName::zonal("p", of("zone").unwrap_or("us-west1-a"), Kind::Instance, name),
        id,
        interfaces: vec![NetworkInterface {
            network: network_name(of("network")),
            subnetwork: regional(Kind::Subnetwork, of("subnet").unwrap_or("s")),
            address: of("ip").map(|ip| ip.parse().expect(ip)),
            external: false,
        }],
        tags: names(of("tags")),
        metadata: Vec::new(),
        service_accounts: names(of("accounts")),
        can_ip_forward: of("forward").is_some(),
        deletion_protection: false,
        hostname: None,
        running: of("stopped").is_none(),
        boot: 0,
    }
}

fn compiled(text: &str) -> Arc<NetworkPlan> {
    let (networks, _) = compile(&world(text), &Networks::default());
    networks.get(&network_name(None)).expect("network n").clone()
}

/// Each line of `picture` is `SOURCE -> DESTINATION PROTOCOL[:PORT] => VERDICT`.
fn check(text: &str, picture: &str) {
    let network = compiled(text);
    for line in picture.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (packet, expected) = line.split_once(" => ").expect(line);
        let words: Vec<&str> = packet.split(' ').collect();
        let [source, "->", destination, traffic] = words[..] else { panic!("{line}") };
        let (protocol, port) = traffic.split_once(':').unwrap_or((traffic, ""));
        let Some(Protocol::Number(protocol)) = Protocol::parse(protocol) else { panic!("{line}") };
        let packet = Packet {
            source: source.parse().expect(line),
            destination: destination.parse().expect(line),
            protocol,
            port: port.parse().ok(),
        };
        let verdict = network.verdict(&packet);
        let action = if verdict.action == Action::Allow { "allow" } else { "deny" };
        let by = match &verdict.by {
            Decider::Rule(name) => name.name.to_string(),
            Decider::ImpliedAllowEgress => "implied-egress".into(),
            Decider::ImpliedDenyIngress => "implied-ingress".into(),
            Decider::Frontend => "frontend".into(),
            Decider::NoRoute => "no-route".into(),
        };
        assert_eq!(format!("{action} {by}"), expected, "{line}");
    }
}

/// The messages of the world's problems, each with the resource it is about.
fn messages(text: &str) -> Vec<String> {
    let problems = problems(&world(text));
    problems.iter().map(|problem| format!("{}: {problem}", problem.resource.name)).collect()
}

const BASE: &str = "
network n
subnet s range=10.1.2.0/24
vm web ip=10.1.2.2 tags=web,open accounts=web@p
vm db ip=10.1.2.3 tags=db accounts=db@p
rule fr ip=10.1.2.99
";

fn with_base(text: &str) -> String {
    format!("{BASE}{text}")
}

#[test]
fn nothing_comes_in_and_everything_goes_out_until_a_rule_says_otherwise() {
    check(
        BASE,
        "
        10.1.2.2 -> 10.1.2.3 tcp:22 => deny implied-ingress
        35.235.240.1 -> 10.1.2.2 tcp:22 => deny implied-ingress
        10.1.2.2 -> 10.1.2.99 tcp:80 => allow frontend
        10.1.2.2 -> 10.9.9.9 tcp:80 => deny no-route
        ",
    );
}

#[test]
fn the_lower_number_wins_and_deny_wins_a_tie() {
    check(
        &with_base(
            "
            firewall allow allow=tcp:22 tags=web
            firewall deny-first deny=tcp:22 priority=900 from=10.1.2.3/32
            firewall tie-deny deny=tcp:23
            firewall a-tie-allow allow=tcp:23
            ",
        ),
        "
        10.1.2.3 -> 10.1.2.2 tcp:22 => deny deny-first
        35.235.240.1 -> 10.1.2.2 tcp:22 => allow allow
        35.235.240.1 -> 10.1.2.3 tcp:22 => deny implied-ingress
        10.1.2.3 -> 10.1.2.2 tcp:23 => deny tie-deny
        ",
    );
}

#[test]
fn sources_are_ranges_tags_and_accounts() {
    check(
        &with_base(
            "
            firewall by-range allow=tcp:1 from=10.0.0.0/8,192.0.2.0/24
            firewall by-tag allow=tcp:2 from-tags=web
            firewall by-either allow=tcp:3 from-tags=web from=192.0.2.0/24
            firewall by-account allow=tcp:4 from-accounts=web@p accounts=db@p
            firewall by-nobody allow=tcp:5 from-tags=ghost
            firewall by-v6 allow=tcp:6 from=::/0
            firewall off allow=tcp:7 disabled
            ",
        ),
        "
        10.1.2.2 -> 10.1.2.3 tcp:1 => allow by-range
        192.0.2.7 -> 10.1.2.3 tcp:1 => allow by-range
        8.8.8.8 -> 10.1.2.3 tcp:1 => deny implied-ingress
        10.1.2.2 -> 10.1.2.3 tcp:2 => allow by-tag
        10.1.2.3 -> 10.1.2.2 tcp:2 => deny implied-ingress
        192.0.2.7 -> 10.1.2.3 tcp:3 => allow by-either
        10.1.2.2 -> 10.1.2.3 tcp:3 => allow by-either
        10.1.2.2 -> 10.1.2.3 tcp:4 => allow by-account
        10.1.2.3 -> 10.1.2.2 tcp:4 => deny implied-ingress
        10.1.2.2 -> 10.1.2.3 tcp:5 => deny implied-ingress
        10.1.2.2 -> 10.1.2.3 tcp:6 => deny implied-ingress
        10.1.2.2 -> 10.1.2.3 tcp:7 => deny implied-ingress
        ",
    );
}

#[test]
fn egress_rules_hold_a_packet_back_even_from_a_load_balancer() {
    check(
        &with_base(
            "
            firewall no-http egress deny=tcp:80 to=10.1.2.99/32 tags=web
            firewall ping allow=icmp
            ",
        ),
        "
        10.1.2.2 -> 10.1.2.99 tcp:80 => deny no-http
        10.1.2.2 -> 10.1.2.99 tcp:443 => allow frontend
        10.1.2.3 -> 10.1.2.99 tcp:80 => allow frontend
        10.1.2.3 -> 10.1.2.2 icmp => allow ping
        10.1.2.3 -> 10.1.2.2 udp:80 => deny implied-ingress
        ",
    );
}

#[test]
fn a_route_leads_to_the_instance_that_forwards() {
    check(
        &with_base(
            "
            vm router ip=10.1.2.9 forward tags=router
            route out to=192.0.2.0/24 via=router
            firewall in allow=tcp:80 tags=router
            ",
        ),
        "
        10.1.2.2 -> 192.0.2.7 tcp:80 => allow in
        10.1.2.2 -> 192.0.2.7 tcp:81 => deny implied-ingress
        10.1.2.2 -> 192.0.3.7 tcp:80 => deny no-route
        ",
    );
}

#[test]
fn overlapping_ranges_and_ports_are_compiled_disjoint() {
    let network = compiled(&with_base(
        "firewall f allow=tcp:80-90+85-95+96+22,all from=10.0.0.0/8,10.1.0.0/16,10.1.2.0/24",
    ));
    let rule = &network.instance_at(Ipv4Addr::new(10, 1, 2, 2)).expect("web").firewall.ingress[0];
    assert_eq!(rule.sources, ["10.0.0.0/8".parse().expect("a range")]);
    assert_eq!(rule.traffic[0].ports, [22..=22, 80..=96]);
    assert!(rule.traffic[1].ports.is_empty());
}

#[test]
fn what_did_not_change_is_taken_over() {
    let first = world(BASE);
    let (before, _) = compile(&first, &Networks::default());
    let network = |networks: &Networks| networks.get(&network_name(None)).expect("n").clone();
    assert!(compile(&first, &before).0.same(&before));
    let (equal, _) = compile(&world(BASE), &before);
    assert!(Arc::ptr_eq(&network(&before), &network(&equal)));
    let (after, _) = compile(&world(&with_base("vm new ip=10.1.2.4")), &before);
    let web = ResourceName::zonal("p", "us-west1-a", Kind::Instance, "web");
    let instance = |networks: &Networks| network(networks).instances[&web].clone();
    assert!(!Arc::ptr_eq(&network(&before), &network(&after)));
    assert!(Arc::ptr_eq(&instance(&before), &instance(&after)));
}

#[test]
fn names_routes_and_hosts_are_resolved() {
    let network = compiled(&with_base(
        "
        vm router ip=10.1.2.9 forward
        route out to=192.0.2.0/24 via=router
        route worse to=192.0.2.0/24 via=router priority=2000
        route not-forwarding to=198.51.100.0/24 via=web
        route tagged to=203.0.113.0/24 via=router tags=x
        rule named ip=10.1.2.98 label=shop
        ",
    ));
    let hosts: Vec<&str> = network.hosts.keys().map(String::as_str).collect();
    assert_eq!(
        hosts,
        [
            "db.us-west1-a.c.p.internal",
            "router.us-west1-a.c.p.internal",
            "shop.named.il7.us-west1.lb.p.internal",
            "web.us-west1-a.c.p.internal",
        ]
    );
    let routes: Vec<&str> = network.routes.iter().map(|route| route.name.name.as_str()).collect();
    assert_eq!(routes, ["out"]);
    assert_eq!(project_domain("example.com:shop"), "shop.example.com");
    assert_eq!(network.region_of(Ipv4Addr::new(10, 1, 2, 77)), Some("us-west1"));
}

#[test]
fn a_sound_world_has_no_problem() {
    let sound = with_base(
        "
        subnet proxies range=10.129.0.0/23 proxy role=ACTIVE
        subnet spare range=10.130.0.0/26 proxy role=BACKUP
        subnet east range=10.4.0.0/29 region=us-east1
        address shared ip=10.1.2.50 subnet=s shared
        rule one ip=10.1.2.50
        rule two ip=10.1.2.50 port=443
        address for-web ip=10.1.2.2 subnet=s
        firewall f allow=tcp:22 tags=web
        ",
    );
    assert_eq!(messages(&sound), Vec::<String>::new());
    let inventory = world(&sound);
    let proxies = problems::active_proxy_only_subnet(&inventory, &network_name(None), "us-west1");
    assert_eq!(proxies.map(|subnet| subnet.name.name.as_str()), Some("proxies"));
}

#[test]
fn a_problem_names_resource_field_and_reason_in_googles_words() {
    for (text, expected) in [
        (
            "network n mtu=1200",
            "n: Invalid value for field 'resource.mtu': '1200'. Must be greater than or equal to 1300",
        ),
        (
            "subnet a range=10.1.2.0/30",
            "a: Invalid value for field 'resource.ipCidrRange': '10.1.2.0/30'. Must be a CIDR \
             address range of at least /29.",
        ),
        (
            "subnet a range=10.1.2.0/24\nsubnet b range=10.1.0.0/16",
            "b: Invalid IPCidrRange: 10.1.0.0/16 conflicts with existing subnetwork 'a' in region \
             'us-west1'.",
        ),
        ("subnet a range=10.1.0.0/23 proxy", "a: Required field 'resource.role' not specified"),
        (
            "subnet a range=10.1.0.0/23 role=ACTIVE",
            "a: Invalid value for field 'resource.role': 'ACTIVE'. Invalid field set in subnetwork \
             with purpose PRIVATE.",
        ),
        (
            "subnet a range=10.1.0.0/27 proxy role=ACTIVE",
            "a: Invalid value for field 'resource.ipCidrRange': '10.1.0.0/27'. Subnetwork with \
             purpose REGIONAL_MANAGED_PROXY must have an IP CIDR range of at least /26.",
        ),
        (
            "subnet a range=10.1.0.0/23 proxy role=ACTIVE log={}",
            "a: Invalid value for field 'resource.logConfig': '{}'. Invalid field set in subnetwork \
             with purpose REGIONAL_MANAGED_PROXY.",
        ),
        (
            "subnet a range=10.1.0.0/23 proxy role=ACTIVE\nsubnet b range=10.2.0.0/23 proxy role=ACTIVE",
            "b: Invalid value for field 'resource.role': 'ACTIVE'. A subnetwork with purpose \
             REGIONAL_MANAGED_PROXY and role ACTIVE already exists in this region and network.",
        ),
        (
            "subnet a range=10.1.0.0/23 proxy role=ACTIVE\nsubnet b range=10.2.0.0/23 proxy=old role=BACKUP",
            "b: Invalid value for field 'resource.purpose': 'INTERNAL_HTTPS_LOAD_BALANCER'. \
             Subnetworks with purpose INTERNAL_HTTPS_LOAD_BALANCER and REGIONAL_MANAGED_PROXY cannot \
             coexist in a region and network.",
        ),
        (
            "subnet s range=10.1.2.0/24\naddress a ip=10.1.3.7 subnet=s",
            "a: Invalid value for field 'resource.address': '10.1.3.7'. Requested internal IP address \
             is outside the range 10.1.2.0/24 of subnetwork \
             'projects/p/regions/us-west1/subnetworks/s'.",
        ),
        (
            "subnet s range=10.1.2.0/24\naddress a ip=10.1.2.1 subnet=s",
            "a: Invalid value for field 'resource.address': '10.1.2.1'. Requested internal IP address \
             is reserved: the first two and last two addresses of 10.1.2.0/24 cannot be used.",
        ),
        (
            "subnet s range=10.1.2.0/24\nvm one ip=10.1.2.7\nvm two ip=10.1.2.7",
            "two: Invalid value for field 'resource.networkInterfaces[0].networkIP': '10.1.2.7'. \
             Specified IP address is in-use and would result in a conflict.",
        ),
        (
            "subnet s range=10.1.2.0/24\nrule one ip=10.1.2.7\nrule two ip=10.1.2.7 port=443",
            "two: Invalid value for field 'resource.IPAddress': '10.1.2.7'. Specified IP address is \
             in-use and would result in a conflict.",
        ),
        (
            "subnet s range=10.129.0.0/23 proxy role=ACTIVE\nvm one ip=10.129.0.7",
            "one: Invalid value for field 'resource.networkInterfaces[0].subnetwork': \
             'projects/p/regions/us-west1/subnetworks/s'. Subnetwork with purpose \
             REGIONAL_MANAGED_PROXY cannot be used by this resource.",
        ),
        (
            "subnet s range=10.1.2.0/24\nvm one ip=10.1.2.7 zone=us-east1-b",
            "one: Invalid value for field 'resource.networkInterfaces[0].subnetwork': \
             'projects/p/regions/us-west1/subnetworks/s'. Subnetwork must be in the same region as \
             the instance.",
        ),
        (
            "subnet s range=10.1.2.0/24\nvm one ip=10.1.2.7 tags=Bad_Tag",
            "one: Invalid value for field 'resource.tags.items[0]': 'Bad_Tag'. Must be a match of \
             regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'",
        ),
        ("firewall f from=10.0.0.0/8", "f: Required field 'resource.allowed' not specified"),
        (
            "firewall f allow=tcp deny=udp:53",
            "f: Invalid value for field 'resource.denied': 'udp:53'. Only one of 'allowed' and \
             'denied' can be specified.",
        ),
        (
            "firewall f allow=icmp:8",
            "f: Invalid value for field 'resource.allowed[0].ports': '8'. Ports cannot be specified \
             for protocol icmp.",
        ),
        (
            "firewall f allow=tcp priority=65536",
            "f: Invalid value for field 'resource.priority': '65536'. Must be less than or equal to \
             65535",
        ),
        (
            "firewall f allow=tcp from-tags=a accounts=b@p",
            "f: Invalid value for field 'resource.targetServiceAccounts': 'b@p'. Service accounts and \
             tags cannot be used in the same firewall rule.",
        ),
        (
            "firewall f egress allow=tcp from-tags=a",
            "f: Invalid value for field 'resource.sourceTags': 'a'. Must not be specified for a \
             firewall rule with direction EGRESS.",
        ),
    ] {
        assert_eq!(messages(text), [expected], "{text}");
    }
}

#[test]
fn an_active_proxy_only_subnet_stays_while_it_has_a_backup() {
    let text = "
        subnet a range=10.1.0.0/23 proxy role=ACTIVE
        subnet b range=10.2.0.0/23 proxy role=BACKUP
    ";
    let refusal = |text: &str, name: &str| {
        let name = regional(Kind::Subnetwork, name);
        problems::subnet_deletion_problem(&world(text), &name).map(|problem| problem.to_string())
    };
    assert_eq!(
        refusal(text, "a").as_deref(),
        Some(
            "Invalid resource usage: Cannot delete ACTIVE subnetwork because a BACKUP subnetwork exists."
        )
    );
    assert_eq!(refusal(text, "b"), None);
    assert_eq!(refusal("subnet a range=10.1.0.0/23 proxy role=ACTIVE", "a"), None);
}

#[test]
fn the_next_address_leaves_out_whatever_is_claimed() {
    let inventory =
        world(&with_base("address a ip=10.1.2.4 subnet=s\nsubnet tiny range=10.8.0.0/29"));
    let requester = regional(Kind::ForwardingRule, "new");
    let next = |subnet: &str| {
        let subnet = regional(Kind::Subnetwork, subnet);
        address::allocate(&inventory, &requester, "subnetwork", &subnet).map_err(|p| p.to_string())
    };
    assert_eq!(next("s"), Ok(Ipv4Addr::new(10, 1, 2, 5)));
    assert_eq!(next("tiny"), Ok(Ipv4Addr::new(10, 8, 0, 2)));
    let missing = "The resource 'projects/p/regions/us-west1/subnetworks/none' was not found";
    assert_eq!(next("none"), Err(missing.into()));
    let subnet = regional(Kind::Subnetwork, "s");
    let holder = |last| address::holder(&inventory, &subnet, Ipv4Addr::new(10, 1, 2, last));
    assert_eq!(holder(4).map(|name| name.name.as_str()), Some("a"));
    assert_eq!(holder(7), None);
}

#[test]
fn two_networks_may_use_the_same_addresses() {
    let text = with_base(
        "
        network a
        subnet in-a range=10.1.2.0/24 network=a
        vm mine ip=10.1.2.4
        vm theirs ip=10.1.2.2 network=a subnet=in-a
        vm high ip=10.1.2.3 network=a subnet=in-a
        ",
    );
    assert_eq!(messages(&text), Vec::<String>::new());
    let inventory = world(&text);
    let requester = regional(Kind::ForwardingRule, "new");
    for (subnet, next) in [("s", 5), ("in-a", 4)] {
        let subnet = regional(Kind::Subnetwork, subnet);
        let address = address::allocate(&inventory, &requester, "subnetwork", &subnet);
        assert_eq!(address, Ok(Ipv4Addr::new(10, 1, 2, next)), "{subnet}");
    }
}
