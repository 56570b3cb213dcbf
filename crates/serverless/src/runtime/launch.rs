//! From a specification to an instance that may take traffic: start order, probes, failures.
//!
//! Invariant: an instance whose launch failed or was given up is stopped and taken off the host; a
//! `LiveInstance` that is dropped stops its instance.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::asking::ask;
use super::limits::{LOG_LINES_IN_FAILURE, STOP_GRACE};
use super::probes::{Answers, ProbeKind, Verdict, failure_text, next_at, patience};
use super::{
    ContainerSpec, Exit, ExitCause, Instance, InstanceSpec, LogLine, Probe, Runtime, StartError,
};

/// Said where the container is not to blame.
const NOT_STARTED: &str = "An instance could not be started on this host.";

/// Why an instance never became ready.
#[derive(Clone, Debug)]
pub struct StartFailure {
    /// Cloud Run's sentences for conditions and error messages.
    pub message: String,
    /// What happened exactly: the probe that failed, the exit, the refusal of the host.
    pub detail: String,
    /// The container that failed, if one did.
    pub container: Option<String>,
    /// The last lines the instance wrote, oldest first.
    pub log_tail: Vec<LogLine>,
    /// Whether the host is to blame rather than the container: trying again may help.
    pub host_fault: bool,
}

/// Why a ready instance is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A container ended by itself.
    Exited(Exit),
    /// A liveness probe failed; the message is Cloud Run's.
    Unhealthy(String),
    /// It was stopped because we wanted it to.
    Stopped,
}

/// How long each step of a launch took, counted from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// The sandbox was there.
    pub created: Duration,
    /// The ingress container's program was executed.
    pub executed: Duration,
    /// Every startup probe had passed.
    pub ready: Duration,
}

/// An instance that takes traffic until it ends.
#[derive(Debug)]
pub struct LiveInstance {
    instance: Arc<dyn Instance>,
    phases: Phases,
    ready: watch::Receiver<bool>,
    end: Arc<watch::Sender<Option<End>>>,
    watchers: Vec<JoinHandle<()>>,
}

impl LiveInstance {
    /// The instance itself: dial, usage, logs, processor allowance.
    pub fn instance(&self) -> &Arc<dyn Instance> {
        &self.instance
    }

    /// How long the launch took.
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Whether the readiness probes pass; true where there are none.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// Resolves when the instance has ended, with the first reason; everything that is left of it
    /// is being removed from then on.
    pub fn ended(&self) -> impl Future<Output = End> + Send + 'static {
        let mut seen = self.end.subscribe();
        async move {
            match seen.wait_for(Option::is_some).await.map(|found| found.clone()) {
                Ok(Some(end)) => end,
                _ => End::Stopped,
            }
        }
    }

    /// Stops the instance and resolves when nothing is left of it.
    pub fn stop(&self, grace: Duration) -> impl Future<Output = ()> + Send + 'static {
        end_with(&self.end, End::Stopped);
        self.instance.stop(grace)
    }
}

impl Drop for LiveInstance {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.abort();
        }
        drop(self.stop(STOP_GRACE));
    }
}

/// Only the first end counts.
fn end_with(sender: &watch::Sender<Option<End>>, end: End) {
    sender.send_if_modified(|known| {
        let first = known.is_none();
        if first {
            *known = Some(end);
        }
        first
    });
}

