//! One instance as containers of the engine: the first one started owns the network, the others
//! join it.
//!
//! Invariant: containers and volumes are gone from the engine before `stop` resolves.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigLogConfig, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, InspectContainerOptions, KillContainerOptions,
    RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Inner, engine, image_name};
use crate::runtime::bundle::{CAPABILITIES, open_files_max};
use crate::runtime::cgroups::{ContainerGroup, groups_of_process};
use crate::runtime::helper::handles;
use crate::runtime::limits::PROCESSES_MAX;
use crate::runtime::logs::{Follower, LogTail, Output};
use crate::runtime::orders::ContainerPlan;
use crate::runtime::surroundings::{METADATA_ADDRESS, METADATA_NAMES, end_all};
use crate::runtime::{
    Allowance, ContainerSpec, Exit, ExitCause, Instance, InstanceId, InstanceSpec, LogLine,
    Pending, StartError, Stream, Usage,
};

/// After a container's end its last lines are read for at most this long.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);
/// Exit statuses above this one are a signal's number more.
const SIGNALLED: i64 = 128;

/// The handle callers hold; dropping it stops the instance.
#[derive(Debug)]
pub(super) struct DockerInstance {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    runtime: Arc<Inner>,
    spec: Arc<InstanceSpec>,
    plans: BTreeMap<String, ContainerPlan>,
    /// Volume name to the left side of its bind and its options.
    binds: HashMap<String, (String, &'static str)>,
    /// Containers that were started, in that order.
    started: AsyncMutex<Vec<Started>>,
    namespace: Mutex<Option<Arc<OwnedFd>>>,
    groups: Mutex<Vec<ContainerGroup>>,
    /// Those who answer on the sockets around the instance.
    answering: Mutex<Vec<JoinHandle<()>>>,
    tail: Arc<LogTail>,
    running: watch::Sender<usize>,
    exit: watch::Sender<Option<Exit>>,
    /// When what still runs is killed; set by the first `stop`.
    kill_at: watch::Sender<Option<Instant>>,
    gone: watch::Sender<bool>,
    stopping: AtomicBool,
}

#[derive(Clone, Debug)]
struct Started {
    id: String,
    process: i32,
}

impl DockerInstance {
    pub(super) fn new(
        runtime: Arc<Inner>,
        spec: Arc<InstanceSpec>,
        plans: BTreeMap<String, ContainerPlan>,
        binds: HashMap<String, (String, &'static str)>,
    ) -> DockerInstance {
        let shared = Shared {
            runtime,
            spec,
            plans,
            binds,
            started: AsyncMutex::default(),
            namespace: Mutex::default(),
            groups: Mutex::default(),
            answering: Mutex::default(),
            tail: Arc::default(),
            running: watch::Sender::new(0),
            exit: watch::Sender::new(None),
            kill_at: watch::Sender::new(None),
            gone: watch::Sender::new(false),
            stopping: AtomicBool::new(false),
        };
        DockerInstance { shared: Arc::new(shared) }
    }
}

impl Drop for DockerInstance {
    fn drop(&mut self) {
        drop(self.stop(Duration::ZERO));
    }
}

impl Instance for DockerInstance {
    fn id(&self) -> &InstanceId {
        &self.shared.spec.id
    }

    fn start_container<'a>(&'a self, name: &'a str) -> Pending<'a, Result<(), StartError>> {
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        let starting = self.shared.runtime.tasks.spawn(async move { shared.start(&name).await });
        Box::pin(async move {
            starting.await.unwrap_or_else(|error| Err(StartError::Helper(error.to_string())))
        })
    }

    fn dial(&self, port: u16) -> Pending<'_, io::Result<TcpStream>> {
        let namespace =
            self.shared.namespace.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move {
            match namespace {
                Some(namespace) => self.shared.runtime.dialer.dial(namespace, port).await,
                None if *self.shared.gone.borrow() => Err(io::ErrorKind::NotConnected.into()),
                // Nothing was started, or what was started has ended already.
                None => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }

    fn exited(&self) -> Pending<'static, Exit> {
        let mut exit = self.shared.exit.subscribe();
        Box::pin(async move {
            match exit.wait_for(Option::is_some).await.map(|found| found.clone()) {
                Ok(Some(exit)) => exit,
                _ => Exit { container: String::new(), cause: ExitCause::Stopped },
            }
        })
    }

