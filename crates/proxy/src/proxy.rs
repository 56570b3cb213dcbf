//! The data plane as the rest of the process sees it: start, apply a plan, report, drain.
//!
//! The control side lives in one lock that no request ever takes.

use crate::access_log::{LogTarget, LogWriter, RequestLog};
use crate::callers::Callers;
use crate::endpoints::Endpoints;
use crate::limits::Limits;
use crate::listening::RuleCells;
use crate::metrics::Registry;
use crate::openmetrics;
use crate::sockets::{Sockets, listen_here};
use crate::tls::{self, TlsError};
use crate::worker::{self, Command, Parts, Set};
use model::ResourceName;
use plan::Plan;
use plan::fleet::Arrival;
use plan::load_balancer::{Listener, Tls};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// What a data plane is started with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads; one per core is the design.
    pub workers: usize,
    /// Every bound of the data plane.
    pub limits: Limits,
    /// Where the access log goes.
    pub log: LogTarget,
    /// Who keeps what Cloud Logging shows of requests; nobody, if absent.
    pub request_log: Option<Arc<dyn RequestLog>>,
}

impl Default for Config {
    fn default() -> Config {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Config { workers, limits: Limits::default(), log: LogTarget::Off, request_log: None }
    }
}

/// Who answers what the data plane has to ask.
#[derive(Clone, Debug)]
pub struct Parties {
    /// Instances of revisions.
    pub endpoints: Arc<dyn Endpoints>,
    /// Listening sockets.
    pub sockets: Arc<dyn Sockets>,
    /// Tokens.
    pub callers: Arc<dyn Callers>,
}

/// Why a data plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The access log cannot be written.
    #[error("could not open the access log")]
    Log(#[source] io::Error),
    /// A worker thread cannot be made.
    #[error("could not start a worker thread")]
    Thread(#[source] io::Error),
}

/// Why a forwarding rule of the plan is not served; the next plan tries again.
#[derive(Debug, thiserror::Error)]
pub enum ListenFailure {
    /// Its socket cannot be opened.
    #[error("could not listen on `{address}` for `{rule}`")]
    Socket {
        /// The forwarding rule.
        rule: ResourceName,
        /// The address and port.
        address: SocketAddrV4,
        /// What the system said.
        source: io::Error,
    },
    /// Its TLS settings cannot be served; a rule that was served keeps its former ones.
    #[error("could not use the TLS settings of `{rule}`")]
    Tls {
        /// The forwarding rule.
        rule: ResourceName,
        /// What is wrong.
        source: Box<TlsError>,
    },
}

/// What one forwarding rule has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleStatus {
    /// The forwarding rule.
    pub rule: ResourceName,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Connections that are open.
    pub connections: u64,
    /// Connections since it was opened.
    pub connections_total: u64,
    /// Requests since it was opened.
    pub requests: u64,
    /// Responses by the first digit of their status code; 0 counts requests that got none.
    pub responses_by_class: [u64; 6],
}

/// TLS settings with what was made of them.
type KnownTls = (Arc<Tls>, Arc<rustls::ServerConfig>);

#[derive(Debug)]
struct Open {
    listener: Arc<Listener>,
    tls: Option<KnownTls>,
    cells: Vec<Arc<RuleCells>>,
    sockets: Vec<TcpListener>,
}

