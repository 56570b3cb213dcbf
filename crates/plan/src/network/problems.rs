//! What is wrong with networks, subnets, firewall rules, routes and instances as they are declared.
//!
//! Every function looks at the whole inventory, so the same rule refuses a new resource and finds an
//! old one that a change elsewhere made wrong. References to what does not exist are found by the
//! compiler of the whole world, from each resource's `references()`; here they are passed over.

use super::{address, range};
use ipnet::Ipv4Net;
use model::firewall::{Direction, Firewall, PRIORITY_MAX, Traffic};
use model::instance::{Instance, NetworkInterface};
use model::network::{MTU_BYTES_MAX, MTU_BYTES_MIN, Network};
use model::route::Route;
use model::subnetwork::{Purpose, Role, Subnetwork};
use model::{Cause, Inventory, Name, Problem, ResourceName};
use std::collections::BTreeMap;

/// Tags one instance may have.
pub const TAGS_MAX: usize = 64;
/// Interfaces one instance may have here: one network each would need one more namespace's worth.
pub const INTERFACES_MAX: usize = 1;
/// The rule names follow, in Google's words.
const NAME_RULE: &str = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'";

/// All problems of the VPC part of the world.
pub fn problems(inventory: &Inventory) -> Vec<Problem> {
    let mut problems = of_declarations(inventory);
    problems.extend(address::problems(inventory));
    problems
}

/// What is wrong besides the addresses that are claimed.
pub(super) fn of_declarations(inventory: &Inventory) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(inventory.networks.values().filter_map(|network| mtu_problem(network)));
    for subnet in inventory.subnetworks.values() {
        subnet_problems(subnet, &mut problems);
    }
    overlaps(inventory, &mut problems);
    proxy_only_problems(inventory, &mut problems);
    for rule in inventory.firewalls.values() {
        firewall_problems(rule, &mut problems);
    }
    problems.extend(inventory.routes.values().filter_map(|route| route_problem(route)));
    for instance in inventory.instances.values() {
        instance_problems(inventory, instance, &mut problems);
    }
    problems
}

fn mtu_problem(network: &Network) -> Option<Problem> {
    let why = if network.mtu_bytes < MTU_BYTES_MIN {
        format!("Must be greater than or equal to {MTU_BYTES_MIN}")
    } else if network.mtu_bytes > MTU_BYTES_MAX {
        format!("Must be less than or equal to {MTU_BYTES_MAX}")
    } else {
        return None;
    };
    Some(Problem::invalid(&network.name, "mtu", network.mtu_bytes, why))
}

fn subnet_problems(subnet: &Subnetwork, problems: &mut Vec<Problem>) {
    let (name, purpose) = (&subnet.name, subnet.purpose.as_str());
    let misplaced = || format!("Invalid field set in subnetwork with purpose {purpose}.");
    if let Err(why) = range::check(subnet.range) {
        problems.push(Problem::invalid(name, "ipCidrRange", subnet.range, why));
    }
    for (index, (_, secondary)) in subnet.secondary_ranges.iter().enumerate() {
        if let Err(why) = range::check(*secondary) {
            let field = format!("secondaryIpRanges[{index}].ipCidrRange");
            problems.push(Problem::invalid(name, field, secondary, why));
        }
    }
    if !subnet.purpose.is_proxy_only() {
        if let Some(role) = subnet.role {
            problems.push(Problem::invalid(name, "role", role.as_str(), misplaced()));
        }
        return;
    }
    if subnet.role.is_none() {
        problems.push(Problem::required(name, "role"));
    }
    if subnet.range.prefix_len() > range::PROXY_ONLY_PREFIX_MAX {
        let why = format!(
            "Subnetwork with purpose {purpose} must have an IP CIDR range of at least /{}.",
            range::PROXY_ONLY_PREFIX_MAX
        );
        problems.push(Problem::invalid(name, "ipCidrRange", subnet.range, why));
    }
    if let Some(log_config) = &subnet.log_config {
        problems.push(Problem::invalid(name, "logConfig", log_config, misplaced()));
    }
    if let Some((_, secondary)) = subnet.secondary_ranges.first() {
        problems.push(Problem::invalid(name, "secondaryIpRanges", secondary, misplaced()));
    }
}

/// Ranges of one network that have addresses in common. The subnet with the larger id is refused.
fn overlaps(inventory: &Inventory, problems: &mut Vec<Problem>) {
    let mut by_network: BTreeMap<&ResourceName, Vec<(Ipv4Net, &Subnetwork)>> = BTreeMap::new();
    for subnet in inventory.subnetworks.values() {
        let ranges = by_network.entry(&subnet.network).or_default();
        ranges.push((subnet.range.trunc(), subnet));
        ranges.extend(subnet.secondary_ranges.iter().map(|(_, range)| (range.trunc(), &**subnet)));
    }
    for ranges in by_network.values_mut() {
        ranges.sort_by_key(|(range, _)| (range.network(), range.prefix_len()));
        // CIDR ranges nest or are apart: sorted, whatever overlaps a range is inside the last
        // range that was not itself inside another.
        let mut outer: Option<(Ipv4Net, &Subnetwork)> = None;
        for (range, subnet) in ranges.iter() {
            match outer {
                Some((around, other)) if range::overlap(around, *range) => {
                    problems.push(conflict((*range, subnet), (around, other)));
                }
                _ => outer = Some((*range, subnet)),
            }
        }
    }
}

