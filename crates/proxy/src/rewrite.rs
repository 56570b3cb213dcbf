//! The header work of the balancer: what is dropped, what is added, and the edits of the URL map.
//!
//! The same rules serve HTTP/1.1 and HTTP/2 on either side. What concerns one connection only never
//! passes; what the balancer states about a request cannot be claimed by a client.

use crate::fields::{
    ConnectionOptions, FieldList, Fields, Meaning, Sink, list_holds, meaning, put_decimal,
};
use crate::peer::Peer;
use plan::decision::{CorsPolicy, HeaderEdit, HeaderTemplate, TemplatePart};
use smallvec::SmallVec;

/// How the balancer calls itself in `Via`.
pub(crate) const VIA: &[u8] = b"1.1 google";

/// Edits in the order in which they apply; none that changes nothing.
pub(crate) type Edits<'p> = SmallVec<[&'p HeaderEdit; 5]>;

/// Those of the edits that change something.
pub(crate) fn edits<'p>(edits: impl Iterator<Item = &'p HeaderEdit>) -> Edits<'p> {
    let mut found = Edits::new();
    for edit in edits {
        if !edit.is_empty() {
            found.push(edit);
        }
    }
    found
}

/// Ids of one request in Google's and in the W3C's trace headers, and in what is logged of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    trace: [u8; 32],
    span_text: [u8; 16],
    span: u64,
}

impl Trace {
    pub(crate) fn new(trace: u128, span: u64) -> Trace {
        let (mut text, mut span_text) = ([0; 32], [0; 16]);
        put_hexadecimal(&mut text, trace);
        put_hexadecimal(&mut span_text, u128::from(span));
        Trace { trace: text, span_text, span }
    }

    /// The trace's id in hexadecimal digits.
    pub(crate) fn id(&self) -> &[u8; 32] {
        &self.trace
    }

    /// The span's id in hexadecimal digits.
    pub(crate) fn span_id(&self) -> &[u8; 16] {
        &self.span_text
    }
}

/// The trace a client's fields name, or else a fresh one.
pub(crate) fn trace_of(fields: &impl Fields, fresh: impl FnOnce() -> Trace) -> Trace {
    (fields.first("traceparent").and_then(parse_traceparent))
        .or_else(|| fields.first("x-cloud-trace-context").and_then(parse_cloud_trace))
        .unwrap_or_else(fresh)
}

/// What is added to a request on its way to an instance.
#[derive(Debug)]
pub(crate) struct RequestContext<'a> {
    pub(crate) peer: &'a Peer,
    /// The protocol the client used, such as `HTTP/1.1`.
    pub(crate) protocol: &'static str,
    /// The trace the request belongs to.
    pub(crate) trace: Trace,
    /// The path the client sent, when another one is sent on.
    pub(crate) original_path: Option<&'a str>,
    pub(crate) edits: Edits<'a>,
    /// Whether the request goes to a backend that understands `te: trailers`.
    pub(crate) http2: bool,
}

/// Writes the fields of a request to an instance, all but `Host` and those that frame the body.
pub(crate) fn request_fields<F: Fields, S: Sink>(
    fields: &F,
    context: &RequestContext<'_>,
    sink: &mut S,
) {
    if context.edits.is_empty() {
        return standard_request_fields(fields, context, sink);
    }
    let mut list = FieldList::default();
    standard_request_fields(fields, context, &mut list);
    edit(&mut list, &context.edits, context.peer, context.protocol);
    for (name, value) in &list.0 {
        sink.put(name, value);
    }
}

fn standard_request_fields<F: Fields, S: Sink>(
    fields: &F,
    context: &RequestContext<'_>,
    sink: &mut S,
) {
    let options = ConnectionOptions::of(fields);
    let mut forwarded: SmallVec<[&[u8]; 2]> = SmallVec::new();
    let mut traceparent = None;
    let mut cloud_trace = None;
    let mut trailers_welcome = false;
    fields.for_each(|name, value| match meaning(name) {
        Meaning::Plain | Meaning::Via if !options.nominates(name) => sink.put(name, value),
        Meaning::ForwardedFor if !options.nominates(name) => forwarded.push(value),
        Meaning::Trace if name.len() == 11 => traceparent = traceparent.or(Some(value)),
        Meaning::Trace => cloud_trace = cloud_trace.or(Some(value)),
        Meaning::Te => trailers_welcome |= list_holds(value, "trailers"),
        _ => {}
    });
    let peer = context.peer;
    if forwarded.is_empty() {
        sink.put_own("x-forwarded-for", peer.forwarded());
    } else {
        forwarded.push(peer.forwarded());
        sink.put_own("x-forwarded-for", &forwarded.join(&b","[..]));
    }
    sink.put_own("x-forwarded-proto", peer.scheme().as_str().as_bytes());
    sink.put_own("via", VIA);
    put_trace(traceparent, cloud_trace, &context.trace, sink);
    if let Some(path) = context.original_path {
        sink.put_own("x-envoy-original-path", path.as_bytes());
    }
    if context.http2 && trailers_welcome {
        sink.put_own("te", b"trailers");
    }
}