#[derive(Debug)]
struct Control {
    plan: Arc<Plan>,
    open: BTreeMap<ResourceName, Open>,
    /// Rules of the plan that could not be served.
    failed: BTreeSet<ResourceName>,
    /// Sockets taken over from an earlier process, by the address they listen on.
    inherited: BTreeMap<(ResourceName, SocketAddrV4), Vec<TcpListener>>,
    handed_over: bool,
    workers: Vec<UnboundedSender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

/// The running data plane.
#[derive(Debug)]
pub struct Proxy {
    control: Mutex<Control>,
    sockets: Arc<dyn Sockets>,
    registry: Arc<Registry>,
    logs: Mutex<Vec<LogWriter>>,
}

impl Proxy {
    /// Starts the worker threads; nothing is served before the first [`Proxy::apply`].
    pub fn start(config: Config, parties: Parties) -> Result<Proxy, StartError> {
        let Parties { endpoints, sockets, callers } = parties;
        let registry = Arc::new(Registry::default());
        let log = LogWriter::start(&config.log).map_err(StartError::Log)?;
        let store = config.request_log.as_ref().map(LogWriter::handing_to).transpose();
        let store = store.map_err(StartError::Thread)?;
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        for number in 0..config.workers.max(1) {
            let (sender, receiver) = unbounded_channel();
            let limits = config.limits.clone();
            let parts = Parts {
                endpoints: endpoints.clone(),
                callers: callers.clone(),
                log: log.as_ref().and_then(|log| log.worker(&registry, limits.log_bytes_max)),
                store: store.as_ref().and_then(|log| log.worker(&registry, limits.log_bytes_max)),
                registry: registry.clone(),
                limits,
            };
            let thread = std::thread::Builder::new()
                .name(format!("proxy-{number}"))
                .spawn(move || {
                    if let Err(error) = worker::run(parts, receiver) {
                        tracing::error!(%error, "a worker of the data plane could not run");
                    }
                })
                .map_err(StartError::Thread)?;
            workers.push(sender);
            threads.push(thread);
        }
        let logs = log.into_iter().chain(store).collect();
        let control = Control {
            plan: Arc::default(),
            open: BTreeMap::new(),
            failed: BTreeSet::new(),
            inherited: BTreeMap::new(),
            handed_over: false,
            workers,
            threads,
        };
        Ok(Proxy { control: Mutex::new(control), sockets, registry, logs: Mutex::new(logs) })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves `plan` from now on and returns when every worker does. An older plan than the one that is
    /// served is left alone. Blocks for the time it takes to open sockets and to reach every worker, so
    /// it is called from a thread that may block.
    pub fn apply(&self, plan: &Arc<Plan>) -> Vec<ListenFailure> {
        let mut control = self.control();
        if plan.number < control.plan.number {
            return Vec::new();
        }
        let changes = control.changes_to(plan);
        let mut failures = Vec::new();
        let mut sets: Vec<Vec<Set>> = control.workers.iter().map(|_| Vec::new()).collect();
        let mut remove = Vec::new();
        for (before, after) in changes {
            let name = after.as_ref().or(before.as_ref()).map(|listener| listener.name.clone());
            let Some(name) = name else { continue };
            let moved =
                before.as_ref().zip(after.as_ref()).is_some_and(|(b, a)| !same_socket(b, a));
            if (after.is_none() || moved)
                && let Some(open) = control.open.remove(&name)
            {
                remove.push(open.listener.id);
            }
            control.failed.remove(&name);
            if let Some(listener) = after
                && let Err(failure) = control.serve(&listener, &*self.sockets, &mut sets)
            {
                tracing::error!(error = &failure as &dyn std::error::Error, "rule not served");
                control.failed.insert(name);
                failures.push(failure);
            }
        }
        control.plan = plan.clone();
        control.tell_workers(plan, sets, &remove);
        failures
    }

    /// Serves the `run.app` addresses of all services where `listener` says, whatever the plan declares: in
    /// its network, or, for those who come from outside, in the namespace of this process. With `tls`, what
    /// arrives is a TLS handshake. Returns where, for a listener that leaves the port open. Blocks like
    /// [`Proxy::apply`].
    pub fn open_run_app(
        &self,
        mut listener: Listener,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Result<SocketAddrV4, ListenFailure> {
        let mut control = self.control();
        let wanted = SocketAddrV4::new(listener.address, listener.port);
        let mut sets: Vec<Vec<Set>> = control.workers.iter().map(|_| Vec::new()).collect();
        let inherited = control.inherited.remove(&(listener.network.clone(), wanted));
        let opened = match inherited {
            Some(inherited) => Ok(inherited),
            None if listener.arrival == Arrival::Outside => listen_here(wanted, sets.len()),
            None => self.sockets.listen(&listener.network, wanted, sets.len()),
        };
        let bound = opened.and_then(|opened| {
            let first = opened.first().map(TcpListener::local_addr).transpose()?;
            let Some(SocketAddr::V4(address)) = first else {
                return Err(io::ErrorKind::AddrNotAvailable.into());
            };
            Ok((opened, address))
        });
        let (opened, address) = bound.map_err(|source| {
            let rule = listener.name.clone();
            ListenFailure::Socket { rule, address: wanted, source }
        })?;
        listener.port = address.port();
        control.open_sockets(&Arc::new(listener), (None, tls), opened, &mut sets)?;
        let plan = control.plan.clone();
        control.tell_workers(&plan, sets, &[]);
        Ok(address)
    }

    /// Ends the service of `run.app` addresses that was opened under this name.
    pub fn close_run_app(&self, name: &ResourceName) {
        let mut control = self.control();
        if let Some(open) = control.open.remove(name) {
            let plan = control.plan.clone();
            let sets = control.workers.iter().map(|_| Vec::new()).collect();
            control.tell_workers(&plan, sets, &[open.listener.id]);
        }
    }

    /// Takes over sockets that another process listened on; the next [`Proxy::apply`] uses them instead
    /// of opening its own, so no connection in their queues is lost.
    pub fn inherit(&self, network: ResourceName, sockets: Vec<TcpListener>) -> io::Result<()> {
        let mut control = self.control();
        for socket in sockets {
            if let SocketAddr::V4(address) = socket.local_addr()? {
                control.inherited.entry((network.clone(), address)).or_default().push(socket);
            }
        }
        Ok(())
    }

    /// Duplicates of all listening sockets with the network each is in, for another process to inherit.
    /// From here on [`Proxy::drain`] leaves their queues to that process.
    pub fn hand_over_sockets(&self) -> io::Result<Vec<(ResourceName, TcpListener)>> {
        let mut control = self.control();
        control.handed_over = true;
        let mut sockets = Vec::new();
        for open in control.open.values() {
            for socket in &open.sockets {
                sockets.push((open.listener.network.clone(), socket.try_clone()?));
            }
        }
        Ok(sockets)
    }

    /// The number of the plan that is served.
    pub fn plan_number(&self) -> u64 {
        self.control().plan.number
    }

    /// What every forwarding rule has done so far, in the order of their names.
    pub fn status(&self) -> Vec<RuleStatus> {
        let control = self.control();
        control.open.values().map(Open::status).collect()
    }

    /// Counters and histograms as OpenMetrics text.
    pub fn render_openmetrics(&self) -> String {
        openmetrics::render(&self.registry)
    }

    /// Stops accepting, finishes what is under way, and returns when nothing is left or when `within` has
    /// passed. The log is complete afterwards.
    pub fn drain(&self, within: Duration) {
        let (workers, threads, handed_over) = {
            let mut control = self.control();
            control.open.clear();
            let workers = std::mem::take(&mut control.workers);
            (workers, std::mem::take(&mut control.threads), control.handed_over)
        };
        let (done, all_done) = channel();
        for worker in workers {
            // A worker that is gone has nothing left to drain.
            let _ = worker.send(Command::Drain { within, handed_over, done: done.clone() });
        }
        drop(done);
        while all_done.recv().is_ok() {}
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker of the data plane ended in a panic");
            }
        }
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.drain(Duration::ZERO);
    }
}

type ListenerChange = (Option<Arc<Listener>>, Option<Arc<Listener>>);

impl Control {
    /// What differs between the plan that is served and `next`.
    fn changes_to(&self, next: &Plan) -> Vec<ListenerChange> {
        let mut changes: Vec<ListenerChange> = Vec::new();
        let mut after = next.listeners.iter().peekable();
        for (name, before) in &self.plan.listeners {
            while let Some((_, added)) = after.next_if(|(other, _)| *other < name) {
                changes.push((None, Some(added.clone())));
            }
            match after.next_if(|(other, _)| *other == name) {
                Some((_, same)) if Arc::ptr_eq(before, same) => {}
                Some((_, other)) => changes.push((Some(before.clone()), Some(other.clone()))),
                None => changes.push((Some(before.clone()), None)),
            }
        }
        changes.extend(after.map(|(_, added)| (None, Some(added.clone()))));
        for name in &self.failed {
            let again = self.plan.listeners.get(name).zip(next.listeners.get(name));
            if let Some((_, after)) = again.filter(|(before, after)| Arc::ptr_eq(before, after)) {
                changes.push((None, Some(after.clone())));
            }
        }
        changes
    }

