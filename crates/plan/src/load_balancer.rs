//! Forwarding rules, target proxies and certificates compiled into listeners.
//!
//! A forwarding rule with something wrong in its chain has no listener and at least one problem; the
//! others serve on. Addresses and subnets are judged in `network`, URL maps in `routing`.
//!
//! Invariant: no two listeners of one network share an address and port.

mod tls;

use crate::decision::Scheme;
use crate::fleet::Arrival;
use crate::network::Networks;
use crate::network::address::changed;
use crate::references::References;
use crate::routing::{Routing, UrlMapPlan};
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use model::address::AddressPurpose;
use model::forwarding_rule::ForwardingRule;
use model::inventory::Collection;
use model::subnetwork::{Purpose, Role};
use model::target_proxy::{
    KEEPALIVE_SECONDS_DEFAULT, KEEPALIVE_SECONDS_MAX, KEEPALIVE_SECONDS_MIN, TargetHttpProxy,
    TargetHttpsProxy,
};
use model::{Inventory, Kind, Problem, ResourceName};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

pub use tls::{Certificate, Tls, TlsVersion};

/// The only `loadBalancingScheme` of a regional internal Application Load Balancer.
const SCHEME: &str = "INTERNAL_MANAGED";

/// The most forwarding rules that share one `SHARED_LOADBALANCER_VIP` address.
pub const RULES_PER_SHARED_ADDRESS_MAX: usize = 10;

/// One forwarding rule, ready to serve.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The forwarding rule.
    pub name: ResourceName,
    /// Its numeric id: unique for ever, the listener's identity across plans.
    pub id: u64,
    /// The network whose namespace the address lives in.
    pub network: ResourceName,
    /// The address.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// The target HTTP(S) proxy.
    pub target: ResourceName,
    /// TLS settings of a target HTTPS proxy; `None` for plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// How long a client's idle connection is kept.
    pub keepalive: Duration,
    /// Whether clients of other regions are answered.
    pub global_access: bool,
    /// The URL map.
    pub url_map: Arc<UrlMapPlan>,
    /// What a request that comes in here counts as, for the ingress settings of services.
    pub arrival: Arrival,
}

impl Listener {
    /// The listener of every service's own `run.app` address. No forwarding rule declares it, so whoever
    /// opens it gives it a name, an identity and a place.
    pub fn run_app(
        name: ResourceName,
        id: u64,
        network: ResourceName,
        at: SocketAddrV4,
        scheme: Scheme,
        arrival: Arrival,
    ) -> Listener {
        Listener {
            target: name.clone(),
            name,
            id,
            network,
            address: *at.ip(),
            port: at.port(),
            tls: None,
            keepalive: Duration::from_secs(KEEPALIVE_SECONDS_DEFAULT.into()),
            global_access: false,
            url_map: Arc::new(UrlMapPlan::run_app(scheme)),
            arrival,
        }
    }

    /// Whether it serves services' own addresses, and is no load balancer.
    pub fn is_run_app(&self) -> bool {
        self.arrival != Arrival::InternalLoadBalancer
    }
}

/// The compiled listeners, kept from one compilation to the next.
#[derive(Clone, Debug, Default)]
pub struct LoadBalancers {
    /// Every listener by forwarding rule.
    pub listeners: OrdMap<ResourceName, Arc<Listener>>,
    targets: OrdMap<ResourceName, Target>,
    /// What is wrong with each forwarding rule and proxy that has something wrong with it.
    problems: OrdMap<ResourceName, Arc<[Problem]>>,
}

/// What load balancers are compiled from, and what it was before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World<'a> {
    pub(crate) before: &'a Inventory,
    pub(crate) inventory: &'a Inventory,
    pub(crate) routing: &'a Routing,
    pub(crate) networks: &'a Networks,
    pub(crate) references: &'a References,
}

/// An address of a network.
type Place = (Ipv4Addr, ResourceName);

/// A target proxy of either kind, with what its listeners share.
#[derive(Clone, Debug)]
struct Target {
    url_map: ResourceName,
    keepalive: Duration,
    tls: Option<Arc<Tls>>,
}