/// Passes a client's trace on in both spellings; one that is not spelled well is replaced by ours.
fn put_trace<S: Sink>(w3c: Option<&[u8]>, cloud: Option<&[u8]>, trace: &Trace, sink: &mut S) {
    match w3c.filter(|value| parse_traceparent(value).is_some()) {
        Some(value) => sink.put_own("traceparent", value),
        None => {
            let mut text = *b"00-................................-................-00";
            text[3..35].copy_from_slice(trace.id());
            text[36..52].copy_from_slice(trace.span_id());
            sink.put_own("traceparent", &text);
        }
    }
    match cloud.filter(|value| parse_cloud_trace(value).is_some()) {
        Some(value) => sink.put_own("x-cloud-trace-context", value),
        None => {
            let mut text = *b"................................/....................";
            text[..32].copy_from_slice(trace.id());
            let mut length = 33;
            put_decimal(trace.span, |digits| {
                text[33..33 + digits.len()].copy_from_slice(digits);
                length += digits.len();
            });
            sink.put_own("x-cloud-trace-context", &text[..length]);
        }
    }
}

/// Fills `out` with the last digits of `number`.
fn put_hexadecimal(out: &mut [u8], number: u128) {
    let bytes = number.to_be_bytes();
    let skipped = bytes.len() - out.len() / 2;
    for (pair, byte) in out.chunks_exact_mut(2).zip(&bytes[skipped..]) {
        pair.copy_from_slice(&HEXADECIMAL_PAIRS[usize::from(*byte)]);
    }
}

/// Every byte in two digits.
const HEXADECIMAL_PAIRS: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

fn parse_traceparent(value: &[u8]) -> Option<Trace> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || trace.len() != 32 || span.len() != 16 || parts.next()?.len() != 2 {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    Some(Trace::new(trace, u64::from_str_radix(span, 16).ok()?))
}

fn parse_cloud_trace(value: &[u8]) -> Option<Trace> {
    let text = std::str::from_utf8(value).ok()?;
    let (trace, rest) = text.split_once('/')?;
    let span = rest.split(';').next()?;
    if trace.len() != 32 {
        return None;
    }
    let trace = u128::from_str_radix(trace, 16).ok().filter(|trace| *trace != 0)?;
    Some(Trace::new(trace, span.parse().ok()?))
}

/// How often our own name stands in the `Via` fields.
pub(crate) fn hops_through_us(fields: &impl Fields) -> usize {
    let mut hops = 0;
    fields.for_each(|name, value| {
        if name.len() == 3 && name.eq_ignore_ascii_case(b"via") {
            hops += value.split(|byte| *byte == b',').filter(|via| via.trim_ascii() == VIA).count();
        }
    });
    hops
}

/// What is added to a response on its way to the client.
#[derive(Debug, Default)]
pub(crate) struct ResponseContext<'a> {
    pub(crate) edits: Edits<'a>,
    /// The CORS policy, and the origin of the request, which it allows.
    pub(crate) cors: Option<(&'a CorsPolicy, String)>,
    /// The cookie of session affinity, when the client has to learn it.
    pub(crate) cookie: Option<String>,
}

impl ResponseContext<'_> {
    fn is_plain(&self) -> bool {
        self.cors.is_none() && self.edits.is_empty() && self.cookie.is_none()
    }
}

/// Writes the fields of a response to a client, all but those that frame the body.
pub(crate) fn response_fields<F: Fields, S: Sink>(
    fields: &F,
    context: &ResponseContext<'_>,
    peer: &Peer,
    protocol: &str,
    sink: &mut S,
) {
    if context.is_plain() {
        return standard_response_fields(fields, sink);
    }
    let mut list = FieldList::default();
    standard_response_fields(fields, &mut list);
    if let Some(cookie) = &context.cookie {
        list.put(b"set-cookie", cookie.as_bytes());
    }
    if let Some((policy, origin)) = &context.cors {
        allow_origin(policy, origin, &mut list);
    }
    edit(&mut list, &context.edits, peer, protocol);
    for (name, value) in &list.0 {
        sink.put(name, value);
    }
}

