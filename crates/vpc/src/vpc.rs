//! The applier: every network and instance of the plan, on this host.
//!
//! Everything lives under `DATA_DIR/vpc`, by numeric id, so that several servers run side by side and the
//! next server finds what the last one left. [`Vpc::apply`] is idempotent: it compares the plan with what
//! is there and carries out the difference, after a crash as after a change.
//!
//! Invariant: after `apply`, nothing under the data directory runs, is mounted or is pinned that the plan
//! does not name, except instances that are being stopped at that moment.

use crate::egress::Guests;
use crate::error::{Failure, VpcError};
use crate::instance::{Folder, InstanceStatus, Keeper, Observation, Order, Wanted, serial_output};
use crate::namespace::Namespace;
use crate::network::HostNetwork;
use model::ResourceName;
use plan::network::{InstancePlan, NetworkPlan, Networks};
use socket2::{Domain, SockAddr, Socket, Type};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

/// Connections waiting to be accepted by one listener.
const BACKLOG: i32 = 4096;
/// How long a connection into a network may take; a firewall that drops is silent.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The VPC networks and instances of one data directory.
#[derive(Clone, Debug)]
pub struct Vpc {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    networks_folder: PathBuf,
    instances_folder: PathBuf,
    state: Mutex<State>,
    /// The namespaces by network, apart from the state so that sockets never wait for an `apply`.
    namespaces: RwLock<BTreeMap<ResourceName, Namespace>>,
    /// Who has addresses of each network at the moment, beside the plan.
    guests: RwLock<BTreeMap<ResourceName, Guests>>,
    /// What is seen of instances by name, apart from the state for the same reason.
    watched: RwLock<BTreeMap<ResourceName, Watched>>,
    changes: watch::Sender<u64>,
    /// The certificates that instances trust instead of the host's.
    roots: OnceLock<PathBuf>,
}

/// An instance, for those who only look.
#[derive(Clone, Debug)]
struct Watched {
    id: u64,
    seen: watch::Receiver<Observation>,
    /// Whether it should run, and which boot; nothing when it should go.
    wanted: Option<(bool, u64)>,
    folder: Folder,
}

#[derive(Debug, Default)]
struct State {
    networks: BTreeMap<u64, HostNetwork>,
    instances: BTreeMap<u64, HostInstance>,
    applied: Option<Networks>,
}

#[derive(Debug)]
struct HostInstance {
    keeper: Keeper,
    /// What was last written and ordered; none for an instance that is on its way out.
    ordered: Option<(Arc<InstancePlan>, Arc<NetworkPlan>)>,
}

impl Vpc {
    /// Opens the VPC part of a data directory. Nothing on the host changes before [`Vpc::apply`].
    pub fn open(data_dir: &Path) -> Result<Vpc, VpcError> {
        let folder = data_dir.join("vpc");
        let (networks_folder, instances_folder) =
            (folder.join("networks"), folder.join("instances"));
        for path in [&networks_folder, &instances_folder] {
            fs::create_dir_all(path).map_err(VpcError::file("make", path))?;
        }
        // Pins and records are found again by absolute path, wherever the next server is started.
        let absolute =
            |path: PathBuf| path.canonicalize().map_err(VpcError::file("find", path.as_path()));
        let inner = Inner {
            networks_folder: absolute(networks_folder)?,
            instances_folder: absolute(instances_folder)?,
            state: Mutex::default(),
            namespaces: RwLock::default(),
            guests: RwLock::default(),
            watched: RwLock::default(),
            changes: watch::channel(0).0,
            roots: OnceLock::new(),
        };
        Ok(Vpc { inner: Arc::new(inner) })
    }

    /// Lets instances that start from now on trust the certificates in this file (PEM) instead of those that
    /// the host trusts; said once.
    pub fn trust(&self, roots: PathBuf) {
        self.inner.roots.get_or_init(|| roots);
    }

    /// Makes the host what the plan says. Blocks: networks, addresses, firewall and keys are in force when
    /// it returns, and instances are on their way ([`Vpc::instance_ready`]). What failed is tried again
    /// by the next call.
    pub fn apply(&self, networks: &Networks) -> Vec<Failure> {
        let mut state = self.inner.state();
        if state.applied.as_ref().is_some_and(|applied| applied.same(networks)) {
            return Vec::new();
        }
        let is_first = state.applied.take().is_none() && state.networks.is_empty();
        let mut failures = Vec::new();
        let mut fail = |resource: &ResourceName, source| {
            failures.push(Failure { resource: resource.clone(), source });
        };
        for plan in networks.iter() {
            match self.inner.apply_network(&mut state, plan) {
                Ok(()) => {
                    for instance in plan.instances.values() {
                        let applied = self.inner.apply_instance(&mut state, plan, instance);
                        applied.unwrap_or_else(|error| fail(&instance.name, error));
                    }
                }
                Err(error) => fail(&plan.name, error),
            }
        }
        self.inner.remove_superfluous(&mut state, networks, is_first, &mut fail);
        if failures.is_empty() {
            state.applied = Some(networks.clone());
        }
        failures
    }