/// Compiles every forwarding rule whose chain is sound. Proxies and rules that no change concerns are
/// taken over from `previous` without being looked at.
pub(crate) fn compile(world: World<'_>, previous: &LoadBalancers) -> (LoadBalancers, Vec<Problem>) {
    let mut next = previous.clone();
    let targets = world.stale_targets();
    for name in &targets {
        next.put_target(world, name);
    }
    for (old, new) in changed(&world.before.forwarding_rules, &world.inventory.forwarding_rules) {
        if let (Some(gone), None) = (old, new) {
            next.note(&gone.name, Vec::new());
            next.listeners.remove(&gone.name);
        }
    }
    let places = world.stale_places(&targets);
    if !places.is_empty() {
        let proxy_subnets = active_proxy_subnets(world.inventory);
        for place in &places {
            next.put_rules(world, previous, place, &proxy_subnets);
        }
    }
    let problems = next.problems.values().flat_map(|found| found.iter().cloned()).collect();
    (next, problems)
}

impl World<'_> {
    /// The proxies that changed, or whose URL map, certificates or policy did.
    fn stale_targets(&self) -> BTreeSet<ResourceName> {
        let World { before, inventory, references, .. } = self;
        let mut names = BTreeSet::new();
        let used = self.routing.renewed().cloned();
        let used = used
            .chain(changed_names(&before.ssl_certificates, &inventory.ssl_certificates))
            .chain(changed_names(&before.certificates, &inventory.certificates))
            .chain(changed_names(&before.ssl_policies, &inventory.ssl_policies));
        for name in used {
            let users = references.users_of(&name).filter(|user| is_target(user));
            names.extend(users.cloned());
        }
        names.extend(changed_names(&before.target_http_proxies, &inventory.target_http_proxies));
        names.extend(changed_names(&before.target_https_proxies, &inventory.target_https_proxies));
        names
    }

    /// The addresses whose forwarding rules are to be asked anew.
    fn stale_places(&self, targets: &BTreeSet<ResourceName>) -> BTreeSet<Place> {
        let World { before, inventory, references, .. } = self;
        let place = |rule: &ForwardingRule| (rule.address, rule.network.clone());
        let rules = &inventory.forwarding_rules;
        if !before.subnetworks.ptr_eq(&inventory.subnetworks) {
            let all = before.forwarding_rules.values().chain(rules.values());
            return all.map(|rule| place(rule)).collect();
        }
        let mut places = BTreeSet::new();
        for (old, new) in changed(&before.forwarding_rules, rules) {
            places.extend(old.into_iter().chain(new).map(|rule| place(rule)));
        }
        let addresses = changed_names(&before.addresses, &inventory.addresses);
        for name in targets.iter().cloned().chain(addresses) {
            let users = references.users_of(&name).filter_map(|user| rules.get(user));
            places.extend(users.map(|rule| place(rule)));
        }
        places
    }
}

fn changed_names<T: PartialEq>(
    before: &Collection<T>,
    after: &Collection<T>,
) -> impl Iterator<Item = ResourceName> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.clone(),
        DiffItem::Update { new: (name, _), .. } => name.clone(),
    })
}

fn is_target(name: &ResourceName) -> bool {
    matches!(name.kind, Kind::TargetHttpProxy | Kind::TargetHttpsProxy)
}

impl LoadBalancers {
    fn note(&mut self, name: &ResourceName, found: Vec<Problem>) {
        match found.is_empty() {
            true => self.problems.remove(name),
            false => self.problems.insert(name.clone(), found.into()),
        };
    }

    fn put_target(&mut self, world: World<'_>, name: &ResourceName) {
        let kept = self.targets.remove(name).and_then(|target| target.tls);
        let inventory = world.inventory;
        let (target, found) = if let Some(proxy) = inventory.target_http_proxies.get(name) {
            plain_target(proxy)
        } else if let Some(proxy) = inventory.target_https_proxies.get(name) {
            secure_target(inventory, world.routing, proxy, kept.as_ref())
        } else {
            (None, Vec::new())
        };
        self.note(name, found);
        if let Some(target) = target {
            self.targets.insert(name.clone(), target);
        }
    }

