//! The L7 data plane: listeners, TLS, HTTP/1.1, HTTP/2, upstream pools, one request end to end.
//!
//! Thread per core: every worker owns its sockets, its connections and its upstream pools, and shares
//! nothing that a request touches with another worker. What to do with a request is decided by the plan;
//! the proxy only carries decisions out.
//!
//! Invariant: a request sees one plan from its head to its last byte, and when [`Proxy::apply`] has
//! returned, every request that begins sees that plan or a newer one.

mod access_log;
mod admission;
mod affinity;
mod backend;
mod buffer;
pub mod callers;
mod deadline;
pub mod endpoints;
mod entries;
mod fields;
mod http1;
mod http2;
mod limits;
mod listening;
mod metrics;
mod openmetrics;
mod peer;
mod pool;
mod proxy;
pub mod reading;
mod record;
mod relay;
mod request;
mod retry;
mod rewrite;
pub mod sockets;
mod tls;
mod worker;

pub use access_log::{LogTarget, RequestLog};
pub use callers::{Callers, Identity};
pub use endpoints::{
    Acquire, Dialing, Endpoints, InstanceId, Lease, Protocol, Refusal, Release, Waiting,
};
pub use limits::{
    BUFFER_BYTES, FIELDS_MAX, Limits, REPLAY_BYTES_MAX, SMALL_BUFFER_BYTES, TRAILER_BYTES_MAX,
    VIA_HOPS_MAX,
};
pub use proxy::{Config, ListenFailure, Parties, Proxy, RuleStatus, StartError};
pub use sockets::Sockets;
pub use tls::TlsError;
