//! One embedded instance: a handle for its callers and the task that owns it.
//!
//! Invariant: the task is the only one that speaks to the helper. When it ends, the helper, the
//! control groups and the directory of the instance are gone, and only then `stop` resolves.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::cgroups::ContainerGroup;
use super::embedded::Inner;
use super::leftovers;
use super::link::{Link, silent};
use super::logs::{LogTail, Output};
use super::orders::{ContainerPlan, ExitStatus, Order, Report};
use super::surroundings::end_all;
use super::{
    Allowance, Exit, ExitCause, Instance, InstanceId, InstanceSpec, LogLine, Pending, StartError,
    Stream, Usage,
};

/// After a container's end its last lines are read for at most this long.
const LAST_LINES_WITHIN: Duration = Duration::from_millis(500);
/// How long the kernel may take to let go of a control group.
const GROUP_GONE_WITHIN: Duration = Duration::from_secs(5);
const GROUP_POLL: Duration = Duration::from_millis(2);

/// What callers hold.
#[derive(Debug)]
pub(crate) struct EmbeddedInstance {
    id: InstanceId,
    runtime: Arc<Inner>,
    commands: mpsc::UnboundedSender<Command>,
    exit: watch::Receiver<Option<Exit>>,
    gone: watch::Receiver<bool>,
    /// Taken out when the instance is gone: an open descriptor keeps a namespace alive.
    namespace: Arc<Mutex<Option<Arc<OwnedFd>>>>,
    tail: Arc<LogTail>,
    groups: Arc<BTreeMap<String, ContainerGroup>>,
}

#[derive(Debug)]
enum Command {
    Start { container: String, answer: oneshot::Sender<Result<(), StartError>> },
    Stop { grace: Duration },
}

impl Instance for EmbeddedInstance {
    fn id(&self) -> &InstanceId {
        &self.id
    }

    fn start_container<'a>(&'a self, name: &'a str) -> Pending<'a, Result<(), StartError>> {
        Box::pin(async move {
            let (answer, wait) = oneshot::channel();
            let command = Command::Start { container: name.to_owned(), answer };
            let gone = || StartError::Helper("the instance has ended".to_owned());
            self.commands.send(command).map_err(|_| gone())?;
            wait.await.map_err(|_| gone())?
        })
    }

    fn dial(&self, port: u16) -> Pending<'_, io::Result<TcpStream>> {
        let namespace = self.namespace.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            match namespace {
                Some(namespace) => self.runtime.dialer.dial(namespace, port).await,
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        })
    }

    fn listen(&self, port: u16) -> Pending<'_, io::Result<TcpListener>> {
        let namespace = self.namespace.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            match namespace {
                Some(namespace) => self.runtime.dialer.listen(namespace, port).await,
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        })
    }

    fn exited(&self) -> Pending<'static, Exit> {
        let mut exit = self.exit.clone();
        Box::pin(async move {
            match exit.wait_for(Option::is_some).await.map(|found| found.clone()) {
                Ok(Some(exit)) => exit,
                // The task sets an exit before it ends; without one, nothing ran.
                _ => Exit { container: String::new(), cause: ExitCause::Stopped },
            }
        })
    }

    fn stop(&self, grace: Duration) -> Pending<'static, ()> {
        // A task that is gone has nothing left to stop.
        let _ = self.commands.send(Command::Stop { grace });
        let mut gone = self.gone.clone();
        Box::pin(async move {
            let _ = gone.wait_for(|gone| *gone).await;
        })
    }

    fn log_tail(&self, lines_max: usize) -> Vec<LogLine> {
        self.tail.last(lines_max)
    }

    fn usage(&self) -> Usage {
        self.groups.values().map(ContainerGroup::usage).fold(Usage::default(), |sum, each| Usage {
            processor: sum.processor + each.processor,
            memory_bytes: sum.memory_bytes + each.memory_bytes,
        })
    }

    fn set_processor(&self, allowance: Allowance) {
        for group in self.groups.values() {
            if let Err(error) = group.set_processor(allowance) {
                // A group that is gone belongs to an instance that has ended.
                tracing::debug!(instance = %self.id, %error, "processor allowance not set");
            }
        }
    }
}

