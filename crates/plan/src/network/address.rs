//! Who has which internal address, and which one is next.
//!
//! Reserved addresses, interfaces of instances and forwarding rules claim addresses of a network. A
//! reservation and its user share theirs; everything else is a conflict, and the resource that came
//! later (the one with the larger id) is the one that is refused.
//!
//! Invariant: [`allocate`] gives the lowest address that nothing claims, so a world has one next address.

use super::range;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use ipnet::Ipv4Net;
use model::address::{Address, AddressPurpose, AddressType};
use model::forwarding_rule::ForwardingRule;
use model::instance::Instance;
use model::inventory::Collection;
use model::subnetwork::Subnetwork;
use model::{Cause, Inventory, Kind, Problem, ResourceName};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// An address of a network. Addresses first: they tell apart sooner than names do.
type Place = (Ipv4Addr, ResourceName);

/// Who holds an address, and by which of its interfaces if it is an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hold {
    holder: ResourceName,
    interface: usize,
}

/// One resource's hold on an address, with the resource.
#[derive(Clone, Copy, Debug)]
enum Claim<'a> {
    /// A reservation.
    Reserved(&'a Address),
    /// An interface of an instance, by its place in the list.
    Interface(&'a Instance, usize),
    /// A forwarding rule that answers on it.
    Frontend(&'a ForwardingRule),
}

impl<'a> Claim<'a> {
    fn of(inventory: &'a Inventory, hold: &Hold) -> Option<Claim<'a>> {
        let name = &hold.holder;
        Some(match name.kind {
            Kind::Address => Claim::Reserved(inventory.addresses.get(name)?),
            Kind::Instance => Claim::Interface(inventory.instances.get(name)?, hold.interface),
            _ => Claim::Frontend(inventory.forwarding_rules.get(name)?),
        })
    }

    /// The resource that claims.
    fn holder(&self) -> &'a ResourceName {
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

/// Every claimed address of every network, and what is wrong with the claims. Kept from one compilation
/// to the next, so that a change costs what it touches and not what there is.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    by_place: OrdMap<Place, OrdSet<Hold>>,
    /// What is wrong where something is wrong.
    problems: OrdMap<Place, Arc<[Problem]>>,
    /// What is wrong with reservations, whoever else claims their address.
    reservations: OrdMap<ResourceName, Arc<[Problem]>>,
}

impl Claims {
    /// The claims of `after`, given that these are those of `before`.
    pub(super) fn brought_forward(&self, before: &Inventory, after: &Inventory) -> Claims {
        // Subnets say what network a reservation is of and where addresses may lie: all is asked anew.
        match before.subnetworks.ptr_eq(&after.subnetworks) {
            true => self.clone().follow(before, after),
            false => Claims::default().follow(&Inventory::default(), after),
        }
    }

    fn follow(mut self, before: &Inventory, after: &Inventory) -> Claims {
        let mut touched = BTreeSet::new();
        for (old, new) in changed(&before.addresses, &after.addresses) {
            self.release(old.and_then(|old| reservation(before, old)), &mut touched);
            self.take(new.and_then(|new| reservation(after, new)), &mut touched);
            if let Some(old) = old {
                self.reservations.remove(&old.name);
            }
            let found = new.map(|new| reservation_problems(after, new)).unwrap_or_default();
            if let Some(new) = new.filter(|_| !found.is_empty()) {
                self.reservations.insert(new.name.clone(), found.into());
            }
        }
        for (old, new) in changed(&before.instances, &after.instances) {
            self.release(old.into_iter().flat_map(interfaces), &mut touched);
            self.take(new.into_iter().flat_map(interfaces), &mut touched);
        }
        for (old, new) in changed(&before.forwarding_rules, &after.forwarding_rules) {
            self.release(old.map(frontend), &mut touched);
            self.take(new.map(frontend), &mut touched);
        }
        for place in touched {
            let found = self.problems_at(after, &place);
            match found.is_empty() {
                true => self.problems.remove(&place),
                false => self.problems.insert(place, found.into()),
            };
        }
        self
    }

    fn take(
        &mut self,
        holds: impl IntoIterator<Item = (Place, Hold)>,
        touched: &mut BTreeSet<Place>,
    ) {
        for (place, hold) in holds {
            self.by_place.entry(place.clone()).or_default().insert(hold);
            touched.insert(place);
        }
    }

    fn release(
        &mut self,
        holds: impl IntoIterator<Item = (Place, Hold)>,
        touched: &mut BTreeSet<Place>,
    ) {
        for (place, hold) in holds {
            if let Some(holders) = self.by_place.get_mut(&place) {
                holders.remove(&hold);
                if holders.is_empty() {
                    self.by_place.remove(&place);
                }
            }
            touched.insert(place);
        }
    }

    fn problems_at(&self, inventory: &Inventory, place: &Place) -> Vec<Problem> {
        let holds = self.by_place.get(place).into_iter().flatten();
        let claims: Vec<Claim> = holds.filter_map(|hold| Claim::of(inventory, hold)).collect();
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(claims.iter().filter_map(|c| placement_problem(inventory, place.0, c)));
        conflicts(place.0, &claims, &mut problems);
        problems
    }

    /// The forwarding rules that answer there, in order of their names.
    pub(super) fn frontends_at(
        &self,
        address: Ipv4Addr,
        network: &ResourceName,
    ) -> impl Iterator<Item = &ResourceName> {
        let holds = self.by_place.get(&(address, network.clone())).into_iter().flatten();
        holds.map(|hold| &hold.holder).filter(|name| name.kind == Kind::ForwardingRule)
    }

    /// What is wrong with reservations, and with the addresses anything claims.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let reservations = self.reservations.values().flat_map(|found| found.iter());
        reservations.chain(self.problems.values().flat_map(|found| found.iter()))
    }
}

/// What differs between two collections: as it was and as it is.
pub(crate) fn changed<'a, T: PartialEq>(
    before: &'a Collection<T>,
    after: &'a Collection<T>,
) -> impl Iterator<Item = (Option<&'a Arc<T>>, Option<&'a Arc<T>>)> {
    before.diff(after).map(|item| match item {
        DiffItem::Add(_, new) => (None, Some(new)),
        DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
        DiffItem::Remove(_, old) => (Some(old), None),
    })
}

fn reservation(inventory: &Inventory, address: &Arc<Address>) -> Option<(Place, Hold)> {
    let place = (address.address?, network_of(inventory, address)?.clone());
    Some((place, Hold { holder: address.name.clone(), interface: 0 }))
}

fn interfaces(instance: &Arc<Instance>) -> impl Iterator<Item = (Place, Hold)> {
    instance.interfaces.iter().enumerate().filter_map(|(index, interface)| {
        let place = (interface.address?, interface.network.clone());
        Some((place, Hold { holder: instance.name.clone(), interface: index }))
    })
}

fn frontend(rule: &Arc<ForwardingRule>) -> (Place, Hold) {
    let hold = Hold { holder: rule.name.clone(), interface: 0 };
    ((rule.address, rule.network.clone()), hold)
}

/// Every address of a network that something claims, with what does.
fn claimed<'a>(
    inventory: &'a Inventory,
    network: &'a ResourceName,
) -> impl Iterator<Item = (Ipv4Addr, &'a ResourceName)> {
    let reserved = inventory.addresses.values().filter_map(move |address| {
        let literal = address.address?;
        (network_of(inventory, address)? == network).then_some((literal, &address.name))
    });
    let interfaces = inventory.instances.values().flat_map(move |instance| {
        let own = instance.interfaces.iter().filter(move |interface| &interface.network == network);
        own.filter_map(|interface| Some((interface.address?, &instance.name)))
    });
    let frontends =
        inventory.forwarding_rules.values().filter(move |rule| &rule.network == network);
    reserved.chain(interfaces).chain(frontends.map(|rule| (rule.address, &rule.name)))
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
    let claimed = claimed(inventory, &subnet.network).map(|(address, _)| address);
    let taken: BTreeSet<Ipv4Addr> =
        claimed.filter(|address| subnet.range.contains(address)).collect();
    let free = lowest_free(subnet.range, taken);
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
    let mut claimed = claimed(inventory, network);
    claimed.find(|(taken, _)| *taken == address).map(|(_, holder)| holder)
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
    Claims::default().follow(&Inventory::default(), inventory).problems().cloned().collect()
}

fn reservation_problems(inventory: &Inventory, address: &Address) -> Vec<Problem> {
    let mut problems = Vec::new();
    let name = &address.name;
    let Some(subnetwork) = &address.subnetwork else {
        if address.address_type == AddressType::Internal && address.network.is_none() {
            problems.push(Problem::required(name, "subnetwork"));
        }
        return problems;
    };
    if address.address_type == AddressType::External {
        let why = "Subnetwork can only be specified for INTERNAL addresses.";
        problems.push(Problem::invalid(name, "subnetwork", subnetwork, why));
    }
    let Some(subnet) = inventory.subnetworks.get(subnetwork) else { return problems };
    if !subnet.purpose.takes_addresses() {
        problems.push(wrong_purpose(name, "subnetwork", subnet));
    }
    if subnet.name.region() != name.region() {
        let why = "The subnetwork must be in the same region as the address.";
        problems.push(Problem::invalid(name, "subnetwork", subnetwork, why));
    }
    problems
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
