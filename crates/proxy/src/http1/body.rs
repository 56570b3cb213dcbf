//! Where a message body ends: lengths and chunks, decoded strictly.
//!
//! A chunk's size is one to sixteen hexadecimal digits and CRLF; extensions, signs, prefixes and spaces
//! are refused, because parsers disagree about them. Between two HTTP/1.1 sides a chunked body travels as
//! it came (it has only one spelling left), so relaying it copies no byte.
//!
//! Invariant: the decoder never claims a byte that is not part of the body.

use super::head::{Scanned, Scanner};
use crate::fields::{Meaning, meaning};
use crate::limits::{FIELDS_MAX, TRAILER_BYTES_MAX};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use std::ops::Range;

/// How a message says where its body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    Empty,
    /// `Content-Length`, more than zero.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The end of the connection; responses only.
    UntilClose,
}

/// The body breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    Size { digits: u8, size: u64 },
    SizeLf { size: u64 },
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailers,
    Done,
}

/// What one step of decoding found at the front of the input.
#[derive(Debug)]
pub(crate) struct Step {
    /// Bytes of the input this step has used up.
    pub(crate) consumed: usize,
    /// Where in the input the bytes to pass on are; empty if none.
    pub(crate) data: Range<usize>,
}

/// Reads one body.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    scanner: Scanner,
    trailers: Option<HeaderMap>,
    /// Whether chunk framing is part of what is passed on.
    raw: bool,
    /// Whether the end of the framing was passed on too.
    end_passed: bool,
}

impl Decoder {
    /// A decoder for a body; `raw` keeps chunk framing in the data.
    pub(crate) fn new(framing: Framing, raw: bool) -> Decoder {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { digits: 0, size: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Decoder { state, scanner: Scanner::default(), trailers: None, raw, end_passed: false }
    }

    /// Whether the body is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the end of the connection is the end of the body.
    pub(crate) fn ends_at_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Whether the data already ended with the end of the framing.
    pub(crate) fn end_passed(&self) -> bool {
        self.end_passed
    }

    /// The stream has ended where the body ends with it.
    pub(crate) fn finish(&mut self) {
        self.state = State::Done;
    }

    /// Whether trailer fields are waiting to be taken.
    pub(crate) fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// The trailer fields, once, after the end.
    pub(crate) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    /// Decodes from the front of `input` up to the end of the first piece of data. A step that consumes
    /// nothing needs more input.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        match self.state {
            State::Done => Ok(Step { consumed: 0, data: 0..0 }),
            State::UntilClose => Ok(Step { consumed: input.len(), data: 0..input.len() }),
            State::Length(left) => {
                let count = clamp(left, input.len());
                let left = left - count as u64;
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                Ok(Step { consumed: count, data: 0..count })
            }
            _ if self.raw => self.raw_chunks(input),
            _ => self.next_chunk(input),
        }
    }

    /// Everything up to the trailer section, framing included; and the end too, if nothing is in it.
    fn raw_chunks(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let mut at = 0;
        while at < input.len() && self.state != State::Trailers {
            at += self.chunk_step(&input[at..])?.consumed;
        }
        let passed = at;
        if self.state == State::Trailers {
            match input.get(at..at + 2) {
                Some(b"\r\n") => {
                    self.state = State::Done;
                    self.end_passed = true;
                    return Ok(Step { consumed: at + 2, data: 0..at + 2 });
                }
                _ => at += self.trailer_step(&input[at..])?,
            }
        }
        Ok(Step { consumed: at, data: 0..passed })
    }

    fn next_chunk(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let mut at = 0;
        while at < input.len() {
            if self.state == State::Trailers {
                at += self.trailer_step(&input[at..])?;
                break;
            }
            let step = self.chunk_step(&input[at..])?;
            at += step.consumed;
            if !step.data.is_empty() {
                return Ok(Step { consumed: at, data: at - step.data.len()..at });
            }
        }
        Ok(Step { consumed: at, data: 0..0 })
    }

    /// One byte of framing, or all of the chunk's data there is.
    fn chunk_step(&mut self, input: &[u8]) -> Result<Step, Malformed> {
        let byte = input[0];
        self.state = match self.state {
            State::Chunk(left) => {
                let count = clamp(left, input.len());
                let left = left - count as u64;
                self.state = if left == 0 { State::ChunkCr } else { State::Chunk(left) };
                return Ok(Step { consumed: count, data: 0..count });
            }
            State::Size { digits, size } => match (byte as char).to_digit(16) {
                Some(_) if digits == 16 || size >> 59 != 0 => {
                    return Err(Malformed("chunk size overflow"));
                }
                Some(digit) => {
                    State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) }
                }
                None if byte == b'\r' && digits > 0 => State::SizeLf { size },
                None => return Err(Malformed("malformed chunk size")),
            },
            State::SizeLf { size } if byte == b'\n' => {
                if size == 0 {
                    State::Trailers
                } else {
                    State::Chunk(size)
                }
            }
            State::ChunkCr if byte == b'\r' => State::ChunkLf,
            State::ChunkLf if byte == b'\n' => State::Size { digits: 0, size: 0 },
            _ => return Err(Malformed("malformed chunk end")),
        };
        Ok(Step { consumed: 1, data: 0..0 })
    }

    /// The trailer section as a whole; nothing is consumed before its end is there.
    fn trailer_step(&mut self, input: &[u8]) -> Result<usize, Malformed> {
        match self.scanner.scan(input) {
            Scanned::BareLineEnd => Err(Malformed("bare line end in the trailers")),
            Scanned::Partial if input.len() > TRAILER_BYTES_MAX => {
                Err(Malformed("trailers too large"))
            }
            Scanned::Partial => Ok(0),
            Scanned::Complete(end) if end > TRAILER_BYTES_MAX => {
                Err(Malformed("trailers too large"))
            }
            Scanned::Complete(end) => {
                self.trailers = parse_trailers(&input[..end])?;
                self.state = State::Done;
                Ok(end)
            }
        }
    }
}

