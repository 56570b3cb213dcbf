//! One message read exactly as the engine reads it, for whoever compares it with another reader.
//!
//! Differential tests and fuzzers hold hyper beside this: what is accepted here must mean the same there.

use crate::http1::body::{Decoder, Framing};
use crate::http1::head::{Scanned, Scanner, field_room, parse_request, parse_response};
use http::HeaderMap;

/// A message that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Method, target in origin form and authority of a request, or the status of a response.
    pub start: Vec<String>,
    /// The fields with names in lower case, sorted.
    pub fields: Vec<(String, Vec<u8>)>,
    /// The decoded body.
    pub body: Vec<u8>,
    /// The trailer fields that are passed on.
    pub trailers: HeaderMap,
    /// Bytes that follow the message.
    pub left: usize,
}

/// What came of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The bytes begin with a whole message.
    Complete(Box<Message>),
    /// More bytes are needed.
    Partial,
    /// The bytes are refused.
    Refused,
}

/// Reads a request from the front of `bytes`.
pub fn request(bytes: &[u8]) -> Reading {
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    read(bytes, |head| {
        let mut room = field_room();
        let head = parse_request(head, &mut room, false).ok()?;
        let start = [head.method, head.target, head.authority].map(str::to_owned).to_vec();
        Some((start, sorted(head.fields), head.facts.framing))
    })
}

/// Reads a response to a GET, or to a HEAD, from the front of `bytes`; an end of the connection is not part
/// of them.
pub fn response(bytes: &[u8], to_head: bool) -> Reading {
    read(bytes, |head| {
        let mut room = field_room();
        let head = parse_response(head, &mut room, to_head).ok()?;
        Some((vec![head.status.to_string()], sorted(head.fields), head.facts.framing))
    })
}

type Head = (Vec<String>, Vec<(String, Vec<u8>)>, Framing);

fn sorted(fields: &[httparse::Header<'_>]) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> =
        fields.iter().map(|f| (f.name.to_ascii_lowercase(), f.value.to_vec())).collect();
    fields.sort();
    fields
}

fn read(bytes: &[u8], parse: impl FnOnce(&[u8]) -> Option<Head>) -> Reading {
    let length = match Scanner::default().scan(bytes) {
        Scanned::Complete(length) => length,
        Scanned::Partial => return Reading::Partial,
        Scanned::BareLineEnd => return Reading::Refused,
    };
    let Some((start, fields, framing)) = parse(&bytes[..length]) else { return Reading::Refused };
    let rest = &bytes[length..];
    let Some(plain) = decode(rest, framing, false) else { return Reading::Refused };
    let Some(framed) = decode(rest, framing, true) else { return Reading::Refused };
    // However the body is passed on, it ends at the same byte.
    assert_eq!(plain.left, framed.left);
    assert!(rest.starts_with(&framed.data));
    if !plain.done {
        return Reading::Partial;
    }
    let (body, left, trailers) = (plain.data, plain.left, plain.trailers);
    Reading::Complete(Box::new(Message { start, fields, body, trailers, left }))
}

struct Decoded {
    data: Vec<u8>,
    trailers: HeaderMap,
    left: usize,
    done: bool,
}

fn decode(mut rest: &[u8], framing: Framing, raw: bool) -> Option<Decoded> {
    let mut decoder = Decoder::new(framing, raw);
    let mut data = Vec::new();
    while !decoder.is_done() && !rest.is_empty() {
        let step = decoder.step(rest).ok()?;
        data.extend_from_slice(&rest[step.data]);
        rest = &rest[step.consumed..];
        if step.consumed == 0 {
            break;
        }
    }
    let done = decoder.is_done() || decoder.ends_at_close();
    let trailers = decoder.take_trailers().unwrap_or_default();
    Some(Decoded { data, trailers, left: rest.len(), done })
}
