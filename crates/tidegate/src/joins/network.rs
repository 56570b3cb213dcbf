//! What instances send beyond themselves, carried by the VPC part; on the internet, services of this server
//! are by their `run.app` names.

use crate::data_dir::RunAppAddresses;
use plan::fleet::RevisionPlan;
use serverless::runtime::{InstanceId, Network, Outward, Pending};
use std::future::Future;
use std::io;
use std::net::SocketAddrV4;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;
use vpc::RUN_APP_ADDRESS;
use vpc::egress::{Egress, Host, Outside};

/// Attaches instances by `Egress`.
#[derive(Debug)]
pub(crate) struct VpcEgress(pub(crate) Egress);

impl Network for VpcEgress {
    fn attach(
        &self,
        _instance: &InstanceId,
        revision: &Arc<RevisionPlan>,
        outward: Outward,
    ) -> Pending<'static, ()> {
        let declared = Arc::clone(&revision.declared);
        Box::pin(self.0.clone().carry(declared, outward.connections, outward.names))
    }
}

/// The internet as instances see it.
#[derive(Debug)]
pub(crate) struct Internet {
    /// Where services are reached by those who come from outside every network, once it is known.
    pub(crate) run_apps: Arc<OnceLock<RunAppAddresses>>,
}

impl Outside for Internet {
    fn connect(
        &self,
        to: SocketAddrV4,
    ) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + '_>> {
        if *to.ip() != RUN_APP_ADDRESS {
            return Host.connect(to);
        }
        Box::pin(async move {
            let at = self.run_apps.get().ok_or(io::ErrorKind::ConnectionRefused)?;
            let at = match to.port() {
                443 => at.https,
                80 => at.http,
                _ => return Err(io::ErrorKind::ConnectionRefused.into()),
            };
            TcpStream::connect(at).await
        })
    }
}