fn conflict(one: (Ipv4Net, &Subnetwork), other: (Ipv4Net, &Subnetwork)) -> Problem {
    let (earlier, later) = if one.1.id < other.1.id { (one, other) } else { (other, one) };
    let region = earlier.1.name.region().unwrap_or_default();
    let message = format!(
        "Invalid IPCidrRange: {} conflicts with existing subnetwork '{}' in region '{region}'.",
        later.0, earlier.1.name.name
    );
    Problem::refused(&later.1.name, "ipCidrRange", message)
}

/// One ACTIVE and at most one BACKUP of a purpose in a network and region, and no mixed generations.
fn proxy_only_problems(inventory: &Inventory, problems: &mut Vec<Problem>) {
    let mut groups: BTreeMap<(&ResourceName, Option<&str>), Vec<&Subnetwork>> = BTreeMap::new();
    for subnet in inventory.subnetworks.values().filter(|s| s.purpose.is_proxy_only()) {
        groups.entry((&subnet.network, subnet.name.region())).or_default().push(subnet);
    }
    for group in groups.values_mut() {
        group.sort_by_key(|subnet| subnet.id);
        for (index, later) in group.iter().enumerate() {
            let earlier = &group[..index];
            let same = |s: &&&Subnetwork| s.purpose == later.purpose && s.role == later.role;
            if let (Some(holder), Some(role)) = (earlier.iter().find(same), later.role) {
                let (role, purpose) = (role.as_str(), later.purpose.as_str());
                let why = format!(
                    "A subnetwork with purpose {purpose} and role {role} already exists in this \
                     region and network."
                );
                problems.push(taken(later, "role", role, holder, why));
            }
            let mixed = |s: &&&Subnetwork| generations_differ(s.purpose, later.purpose);
            if let Some(holder) = earlier.iter().find(mixed) {
                let why = "Subnetworks with purpose INTERNAL_HTTPS_LOAD_BALANCER and \
                           REGIONAL_MANAGED_PROXY cannot coexist in a region and network.";
                problems.push(taken(later, "purpose", later.purpose.as_str(), holder, why.into()));
            }
        }
    }
}

fn generations_differ(one: Purpose, other: Purpose) -> bool {
    let regional = [Purpose::InternalHttpsLoadBalancer, Purpose::RegionalManagedProxy];
    one != other && regional.contains(&one) && regional.contains(&other)
}

fn taken(
    later: &Subnetwork,
    field: &str,
    value: &str,
    holder: &Subnetwork,
    why: String,
) -> Problem {
    let cause = Cause::Taken { value: value.into(), holder: holder.name.clone(), why };
    Problem { resource: later.name.clone(), field: field.into(), cause }
}

/// The proxy-only subnet whose proxies serve the load balancers of a network and region.
pub fn active_proxy_only_subnet<'a>(
    inventory: &'a Inventory,
    network: &ResourceName,
    region: &str,
) -> Option<&'a Subnetwork> {
    let serves = |subnet: &&Subnetwork| {
        &subnet.network == network
            && subnet.name.region() == Some(region)
            && subnet.role == Some(Role::Active)
            && matches!(
                subnet.purpose,
                Purpose::RegionalManagedProxy | Purpose::InternalHttpsLoadBalancer
            )
    };
    inventory.subnetworks.values().map(|subnet| &**subnet).find(serves)
}

/// Why a subnet cannot be deleted now, besides being named by another resource.
pub fn subnet_deletion_problem(inventory: &Inventory, name: &ResourceName) -> Option<Problem> {
    let subnet = inventory.subnetworks.get(name)?;
    if !subnet.purpose.is_proxy_only() || subnet.role != Some(Role::Active) {
        return None;
    }
    let is_backup = |other: &Subnetwork| {
        other.network == subnet.network
            && other.name.region() == subnet.name.region()
            && other.purpose == subnet.purpose
            && other.role == Some(Role::Backup)
    };
    let message = "Invalid resource usage: Cannot delete ACTIVE subnetwork because a BACKUP \
                   subnetwork exists.";
    let backup = inventory.subnetworks.values().any(|other| is_backup(other));
    backup.then(|| Problem::refused(name, "", message))
}

