//! The keeper of one instance: a thread that makes what is seen equal to what is wanted.
//!
//! It sleeps until the wish changes, the instance's process ends, or a failed start is due for another
//! try. It decides nothing about the declaration: whether to run, and which boot, comes in the order.
//!
//! Invariant: only the keeper starts, stops or removes its instance. When the server ends, keepers leave
//! their instances alone, and the next server's keepers find them by their records.

use super::folder::Folder;
use super::helper::{LAUNCH, OWN_PROGRAM};
use super::process::Process;
use super::{InstanceStatus, Observation, console};
use crate::error::VpcError;
use crate::links::{self, WantedRoute};
use crate::namespace::{Namespace, set_kernel_options};
use crate::nft::link_name;
use ipnet::Ipv4Net;
use model::ResourceName;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use plan::network::InstancePlan;
use std::error::Error;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The port whose listener says that an instance is ready.
const SSH_PORT: u16 = 22;
/// How long a start may take.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How often a starting instance is looked at.
const START_LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long the first repetition of a failed start waits; each later one twice as long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest wait between two tries.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// How often the size of the console is looked at.
const CONSOLE_LOOK_EVERY: Duration = Duration::from_secs(60);
/// The stack of a keeper's thread, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// Everything needed to run an instance.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The instance.
    pub(crate) plan: Arc<InstancePlan>,
    /// The namespace of its network.
    pub(crate) network: Namespace,
    /// The largest packet, in bytes.
    pub(crate) mtu_bytes: u32,
    /// The ranges of static routes whose next hop it is.
    pub(crate) routes: Vec<Ipv4Net>,
}

/// What the instance should be.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// Running, as ordered.
    Running(Order),
    /// Stopped, with everything it has kept.
    Stopped,
    /// Gone, with everything it had.
    Deleted,
    /// Stopped, and the keeper ends.
    Down,
    /// As it is, and the keeper ends.
    Left,
}

/// A handle on the keeper's thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: Option<ResourceName>,
    link: String,
    folder: Folder,
    wanted: Mutex<Wanted>,
    wake: EventFd,
    seen: watch::Sender<Observation>,
    changes: watch::Sender<u64>,
}

impl Keeper {
    /// Starts the keeper of the instance `id`, which may be running already.
    pub(crate) fn start(
        name: Option<ResourceName>,
        id: u64,
        folder: Folder,
        wanted: Wanted,
        changes: watch::Sender<u64>,
    ) -> Result<Keeper, VpcError> {
        let failed =
            |source| VpcError::Socket { what: "start the keeper of an instance".into(), source };
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        let status = Some(InstanceStatus::Provisioning);
        let (seen, _) = watch::channel(Observation { status, boot: 0, failure: None });
        let wanted = Mutex::new(wanted);
        let link = link_name(id);
        let shared = Arc::new(Shared { name, link, folder, wanted, wake, seen, changes });
        let builder =
            thread::Builder::new().name(format!("vm {}", shared.link)).stack_size(STACK_BYTES);
        let keeps = shared.clone();
        let thread = builder.spawn(move || Keeping::new(&keeps).run()).map_err(failed)?;
        Ok(Keeper { shared, thread: Some(thread) })
    }

    /// Changes what is wanted.
    pub(crate) fn want(&self, wanted: Wanted) {
        *self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
        // The counter cannot run over: whoever reads it sets it to zero.
        let _ = self.shared.wake.write(1);
    }

    /// What is seen of the instance, now and later.
    pub(crate) fn observe(&self) -> watch::Receiver<Observation> {
        self.shared.seen.subscribe()
    }

    /// Whether the instance is deleted and gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.shared.seen.borrow().status.is_none()
    }

    /// Waits for the thread to end; it was told to.
    pub(crate) fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread knows.
struct Keeping<'a> {
    shared: &'a Shared,
    process: Option<Process>,
    /// The namespace the instance's link is in, once it has one.
    network: Option<Namespace>,
    /// When the next try is due, and how long the one after it will wait.
    retry: Option<(Instant, Duration)>,
}

