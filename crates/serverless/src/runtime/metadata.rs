//! The metadata server's place in an instance's network: its address on the loopback device, and
//! a socket that listens there.
//!
//! Nothing is routed anywhere: the socket is made inside the network and answered outside of it,
//! like the sockets requests go in by. Who asks is known from the socket.
//!
//! Invariant: whoever answers holds the network alive no longer than the instance lives, because
//! the runtime drops the answering future before it reports the instance's end.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Arc;

use plan::fleet::RevisionPlan;
use socket2::{Domain, Protocol, Socket, Type};

use super::rewriting::rewrite_port;
use super::sandbox::add_loopback_address;
use super::{InstanceId, Pending};

/// The address of the metadata server, in every container.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Its names.
pub(crate) const METADATA_NAMES: &str = "metadata.google.internal metadata";
/// Where clients reach it.
const PORT: u16 = 80;
/// Where it really listens, so that port 80 is the container's.
const PORT_BEHIND: u16 = 65_169;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 64;

/// Answers what containers ask about themselves.
pub trait MetadataServer: Send + Sync + fmt::Debug {
    /// Answers connections of this nonblocking listener, which only this instance of the revision
    /// can reach, for as long as the future is polled.
    fn serve(
        &self,
        instance: &InstanceId,
        revision: &Arc<RevisionPlan>,
        listener: TcpListener,
    ) -> Pending<'static, ()>;
}

/// Makes the socket in the network of the calling thread.
pub(crate) fn listen() -> io::Result<TcpListener> {
    add_loopback_address(2, METADATA_ADDRESS)?;
    let port = match rewrite_port(METADATA_ADDRESS, PORT, PORT_BEHIND) {
        Ok(()) => PORT_BEHIND,
        // Without nftables in the kernel, port 80 is shared as far as that goes.
        Err(error) => {
            tracing::debug!(%error, "the metadata server takes port 80 itself");
            PORT
        }
    };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(METADATA_ADDRESS, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