    /// Lets go of every instance and leaves it as it is, for another server to take over. Blocks.
    pub fn leave(&self) {
        let mut state = self.inner.state();
        state.applied = None;
        for instance in state.instances.values() {
            instance.keeper.want(Wanted::Left);
        }
        for (_, instance) in std::mem::take(&mut state.instances) {
            instance.keeper.join();
        }
    }

    /// Stops every instance and removes everything from the host; what instances keep stays in the data
    /// directory. Works without a plan, for whatever an earlier server left.
    pub fn down(&self) -> Vec<VpcError> {
        let mut state = self.inner.state();
        let state = &mut *state;
        state.applied = None;
        let mut failures = Vec::new();
        let mut check = |done: Result<(), VpcError>| failures.extend(done.err());
        check(self.inner.find_instances(state, &BTreeSet::new()));
        for instance in state.instances.values() {
            instance.keeper.want(Wanted::Down);
        }
        for (_, instance) in std::mem::take(&mut state.instances) {
            instance.keeper.join();
        }
        check(self.inner.find_networks(state, &BTreeSet::new()));
        self.inner.watchlist().clear();
        self.inner.namespaces().clear();
        for (_, network) in std::mem::take(&mut state.networks) {
            check(network.tear_down());
        }
        failures
    }

    /// Runs `work` on a thread inside the network's namespace, and waits for it: what it opens there
    /// stays there.
    pub fn within<T: Send>(
        &self,
        network: &ResourceName,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, VpcError> {
        self.inner.namespace(network)?.within(work)
    }

    /// A listener inside the network, nonblocking, which others of the same address may join
    /// (`SO_REUSEPORT`). Nothing outside the network can reach it.
    pub fn listen(
        &self,
        network: &ResourceName,
        address: SocketAddrV4,
    ) -> Result<TcpListener, VpcError> {
        let listen = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from(socket))
        };
        let failed = |source| VpcError::Socket { what: format!("listen on {address}"), source };
        self.within(network, listen)?.map_err(failed)
    }

    /// A datagram socket inside the network, nonblocking, which others of the same address may join. Nothing
    /// outside the network can reach it.
    pub fn bind(
        &self,
        network: &ResourceName,
        address: SocketAddrV4,
    ) -> Result<UdpSocket, VpcError> {
        let bind = || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            Ok(UdpSocket::from(socket))
        };
        let failed = |source| VpcError::Socket { what: format!("bind to {address}"), source };
        self.within(network, bind)?.map_err(failed)
    }

    /// Connects inside the network to `to`, as if from `from`, which must be an address of the network's
    /// own side: [`TUNNEL_ADDRESS`](crate::TUNNEL_ADDRESS), one of a proxy-only subnet, or a gateway. The
    /// firewall of the receiver decides; one that drops makes this time out.
    pub async fn connect(
        &self,
        network: &ResourceName,
        from: Ipv4Addr,
        to: SocketAddrV4,
    ) -> Result<TcpStream, VpcError> {
        let failed = |source| VpcError::Socket { what: format!("connect {from} to {to}"), source };
        let namespace = self.inner.namespace(network)?;
        let open = move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SockAddr::from(SocketAddrV4::new(from, 0)))?;
            Ok::<_, io::Error>(std::net::TcpStream::from(socket))
        };
        let entered = tokio::task::spawn_blocking(move || namespace.within(open)).await;
        let socket = entered.map_err(|error| failed(io::Error::other(error)))??.map_err(failed)?;
        let connecting = TcpSocket::from_std_stream(socket).connect(to.into());
        match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
            Ok(connected) => connected.map_err(failed),
            Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
        }
    }

    /// The namespace of a network, with the addresses in it that are not the plan's.
    pub(crate) fn attachable(
        &self,
        network: &ResourceName,
    ) -> Result<(Namespace, Guests), VpcError> {
        let namespace = self.inner.namespace(network)?;
        let guests = self.inner.guests.read().unwrap_or_else(PoisonError::into_inner);
        let gone = || VpcError::NoNetwork { network: network.clone() };
        Ok((namespace, guests.get(network).cloned().ok_or_else(gone)?))
    }

    /// What is seen of an instance.
    pub fn observe(&self, instance: &ResourceName) -> Option<Observation> {
        let observed = self.inner.watched(instance)?.seen.borrow().clone();
        observed.status.is_some().then_some(observed)
    }

    /// What an instance is doing; nothing when there is none of that name.
    pub fn instance_status(&self, instance: &ResourceName) -> Option<InstanceStatus> {
        self.observe(instance)?.status
    }

    /// Resolves when the instance is what the plan last applied says: running in the right boot and
    /// taking connections, stopped, or gone. The error is why it cannot be.
    pub fn instance_ready(
        &self,
        instance: &ResourceName,
    ) -> impl Future<Output = Result<(), VpcError>> + Send + use<> {
        let (name, watched) = (instance.clone(), self.inner.watched(instance));
        async move {
            let Some(Watched { mut seen, wanted, .. }) = watched else { return Ok(()) };
            let settled = seen.wait_for(|seen| is_settled(seen, wanted)).await;
            let failure = settled.ok().and_then(|seen| seen.failure.clone());
            match failure {
                Some(what) => Err(VpcError::Instance { instance: name, what }),
                None => Ok(()),
            }
        }
    }

    /// Changes whenever anything observed of any instance changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// What the instance wrote to its serial port, as far as it is kept.
    pub fn serial_output(&self, instance: &ResourceName) -> Option<String> {
        Some(serial_output(&self.inner.watched(instance)?.folder))
    }

    /// The instance's SSH host keys: type (`ssh-ed25519`) and base64. They are the same for ever.
    pub fn host_keys(&self, instance: &ResourceName) -> Vec<(String, String)> {
        self.inner.watched(instance).map(|found| found.folder.host_keys()).unwrap_or_default()
    }
}