impl<'a> Keeping<'a> {
    fn new(shared: &'a Shared) -> Keeping<'a> {
        let process = Process::recorded(&shared.folder);
        Keeping { shared, process, network: None, retry: None }
    }

    fn run(mut self) {
        let mut tried = None;
        loop {
            let wanted = self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.notice_end();
            match wanted {
                Wanted::Running(order) => {
                    // A new boot is a new beginning: it does not wait for the old one's turn.
                    if tried.replace(order.plan.boot) != Some(order.plan.boot) {
                        self.retry = None;
                    }
                    self.keep_running(&order);
                }
                Wanted::Stopped => self.keep_stopped(),
                Wanted::Deleted => {
                    self.keep_stopped();
                    let removed = self.shared.folder.remove();
                    return self.see(None, 0, removed.err().map(|error| chain(&error)));
                }
                Wanted::Down => return self.keep_stopped(),
                Wanted::Left => return,
            }
            self.sleep();
            console::trim(&self.shared.folder.console());
        }
    }

    /// Waits for the next thing to do.
    fn sleep(&self) {
        let until_retry = self.retry.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let limit = until_retry.unwrap_or(CONSOLE_LOOK_EVERY).min(CONSOLE_LOOK_EVERY);
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut watched = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
        if let Some(process) = &self.process {
            watched.push(PollFd::new(process.descriptor(), PollFlags::POLLIN));
        }
        // Whatever woke it, the loop looks at everything again.
        let _ = poll(&mut watched, timeout);
        let _ = self.shared.wake.read();
    }

    fn see(&self, status: Option<InstanceStatus>, boot: u64, failure: Option<String>) {
        if let (Some(name), Some(failure)) = (&self.shared.name, &failure) {
            tracing::warn!(instance = %name, "{failure}");
            console::say(&self.shared.folder.console(), failure);
        }
        self.shared.seen.send_replace(Observation { status, boot, failure });
        self.shared.changes.send_modify(|count| *count += 1);
    }

    fn boot(&self) -> u64 {
        self.shared.seen.borrow().boot
    }

    /// Clears up after a process that ended by itself.
    fn notice_end(&mut self) {
        if let Some(ended) = self.process.take_if(|process| process.has_ended()) {
            ended.forget(&self.shared.folder);
            self.detach();
            self.fail(ended.boot(), "the instance ended by itself".into());
        }
    }

    fn fail(&mut self, boot: u64, failure: String) {
        let wait = self.retry.map_or(RETRY_AFTER, |(_, wait)| wait);
        self.retry = Some((Instant::now() + wait, (wait * 2).min(RETRY_AFTER_MAX)));
        self.see(Some(InstanceStatus::Terminated), boot, Some(failure));
    }

    fn keep_running(&mut self, order: &Order) {
        let boot = order.plan.boot;
        if let Some(process) = &self.process {
            let known = self.network.is_some();
            self.network = Some(order.network.clone());
            if process.boot() == boot && (known || self.adopt(process, order)) {
                if let Err(error) = put_routes(&self.shared.link, order) {
                    tracing::warn!(instance = %order.plan.name, "{}", chain(&error));
                }
                if self.shared.seen.borrow().status != Some(InstanceStatus::Running) {
                    self.see(Some(InstanceStatus::Running), boot, None);
                }
                return;
            }
            self.keep_stopped();
        }
        if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return;
        }
        self.network = Some(order.network.clone());
        match self.begin(order) {
            Ok(process) => {
                self.process = Some(process);
                self.retry = None;
                self.see(Some(InstanceStatus::Running), boot, None);
            }
            Err(error) => {
                if let Some(half_made) = Process::recorded(&self.shared.folder) {
                    let _ = half_made.stop(&self.shared.folder);
                }
                self.detach();
                self.fail(boot, chain(&error));
            }
        }
    }

    fn keep_stopped(&mut self) {
        self.retry = None;
        if let Some(process) = self.process.take() {
            self.see(Some(InstanceStatus::Stopping), process.boot(), None);
            if let Err(error) = process.stop(&self.shared.folder) {
                tracing::warn!("{}", chain(&error));
            }
            console::say(&self.shared.folder.console(), "stopped");
        }
        self.detach();
        let is_terminated = self.shared.seen.borrow().status == Some(InstanceStatus::Terminated);
        if !is_terminated || self.shared.seen.borrow().failure.is_some() {
            self.see(Some(InstanceStatus::Terminated), self.boot(), None);
        }
    }

    /// Whether an instance another server started is still attached to its network, and ready or about
    /// to be: that server may have been killed in the middle.
    fn adopt(&self, process: &Process, order: &Order) -> bool {
        let (link, plan) = (&self.shared.link, &order.plan);
        let look = || {
            links::run(async |links| {
                let Some(index) = links.list().await?.get(link).copied() else { return Ok(false) };
                links.set_mtu(index, order.mtu_bytes).await?;
                links.put_route(&route_to(plan, index)).await?;
                Ok(true)
            })
        };
        let is_attached = order.network.within(look).and_then(|found| found).unwrap_or(false);
        is_attached && wait_until_ready(process, plan).is_ok()
    }

    /// Takes the instance's link away, if it has one.
    fn detach(&mut self) {
        let Some(network) = self.network.take() else { return };
        let link = &self.shared.link;
        let remove = || {
            links::run(async |links| match links.list().await?.get(link) {
                Some(index) => links.remove(link, *index).await,
                None => Ok(()),
            })
        };
        if let Err(error) = network.within(remove).and_then(|removed| removed) {
            tracing::warn!("{}", chain(&error));
        }
    }

