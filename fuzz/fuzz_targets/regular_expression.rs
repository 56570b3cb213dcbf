//! A regular expression and a text: refused or compiled, and matched by at most one step for each byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plan::routing::Pattern;

/// As much as the head of a request can bring along.
const TEXT_BYTES: usize = 60 * 1024;

fuzz_target!(|text: &str| {
    let (pattern, text) = text.split_once('\n').unwrap_or((text, "a"));
    let Ok(pattern) = Pattern::new(pattern) else { return };
    assert!(pattern.steps(text.as_bytes()) <= text.len());
    if !text.is_empty() {
        let long = text.repeat(TEXT_BYTES / text.len());
        assert!(pattern.steps(long.as_bytes()) <= long.len());
    }
});