    fn stop(&self, grace: Duration) -> Pending<'static, ()> {
        let kill_at = Instant::now() + grace;
        self.shared.kill_at.send_modify(|known| {
            *known = Some(known.map_or(kill_at, |known| known.min(kill_at)));
        });
        if !self.shared.stopping.swap(true, Ordering::SeqCst) {
            let shared = Arc::clone(&self.shared);
            self.shared.runtime.tasks.spawn(async move { shared.stop().await });
        }
        let mut gone = self.shared.gone.subscribe();
        Box::pin(async move {
            let _ = gone.wait_for(|gone| *gone).await;
        })
    }

    fn log_tail(&self, lines_max: usize) -> Vec<LogLine> {
        self.shared.tail.last(lines_max)
    }

    fn usage(&self) -> Usage {
        let groups = self.shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().map(ContainerGroup::usage).fold(Usage::default(), |sum, each| Usage {
            processor: sum.processor + each.processor,
            memory_bytes: sum.memory_bytes + each.memory_bytes,
        })
    }

    fn set_processor(&self, allowance: Allowance) {
        let groups = self.shared.groups.lock().unwrap_or_else(PoisonError::into_inner);
        for group in groups.iter() {
            if let Err(error) = group.set_processor(allowance) {
                // A group that is gone belongs to an instance that has ended.
                tracing::debug!(instance = %self.shared.spec.id, %error, "allowance not set");
            }
        }
    }
}

impl Shared {
    async fn start(self: Arc<Self>, name: &str) -> Result<(), StartError> {
        let unknown = || StartError::Invalid {
            field: "name",
            reason: format!("container `{name}` is unknown"),
        };
        let container = self.spec.containers.iter().find(|each| each.name == name);
        let container = container.ok_or_else(unknown)?;
        let plan = self.plans.get(name).ok_or_else(unknown)?;
        // One after the other: the second joins the network of the first.
        let mut started = self.started.lock().await;
        if self.stopping.load(Ordering::SeqCst) {
            return Err(StartError::Helper("the instance is being stopped".to_owned()));
        }
        let body = self.body(container, plan, started.first());
        let options = CreateContainerOptions {
            name: Some(format!("tidegate-{}-{}-{name}", self.runtime.mark, self.spec.id)),
            ..CreateContainerOptions::default()
        };
        let created = self.runtime.engine.create_container(Some(options), body).await;
        let id = created.map_err(|error| engine(&error))?.id;
        let launched = self.launch(container, &id, started.is_empty()).await;
        match launched {
            Ok(process) => {
                started.push(Started { id, process });
                Ok(())
            }
            Err(error) => {
                self.remove_container(&id).await;
                Err(error)
            }
        }
    }

    /// Starts a created container and watches it; answers with its process.
    async fn launch(
        self: &Arc<Self>,
        container: &ContainerSpec,
        id: &str,
        first: bool,
    ) -> Result<i32, StartError> {
        let docker = &self.runtime.engine;
        let options = AttachContainerOptions {
            stream: true,
            stdout: true,
            stderr: true,
            ..AttachContainerOptions::default()
        };
        // Before the start, so that no line is missed.
        let attached = docker.attach_container(id, Some(options)).await;
        let outputs = attached.map_err(|error| engine(&error))?.output;
        let reader = self.runtime.tasks.spawn(self.follow(&container.name, outputs));
        let start = docker.start_container(id, None::<StartContainerOptions>).await;
        start.map_err(|error| not_executed(&container.name, &error))?;
        let inspected = docker.inspect_container(id, None::<InspectContainerOptions>).await;
        let state = inspected.map_err(|error| engine(&error))?.state.unwrap_or_default();
        let process = i32::try_from(state.pid.unwrap_or(0)).unwrap_or(0);
        if first && process > 0 {
            // One that has ended already has no network to enter; its end is told below.
            if let Ok(namespace) = File::open(format!("/proc/{process}/ns/net")) {
                let namespace: Arc<OwnedFd> = Arc::new(namespace.into());
                let up = self.runtime.dialer.bring_up(Arc::clone(&namespace)).await;
                let up = up
                    .map_err(|source| StartError::Host { step: "the instance's network", source });
                let answering =
                    up?.answer(&self.runtime.surroundings, &self.spec, &self.runtime.tasks);
                *self.answering.lock().unwrap_or_else(PoisonError::into_inner) = answering;
                *self.namespace.lock().unwrap_or_else(PoisonError::into_inner) = Some(namespace);
            }
        }
        let group = groups_of_process(process, container.limits);
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).push(group);
        self.running.send_modify(|running| *running += 1);
        let watching = Arc::clone(self).watch(container.name.clone(), id.to_owned(), reader);
        self.runtime.tasks.spawn(watching);
        Ok(process)
    }

