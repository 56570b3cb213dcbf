//! Forwarding rules, target proxies and certificates compiled into listeners.
//!
//! A forwarding rule with something wrong in its chain has no listener and at least one problem; the
//! others serve on. Addresses and subnets are judged in `network`, URL maps in `routing`.
//!
//! Invariant: no two listeners of one network share an address and port.

mod tls;

use crate::routing::{Routing, UrlMapPlan};
use imbl::OrdMap;
use model::address::AddressPurpose;
use model::forwarding_rule::ForwardingRule;
use model::subnetwork::{Purpose, Role};
use model::target_proxy::{
    KEEPALIVE_SECONDS_DEFAULT, KEEPALIVE_SECONDS_MAX, KEEPALIVE_SECONDS_MIN,
};
use model::{Inventory, Kind, Problem, ResourceName};
use std::collections::HashMap;
use std::net::Ipv4Addr;
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
}

/// The compiled listeners, kept from one compilation to the next.
#[derive(Clone, Debug, Default)]
pub struct LoadBalancers {
    /// Every listener by forwarding rule.
    pub listeners: OrdMap<ResourceName, Arc<Listener>>,
    targets: OrdMap<ResourceName, Target>,
}

/// A target proxy of either kind, with what its listeners share.
#[derive(Clone, Debug)]
struct Target {
    url_map: ResourceName,
    keepalive: Duration,
    tls: Option<Arc<Tls>>,
}

/// Compiles every forwarding rule whose chain is sound; parts equal to those of `previous` are shared.
pub fn compile(
    inventory: &Inventory,
    routing: &Routing,
    previous: &LoadBalancers,
) -> (LoadBalancers, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut next = LoadBalancers::default();
    compile_targets(inventory, routing, previous, &mut next, &mut problems);

    let proxy_subnets = active_proxy_subnets(inventory);
    let mut taken: HashMap<(&ResourceName, Ipv4Addr), Vec<&ForwardingRule>> = HashMap::new();
    let mut by_age: Vec<_> = inventory.forwarding_rules.values().collect();
    by_age.sort_by_key(|rule| !has_listener(previous, rule));
    for rule in by_age {
        let neighbours = taken.entry((&rule.network, rule.address)).or_default();
        let found = check_rule(inventory, rule, &proxy_subnets)
            .into_iter()
            .chain(conflict(inventory, rule, neighbours))
            .collect::<Vec<_>>();
        neighbours.push(rule);
        let sound = found.is_empty();
        problems.extend(found);
        if !sound {
            continue;
        }
        if let Some(listener) = listener(routing, &next, previous, rule) {
            next.listeners.insert(rule.name.clone(), listener);
        }
    }
    (next, problems)
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

fn compile_targets(
    inventory: &Inventory,
    routing: &Routing,
    previous: &LoadBalancers,
    next: &mut LoadBalancers,
    problems: &mut Vec<Problem>,
) {
    for proxy in inventory.target_http_proxies.values() {
        check_target(&proxy.name, &proxy.url_map, proxy.keepalive_seconds, problems);
        let keepalive = keepalive(proxy.keepalive_seconds);
        let target = Target { url_map: proxy.url_map.clone(), keepalive, tls: None };
        next.targets.insert(proxy.name.clone(), target);
    }
    for proxy in inventory.target_https_proxies.values() {
        check_target(&proxy.name, &proxy.url_map, proxy.keepalive_seconds, problems);
        if routing.url_map(&proxy.url_map).is_some_and(|map| map.redirects_to_https()) {
            let why = "A URL map with httpsRedirect cannot be used by a target HTTPS proxy.";
            problems.push(Problem::invalid(&proxy.name, "urlMap", &proxy.url_map, why));
        }
        let kept = previous.targets.get(&proxy.name).and_then(|target| target.tls.as_ref());
        let (tls, found) = tls::compile(inventory, proxy, kept);
        problems.extend(found);
        // Without a certificate nothing can be presented, so the listener stays away.
        let Some(tls) = tls else { continue };
        let keepalive = keepalive(proxy.keepalive_seconds);
        let target = Target { url_map: proxy.url_map.clone(), keepalive, tls: Some(tls) };
        next.targets.insert(proxy.name.clone(), target);
    }
}

fn keepalive(seconds: Option<u32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(KEEPALIVE_SECONDS_DEFAULT).into())
}

fn check_target(
    name: &ResourceName,
    url_map: &ResourceName,
    keepalive_seconds: Option<u32>,
    problems: &mut Vec<Problem>,
) {
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
}

#[cfg(test)]
mod tests;