    /// Starts the instance and waits until it takes connections.
    fn begin(&self, order: &Order) -> Result<Process, VpcError> {
        let (folder, plan) = (&self.shared.folder, &order.plan);
        self.see(Some(InstanceStatus::Provisioning), plan.boot, None);
        folder.prepare_start()?;
        self.see(Some(InstanceStatus::Staging), plan.boot, None);
        console::say(&folder.console(), &format!("starting {}, boot {}", plan.hostname, plan.boot));
        let own = Namespace::make(folder.path())?;
        attach(&self.shared.link, order, &own)?;
        launch(folder, plan, &own)?;
        let process = Process::recorded(folder);
        let process =
            process.ok_or_else(|| is_not_ready(plan, "ended while it was being started"))?;
        wait_until_ready(&process, plan)?;
        Ok(process)
    }
}

/// Waits until the instance takes connections.
fn wait_until_ready(process: &Process, plan: &InstancePlan) -> Result<(), VpcError> {
    let deadline = Instant::now() + START_DEADLINE;
    while !process.listens_on(SSH_PORT) {
        if process.ends_within(START_LOOK_EVERY) {
            return Err(is_not_ready(plan, "ended before it took connections on port 22"));
        }
        if Instant::now() > deadline {
            return Err(is_not_ready(plan, "does not take connections on port 22"));
        }
    }
    Ok(())
}

fn is_not_ready(plan: &InstancePlan, what: &str) -> VpcError {
    VpcError::Instance { instance: plan.name.clone(), what: what.into() }
}

/// The route to an instance, in its network's namespace.
fn route_to(plan: &InstancePlan, link: u32) -> WantedRoute {
    WantedRoute::Direct { to: plan.address, link, source: plan.gateway }
}

/// Puts the routes that lead to the instance as a next hop, which the kernel forgets with the link.
fn put_routes(link: &str, order: &Order) -> Result<(), VpcError> {
    if order.routes.is_empty() {
        return Ok(());
    }
    let put = || {
        links::run(async |links| {
            let Some(link) = links.list().await?.get(link).copied() else { return Ok(()) };
            for to in &order.routes {
                links
                    .put_route(&WantedRoute::Via { to: *to, via: order.plan.address, link })
                    .await?;
            }
            Ok(())
        })
    };
    order.network.within(put)?
}

/// Makes the link between an instance and its network, with addresses and routes at both ends.
pub(crate) fn attach(link: &str, order: &Order, own: &Namespace) -> Result<(), VpcError> {
    let plan = &order.plan;
    let outside = || {
        links::run(async |links| {
            let index = links.make_pair(link, own.file().as_fd(), order.mtu_bytes).await?;
            links.put_route(&route_to(plan, index)).await
        })
    };
    let inside = || {
        set_kernel_options(&[
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
            // So that `ping` needs no capability.
            ("ipv4/ping_group_range", "0 2147483647"),
            ("ipv4/ip_forward", if plan.can_ip_forward { "1" } else { "0" }),
        ])?;
        links::run(async |links| {
            links.bring_up_loopback().await?;
            let Some(index) = links.list().await?.get("eth0").copied() else {
                let what = "find eth0 of an instance".to_owned();
                return Err(VpcError::Link { what, source: rtnetlink::Error::RequestFailed });
            };
            links.add_address(index, plan.address).await?;
            links.bring_up(index).await?;
            let (to, via) = (plan.gateway, plan.gateway);
            links.put_route(&WantedRoute::Direct { to, link: index, source: plan.address }).await?;
            let everything = Ipv4Net::default();
            links.put_route(&WantedRoute::Via { to: everything, via, link: index }).await
        })
    };
    order.network.within(outside)??;
    own.within(inside)??;
    put_routes(link, order)
}

/// Runs the launcher, which ends when the instance's first process has become sshd.
fn launch(folder: &Folder, plan: &InstancePlan, own: &Namespace) -> Result<(), VpcError> {
    let program = "instance helper";
    let failed = |source: io::Error| VpcError::Program { program, says: source.to_string() };
    let network = own.file().try_clone().map_err(failed)?;
    let name = plan.hostname.split('.').next().unwrap_or("instance");
    let output = Command::new(OWN_PROGRAM)
        .arg(LAUNCH)
        .arg(folder.path())
        .args([name, &plan.boot.to_string(), &std::process::id().to_string()])
        .stdin(Stdio::from(network))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let says =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Err(VpcError::Program { program, says: says.join(" ").trim().to_owned() })
}

/// An error with all its causes, for a log and for the serial port.
pub(crate) fn chain(error: &VpcError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
