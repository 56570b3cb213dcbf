//! What Cloud Run instances send beyond themselves: into a VPC network, from an address of a subnet,
//! or to the internet, from this host.
//!
//! An instance has no link and no route. Its connections arrive at a listener of ours in its own network
//! and are carried on from here: the setting of its revision and the firewall decide where to, a socket in
//! the VPC network's namespace or one of this process takes it there. So nothing of the host is changed:
//! no link, no forwarding, no address translation.
//!
//! Invariant: this host's own addresses and whatever is private outside the VPC network are never dialled.

mod attachment;
mod names;
mod relay;

use crate::error::VpcError;
use crate::vpc::Vpc;
use attachment::Attachment;
pub(crate) use attachment::Guests;
use futures_util::stream::{FuturesUnordered, StreamExt};
use model::ResourceName;
use model::run::{Revision, VpcAccess};
use plan::Plan;
use plan::network::{Action, NetworkPlan, Packet, Way, way};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OnceCell, watch};

/// Connections an instance may have open beyond itself; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// Names of one instance being looked up at a time; further questions wait in the socket.
pub const LOOKUPS_MAX: usize = 64;
/// How long a connection to the internet may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// TCP's number among the protocols.
const TCP: u8 = 6;
/// After a failure to accept, as when this process has too many open files.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// How the internet is reached: this host's sockets, or something else in tests.
pub trait Outside: Send + Sync + std::fmt::Debug {
    /// A connection to this address.
    fn connect(
        &self,
        to: SocketAddrV4,
    ) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + '_>>;
}

/// This host, minus itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

impl Outside for Host {
    fn connect(
        &self,
        to: SocketAddrV4,
    ) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + '_>> {
        Box::pin(async move {
            if is_own_address(to)? {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            TcpStream::connect(SocketAddr::V4(to)).await
        })
    }
}

/// Whether an address is one of this host's: packets to it would leave from it, too, or a socket may have
/// it. Neither question sends anything.
fn is_own_address(to: SocketAddrV4) -> io::Result<bool> {
    let probe = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    probe.connect(SocketAddr::V4(to))?;
    if probe.local_addr()?.ip() == IpAddr::V4(*to.ip()) {
        return Ok(true);
    }
    let may_have_it = std::net::UdpSocket::bind((*to.ip(), 0)).is_ok();
    Ok(may_have_it && !sockets_may_have_foreign_addresses())
}

/// Some hosts let sockets have addresses that are not there yet.
fn sockets_may_have_foreign_addresses() -> bool {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_nonlocal_bind");
    text.is_ok_and(|text| text.trim() != "0")
}

/// Carries what instances send. Clones are the same.
#[derive(Clone, Debug)]
pub struct Egress {
    vpc: Vpc,
    plans: watch::Receiver<Arc<Plan>>,
    outside: Arc<dyn Outside>,
}

impl Egress {
    /// Carries into the networks of `vpc` as the latest plan says, and to the internet by `outside`.
    pub fn new(vpc: Vpc, plans: watch::Receiver<Arc<Plan>>, outside: Arc<dyn Outside>) -> Egress {
        Egress { vpc, plans, outside }
    }

    /// Carries what one instance of a revision sends, for as long as it is polled. The address of
    /// each connection that is accepted is where it wanted to go.
    pub async fn carry(
        self,
        revision: Arc<Revision>,
        connections: std::net::TcpListener,
        questions: std::net::UdpSocket,
    ) {
        let sockets = TcpListener::from_std(connections)
            .and_then(|connections| Ok((connections, UdpSocket::from_std(questions)?)));
        let (connections, questions) = match sockets {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::warn!(revision = %revision.name, %error, "an instance has no way out");
                return;
            }
        };
        let sender = Sender { egress: self, revision, attachment: OnceCell::new() };
        if sender.revision.vpc_access.is_some() {
            // Tried again by every connection that needs it.
            if let Err(error) = sender.attachment().await {
                tracing::warn!(revision = %sender.revision.name, %error, "no address in the VPC");
            }
        }
        tokio::join!(
            sender.carry_connections(connections),
            names::serve(questions, || sender.network())
        );
    }
}

/// One instance that sends.
#[derive(Debug)]
struct Sender {
    egress: Egress,
    revision: Arc<Revision>,
    attachment: OnceCell<Attachment>,
}

impl Sender {
    async fn carry_connections(&self, listener: TcpListener) {
        let mut open = FuturesUnordered::new();
        loop {
            let may_accept = open.len() < CONNECTIONS_MAX;
            tokio::select! {
                Some(()) = open.next() => {}
                accepted = listener.accept(), if may_accept => match accepted {
                    Ok((stream, _)) => open.push(self.carry_one(stream)),
                    Err(error) => {
                        tracing::debug!(%error, "a connection out of an instance was not accepted");
                        tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    }
                },
            }
        }
    }

