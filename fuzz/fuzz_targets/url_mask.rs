//! A URL mask against a host and a path, one to a line: what it captures is part of the URL and could be
//! a name.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plan::routing::UrlMask;

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let (Some(mask), Some(host)) = (lines.next(), lines.next()) else { return };
    let path = format!("/{}", lines.next().unwrap_or_default());
    let Ok(mask) = UrlMask::parse(mask) else { return };
    let Some(found) = mask.extract(host, &path) else { return };
    for value in found.service.iter().chain(&found.tag) {
        assert!(!value.is_empty());
        assert!(host.contains(value) || path.contains(value));
        assert!(value.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-'));
    }
});