fn firewall_problems(rule: &Firewall, problems: &mut Vec<Problem>) {
    let name = &rule.name;
    if rule.priority > PRIORITY_MAX {
        let why = format!("Must be less than or equal to {PRIORITY_MAX}");
        problems.push(Problem::invalid(name, "priority", rule.priority, why));
    }
    match (rule.allowed.is_empty(), rule.denied.is_empty()) {
        (true, true) => problems.push(Problem::required(name, "allowed")),
        (false, false) => {
            let why = "Only one of 'allowed' and 'denied' can be specified.";
            problems.push(Problem::invalid(name, "denied", entries(&rule.denied), why));
        }
        _ => {}
    }
    for (list, traffic) in [("allowed", &rule.allowed), ("denied", &rule.denied)] {
        for (index, entry) in traffic.iter().enumerate() {
            if !entry.ports.is_empty() && !entry.protocol.has_ports() {
                let field = format!("{list}[{index}].ports");
                let why = format!("Ports cannot be specified for protocol {}.", entry.protocol);
                problems.push(Problem::invalid(name, field, ports(entry), why));
            }
        }
    }
    let tags = !rule.source_tags.is_empty() || !rule.target_tags.is_empty();
    let accounts = [
        ("sourceServiceAccounts", &rule.source_service_accounts),
        ("targetServiceAccounts", &rule.target_service_accounts),
    ];
    for (field, emails) in accounts {
        if let (true, Some(email)) = (tags, emails.first()) {
            let why = "Service accounts and tags cannot be used in the same firewall rule.";
            problems.push(Problem::invalid(name, field, email, why));
        }
    }
    if rule.direction == Direction::Egress {
        let sources = [
            ("sourceTags", &rule.source_tags),
            ("sourceServiceAccounts", &rule.source_service_accounts),
        ];
        for (field, list) in sources {
            if let Some(first) = list.first() {
                let why = "Must not be specified for a firewall rule with direction EGRESS.";
                problems.push(Problem::invalid(name, field, first, why));
            }
        }
    }
    tag_problems(name, "sourceTags", &rule.source_tags, problems);
    tag_problems(name, "targetTags", &rule.target_tags, problems);
}

/// Ports as Google writes them.
fn ports(traffic: &Traffic) -> String {
    let text = |range: &std::ops::RangeInclusive<u16>| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}-{}", range.start(), range.end()),
    };
    traffic.ports.iter().map(text).collect::<Vec<_>>().join(",")
}

fn entries(traffic: &[Traffic]) -> String {
    let text = |entry: &Traffic| match entry.ports.is_empty() {
        true => entry.protocol.to_string(),
        false => format!("{}:{}", entry.protocol, ports(entry)),
    };
    traffic.iter().map(text).collect::<Vec<_>>().join(",")
}

fn tag_problems(name: &ResourceName, field: &str, tags: &[Name], problems: &mut Vec<Problem>) {
    for (index, tag) in tags.iter().enumerate().filter(|(_, tag)| !is_label(tag)) {
        problems.push(Problem::invalid(name, format!("{field}[{index}]"), tag, NAME_RULE));
    }
}

/// Whether a text follows the rule of names and tags.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= 63
        && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.bytes().all(inner)
        && !text.ends_with('-')
}

fn route_problem(route: &Route) -> Option<Problem> {
    let why = format!("Must be less than or equal to {}", model::route::PRIORITY_MAX);
    let too_large = route.priority > model::route::PRIORITY_MAX;
    too_large.then(|| Problem::invalid(&route.name, "priority", route.priority, why))
}

fn instance_problems(inventory: &Inventory, instance: &Instance, problems: &mut Vec<Problem>) {
    let name = &instance.name;
    if instance.interfaces.is_empty() {
        problems.push(Problem::required(name, "networkInterfaces"));
    }
    if instance.interfaces.len() > INTERFACES_MAX {
        let why = "Only one network interface is supported.";
        let count = instance.interfaces.len();
        problems.push(Problem::invalid(name, "networkInterfaces", count, why));
    }
    if instance.tags.len() > TAGS_MAX {
        let why = format!("At most {TAGS_MAX} tags are allowed.");
        problems.push(Problem::invalid(name, "tags.items", instance.tags.len(), why));
    }
    tag_problems(name, "tags.items", &instance.tags, problems);
    for (index, interface) in instance.interfaces.iter().enumerate() {
        problems.extend(interface_problem(inventory, instance, index, interface));
    }
}

fn interface_problem(
    inventory: &Inventory,
    instance: &Instance,
    index: usize,
    interface: &NetworkInterface,
) -> Option<Problem> {
    let subnet = inventory.subnetworks.get(&interface.subnetwork)?;
    let field = format!("networkInterfaces[{index}].subnetwork");
    if !subnet.purpose.takes_addresses() {
        return Some(address::wrong_purpose(&instance.name, field, subnet));
    }
    let why = if subnet.network != interface.network {
        format!("Subnetwork is not in the network '{}'.", interface.network)
    } else if subnet.name.region() != instance.name.region() {
        "Subnetwork must be in the same region as the instance.".into()
    } else {
        return None;
    };
    Some(Problem::invalid(&instance.name, field, &subnet.name, why))
}
