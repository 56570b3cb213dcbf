//! A VPC network: the world in which addresses, firewall rules and instances have a meaning.

use crate::name::ResourceName;

/// The smallest `mtu` Google takes, in bytes.
pub const MTU_BYTES_MIN: u32 = 1300;
/// The largest `mtu` Google takes, in bytes.
pub const MTU_BYTES_MAX: u32 = 8896;
/// The `mtu` of a network that does not say, in bytes.
pub const MTU_BYTES_DEFAULT: u32 = 1460;

/// One VPC network (Compute `Network`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// `projects/P/global/networks/N`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `autoCreateSubnetworks`: whether subnets were made for every region.
    pub auto_create_subnetworks: bool,
    /// `mtu` in bytes.
    pub mtu_bytes: u32,
    /// `routingConfig.routingMode`.
    pub routing_mode: RoutingMode,
}

/// How far dynamic routes of a network reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoutingMode {
    /// `REGIONAL`.
    #[default]
    Regional,
    /// `GLOBAL`.
    Global,
}

impl Network {
    /// A network names no other resource.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}
