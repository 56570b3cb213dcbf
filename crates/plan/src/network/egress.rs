//! Where what a Cloud Run instance sends goes: into a VPC network, to the internet, or nowhere.
//!
//! Invariant: without access to a VPC network no private address is reached, and no special one ever.

use super::{InstanceFirewall, NetworkPlan, Packet, SubnetPlan, Verdict};
use ipnet::Ipv4Net;
use model::Name;
use model::run::VpcAccess;
use std::net::Ipv4Addr;

/// The ranges that `private-ranges-only` sends into the VPC, as Google lists them.
const PRIVATE: [(Ipv4Addr, u8); 12] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(199, 36, 153, 4), 30),
    (Ipv4Addr::new(199, 36, 153, 8), 30),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Addresses that are nobody's elsewhere: this host, this link, groups, everybody.
const SPECIAL: [(Ipv4Addr, u8); 5] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(255, 255, 255, 255), 32),
];

/// The way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the VPC network the revision has access to.
    Network,
    /// To the internet, as this host reaches it.
    Internet,
    /// It is refused: a special address, or a private one without a VPC network it could be in.
    Nowhere,
}

/// The way to an address for a revision with this access.
pub fn way(access: Option<&VpcAccess>, destination: Ipv4Addr) -> Way {
    if is_in(&SPECIAL, destination) {
        return Way::Nowhere;
    }
    match access {
        Some(access) if access.all_traffic || is_private(destination) => Way::Network,
        None if is_private(destination) => Way::Nowhere,
        _ => Way::Internet,
    }
}

/// Whether an address is one of Google's private ranges.
pub fn is_private(address: Ipv4Addr) -> bool {
    is_in(&PRIVATE, address)
}

fn is_in(ranges: &[(Ipv4Addr, u8)], address: Ipv4Addr) -> bool {
    let mut ranges = ranges.iter().map(|(base, prefix)| Ipv4Net::new_assert(*base, *prefix));
    ranges.any(|range| range.contains(&address))
}

impl NetworkPlan {
    /// The subnet instances of a revision in `region` get their addresses from: the one that was
    /// named, else the one with the network's own name, else the first that has addresses to give.
    pub fn subnet_for(&self, access: &VpcAccess, region: &str) -> Option<&SubnetPlan> {
        let of_region = |subnet: &&SubnetPlan| {
            subnet.name.region() == Some(region) && subnet.purpose.takes_addresses()
        };
        let mut candidates = self.subnets.iter().filter(of_region);
        match &access.subnetwork {
            Some(named) => candidates.find(|subnet| subnet.name == *named),
            None => {
                let own = candidates.clone().find(|subnet| subnet.name.name == self.name.name);
                own.or_else(|| candidates.next())
            }
        }
    }

    /// What the network's egress rules say about a connection from a Cloud Run instance with these
    /// tags and this service account. What the receiver's rules say is for the receiver to find.
    pub fn egress_verdict(
        &self,
        tags: &[Name],
        service_account: Option<&Name>,
        packet: &Packet,
    ) -> Verdict {
        let accounts: Vec<Name> = service_account.into_iter().cloned().collect();
        let included = self.egress.iter().filter(|rule| rule.targets.include(tags, &accounts));
        let egress = included.map(|rule| rule.rule.clone()).collect();
        InstanceFirewall { ingress: Vec::new(), egress }.egress(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(all_traffic: bool) -> VpcAccess {
        VpcAccess { network: None, subnetwork: None, tags: Vec::new(), all_traffic }
    }

    #[test]
    fn the_setting_decides_where_an_address_leads() {
        let (all, private) = (access(true), access(false));
        for (address, [without, private_only, all_traffic]) in [
            ("8.8.8.8", [Way::Internet, Way::Internet, Way::Network]),
            ("10.1.2.3", [Way::Nowhere, Way::Network, Way::Network]),
            ("172.31.0.1", [Way::Nowhere, Way::Network, Way::Network]),
            ("172.32.0.1", [Way::Internet, Way::Internet, Way::Network]),
            ("192.168.1.1", [Way::Nowhere, Way::Network, Way::Network]),
            ("100.64.0.1", [Way::Nowhere, Way::Network, Way::Network]),
            ("199.36.153.10", [Way::Nowhere, Way::Network, Way::Network]),
            ("127.0.0.1", [Way::Nowhere; 3]),
            ("169.254.169.254", [Way::Nowhere; 3]),
            ("0.0.0.0", [Way::Nowhere; 3]),
            ("224.0.0.1", [Way::Nowhere; 3]),
            ("255.255.255.255", [Way::Nowhere; 3]),
        ] {
            let address: Ipv4Addr = address.parse().expect(address);
            assert_eq!(way(None, address), without, "{address} without");
            assert_eq!(way(Some(&private), address), private_only, "{address} private ranges");
            assert_eq!(way(Some(&all), address), all_traffic, "{address} all traffic");
        }
    }
}