fn standard_response_fields<F: Fields, S: Sink>(fields: &F, sink: &mut S) {
    let options = ConnectionOptions::of(fields);
    let mut caching: SmallVec<[&[u8]; 2]> = SmallVec::new();
    let mut is_personal = false;
    fields.for_each(|name, value| match meaning(name) {
        meaning if meaning.concerns_framing() || options.nominates(name) => {}
        _ if name.eq_ignore_ascii_case(b"cache-control") => caching.push(value),
        _ => {
            is_personal |= name.eq_ignore_ascii_case(b"set-cookie");
            sink.put(name, value);
        }
    });
    // Cloud Run lets nobody share a response that sets a cookie, whatever the container says.
    if is_personal {
        caching.clear();
        caching.push(b"private");
    }
    for value in caching {
        sink.put_own("cache-control", value);
    }
    sink.put_own("via", VIA);
}

fn allow_origin(policy: &CorsPolicy, origin: &str, list: &mut FieldList) {
    let mut set = |name: &[u8], value: &[u8]| {
        list.remove(name);
        list.put(name, value);
    };
    set(b"access-control-allow-origin", origin.as_bytes());
    if policy.allow_credentials {
        set(b"access-control-allow-credentials", b"true");
    }
    if !policy.expose_headers.is_empty() {
        set(b"access-control-expose-headers", policy.expose_headers.as_bytes());
    }
}

/// Applies edits. Framing and routing are not theirs to change.
fn edit(list: &mut FieldList, edits: &[&HeaderEdit], peer: &Peer, protocol: &str) {
    let untouchable = |name: &str| {
        let meaning = meaning(name.as_bytes());
        meaning.concerns_framing() || matches!(meaning, Meaning::Host | Meaning::Expect)
    };
    for edit in edits {
        for name in edit.remove.iter().filter(|name| !untouchable(name)) {
            list.remove(name.as_bytes());
        }
        for addition in edit.add.iter().filter(|addition| !untouchable(&addition.name)) {
            if addition.replace {
                list.remove(addition.name.as_bytes());
            }
            let value = expand(&addition.value, peer, protocol);
            list.put(addition.name.as_bytes(), &value);
        }
    }
}

