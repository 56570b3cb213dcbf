//! What is said to the kernel's netlink without a program or a library in between: messages,
//! attributes, and the kernel's verdict. Only as much as an instance's network takes.
//!
//! Invariant: an answer is read to its end before the next question is asked.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`, `NLM_F_APPEND`.
pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACKNOWLEDGE: u16 = 0x4;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`, which also carries acknowledgements.
const VERDICT: u16 = 2;
const NESTED: u16 = 0x8000;
const HEADER_BYTES: usize = 16;
const ANSWER_BYTES: usize = 8 * 1024;

/// Says something to one of netlink's families, in the network of the calling thread; an error is
/// the kernel's refusal.
pub(super) fn say(family: i32, messages: &[u8]) -> io::Result<()> {
    let domain = Domain::from(nix::libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(family)))?;
    socket.set_nonblocking(true)?;
    socket.send(messages)?;
    let mut answers = Vec::with_capacity(ANSWER_BYTES);
    let mut is_acknowledged = false;
    loop {
        answers.clear();
        match socket.recv(answers.spare_capacity_mut()) {
            // The kernel has answered everything by the time it has taken the messages.
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

/// One message: its family's own header, then attributes.
pub(super) fn message(kind: u16, flags: u16, header: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = attributes.concat();
    let length = HEADER_BYTES + header.len() + body.len();
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and sender are the kernel's to repeat.
    bytes.extend([0; 8]);
    bytes.extend(header);
    bytes.extend(body);
    bytes
}

pub(super) fn nested(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NESTED, &inner.concat())
}

pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), &[0]].concat())
}

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // The longest one here is a rule's list of expressions, some hundred bytes.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_say_their_length_without_the_padding() {
        assert_eq!(attribute(1, b"abc"), [&[7, 0, 1, 0], &b"abc\0"[..]].concat());
        assert_eq!(text(3, "cmp"), [&[8, 0, 3, 0], &b"cmp\0"[..]].concat());
    }

    #[test]
    fn a_message_says_its_length() {
        let message = message(6, REQUEST, &[2, 0, 0, 0], &[attribute(1, b"ab")]);
        assert_eq!(message.len(), 28);
        assert_eq!(message[..4], 28_u32.to_ne_bytes());
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