/// Creates the instance, starts its containers in order and waits for their startup probes.
/// Must be called inside a tokio runtime, where the probes of the ready instance then run.
/// Dropping the future gives the instance up.
pub async fn launch(
    runtime: &dyn Runtime,
    spec: Arc<InstanceSpec>,
) -> Result<LiveInstance, StartFailure> {
    let began = Instant::now();
    let waves = start_waves(&spec.containers).map_err(|detail| StartFailure {
        message: detail.clone(),
        detail,
        container: None,
        log_tail: Vec::new(),
        host_fault: false,
    })?;
    let created = runtime.create(Arc::clone(&spec)).await;
    let instance = created.map_err(|error| failure(&spec, &error, Vec::new()))?;
    let mut guard = Guard { instance: Some(Arc::clone(&instance)) };
    let mut phases = Phases { created: began.elapsed(), ..Phases::default() };
    let result = tokio::select! {
        started = start_all(&*instance, &spec, &waves, began) => started,
        exit = instance.exited() => Err(Trouble::Exited(exit)),
    };
    match result {
        Ok(executed) => {
            phases.executed = executed;
            phases.ready = began.elapsed();
        }
        Err(trouble) => {
            guard.instance = None;
            instance.stop(Duration::ZERO).await;
            return Err(trouble.into_failure(&spec, &*instance));
        }
    }
    if spec.startup_boost {
        instance.set_processor(super::Allowance::Full);
    }
    guard.instance = None;
    Ok(watch_over(instance, &spec, phases))
}

/// Stops an instance whose launch was given up.
struct Guard {
    instance: Option<Arc<dyn Instance>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            drop(instance.stop(Duration::ZERO));
        }
    }
}

/// What kept an instance from becoming ready.
enum Trouble {
    Start(StartError),
    Probe { container: String, text: String, last: String },
    Exited(Exit),
}

impl Trouble {
    fn into_failure(self, spec: &InstanceSpec, instance: &dyn Instance) -> StartFailure {
        let log_tail = instance.log_tail(LOG_LINES_IN_FAILURE);
        match self {
            Trouble::Start(error) => failure(spec, &error, log_tail),
            Trouble::Probe { container, text, last } => StartFailure {
                message: not_listening(spec),
                detail: if last.is_empty() { text } else { format!("{text} Last answer: {last}.") },
                container: Some(container),
                log_tail,
                host_fault: false,
            },
            Trouble::Exited(exit) => {
                let detail = match &exit.cause {
                    ExitCause::Code(code) => format!("Container called exit({code})."),
                    ExitCause::Signal(signal) => {
                        format!("Container terminated on signal {signal}.")
                    }
                    ExitCause::OutOfMemory => "The container used more memory than its limit and \
                                               was terminated. Consider increasing the limit."
                        .to_owned(),
                    other => format!("The container {other}."),
                };
                let host_fault = exit.cause == ExitCause::HelperLost;
                StartFailure {
                    message: if host_fault { NOT_STARTED.to_owned() } else { not_listening(spec) },
                    host_fault,
                    detail,
                    container: Some(exit.container),
                    log_tail,
                }
            }
        }
    }
}

fn failure(spec: &InstanceSpec, error: &StartError, log_tail: Vec<LogLine>) -> StartFailure {
    let mut detail = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        detail = format!("{detail}: {cause}");
    }
    let (container, host_fault) = match error {
        StartError::Execute { container, .. } => (Some(container.clone()), false),
        StartError::Invalid { .. } => (None, false),
        StartError::Host { .. } | StartError::Helper(_) => (None, true),
    };
    let message = if host_fault { NOT_STARTED.to_owned() } else { not_listening(spec) };
    StartFailure { message, detail, container, log_tail, host_fault }
}

/// Cloud Run's sentence for a container that never came up, whatever the reason.
fn not_listening(spec: &InstanceSpec) -> String {
    match spec.ingress() {
        Some((_, port)) => format!(
            "The user-provided container failed to start and listen on the port defined provided \
             by the PORT={port} environment variable within the allocated timeout. This can happen \
             when the container port is misconfigured or if the timeout is too short. The health \
             check timeout can be extended. Logs for this revision might contain more information."
        ),
        None => "The user-provided container failed the configured startup probe checks. Logs for \
                 this revision might contain more information."
            .to_owned(),
    }
}