/// The owner of one instance.
#[derive(Debug)]
pub(crate) struct InstanceTask {
    runtime: Arc<Inner>,
    id: InstanceId,
    link: Link,
    plans: BTreeMap<String, ContainerPlan>,
    groups: Arc<BTreeMap<String, ContainerGroup>>,
    commands: mpsc::UnboundedReceiver<Command>,
    exit: watch::Sender<Option<Exit>>,
    gone: watch::Sender<bool>,
    namespace: Arc<Mutex<Option<Arc<OwnedFd>>>>,
    tail: Arc<LogTail>,
    /// Those who answer on the sockets around the instance.
    answering: Vec<JoinHandle<()>>,
    starting: BTreeMap<String, oneshot::Sender<Result<(), StartError>>>,
    /// When the helper has to have answered about one of those.
    start_by: Option<Instant>,
    /// Containers that run, with the tasks that read their outputs.
    running: BTreeMap<String, Vec<JoinHandle<()>>>,
    stopping: bool,
    kill_at: Option<Instant>,
}

impl InstanceTask {
    /// Takes charge of a prepared helper and hands out the instance's handle.
    pub(crate) fn start(
        runtime: Arc<Inner>,
        spec: Arc<InstanceSpec>,
        plans: BTreeMap<String, ContainerPlan>,
        groups: BTreeMap<String, ContainerGroup>,
        mut link: Link,
    ) -> Arc<dyn Instance> {
        let (around, tasks) = (&runtime.surroundings, &runtime.tasks);
        let sockets = link.sockets.take();
        let answering = sockets.map(|sockets| sockets.answer(around, &spec, tasks));
        let (commands, inbox) = mpsc::unbounded_channel();
        let (exit, exit_seen) = watch::channel(None);
        let (gone, gone_seen) = watch::channel(false);
        let namespace = Arc::new(Mutex::new(Some(Arc::clone(&link.namespace))));
        let groups = Arc::new(groups);
        let tail = Arc::new(LogTail::default());
        let handle = EmbeddedInstance {
            id: spec.id.clone(),
            runtime: Arc::clone(&runtime),
            commands,
            exit: exit_seen,
            gone: gone_seen,
            namespace: Arc::clone(&namespace),
            tail: Arc::clone(&tail),
            groups: Arc::clone(&groups),
        };
        let task = InstanceTask {
            runtime,
            id: spec.id.clone(),
            link,
            plans,
            groups,
            commands: inbox,
            exit,
            gone,
            namespace,
            tail,
            answering: answering.unwrap_or_default(),
            starting: BTreeMap::new(),
            start_by: None,
            running: BTreeMap::new(),
            stopping: false,
            kill_at: None,
        };
        let tasks = task.runtime.tasks.clone();
        tasks.spawn(task.run());
        handle.shared()
    }