    /// Prepares one listener for every worker.
    fn serve(
        &mut self,
        listener: &Arc<Listener>,
        sockets: &dyn Sockets,
        sets: &mut [Vec<Set>],
    ) -> Result<(), ListenFailure> {
        let name = listener.name.clone();
        let known = self.open.get(&name).and_then(|open| open.tls.clone());
        let tls = match (&listener.tls, known) {
            (None, _) => None,
            (Some(tls), Some((same, config))) if *tls == same => Some((same, config)),
            (Some(tls), _) => {
                let config = tls::server_config(tls).map_err(|error| ListenFailure::Tls {
                    rule: name.clone(),
                    source: Box::new(error),
                })?;
                Some((tls.clone(), config))
            }
        };
        let config = tls.as_ref().map(|(_, config)| config.clone());
        if let Some(open) = self.open.get_mut(&name) {
            open.listener = listener.clone();
            open.tls = tls;
            for (set, cells) in sets.iter_mut().zip(&open.cells) {
                let (listener, tls, cells) = (listener.clone(), config.clone(), cells.clone());
                set.push(Set { listener, tls, sockets: Vec::new(), cells });
            }
            return Ok(());
        }
        let address = SocketAddrV4::new(listener.address, listener.port);
        let failed = |source| ListenFailure::Socket { rule: name.clone(), address, source };
        let inherited = self.inherited.remove(&(listener.network.clone(), address));
        let opened = match inherited {
            Some(inherited) => inherited,
            None => sockets.listen(&listener.network, address, sets.len()).map_err(failed)?,
        };
        self.open_sockets(listener, (tls, config), opened, sets)
    }

