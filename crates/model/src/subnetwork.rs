//! A subnet: an address range of a network in one region, for instances or for the proxies.

use crate::name::{Name, ResourceName};
use ipnet::Ipv4Net;

/// One subnet (Compute `Subnetwork`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnetwork {
    /// `projects/P/regions/R/subnetworks/S`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `network`.
    pub network: ResourceName,
    /// `ipCidrRange` as it was given, host bits included.
    pub range: Ipv4Net,
    /// `purpose`.
    pub purpose: Purpose,
    /// `role`, of a proxy-only subnet.
    pub role: Option<Role>,
    /// `secondaryIpRanges[]`: name and range.
    pub secondary_ranges: Vec<(Name, Ipv4Net)>,
    /// `privateIpGoogleAccess`.
    pub private_google_access: bool,
    /// `logConfig` as it was written, when it was written at all.
    pub log_config: Option<String>,
}

/// What a subnet is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// `PRIVATE`: instances and internal addresses.
    #[default]
    Private,
    /// `PRIVATE_RFC_1918`: the older word for `PRIVATE`.
    PrivateRfc1918,
    /// `REGIONAL_MANAGED_PROXY`: the proxies of a region's load balancers.
    RegionalManagedProxy,
    /// `INTERNAL_HTTPS_LOAD_BALANCER`: the older word for `REGIONAL_MANAGED_PROXY`.
    InternalHttpsLoadBalancer,
    /// `GLOBAL_MANAGED_PROXY`.
    GlobalManagedProxy,
    /// `PRIVATE_SERVICE_CONNECT`.
    PrivateServiceConnect,
    /// `PRIVATE_NAT`.
    PrivateNat,
    /// `PEER_MIGRATION`.
    PeerMigration,
}

impl Purpose {
    /// The word Google writes.
    pub fn as_str(self) -> &'static str {
        match self {
            Purpose::Private => "PRIVATE",
            Purpose::PrivateRfc1918 => "PRIVATE_RFC_1918",
            Purpose::RegionalManagedProxy => "REGIONAL_MANAGED_PROXY",
            Purpose::InternalHttpsLoadBalancer => "INTERNAL_HTTPS_LOAD_BALANCER",
            Purpose::GlobalManagedProxy => "GLOBAL_MANAGED_PROXY",
            Purpose::PrivateServiceConnect => "PRIVATE_SERVICE_CONNECT",
            Purpose::PrivateNat => "PRIVATE_NAT",
            Purpose::PeerMigration => "PEER_MIGRATION",
        }
    }

    /// The purpose Google writes as `word`.
    pub fn parse(word: &str) -> Option<Purpose> {
        [
            Purpose::Private,
            Purpose::PrivateRfc1918,
            Purpose::RegionalManagedProxy,
            Purpose::InternalHttpsLoadBalancer,
            Purpose::GlobalManagedProxy,
            Purpose::PrivateServiceConnect,
            Purpose::PrivateNat,
            Purpose::PeerMigration,
        ]
        .into_iter()
        .find(|purpose| purpose.as_str() == word)
    }

    /// Whether the subnet belongs to managed proxies, so that nothing else may use it.
    pub fn is_proxy_only(self) -> bool {
        matches!(
            self,
            Purpose::RegionalManagedProxy
                | Purpose::InternalHttpsLoadBalancer
                | Purpose::GlobalManagedProxy
        )
    }

    /// Whether instances, reserved addresses and internal forwarding rules may take addresses of it.
    pub fn takes_addresses(self) -> bool {
        matches!(self, Purpose::Private | Purpose::PrivateRfc1918)
    }
}

/// The part a proxy-only subnet plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `ACTIVE`: the proxies take their addresses here.
    Active,
    /// `BACKUP`: ready to become active.
    Backup,
}

impl Role {
    /// The word Google writes.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Active => "ACTIVE",
            Role::Backup => "BACKUP",
        }
    }
}

impl Subnetwork {
    /// The network.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        vec![("network".into(), self.network.clone())]
    }
}
