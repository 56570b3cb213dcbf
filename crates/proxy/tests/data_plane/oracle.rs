//! hyper as the oracle: whatever we accept, hyper accepts, and means the same by it.

use crate::support::hyper_reader;
use proptest::prelude::*;
use proxy::reading::{self, Message, Reading};

/// Pieces that parsers like to disagree about.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ":",
    ";",
    ",",
    "0",
    "5",
    "A",
    "ffffffff",
    "+",
    "-",
    "0x",
    "\x0b",
    "\x7f",
    "é",
    "#",
    "?",
    "/",
    "//",
    "\\",
    "@",
    "[",
    "]",
    "%",
    "\"",
    "<",
    "{",
    "|",
    "^",
    "`",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 05\r\n",
    "content-length:5\r\n",
    "Content-Length : 5\r\n",
    "Content-Length: 5,5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "transfer-encoding:chunked\r\n",
    "Transfer-Encoding:\tchunked \r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding : chunked\r\n",
    " chunked\r\n",
    "Host: b\r\n",
    "Host: a:80\r\n",
    "Connection: close\r\n",
    "Connection: Transfer-Encoding\r\n",
    "Expect: 100-continue\r\n",
    "X: y\r\n z\r\n",
    "X: \r\n",
    "X:\r\n",
    "HTTP/1.0",
    "HTTP/1.1",
    "http://a/",
    "https://a/",
    "http://b/",
    "* ",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "5;x=y\r\nhello\r\n",
    "1\r\nX\r\n0\r\nT: u\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
];

const REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a?b=c HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "PUT /p HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-T: v\r\n\r\n",
    "GET http://a/b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
];

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: v\r\n\r\n",
    "HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "HTTP/1.1 404 Not Found\r\nServer: x\r\nContent-Length: 0\r\n\r\n",
];

/// One change to the bytes: where (as a share of the length), how many to remove, and what to put there.
type Edit = (u16, u8, Option<usize>);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let piece = prop::option::of(0..PIECES.len());
    prop::collection::vec((any::<u16>(), prop_oneof![3 => Just(0u8), 1 => 1..4u8], piece), 0..4)
}

fn edited(base: &str, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = base.as_bytes().to_vec();
    for (place, removed, piece) in edits {
        let at = usize::from(*place) * (bytes.len() + 1) / 65_536;
        let end = bytes.len().min(at + usize::from(*removed));
        let piece = piece.map_or("", |piece| PIECES[piece]);
        bytes.splice(at..end, piece.bytes());
    }
    bytes
}

fn agrees(ours: &Message, theirs: Option<hyper_reader::Read>, wire: &[u8]) {
    let wire = String::from_utf8_lossy(wire);
    let theirs = theirs.unwrap_or_else(|| panic!("hyper refuses what we accept: {wire:?}"));
    assert_eq!(ours.start, theirs.start, "{wire:?}");
    assert_eq!(ours.fields, theirs.fields, "{wire:?}");
    assert_eq!(ours.body, theirs.body, "{wire:?}");
    for (name, value) in &ours.trailers {
        assert!(theirs.trailers.get_all(name).iter().any(|v| v == value), "{wire:?}");
    }
}

fn compare_request(wire: &[u8]) {
    if let Reading::Complete(ours) = reading::request(wire) {
        // Brackets and the like in a target are passed on as they came, as other proxies do; hyper's type
        // for URIs has no room for some of them, and then has nothing to say about the framing.
        if ours.start[1].parse::<http::Uri>().is_err() {
            return;
        }
        agrees(&ours, hyper_reader::request(wire), wire);
    }
}

fn compare_response(wire: &[u8], to_head: bool) {
    if let Reading::Complete(ours) = reading::response(wire, to_head) {
        let status: u16 = ours.start[0].parse().unwrap();
        // hyper's client reads past informational responses, and a 101 ends HTTP.
        if status >= 200 {
            agrees(&ours, hyper_reader::response(wire, to_head), wire);
        }
    }
}

#[test]
fn the_two_readers_agree_about_plain_messages() {
    for wire in REQUESTS {
        assert!(matches!(reading::request(wire.as_bytes()), Reading::Complete(_)), "{wire}");
        compare_request(wire.as_bytes());
    }
    for wire in RESPONSES {
        assert!(
            matches!(reading::response(wire.as_bytes(), false), Reading::Complete(_)),
            "{wire}"
        );
        compare_response(wire.as_bytes(), false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_request_we_accept_means_the_same_to_hyper(base in 0..REQUESTS.len(), edits in edits()) {
        compare_request(&edited(REQUESTS[base], &edits));
    }

    #[test]
    fn a_response_we_accept_means_the_same_to_hyper(
        base in 0..RESPONSES.len(),
        edits in edits(),
        to_head in any::<bool>(),
    ) {
        compare_response(&edited(RESPONSES[base], &edits), to_head);
    }
}