/// The value of a template; a byte that no field value may hold becomes a space.
fn expand(template: &HeaderTemplate, peer: &Peer, protocol: &str) -> Vec<u8> {
    let mut value = Vec::new();
    for part in &template.0 {
        match part {
            TemplatePart::Literal(text) => value.extend_from_slice(text.as_bytes()),
            TemplatePart::Variable(name) => peer.append_variable(name, protocol, &mut value),
        }
    }
    for byte in &mut value {
        if (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f {
            *byte = b' ';
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::RawFields;
    use plan::decision::HeaderAddition;

    fn rewritten(head: &str, edits: &[&HeaderEdit]) -> String {
        let mut room = [httparse::EMPTY_HEADER; 16];
        let (_, fields) = httparse::parse_headers(head.as_bytes(), &mut room).unwrap().unwrap();
        let client = "10.0.0.9:5000".parse().unwrap();
        let peer = Peer::new(client, "10.0.0.1:80".parse().unwrap(), None, true);
        let context = RequestContext {
            peer: &peer,
            protocol: "HTTP/1.1",
            trace: Trace::new(0xabc, 7),
            original_path: None,
            edits: edits.into(),
            http2: false,
        };
        let mut out = Vec::new();
        request_fields(&RawFields(fields), &context, &mut out);
        let text = String::from_utf8(out).unwrap();
        let ours = text.find("x-forwarded-proto: http\r\nvia: 1.1 google\r\n").unwrap();
        text[..ours].to_owned()
    }

    #[test]
    fn names_are_lower_cased_and_hops_end_here() {
        let head = "Accept: A\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 3\r\nTE: trailers\r\n\
                    Proxy-Connection: x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nx-forwarded-proto: https\r\n\r\n";
        assert_eq!(rewritten(head, &[]), "accept: A\r\nx-forwarded-for: 10.0.0.9,10.0.0.1\r\n");
    }

    #[test]
    fn the_chain_of_addresses_grows_by_two() {
        let head = "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n\r\n";
        assert_eq!(rewritten(head, &[]), "x-forwarded-for: 1.1.1.1,2.2.2.2,10.0.0.9,10.0.0.1\r\n");
    }

    #[test]
    fn a_nominated_chain_cannot_hide_the_client() {
        let head = "Connection: x-forwarded-for\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n";
        assert_eq!(rewritten(head, &[]), "x-forwarded-for: 10.0.0.9,10.0.0.1\r\n");
    }

    #[test]
    fn edits_remove_then_add_and_never_touch_framing() {
        let add = |name: &str, value: &str, replace| HeaderAddition {
            name: name.into(),
            value: HeaderTemplate(vec![
                TemplatePart::Literal(value.into()),
                TemplatePart::Variable("client_port".into()),
                TemplatePart::Variable("client_city".into()),
            ]),
            replace,
        };
        let edits = HeaderEdit {
            remove: vec!["a".into(), "host".into()],
            add: vec![add("b", "p=", true), add("c", "x", false), add("content-length", "1", true)],
        };
        let head = "A: 1\r\nB: 2\r\nc: 3\r\n\r\n";
        let mut text = rewritten(head, &[&edits]);
        assert_eq!(text, "c: 3\r\nx-forwarded-for: 10.0.0.9,10.0.0.1\r\n");
        text.clear();
    }

    #[test]
    fn a_response_that_sets_a_cookie_is_private() {
        let response = |head: &str| {
            let mut room = [httparse::EMPTY_HEADER; 16];
            let (_, fields) = httparse::parse_headers(head.as_bytes(), &mut room).unwrap().unwrap();
            let mut out = Vec::new();
            standard_response_fields(&RawFields(fields), &mut out);
            String::from_utf8(out).unwrap()
        };
        let shared = "Cache-Control: public\r\nCache-control: max-age=60\r\nAge: 1\r\n\r\n";
        assert_eq!(
            response(shared),
            "age: 1\r\ncache-control: public\r\ncache-control: max-age=60\r\nvia: 1.1 google\r\n"
        );
        for caching in ["", "Cache-Control: public, max-age=60\r\n"] {
            assert_eq!(
                response(&format!("{caching}Set-Cookie: a=b\r\nset-cookie: c=d\r\n\r\n")),
                "set-cookie: a=b\r\nset-cookie: c=d\r\ncache-control: private\r\nvia: 1.1 google\r\n"
            );
        }
    }

    #[test]
    fn our_name_in_via_is_counted() {
        let fields = [httparse::Header { name: "VIA", value: b"1.1 google, 1.1 x ,1.1 google" }];
        assert_eq!(hops_through_us(&RawFields(&fields)), 2);
    }

    #[test]
    fn a_trace_is_passed_on_or_begun() {
        let traced = |w3c: Option<&'static str>, cloud: Option<&'static str>| {
            let named = |name, value: Option<&'static str>| {
                value.map(|value| httparse::Header { name, value: value.as_bytes() })
            };
            let fields = [named("traceparent", w3c), named("X-Cloud-Trace-Context", cloud)];
            let fields: Vec<_> = fields.into_iter().flatten().collect();
            let trace = trace_of(&RawFields(&fields), || Trace::new(0xabc, 7));
            let mut out = Vec::new();
            put_trace(w3c.map(str::as_bytes), cloud.map(str::as_bytes), &trace, &mut out);
            String::from_utf8(out).unwrap()
        };
        let fresh = "traceparent: 00-00000000000000000000000000000abc-0000000000000007-00\r\n\
                     x-cloud-trace-context: 00000000000000000000000000000abc/7\r\n";
        assert_eq!(traced(None, None), fresh);
        assert_eq!(traced(Some("00-0-0-0"), Some("x")), fresh);
        assert_eq!(
            traced(Some("00-0-0-0"), Some("0123456789abcdef0123456789abcdef/16")),
            "traceparent: 00-0123456789abcdef0123456789abcdef-0000000000000010-00\r\n\
             x-cloud-trace-context: 0123456789abcdef0123456789abcdef/16\r\n"
        );
        assert_eq!(
            traced(Some("00-0123456789abcdef0123456789abcdef-00000000000000ff-01"), None),
            "traceparent: 00-0123456789abcdef0123456789abcdef-00000000000000ff-01\r\n\
             x-cloud-trace-context: 0123456789abcdef0123456789abcdef/255\r\n"
        );
        assert_eq!(
            traced(None, Some("0123456789abcdef0123456789abcdef/16;o=1")),
            "traceparent: 00-0123456789abcdef0123456789abcdef-0000000000000010-00\r\n\
             x-cloud-trace-context: 0123456789abcdef0123456789abcdef/16;o=1\r\n"
        );
    }
}
