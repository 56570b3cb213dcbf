//! One network on the host: its namespace, addresses, routes and firewall, reconciled with its plan.
//!
//! Invariant: the firewall is in force before anything the plan adds can be reached.

use crate::egress::Guests;
use crate::error::VpcError;
use crate::links::{self, WantedRoute};
use crate::namespace::{Namespace, set_kernel_options, unpin};
use crate::nft;
use model::ResourceName;
use plan::network::{NetworkPlan, range};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

/// The address connections through the SSH tunnel come from, one of Google's range for them.
pub const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(35, 235, 240, 1);

/// The address of the metadata server, in every network.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The address of every `run.app` name, in every network and for every instance of Cloud Run: one of those
/// the names have on the internet.
pub const RUN_APP_ADDRESS: Ipv4Addr = Ipv4Addr::new(34, 143, 72, 2);

/// Finished connections are forgotten soon: at the default of two minutes, a load test of some thousand
/// connections a second fills the kernel's table. The options are there once a ruleset tracks.
const CONNECTION_TRACKING: [(&str, &str); 2] = [
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
    ("netfilter/nf_conntrack_tcp_timeout_close_wait", "15"),
];

/// A network that exists on the host.
#[derive(Debug)]
pub(crate) struct HostNetwork {
    pub(crate) name: Option<ResourceName>,
    pub(crate) namespace: Namespace,
    pin: PathBuf,
    /// What was last carried out completely.
    pub(crate) applied: Option<Arc<NetworkPlan>>,
    /// The firewall in force, as far as it is known.
    ruleset: Option<String>,
    /// The addresses that instances of Cloud Run have.
    pub(crate) guests: Guests,
}

impl HostNetwork {
    /// The network pinned at `pin`, made when it is not there.
    pub(crate) fn open(pin: PathBuf, name: Option<ResourceName>) -> Result<HostNetwork, VpcError> {
        let (namespace, _) = Namespace::pinned(&pin)?;
        let prepare = || {
            set_kernel_options(&[
                ("ipv6/conf/all/disable_ipv6", "1"),
                ("ipv6/conf/default/disable_ipv6", "1"),
                ("ipv4/ip_forward", "1"),
                // The kernel would miss a way back to the local ranges of tunnel and proxies.
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/conf/all/accept_redirects", "0"),
                ("ipv4/conf/all/send_redirects", "0"),
            ])?;
            links::run(async |links| links.bring_up_loopback().await)
        };
        namespace.within(prepare)??;
        let guests = Guests::default();
        Ok(HostNetwork { name, namespace, pin, applied: None, ruleset: None, guests })
    }

    /// Makes the host what the plan says.
    pub(crate) fn apply(&mut self, plan: &Arc<NetworkPlan>) -> Result<(), VpcError> {
        if self.applied.as_ref().is_some_and(|applied| Arc::ptr_eq(applied, plan)) {
            return Ok(());
        }
        let before = self.applied.take();
        if let Some(before) = before.filter(|before| differ_in_frontends_only(before, plan)) {
            let added: Vec<_> = plan.frontends.difference(&before.frontends).copied().collect();
            let removed: Vec<_> = before.frontends.difference(&plan.frontends).copied().collect();
            let change =
                || links::run(async |links| links.change_loopback_addresses(added, removed).await);
            self.namespace.within(change)??;
            self.applied = Some(plan.clone());
            return Ok(());
        }
        let guests = Guests::clone(&self.guests);
        // Held so that nobody gets an address that would be taken for a leftover.
        let guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
        let ruleset = nft::render(plan);
        let is_new = self.ruleset.as_ref() != Some(&ruleset);
        let carry_out = || {
            if is_new {
                nft::replace(&ruleset)?;
                set_kernel_options(&CONNECTION_TRACKING)?;
            }
            links::run(async |links| reconcile(&links, plan, &guests).await)
        };
        self.namespace.within(carry_out)??;
        self.ruleset = Some(ruleset);
        self.applied = Some(plan.clone());
        Ok(())
    }

    /// Removes the network from the host.
    pub(crate) fn tear_down(self) -> Result<(), VpcError> {
        let empty = || {
            // The namespace may outlive its pin while sockets in it are open: it is left empty.
            links::run(async |links| {
                for (name, index) in links.list().await? {
                    links.remove(&name, index).await?;
                }
                links.set_routes(&[]).await?;
                links.set_loopback_addresses(&BTreeSet::new()).await
            })?;
            nft::remove()
        };
        let emptied = self.namespace.within(empty).and_then(|done| done);
        unpin(&self.pin).and(emptied)
    }
}

/// Whether a change is only about addresses of load balancers, by far the most frequent one; names are
/// not the namespace's business. An address that is a gateway as well is not told apart here.
fn differ_in_frontends_only(before: &NetworkPlan, plan: &NetworkPlan) -> bool {
    let is_gateway = |address: &Ipv4Addr| plan.subnets.iter().any(|s| s.gateway == *address);
    before.instances == plan.instances
        && before.subnets == plan.subnets
        && before.routes == plan.routes
        && !before.frontends.symmetric_difference(&plan.frontends).any(is_gateway)
}

/// Addresses, routes and links, except those of instances, which their keepers make.
async fn reconcile(
    links: &links::Links,
    plan: &NetworkPlan,
    guests: &BTreeSet<Ipv4Addr>,
) -> Result<(), VpcError> {
    let own = plan.subnets.iter().filter(|subnet| subnet.purpose.takes_addresses());
    let gateways = own.map(|subnet| subnet.gateway);
    let own = gateways.chain([METADATA_ADDRESS, RUN_APP_ADDRESS]).chain(guests.iter().copied());
    let addresses: BTreeSet<Ipv4Addr> = own.chain(plan.frontends.iter().copied()).collect();
    links.set_loopback_addresses(&addresses).await?;

    let names: BTreeSet<String> = plan.instances.values().map(|i| nft::link_name(i.id)).collect();
    let present = links.list().await?;
    for (name, index) in present.iter().filter(|(name, _)| !names.contains(*name)) {
        links.remove(name, *index).await?;
    }

    let proxies = plan.subnets.iter().filter(|subnet| subnet.purpose.is_proxy_only());
    let local = proxies.map(|subnet| subnet.range).chain([range::tunnel_sources()]);
    let mut routes: Vec<WantedRoute> = local.map(WantedRoute::Local).collect();
    for route in &plan.routes {
        let hop = plan.instance_at(route.via).map(|instance| nft::link_name(instance.id));
        if let Some(link) = hop.and_then(|name| present.get(&name).copied()) {
            routes.push(WantedRoute::Via { to: route.destination, via: route.via, link });
        }
    }
    links.set_routes(&routes).await
}
