//! HTTP/2: the connection of a client, and instances that speak it without TLS.
//!
//! Framing, header compression and flow control are the h2 crate's; what a request means is decided where
//! HTTP/1.1 requests are, and bodies travel through the same relay.

pub(crate) mod client;
mod meter;
mod stream;
pub(crate) mod upstream;
