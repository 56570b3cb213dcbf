//! Any bytes as an HTTP/1.1 request: what the data plane accepts, hyper accepts, and means the same by it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::reading::{self, Reading};

#[path = "../../crates/proxy/tests/data_plane/support/hyper_reader.rs"]
#[allow(dead_code, reason = "this target reads requests only")]
mod hyper_reader;

fuzz_target!(|wire: &[u8]| {
    if let Reading::Complete(ours) = reading::request(wire) {
        let theirs = hyper_reader::request(wire).expect("hyper accepts what we accept");
        assert_eq!(ours.start, theirs.start);
        assert_eq!(ours.fields, theirs.fields);
        assert_eq!(ours.body, theirs.body);
    }
});
