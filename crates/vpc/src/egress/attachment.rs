//! An instance's address in a subnet, taken for as long as the instance lives.
//!
//! Addresses are taken from the upper end of the subnet, where those of VMs and load balancers, which
//! come from the lower end, are met last.
//!
//! Invariant: an address is an instance's only while this value lives, and no two have the same.

use crate::error::VpcError;
use crate::links;
use crate::namespace::Namespace;
use crate::vpc::Vpc;
use model::ResourceName;
use plan::network::{NetworkPlan, SubnetPlan, range};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;

/// The addresses of a network that instances of Cloud Run have at the moment.
pub(crate) type Guests = Arc<Mutex<BTreeSet<Ipv4Addr>>>;

/// An address that was taken.
#[derive(Debug)]
pub(super) struct Attachment {
    network: ResourceName,
    namespace: Namespace,
    guests: Guests,
    address: Ipv4Addr,
    tasks: Handle,
}

impl Attachment {
    /// Takes an address and brings it up in the network's namespace. Blocks; to be called inside a
    /// tokio runtime.
    pub(super) fn make(
        vpc: &Vpc,
        network: &NetworkPlan,
        subnet: &SubnetPlan,
    ) -> Result<Attachment, VpcError> {
        let (namespace, guests) = vpc.attachable(&network.name)?;
        // Held until the address is there, so that nobody who compares the namespace with the plan
        // meanwhile takes it for a leftover.
        let mut taken = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let address = highest_free(network, subnet, &taken)
            .ok_or_else(|| VpcError::SubnetFull { subnet: subnet.name.clone() })?;
        namespace.within(|| {
            links::run(async |links| links.change_loopback_addresses([address], []).await)
        })??;
        taken.insert(address);
        drop(taken);
        let network = network.name.clone();
        Ok(Attachment { network, namespace, guests, address, tasks: Handle::current() })
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What is said when the network has gone under the instance.
    pub(super) fn gone(&self) -> VpcError {
        VpcError::NoNetwork { network: self.network.clone() }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let (namespace, guests, address) =
            (self.namespace.clone(), Arc::clone(&self.guests), self.address);
        self.tasks.spawn_blocking(move || {
            let mut taken = guests.lock().unwrap_or_else(PoisonError::into_inner);
            let remove = || {
                links::run(async |links| links.change_loopback_addresses([], [address]).await)
            };
            if let Err(error) = namespace.within(remove).and_then(|removed| removed) {
                tracing::debug!(%address, %error, "an instance's address stays until the next plan");
            }
            taken.remove(&address);
        });
    }
}

/// The highest address of the subnet that nothing of the plan and no other instance has.
fn highest_free(
    network: &NetworkPlan,
    subnet: &SubnetPlan,
    taken: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let (first, last) = range::usable(subnet.range)?;
    let of_plan: BTreeSet<Ipv4Addr> = network
        .instances
        .values()
        .map(|instance| instance.address)
        .chain(network.frontends.iter().copied())
        .collect();
    let is_free = |address: &Ipv4Addr| !taken.contains(address) && !of_plan.contains(address);
    (first.to_bits()..=last.to_bits()).rev().map(Ipv4Addr::from_bits).find(is_free)
}
