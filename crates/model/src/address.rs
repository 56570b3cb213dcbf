//! A reserved address: one that stays its owner's until it is released.

use crate::name::ResourceName;
use std::net::Ipv4Addr;

/// One reserved address (Compute `Address`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `projects/P/regions/R/addresses/A`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `address`: chosen by the client or taken from the subnet.
    pub address: Option<Ipv4Addr>,
    /// `addressType`.
    pub address_type: AddressType,
    /// `purpose`.
    pub purpose: AddressPurpose,
    /// `subnetwork`, of an internal address.
    pub subnetwork: Option<ResourceName>,
    /// `network`, only of addresses for VPC peering.
    pub network: Option<ResourceName>,
}

/// Which world an address belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressType {
    /// `EXTERNAL`.
    #[default]
    External,
    /// `INTERNAL`.
    Internal,
}

/// What a reserved address is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressPurpose {
    /// `GCE_ENDPOINT`: one instance or one forwarding rule.
    #[default]
    GceEndpoint,
    /// `SHARED_LOADBALANCER_VIP`: several internal forwarding rules.
    SharedLoadBalancerVip,
    /// Any other of Google's purposes, which reserves and does nothing more.
    Other,
}

impl Address {
    /// The subnet and the network, where they are given.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let subnetwork = self.subnetwork.iter().map(|name| ("subnetwork".into(), name.clone()));
        let network = self.network.iter().map(|name| ("network".into(), name.clone()));
        subnetwork.chain(network).collect()
    }
}
