//! The data plane as both sides of the wire see it: bytes in, bytes out.

mod basics;
mod bodies;
mod change;
mod faults;
mod framing;
mod headers;
mod observe;
mod support;
mod tls;
