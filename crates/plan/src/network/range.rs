//! Which address ranges a subnet may have, and which addresses of one may be used.
//!
//! Invariant: a range that passes [`check`] has a network address, a gateway, at least four usable
//! addresses and a broadcast address, and every packet to it is routable.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// The longest prefix a subnet may have: fewer than eight addresses leave too little.
pub const SUBNET_PREFIX_MAX: u8 = 29;
/// The shortest prefix a subnet may have.
pub const SUBNET_PREFIX_MIN: u8 = 4;
/// The longest prefix of a proxy-only subnet: 64 addresses.
pub const PROXY_ONLY_PREFIX_MAX: u8 = 26;

/// Addresses at the low end that belong to the network: its own and the gateway's.
const RESERVED_FIRST: u32 = 2;
/// Addresses at the high end that belong to the network: one for Google's future use, and broadcast.
const RESERVED_LAST: u32 = 2;

/// Ranges no subnet may touch, with what they are.
const EXCLUDED: [(Ipv4Addr, u8); 7] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(255, 255, 255, 255), 32),
    (Ipv4Addr::new(199, 36, 153, 4), 30),
    (Ipv4Addr::new(199, 36, 153, 8), 30),
];

/// Connections through Google's TCP forwarder (Identity-Aware Proxy) come from this range.
pub const TUNNEL_SOURCES: (Ipv4Addr, u8) = (Ipv4Addr::new(35, 235, 240, 0), 20);

/// A range of the constant's parts; the constants of this module are all valid.
fn constant(range: (Ipv4Addr, u8)) -> Ipv4Net {
    Ipv4Net::new_assert(range.0, range.1)
}

/// The range IAP's tunnels come from, `35.235.240.0/20`.
pub fn tunnel_sources() -> Ipv4Net {
    constant(TUNNEL_SOURCES)
}

/// Reads a range as Google does; the error is the sentence that follows the value in its message.
pub fn parse(text: &str) -> Result<Ipv4Net, &'static str> {
    text.parse().map_err(|_| "Must be a CIDR address range.")
}

/// Why `range` cannot be a subnet's, or nothing. The sentence ends Google's message.
pub fn check(range: Ipv4Net) -> Result<(), String> {
    if range.addr() != range.network() {
        return Err(format!(
            "Network range must be a network address; did you mean {}?",
            range.trunc()
        ));
    }
    if range.prefix_len() > SUBNET_PREFIX_MAX {
        return Err(format!("Must be a CIDR address range of at least /{SUBNET_PREFIX_MAX}."));
    }
    if range.prefix_len() < SUBNET_PREFIX_MIN {
        return Err(format!("Must be a CIDR address range of at most /{SUBNET_PREFIX_MIN}."));
    }
    let excluded = EXCLUDED.into_iter().map(constant).find(|excluded| overlap(*excluded, range));
    match excluded {
        Some(excluded) => Err(format!("Must not overlap the prohibited range {excluded}.")),
        None => Ok(()),
    }
}

/// Whether the two ranges have an address in common.
pub fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The gateway: the second address of the range.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(range.network().to_bits().saturating_add(1))
}

/// The addresses instances and forwarding rules may take, first and last; `None` when there are none.
pub fn usable(range: Ipv4Net) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let first = range.network().to_bits().checked_add(RESERVED_FIRST)?;
    let last = range.broadcast().to_bits().checked_sub(RESERVED_LAST)?;
    (first <= last).then(|| (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last)))
}

/// Whether `address` is in the range and not one of the four that belong to the network.
pub fn is_usable(range: Ipv4Net, address: Ipv4Addr) -> bool {
    usable(range).is_some_and(|(first, last)| first <= address && address <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_range_is_refused_with_the_reason() {
        for (text, reason) in [
            ("10.1.2.0/24", None),
            ("10.1.2.0/29", None),
            ("100.64.0.0/10", None),
            ("240.0.0.0/5", None),
            ("8.8.8.0/24", None),
            ("10.1.2.0/30", Some("at least /29")),
            ("10.1.2.3/24", Some("did you mean 10.1.2.0/24")),
            ("0.0.0.0/0", Some("at most /4")),
            ("127.0.0.0/16", Some("127.0.0.0/8")),
            ("169.254.0.0/24", Some("169.254.0.0/16")),
            ("224.0.0.0/24", Some("224.0.0.0/4")),
            ("255.255.255.0/24", Some("255.255.255.255/32")),
            ("199.36.153.0/24", Some("199.36.153.4/30")),
        ] {
            let range = parse(text).expect(text);
            let answer = check(range).err();
            match reason {
                None => assert_eq!(answer, None, "{text}"),
                Some(reason) => assert!(answer.unwrap_or_default().contains(reason), "{text}"),
            }
        }
    }

    #[test]
    fn what_is_no_range_is_not_read() {
        for text in ["", "banana", "10.1.2.0", "10.1.2.0/33", "10.1.2/24", "::/64", "10.1.2.0/24 "]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_first_two_and_last_two_addresses_are_reserved() {
        let range = parse("10.1.2.0/24").expect("a range");
        assert_eq!(gateway(range), Ipv4Addr::new(10, 1, 2, 1));
        for (last_byte, usable) in
            [(0, false), (1, false), (2, true), (253, true), (254, false), (255, false)]
        {
            assert_eq!(is_usable(range, Ipv4Addr::new(10, 1, 2, last_byte)), usable, "{last_byte}");
        }
    }
}
