//! HTTP/1.1: strict heads, strict bodies, the connection of a client and the connection to an instance.

pub(crate) mod body;
pub(crate) mod client;
pub(crate) mod head;
mod tunnel;
pub(crate) mod upstream;
mod wire;
mod writer;
