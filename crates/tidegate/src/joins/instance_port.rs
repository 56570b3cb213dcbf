//! The ports of client VMs, for the SSH tunnel: reached inside their network, as the tunnel's address.

use api::door::{BoxFuture, InstancePort};
use model::ResourceName;
use plan::Plan;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::watch;
use vpc::{TUNNEL_ADDRESS, Vpc, VpcError};

/// Connects through `Vpc` to the addresses of the latest plan.
#[derive(Debug)]
pub(crate) struct VpcPorts {
    pub(crate) vpc: Vpc,
    pub(crate) plans: watch::Receiver<Arc<Plan>>,
}

impl InstancePort for VpcPorts {
    fn connect<'a>(
        &'a self,
        instance: &'a ResourceName,
        port: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            let plan = self.plans.borrow().clone();
            let found = plan.networks.iter().find_map(|network| {
                let instance = network.instances.get(instance)?;
                Some((network.name.clone(), instance.address))
            });
            let (network, address) = found.ok_or(io::ErrorKind::NotFound)?;
            let to = SocketAddrV4::new(address, port);
            self.vpc.connect(&network, TUNNEL_ADDRESS, to).await.map_err(as_io)
        })
    }
}

/// Keeps the kind of the cause, by which the tunnel chooses its close code.
fn as_io(error: VpcError) -> io::Error {
    match &error {
        VpcError::Socket { source, .. } => io::Error::new(source.kind(), error),
        _ => io::Error::other(error),
    }
}
