//! The data plane as both sides of the wire see it: bytes in, bytes out.

mod basics;
mod support;