    /// Hands a listener's sockets out to the workers, and keeps them.
    fn open_sockets(
        &mut self,
        listener: &Arc<Listener>,
        (tls, config): (Option<KnownTls>, Option<Arc<rustls::ServerConfig>>),
        opened: Vec<TcpListener>,
        sets: &mut [Vec<Set>],
    ) -> Result<(), ListenFailure> {
        let name = listener.name.clone();
        let address = SocketAddrV4::new(listener.address, listener.port);
        let failed = |source| ListenFailure::Socket { rule: name.clone(), address, source };
        let copies: io::Result<Vec<_>> = opened.iter().map(TcpListener::try_clone).collect();
        let mut cells = Vec::new();
        for set in sets.iter_mut() {
            let own = Arc::new(RuleCells::default());
            cells.push(own.clone());
            let (listener, tls) = (listener.clone(), config.clone());
            set.push(Set { listener, tls, sockets: Vec::new(), cells: own });
        }
        let workers = sets.len();
        for (number, socket) in copies.map_err(failed)?.into_iter().enumerate() {
            if let Some(set) = sets[number % workers].last_mut() {
                set.sockets.push(socket);
            }
        }
        self.open.insert(name, Open { listener: listener.clone(), tls, cells, sockets: opened });
        Ok(())
    }

    fn tell_workers(&self, plan: &Arc<Plan>, sets: Vec<Vec<Set>>, remove: &[u64]) {
        let (done, all_done) = channel();
        for (worker, set) in self.workers.iter().zip(sets) {
            let (plan, remove, done) = (plan.clone(), remove.to_vec(), done.clone());
            if worker.send(Command::Apply { plan, set, remove, done }).is_err() {
                tracing::error!("a worker of the data plane is gone");
            }
        }
        drop(done);
        while all_done.recv().is_ok() {}
    }
}

impl Open {
    fn status(&self) -> RuleStatus {
        let sum = |part: fn(&RuleCells) -> u64| self.cells.iter().map(|cells| part(cells)).sum();
        let mut responses_by_class = [0; 6];
        for cells in &self.cells {
            for (sum, cell) in responses_by_class.iter_mut().zip(&cells.by_class) {
                *sum += cell.get();
            }
        }
        RuleStatus {
            rule: self.listener.name.clone(),
            address: SocketAddrV4::new(self.listener.address, self.listener.port),
            connections: sum(|cells| cells.connections.get()),
            connections_total: sum(|cells| cells.connections_total.get()),
            requests: sum(|cells| cells.requests.get()),
            responses_by_class,
        }
    }
}

/// Whether two versions of a listener are served by the same sockets.
fn same_socket(one: &Listener, other: &Listener) -> bool {
    (one.id, one.address, one.port, &one.network)
        == (other.id, other.address, other.port, &other.network)
}