/// Containers in the order they start: those of one wave start together, after all earlier ones.
fn start_waves(containers: &[ContainerSpec]) -> Result<Vec<Vec<usize>>, String> {
    let mut waves = Vec::new();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut left: Vec<usize> = (0..containers.len()).collect();
    while !left.is_empty() {
        let started = |index: &usize| {
            containers[*index].starts_after.iter().all(|name| done.contains(name.as_str()))
        };
        let (wave, rest): (Vec<usize>, Vec<usize>) = left.iter().partition(|index| started(index));
        if wave.is_empty() {
            let names: Vec<&str> =
                rest.iter().map(|index| containers[*index].name.as_str()).collect();
            return Err(format!(
                "containers depend on each other in a circle: {}",
                names.join(", ")
            ));
        }
        done.extend(wave.iter().map(|index| containers[*index].name.as_str()));
        waves.push(wave);
        left = rest;
    }
    Ok(waves)
}

/// Answers with the time at which the ingress container's program was executed.
async fn start_all(
    instance: &dyn Instance,
    spec: &InstanceSpec,
    waves: &[Vec<usize>],
    began: Instant,
) -> Result<Duration, Trouble> {
    let mut executed = Duration::ZERO;
    for wave in waves {
        let containers = wave.iter().map(|index| &spec.containers[*index]);
        let times = try_join_all(containers.map(|each| start_one(instance, each, began))).await?;
        executed = times.into_iter().max().unwrap_or(executed);
    }
    Ok(executed)
}

async fn start_one(
    instance: &dyn Instance,
    container: &ContainerSpec,
    began: Instant,
) -> Result<Duration, Trouble> {
    instance.start_container(&container.name).await.map_err(Trouble::Start)?;
    let executed = began.elapsed();
    let (probe, kind) = match (&container.probes.startup, container.port) {
        (Some(probe), _) => (probe.clone(), ProbeKind::Startup),
        (None, Some(port)) => (Probe::default_startup(port), ProbeKind::DefaultStartup),
        (None, None) => return Ok(executed),
    };
    sleep_until(Instant::now() + probe.initial_delay).await;
    let mut answers = Answers::default();
    loop {
        let asked_at = Instant::now();
        let answer = ask(instance, &probe.action, patience(&probe, kind)).await;
        match answers.note(&probe, answer.is_ok()) {
            Verdict::Passing => return Ok(executed),
            Verdict::Failing => {
                return Err(Trouble::Probe {
                    container: container.name.clone(),
                    text: failure_text(&probe, kind, &container.name),
                    last: answer.err().unwrap_or_default(),
                });
            }
            Verdict::Undecided => {
                let next = next_at(&probe, asked_at.into_std(), Instant::now().into_std());
                sleep_until(next.into()).await;
            }
        }
    }
}

/// Starts the probes of a ready instance and waits for its end.
fn watch_over(instance: Arc<dyn Instance>, spec: &InstanceSpec, phases: Phases) -> LiveInstance {
    let end = Arc::new(watch::Sender::new(None));
    let mut watchers = Vec::new();
    watchers.push(tokio::spawn(watch_exit(Arc::clone(&instance), Arc::clone(&end))));
    let mut readiness = Vec::new();
    for container in &spec.containers {
        if let Some(probe) = container.probes.liveness.clone() {
            let watcher = watch_liveness(
                Arc::clone(&instance),
                container.name.clone(),
                probe,
                Arc::clone(&end),
            );
            watchers.push(tokio::spawn(watcher));
        }
        if let Some(probe) = container.probes.readiness.clone() {
            readiness.push(probe);
        }
    }
    let (ready, seen) = watch::channel(true);
    if !readiness.is_empty() {
        watchers.push(tokio::spawn(watch_readiness(Arc::clone(&instance), readiness, ready)));
    }
    LiveInstance { instance, phases, ready: seen, end, watchers }
}

async fn watch_exit(instance: Arc<dyn Instance>, end: Arc<watch::Sender<Option<End>>>) {
    let exit = instance.exited().await;
    let reason = match exit.cause {
        ExitCause::Stopped => End::Stopped,
        _ => End::Exited(exit),
    };
    end_with(&end, reason);
    // An instance that lost one container is of no use; this removes the others.
    instance.stop(STOP_GRACE).await;
}

