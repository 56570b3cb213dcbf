//! Strict reading of HTTP/1.1 heads: what two parsers could read differently is refused.
//!
//! A head is first scanned line by line as it arrives, each byte once; every line must end in CRLF and no
//! CR or LF may stand anywhere else. Only a complete head is parsed. The rules for its framing are then
//! the narrowest that real clients and servers keep.
//!
//! Invariant: a head that is accepted has exactly one reading, and hyper reads it the same way.

use super::body::Framing;
use crate::fields::{ConnectionOptions, Meaning, list_holds, meaning};
use crate::limits::FIELDS_MAX;
use std::mem::MaybeUninit;

/// Room for the fields of one head while it is parsed.
pub(crate) type FieldRoom<'a> = [MaybeUninit<httparse::Header<'a>>; FIELDS_MAX];

/// Room for a head, not initialised.
pub(crate) const fn field_room<'a>() -> FieldRoom<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// How far a head has been scanned.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scanner {
    at: usize,
    line_start: usize,
    /// Where the first line ends, once that is known.
    first_line: Option<usize>,
}

/// What a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// The empty line is yet to come.
    Partial,
    /// The head ends before this byte.
    Complete(usize),
    /// A CR or LF that is not part of a CRLF.
    BareLineEnd,
}

impl Scanner {
    /// Scans on in `data`, which begins with what was scanned before.
    pub(crate) fn scan(&mut self, data: &[u8]) -> Scanned {
        while let Some(found) = memchr::memchr2(b'\r', b'\n', &data[self.at..]) {
            let end = self.at + found;
            if data[end] == b'\n' {
                return Scanned::BareLineEnd;
            }
            match data.get(end + 1) {
                None => {
                    self.at = end;
                    return Scanned::Partial;
                }
                Some(b'\n') => {}
                Some(_) => return Scanned::BareLineEnd,
            }
            self.at = end + 2;
            if end == self.line_start {
                return Scanned::Complete(self.at);
            }
            self.first_line.get_or_insert(end);
            self.line_start = self.at;
        }
        self.at = data.len();
        Scanned::Partial
    }

    /// The length of the first line, once it is complete.
    pub(crate) fn first_line(&self) -> Option<usize> {
        self.first_line
    }
}

/// Why a request is refused before anything is decided about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The status code.
    pub(crate) status: u16,
    /// Why, for the access log.
    pub(crate) reason: &'static str,
}

const fn bad(reason: &'static str) -> Refused {
    Refused { status: 400, reason }
}

/// A request head that was accepted.
#[derive(Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a str,
    /// Path and query, beginning with `/`.
    pub(crate) target: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) fields: &'a [httparse::Header<'a>],
    pub(crate) facts: RequestFacts,
}

/// What the connection has to remember of a request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestFacts {
    pub(crate) framing: Framing,
    /// Whether the client speaks HTTP/1.1 rather than 1.0.
    pub(crate) http11: bool,
    /// Whether the client wants to send another request.
    pub(crate) keep_alive: bool,
    /// Whether the client waits for `100 Continue`.
    pub(crate) expects_continue: bool,
    /// Whether the client asks for a WebSocket.
    pub(crate) upgrade: bool,
}

/// Parses a complete head. `https` says whether the client speaks TLS.
pub(crate) fn parse_request<'a>(
    head: &'a [u8],
    room: &'a mut FieldRoom<'a>,
    https: bool,
) -> Result<RequestHead<'a>, Refused> {
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(head, room) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refused { status: 431, reason: "too many header fields" });
        }
        Ok(httparse::Status::Partial) | Err(_) => return Err(bad("malformed head")),
    }
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(bad("malformed request line"));
    };
    let http11 = request.version == Some(1);
    let fields: &'a [httparse::Header<'a>] = request.headers;
    if !target.bytes().all(is_target_byte) {
        return Err(bad("forbidden byte in the request target"));
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(bad("unsupported method"));
    }
    let (authority, facts) = request_facts(fields, http11)?;
    let target = origin_form(target, authority, https)?;
    let facts = RequestFacts { upgrade: facts.upgrade && method == "GET", ..facts };
    Ok(RequestHead { method, target, authority, fields, facts })
}

