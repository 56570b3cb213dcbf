//! What the tests of the data plane share.
#![allow(dead_code, reason = "the tests and the example each use a part of it")]

pub(crate) mod http2;
pub(crate) mod hyper_reader;
pub(crate) mod memory;
pub(crate) mod payloads;
pub(crate) mod plane;
pub(crate) mod wire;
pub(crate) mod world;
