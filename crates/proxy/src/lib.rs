//! The L7 data plane: listeners, TLS, HTTP/1.1, HTTP/2, upstream pools, one request end to end.
//!
//! Thread per core: every worker owns its sockets, its connections and its upstream pools, and shares
//! nothing that a request touches with another worker. What to do with a request is decided by the plan.

pub mod endpoints;
pub mod sockets;

pub use endpoints::{Acquire, Dialing, Endpoints, InstanceId, Lease, Protocol, Refusal, Release, Waiting};
pub use sockets::Sockets;
