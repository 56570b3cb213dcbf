//! VPC networks as the host carries them out: subnets, load balancer addresses, instances, firewall.
//!
//! [`compile`] is pure and cannot fail; what is wrong with the declarations is [`mod@problems`]'s answer.
//! Reading a plan needs no inventory: the firewall is compiled into every instance, names are resolved.
//!
//! Invariant: no two instances of one network have one address, and a part that did not change is the
//! same `Arc` in the next plan.

pub mod address;
pub mod egress;
pub mod firewall;
pub mod problems;
pub mod range;
pub mod ssh_keys;

pub use egress::{Way, is_private, way};
pub use firewall::{Action, Decider, EgressRule, InstanceFirewall, Packet, Rule, Targets, Verdict};
pub use problems::problems;
pub use ssh_keys::SshKey;

use firewall::NetworkFirewall;
use imbl::OrdMap;
use ipnet::{IpNet, Ipv4Net};
use model::forwarding_rule::ForwardingRule;
use model::instance::Instance;
use model::inventory::Collection;
use model::network::Network;
use model::route::NextHop;
use model::subnetwork::Purpose;
use model::{Inventory, Location, Problem, ResourceName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Every network of the plan, with what the next compilation needs to take it over as it is.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    by_name: OrdMap<ResourceName, Arc<NetworkPlan>>,
    claims: address::Claims,
    /// What is wrong besides the addresses that are claimed.
    problems: Arc<[Problem]>,
    /// Only the kinds that matter here; a kept plan must not keep the rest of an old world alive.
    declared: Inventory,
}

impl Networks {
    /// The networks in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<NetworkPlan>> {
        self.by_name.values()
    }

    /// The network of that name.
    pub fn get(&self, name: &ResourceName) -> Option<&Arc<NetworkPlan>> {
        self.by_name.get(name)
    }

    /// The forwarding rules of an address, in order of their names.
    pub(crate) fn frontends_at(
        &self,
        address: Ipv4Addr,
        network: &ResourceName,
    ) -> impl Iterator<Item = &ResourceName> {
        self.claims.frontends_at(address, network)
    }

    /// Whether the two came out of one compilation, or of worlds that agree about networks.
    pub fn same(&self, other: &Networks) -> bool {
        self.by_name.ptr_eq(&other.by_name)
    }
}

/// One VPC network, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The network resource.
    pub name: ResourceName,
    /// Its numeric id: unique for ever, the network's identity on the host.
    pub id: u64,
    /// The largest packet, in bytes.
    pub mtu_bytes: u32,
    /// Its subnets, by name.
    pub subnets: Vec<SubnetPlan>,
    /// The addresses of its forwarding rules.
    pub frontends: BTreeSet<Ipv4Addr>,
    /// Its instances that have an address, by name, running or not.
    pub instances: OrdMap<ResourceName, Arc<InstancePlan>>,
    /// Static routes whose next hop is an instance: best first, one for each destination.
    pub routes: Vec<RoutePlan>,
    /// The network's egress rules with those they are for, in evaluation order: Cloud Run instances
    /// come and go without a new plan.
    pub egress: Vec<EgressRule>,
    /// What internal DNS answers: every instance's and service label's address, by name.
    pub hosts: BTreeMap<String, Ipv4Addr>,
}

/// One subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetPlan {
    /// The subnet resource.
    pub name: ResourceName,
    /// Its primary range, host bits cleared.
    pub range: Ipv4Net,
    /// The gateway address instances send everything to.
    pub gateway: Ipv4Addr,
    /// What it is for.
    pub purpose: Purpose,
}

/// A static route to an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoutePlan {
    /// The packets it is about.
    pub destination: Ipv4Net,
    /// Its priority.
    pub priority: u32,
    /// The address of the instance that takes them.
    pub via: Ipv4Addr,
    /// The route resource.
    pub name: ResourceName,
}

/// One instance, ready to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstancePlan {
    /// The instance resource.
    pub name: ResourceName,
    /// Its numeric id: unique for ever, its identity on the host and in clients' known hosts.
    pub id: u64,
    /// Whether it is meant to run.
    pub running: bool,
    /// A running instance of another boot is started anew.
    pub boot: u64,
    /// Its address.
    pub address: Ipv4Addr,
    /// The gateway of its subnet.
    pub gateway: Ipv4Addr,
    /// Its name in internal DNS, `VM.ZONE.c.PROJECT.internal`, or the one the client chose.
    pub hostname: String,
    /// Whether packets with a foreign source address may leave it.
    pub can_ip_forward: bool,
    /// Whether it asks for an external address.
    pub external: bool,
    /// Who may log in.
    pub keys: Vec<SshKey>,
    /// The firewall rules in force for it.
    pub firewall: InstanceFirewall,
}

