//! A route of a network: where packets for a range go.

use crate::name::{Name, ResourceName};
use ipnet::IpNet;
use std::net::Ipv4Addr;

/// The priority of a route that does not say.
pub const PRIORITY_DEFAULT: u32 = 1000;
/// The largest priority.
pub const PRIORITY_MAX: u32 = 65_535;

/// One route (Compute `Route`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `projects/P/global/routes/R`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `network`.
    pub network: ResourceName,
    /// `destRange`.
    pub destination: IpNet,
    /// `priority`; among equal ranges the lower number wins.
    pub priority: u32,
    /// Where the packets go.
    pub next_hop: NextHop,
    /// `tags[]`: the instances the route is for; empty for all.
    pub tags: Vec<Name>,
}

/// The next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// `nextHopGateway`: the default internet gateway.
    InternetGateway,
    /// `nextHopNetwork`: the network itself (a subnet route).
    Network(ResourceName),
    /// `nextHopInstance`.
    Instance(ResourceName),
    /// `nextHopIp`.
    Address(Ipv4Addr),
    /// A kind of hop that is kept and not carried out, by the name of its field.
    Other(Name),
}

impl Route {
    /// The network, and the instance packets are sent to.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let mut references = vec![("network".into(), self.network.clone())];
        if let NextHop::Instance(instance) = &self.next_hop {
            references.push(("nextHopInstance".into(), instance.clone()));
        }
        references
    }
}
