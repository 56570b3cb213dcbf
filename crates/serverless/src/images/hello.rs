//! The shipped image: one layer with one program, compiled by the build script.

/// The program, a static executable.
pub(crate) static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));
