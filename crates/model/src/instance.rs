//! A client VM: its interfaces, tags and metadata, and whether it is meant to run.

use crate::name::{Name, ResourceName};
use std::net::Ipv4Addr;

/// One VM (Compute `Instance`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `projects/P/zones/Z/instances/I`.
    pub name: ResourceName,
    /// The numeric id: unique for ever, since clients remember host keys by it.
    pub id: u64,
    /// `networkInterfaces[]`; the first is `nic0`.
    pub interfaces: Vec<NetworkInterface>,
    /// `tags.items[]`.
    pub tags: Vec<Name>,
    /// `metadata.items[]` in order; `ssh-keys` and `block-project-ssh-keys` among them.
    pub metadata: Vec<(Name, String)>,
    /// `serviceAccounts[].email`.
    pub service_accounts: Vec<Name>,
    /// `canIpForward`: whether packets with a foreign source address may leave it.
    pub can_ip_forward: bool,
    /// `deletionProtection`.
    pub deletion_protection: bool,
    /// `hostname`, when the client chose one.
    pub hostname: Option<Name>,
    /// Whether it is meant to run: true from insert and `start`, false from `stop`.
    pub running: bool,
    /// Counts up with every `reset` (and may with every `start`): a running instance of an earlier
    /// boot is started anew.
    pub boot: u64,
}

/// One entry of `networkInterfaces[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkInterface {
    /// `network`.
    pub network: ResourceName,
    /// `subnetwork`.
    pub subnetwork: ResourceName,
    /// `networkIP`: chosen by the client or taken from the subnet.
    pub address: Option<Ipv4Addr>,
    /// Whether `accessConfigs[]` asks for an external address.
    pub external: bool,
}

impl Instance {
    /// The networks and subnets of its interfaces.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let of_interface = |(index, interface): (usize, &NetworkInterface)| {
            let field = |name: &str| format!("networkInterfaces[{index}].{name}");
            [
                (field("network"), interface.network.clone()),
                (field("subnetwork"), interface.subnetwork.clone()),
            ]
        };
        self.interfaces.iter().enumerate().flat_map(of_interface).collect()
    }

    /// The value of a metadata item.
    pub fn metadata_value(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(name, _)| name.as_str() == key).map(|(_, value)| value.as_str())
    }
}