    /// Judges and compiles the rules of one address, whose listeners are those of `previous`.
    fn put_rules(
        &mut self,
        world: World<'_>,
        previous: &LoadBalancers,
        (address, network): &Place,
        proxy_subnets: &[(&ResourceName, &str)],
    ) {
        let World { inventory, routing, .. } = world;
        let there = |name: &&ResourceName| inventory.forwarding_rules.get(*name);
        let names = world.networks.frontends_at(*address, network);
        let mut by_age: Vec<&ForwardingRule> =
            names.filter_map(|name| there(&name)).map(|rule| &**rule).collect();
        by_age.sort_by_key(|rule| !has_listener(previous, rule));
        let mut neighbours: Vec<&ForwardingRule> = Vec::new();
        for rule in by_age {
            let mut found = check_rule(inventory, rule, proxy_subnets);
            found.extend(conflict(inventory, rule, &neighbours));
            neighbours.push(rule);
            let sound = found.is_empty();
            self.note(&rule.name, found);
            match listener(routing, self, previous, rule).filter(|_| sound) {
                Some(listener) => self.listeners.insert(rule.name.clone(), listener),
                None => self.listeners.remove(&rule.name),
            };
        }
    }
}

/// Whether the rule, just as it is, was served already: whoever serves keeps what it has.
fn has_listener(previous: &LoadBalancers, rule: &ForwardingRule) -> bool {
    previous.listeners.get(&rule.name).is_some_and(|listener| {
        (listener.id, listener.address, listener.port) == (rule.id, rule.address, rule.port)
            && listener.network == rule.network
    })
}

fn listener(
    routing: &Routing,
    next: &LoadBalancers,
    previous: &LoadBalancers,
    rule: &ForwardingRule,
) -> Option<Arc<Listener>> {
    let target = next.targets.get(&rule.target)?;
    let url_map = routing.url_map(&target.url_map)?;
    if let Some(kept) = previous.listeners.get(&rule.name)
        && has_listener(previous, rule)
        && kept.target == rule.target
        && kept.keepalive == target.keepalive
        && kept.global_access == rule.allow_global_access
        && Arc::ptr_eq(&kept.url_map, url_map)
        && kept.tls == target.tls
    {
        return Some(kept.clone());
    }
    Some(Arc::new(Listener {
        name: rule.name.clone(),
        id: rule.id,
        network: rule.network.clone(),
        address: rule.address,
        port: rule.port,
        target: rule.target.clone(),
        tls: target.tls.clone(),
        keepalive: target.keepalive,
        global_access: rule.allow_global_access,
        url_map: url_map.clone(),
        arrival: Arrival::InternalLoadBalancer,
    }))
}

/// The (network, region) pairs in which a balancer may be placed.
fn active_proxy_subnets(inventory: &Inventory) -> Vec<(&ResourceName, &str)> {
    let active = inventory.subnetworks.values().filter(|subnet| {
        matches!(subnet.purpose, Purpose::RegionalManagedProxy | Purpose::InternalHttpsLoadBalancer)
            && subnet.role == Some(Role::Active)
    });
    active.filter_map(|subnet| Some((&subnet.network, subnet.name.region()?))).collect()
}

fn check_rule(
    inventory: &Inventory,
    rule: &ForwardingRule,
    proxy_subnets: &[(&ResourceName, &str)],
) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut refuse = |field: &str, value: &dyn std::fmt::Display, why: &str| {
        found.push(Problem::invalid(&rule.name, field, value, why));
    };
    if rule.load_balancing_scheme.as_str() != SCHEME {
        let why = "Load balancing scheme must be INTERNAL_MANAGED for a target proxy of a regional \
                   internal Application Load Balancer.";
        refuse("loadBalancingScheme", &rule.load_balancing_scheme, why);
    }
    if !matches!(rule.target.kind, Kind::TargetHttpProxy | Kind::TargetHttpsProxy) {
        refuse(
            "target",
            &rule.target,
            "The target must be a target HTTP proxy or a target HTTPS proxy.",
        );
    } else if rule.target.location != rule.name.location {
        refuse(
            "target",
            &rule.target,
            "The target must be in the same region as the forwarding rule.",
        );
    }
    let region = rule.name.region().unwrap_or_default();
    if !proxy_subnets.contains(&(&rule.network, region)) {
        let why = "An active proxy-only subnetwork is required in the same region and VPC as the \
                   forwarding rule.";
        refuse("target", &rule.target, why);
    }
    if rule.port == 0 {
        refuse("portRange", &rule.port, "Ports must be between 1 and 65535.");
    }
    match inventory.subnetworks.get(&rule.subnetwork) {
        Some(subnet) if subnet.network != rule.network => {
            let why = "The subnetwork must belong to the network of the forwarding rule.";
            refuse("subnetwork", &rule.subnetwork, why);
        }
        Some(subnet) if subnet.name.location != rule.name.location => {
            let why = "The subnetwork must be in the same region as the forwarding rule.";
            refuse("subnetwork", &rule.subnetwork, why);
        }
        _ => {}
    }
    found
}

