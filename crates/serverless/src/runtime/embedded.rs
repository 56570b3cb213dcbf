//! The embedded runtime: containers with no daemon, one helper process per instance.
//!
//! Invariant: an instance's directory, control groups and helper exist only between `create` and
//! the end of `stop`; whatever happens in between, [`InstanceTask`](super::instance) removes them.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Mutex as AsyncMutex;

use super::cgroups::{Cgroups, ContainerGroup};
use super::dialer::Dialer;
use super::instance::{EmbeddedInstance, InstanceTask};
use super::leftovers;
use super::limits::{HELPER_ANSWERS_WITHIN, PROCESSES_MAX};
use super::link::Link;
use super::orders::{PlannedGroup, SandboxPlan};
use super::{
    Allowance, Instance, InstanceSpec, LogSink, Pending, Reconciled, Runtime, StartError,
    Surroundings, bundle, mark_of,
};

/// What the embedded runtime needs to know.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// A directory of its own, below the server's data directory.
    pub directory: PathBuf,
    /// How a helper process is started.
    pub helper: HelperProgram,
    /// Where the lines go that containers write.
    pub sink: Arc<dyn LogSink>,
    /// Helpers kept ready with their namespaces made, which takes milliseconds off a cold start.
    pub spare_helpers: usize,
}

/// The program that becomes a helper when its first own argument says so.
#[derive(Clone, Debug)]
pub struct HelperProgram {
    /// The executable.
    pub program: PathBuf,
    /// Arguments before [`HELPER_ARGUMENT`](super::HELPER_ARGUMENT).
    pub arguments: Vec<OsString>,
    /// How long one may take to answer before it is given up and killed.
    pub answers_within: Duration,
}

impl HelperProgram {
    /// The program that is running now, also when its file was replaced meanwhile.
    pub fn this_program() -> HelperProgram {
        HelperProgram {
            program: PathBuf::from("/proc/self/exe"),
            arguments: Vec::new(),
            answers_within: HELPER_ANSWERS_WITHIN,
        }
    }
}

/// Runs instances with libcontainer.
#[derive(Clone, Debug)]
pub struct EmbeddedRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: EmbeddedConfig,
    pub(crate) surroundings: Surroundings,
    /// Derived from the directory: what tells our leftovers from another server's.
    pub(crate) mark: String,
    pub(crate) cgroups: Cgroups,
    pub(crate) dialer: Dialer,
    /// Where the tasks of instances run.
    pub(crate) tasks: Handle,
    spares: Mutex<VecDeque<Link>>,
    /// Held while spare helpers are started, so that nobody starts too many; true when no more are
    /// wanted.
    refilling: AsyncMutex<bool>,
}

impl EmbeddedRuntime {
    /// Opens the runtime; its tasks run where this is called, inside a tokio runtime. What the host
    /// cannot limit is told in words, for the log.
    pub fn open(config: EmbeddedConfig) -> io::Result<(EmbeddedRuntime, Vec<String>)> {
        EmbeddedRuntime::open_in(config, Surroundings::default())
    }

    /// Like [`EmbeddedRuntime::open`], for instances that have somebody around them.
    pub fn open_in(
        config: EmbeddedConfig,
        surroundings: Surroundings,
    ) -> io::Result<(EmbeddedRuntime, Vec<String>)> {
        let instances = config.directory.join("instances");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&instances)?;
        let mark = mark_of(&fs::canonicalize(&config.directory)?);
        let (cgroups, problems) = Cgroups::open(&mark);
        let inner = Inner {
            config,
            surroundings,
            mark,
            cgroups,
            dialer: Dialer::start()?,
            tasks: Handle::current(),
            spares: Mutex::default(),
            refilling: AsyncMutex::default(),
        };
        Ok((EmbeddedRuntime { inner: Arc::new(inner) }, problems))
    }

    /// The mark on everything this runtime owns on the host.
    pub fn mark(&self) -> &str {
        &self.inner.mark
    }
}

impl Inner {
    pub(crate) fn instance_directory(&self, instance: &str) -> PathBuf {
        self.config.directory.join("instances").join(instance)
    }

    /// A helper that is the sandbox of this plan: a spare one, or one started now.
    async fn prepared_helper(&self, plan: &SandboxPlan) -> io::Result<Link> {
        loop {
            let spare = self.spares.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(mut link) = spare else { break };
            match link.prepare(plan).await {
                Ok(()) => return Ok(link),
                // Somebody may have killed it while it waited; what the plan lacks, a helper of
                // its own will say again.
                Err(error) => {
                    tracing::debug!(%error, "a spare instance helper was of no use");
                    link.end().await;
                }
            }
        }
        let mut link = Link::open(&self.config.helper, &self.mark).await?;
        match link.prepare(plan).await {
            Ok(()) => Ok(link),
            Err(error) => {
                link.end().await;
                Err(error)
            }
        }
    }

