//! A VPC firewall rule: who may send what to whom, within one network.

use crate::name::{Name, ResourceName};
use ipnet::IpNet;
use std::ops::RangeInclusive;

/// The priority of a rule that does not say.
pub const PRIORITY_DEFAULT: u32 = 1000;
/// The largest priority, which is also that of the implied rules.
pub const PRIORITY_MAX: u32 = 65_535;

/// One firewall rule (Compute `Firewall`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firewall {
    /// `projects/P/global/firewalls/F`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `network`.
    pub network: ResourceName,
    /// `priority`; the lower number is asked first.
    pub priority: u32,
    /// `direction`.
    pub direction: Direction,
    /// `allowed[]`. Exactly one of `allowed` and `denied` has entries.
    pub allowed: Vec<Traffic>,
    /// `denied[]`.
    pub denied: Vec<Traffic>,
    /// `sourceRanges[]`.
    pub source_ranges: Vec<IpNet>,
    /// `destinationRanges[]`.
    pub destination_ranges: Vec<IpNet>,
    /// `sourceTags[]`.
    pub source_tags: Vec<Name>,
    /// `targetTags[]`; with no target at all the rule is for every instance of the network.
    pub target_tags: Vec<Name>,
    /// `sourceServiceAccounts[]`, by e-mail address.
    pub source_service_accounts: Vec<Name>,
    /// `targetServiceAccounts[]`, by e-mail address.
    pub target_service_accounts: Vec<Name>,
    /// `disabled`: kept, and not in force.
    pub disabled: bool,
}

/// The direction of a connection's first packet, seen from the instance the rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// `INGRESS`.
    #[default]
    Ingress,
    /// `EGRESS`.
    Egress,
}

/// One entry of `allowed[]` or `denied[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// `IPProtocol`.
    pub protocol: Protocol,
    /// `ports[]`; empty for every port. Only protocols with ports may have some.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// An IP protocol, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `all`.
    All,
    /// The protocol of that number.
    Number(u8),
}

/// Protocols that firewall rules may call by name.
const PROTOCOL_NAMES: [(&str, u8); 7] =
    [("icmp", 1), ("ipip", 4), ("tcp", 6), ("udp", 17), ("esp", 50), ("ah", 51), ("sctp", 132)];

impl Protocol {
    /// ICMP.
    pub const ICMP: Protocol = Protocol::Number(1);
    /// TCP.
    pub const TCP: Protocol = Protocol::Number(6);
    /// UDP.
    pub const UDP: Protocol = Protocol::Number(17);
    /// SCTP.
    pub const SCTP: Protocol = Protocol::Number(132);

    /// Reads Google's words: a name in any case, a number, or `all`.
    pub fn parse(word: &str) -> Option<Protocol> {
        if word.eq_ignore_ascii_case("all") {
            return Some(Protocol::All);
        }
        let by_name = PROTOCOL_NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
        by_name.map(|(_, number)| *number).or_else(|| word.parse().ok()).map(Protocol::Number)
    }

    /// Whether packets of the protocol carry ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Protocol::Number(number) = self else { return out.write_str("all") };
        match PROTOCOL_NAMES.iter().find(|(_, known)| known == number) {
            Some((name, _)) => out.write_str(name),
            None => write!(out, "{number}"),
        }
    }
}

/// Reads an entry of `ports[]`: a number, or two joined by a hyphen, the lower first.
pub fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(first..=last)
}

impl Firewall {
    /// The network.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        vec![("network".into(), self.network.clone())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_read_as_google_writes_them() {
        for (word, protocol) in [
            ("tcp", Some(Protocol::TCP)),
            ("TCP", Some(Protocol::TCP)),
            ("47", Some(Protocol::Number(47))),
            ("all", Some(Protocol::All)),
            ("256", None),
            ("gopher", None),
        ] {
            assert_eq!(Protocol::parse(word), protocol, "{word}");
        }
    }

    #[test]
    fn a_port_entry_is_a_port_or_a_rising_range() {
        for (text, ports) in [
            ("22", Some(22..=22)),
            ("80-90", Some(80..=90)),
            ("90-80", None),
            ("65536", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(parse_ports(text), ports, "{text}");
        }
    }
}
