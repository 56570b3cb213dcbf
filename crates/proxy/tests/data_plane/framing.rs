//! What two parsers could read differently is refused: by status and by closing, on both sides.

use crate::support::plane::Plane;
use crate::support::wire::{Backend, Conn};
use crate::support::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A backend that counts the smuggled requests that reach it, and answers plainly. A body that turns out
/// to be malformed has sent its head ahead, which is no harm: its connection is cut.
fn counting() -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let backend = Backend::start(move |mut conn| {
        while let Some((head, _)) = conn.message() {
            seen.fetch_add(usize::from(head.contains("/smuggled")), Ordering::SeqCst);
            if head.contains("chunked") {
                conn.rest();
                return;
            }
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    (backend, count)
}

/// Requests that are refused with this status before anything is decided.
const REFUSED: &[(u16, &str, &str)] = &[
    // Two lengths, or a length and an encoding.
    (
        400,
        "CL.TE",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "TE.CL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "differing lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
    ),
    (
        400,
        "equal lengths",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    ),
    (400, "length list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 4\r\n\r\nabcd"),
    (400, "negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
    (400, "signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd"),
    (400, "hexadecimal length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd"),
    (
        400,
        "length with a space inside",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4 4\r\n\r\nabcd",
    ),
    (
        400,
        "length too long",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ),
    (400, "empty length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
    (400, "length with a letter", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4a\r\n\r\nabcd"),
    // Encodings other than one final chunked.
    (
        400,
        "gzip, chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked twice",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked, chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked, identity",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    (400, "identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    (400, "xchunked", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    (
        400,
        "quoted chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with parameter",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (400, "empty encoding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n"),
    (
        400,
        "chunked in HTTP/1.0",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    // Line ends.
    (400, "bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
    (400, "bare LF after a field", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
    (400, "bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
    (400, "bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n"),
    (400, "bare CR before a field", "GET / HTTP/1.1\r\nHost: a\r\n\rX: b\r\n\r\n"),
    (400, "CR CR LF", "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n"),
    (400, "obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n"),
    (
        400,
        "obs-fold with tab",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tTransfer-Encoding: chunked\r\n\r\n",
    ),
    (400, "folded first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    // Names and values.
    (400, "space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd"),
    (
        400,
        "tab before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    ),
    (400, "empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
    (400, "no colon", "GET / HTTP/1.1\r\nHost: a\r\nfoo\r\n\r\n"),
    (400, "NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    (400, "NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n"),
    (400, "DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n"),
    (400, "bell in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x07b\r\n\r\n"),
    (400, "parenthesis in a name", "GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n"),
    (400, "byte above ASCII in a name", "GET / HTTP/1.1\r\nHost: a\r\nXé: b\r\n\r\n"),
    // Where it goes.
    (400, "no host", "GET / HTTP/1.1\r\nX: a\r\n\r\n"),
    (400, "no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n"),
    (400, "empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n"),
    (400, "two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    (400, "the same host twice", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    (400, "host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    (400, "host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n"),
    (400, "host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    (400, "host with bad port", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n"),
    (400, "host with space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    (400, "absolute form, other host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "absolute form, other port", "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "absolute form, user", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "absolute form, https in clear", "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "absolute form, other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "no slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "byte above ASCII in the path", "GET /é HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "quote in the query", "GET /a?\"b HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "space in the path", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "tab in the request line", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "control byte in the path", "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    // Lines of other kinds.
    (400, "CONNECT", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"),
    (400, "TRACE", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "HTTP/0.9", "GET /\r\n\r\n"),
    (400, "HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    (400, "HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    (400, "lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n"),
    (400, "HTTP/1.10", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    (400, "method with a control byte", "G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "two empty lines in front", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        417,
        "unknown expectation",
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 1\r\n\r\nx",
    ),
    // Chunks, found only once the request is under way.
    (
        400,
        "chunk size with prefix",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with sign",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with space",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk extension with LF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\nxx\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size overflow",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size of 2^64-1",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "empty chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk line ends in LF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk longer than said",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    ),
    (
        400,
        "trailer with a length",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    ),
    (
        400,
        "trailer with bare LF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n",
    ),
    // What the public corpora of parser differences hold besides.
    (
        400,
        "length with an underscore",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\nabcd",
    ),
    (
        400,
        "length with a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \x0b4\r\n\r\nabcd",
    ),
    (
        400,
        "length with a form feed behind",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\x0c\r\n\r\nabcd",
    ),
    (400, "length with NUL", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\0\r\n\r\nabcd"),
    (400, "length with a point", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4.0\r\n\r\nabcd"),
    (
        400,
        "length with an exponent",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4e0\r\n\r\nabcd",
    ),
    (400, "quoted length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \"4\"\r\n\r\nabcd"),
    (
        400,
        "length list with a comma behind",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4,\r\n\r\nabcd",
    ),
    (
        400,
        "length list with a comma in front",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ,4\r\n\r\nabcd",
    ),
    (
        400,
        "length in fullwidth digits",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ４\r\n\r\nabcd",
    ),
    (
        400,
        "length with a no-break space",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \u{a0}4\r\n\r\nabcd",
    ),
    (
        400,
        "chunked with a comma behind",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked,\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with a comma in front",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with NUL behind",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with NUL in front",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \0chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with a vertical tab behind",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with a Kelvin sign",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chun\u{212a}ed\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with a no-break space",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \u{a0}chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunked with a space inside",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chun ked\r\n\r\n0\r\n\r\n",
    ),
    (400, "deflate", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: deflate\r\n\r\n0\r\n\r\n"),
    (400, "chunked;", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;\r\n\r\n0\r\n\r\n"),
    (
        400,
        "encoding in two fields",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "encoding name with NUL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\0: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "encoding name with a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\x0b: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "encoding on a folded line",
        "POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "encoding behind a bare CR",
        "POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "encoding behind a bare LF",
        "POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with an underscore",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0_5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with a space in front",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with a tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\t\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with a vertical tab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\x0b\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "negative chunk size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "negative zero",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-0\r\n\r\n",
    ),
    (
        400,
        "chunk size of 17 digits",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with a letter beyond f",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\ng\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk size with NUL",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\0\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "empty chunk extension",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "quoted chunk extension with CRLF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"\r\nhello\r\n0\r\n\r\n\"",
    ),
    (
        400,
        "chunk extension behind the last size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;a\r\n\r\n",
    ),
    (
        400,
        "CR CR LF behind a size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "chunk data that ends in LF",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
    ),
    (
        400,
        "chunk data that ends in CR",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\rX0\r\n\r\n",
    ),
    (
        400,
        "chunk data shorter than said",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nhello\r\n0\r\n\r\n",
    ),
    (
        400,
        "LF behind the last size",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n",
    ),
    (
        400,
        "LF as the end",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\n",
    ),
    (
        400,
        "folded trailer",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n z\r\n\r\n",
    ),
    (
        400,
        "trailer with an encoding",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (
        400,
        "trailer with a host",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
    ),
    (
        400,
        "trailer without a colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX\r\n\r\n",
    ),
    (
        400,
        "trailer with a space before the colon",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n",
    ),
    (400, "space behind the version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    (400, "space in the version", "GET / HTTP/ 1.1\r\nHost: a\r\n\r\n"),
    (400, "comma in the version", "GET / HTTP/1,1\r\nHost: a\r\n\r\n"),
    (400, "zero in front of the version", "GET / HTTP/01.1\r\nHost: a\r\n\r\n"),
    (400, "HTTP/1", "GET / HTTP/1\r\nHost: a\r\n\r\n"),
    (400, "HTTPS/1.1", "GET / HTTPS/1.1\r\nHost: a\r\n\r\n"),
    (400, "NUL behind the version", "GET / HTTP/1.1\0\r\nHost: a\r\n\r\n"),
    (400, "space in front of the method", " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "bare LF in front", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "bare CR in front", "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "tab between target and version", "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "no target", "GET HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "empty target", "GET  HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "colon in the method", "G:T / HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "absolute form without a host", "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "absolute form with a backslash", "GET http:\\\\a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "scheme-relative with authority of its own", "GET a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    (400, "host with NUL", "GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n"),
    (400, "host with two ports", "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n"),
    (400, "host with a port too large", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n"),
    (400, "host name with a space before the colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
    (400, "host with a backslash", "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n"),
    (400, "host with an open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
];

#[test]
fn a_request_that_can_be_read_in_two_ways_is_refused_and_its_connection_closed() {
    let plane = Plane::start(World::new());
    let (backend, count) = counting();
    plane.instances.place("app", backend.address);
    for (status, name, request) in REFUSED {
        let mut client = Conn::connect(plane.address(80));
        client.send(request);
        // What is smuggled must never be answered.
        client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.rest();
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected), "{name}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{name}: {answer:?}");
        assert!(answer.contains("connection: close\r\n"), "{name}: {answer:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[test]
fn the_same_requests_cut_into_bytes_are_refused_the_same_way() {
    let plane = Plane::start(World::new());
    let (backend, count) = counting();
    plane.instances.place("app", backend.address);
    for (status, name, request) in REFUSED.iter().step_by(7) {
        let mut client = Conn::connect(plane.address(80));
        for byte in request.as_bytes() {
            use std::io::Write;
            // A refusal may come before the last byte is out.
            if client.stream.write_all(&[*byte]).is_err() {
                break;
            }
        }
        client.end_sending();
        let answer = client.rest();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer:?}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

/// Unusual and unambiguous: these pass.
const ACCEPTED: &[(&str, &str)] = &[
    ("an empty line in front", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("absolute form", "GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("absolute form without a path", "GET http://a HTTP/1.1\r\nHost: A\r\n\r\n"),
    ("host with port", "GET / HTTP/1.1\r\nHost: a:8080\r\n\r\n"),
    ("bracketed address", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"),
    ("empty value", "GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n"),
    ("no space after the colon", "GET / HTTP/1.1\r\nHost:a\r\nX:b\r\n\r\n"),
    ("bytes above ASCII in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: grüße\r\n\r\n"),
    ("unknown method", "BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("length of zero", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
    (
        "upper-case chunked",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
    ),
    ("dots and escapes", "GET /a/../%2e%2e/%2F;x=y|z HTTP/1.1\r\nHost: a\r\n\r\n"),
];

#[test]
fn what_is_unusual_and_has_one_reading_passes() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while let Some((head, _)) = conn.message() {
            if head.contains("transfer-encoding: chunked") {
                conn.until("0\r\n\r\n");
            }
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    plane.instances.place("app", backend.address);
    for (name, request) in ACCEPTED {
        let mut client = Conn::connect(plane.address(80));
        client.send(request);
        let (head, body) = client.message().expect(name);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{name}: {head}");
        assert_eq!(body, b"ok", "{name}");
    }
}

/// Responses no client may ever see; each is answered with 502.
const BAD_RESPONSES: &[(&str, &str)] = &[
    (
        "CL and TE",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
    ("bad length", "HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\nabc"),
    ("gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("bare LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nab"),
    ("bare CR", "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nab"),
    ("folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nab"),
    ("space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab"),
    ("no status", "HTTP/1.1 OK\r\n\r\n"),
    ("status 99", "HTTP/1.1 099 Odd\r\n\r\n"),
    ("status 600", "HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n"),
    ("not HTTP", "SSH-2.0-OpenSSH\r\n\r\n"),
    (
        "101 nobody asked for",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ),
    ("204 with a body", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nab"),
    ("NUL in a value", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nab"),
    ("LF after the status line", "HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nab"),
    ("equal lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"),
    ("length list", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab"),
    ("signed length", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab"),
    (
        "chunked twice",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("chunked with a comma", "HTTP/1.1 200 OK\r\nTransfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n"),
    ("status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    ("status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
    ("HTTP/2.0", "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("space in front", "  HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    (
        "1xx with a length",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ),
    ("empty name", "HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n"),
    ("cut head", "HTTP/1.1 200 OK\r\nContent-Le"),
];

#[test]
fn a_response_that_can_be_read_in_two_ways_is_a_502_and_its_connection_is_not_used_again() {
    for (name, response) in BAD_RESPONSES {
        let plane = Plane::start(World::new());
        let backend = Backend::start(move |mut conn| {
            if conn.message().is_some() {
                conn.send(response);
                conn.end_sending();
                conn.rest();
            }
        });
        plane.instances.place("app", backend.address);
        let mut client = Conn::connect(plane.address(80));
        // A POST is not tried again, so there is exactly one attempt to look at.
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let (head, body) = client.message().expect(name);
        assert!(head.starts_with("HTTP/1.1 502 "), "{name}: {head}");
        assert!(String::from_utf8_lossy(&body).ends_with("reset reason: protocol error"), "{name}");
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        client.message().expect(name);
        assert_eq!(backend.connections(), 2, "{name}");
    }
}

#[test]
fn a_connection_with_more_than_its_response_on_it_is_not_used_again() {
    let plane = Plane::start(World::new());
    let backend = Backend::start(|mut conn| {
        while conn.message().is_some() {
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison");
        }
    });
    plane.instances.place("app", backend.address);
    let mut client = Conn::connect(plane.address(80));
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let (_, body) = client.message().unwrap();
        assert_eq!(body, b"ok");
    }
    assert_eq!(backend.connections(), 3);
}
