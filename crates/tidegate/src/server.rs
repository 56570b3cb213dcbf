//! One running server: every part started in order, joined, and stopped in the opposite order.
//!
//! Invariant: when `start` returns, everything that was declared before is being served again, with no
//! command given; when `stop` returns, the host is as it was found.

use crate::admin::Admin;
use crate::applier::{Applier, chain};
use crate::behind::Counter;
use crate::cli::Up;
use crate::data_dir::{DataDir, Held, RunAppAddresses, Running};
use crate::handover::{self, Inheritance, Predecessor, Successor};
use crate::joins::builds::SourceBuilds;
use crate::joins::callers::IssuedTokens;
use crate::joins::endpoints::FleetEndpoints;
use crate::joins::instance_port::VpcPorts;
use crate::joins::logs::ContainerLogs;
use crate::joins::metadata::{ContainerMetadata, MachineMetadata};
use crate::joins::network::{Internet, VpcEgress};
use crate::joins::observed::Progress;
use crate::joins::request_log::RequestEntries;
use crate::joins::run_apps::{self, RunApps};
use crate::joins::secrets::ProjectSecrets;
use crate::joins::sockets::VpcSockets;
use crate::metrics;
use anyhow::{Context, bail};
use api::builds::Builds;
use api::door::{self, Door};
use api::metadata::Metadata;
use api::{Api, Front, Machine, Observed, Platform, World};
use plan::Plan;
use plan::network::Networks;
use serverless::builds::{Builder, BuilderConfig};
use serverless::fleet::{Fleet, FleetOptions, RevisionOutcome, StoreImages};
use serverless::images::{ImageStore, ImageStoreConfig};
use serverless::logs::LogStore;
use serverless::runtime::{EmbeddedConfig, EmbeddedRuntime, HelperProgram, Runtime, Surroundings};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{OnceCell, OwnedMutexGuard, mpsc, watch};
use tokio::task::JoinHandle;
use vpc::Vpc;
use vpc::egress::Egress;

/// Who holds the token made at the first start.
const OWNER_EMAIL: &str = "owner@tidegate.local";

/// How long connections and requests may finish when the server stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// How long requests to the API may finish while a successor waits.
const API_PATIENCE: Duration = Duration::from_secs(2);

/// How long requests under way may finish in a server that was replaced.
const RETIRE_PATIENCE: Duration = Duration::from_secs(60);

/// Where containers are kept; a server that replaces another uses the folder the other does not.
const RUNTIME_FOLDERS: [&str; 2] = ["runtime", "runtime.2"];

/// Helper processes kept ready for the next cold start.
const SPARE_HELPERS: usize = 1;

/// A server that serves.
pub(crate) struct Server {
    running: Running,
    door: Door,
    parts: Parts,
    stopping: watch::Receiver<bool>,
    /// The listener of the metrics, for a successor.
    metrics: TcpListener,
    successors: Option<handover::Door>,
    /// Held once everything was handed over.
    last_turn: OnceCell<OwnedMutexGuard<()>>,
    held: Held,
}

/// Everything behind the ports of a server.
struct Parts {
    api: Api,
    identity: Arc<api::oauth::Identity>,
    plans: watch::Receiver<Arc<Plan>>,
    images: ImageStore,
    builder: Builder,
    runtime: Arc<dyn Runtime>,
    runtime_folder: &'static str,
    applier: Arc<Applier>,
    tasks: Vec<JoinHandle<()>>,
}

/// The file with the token that every API request needs.
pub(crate) fn token_file(dir: &DataDir) -> PathBuf {
    api::oauth::token_file(dir.root())
}

/// The token of a data directory.
pub(crate) fn token(dir: &DataDir) -> anyhow::Result<String> {
    let path = token_file(dir);
    let token = std::fs::read_to_string(&path)
        .with_context(|| format!("could not read the token in `{}`", path.display()))?;
    Ok(token.trim().to_owned())
}

/// Resolves at the first SIGINT or SIGTERM, and for every later caller at once.
pub(crate) async fn asked_to_stop() {
    let mut asked = crate::signals::asked();
    // The sender lives as long as the process.
    let _ = asked.wait_for(|asked| *asked).await;
}

