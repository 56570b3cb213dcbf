//! What is around an instance: the metadata server at its address on the loopback device, and the
//! sockets by which whatever it sends beyond itself comes out.
//!
//! Nothing is routed anywhere: the sockets are made inside the instance's network and answered
//! outside of it, like those that requests go in by. Who is at the other end is known from the
//! socket.
//!
//! Invariant: whoever answers holds the network alive no longer than the instance lives, because
//! the runtime drops the answering futures before it reports the instance's end.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use plan::fleet::RevisionPlan;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::rewriting::{Rewriting, Transport, install, own_every_address};
use super::sandbox::{INSTANCE_ADDRESS, add_loopback_address};
use super::{InstanceId, InstanceSpec, Pending};

/// The address of the metadata server and of the name server, in every container.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The metadata server's names.
pub(crate) const METADATA_NAMES: &str = "metadata.google.internal metadata";
/// Where clients reach the two.
const METADATA_PORT: u16 = 80;
const NAMES_PORT: u16 = 53;
/// Where they really are, so that the ports are the container's.
const METADATA_BEHIND: u16 = 65_169;
const NAMES_BEHIND: u16 = 65_053;
/// Where connections to foreign addresses arrive.
const OUTWARD_BEHIND: u16 = 65_170;
/// Connections waiting to be accepted.
const BACKLOG: i32 = 256;

/// Who answers and connects the instances of a runtime; those without are on their own.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Who answers what containers ask about themselves.
    pub metadata: Option<Arc<dyn MetadataServer>>,
    /// Who carries what containers send beyond themselves.
    pub network: Option<Arc<dyn Network>>,
}

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

/// Attaches instances to the networks their revisions are for.
pub trait Network: Send + Sync + fmt::Debug {
    /// Carries what this instance of the revision sends, for as long as the future is polled.
    fn attach(
        &self,
        instance: &InstanceId,
        revision: &Arc<RevisionPlan>,
        outward: Outward,
    ) -> Pending<'static, ()>;
}

/// How an instance reaches beyond itself; both sockets are nonblocking.
#[derive(Debug)]
pub struct Outward {
    /// Connections to foreign addresses: the local address of an accepted one is where it wanted
    /// to go.
    pub connections: TcpListener,
    /// Questions to the name server.
    pub names: UdpSocket,
}

/// The sockets of one instance, until somebody answers there.
#[derive(Debug)]
pub(crate) struct Sockets {
    metadata: TcpListener,
    outward: Option<Outward>,
}

impl Sockets {
    /// Makes the sockets in the network of the calling thread, whose loopback device is up.
    pub(crate) fn make() -> io::Result<Sockets> {
        add_loopback_address(2, METADATA_ADDRESS)?;
        let metadata =
            [Rewriting { transport: Transport::Tcp, port: METADATA_PORT, behind: METADATA_BEHIND }];
        let names = Rewriting { transport: Transport::Udp, port: NAMES_PORT, behind: NAMES_BEHIND };
        let both = [metadata[0], names];
        if install(METADATA_ADDRESS, &both, Some(OUTWARD_BEHIND)).is_ok() {
            own_every_address(INSTANCE_ADDRESS)?;
            let outward = Some(outward()?);
            return Ok(Sockets { metadata: listen(METADATA_BEHIND)?, outward });
        }
        // A kernel that cannot hand connections over leaves an instance without a way out; one
        // without nftables, without port 80 as well.
        let port = match install(METADATA_ADDRESS, &metadata, None) {
            Ok(()) => METADATA_BEHIND,
            Err(_) => METADATA_PORT,
        };
        Ok(Sockets { metadata: listen(port)?, outward: None })
    }

    /// The descriptors, as they travel.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.metadata.as_fd()];
        if let Some(outward) = &self.outward {
            all.extend([outward.connections.as_fd(), outward.names.as_fd()]);
        }
        all
    }

    /// The sockets, as they arrive.
    pub(crate) fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Sockets> {
        let mut descriptors = descriptors.into_iter();
        let metadata = descriptors.next()?.into();
        let outward = descriptors.next().zip(descriptors.next());
        let outward = outward.map(|(connections, names)| Outward {
            connections: connections.into(),
            names: names.into(),
        });
        Some(Sockets { metadata, outward })
    }

    /// Lets everyone who is around answer on their sockets; what nobody wants is closed.
    pub(crate) fn answer(
        self,
        around: &Surroundings,
        spec: &InstanceSpec,
        tasks: &Handle,
    ) -> Vec<JoinHandle<()>> {
        let Some(revision) = &spec.revision_plan else { return Vec::new() };
        let metadata = around.metadata.as_ref();
        let metadata = metadata.map(|server| server.serve(&spec.id, revision, self.metadata));
        let network = around.network.as_ref().zip(self.outward);
        let network = network.map(|(network, outward)| network.attach(&spec.id, revision, outward));
        metadata.into_iter().chain(network).map(|answering| tasks.spawn(answering)).collect()
    }
}

/// Ends what [`Sockets::answer`] began: its sockets keep the network alive until they are closed.
pub(crate) async fn end_all(answering: Vec<JoinHandle<()>>) {
    for each in &answering {
        each.abort();
    }
    for each in answering {
        let _ = each.await;
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddrV4::new(METADATA_ADDRESS, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn outward() -> io::Result<Outward> {
    let connections = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    connections.set_reuse_address(true)?;
    connections.set_nonblocking(true)?;
    connections.set_ip_transparent_v4(true)?;
    connections.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, OUTWARD_BEHIND).into())?;
    connections.listen(BACKLOG)?;
    let names = UdpSocket::bind(SocketAddrV4::new(METADATA_ADDRESS, NAMES_BEHIND))?;
    names.set_nonblocking(true)?;
    Ok(Outward { connections: connections.into(), names })
}