    /// Lives as long as the instance does.
    async fn run(mut self) {
        loop {
            let kill_at = self.kill_at;
            let start_by = self.start_by.filter(|_| !self.starting.is_empty());
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    // Every handle was dropped: nobody could stop it any more.
                    None => self.kill_at = Some(Instant::now()),
                },
                report = self.link.next() => match report {
                    Ok(Some(report)) => self.note(report).await,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(instance = %self.id, %error, "lost an instance's helper");
                        break;
                    }
                },
                () = sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => break,
                () = sleep_until(start_by.unwrap_or_else(Instant::now)), if start_by.is_some() => {
                    for answer in std::mem::take(&mut self.starting).into_values() {
                        let _ = answer.send(Err(StartError::Helper(silent().to_string())));
                    }
                    break;
                }
            }
            if self.stopping && self.running.is_empty() && self.starting.is_empty() {
                break;
            }
        }
        self.remove().await;
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Start { container, answer } => {
                let Some(plan) = self.plans.remove(&container) else {
                    let reason = format!("container `{container}` is unknown or was started");
                    let _ = answer.send(Err(StartError::Invalid { field: "name", reason }));
                    return;
                };
                match self.link.send(&Order::Start(Box::new(plan))).await {
                    Ok(()) => {
                        self.starting.insert(container, answer);
                        self.start_by = Some(Instant::now() + self.link.answers_within);
                    }
                    Err(error) => {
                        let _ = answer.send(Err(StartError::Helper(error.to_string())));
                    }
                }
            }
            Command::Stop { grace } => {
                let kill_at = Instant::now() + grace;
                self.kill_at = Some(self.kill_at.map_or(kill_at, |known| known.min(kill_at)));
                if !self.stopping && !self.running.is_empty() {
                    // A throttled container could not say goodbye in time.
                    for group in self.groups.values() {
                        let _ = group.set_processor(Allowance::Full);
                    }
                    // If the helper is gone its containers are, too, and `next` tells.
                    let _ = self.link.send(&Order::Signal(Signal::SIGTERM as i32)).await;
                }
                self.stopping = true;
            }
        }
    }

    async fn note(&mut self, report: Report) {
        match report {
            Report::Ready | Report::Prepared => {}
            Report::Started { container, process } => {
                tracing::debug!(instance = %self.id, container, process, "container started");
                let outputs = self.link.take_descriptors();
                let readers = self.read_outputs(&container, outputs);
                self.running.insert(container.clone(), readers);
                self.answer(&container, Ok(()));
                self.runtime.tasks.spawn(Arc::clone(&self.runtime).refill());
            }
            Report::Failed { container, reason, is_host_fault } => {
                let failure = match is_host_fault {
                    true => StartError::Helper(reason),
                    false => StartError::Execute { container: container.clone(), reason },
                };
                self.answer(&container, Err(failure));
            }
            Report::Exited { container, status } => {
                if let Some(readers) = self.running.remove(&container) {
                    let all = async {
                        for reader in readers {
                            // A reader that panicked has nothing more to tell.
                            let _ = reader.await;
                        }
                    };
                    // A process that left the container's namespaces cannot exist, so the pipes
                    // end with the container; the bound is for the case that this is wrong.
                    let _ = timeout(LAST_LINES_WITHIN, all).await;
                }
                let cause = self.cause_of(&container, status);
                self.ended(Exit { container, cause });
            }
        }
    }

    fn answer(&mut self, container: &str, result: Result<(), StartError>) {
        if let Some(answer) = self.starting.remove(container) {
            // A caller that stopped waiting stops the instance by other means.
            let _ = answer.send(result);
        }
    }

    fn read_outputs(&self, container: &str, outputs: Vec<OwnedFd>) -> Vec<JoinHandle<()>> {
        let name: Arc<str> = Arc::from(container);
        let streams = [Stream::Stdout, Stream::Stderr];
        let mut readers = Vec::new();
        for (stream, descriptor) in streams.into_iter().zip(outputs) {
            let output = Output {
                instance: self.id.clone(),
                container: Arc::clone(&name),
                stream,
                tail: Arc::clone(&self.tail),
                sink: Arc::clone(&self.runtime.config.sink),
            };
            match pipe::Receiver::from_owned_fd(descriptor) {
                Ok(pipe) => readers.push(self.runtime.tasks.spawn(output.follow(pipe))),
                Err(error) => {
                    tracing::warn!(instance = %self.id, container, %error, "output is not read");
                }
            }
        }
        readers
    }

    fn cause_of(&self, container: &str, status: ExitStatus) -> ExitCause {
        let out_of_memory =
            self.groups.get(container).is_some_and(|group| group.out_of_memory_kills() > 0);
        match status {
            _ if self.stopping => ExitCause::Stopped,
            ExitStatus::Signal(signal) if out_of_memory && signal == Signal::SIGKILL as i32 => {
                ExitCause::OutOfMemory
            }
            ExitStatus::Signal(signal) => ExitCause::Signal(signal),
            ExitStatus::Code(code) => ExitCause::Code(code),
        }
    }

    /// Only the first end counts.
    fn ended(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit);
            }
            first
        });
    }

    /// Takes everything of the instance off the host.
    async fn remove(mut self) {
        let was_starting = !self.starting.is_empty();
        for answer in std::mem::take(&mut self.starting).into_values() {
            let _ = answer.send(Err(StartError::Helper("the instance has ended".to_owned())));
        }
        let container = self.running.keys().next().cloned().unwrap_or_default();
        let cause = if self.stopping || self.kill_at.is_some() {
            ExitCause::Stopped
        } else {
            ExitCause::HelperLost
        };
        *self.namespace.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let InstanceTask { link, groups, runtime, id, exit, gone, answering, .. } = self;
        link.end().await;
        end_all(answering).await;
        if was_starting || cause == ExitCause::HelperLost {
            leftovers::end_orphans(&runtime.mark).await;
        }
        remove_groups(&groups, &id).await;
        runtime.cgroups.remove_roots();
        if let Err(error) = fs::remove_dir(runtime.instance_directory(id.as_str())) {
            tracing::warn!(instance = %id, %error, "the instance's directory stays");
        }
        exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(Exit { container, cause });
            }
            first
        });
        gone.send_replace(true);
    }
}

/// The helper was the parent of everything in the groups; what is left is killed by the kernel or
/// by us, and the groups go as soon as it is gone.
async fn remove_groups(groups: &BTreeMap<String, ContainerGroup>, id: &InstanceId) {
    let deadline = Instant::now() + GROUP_GONE_WITHIN;
    for group in groups.values() {
        while !group.remove() {
            if Instant::now() > deadline {
                tracing::warn!(instance = %id, "the instance's control groups stay");
                return;
            }
            group.kill();
            sleep(GROUP_POLL).await;
        }
    }
}