/// Whether an instance has come to rest where it should be, or in failure.
fn is_settled(seen: &Observation, wanted: Option<(bool, u64)>) -> bool {
    match (wanted, seen.status) {
        (None, status) => status.is_none(),
        (Some((true, boot)), Some(InstanceStatus::Running)) => seen.boot == boot,
        (Some((true, boot)), Some(InstanceStatus::Terminated)) => {
            seen.boot == boot && seen.failure.is_some()
        }
        (Some((false, _)), status) => status == Some(InstanceStatus::Terminated),
        (Some((true, _)), _) => false,
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn namespaces(&self) -> RwLockWriteGuard<'_, BTreeMap<ResourceName, Namespace>> {
        self.namespaces.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn namespace(&self, network: &ResourceName) -> Result<Namespace, VpcError> {
        let namespaces = self.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        let found = namespaces.get(network).cloned();
        found.ok_or_else(|| VpcError::NoNetwork { network: network.clone() })
    }

    fn watched(&self, instance: &ResourceName) -> Option<Watched> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner).get(instance).cloned()
    }

    fn watchlist(&self) -> RwLockWriteGuard<'_, BTreeMap<ResourceName, Watched>> {
        self.watched.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_network(&self, state: &mut State, plan: &Arc<NetworkPlan>) -> Result<(), VpcError> {
        let network = match state.networks.entry(plan.id) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                let pin = self.networks_folder.join(plan.id.to_string());
                place.insert(HostNetwork::open(pin, Some(plan.name.clone()))?)
            }
        };
        network.name = Some(plan.name.clone());
        network.apply(plan)?;
        self.namespaces().insert(plan.name.clone(), network.namespace.clone());
        let guests = network.guests.clone();
        self.guests
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(plan.name.clone(), guests);
        Ok(())
    }

    fn apply_instance(
        &self,
        state: &mut State,
        network: &Arc<NetworkPlan>,
        plan: &Arc<InstancePlan>,
    ) -> Result<(), VpcError> {
        let State { networks, instances, .. } = state;
        let Some(host_network) = networks.get(&network.id) else {
            return Err(VpcError::NoNetwork { network: network.name.clone() });
        };
        let known = instances.get(&plan.id).and_then(|found| found.ordered.as_ref());
        let is_known = known.is_some_and(|(old, of)| {
            Arc::ptr_eq(old, plan)
                && of.hosts == network.hosts
                && of.mtu_bytes == network.mtu_bytes
                && of.routes == network.routes
        });
        if is_known {
            return Ok(());
        }
        let folder = self.instance_folder(plan.id);
        folder.write(plan, &network.hosts)?;
        if let Some(roots) = self.roots.get() {
            folder.trust(roots)?;
        }
        let to_here = network.routes.iter().filter(|route| route.via == plan.address);
        let order = Order {
            plan: plan.clone(),
            network: host_network.namespace.clone(),
            mtu_bytes: network.mtu_bytes,
            routes: to_here.map(|route| route.destination).collect(),
        };
        let wanted = if plan.running { Wanted::Running(order) } else { Wanted::Stopped };
        let ordered = Some((plan.clone(), network.clone()));
        let seen = match instances.entry(plan.id) {
            Entry::Occupied(mut found) => {
                found.get().keeper.want(wanted);
                found.get_mut().ordered = ordered;
                found.get().keeper.observe()
            }
            Entry::Vacant(place) => {
                let (name, folder) = (Some(plan.name.clone()), folder.clone());
                let keeper = Keeper::start(name, plan.id, folder, wanted, self.changes.clone())?;
                place.insert(HostInstance { keeper, ordered }).keeper.observe()
            }
        };
        let wanted = Some((plan.running, plan.boot));
        self.watchlist().insert(plan.name.clone(), Watched { id: plan.id, seen, wanted, folder });
        Ok(())
    }

    fn instance_folder(&self, id: u64) -> Folder {
        Folder::at(self.instances_folder.join(id.to_string()))
    }

    /// Removes what the plan does not name; at first also what an earlier server left.
    fn remove_superfluous(
        &self,
        state: &mut State,
        networks: &Networks,
        is_first: bool,
        fail: &mut impl FnMut(&ResourceName, VpcError),
    ) {
        let instance_ids: BTreeSet<u64> =
            networks.iter().flat_map(|n| n.instances.values().map(|i| i.id)).collect();
        let network_ids: BTreeSet<u64> = networks.iter().map(|network| network.id).collect();
        if is_first {
            let found = self.find_instances(state, &instance_ids);
            if let Err(error) = found.and_then(|()| self.find_networks(state, &network_ids)) {
                tracing::warn!("leftovers could not be looked for: {error}");
            }
        }
        state.instances.retain(|_, instance| !instance.keeper.is_gone());
        let leaving = state.instances.iter_mut().filter(|(id, _)| !instance_ids.contains(id));
        for (_, instance) in leaving {
            instance.ordered = None;
            instance.keeper.want(Wanted::Deleted);
        }
        self.watchlist().retain(|_, watched| {
            if !instance_ids.contains(&watched.id) {
                watched.wanted = None;
            }
            watched.seen.borrow().status.is_some()
        });
        let is_superfluous = |id: &u64| !network_ids.contains(id);
        let superfluous: Vec<u64> = state.networks.keys().copied().filter(is_superfluous).collect();
        for network in superfluous.iter().filter_map(|id| state.networks.remove(id)) {
            let name = network.name.clone();
            if let Some(name) = &name {
                self.namespaces().remove(name);
            }
            match (network.tear_down(), name) {
                (Err(error), Some(name)) => fail(&name, error),
                (Err(error), None) => tracing::warn!("a leftover network stays: {error}"),
                (Ok(()), _) => {}
            }
        }
    }

    /// Takes over the instances an earlier server left, besides those `known`.
    fn find_instances(&self, state: &mut State, known: &BTreeSet<u64>) -> Result<(), VpcError> {
        for id in ids_in(&self.instances_folder)? {
            if known.contains(&id) || state.instances.contains_key(&id) {
                continue;
            }
            let folder = self.instance_folder(id);
            let keeper = Keeper::start(None, id, folder, Wanted::Stopped, self.changes.clone())?;
            state.instances.insert(id, HostInstance { keeper, ordered: None });
        }
        Ok(())
    }

    /// Takes over the networks an earlier server left, besides those `known`.
    fn find_networks(&self, state: &mut State, known: &BTreeSet<u64>) -> Result<(), VpcError> {
        for id in ids_in(&self.networks_folder)? {
            if !known.contains(&id) && !state.networks.contains_key(&id) {
                let pin = self.networks_folder.join(id.to_string());
                state.networks.insert(id, HostNetwork::open(pin, None)?);
            }
        }
        Ok(())
    }
}

/// Keepers end with the server; their instances stay.
impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        for instance in state.instances.values() {
            instance.keeper.want(Wanted::Left);
        }
        for (_, instance) in std::mem::take(&mut state.instances) {
            instance.keeper.join();
        }
    }
}

/// The numeric names in a folder.
fn ids_in(folder: &Path) -> Result<Vec<u64>, VpcError> {
    let listed = fs::read_dir(folder).map_err(VpcError::file("list", folder))?;
    let names = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}
