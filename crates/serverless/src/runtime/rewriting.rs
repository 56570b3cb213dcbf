//! The few rules in an instance's network that lead packets to sockets of ours: questions to the
//! metadata server's address, without taking its ports from the container, and whatever is sent
//! beyond the instance.
//!
//! A listener on `169.254.169.254:80` would keep the container's own program from listening on
//! port 80 of every address, so packets to that port go to another, and answers from there say
//! they come from 80. Every address there is counts as one of this network; connections to those
//! that are not are handed to one listener, which finds out from the socket where they wanted to
//! go. The rules look at each packet by itself and track no connection, so that requests to the
//! container pay next to nothing for them. They are spoken to the kernel in its own language,
//! because starting `nft` takes longer than starting a container.
//!
//! Invariant: all or nothing; the kernel takes a whole batch or refuses it.

use std::io;
use std::net::Ipv4Addr;

use super::netlink::{ACKNOWLEDGE, APPEND, CREATE, REQUEST, attribute, message, nested, say, text};

/// `NETLINK_ROUTE`, `NETLINK_NETFILTER`.
const ROUTE: i32 = 0;
const NETFILTER: i32 = 12;
/// `RTM_NEWROUTE`, and the kernel's words for a route of the local table.
const NEW_ROUTE: u16 = 24;
const LOCAL_TABLE: u8 = 255;
const SCOPE_HOST: u8 = 254;
const TYPE_LOCAL: u8 = 2;
/// `RTPROT_STATIC`.
const BY_HAND: u8 = 4;
const LOOPBACK_INDEX: u32 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const TABLE: &str = "tidegate";
/// `NFT_REG_1`.
const REGISTER: u32 = 1;
/// `NFT_META_L4PROTO`.
const LAYER_FOUR: u32 = 16;
/// `NFT_CMP_EQ`, `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// Where rules are looked at: name, hook and priority.
struct Chain(&'static str, u32, i32);

/// `NF_INET_LOCAL_OUT` at the priority called `raw`.
const OUTPUT: Chain = Chain("output", 3, -300);
/// `NF_INET_PRE_ROUTING` at the priority called `mangle`.
const ARRIVING: Chain = Chain("arriving", 0, -150);

/// One field of a packet.
#[derive(Clone, Copy)]
struct Field {
    /// `NFT_PAYLOAD_NETWORK_HEADER` or `NFT_PAYLOAD_TRANSPORT_HEADER`.
    header: u32,
    at: u32,
    bytes: u32,
}

const SOURCE: Field = Field { header: 1, at: 12, bytes: 4 };
const DESTINATION: Field = Field { header: 1, at: 16, bytes: 4 };
const SOURCE_PORT: Field = Field { header: 2, at: 0, bytes: 2 };
const DESTINATION_PORT: Field = Field { header: 2, at: 2, bytes: 2 };

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }

    /// Where its header has the checksum.
    fn checksum_at(self) -> u32 {
        match self {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        }
    }
}

/// Packets of a protocol to a port of an address, which is really served on another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rewriting {
    pub(crate) transport: Transport,
    pub(crate) port: u16,
    pub(crate) behind: u16,
}

/// In the network of the calling thread, makes packets to these ports of `address` arrive behind
/// them; with `outward`, connections to foreign addresses arrive at that port.
pub(crate) fn install(
    address: Ipv4Addr,
    rewritings: &[Rewriting],
    outward: Option<u16>,
) -> io::Result<()> {
    say(NETFILTER, &batch(address, rewritings, outward))
}

/// In the network of the calling thread, makes every address one of its own; what is sent to
/// foreign ones comes from `source`.
pub(crate) fn own_every_address(source: Ipv4Addr) -> io::Result<()> {
    let family = u8::try_from(nix::libc::AF_INET).unwrap_or(0);
    let header = [family, 0, 0, 0, LOCAL_TABLE, BY_HAND, SCOPE_HOST, TYPE_LOCAL, 0, 0, 0, 0];
    let device = attribute(4, &LOOPBACK_INDEX.to_ne_bytes());
    let flags = REQUEST | CREATE | ACKNOWLEDGE;
    say(ROUTE, &message(NEW_ROUTE, flags, &header, &[device, attribute(7, &source.octets())]))
}

