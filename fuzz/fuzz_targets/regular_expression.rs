//! A regular expression and a text: refused or compiled, and never slow.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plan::routing::Pattern;

/// Long enough for a pattern that is not linear to show.
const TEXT_BYTES: usize = 60 * 1024;

fuzz_target!(|text: &str| {
    let (pattern, text) = text.split_once('\n').unwrap_or((text, "a"));
    let Ok(pattern) = Pattern::new(pattern) else { return };
    pattern.is_match(text.as_bytes());
    if !text.is_empty() {
        let long = text.repeat(TEXT_BYTES / text.len());
        pattern.is_match(long.as_bytes());
    }
});