impl Server {
    /// Starts everything; returns when everything declared is being served.
    pub(crate) async fn start(dir: &DataDir, options: &Up) -> anyhow::Result<Server> {
        if let Some(missing) = crate::commands::doctor::obstacles() {
            bail!("this host lacks what Tidegate needs:\n{missing}\n`tidegate doctor` tells more.");
        }
        if options.replace && dir.is_held() {
            return Server::take_over(dir, options).await;
        }
        let held = dir.hold()?;
        Server::assemble(dir, options, held, None).await
    }

    /// Takes the place of the server that runs: everything it has is asked for, and it goes when this one
    /// serves.
    async fn take_over(dir: &DataDir, options: &Up) -> anyhow::Result<Server> {
        let asked = dir.clone();
        let (predecessor, inheritance) =
            tokio::task::spawn_blocking(move || Predecessor::of(&asked)).await??;
        let held = Held::inherited(inheritance.lock.try_clone()?)?;
        let server = Server::assemble(dir, options, held, Some(inheritance)).await?;
        if let Err(error) = predecessor.dismiss() {
            tracing::warn!("{error:#}");
        }
        Ok(server)
    }

    async fn assemble(
        dir: &DataDir,
        options: &Up,
        held: Held,
        inheritance: Option<Inheritance>,
    ) -> anyhow::Result<Server> {
        let before = dir.last_announced()?;
        let inherited = inheritance.as_ref();
        let mut parts = Parts::assemble(dir, options, inherited).await?;
        parts.wait_until_served().await;

        let run_apps = parts.open_run_apps(before.as_ref(), inherited.is_some()).await?;
        let door = parts.open_door(dir, options, run_apps, inherited).await?;
        let proxy = parts.applier.proxy.clone();
        let render: metrics::Render = Arc::new(move || proxy.render_openmetrics());
        let metrics_listener = match inherited {
            Some(inherited) => inherited.metrics.try_clone()?,
            None => metrics::listen(metrics_address(options, before.as_ref()))?,
        };
        let metrics_at = metrics::serve(metrics_listener.try_clone()?, render)?;
        let running = Running::this(door.address(), metrics_at, Some(run_apps), &options.project);
        dir.announce(&running)?;
        // A path may be too long for a socket, which is no reason not to serve.
        let successors = handover::Door::open(dir);
        let successors = successors
            .inspect_err(|error| tracing::warn!("this server cannot be replaced: {error:#}"));
        let (ask, stopping) = watch::channel(false);
        parts.tasks.push(tokio::spawn(async move {
            asked_to_stop().await;
            ask.send_replace(true);
        }));
        let successors = successors.ok();
        Ok(Server {
            running,
            door,
            parts,
            stopping,
            metrics: metrics_listener,
            successors,
            last_turn: OnceCell::new(),
            held,
        })
    }

    /// Resolves when another process serves in the place of this one. Until a successor serves, this one
    /// does, though without an API once it has let go of the store: a successor that failed can be followed
    /// by another.
    pub(crate) async fn replaced(&self) {
        let Some(successors) = &self.successors else { return std::future::pending().await };
        loop {
            let outcome = match successors.asked().await {
                Ok(successor) => self.hand_over(successor).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => return,
                Err(error) => tracing::error!("the successor does not serve: {error:#}"),
            }
        }
    }

    /// Gives everything to a successor, and waits until it serves.
    async fn hand_over(&self, mut successor: Successor) -> anyhow::Result<()> {
        let api = self.door.let_go(API_PATIENCE).await?;
        let applier = self.parts.applier.clone();
        // No plan is carried out from here on: the next one is the successor's.
        self.last_turn.get_or_init(|| applier.turn.clone().lock_owned()).await;
        let inheritance = Inheritance {
            lock: self.held.share()?,
            runtime: self.parts.runtime_folder.to_owned(),
            api,
            metrics: self.metrics.try_clone()?,
            data_plane: Vec::new(),
        };
        let api = self.parts.api.clone();
        let handed_over = tokio::task::spawn_blocking(move || {
            applier.vpc.leave();
            api.world().close();
            let sockets = applier.proxy.hand_over_sockets()?.into_iter();
            let host = run_apps::host();
            let data_plane = sockets
                .map(|(network, socket)| (Some(network).filter(|name| *name != host), socket))
                .collect();
            successor.give(&Inheritance { data_plane, ..inheritance })?;
            successor.until_it_serves()
        });
        handed_over.await?
    }

