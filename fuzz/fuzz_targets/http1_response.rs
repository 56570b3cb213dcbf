//! Any bytes as an HTTP/1.1 response: what the data plane accepts, hyper accepts, and means the same by it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::reading::{self, Reading};

#[path = "../../crates/proxy/tests/data_plane/support/hyper_reader.rs"]
#[allow(dead_code, reason = "this target reads responses only")]
mod hyper_reader;

fuzz_target!(|input: (bool, &[u8])| {
    let (to_head, wire) = input;
    if let Reading::Complete(ours) = reading::response(wire, to_head) {
        // hyper reads past informational responses, and a 101 ends HTTP.
        if !ours.start[0].starts_with('1') {
            let theirs = hyper_reader::response(wire, to_head).expect("hyper accepts what we accept");
            assert_eq!(ours.start, theirs.start);
            assert_eq!(ours.fields, theirs.fields);
            assert_eq!(ours.body, theirs.body);
        }
    }
});
