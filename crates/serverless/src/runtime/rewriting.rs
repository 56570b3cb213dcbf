//! Two rules in an instance's network that make the metadata server answer on port 80 without
//! taking it: packets to its address and port 80 go to another port, and answers from there say
//! they come from 80.
//!
//! A listener on `169.254.169.254:80` would keep the container's own program from listening on
//! port 80 of every address. The rules look at each packet by itself and track no connection, so
//! that requests to the container pay next to nothing for them. They are spoken to the kernel in
//! its own language, because starting `nft` takes longer than starting a container.
//!
//! Invariant: all or nothing; the kernel takes the whole batch or refuses it.

use std::io;
use std::net::Ipv4Addr;

use socket2::{Domain, Protocol, Socket, Type};

/// `NETLINK_NETFILTER`.
const NETFILTER: i32 = 12;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`, `NLM_F_APPEND`.
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`, which also carries acknowledgements.
const VERDICT: u16 = 2;
const NESTED: u16 = 0x8000;
const HEADER_BYTES: usize = 16;
const ANSWER_BYTES: usize = 8 * 1024;
/// `NF_INET_LOCAL_OUT`.
const ON_OUTPUT: u32 = 3;
/// The priority called `raw`: before anything that would track connections.
const PRIORITY_RAW: i32 = -300;
const TABLE: &str = "metadata";
const CHAIN: &str = "output";
/// `NFT_REG_1`.
const REGISTER: u32 = 1;
/// `NFT_META_L4PROTO`.
const LAYER_FOUR: u32 = 16;
const TCP: u8 = 6;
/// Where a TCP header has its checksum.
const TCP_CHECKSUM_AT: u32 = 16;

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

/// In the network of the calling thread, makes connections to `address` and `port` arrive at
/// `behind`.
pub(crate) fn rewrite_port(address: Ipv4Addr, port: u16, behind: u16) -> io::Result<()> {
    let socket = Socket::new(
        Domain::from(nix::libc::AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(NETFILTER)),
    )?;
    socket.set_nonblocking(true)?;
    socket.send(&batch(address, port, behind))?;
    let mut answers = Vec::with_capacity(ANSWER_BYTES);
    let mut is_acknowledged = false;
    loop {
        answers.clear();
        match socket.recv(answers.spare_capacity_mut()) {
            // The kernel has answered everything by the time it has taken the batch.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
            Ok(count) => {
                // SAFETY: the kernel has just written this many bytes there.
                #[allow(unsafe_code)]
                unsafe {
                    answers.set_len(count);
                }
                is_acknowledged |= verdict(&answers)?;
            }
        }
    }
    match is_acknowledged {
        true => Ok(()),
        false => Err(io::Error::other("the kernel did not answer")),
    }
}

