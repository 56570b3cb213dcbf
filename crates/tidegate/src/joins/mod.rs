//! Where two effect crates meet: the one-method traits a consumer owns, answered by the crate that can.
//!
//! Every file here translates words and decides nothing.

pub(crate) mod builds;
pub(crate) mod callers;
pub(crate) mod endpoints;
pub(crate) mod instance_port;
pub(crate) mod logs;
pub(crate) mod metadata;
pub(crate) mod network;
pub(crate) mod observed;
pub(crate) mod request_log;
pub(crate) mod run_apps;
pub(crate) mod secrets;
pub(crate) mod sockets;