/// Compiles every network, and says what is wrong with the declarations. What no change concerns is
/// taken over from `before`; a forwarding rule concerns addresses and names of its network alone.
pub fn compile(inventory: &Inventory, before: &Networks) -> (Networks, Vec<Problem>) {
    let was = &before.declared;
    let mut networks = Networks {
        by_name: before.by_name.clone(),
        claims: before.claims.brought_forward(was, inventory),
        problems: match only_addresses_differ(was, inventory) {
            true => before.problems.clone(),
            false => problems::of_declarations(inventory).into(),
        },
        declared: declared(inventory),
    };
    let concerned = concerned(was, inventory);
    for name in &concerned {
        match inventory.networks.get(name) {
            Some(network) => networks.put(compile_network(inventory, network, before.get(name))),
            None => {
                networks.by_name.remove(name);
            }
        }
    }
    for (old, new) in address::changed(&was.forwarding_rules, &inventory.forwarding_rules) {
        for rule in old.into_iter().chain(new) {
            if !concerned.contains(&rule.network) {
                networks.update_frontends(rule, new.is_some_and(|new| Arc::ptr_eq(new, rule)));
            }
        }
    }
    let problems = networks.problems.iter().chain(networks.claims.problems()).cloned().collect();
    (networks, problems)
}

impl Networks {
    fn put(&mut self, plan: Arc<NetworkPlan>) {
        let known = self.by_name.get(&plan.name);
        if known.is_none_or(|known| !Arc::ptr_eq(known, &plan)) {
            self.by_name.insert(plan.name.clone(), plan);
        }
    }

    /// Brings what a forwarding rule adds to its network up to date, now that the rule is or is not there.
    fn update_frontends(&mut self, rule: &ForwardingRule, is_there: bool) {
        let Some(before) = self.by_name.get(&rule.network) else { return };
        let answers = self.claims.frontends_at(rule.address, &rule.network).next().is_some();
        let label = internal_frontend_name(rule);
        let known = label.as_ref().and_then(|label| before.hosts.get(label).copied());
        if before.frontends.contains(&rule.address) == answers
            && (label.is_none() || known == is_there.then_some(rule.address))
        {
            return;
        }
        let mut plan = NetworkPlan::clone(before);
        match answers {
            true => plan.frontends.insert(rule.address),
            false => plan.frontends.remove(&rule.address),
        };
        if let Some(label) = label {
            match is_there {
                true => plan.hosts.insert(label, rule.address),
                false => plan.hosts.remove(&label),
            };
        }
        self.put(Arc::new(plan));
    }
}

/// The kinds [`compile`] reads.
fn declared(inventory: &Inventory) -> Inventory {
    Inventory {
        projects: inventory.projects.clone(),
        networks: inventory.networks.clone(),
        subnetworks: inventory.subnetworks.clone(),
        addresses: inventory.addresses.clone(),
        firewalls: inventory.firewalls.clone(),
        routes: inventory.routes.clone(),
        instances: inventory.instances.clone(),
        forwarding_rules: inventory.forwarding_rules.clone(),
        ..Inventory::default()
    }
}

/// Whether everything that can be wrong besides claims on addresses is as it was.
fn only_addresses_differ(before: &Inventory, after: &Inventory) -> bool {
    before.networks.ptr_eq(&after.networks)
        && before.subnetworks.ptr_eq(&after.subnetworks)
        && before.firewalls.ptr_eq(&after.firewalls)
        && before.routes.ptr_eq(&after.routes)
        && before.instances.ptr_eq(&after.instances)
}

/// What differs between two collections, as it was and as it is.
fn touched<'a, T: PartialEq>(
    before: &'a Collection<T>,
    after: &'a Collection<T>,
) -> impl Iterator<Item = &'a Arc<T>> {
    address::changed(before, after).flat_map(|(old, new)| old.into_iter().chain(new))
}

