//! Who has which internal address, and which one is next.
//!
//! Reserved addresses, interfaces of instances and forwarding rules claim addresses of a network. A
//! reservation and its user share theirs; everything else is a conflict, and the resource that came
//! later (the one with the larger id) is the one that is refused.
//!
//! Invariant: [`allocate`] gives the lowest address that nothing claims, so a world has one next address.

use super::range;
use ipnet::Ipv4Net;
use model::address::{Address, AddressPurpose, AddressType};
use model::forwarding_rule::ForwardingRule;
use model::instance::Instance;
use model::subnetwork::Subnetwork;
use model::{Cause, Inventory, Problem, ResourceName};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// One resource's hold on an address.
#[derive(Clone, Copy, Debug)]
pub enum Claim<'a> {
    /// A reservation.
    Reserved(&'a Address),
    /// An interface of an instance, by its place in the list.
    Interface(&'a Instance, usize),
    /// A forwarding rule that answers on it.
    Frontend(&'a ForwardingRule),
}

impl<'a> Claim<'a> {
    /// The resource that claims.
    pub fn holder(&self) -> &'a ResourceName {
        match self {
            Claim::Reserved(address) => &address.name,
            Claim::Interface(instance, _) => &instance.name,
            Claim::Frontend(rule) => &rule.name,
        }
    }

    fn id(&self) -> u64 {
        match self {
            Claim::Reserved(address) => address.id,
            Claim::Interface(instance, _) => instance.id,
            Claim::Frontend(rule) => rule.id,
        }
    }

    /// The field that holds the address, as Google writes it.
    fn field(&self) -> String {
        match self {
            Claim::Reserved(_) => "address".into(),
            Claim::Interface(_, index) => format!("networkInterfaces[{index}].networkIP"),
            Claim::Frontend(_) => "IPAddress".into(),
        }
    }

    /// The subnet the address must lie in.
    fn subnetwork(&self) -> Option<&'a ResourceName> {
        match self {
            Claim::Reserved(address) => address.subnetwork.as_ref(),
            Claim::Interface(instance, index) => Some(&instance.interfaces.get(*index)?.subnetwork),
            Claim::Frontend(rule) => Some(&rule.subnetwork),
        }
    }
}

/// Every claimed address of every network.
#[derive(Debug, Default)]
pub struct Claims<'a> {
    /// Addresses first: they tell apart sooner than names do.
    by_address: BTreeMap<(Ipv4Addr, &'a ResourceName), Vec<Claim<'a>>>,
}

