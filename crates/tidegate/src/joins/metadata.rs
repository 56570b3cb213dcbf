//! The metadata server, for instances by the socket in their own network, and for client VMs by their
//! address in the network they are in; to these it is the name server too.

use api::metadata::{Metadata, serve};
use model::ResourceName;
use plan::Plan;
use plan::fleet::RevisionPlan;
use plan::network::Networks;
use serverless::runtime::{InstanceId, MetadataServer, Pending};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use vpc::egress::serve_names;
use vpc::{METADATA_ADDRESS, Vpc};

/// Where clients expect the metadata server.
const PORT: u16 = 80;
/// Where they ask for names.
const NAMES_PORT: u16 = 53;

/// Answers Cloud Run instances.
#[derive(Debug)]
pub(crate) struct ContainerMetadata(pub(crate) Metadata);

impl MetadataServer for ContainerMetadata {
    fn serve(
        &self,
        instance: &InstanceId,
        revision: &Arc<RevisionPlan>,
        listener: TcpListener,
    ) -> Pending<'static, ()> {
        let metadata = self.0.clone();
        let guest = metadata.container(&revision.declared, instance.as_str());
        Box::pin(serve(metadata, listener, move |_| Some(guest.clone())))
    }
}

/// Answers client VMs: a listener and a socket for names in each network.
#[derive(Debug)]
pub(crate) struct MachineMetadata {
    metadata: Metadata,
    plans: watch::Receiver<Arc<Plan>>,
    tasks: Handle,
    listeners: Mutex<BTreeMap<u64, [AbortHandle; 2]>>,
}

impl MachineMetadata {
    /// Answers in no network yet; the answers are given by tasks of the runtime this is called in.
    pub(crate) fn new(metadata: Metadata, plans: watch::Receiver<Arc<Plan>>) -> MachineMetadata {
        let tasks = Handle::current();
        MachineMetadata { metadata, plans, tasks, listeners: Mutex::default() }
    }

    /// Answers in these networks and no others. Blocks while sockets are made.
    pub(crate) fn follow(&self, vpc: &Vpc, networks: &Networks) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|id, answering| {
            let stays = networks.iter().any(|network| network.id == *id);
            if !stays {
                answering.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        for network in networks.iter() {
            if listeners.contains_key(&network.id) {
                continue;
            }
            let opened = vpc
                .listen(&network.name, SocketAddrV4::new(METADATA_ADDRESS, PORT))
                .and_then(|listener| {
                    let names = SocketAddrV4::new(METADATA_ADDRESS, NAMES_PORT);
                    Ok((listener, vpc.bind(&network.name, names)?))
                });
            match opened {
                Ok((listener, names)) => {
                    let name = &network.name;
                    let answering = [self.answer(name.clone(), listener), self.name(name, names)];
                    listeners.insert(network.id, answering);
                }
                // The network itself failed, and is tried again with the next plan.
                Err(error) => tracing::warn!(network = %network.name, %error, "no metadata server"),
            }
        }
    }

    fn answer(&self, network: ResourceName, listener: TcpListener) -> AbortHandle {
        let metadata = self.metadata.clone();
        let asked = metadata.clone();
        let who = move |peer: SocketAddr| match peer.ip() {
            IpAddr::V4(address) => asked.machine_at(&network, address),
            IpAddr::V6(_) => None,
        };
        self.tasks.spawn(serve(metadata, listener, who)).abort_handle()
    }

    fn name(&self, network: &ResourceName, questions: UdpSocket) -> AbortHandle {
        let (plans, network) = (self.plans.clone(), network.clone());
        let known = move || plans.borrow().networks.get(&network).cloned();
        self.tasks.spawn(serve_names(questions, known)).abort_handle()
    }
}