/// The networks that a change other than of a forwarding rule concerns, there or no longer there.
fn concerned(before: &Inventory, after: &Inventory) -> BTreeSet<ResourceName> {
    // A project's metadata says who may log in to its instances, and a subnet where the gateway of an
    // instance is, wherever they are.
    if !before.projects.ptr_eq(&after.projects) || !before.subnetworks.ptr_eq(&after.subnetworks) {
        return before.networks.keys().chain(after.networks.keys()).cloned().collect();
    }
    let mut names = BTreeSet::new();
    let networks = touched(&before.networks, &after.networks);
    names.extend(networks.map(|network| network.name.clone()));
    let firewalls = touched(&before.firewalls, &after.firewalls);
    names.extend(firewalls.map(|rule| rule.network.clone()));
    let routes = touched(&before.routes, &after.routes);
    names.extend(routes.map(|route| route.network.clone()));
    let instances = touched(&before.instances, &after.instances);
    let interfaces = instances.flat_map(|instance| &instance.interfaces);
    names.extend(interfaces.map(|interface| interface.network.clone()));
    names
}

fn compile_network(
    inventory: &Inventory,
    network: &Network,
    before: Option<&Arc<NetworkPlan>>,
) -> Arc<NetworkPlan> {
    let members = members(inventory, &network.name);
    let firewall = NetworkFirewall::compile(inventory, &network.name, &members);
    let instances: OrdMap<ResourceName, Arc<InstancePlan>> = members
        .iter()
        .filter_map(|(instance, address)| {
            let plan = compile_instance(inventory, instance, *address, &firewall)?;
            let old = before.and_then(|network| network.instances.get(&plan.name));
            Some((plan.name.clone(), kept(plan, old)))
        })
        .collect();
    let of_network = |name: &ResourceName| name == &network.name;
    let rules = inventory.forwarding_rules.values().filter(|rule| of_network(&rule.network));
    let plan = NetworkPlan {
        name: network.name.clone(),
        id: network.id,
        mtu_bytes: network.mtu_bytes,
        subnets: subnets(inventory, &network.name),
        frontends: rules.map(|rule| rule.address).collect(),
        routes: routes(inventory, &network.name, &members),
        egress: firewall.egress(),
        hosts: hosts(inventory, network, &instances),
        instances,
    };
    kept(plan, before)
}

/// The old value's `Arc` when the new one says the same.
fn kept<T: PartialEq>(new: T, old: Option<&Arc<T>>) -> Arc<T> {
    match old {
        Some(old) if **old == new => old.clone(),
        _ => Arc::new(new),
    }
}

/// The instances of a network with their addresses in it, each address once: the first instance by
/// name keeps an address that is claimed twice.
fn members<'a>(inventory: &'a Inventory, network: &ResourceName) -> Vec<(&'a Instance, Ipv4Addr)> {
    let mut addresses = BTreeSet::new();
    let address_in = |instance: &'a Instance| {
        let interface =
            instance.interfaces.iter().find(|interface| &interface.network == network)?;
        interface.address.map(|address| (instance, address))
    };
    let instances = inventory.instances.values().filter_map(|instance| address_in(instance));
    instances.filter(|(_, address)| addresses.insert(*address)).collect()
}

fn compile_instance(
    inventory: &Inventory,
    instance: &Instance,
    address: Ipv4Addr,
    firewall: &NetworkFirewall,
) -> Option<InstancePlan> {
    let interface = instance.interfaces.iter().find(|i| i.address == Some(address))?;
    let subnet = inventory.subnetworks.get(&interface.subnetwork)?;
    let project = inventory.projects.get(&ResourceName::project(&instance.name.project));
    Some(InstancePlan {
        name: instance.name.clone(),
        id: instance.id,
        running: instance.running,
        boot: instance.boot,
        address,
        gateway: range::gateway(subnet.range),
        hostname: hostname(instance),
        can_ip_forward: instance.can_ip_forward,
        external: interface.external,
        keys: ssh_keys::of_instance(project.map(|project| &**project), instance),
        firewall: firewall.of_instance(instance),
    })
}

fn hostname(instance: &Instance) -> String {
    instance.hostname.as_ref().map_or_else(|| internal_name(&instance.name), ToString::to_string)
}

/// `VM.ZONE.c.PROJECT.internal`; the domain of a project such as `example.com:p` follows its name.
fn internal_name(instance: &ResourceName) -> String {
    let zone = match &instance.location {
        Location::Zone(name) | Location::Region(name) => name.as_str(),
        Location::Global => "global",
    };
    format!("{}.{zone}.c.{}.internal", instance.name, project_domain(&instance.project))
}

fn project_domain(project: &str) -> String {
    match project.split_once(':') {
        Some((domain, name)) => format!("{name}.{domain}"),
        None => project.into(),
    }
}