    async fn carry_one(&self, stream: TcpStream) {
        let Ok(SocketAddr::V4(to)) = stream.local_addr() else { return };
        match self.connect(to).await {
            Ok(onward) => relay::carry(stream, onward).await,
            Err(error) => {
                tracing::debug!(revision = %self.revision.name, %to, %error, "not carried");
                relay::refuse(stream);
            }
        }
    }

    async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        match way(self.revision.vpc_access.as_ref(), *to.ip()) {
            Way::Nowhere => Err(io::ErrorKind::NetworkUnreachable.into()),
            Way::Network => self.connect_in_network(to).await.map_err(as_io),
            Way::Internet => {
                let connecting = self.egress.outside.connect(to);
                let connected = tokio::time::timeout(CONNECT_DEADLINE, connecting).await;
                connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// The network's egress rules are asked here, the receiver's own by the kernel on the way.
    async fn connect_in_network(&self, to: SocketAddrV4) -> Result<TcpStream, VpcError> {
        let attachment = self.attachment().await?;
        let from = attachment.address();
        let packet =
            Packet { source: from, destination: *to.ip(), protocol: TCP, port: Some(to.port()) };
        let network = self.network().ok_or_else(|| attachment.gone())?;
        let tags = self.access().map_or(&[][..], |access| &access.tags);
        let account = self.revision.service_account.as_ref();
        let verdict = network.egress_verdict(tags, account, &packet);
        if verdict.action == Action::Deny {
            return Err(VpcError::Socket {
                what: format!("pass {}", verdict.by),
                source: io::ErrorKind::PermissionDenied.into(),
            });
        }
        self.egress.vpc.connect(&network.name, from, to).await
    }

    /// The instance's address in its VPC network, taken when it is needed first.
    async fn attachment(&self) -> Result<&Attachment, VpcError> {
        let attach = || async {
            let named = self.network_name();
            let network = self.network().ok_or_else(|| VpcError::NoNetwork {
                network: named.unwrap_or_else(|| self.revision.name.clone()),
            })?;
            let region = self.revision.name.region().unwrap_or_default().to_owned();
            let access = self.access().cloned();
            let vpc = self.egress.vpc.clone();
            let attaching = move || {
                let subnet = access.and_then(|a| network.subnet_for(&a, &region).cloned());
                let gone = || VpcError::NoNetwork { network: network.name.clone() };
                Attachment::make(&vpc, &network, &subnet.ok_or_else(gone)?)
            };
            let attached = tokio::task::spawn_blocking(attaching).await;
            attached.unwrap_or_else(|error| Err(unfinished(error)))
        };
        self.attachment.get_or_try_init(attach).await
    }

    fn access(&self) -> Option<&VpcAccess> {
        self.revision.vpc_access.as_ref()
    }

    /// The network by its own name, or as that of the subnet.
    fn network_name(&self) -> Option<ResourceName> {
        let access = self.access()?;
        if let Some(network) = &access.network {
            return Some(network.clone());
        }
        let plan = self.egress.plans.borrow().clone();
        let subnetwork = access.subnetwork.as_ref()?;
        let has_it = |network: &&Arc<NetworkPlan>| {
            network.subnets.iter().any(|subnet| subnet.name == *subnetwork)
        };
        plan.networks.iter().find(has_it).map(|network| network.name.clone())
    }

    /// The network as it is now.
    fn network(&self) -> Option<Arc<NetworkPlan>> {
        let name = self.network_name()?;
        let plan = self.egress.plans.borrow().clone();
        plan.networks.get(&name).cloned()
    }
}

/// Answers the questions for names that come to a socket, as the name server of instances does; `network` is
/// asked for the network whose names are known there.
pub async fn serve_names(
    socket: std::net::UdpSocket,
    network: impl Fn() -> Option<Arc<NetworkPlan>>,
) {
    match UdpSocket::from_std(socket) {
        Ok(socket) => names::serve(socket, network).await,
        Err(error) => tracing::warn!(%error, "names are not answered"),
    }
}

fn unfinished(error: tokio::task::JoinError) -> VpcError {
    VpcError::Socket { what: "attach an instance".into(), source: io::Error::other(error) }
}

/// Keeps the kind of the cause.
fn as_io(error: VpcError) -> io::Error {
    match &error {
        VpcError::Socket { source, .. } => io::Error::new(source.kind(), error),
        _ => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_addresses_are_told_from_others() {
        for address in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9)] {
            let found = is_own_address(SocketAddrV4::new(address, 80));
            assert!(found.expect("a socket"), "{address}");
        }
    }
}
