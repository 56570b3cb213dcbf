//! Where listening sockets come from, and how one is closed without losing a connection.
//!
//! A forwarding rule's address lives in the network namespace of its VPC, so the sockets are made by
//! whoever owns namespaces. Every worker thread has a socket of its own in one `SO_REUSEPORT` group.
//!
//! Closing a socket of such a group resets every connection that the kernel has completed and nobody
//! has accepted. The worker therefore makes the socket deaf to SYNs first: a client whose
//! `connect` has returned is in the accept queue and will be served, a client that is still connecting
//! sends its SYN again and finds the rest of the group, or the refusal it should get. Then the queue is
//! accepted until it is empty, and only then is the socket closed.

use model::ResourceName;
use socket2::SockRef;
use std::io;
use std::net::{SocketAddrV4, TcpListener};

/// How many completed connections the kernel keeps for one socket until a worker accepts them.
pub const ACCEPT_BACKLOG: i32 = 4096;

/// Makes listening sockets inside VPC networks.
pub trait Sockets: Send + Sync + 'static {
    /// Opens `count` sockets of one `SO_REUSEPORT` group on `address` inside `network`'s namespace.
    ///
    /// May block for the time it takes to enter a namespace. [`listen_here`] does the rest once the
    /// calling thread is inside.
    fn listen(
        &self,
        network: &ResourceName,
        address: SocketAddrV4,
        count: usize,
    ) -> io::Result<Vec<TcpListener>>;
}

impl std::fmt::Debug for dyn Sockets {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Sockets")
    }
}

/// Chooses the congestion control for a link inside this host, whatever the host uses for the world:
/// there is no queue to model and nothing to pace, so the plainest algorithm costs least. Accepted
/// connections inherit it from their listener.
pub(crate) fn suit_local_link(socket: &SockRef<'_>) {
    const PLAINEST: &[u8] = b"reno";
    if let Err(error) = socket.set_tcp_congestion(PLAINEST) {
        tracing::debug!(%error, "the host's own congestion control stays in use");
    }
}

/// Opens `count` listening sockets on `address` in the network namespace of the calling thread.
pub fn listen_here(address: SocketAddrV4, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        suit_local_link(&SockRef::from(&socket));
        socket.bind(&address.into())?;
        socket.listen(ACCEPT_BACKLOG)?;
        let listener = TcpListener::from(socket);
        // With port 0 the first socket chooses, and the others join it.
        if let std::net::SocketAddr::V4(bound) = listener.local_addr()? {
            address = bound;
        }
        sockets.push(listener);
    }
    Ok(sockets)
}