async fn watch_liveness(
    instance: Arc<dyn Instance>,
    container: String,
    probe: Probe,
    end: Arc<watch::Sender<Option<End>>>,
) {
    sleep_until(Instant::now() + probe.initial_delay).await;
    let mut answers = Answers::default();
    loop {
        let asked_at = Instant::now();
        let answer = ask(&*instance, &probe.action, patience(&probe, ProbeKind::Liveness)).await;
        if answers.note(&probe, answer.is_ok()) == Verdict::Failing {
            let text = failure_text(&probe, ProbeKind::Liveness, &container);
            tracing::warn!(instance = %instance.id(), container, "{text}");
            end_with(&end, End::Unhealthy(text));
            instance.stop(STOP_GRACE).await;
            return;
        }
        sleep_until(next_at(&probe, asked_at.into_std(), Instant::now().into_std()).into()).await;
    }
}

/// All readiness probes have to pass; each keeps its own period.
async fn watch_readiness(
    instance: Arc<dyn Instance>,
    probes: Vec<Probe>,
    ready: watch::Sender<bool>,
) {
    let passing: Vec<watch::Sender<bool>> =
        probes.iter().map(|_| watch::Sender::new(true)).collect();
    let watching = probes.iter().zip(&passing).map(|(probe, mine)| {
        let (instance, all, ready) = (&instance, &passing, &ready);
        async move {
            sleep_until(Instant::now() + probe.initial_delay).await;
            let mut answers = Answers::default();
            loop {
                let asked_at = Instant::now();
                let patience = patience(probe, ProbeKind::Readiness);
                let answer = ask(&**instance, &probe.action, patience).await;
                match answers.note(probe, answer.is_ok()) {
                    Verdict::Passing => drop(mine.send_replace(true)),
                    Verdict::Failing => drop(mine.send_replace(false)),
                    Verdict::Undecided => {}
                }
                let now_ready = all.iter().all(|each| *each.borrow());
                ready.send_if_modified(|known| std::mem::replace(known, now_ready) != now_ready);
                let next = next_at(probe, asked_at.into_std(), Instant::now().into_std());
                sleep_until(next.into()).await;
            }
        }
    });
    join_all(watching).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{ImageConfig, ImagePin, ResolvedImage};
    use crate::runtime::{Limits, Probes};

    fn container(name: &str, starts_after: &[&str]) -> ContainerSpec {
        ContainerSpec {
            name: name.to_owned(),
            image: ResolvedImage {
                reference: String::new(),
                pinned: String::new(),
                digest: String::new(),
                config: Arc::new(ImageConfig::default()),
                layers: Vec::new(),
                substitution: None,
                pin: Arc::new(ImagePin { digest: String::new() }),
            },
            command: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: None,
            port: None,
            limits: Limits::default(),
            probes: Probes::default(),
            starts_after: starts_after.iter().map(|name| (*name).to_owned()).collect(),
            mounts: Vec::new(),
        }
    }

    /// Name, and the names it starts after.
    type Container<'a> = (&'a str, &'a [&'a str]);

    fn waves(containers: &[Container<'_>]) -> String {
        let specs: Vec<ContainerSpec> =
            containers.iter().map(|(name, after)| container(name, after)).collect();
        match start_waves(&specs) {
            Err(text) => text,
            Ok(waves) => {
                let names = waves.iter().map(|wave| {
                    let names: Vec<&str> =
                        wave.iter().map(|index| specs[*index].name.as_str()).collect();
                    names.join("+")
                });
                names.collect::<Vec<_>>().join(" then ")
            }
        }
    }

    #[test]
    fn containers_start_after_those_they_depend_on() {
        let cases: [(&[Container<'_>], &str); 5] = [
            (&[("app", &[])], "app"),
            (&[("app", &["db"]), ("db", &[])], "db then app"),
            (&[("app", &["db", "log"]), ("db", &["log"]), ("log", &[])], "log then db then app"),
            (&[("app", &[]), ("log", &[])], "app+log"),
            (&[("a", &["b"]), ("b", &["a"])], "containers depend on each other in a circle: a, b"),
        ];
        for (containers, expected) in cases {
            assert_eq!(waves(containers), expected);
        }
    }
}
