//! A forwarding rule: the address and port, inside a VPC network, on which a target proxy answers.

use crate::name::{Name, ResourceName};
use std::net::Ipv4Addr;

/// One forwarding rule (Compute `ForwardingRule`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardingRule {
    /// `projects/P/regions/R/forwardingRules/F`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `loadBalancingScheme`, as written.
    pub load_balancing_scheme: Name,
    /// `network`.
    pub network: ResourceName,
    /// `subnetwork`.
    pub subnetwork: ResourceName,
    /// `IPAddress`: a literal, or what was taken from the subnet.
    pub address: Ipv4Addr,
    /// The reserved address the literal came from, if it was given by name.
    pub reserved_address: Option<ResourceName>,
    /// `portRange`, which holds exactly one port.
    pub port: u16,
    /// `target`.
    pub target: ResourceName,
    /// `allowGlobalAccess`.
    pub allow_global_access: bool,
    /// `serviceLabel`.
    pub service_label: Option<Name>,
}

impl ForwardingRule {
    /// The target, the network, the subnet and the reserved address.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let address = self.reserved_address.iter().map(|name| ("IPAddress".into(), name.clone()));
        let fixed = [
            ("target".into(), self.target.clone()),
            ("network".into(), self.network.clone()),
            ("subnetwork".into(), self.subnetwork.clone()),
        ];
        fixed.into_iter().chain(address).collect()
    }
}