/// Reads the fields that say where the message ends and where it goes.
fn request_facts<'a>(
    fields: &'a [httparse::Header<'a>],
    http11: bool,
) -> Result<(&'a str, RequestFacts), Refused> {
    let mut options = ConnectionOptions::default();
    let mut host = None;
    let mut length = None;
    let mut chunked = false;
    let mut expects_continue = false;
    let mut websocket = false;
    for field in fields {
        match meaning(field.name.as_bytes()) {
            Meaning::Connection => options.add(field.value),
            Meaning::Host if host.is_some() => return Err(bad("more than one host")),
            Meaning::Host => host = Some(field.value),
            Meaning::ContentLength if length.is_some() => {
                return Err(bad("more than one content-length"));
            }
            Meaning::ContentLength => {
                length = Some(parse_length(field.value).ok_or(bad("malformed content-length"))?);
            }
            Meaning::TransferEncoding => {
                if chunked || !http11 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("unsupported transfer-encoding"));
                }
                chunked = true;
            }
            Meaning::Expect if field.value.eq_ignore_ascii_case(b"100-continue") => {
                expects_continue = http11;
            }
            Meaning::Expect => return Err(Refused { status: 417, reason: "unknown expectation" }),
            Meaning::Upgrade => websocket |= list_holds(field.value, "websocket"),
            _ => {}
        }
    }
    let authority = host.and_then(parse_authority).ok_or(bad("missing or malformed host"))?;
    let framing = match (chunked, length) {
        (true, Some(_)) => return Err(bad("content-length with transfer-encoding")),
        (true, None) => Framing::Chunked,
        (false, None | Some(0)) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
    };
    let facts = RequestFacts {
        framing,
        http11,
        keep_alive: if http11 { !options.close } else { options.keep_alive && !options.close },
        expects_continue: expects_continue && framing != Framing::Empty,
        upgrade: http11 && options.upgrade && websocket && framing == Framing::Empty,
    };
    Ok((authority, facts))
}

/// The path and query of a target, which may be in absolute form if it agrees with `Host`.
fn origin_form<'a>(target: &'a str, authority: &str, https: bool) -> Result<&'a str, Refused> {
    if target.starts_with('/') {
        return Ok(target);
    }
    let (scheme, rest) = target.split_once("://").ok_or(bad("unsupported request target"))?;
    let expected = if https { "https" } else { "http" };
    if !scheme.eq_ignore_ascii_case(expected) {
        return Err(bad("the target's scheme is not the connection's"));
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    if !rest[..end].eq_ignore_ascii_case(authority) {
        return Err(bad("the target's authority is not the host"));
    }
    match rest.as_bytes().get(end) {
        Some(b'/') => Ok(&rest[end..]),
        Some(_) => Err(bad("the target has a query and no path")),
        None => Ok("/"),
    }
}

/// Visible ASCII without what no parser may see in a path or query.
pub(crate) fn is_target_byte(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'`')
}

/// `host`, `host:port`, or a bracketed address; nothing else that the URI grammar would allow.
pub(crate) fn parse_authority(value: &[u8]) -> Option<&str> {
    let (host, port) = match value {
        [b'[', rest @ ..] => {
            let end = memchr::memchr(b']', rest)?;
            let address = std::str::from_utf8(&rest[..end]).ok()?;
            address.parse::<std::net::Ipv6Addr>().ok()?;
            (address.as_bytes(), &rest[end + 1..])
        }
        _ => value.split_at(memchr::memchr(b':', value).unwrap_or(value.len())),
    };
    let named =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if host.is_empty() || !host.iter().all(named) {
        return None;
    }
    match port {
        [] => {}
        [b':', digits @ ..] if matches!(digits.len(), 1..=5) => {
            let text = std::str::from_utf8(digits).ok()?;
            if !digits.iter().all(u8::is_ascii_digit) || text.parse::<u16>().is_err() {
                return None;
            }
        }
        _ => return None,
    }
    std::str::from_utf8(value).ok()
}

/// Decimal digits and nothing else, within what 64 bits hold with room to spare.
fn parse_length(value: &[u8]) -> Option<u64> {
    if !matches!(value.len(), 1..=18) {
        return None;
    }
    value.iter().try_fold(0u64, |sum, byte| {
        byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0'))
    })
}

/// A response head that was accepted.
#[derive(Debug)]
pub(crate) struct ResponseHead<'a> {
    pub(crate) status: u16,
    pub(crate) fields: &'a [httparse::Header<'a>],
    pub(crate) facts: ResponseFacts,
}

/// What has to be remembered of a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseFacts {
    pub(crate) framing: Framing,
    /// The declared length, also where no body follows (HEAD, 304).
    pub(crate) length: Option<u64>,
    /// Whether the connection may carry another request.
    pub(crate) keep_alive: bool,
    /// Whether this is a `101` that switches to a WebSocket.
    pub(crate) upgrade: bool,
}