fn clamp(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

/// Trailer fields, without those that only a head may hold.
fn parse_trailers(section: &[u8]) -> Result<Option<HeaderMap>, Malformed> {
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(section, &mut room)
    else {
        return Err(Malformed("malformed trailers"));
    };
    let mut trailers = HeaderMap::new();
    for field in fields {
        match meaning(field.name.as_bytes()) {
            Meaning::Plain => {}
            Meaning::ContentLength | Meaning::TransferEncoding | Meaning::Host => {
                return Err(Malformed("framing or routing field in the trailers"));
            }
            _ => continue,
        }
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Malformed("malformed trailers"));
        };
        trailers.append(name, value);
    }
    Ok((!trailers.is_empty()).then_some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes `wire` in pieces of `step` bytes: the data passed on, bytes left over, and the trailers.
    fn decode(wire: &[u8], step: usize, raw: bool) -> Result<(Vec<u8>, usize, Decoder), Malformed> {
        let mut decoder = Decoder::new(Framing::Chunked, raw);
        let (mut passed, mut held, mut fed) = (Vec::new(), Vec::new(), 0);
        while !decoder.is_done() {
            let found = decoder.step(&held)?;
            passed.extend_from_slice(&held[found.data]);
            held.drain(..found.consumed);
            if found.consumed == 0 {
                if fed == wire.len() {
                    break;
                }
                let end = wire.len().min(fed + step);
                held.extend_from_slice(&wire[fed..end]);
                fed = end;
            }
        }
        Ok((passed, wire.len() - fed + held.len(), decoder))
    }

    #[test]
    fn a_chunked_body_is_read_however_it_is_cut() {
        let wire = b"5\r\nhello\r\n0A\r\n, chunked!\r\n0\r\n\r\nGET";
        for step in 1..wire.len() {
            let (data, left, decoder) = decode(wire, step, false).unwrap();
            assert!(decoder.is_done());
            assert_eq!(data, b"hello, chunked!");
            assert_eq!(left, 3);
            let (data, left, _) = decode(wire, step, true).unwrap();
            assert_eq!(left, 3);
            // An end that was cut in two is written by whoever relays; otherwise it is in the data.
            let whole = &wire[..wire.len() - 3];
            assert!(data == whole || data == whole[..whole.len() - 2], "{step}");
        }
    }

    #[test]
    fn trailers_are_read_and_framing_in_them_is_refused() {
        let wire = b"1\r\nx\r\n0\r\nGrpc-Status: 0\r\nconnection: y\r\n\r\n";
        for step in 1..wire.len() {
            for raw in [false, true] {
                let (_, left, mut decoder) = decode(wire, step, raw).unwrap();
                assert_eq!(left, 0);
                let trailers = decoder.take_trailers().unwrap();
                assert_eq!(trailers.len(), 1);
                assert_eq!(trailers["grpc-status"], "0");
            }
        }
        for field in ["content-length: 1", "Transfer-Encoding: chunked", "host: a", "a b: c", ": x"]
        {
            let wire = format!("0\r\n{field}\r\n\r\n");
            assert!(decode(wire.as_bytes(), 7, false).is_err(), "{field}");
        }
    }

    #[test]
    fn a_chunk_size_is_plain_digits() {
        for size in [
            "",
            " 5",
            "5 ",
            "+5",
            "-5",
            "0x5",
            "5;a=b",
            "5;",
            "5\t",
            "g",
            "_5",
            "ffffffffffffffff",
            "10000000000000000",
            "00000000000000005",
            "8000000000000000",
            "5,",
        ] {
            let wire = format!("{size}\r\nhello\r\n0\r\n\r\n");
            for raw in [false, true] {
                assert!(decode(wire.as_bytes(), 3, raw).is_err(), "{size}");
            }
        }
        for wire in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "0\r\n\n",
        ] {
            assert!(decode(wire.as_bytes(), 3, false).is_err(), "{wire}");
        }
    }

    proptest! {
        #[test]
        fn what_was_chunked_comes_out_whole(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..8),
            step in 1..64usize,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (data, left, decoder) = decode(&wire, step, false).unwrap();
            prop_assert!(decoder.is_done());
            prop_assert_eq!(left, 0);
            prop_assert_eq!(data, chunks.concat());
        }
    }
}
