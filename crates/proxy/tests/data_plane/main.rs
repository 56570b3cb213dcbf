//! The data plane as both sides of the wire see it: bytes in, bytes out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod abuse;
mod basics;
mod bodies;
mod change;
mod faults;
mod framing;
mod headers;
mod observe;
mod oracle;
mod run_app;
mod support;
mod tls;