/// Parses a complete response head; the error says what is wrong with it.
pub(crate) fn parse_response<'a>(
    head: &'a [u8],
    room: &'a mut FieldRoom<'a>,
    to_head_request: bool,
) -> Result<ResponseHead<'a>, &'static str> {
    let mut response = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    match parser.parse_response_with_uninit_headers(&mut response, head, room) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err("too many header fields"),
        Ok(httparse::Status::Partial) | Err(_) => return Err("malformed response head"),
    }
    let status =
        response.code.filter(|code| (100..600).contains(code)).ok_or("malformed status")?;
    let http11 = response.version == Some(1);
    let fields: &'a [httparse::Header<'a>] = response.headers;
    let mut options = ConnectionOptions::default();
    let (mut length, mut chunked, mut websocket) = (None, false, false);
    for field in fields {
        match meaning(field.name.as_bytes()) {
            Meaning::Connection => options.add(field.value),
            Meaning::ContentLength if length.is_some() => {
                return Err("more than one content-length");
            }
            Meaning::ContentLength => {
                length = Some(parse_length(field.value).ok_or("malformed content-length")?);
            }
            Meaning::TransferEncoding => {
                if chunked || !http11 || !field.value.eq_ignore_ascii_case(b"chunked") {
                    return Err("unsupported transfer-encoding");
                }
                chunked = true;
            }
            Meaning::Upgrade => websocket |= list_holds(field.value, "websocket"),
            _ => {}
        }
    }
    if chunked && length.is_some() {
        return Err("content-length with transfer-encoding");
    }
    let bodiless = to_head_request || status < 200 || matches!(status, 204 | 304);
    // A length on a response that cannot have a body would let two parsers disagree about its end.
    if matches!(status, 100..200 | 204) && (chunked || length.is_some_and(|length| length > 0)) {
        return Err("a body where none can be");
    }
    let framing = match (bodiless, chunked, length) {
        (true, _, _) | (false, false, Some(0)) => Framing::Empty,
        (false, true, _) => Framing::Chunked,
        (false, false, Some(length)) => Framing::Length(length),
        (false, false, None) => Framing::UntilClose,
    };
    let facts = ResponseFacts {
        framing,
        length: if chunked { None } else { length },
        keep_alive: (if http11 { !options.close } else { options.keep_alive && !options.close })
            && framing != Framing::UntilClose,
        upgrade: status == 101 && options.upgrade && websocket,
    };
    Ok(ResponseHead { status, fields, facts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_in_steps(data: &[u8], step: usize) -> Scanned {
        let mut scanner = Scanner::default();
        let mut end = 0;
        loop {
            end = data.len().min(end + step);
            match scanner.scan(&data[..end]) {
                Scanned::Partial if end < data.len() => {}
                other => return other,
            }
        }
    }

    #[test]
    fn a_head_is_found_however_it_is_cut() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nrest";
        for step in 1..head.len() {
            assert_eq!(scan_in_steps(head, step), Scanned::Complete(head.len() - 4), "{step}");
        }
    }

    #[test]
    fn a_line_end_is_crlf_and_nothing_else() {
        for data in [
            &b"GET / HTTP/1.1\nhost: a\r\n\r\n"[..],
            b"GET / HTTP/1.1\r\nhost: a\n\n",
            b"GET / HTTP/1.1\r\nhost: a\rb\r\n\r\n",
            b"GET / HTTP/1.1\r\r\nhost: a\r\n\r\n",
            b"\n",
        ] {
            for step in 1..data.len() {
                assert_eq!(scan_in_steps(data, step), Scanned::BareLineEnd, "{data:?}");
            }
        }
    }

    #[test]
    fn an_authority_is_a_host_and_perhaps_a_port() {
        for good in
            ["a", "example.com", "example.com:80", "10.0.0.1:8080", "[::1]", "[::1]:443", "a_b"]
        {
            assert_eq!(parse_authority(good.as_bytes()), Some(good));
        }
        for bad in [
            "", ":80", "a:", "a:b", "a:123456", "a:99999", "u@a", "a/b", "a b", "a,b", "[::1",
            "[x]", "::1", "a:80:80", "a%2f", "[::1]x", "a\\b", "a?b", "a#b",
        ] {
            assert_eq!(parse_authority(bad.as_bytes()), None, "{bad}");
        }
    }
}