/// What the rule would share with another and may not: an address and port, or an address that is not
/// made to be shared.
fn conflict(
    inventory: &Inventory,
    rule: &ForwardingRule,
    neighbours: &[&ForwardingRule],
) -> Option<Problem> {
    let taken = |field: &str, value: String, holder: &ForwardingRule| {
        let why = "Specified IP address is in-use and would result in a conflict.".into();
        let cause = model::Cause::Taken { value, holder: holder.name.clone(), why };
        Problem { resource: rule.name.clone(), field: field.into(), cause }
    };
    if let Some(holder) = neighbours.iter().find(|other| other.port == rule.port) {
        return Some(taken("IPAddress", rule.address.to_string(), holder));
    }
    let holder = neighbours.first()?;
    let shared = |rule: &ForwardingRule| {
        rule.reserved_address
            .as_ref()
            .and_then(|name| inventory.addresses.get(name))
            .is_some_and(|address| address.purpose == AddressPurpose::SharedLoadBalancerVip)
    };
    if !shared(rule) || !shared(holder) {
        return Some(taken("IPAddress", rule.address.to_string(), holder));
    }
    (neighbours.len() >= RULES_PER_SHARED_ADDRESS_MAX).then(|| {
        let why = "At most 10 forwarding rules may share one address.";
        Problem::invalid(&rule.name, "IPAddress", rule.address, why)
    })
}

fn plain_target(proxy: &TargetHttpProxy) -> (Option<Target>, Vec<Problem>) {
    let found = check_target(&proxy.name, &proxy.url_map, proxy.keepalive_seconds);
    let keepalive = keepalive(proxy.keepalive_seconds);
    (Some(Target { url_map: proxy.url_map.clone(), keepalive, tls: None }), found)
}

fn secure_target(
    inventory: &Inventory,
    routing: &Routing,
    proxy: &TargetHttpsProxy,
    kept: Option<&Arc<Tls>>,
) -> (Option<Target>, Vec<Problem>) {
    let mut problems = check_target(&proxy.name, &proxy.url_map, proxy.keepalive_seconds);
    if routing.url_map(&proxy.url_map).is_some_and(|map| map.redirects_to_https()) {
        let why = "A URL map with httpsRedirect cannot be used by a target HTTPS proxy.";
        problems.push(Problem::invalid(&proxy.name, "urlMap", &proxy.url_map, why));
    }
    let (tls, found) = tls::compile(inventory, proxy, kept);
    problems.extend(found);
    // Without a certificate nothing can be presented, so the listener stays away.
    let keepalive = keepalive(proxy.keepalive_seconds);
    let target =
        tls.map(|tls| Target { url_map: proxy.url_map.clone(), keepalive, tls: Some(tls) });
    (target, problems)
}

fn keepalive(seconds: Option<u32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(KEEPALIVE_SECONDS_DEFAULT).into())
}

fn check_target(
    name: &ResourceName,
    url_map: &ResourceName,
    keepalive_seconds: Option<u32>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(seconds) = keepalive_seconds
        && !(KEEPALIVE_SECONDS_MIN..=KEEPALIVE_SECONDS_MAX).contains(&seconds)
    {
        let why = format!(
            "The value must be between {KEEPALIVE_SECONDS_MIN} and {KEEPALIVE_SECONDS_MAX} seconds."
        );
        problems.push(Problem::invalid(name, "httpKeepAliveTimeoutSec", seconds, why));
    }
    if url_map.kind != Kind::UrlMap {
        problems.push(Problem::invalid(name, "urlMap", url_map, "The value is not a URL map."));
    } else if url_map.location != name.location {
        let why = "The URL map must be in the same region as the target proxy.";
        problems.push(Problem::invalid(name, "urlMap", url_map, why));
    }
    problems
}

#[cfg(test)]
mod tests;