    fn body(
        &self,
        container: &ContainerSpec,
        plan: &ContainerPlan,
        first: Option<&Started>,
    ) -> ContainerCreateBody {
        let memory = i64::try_from(container.limits.memory_bytes).unwrap_or(i64::MAX);
        let open_files = i64::try_from(open_files_max()).unwrap_or(i64::MAX);
        let binds = plan.mounts.iter().filter_map(|(volume, inside)| {
            let (source, options) = self.binds.get(volume)?;
            Some(format!("{source}:{inside}:{options}"))
        });
        let containers = self.spec.containers.iter();
        let names = containers.map(|each| format!("{}:127.0.0.1", each.name));
        let metadata = METADATA_NAMES.split(' ').map(|name| format!("{name}:{METADATA_ADDRESS}"));
        let names = names.chain(metadata);
        let host = HostConfig {
            memory: Some(memory),
            // The sum of memory and swap: no swap.
            memory_swap: Some(memory),
            nano_cpus: Some(i64::from(container.limits.processor_millis) * 1_000_000),
            pids_limit: Some(i64::from(PROCESSES_MAX)),
            ulimits: Some(vec![ResourcesUlimits {
                name: Some("nofile".to_owned()),
                soft: Some(open_files),
                hard: Some(open_files),
            }]),
            binds: Some(binds.collect()),
            // Lines are read as they come; the engine keeps none of them.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            network_mode: Some(match first {
                Some(first) => format!("container:{}", first.id),
                None => "none".to_owned(),
            }),
            dns: first.is_none().then(|| vec![METADATA_ADDRESS.to_string()]),
            extra_hosts: first.is_none().then(|| names.collect()),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(CAPABILITIES.iter().map(ToString::to_string).collect()),
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            // A container that joins a network has the host name of that network.
            hostname: first.is_none().then(|| plan.host_name.clone()),
            user: Some(plan.user.clone()),
            env: Some(plan.environment.clone()),
            entrypoint: Some(plan.arguments.clone()),
            cmd: Some(Vec::new()),
            image: Some(image_name(&container.image)),
            working_dir: Some(plan.working_directory.clone()),
            labels: Some(self.runtime.labels(self.spec.id.as_str())),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    fn follow(
        &self,
        container: &str,
        mut outputs: impl futures_util::Stream<Item = Result<LogOutput, EngineError>>
        + Send
        + Unpin
        + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let name: Arc<str> = Arc::from(container);
        let follower = |stream| {
            Follower::new(Output {
                instance: self.spec.id.clone(),
                container: Arc::clone(&name),
                stream,
                tail: Arc::clone(&self.tail),
                sink: Arc::clone(&self.runtime.config.sink),
            })
        };
        let (mut output, mut errors) = (follower(Stream::Stdout), follower(Stream::Stderr));
        async move {
            while let Some(Ok(piece)) = outputs.next().await {
                match piece {
                    LogOutput::StdErr { message } => errors.take(&message).await,
                    other => output.take(&other.into_bytes()).await,
                }
            }
            output.finish();
            errors.finish();
        }
    }