    /// Finishes what is under way and ends what is this process's own; the host is the successor's.
    pub(crate) async fn retire(self) -> anyhow::Result<()> {
        // The successor has the lock too, and `tidegate down` waits for it alone.
        drop(self.held);
        for task in self.parts.tasks {
            task.abort();
        }
        let Applier { fleet, proxy, metadata, vpc, .. } = &*self.parts.applier;
        metadata.follow(vpc, &Networks::default());
        let draining = proxy.clone();
        tokio::task::spawn_blocking(move || draining.drain(RETIRE_PATIENCE)).await?;
        fleet.stop(DRAIN_PATIENCE).await;
        self.parts.runtime.shut_down().await;
        Ok(())
    }

    /// What the server announced.
    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Whether somebody asked it to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// The ports of the client VMs.
    pub(crate) fn vm_ports(&self) -> VpcPorts {
        VpcPorts { vpc: self.parts.applier.vpc.clone(), plans: self.parts.plans.clone() }
    }

    /// Drains, stops every container and VM, and removes everything from the host.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.door.close().await;
        for task in self.parts.tasks {
            task.abort();
        }
        let Applier { vpc, fleet, proxy, metadata, .. } = &*self.parts.applier;
        let draining = proxy.clone();
        tokio::task::spawn_blocking(move || draining.drain(DRAIN_PATIENCE)).await?;
        fleet.stop(DRAIN_PATIENCE).await;
        self.parts.runtime.shut_down().await;
        self.parts.builder.shut_down().await;
        metadata.follow(vpc, &Networks::default());
        let vpc = vpc.clone();
        let failures = tokio::task::spawn_blocking(move || vpc.down()).await?;
        if failures.is_empty() {
            return Ok(());
        }
        let failures: Vec<String> = failures.iter().map(|failure| chain(failure)).collect();
        bail!("something of this server is left on the host:\n  {}", failures.join("\n  "))
    }
}

impl Parts {
    /// Opens what the data directory holds and starts everyone who carries plans out.
    async fn assemble(
        dir: &DataDir,
        options: &Up,
        inherited: Option<&Inheritance>,
    ) -> anyhow::Result<Parts> {
        let store =
            store::Store::open(dir.join("store.redb")).context("could not open the store")?;
        let world = World::open(store).context("could not read what was declared")?;
        let plans = world.plans();
        let vpc = Vpc::open(dir.root()).context("could not open the VPC part")?;
        let progress = Arc::new(Progress::new(vpc.clone()));
        let identity = api::oauth::Identity::open(dir.root(), OWNER_EMAIL)
            .context("could not open the tokens")?;
        let identity = Arc::new(identity);
        let logs = LogStore::new();
        let requests = Arc::new(RequestEntries::default());
        let container_logs = Arc::new(ContainerLogs::new(logs.clone(), requests.clone()));
        let images = open_images(dir, options)?;
        let (builder, builds) = open_builder(dir, options, &images).await?;
        let builds = Some(builds);
        let platform = Platform { identity: identity.clone(), logs: container_logs, builds };
        let api = Api::on_platform(world, progress.clone(), Arc::new(Machine), platform);
        api.ensure_project(&options.project, &options.project)
            .await
            .map_err(|error| anyhow::anyhow!("could not make the project: {error}"))?;

        let metadata = Metadata::new(api.clone(), identity.clone());
        let outside = Arc::new(OnceLock::new());
        let internet = Internet { run_apps: Arc::clone(&outside) };
        let egress = Egress::new(vpc.clone(), plans.clone(), Arc::new(internet));
        let surroundings = Surroundings {
            metadata: Some(Arc::new(ContainerMetadata(metadata.clone()))),
            network: Some(Arc::new(VpcEgress(egress))),
        };
        let runtime_folder = runtime_folder(inherited);
        if inherited.is_none() {
            clear_runtimes(dir, runtime_folder).await?;
        }
        let runtime = open_runtime(dir, runtime_folder, &logs, surroundings).await?;
        let (fleet, outcomes) = Fleet::start(options.limits.services.bound(FleetOptions::new(
            runtime.clone(),
            Arc::new(StoreImages::new(images.clone())),
            Arc::new(ProjectSecrets::below(dir, &api)),
            logs,
        )));
        let proxy = Arc::new(start_proxy(options, &fleet, &vpc, &identity, requests)?);
        inherit_sockets(&proxy, inherited)?;
        vpc.trust(door::bundle_file(dir.root()));
        let applier = Arc::new(Applier {
            run_apps: Arc::new(RunApps::new(dir, Arc::clone(&proxy), outside)?),
            vpc,
            fleet,
            proxy,
            progress: progress.clone(),
            metadata: Arc::new(MachineMetadata::new(metadata, plans.clone())),
            turn: Arc::default(),
        });
        let tasks = vec![
            tokio::spawn(applier.clone().run(plans.clone())),
            tokio::spawn(progress.follow_instances()),
            tokio::spawn(crate::collector::run(images.clone(), dir.join("images"), plans.clone())),
            tokio::spawn(record_outcomes(api.clone(), outcomes)),
        ];
        Ok(Parts { api, identity, plans, images, builder, runtime, runtime_folder, applier, tasks })
    }