    /// Starts helpers until there are as many spare ones as there should be.
    pub(crate) async fn refill(self: Arc<Self>) {
        let closed = self.refilling.lock().await;
        if *closed {
            return;
        }
        loop {
            let missing = {
                let spares = self.spares.lock().unwrap_or_else(PoisonError::into_inner);
                spares.len() < self.config.spare_helpers
            };
            if !missing {
                return;
            }
            match Link::open(&self.config.helper, &self.mark).await {
                Ok(link) => {
                    self.spares.lock().unwrap_or_else(PoisonError::into_inner).push_back(link);
                }
                Err(error) => {
                    // The next instance starts its own helper, and tells whoever asked for it.
                    tracing::warn!(%error, "no spare instance helper could be started");
                    return;
                }
            }
        }
    }

    async fn create(
        self: &Arc<Self>,
        spec: Arc<InstanceSpec>,
    ) -> Result<Arc<dyn Instance>, StartError> {
        let mut plans = BTreeMap::new();
        for container in &spec.containers {
            let mut plan = bundle::plan_container(&spec, container)?;
            if !self.cgroups.count_processes() {
                plan.processes_of_user_max = Some(u64::from(PROCESSES_MAX));
            }
            plans.insert(container.name.clone(), plan);
        }
        let directory = self.instance_directory(spec.id.as_str());
        let host = |step| move |source| StartError::Host { step, source };
        fs::DirBuilder::new().mode(0o700).create(&directory).map_err(host("instance directory"))?;
        let mut groups = BTreeMap::new();
        for container in &spec.containers {
            let made = self.cgroups.create(spec.id.as_str(), &container.name, container.limits);
            let made = made.inspect_err(|_| self.undo(&groups, &directory));
            groups.insert(container.name.clone(), made.map_err(host("control groups"))?);
        }
        let sandbox = SandboxPlan {
            directory: directory.clone(),
            volumes: spec.volumes.iter().map(bundle::plan_volume).collect(),
            groups: groups.iter().map(planned_group).collect(),
        };
        let link = self.prepared_helper(&sandbox).await;
        let link = link.inspect_err(|_| self.undo(&groups, &directory));
        let link = link.map_err(|error| StartError::Helper(error.to_string()))?;
        let allowance = if spec.startup_boost { Allowance::Boosted } else { Allowance::Full };
        let instance = InstanceTask::start(Arc::clone(self), spec, plans, groups, link);
        instance.set_processor(allowance);
        Ok(instance)
    }

    /// Takes back what was made for an instance that got no helper.
    fn undo(&self, groups: &BTreeMap<String, ContainerGroup>, directory: &Path) {
        for group in groups.values() {
            group.remove();
        }
        self.cgroups.remove_roots();
        // Reconciliation finds it if this fails.
        let _ = fs::remove_dir(directory);
    }
}

fn planned_group((container, group): (&String, &ContainerGroup)) -> PlannedGroup {
    PlannedGroup {
        container: container.clone(),
        directories: group.directories(),
        shown: group.shown_as(),
    }
}

impl Runtime for EmbeddedRuntime {
    fn create(
        &self,
        spec: Arc<InstanceSpec>,
    ) -> Pending<'_, Result<Arc<dyn Instance>, StartError>> {
        let inner = Arc::clone(&self.inner);
        // The work runs on the runtime's own tasks, so a caller that goes away leaves no half.
        let made = self.inner.tasks.spawn(async move { inner.create(spec).await });
        Box::pin(async move {
            match made.await {
                Ok(result) => result,
                Err(error) => Err(StartError::Helper(error.to_string())),
            }
        })
    }

    fn reconcile(&self) -> Pending<'_, Reconciled> {
        Box::pin(async move {
            let found = leftovers::remove(&self.inner).await;
            self.inner.tasks.spawn(Arc::clone(&self.inner).refill());
            found
        })
    }

    fn shut_down(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            // Waits for one that is just being started.
            *self.inner.refilling.lock().await = true;
            let spares = std::mem::take(
                &mut *self.inner.spares.lock().unwrap_or_else(PoisonError::into_inner),
            );
            for link in spares {
                link.end().await;
            }
            self.inner.cgroups.remove_roots();
        })
    }
}

impl EmbeddedInstance {
    /// The trait object a caller holds.
    pub(crate) fn shared(self) -> Arc<dyn Instance> {
        Arc::new(self)
    }
}
