//! The firewall of one instance, compiled, and the verdict on a packet.
//!
//! [`InstanceFirewall`] is what `vpc` renders for the kernel and what [`InstanceFirewall::ingress`] and
//! [`InstanceFirewall::egress`] evaluate for `explain`: one list, two readers.
//!
//! Invariant: rules are in evaluation order (lower priority number first, denials before allowances at
//! equal priority, then by name), hold only what can match, and their ranges and ports are disjoint.

use ipnet::{IpNet, Ipv4Net};
use model::firewall::{Direction, Firewall, Protocol, Traffic};
use model::instance::Instance;
use model::{Inventory, Name, ResourceName};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It is dropped, silently.
    Deny,
    /// It goes on.
    Allow,
}

/// The first packet of a connection, as far as a firewall looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: Ipv4Addr,
    /// Where it goes.
    pub destination: Ipv4Addr,
    /// Its IP protocol number.
    pub protocol: u8,
    /// Its destination port, of protocols that have ports.
    pub port: Option<u16>,
}

/// The answer for a packet, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What happens.
    pub action: Action,
    /// What said so.
    pub by: Decider,
}

/// What decided about a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decider {
    /// A firewall rule.
    Rule(ResourceName),
    /// The implied rule that lets everything out.
    ImpliedAllowEgress,
    /// The implied rule that lets nothing in.
    ImpliedDenyIngress,
    /// The address is a load balancer's, which ingress rules do not concern.
    Frontend,
    /// Nothing in the network has the address.
    NoRoute,
}

impl std::fmt::Display for Decider {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Decider::Rule(name) => write!(out, "firewall rule '{}'", name.name),
            Decider::ImpliedAllowEgress => out.write_str("the implied rule that allows egress"),
            Decider::ImpliedDenyIngress => out.write_str("the implied rule that denies ingress"),
            Decider::Frontend => out.write_str("a load balancer's address takes all ingress"),
            Decider::NoRoute => out.write_str("no route to the destination"),
        }
    }
}

/// One rule, ready to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The firewall resource.
    pub name: ResourceName,
    /// Its priority.
    pub priority: u32,
    /// What it does with a packet it matches.
    pub action: Action,
    /// The packets it is about; one of these must match.
    pub traffic: Vec<Traffic>,
    /// Where they come from: disjoint, in order, never empty.
    pub sources: Vec<Ipv4Net>,
    /// Where they go: disjoint, in order, never empty.
    pub destinations: Vec<Ipv4Net>,
}

impl Rule {
    /// Whether the rule is about the packet.
    pub fn matches(&self, packet: &Packet) -> bool {
        let within =
            |ranges: &[Ipv4Net], address| ranges.iter().any(|range| range.contains(&address));
        within(&self.sources, packet.source)
            && within(&self.destinations, packet.destination)
            && self.traffic.iter().any(|traffic| traffic_matches(traffic, packet))
    }
}

/// Whether an entry of `allowed` or `denied` is about the packet.
fn traffic_matches(traffic: &Traffic, packet: &Packet) -> bool {
    let protocol = match traffic.protocol {
        Protocol::All => true,
        Protocol::Number(number) => number == packet.protocol,
    };
    let in_ports = |port| traffic.ports.iter().any(|range| range.contains(&port));
    protocol && (traffic.ports.is_empty() || packet.port.is_some_and(in_ports))
}

/// The rules in force for one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceFirewall {
    /// About packets to it.
    pub ingress: Vec<Arc<Rule>>,
    /// About packets from it.
    pub egress: Vec<Arc<Rule>>,
}

impl InstanceFirewall {
    /// The verdict on a packet that arrives.
    pub fn ingress(&self, packet: &Packet) -> Verdict {
        let implied = Verdict { action: Action::Deny, by: Decider::ImpliedDenyIngress };
        first_match(&self.ingress, packet).unwrap_or(implied)
    }

    /// The verdict on a packet that leaves.
    pub fn egress(&self, packet: &Packet) -> Verdict {
        let implied = Verdict { action: Action::Allow, by: Decider::ImpliedAllowEgress };
        first_match(&self.egress, packet).unwrap_or(implied)
    }
}

fn first_match(rules: &[Arc<Rule>], packet: &Packet) -> Option<Verdict> {
    let rule = rules.iter().find(|rule| rule.matches(packet))?;
    Some(Verdict { action: rule.action, by: Decider::Rule(rule.name.clone()) })
}

/// One network's rules, each with the instances it is for, in evaluation order.
pub(super) struct NetworkFirewall {
    ingress: Vec<(Targets, Arc<Rule>)>,
    egress: Vec<(Targets, Arc<Rule>)>,
}

/// An egress rule with those it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// Whose packets it is about.
    pub targets: Targets,
    /// What it says.
    pub rule: Arc<Rule>,
}

/// Those a rule is for: everybody, or who has one of the tags or service accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    tags: Vec<Name>,
    service_accounts: Vec<Name>,
}

impl Targets {
    /// Whether somebody with these tags and service accounts is among them.
    pub fn include(&self, tags: &[Name], service_accounts: &[Name]) -> bool {
        let everyone = self.tags.is_empty() && self.service_accounts.is_empty();
        everyone
            || self.tags.iter().any(|tag| tags.contains(tag))
            || self.service_accounts.iter().any(|email| service_accounts.contains(email))
    }
}