    /// Waits until the newest plan is carried out.
    async fn wait_until_served(&self) {
        let number = self.plans.borrow().number;
        let mut applied = self.applier.progress.progress();
        // The sender lives in the progress itself.
        let _ = applied.wait_for(|applied| *applied >= number).await;
    }

    /// Lets clients of services in.
    async fn open_run_apps(
        &self,
        before: Option<&Running>,
        is_inherited: bool,
    ) -> anyhow::Result<RunAppAddresses> {
        let run_apps = self.applier.run_apps.clone();
        let before = before.and_then(|before| before.run_app);
        tokio::task::spawn_blocking(move || run_apps.open_outside(before, is_inherited)).await?
    }

    /// Lets clients in.
    async fn open_door(
        &self,
        dir: &DataDir,
        options: &Up,
        run_apps: RunAppAddresses,
        inherited: Option<&Inheritance>,
    ) -> anyhow::Result<Door> {
        let (api, images) = (self.api.clone(), self.images.clone());
        let admin = Admin::new(api, self.applier.clone(), images, run_apps);
        let front = Front::new(self.api.clone(), self.identity.clone());
        let vpc = self.applier.vpc.clone();
        let config = door::Config {
            data_dir: dir.root().to_owned(),
            address: options.listen,
            beyond_loopback: options.listen_beyond_loopback,
            behind: Arc::new(Counter { front, admin }),
            instances: Arc::new(VpcPorts { vpc, plans: self.plans.clone() }),
            run_apps: self.applier.run_apps.clone(),
            inherited: inherited
                .map(|inherited| inherited.api.try_clone())
                .transpose()?
                .map(Arc::new),
        };
        Door::start(config).await.context("could not open the API's port")
    }
}

/// Removes from the host what a server that was killed left there; what it declared stays on disk.
pub(crate) async fn clear(dir: &DataDir) -> anyhow::Result<()> {
    let _held = dir.hold()?;
    let vpc = Vpc::open(dir.root()).context("could not open the VPC part")?;
    clear_runtimes(dir, "").await?;
    let builds = dir.join("builds");
    Builder::clear(&builds, HelperProgram::this_program())
        .await
        .context("could not clear what builds left")?;
    let failures = tokio::task::spawn_blocking(move || vpc.down()).await?;
    if failures.is_empty() {
        return Ok(());
    }
    let failures: Vec<String> = failures.iter().map(|failure| chain(failure)).collect();
    bail!("something is left on the host:\n  {}", failures.join("\n  "))
}

/// Builds from source, with a runtime of its own that is only ever used for them.
fn open_images(dir: &DataDir, options: &Up) -> anyhow::Result<ImageStore> {
    let (directory, credentials) = (dir.join("images"), options.registry_config.clone());
    ImageStore::open(ImageStoreConfig { directory, credentials })
        .context("could not open the image store")
}

/// Lets the data plane go on with the sockets of the server it replaces.
fn inherit_sockets(proxy: &proxy::Proxy, inherited: Option<&Inheritance>) -> anyhow::Result<()> {
    let sockets = inherited.map(|inherited| &inherited.data_plane[..]).unwrap_or_default();
    for (network, socket) in sockets {
        let network = network.clone().unwrap_or_else(run_apps::host);
        proxy.inherit(network, vec![socket.try_clone()?])?;
    }
    Ok(())
}