fn subnets(inventory: &Inventory, network: &ResourceName) -> Vec<SubnetPlan> {
    let of_network = inventory.subnetworks.values().filter(|subnet| &subnet.network == network);
    let plan = of_network.map(|subnet| SubnetPlan {
        name: subnet.name.clone(),
        range: subnet.range.trunc(),
        gateway: range::gateway(subnet.range),
        purpose: subnet.purpose,
    });
    plan.collect()
}

/// Routes for every instance whose next hop is a member that may forward. Tagged routes, and those to
/// the internet gateway, have no counterpart on the host.
fn routes(
    inventory: &Inventory,
    network: &ResourceName,
    members: &[(&Instance, Ipv4Addr)],
) -> Vec<RoutePlan> {
    let via = |hop: &NextHop| {
        let is_hop = |(instance, address): &&(&Instance, Ipv4Addr)| match hop {
            NextHop::Instance(name) => name == &instance.name,
            NextHop::Address(wanted) => wanted == address,
            NextHop::InternetGateway | NextHop::Network(_) | NextHop::Other(_) => false,
        };
        members.iter().filter(|(instance, _)| instance.can_ip_forward).find(is_hop).map(|(_, a)| *a)
    };
    let of_network =
        inventory.routes.values().filter(|r| &r.network == network && r.tags.is_empty());
    let mut routes: Vec<RoutePlan> = of_network
        .filter_map(|route| {
            let IpNet::V4(destination) = route.destination else { return None };
            let (via, name) = (via(&route.next_hop)?, route.name.clone());
            let destination = destination.trunc();
            Some(RoutePlan { destination, priority: route.priority, via, name })
        })
        .collect();
    routes.sort();
    routes.dedup_by_key(|route| route.destination);
    routes
}

/// Internal DNS: instances, and forwarding rules with a service label.
fn hosts(
    inventory: &Inventory,
    network: &Network,
    instances: &OrdMap<ResourceName, Arc<InstancePlan>>,
) -> BTreeMap<String, Ipv4Addr> {
    let of_instances =
        instances.values().map(|instance| (internal_name(&instance.name), instance.address));
    let rules = inventory.forwarding_rules.values().filter(|rule| rule.network == network.name);
    let labelled = rules.filter_map(|rule| Some((internal_frontend_name(rule)?, rule.address)));
    of_instances.chain(labelled).collect()
}

/// The name in internal DNS of a forwarding rule with a service label.
fn internal_frontend_name(rule: &ForwardingRule) -> Option<String> {
    let (label, region) = (rule.service_label.as_ref()?, rule.name.region()?);
    let project = project_domain(&rule.name.project);
    Some(format!("{label}.{}.il7.{region}.lb.{project}.internal", rule.name.name))
}

impl NetworkPlan {
    /// The verdict on the first packet of a connection within the network: what the sender's egress
    /// rules say and, when they let it go, what the receiver's ingress rules say.
    pub fn verdict(&self, packet: &Packet) -> Verdict {
        let member = |address| self.instance_at(address);
        if let Some(sender) = member(packet.source) {
            let egress = sender.firewall.egress(packet);
            if egress.action == Action::Deny {
                return egress;
            }
        }
        if self.frontends.contains(&packet.destination) {
            return Verdict { action: Action::Allow, by: Decider::Frontend };
        }
        match member(packet.destination).or_else(|| self.next_hop(packet.destination)) {
            Some(receiver) => receiver.firewall.ingress(packet),
            None => Verdict { action: Action::Deny, by: Decider::NoRoute },
        }
    }

    /// The instance that takes packets to an address outside the subnets, by the most specific route.
    fn next_hop(&self, destination: Ipv4Addr) -> Option<&Arc<InstancePlan>> {
        let leads_there =
            self.routes.iter().filter(|route| route.destination.contains(&destination));
        let route = leads_there.max_by_key(|route| route.destination.prefix_len())?;
        self.instance_at(route.via)
    }

    /// The region of the subnet an address is in.
    pub fn region_of(&self, address: Ipv4Addr) -> Option<&str> {
        self.subnets.iter().find(|subnet| subnet.range.contains(&address))?.name.region()
    }

    /// An instance by its address.
    pub fn instance_at(&self, address: Ipv4Addr) -> Option<&Arc<InstancePlan>> {
        self.instances.values().find(|instance| instance.address == address)
    }
}

#[cfg(test)]
mod tests;