    /// Waits for the end of a container and tells it.
    async fn watch(self: Arc<Self>, container: String, id: String, reader: JoinHandle<()>) {
        let mut waiting =
            Box::pin(self.runtime.engine.wait_container(&id, None::<WaitContainerOptions>));
        let code = match waiting.next().await {
            Some(Ok(ended)) => Some(ended.status_code),
            Some(Err(EngineError::DockerContainerWaitError { code, .. })) => Some(code),
            // The engine is gone or has forgotten it.
            _ => None,
        };
        // A container that left children behind with its outputs open does not hold us up.
        let _ = timeout(LAST_LINES_WITHIN, reader).await;
        let cause = self.cause_of(&id, code).await;
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(Exit { container, cause });
            }
            first
        });
        self.running.send_modify(|running| *running = running.saturating_sub(1));
    }

    async fn cause_of(&self, id: &str, code: Option<i64>) -> ExitCause {
        if self.stopping.load(Ordering::SeqCst) {
            return ExitCause::Stopped;
        }
        let inspected =
            self.runtime.engine.inspect_container(id, None::<InspectContainerOptions>).await;
        let state = inspected.ok().and_then(|found| found.state).unwrap_or_default();
        let number = |code: i64| i32::try_from(code).unwrap_or(-1);
        match code {
            _ if state.oom_killed == Some(true) => ExitCause::OutOfMemory,
            Some(code) if code > SIGNALLED => ExitCause::Signal(number(code - SIGNALLED)),
            Some(code) => ExitCause::Code(number(code)),
            None => ExitCause::HelperLost,
        }
    }

    async fn stop(self: Arc<Self>) {
        // Waits for a start that is under way.
        let started = self.started.lock().await.clone();
        {
            let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
            for group in groups.iter() {
                // A throttled container could not say goodbye in time.
                let _ = group.set_processor(Allowance::Full);
            }
        }
        for each in &started {
            // The first process of a container does not hear what it has no handler for.
            let heard = handles(Pid::from_raw(each.process), Signal::SIGTERM);
            self.signal(&each.id, if heard { Signal::SIGTERM } else { Signal::SIGKILL }).await;
        }
        self.wait_or_kill().await;
        for each in &started {
            self.remove_container(&each.id).await;
        }
        *self.namespace.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let answering =
            std::mem::take(&mut *self.answering.lock().unwrap_or_else(PoisonError::into_inner));
        end_all(answering).await;
        self.runtime.remove_volumes(self.spec.id.as_str()).await;
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(Exit { container: String::new(), cause: ExitCause::Stopped });
            }
            first
        });
        self.gone.send_replace(true);
    }

    /// Waits until every container has ended or the time for that is over.
    async fn wait_or_kill(&self) {
        let mut running = self.running.subscribe();
        let mut kill_at = self.kill_at.subscribe();
        loop {
            let deadline = kill_at.borrow_and_update().unwrap_or_else(Instant::now);
            tokio::select! {
                _ = running.wait_for(|running| *running == 0) => return,
                _ = kill_at.changed() => {}
                // Removing a container kills it.
                () = sleep_until(deadline) => return,
            }
        }
    }

    async fn signal(&self, id: &str, signal: Signal) {
        let options = Some(KillContainerOptions { signal: signal.as_str().to_owned() });
        if let Err(error) = self.runtime.engine.kill_container(id, options).await {
            // One that has ended already is what is wanted.
            tracing::debug!(instance = %self.spec.id, %error, "no signal was delivered");
        }
    }

    async fn remove_container(&self, id: &str) {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        if let Err(error) = self.runtime.engine.remove_container(id, Some(options)).await {
            tracing::warn!(instance = %self.spec.id, %error, "a container is not removed");
        }
    }
}

/// The engine refuses to start what cannot be executed, and says why at length.
fn not_executed(container: &str, error: &EngineError) -> StartError {
    match error {
        EngineError::DockerResponseServerError { message, .. } => StartError::Execute {
            container: container.to_owned(),
            reason: message.rsplit("exec: ").next().unwrap_or(message).trim().to_owned(),
        },
        other => StartError::Helper(format!("Docker Engine: {other}")),
    }
}