async fn open_builder(
    dir: &DataDir,
    options: &Up,
    images: &ImageStore,
) -> anyhow::Result<(Builder, Arc<Builds>)> {
    let config = BuilderConfig {
        directory: dir.join("builds"),
        helper: HelperProgram::this_program(),
        images: images.clone(),
        base_images: options.base_images.clone(),
        docker_socket: options.docker_socket.clone(),
    };
    let builder = Builder::open(config).await.context("could not open the builder")?;
    let builds =
        Builds::new(Arc::new(SourceBuilds { builder: builder.clone() }), dir.join("objects"));
    Ok((builder, Arc::new(builds)))
}

/// The folder of this server's containers: not the one in which those of its predecessor still run.
fn runtime_folder(inherited: Option<&Inheritance>) -> &'static str {
    let taken = inherited.map(|inherited| inherited.runtime.as_str());
    RUNTIME_FOLDERS.into_iter().find(|folder| Some(*folder) != taken).unwrap_or(RUNTIME_FOLDERS[0])
}

/// Removes what earlier servers left of their containers, but for the folder that is opened anyway.
async fn clear_runtimes(dir: &DataDir, except: &str) -> anyhow::Result<()> {
    for folder in RUNTIME_FOLDERS {
        if folder != except && dir.join(folder).exists() {
            let logs = LogStore::new();
            let runtime = open_runtime(dir, folder, &logs, Surroundings::default()).await?;
            runtime.shut_down().await;
        }
    }
    Ok(())
}

async fn open_runtime(
    dir: &DataDir,
    folder: &str,
    logs: &Arc<LogStore>,
    surroundings: Surroundings,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let config = EmbeddedConfig {
        directory: dir.join(folder),
        helper: HelperProgram::this_program(),
        sink: logs.clone(),
        spare_helpers: SPARE_HELPERS,
    };
    let (runtime, problems) = EmbeddedRuntime::open_in(config, surroundings)
        .context("could not open the container runtime")?;
    for problem in problems {
        tracing::warn!("{problem}");
    }
    let leftovers = runtime.reconcile().await;
    tracing::info!(?leftovers, "removed what an earlier life left");
    Ok(Arc::new(runtime))
}

fn start_proxy(
    options: &Up,
    fleet: &Fleet,
    vpc: &Vpc,
    identity: &Arc<api::oauth::Identity>,
    requests: Arc<RequestEntries>,
) -> anyhow::Result<proxy::Proxy> {
    let mut config =
        proxy::Config { limits: options.limits.data_plane.limits(), ..Default::default() };
    if let Some(workers) = options.workers {
        config.workers = workers;
    }
    config.request_log = Some(requests);
    config.log = match options.access_log.as_str() {
        "none" => proxy::LogTarget::Off,
        "-" => proxy::LogTarget::Stdout,
        file => proxy::LogTarget::File(Path::new(file).to_owned()),
    };
    let parties = proxy::Parties {
        endpoints: Arc::new(FleetEndpoints(fleet.clone())),
        sockets: Arc::new(VpcSockets(vpc.clone())),
        callers: Arc::new(IssuedTokens(identity.clone())),
    };
    proxy::Proxy::start(config, parties).context("could not start the data plane")
}

/// What the fleet found out about new revisions becomes part of what is known for good.
async fn record_outcomes(api: Api, mut outcomes: mpsc::UnboundedReceiver<RevisionOutcome>) {
    while let Some(found) = outcomes.recv().await {
        let revision = found.revision.clone();
        while let Err(error) = api.record_outcome(&found.revision, found.outcome.clone()).await {
            tracing::error!(%revision, %error, "the outcome of a revision could not be kept; trying again");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// The port of the last time is taken again if it is free, so that scrapers find it.
fn metrics_address(options: &Up, before: Option<&Running>) -> std::net::SocketAddr {
    let last = before.map(|before| before.metrics);
    match last {
        Some(last) if options.metrics.port() == 0 && last.ip() == options.metrics.ip() => {
            let free = std::net::TcpListener::bind(last).is_ok();
            if free { last } else { options.metrics }
        }
        _ => options.metrics,
    }
}
