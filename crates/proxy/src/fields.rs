//! Header fields, whoever holds them: the bytes of an HTTP/1.1 head or an HTTP/2 header map.
//!
//! Rewriting reads from [`Fields`] and writes to a [`Sink`], so one set of rules serves every protocol on
//! either side. Names leave in lower case.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use plan::decision::Headers;
use smallvec::SmallVec;

/// Read access to fields in their order.
pub(crate) trait Fields: Headers {
    /// Visits every field; names have any case.
    fn for_each<'a>(&'a self, visit: impl FnMut(&'a [u8], &'a [u8]));
}

/// Where fields are written.
pub(crate) trait Sink {
    /// Adds one field; the name may have any case and leaves in lower case.
    fn put(&mut self, name: &[u8], value: &[u8]);

    /// Adds a field of the balancer's own, whose name is in lower case already.
    fn put_own(&mut self, name: &'static str, value: &[u8]) {
        self.put(name.as_bytes(), value);
    }
}

/// The fields of an HTTP/1.1 head.
#[derive(Debug)]
pub(crate) struct RawFields<'a>(pub(crate) &'a [httparse::Header<'a>]);

impl Headers for RawFields<'_> {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    }

    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        for field in self.0 {
            if field.name.eq_ignore_ascii_case(name) {
                visit(field.value);
            }
        }
    }
}

impl Fields for RawFields<'_> {
    fn for_each<'a>(&'a self, mut visit: impl FnMut(&'a [u8], &'a [u8])) {
        for field in self.0 {
            visit(field.name.as_bytes(), field.value);
        }
    }
}

/// The fields of an HTTP/2 message.
#[derive(Debug)]
pub(crate) struct MapFields<'a>(pub(crate) &'a HeaderMap);

impl Headers for MapFields<'_> {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(HeaderValue::as_bytes)
    }

    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        for value in self.0.get_all(name) {
            visit(value.as_bytes());
        }
    }
}

impl Fields for MapFields<'_> {
    fn for_each<'a>(&'a self, mut visit: impl FnMut(&'a [u8], &'a [u8])) {
        for (name, value) in self.0 {
            visit(name.as_str().as_bytes(), value.as_bytes());
        }
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, name: &[u8], value: &[u8]) {
        let start = self.len();
        self.reserve(name.len() + value.len() + 4);
        self.extend_from_slice(name);
        self[start..].make_ascii_lowercase();
        self.extend_from_slice(b": ");
        self.extend_from_slice(value);
        self.extend_from_slice(b"\r\n");
    }

    fn put_own(&mut self, name: &'static str, value: &[u8]) {
        self.reserve(name.len() + value.len() + 4);
        self.extend_from_slice(name.as_bytes());
        self.extend_from_slice(b": ");
        self.extend_from_slice(value);
        self.extend_from_slice(b"\r\n");
    }
}

impl Sink for HeaderMap {
    fn put(&mut self, name: &[u8], value: &[u8]) {
        // Both were validated where they were parsed or compiled; what HTTP/2 could still not carry is
        // left out rather than sent in a changed form.
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            self.append(name, value);
        }
    }
}

/// Fields on their way from one side to the other while edits apply to them.
#[derive(Debug, Default)]
pub(crate) struct FieldList(pub(crate) Vec<(Vec<u8>, Vec<u8>)>);

impl FieldList {
    /// Removes every field of that name.
    pub(crate) fn remove(&mut self, name: &[u8]) {
        self.0.retain(|(other, _)| other != name);
    }
}

impl Sink for FieldList {
    fn put(&mut self, name: &[u8], value: &[u8]) {
        self.0.push((name.to_ascii_lowercase(), value.to_vec()));
    }
}

/// What a field means to the balancer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Nothing: it is passed on.
    Plain,
    /// Concerns one connection only, and is never passed on.
    HopByHop,
    Connection,
    ContentLength,
    Expect,
    Host,
    Te,
    Trace,
    TransferEncoding,
    Upgrade,
    Via,
    ForwardedFor,
    /// Written by the balancer alone: what a client claims is dropped.
    Ours,
}

impl Meaning {
    /// Whether a field speaks about one connection or one encoding of the body.
    pub(crate) fn concerns_framing(self) -> bool {
        matches!(
            self,
            Meaning::HopByHop
                | Meaning::Connection
                | Meaning::ContentLength
                | Meaning::TransferEncoding
                | Meaning::Te
                | Meaning::Upgrade
        )
    }
}

/// The meaning of a field name in any case.
#[inline]
pub(crate) fn meaning(name: &[u8]) -> Meaning {
    let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
    match name.len() {
        2 if is("te") => Meaning::Te,
        3 if is("via") => Meaning::Via,
        4 if is("host") => Meaning::Host,
        6 if is("expect") => Meaning::Expect,
        7 if is("upgrade") => Meaning::Upgrade,
        10 if is("connection") => Meaning::Connection,
        10 if is("keep-alive") => Meaning::HopByHop,
        11 if is("traceparent") => Meaning::Trace,
        14 if is("content-length") => Meaning::ContentLength,
        14 if is("http2-settings") => Meaning::HopByHop,
        15 if is("x-forwarded-for") => Meaning::ForwardedFor,
        16 if is("proxy-connection") => Meaning::HopByHop,
        17 if is("transfer-encoding") => Meaning::TransferEncoding,
        17 if is("x-forwarded-proto") => Meaning::Ours,
        21 if is("x-cloud-trace-context") => Meaning::Trace,
        21 if is("x-envoy-original-path") => Meaning::Ours,
        _ => Meaning::Plain,
    }
}

/// What the `Connection` fields of one message say.
#[derive(Debug, Default)]
pub(crate) struct ConnectionOptions<'a> {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    nominated: SmallVec<[&'a [u8]; 4]>,
}

impl<'a> ConnectionOptions<'a> {
    /// Takes one `Connection` field in.
    pub(crate) fn add(&mut self, value: &'a [u8]) {
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                self.nominated.push(token);
            }
        }
    }

    /// Whether the field of that name was declared to end here.
    pub(crate) fn nominates(&self, name: &[u8]) -> bool {
        self.nominated.iter().any(|token| token.eq_ignore_ascii_case(name))
    }

    /// Reads every `Connection` field of a message.
    pub(crate) fn of(fields: &'a impl Fields) -> ConnectionOptions<'a> {
        let mut options = ConnectionOptions::default();
        fields.for_each(|name, value| {
            if name.len() == 10 && name.eq_ignore_ascii_case(b"connection") {
                options.add(value);
            }
        });
        options
    }
}

/// Whether a comma-separated list holds `token`, in any case.
pub(crate) fn list_holds(value: &[u8], token: &str) -> bool {
    value
        .split(|byte| *byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Appends a number in decimal digits.
pub(crate) fn put_number(out: &mut Vec<u8>, number: u64) {
    put_decimal(number, |digits| out.extend_from_slice(digits));
}

/// Every number below a hundred in two digits.
const DECIMAL_PAIRS: [[u8; 2]; 100] = {
    const DIGITS: &[u8; 10] = b"0123456789";
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < pairs.len() {
        pairs[number] = [DIGITS[number / 10], DIGITS[number % 10]];
        number += 1;
    }
    pairs
};

/// Writes a number in decimal digits.
pub(crate) fn put_decimal(number: u64, write: impl FnOnce(&[u8])) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    while rest >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&DECIMAL_PAIRS[(rest % 100) as usize]);
        rest /= 100;
    }
    if rest > 0 || number == 0 {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
    }
    write(&digits[at..]);
}