impl<'a> Claims<'a> {
    /// The claims of the whole inventory.
    pub fn of(inventory: &'a Inventory) -> Claims<'a> {
        let mut claims = Claims::default();
        for address in inventory.addresses.values() {
            if let (Some(network), Some(literal)) =
                (network_of(inventory, address), address.address)
            {
                claims.add(network, literal, Claim::Reserved(address));
            }
        }
        for instance in inventory.instances.values() {
            for (index, interface) in instance.interfaces.iter().enumerate() {
                if let Some(literal) = interface.address {
                    claims.add(&interface.network, literal, Claim::Interface(instance, index));
                }
            }
        }
        for rule in inventory.forwarding_rules.values() {
            claims.add(&rule.network, rule.address, Claim::Frontend(rule));
        }
        claims
    }

    fn add(&mut self, network: &'a ResourceName, address: Ipv4Addr, claim: Claim<'a>) {
        self.by_address.entry((address, network)).or_default().push(claim);
    }

    /// Who claims the address in the network; empty when it is free.
    pub fn on(&self, network: &'a ResourceName, address: Ipv4Addr) -> &[Claim<'a>] {
        self.by_address.get(&(address, network)).map_or(&[], Vec::as_slice)
    }

    /// The lowest address of `subnet` that may be used and that nothing claims.
    pub fn lowest_free(&self, subnet: &Subnetwork) -> Option<Ipv4Addr> {
        let (first, last) = range::usable(subnet.range)?;
        let within = self.by_address.range((first, &subnet.network)..=(last, &subnet.network));
        let of_network = within.filter(|((_, network), _)| **network == subnet.network);
        let taken = of_network.map(|((address, _), _)| *address);
        lowest_free(subnet.range, taken)
    }
}

/// The lowest usable address of `range` not among `taken`, which comes in ascending order.
pub fn lowest_free(range: Ipv4Net, taken: impl IntoIterator<Item = Ipv4Addr>) -> Option<Ipv4Addr> {
    let (first, last) = range::usable(range)?;
    let mut candidate = first.to_bits();
    for address in taken {
        match address.to_bits() {
            lower if lower < candidate => {}
            same if same == candidate => candidate = candidate.checked_add(1)?,
            _ => break,
        }
    }
    (candidate <= last.to_bits()).then(|| Ipv4Addr::from_bits(candidate))
}

/// Takes an address of `subnetwork` for `requester`, which names the subnet in `field`.
pub fn allocate(
    inventory: &Inventory,
    requester: &ResourceName,
    field: &str,
    subnetwork: &ResourceName,
) -> Result<Ipv4Addr, Box<Problem>> {
    let Some(subnet) = inventory.subnetworks.get(subnetwork) else {
        return Err(Problem::dangling(requester, field, subnetwork).into());
    };
    if !subnet.purpose.takes_addresses() {
        return Err(wrong_purpose(requester, field, subnet).into());
    }
    let exhausted = || format!("IP space of '{subnetwork}' is exhausted.");
    let free = Claims::of(inventory).lowest_free(subnet);
    free.ok_or_else(|| Problem::refused(requester, field, exhausted()).into())
}

/// Whether `address` of `subnetwork` is free, and otherwise who has it: the check a client's own choice
/// of an address must pass before it is written down.
pub fn holder<'a>(
    inventory: &'a Inventory,
    subnetwork: &ResourceName,
    address: Ipv4Addr,
) -> Option<&'a ResourceName> {
    let network = &inventory.subnetworks.get(subnetwork)?.network;
    let claims = Claims::of(inventory);
    claims.on(network, address).first().map(Claim::holder)
}

/// The network an internal address belongs to.
fn network_of<'a>(inventory: &'a Inventory, address: &'a Address) -> Option<&'a ResourceName> {
    let subnet = address.subnetwork.as_ref().and_then(|name| inventory.subnetworks.get(name));
    match address.address_type {
        AddressType::External => None,
        AddressType::Internal => subnet.map(|s| &s.network).or(address.network.as_ref()),
    }
}

/// What is wrong with reservations, and with the addresses anything claims.
pub fn problems(inventory: &Inventory) -> Vec<Problem> {
    let mut problems = Vec::new();
    for address in inventory.addresses.values() {
        reservation_problems(inventory, address, &mut problems);
    }
    let claims = Claims::of(inventory);
    for ((address, _), holders) in &claims.by_address {
        for claim in holders {
            problems.extend(placement_problem(inventory, *address, claim));
        }
        conflicts(*address, holders, &mut problems);
    }
    problems
}

fn reservation_problems(inventory: &Inventory, address: &Address, problems: &mut Vec<Problem>) {
    let name = &address.name;
    let Some(subnetwork) = &address.subnetwork else {
        if address.address_type == AddressType::Internal && address.network.is_none() {
            problems.push(Problem::required(name, "subnetwork"));
        }
        return;
    };
    if address.address_type == AddressType::External {
        let why = "Subnetwork can only be specified for INTERNAL addresses.";
        problems.push(Problem::invalid(name, "subnetwork", subnetwork, why));
    }
    let Some(subnet) = inventory.subnetworks.get(subnetwork) else { return };
    if !subnet.purpose.takes_addresses() {
        problems.push(wrong_purpose(name, "subnetwork", subnet));
    }
    if subnet.name.region() != name.region() {
        let why = "The subnetwork must be in the same region as the address.";
        problems.push(Problem::invalid(name, "subnetwork", subnetwork, why));
    }
}