/// Whether the messages acknowledge; the error is the first refusal among them.
fn verdict(mut messages: &[u8]) -> io::Result<bool> {
    let mut is_acknowledged = false;
    while let Some((head, _)) = messages.split_first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let body = messages.get(HEADER_BYTES..length).unwrap_or_default();
        if let (VERDICT, Some(code)) = (kind, body.first_chunk::<4>()) {
            match i32::from_ne_bytes(*code) {
                0 => is_acknowledged = true,
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
        messages = messages.get(length.max(HEADER_BYTES)..).unwrap_or_default();
    }
    Ok(is_acknowledged)
}

fn batch(address: Ipv4Addr, port: u16, behind: u16) -> Vec<u8> {
    let table = text(1, TABLE);
    let hook = nested(4, &[number(1, ON_OUTPUT), number(2, PRIORITY_RAW.cast_unsigned())]);
    let chain = [text(1, TABLE), text(3, CHAIN), hook, text(7, "filter")];
    let outward = rule(&[(DESTINATION, &address.octets())], DESTINATION_PORT, port, behind);
    let back = rule(&[(SOURCE, &address.octets())], SOURCE_PORT, behind, port);
    [
        message(BATCH_BEGIN, REQUEST, SUBSYSTEM, &[]),
        message(NEW_TABLE, REQUEST | CREATE, 0, &[table]),
        message(NEW_CHAIN, REQUEST | CREATE, 0, &chain),
        message(NEW_RULE, REQUEST | CREATE | APPEND, 0, &outward),
        message(NEW_RULE, REQUEST | CREATE | APPEND | ACKNOWLEDGE, 0, &back),
        message(BATCH_END, REQUEST, SUBSYSTEM, &[]),
    ]
    .concat()
}

/// TCP packets with these fields and this port get the other port.
fn rule(fields: &[(Field, &[u8])], port_at: Field, from: u16, to: u16) -> [Vec<u8>; 3] {
    let mut steps = Vec::new();
    for (field, value) in fields {
        steps.extend([load(*field), equals(value)]);
    }
    steps.push(expression("meta", &[number(1, REGISTER), number(2, LAYER_FOUR)]));
    steps.extend([equals(&[TCP]), load(port_at), equals(&from.to_be_bytes())]);
    let value = nested(2, &[attribute(1, &to.to_be_bytes())]);
    steps.push(expression("immediate", &[number(1, REGISTER), value]));
    steps.push(store(port_at));
    [text(1, TABLE), text(2, CHAIN), nested(4, &steps)]
}

fn load(field: Field) -> Vec<u8> {
    let [header, at, bytes] = place(field);
    expression("payload", &[number(1, REGISTER), header, at, bytes])
}

/// Writes the register into the packet and keeps the checksum right.
fn store(field: Field) -> Vec<u8> {
    let [header, at, bytes] = place(field);
    let checksum = [number(6, 1), number(7, TCP_CHECKSUM_AT), number(8, 0)].concat();
    expression("payload", &[number(5, REGISTER), header, at, bytes, checksum])
}

fn place(field: Field) -> [Vec<u8>; 3] {
    [number(2, field.header), number(3, field.at), number(4, field.bytes)]
}

/// Goes on if the register holds this.
fn equals(value: &[u8]) -> Vec<u8> {
    let value = nested(3, &[attribute(1, value)]);
    expression("cmp", &[number(1, REGISTER), number(2, 0), value])
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(1, &[text(1, name), nested(2, data)])
}

fn nested(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &inner.concat())
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

/// Numbers of nftables are in network order.
fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // The longest one here is a rule's list of expressions, some hundred bytes.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, flags: u16, resource: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let family = match kind {
        BATCH_BEGIN | BATCH_END => nix::libc::AF_UNSPEC,
        _ => nix::libc::AF_INET,
    };
    let body = attributes.concat();
    let length = u32::try_from(HEADER_BYTES + 4 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and sender are the kernel's to repeat.
    bytes.extend([0; 8]);
    bytes.extend([u8::try_from(family).unwrap_or(0), 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_length_without_the_padding() {
        assert_eq!(attribute(1, b"abc"), [&[7, 0, 1, 0], &b"abc\0"[..]].concat());
        assert_eq!(text(3, "cmp"), [&[8, 0, 3, 0], &b"cmp\0"[..]].concat());
        assert_eq!(number(2, 80), [8, 0, 2, 0, 0, 0, 0, 80]);
    }

    #[test]
    fn a_batch_is_messages_one_behind_the_other() {
        let batch = batch(Ipv4Addr::new(169, 254, 169, 254), 80, 65169);
        let (mut rest, mut kinds) = (&batch[..], Vec::new());
        while let Some((head, _)) = rest.split_first_chunk::<HEADER_BYTES>() {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            kinds.push(u16::from_ne_bytes([head[4], head[5]]));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [BATCH_BEGIN, NEW_TABLE, NEW_CHAIN, NEW_RULE, NEW_RULE, BATCH_END]);
        assert!(rest.is_empty());
    }

    #[test]
    fn the_kernels_verdict_is_read_to_the_first_refusal() {
        let said = |code: i32| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(VERDICT.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert!(verdict(&said(0)).unwrap());
        assert!(!verdict(&[]).unwrap());
        assert!(!verdict(&[1, 2, 3]).unwrap());
        let refused = verdict(&[said(0), said(-1)].concat()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
    }
}