fn batch(address: Ipv4Addr, rewritings: &[Rewriting], outward: Option<u16>) -> Vec<u8> {
    let mut messages = vec![
        message(BATCH_BEGIN, REQUEST, &header(0, SUBSYSTEM), &[]),
        message(NEW_TABLE, REQUEST | CREATE, &of_table(), &[text(1, TABLE)]),
        chain(&OUTPUT),
        chain(&ARRIVING),
    ];
    if let Some(port) = outward {
        messages.push(new_rule(&ARRIVING, &handed_over(port)));
    }
    let address = address.octets();
    for Rewriting { transport, port, behind } in rewritings {
        let there =
            rewritten(*transport, (DESTINATION, &address), DESTINATION_PORT, *port, *behind);
        let back = rewritten(*transport, (SOURCE, &address), SOURCE_PORT, *behind, *port);
        messages.extend([new_rule(&OUTPUT, &there), new_rule(&OUTPUT, &back)]);
    }
    messages.push(message(BATCH_END, REQUEST, &header(0, SUBSYSTEM), &[]));
    messages.concat()
}

fn chain(Chain(name, hook, priority): &Chain) -> Vec<u8> {
    let hook = nested(4, &[number(1, *hook), number(2, priority.cast_unsigned())]);
    let attributes = [text(1, TABLE), text(3, name), hook, text(7, "filter")];
    message(NEW_CHAIN, REQUEST | CREATE, &of_table(), &attributes)
}

fn new_rule(chain: &Chain, steps: &[Vec<u8>]) -> Vec<u8> {
    let attributes = [text(1, TABLE), text(2, chain.0), nested(4, steps)];
    message(NEW_RULE, REQUEST | CREATE | APPEND | ACKNOWLEDGE, &of_table(), &attributes)
}

/// Connections to addresses that are not the instance's own go to a listener, as they are.
fn handed_over(port: u16) -> Vec<Vec<u8>> {
    let first = |bytes| Field { bytes, ..DESTINATION };
    let handed = [number(1, family_number()), number(3, REGISTER)];
    vec![
        // What comes most often goes on first: requests to the container.
        load(first(2)),
        compared(UNEQUAL, &[169, 254]),
        load(first(1)),
        compared(UNEQUAL, &[127]),
        layer_four(),
        compared(EQUAL, &[Transport::Tcp.number()]),
        set(port),
        expression("tproxy", &handed),
    ]
}

/// Packets of the protocol with this address and port get the other port.
fn rewritten(
    transport: Transport,
    (address_at, address): (Field, &[u8]),
    port_at: Field,
    from: u16,
    to: u16,
) -> Vec<Vec<u8>> {
    vec![
        load(address_at),
        compared(EQUAL, address),
        layer_four(),
        compared(EQUAL, &[transport.number()]),
        load(port_at),
        compared(EQUAL, &from.to_be_bytes()),
        set(to),
        store(port_at, transport.checksum_at()),
    ]
}

fn load(field: Field) -> Vec<u8> {
    let [header, at, bytes] = place(field);
    expression("payload", &[number(1, REGISTER), header, at, bytes])
}

fn layer_four() -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, LAYER_FOUR)])
}

fn set(port: u16) -> Vec<u8> {
    let value = nested(2, &[attribute(1, &port.to_be_bytes())]);
    expression("immediate", &[number(1, REGISTER), value])
}

/// Writes the register into the packet and keeps the checksum right.
fn store(field: Field, checksum_at: u32) -> Vec<u8> {
    let [header, at, bytes] = place(field);
    let checksum = [number(6, 1), number(7, checksum_at), number(8, 0)].concat();
    expression("payload", &[number(5, REGISTER), header, at, bytes, checksum])
}

fn place(field: Field) -> [Vec<u8>; 3] {
    [number(2, field.header), number(3, field.at), number(4, field.bytes)]
}

/// Goes on if the register compares so with this.
fn compared(how: u32, value: &[u8]) -> Vec<u8> {
    let value = nested(3, &[attribute(1, value)]);
    expression("cmp", &[number(1, REGISTER), number(2, how), value])
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

/// Numbers of nftables are in network order.
fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn of_table() -> [u8; 4] {
    header(nix::libc::AF_INET, 0)
}

fn family_number() -> u32 {
    nix::libc::AF_INET.cast_unsigned()
}

fn header(family: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [u8::try_from(family).unwrap_or(0), 0, high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_messages_one_behind_the_other() {
        let rewriting = Rewriting { transport: Transport::Tcp, port: 80, behind: 65169 };
        let batch = batch(Ipv4Addr::new(169, 254, 169, 254), &[rewriting], Some(65170));
        let (mut rest, mut kinds) = (&batch[..], Vec::new());
        while let Some((head, _)) = rest.split_first_chunk::<16>() {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            kinds.push(u16::from_ne_bytes([head[4], head[5]]));
            rest = &rest[length..];
        }
        assert_eq!(
            kinds,
            [BATCH_BEGIN, NEW_TABLE, NEW_CHAIN, NEW_CHAIN, NEW_RULE, NEW_RULE, NEW_RULE, BATCH_END]
        );
        assert!(rest.is_empty());
    }
}