/// An address that lies outside the subnet it is said to be of, or is one of the four reserved ones.
fn placement_problem(inventory: &Inventory, address: Ipv4Addr, claim: &Claim) -> Option<Problem> {
    let subnet = inventory.subnetworks.get(claim.subnetwork()?)?;
    if !subnet.range.contains(&address) {
        let why = format!(
            "Requested internal IP address is outside the range {} of subnetwork '{}'.",
            subnet.range, subnet.name
        );
        return Some(Problem::invalid(claim.holder(), claim.field(), address, why));
    }
    if !range::is_usable(subnet.range, address) {
        let why = format!(
            "Requested internal IP address is reserved: the first two and last two addresses of {} \
             cannot be used.",
            subnet.range
        );
        return Some(Problem::invalid(claim.holder(), claim.field(), address, why));
    }
    None
}

/// Holders that cannot share one address. Each but the first is told about the first it collides with.
fn conflicts(address: Ipv4Addr, holders: &[Claim], problems: &mut Vec<Problem>) {
    if holders.len() < 2 {
        return;
    }
    let shared = holders.iter().any(|claim| {
        matches!(claim, Claim::Reserved(a) if a.purpose == AddressPurpose::SharedLoadBalancerVip)
    });
    let mut in_order: Vec<&Claim> = holders.iter().collect();
    in_order.sort_by_key(|claim| claim.id());
    let mut told = BTreeSet::new();
    for (index, later) in in_order.iter().enumerate() {
        let earlier = in_order[..index].iter().find(|earlier| collide(earlier, later, shared));
        let Some(earlier) = earlier.filter(|_| told.insert(later.holder())) else { continue };
        let cause = Cause::Taken {
            value: address.to_string(),
            holder: earlier.holder().clone(),
            why: "Specified IP address is in-use and would result in a conflict.".into(),
        };
        problems.push(Problem { resource: later.holder().clone(), field: later.field(), cause });
    }
}

/// Whether two claims on one address exclude each other.
fn collide(one: &Claim, other: &Claim, shared: bool) -> bool {
    match (one, other) {
        (Claim::Reserved(_), Claim::Reserved(_)) => true,
        (Claim::Reserved(reserved), Claim::Interface(..))
        | (Claim::Interface(..), Claim::Reserved(reserved)) => {
            reserved.purpose == AddressPurpose::SharedLoadBalancerVip
        }
        (Claim::Reserved(_), Claim::Frontend(_)) | (Claim::Frontend(_), Claim::Reserved(_)) => {
            false
        }
        (Claim::Frontend(one), Claim::Frontend(other)) => !shared || one.port == other.port,
        (Claim::Interface(..), _) | (_, Claim::Interface(..)) => true,
    }
}

/// The refusal of a subnet that is not for addresses of this kind of resource.
pub(super) fn wrong_purpose(
    resource: &ResourceName,
    field: impl Into<String>,
    subnet: &Subnetwork,
) -> Problem {
    let purpose = subnet.purpose.as_str();
    let why = format!("Subnetwork with purpose {purpose} cannot be used by this resource.");
    Problem::invalid(resource, field, &subnet.name, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(text: &str) -> Ipv4Net {
        range::parse(text).expect(text)
    }

    #[test]
    fn the_lowest_free_address_is_next() {
        let next = |taken: &[u8]| {
            let taken = taken.iter().map(|last| Ipv4Addr::new(10, 0, 0, *last));
            lowest_free(range("10.0.0.0/29"), taken).map(|address| address.octets()[3])
        };
        assert_eq!(next(&[]), Some(2));
        assert_eq!(next(&[2, 3]), Some(4));
        assert_eq!(next(&[0, 1, 3]), Some(2));
        assert_eq!(next(&[2, 2, 4]), Some(3));
        assert_eq!(next(&[2, 3, 4, 5]), None);
    }

    proptest! {
        #[test]
        fn an_allocated_address_is_free_usable_and_has_no_free_one_below(
            taken in proptest::collection::btree_set(0u8..=63, 0..64),
        ) {
            let range = range("10.7.0.64/26");
            let base = range.network().to_bits();
            let taken: BTreeSet<Ipv4Addr> =
                taken.iter().map(|offset| Ipv4Addr::from_bits(base + u32::from(*offset))).collect();
            let usable = || range.hosts().filter(|address| range::is_usable(range, *address));
            let expected = usable().find(|address| !taken.contains(address));
            prop_assert_eq!(lowest_free(range, taken.iter().copied()), expected);
        }
    }
}