impl NetworkFirewall {
    /// Compiles the rules of `network`; `members` are its instances with their addresses in it.
    pub(super) fn compile(
        inventory: &Inventory,
        network: &ResourceName,
        members: &[(&Instance, Ipv4Addr)],
    ) -> NetworkFirewall {
        let in_force = |rule: &&Arc<Firewall>| &rule.network == network && !rule.disabled;
        let mut compiled = NetworkFirewall { ingress: Vec::new(), egress: Vec::new() };
        for declared in inventory.firewalls.values().filter(in_force) {
            let Some(rule) = compile_rule(declared, members) else { continue };
            let targets = Targets {
                tags: declared.target_tags.clone(),
                service_accounts: declared.target_service_accounts.clone(),
            };
            match declared.direction {
                Direction::Ingress => compiled.ingress.push((targets, Arc::new(rule))),
                Direction::Egress => compiled.egress.push((targets, Arc::new(rule))),
            }
        }
        for rules in [&mut compiled.ingress, &mut compiled.egress] {
            rules.sort_by(|(_, one), (_, other)| {
                evaluation_order(one).cmp(&evaluation_order(other))
            });
        }
        compiled
    }

    /// Every egress rule with those it is for.
    pub(super) fn egress(&self) -> Vec<EgressRule> {
        let rule = |(targets, rule): &(Targets, Arc<Rule>)| EgressRule {
            targets: targets.clone(),
            rule: rule.clone(),
        };
        self.egress.iter().map(rule).collect()
    }

    /// The rules that are for `instance`.
    pub(super) fn of_instance(&self, instance: &Instance) -> InstanceFirewall {
        let of = |rules: &[(Targets, Arc<Rule>)]| {
            let included = rules
                .iter()
                .filter(|(targets, _)| targets.include(&instance.tags, &instance.service_accounts));
            included.map(|(_, rule)| rule.clone()).collect()
        };
        InstanceFirewall { ingress: of(&self.ingress), egress: of(&self.egress) }
    }
}

/// Denials first at equal priority: `Action::Deny` is the smaller of the two.
fn evaluation_order(rule: &Rule) -> (u32, Action, &ResourceName) {
    (rule.priority, rule.action, &rule.name)
}

/// `None` when no packet could ever match, for instance because no instance has the source tag.
fn compile_rule(declared: &Firewall, members: &[(&Instance, Ipv4Addr)]) -> Option<Rule> {
    let (action, traffic) = match declared.denied.is_empty() {
        true => (Action::Allow, &declared.allowed),
        false => (Action::Deny, &declared.denied),
    };
    let traffic: Vec<Traffic> = traffic.iter().filter_map(disjoint_ports).collect();
    let sources = sources(declared, members);
    let destinations = match declared.destination_ranges.is_empty() {
        true => vec![Ipv4Net::default()],
        false => disjoint_ranges(&declared.destination_ranges),
    };
    let can_match = !traffic.is_empty() && !sources.is_empty() && !destinations.is_empty();
    let (name, priority) = (declared.name.clone(), declared.priority);
    can_match.then_some(Rule { name, priority, action, traffic, sources, destinations })
}

/// Source ranges, or the addresses of the instances with a source tag or service account.
fn sources(declared: &Firewall, members: &[(&Instance, Ipv4Addr)]) -> Vec<Ipv4Net> {
    let by_instance =
        !declared.source_tags.is_empty() || !declared.source_service_accounts.is_empty();
    if declared.source_ranges.is_empty() && !by_instance {
        return vec![Ipv4Net::default()];
    }
    let senders = Targets {
        tags: declared.source_tags.clone(),
        service_accounts: declared.source_service_accounts.clone(),
    };
    let of_instances = members.iter().filter(|(instance, _)| {
        by_instance && senders.include(&instance.tags, &instance.service_accounts)
    });
    let addresses = of_instances.map(|(_, address)| IpNet::V4((*address).into()));
    let ranges: Vec<IpNet> = declared.source_ranges.iter().copied().chain(addresses).collect();
    disjoint_ranges(&ranges)
}

/// The IPv4 ranges among them, merged where they touch: the kernel's interval sets want them disjoint.
fn disjoint_ranges(ranges: &[IpNet]) -> Vec<Ipv4Net> {
    let v4 = ranges.iter().filter_map(|range| match range {
        IpNet::V4(range) => Some(range.trunc()),
        IpNet::V6(_) => None,
    });
    Ipv4Net::aggregate(&v4.collect())
}

/// The entry with its ports merged; ports on a protocol without any match nothing.
fn disjoint_ports(traffic: &Traffic) -> Option<Traffic> {
    if !traffic.ports.is_empty() && !traffic.protocol.has_ports() {
        return None;
    }
    let mut ranges = traffic.ports.clone();
    ranges.sort_by_key(|range| *range.start());
    let mut ports: Vec<RangeInclusive<u16>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match ports.last_mut() {
            Some(last) if u32::from(*range.start()) <= u32::from(*last.end()) + 1 => {
                *last = *last.start()..=(*last.end()).max(*range.end());
            }
            _ => ports.push(range),
        }
    }
    Some(Traffic { protocol: traffic.protocol, ports })
}
