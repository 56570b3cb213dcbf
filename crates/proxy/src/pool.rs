//! Idle connections to instances, by instance, for one worker.
//!
//! Invariant: a connection is here only after a response that ended exactly where it said, and whatever
//! arrives on it while it is here disqualifies it.

use crate::endpoints::{Endpoints, InstanceId};
use crate::limits::Limits;
use crate::metrics::IdMap;
use crate::sockets::suit_local_link;
use socket2::SockRef;
use std::cell::RefCell;
use std::io;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A connection idle for longer is not used for a request that could not be sent again: its instance may
/// be closing it at this very moment.
const FRESH: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since: Instant,
}

/// One worker's idle HTTP/1.1 connections.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: RefCell<IdMap<u64, Vec<Idle>>>,
}

impl Pool {
    /// The connection used last, if it is still as it was left; `repeatable` says whether the request can
    /// be sent again should the connection turn out to be dead.
    pub(crate) fn take(&self, instance: InstanceId, repeatable: bool) -> Option<TcpStream> {
        let mut pools = self.idle.borrow_mut();
        let idle = pools.get_mut(&instance.0)?;
        let now = (!repeatable).then(Instant::now);
        while let Some(connection) = idle.last() {
            if now.is_some_and(|now| now.duration_since(connection.since) > FRESH) {
                return None;
            }
            let connection = idle.pop()?;
            if is_quiet(&connection.stream) {
                return Some(connection.stream);
            }
        }
        None
    }

    /// Keeps a connection for later.
    pub(crate) fn put(
        &self,
        instance: InstanceId,
        stream: TcpStream,
        now: Instant,
        limits: &Limits,
    ) {
        let mut pools = self.idle.borrow_mut();
        let idle = pools.entry(instance.0).or_default();
        if idle.len() < limits.idle_upstreams_max {
            idle.push(Idle { stream, since: now });
        }
    }

    /// Closes what has been idle for too long or was closed by its instance.
    pub(crate) fn sweep(&self, now: Instant, keepalive: Duration) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|connection| {
                now.duration_since(connection.since) < keepalive && is_quiet(&connection.stream)
            });
            !idle.is_empty()
        });
    }
}

/// Whether nothing has arrived, not even the end. The runtime knows without a system call unless
/// something did.
fn is_quiet(stream: &TcpStream) -> bool {
    if stream.poll_read_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
        return true;
    }
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Connects to an instance.
pub(crate) async fn dial(
    endpoints: &dyn Endpoints,
    instance: InstanceId,
    limits: &Limits,
) -> io::Result<TcpStream> {
    let dialing = tokio::time::timeout(limits.connect_timeout, endpoints.dial(instance));
    let stream = dialing.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    suit_local_link(&SockRef::from(&stream));
    TcpStream::from_std(stream)
}
