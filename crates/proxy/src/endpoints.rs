//! Who answers for a revision: the question the proxy asks, answered by whoever runs instances.
//!
//! The proxy never starts an instance and never knows where one lives. It asks for a [`Lease`] on an
//! instance of a revision, dials that instance, and drops the lease when the last byte of the response
//! has gone. A revision without an instance makes the request wait, not fail.
//!
//! Invariant: a lease counts as one request in flight from the moment it is handed out until it is dropped.

use plan::fleet::RevisionPlan;
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::Arc;

/// One running instance of a revision; never reused for another one while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(pub u64);

/// What an instance speaks on its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, from the first byte (a port named `h2c`).
    H2c,
}

/// Gives a lease back. One implementation per instance, shared by all its leases.
pub trait Release: Send + Sync {
    /// One request that held a lease of this instance is over.
    fn release(&self);
}

/// The right to send one request to one instance.
pub struct Lease {
    /// The instance to dial; also the key under which its connections are pooled.
    pub instance: InstanceId,
    /// What it speaks.
    pub protocol: Protocol,
    holder: Arc<dyn Release>,
}

impl Lease {
    /// A lease that tells `holder` when it is dropped.
    pub fn new(instance: InstanceId, protocol: Protocol, holder: Arc<dyn Release>) -> Lease {
        Lease { instance, protocol, holder }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.holder.release();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Lease({}, {:?})", self.instance.0, self.protocol)
    }
}

/// Why no instance takes the request, in the words the client and the access log get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code, such as 429 or 503.
    pub status: u16,
    /// The body of the response.
    pub body: Cow<'static, str>,
    /// The details of the access log's `proxyStatus`.
    pub reason: Cow<'static, str>,
}

/// A lease that comes later. Dropping it gives up the place in the queue.
pub type Waiting = Pin<Box<dyn Future<Output = Result<Lease, Refusal>> + Send>>;

/// A connection that is being made.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// The answer to [`Endpoints::acquire`].
pub enum Acquire {
    /// An instance has room now.
    Ready(Lease),
    /// None has; the future says when one has, or that none will.
    Wait(Waiting),
    /// None will have.
    Refused(Refusal),
}

impl fmt::Debug for Acquire {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Acquire::Ready(lease) => lease.fmt(out),
            Acquire::Wait(_) => out.write_str("Wait"),
            Acquire::Refused(refusal) => refusal.fmt(out),
        }
    }
}

/// Instances of revisions, as the proxy needs them.
///
/// `acquire` is called once per attempt from every worker thread at once and must not block; with room
/// on an instance it should cost no more than a few atomic operations.
pub trait Endpoints: Send + Sync + 'static {
    /// Asks for room on an instance of `revision`.
    fn acquire(&self, revision: &Arc<RevisionPlan>) -> Acquire;

    /// Like `acquire`, on this instance if it is there and has room.
    fn acquire_preferring(
        &self,
        revision: &Arc<RevisionPlan>,
        _instance: Option<InstanceId>,
    ) -> Acquire {
        self.acquire(revision)
    }

    /// Connects to the port of an instance that a lease named. The stream may be blocking or not; the
    /// proxy sets what it needs. An instance that is gone is an error of kind `NotConnected`.
    fn dial(&self, instance: InstanceId) -> Dialing;
}

impl fmt::Debug for dyn Endpoints {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Endpoints")
    }
}
