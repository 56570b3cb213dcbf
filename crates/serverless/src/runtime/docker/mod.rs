//! Docker Engine as a runtime: the same instances, kept by a daemon that is there already.
//!
//! For hosts where an engine is the way to run containers. The engine has to be on this machine: an
//! instance has no network but its own, and is dialled into by entering it. Images come out of our
//! own store, so the engine pulls nothing. The engine's own seccomp profile applies. An image's
//! `USER` that its `/etc/passwd` does not know is an error here, where Cloud Run runs it as root.
//!
//! Invariant: every container and volume carries our mark as a label.

mod instance;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use bollard::errors::Error as EngineError;
use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{
    ImportImageOptions, ListContainersOptions, ListVolumesOptions, RemoveContainerOptions,
    RemoveVolumeOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker, body_try_stream};
use bytes::Bytes;
use futures_util::{TryStreamExt, stream};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use self::instance::DockerInstance;
use super::dialer::Dialer;
use super::sandbox::{plain_name, write_files};
use super::{
    Instance, InstanceSpec, LogSink, Pending, Reconciled, Runtime, StartError, Surroundings,
    Volume, VolumeSource, bundle, mark_of,
};
use crate::images::ResolvedImage;
use crate::images::export::docker_archive;

const MARK_LABEL: &str = "dev.tidegate.mark";
const INSTANCE_LABEL: &str = "dev.tidegate.instance";
const ANSWER_SECONDS_MAX: u64 = 120;
const PIECE_BYTES: usize = 256 * 1024;
const NOT_FOUND: u16 = 404;

/// What the Docker runtime needs to know.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// The engine's socket, such as `/var/run/docker.sock`.
    pub socket: PathBuf,
    /// A directory of its own, below the server's data directory.
    pub directory: PathBuf,
    /// Where the lines go that containers write.
    pub sink: Arc<dyn LogSink>,
}

/// Runs instances with Docker Engine.
#[derive(Clone, Debug)]
pub struct DockerRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: DockerConfig,
    surroundings: Surroundings,
    mark: String,
    engine: Docker,
    dialer: Dialer,
    tasks: Handle,
    /// One image goes into the engine at a time.
    exporting: Mutex<()>,
}

impl DockerRuntime {
    /// Connects to the engine; its tasks run where this is called, inside a tokio runtime.
    pub async fn open(config: DockerConfig) -> io::Result<DockerRuntime> {
        DockerRuntime::open_in(config, Surroundings::default()).await
    }

    /// Like [`DockerRuntime::open`], for instances that have somebody around them.
    pub async fn open_in(
        config: DockerConfig,
        surroundings: Surroundings,
    ) -> io::Result<DockerRuntime> {
        DirBuilder::new().recursive(true).mode(0o700).create(config.directory.join("volumes"))?;
        let mark = mark_of(&fs::canonicalize(&config.directory)?);
        let socket = config.socket.display().to_string();
        let engine = Docker::connect_with_unix(&socket, ANSWER_SECONDS_MAX, API_DEFAULT_VERSION);
        let engine = engine.map_err(io::Error::other)?;
        let engine = engine.negotiate_version().await.map_err(io::Error::other)?;
        let inner = Inner {
            config,
            surroundings,
            mark,
            engine,
            dialer: Dialer::start()?,
            tasks: Handle::current(),
            exporting: Mutex::default(),
        };
        Ok(DockerRuntime { inner: Arc::new(inner) })
    }

    /// The mark on everything this runtime owns in the engine.
    pub fn mark(&self) -> &str {
        &self.inner.mark
    }
}

impl Inner {
    async fn create(
        self: &Arc<Self>,
        spec: Arc<InstanceSpec>,
    ) -> Result<Arc<dyn Instance>, StartError> {
        let mut plans = BTreeMap::new();
        for container in &spec.containers {
            self.provide(&container.image).await?;
            plans.insert(container.name.clone(), bundle::plan_container(&spec, container)?);
        }
        let directory = self.volumes_of(spec.id.as_str());
        let made = DirBuilder::new().mode(0o700).create(&directory);
        made.map_err(|source| StartError::Host { step: "instance directory", source })?;
        let mut binds = HashMap::new();
        for volume in &spec.volumes {
            match self.make_volume(&spec, volume).await {
                Ok(source) => drop(binds.insert(volume.name.clone(), source)),
                Err(error) => {
                    self.remove_volumes(spec.id.as_str()).await;
                    return Err(error);
                }
            }
        }
        Ok(Arc::new(DockerInstance::new(Arc::clone(self), spec, plans, binds)))
    }

    fn volumes_of(&self, instance: &str) -> PathBuf {
        self.config.directory.join("volumes").join(instance)
    }

    fn labels(&self, instance: &str) -> HashMap<String, String> {
        HashMap::from([
            (MARK_LABEL.to_owned(), self.mark.clone()),
            (INSTANCE_LABEL.to_owned(), instance.to_owned()),
        ])
    }

    /// What a volume is to the engine: the left side of a bind, with its options.
    async fn make_volume(
        &self,
        spec: &InstanceSpec,
        volume: &Volume,
    ) -> Result<(String, &'static str), StartError> {
        let host = |source| StartError::Host { step: "a volume", source };
        match &volume.source {
            VolumeSource::Memory { bytes_max } => {
                let name = format!("tidegate-{}-{}-{}", self.mark, spec.id, volume.name);
                let options = [
                    ("type", "tmpfs".to_owned()),
                    ("device", "tmpfs".to_owned()),
                    ("o", format!("size={bytes_max},mode=1777")),
                ];
                let request = VolumeCreateRequest {
                    name: Some(name.clone()),
                    driver_opts: Some(
                        options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                    ),
                    labels: Some(self.labels(spec.id.as_str())),
                    ..VolumeCreateRequest::default()
                };
                self.engine.create_volume(request).await.map_err(|error| engine(&error))?;
                Ok((name, "rw"))
            }
            VolumeSource::Files(files) => {
                let name = plain_name(&volume.name).map_err(host)?;
                let directory = self.volumes_of(spec.id.as_str()).join(name);
                fs::create_dir(&directory).map_err(host)?;
                let files: Vec<_> = files
                    .iter()
                    .map(|file| (file.path.clone(), file.contents.to_vec(), file.mode))
                    .collect();
                write_files(&directory, &files).map_err(host)?;
                Ok((directory.display().to_string(), "ro"))
            }
            VolumeSource::HostDirectory { path, read_only } => {
                Ok((path.display().to_string(), if *read_only { "ro" } else { "rw" }))
            }
        }
    }

    /// Removes what `make_volume` made.
    async fn remove_volumes(&self, instance: &str) {
        let filters = self.filters(Some(instance));
        let options = Some(ListVolumesOptions { filters: Some(filters) });
        let volumes = match self.engine.list_volumes(options).await {
            Ok(found) => found.volumes.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(instance, %error, "volumes are not removed");
                return;
            }
        };
        for volume in volumes {
            let options = Some(RemoveVolumeOptions { force: true });
            if let Err(error) = self.engine.remove_volume(&volume.name, options).await {
                tracing::warn!(instance, volume = volume.name, %error, "a volume is not removed");
            }
        }
        let directory = self.volumes_of(instance);
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(instance, %error, "{} stays", directory.display());
            }
            _ => {}
        }
    }

    fn filters(&self, instance: Option<&str>) -> HashMap<String, Vec<String>> {
        let mut labels = vec![format!("{MARK_LABEL}={}", self.mark)];
        labels.extend(instance.map(|instance| format!("{INSTANCE_LABEL}={instance}")));
        HashMap::from([("label".to_owned(), labels)])
    }

    /// Puts an image into the engine unless it is there.
    async fn provide(self: &Arc<Self>, image: &ResolvedImage) -> Result<(), StartError> {
        let name = image_name(image);
        let _one_at_a_time = self.exporting.lock().await;
        match self.engine.inspect_image(&name).await {
            Ok(_) => return Ok(()),
            Err(EngineError::DockerResponseServerError { status_code: NOT_FOUND, .. }) => {}
            Err(error) => return Err(engine(&error)),
        }
        let host = |source| StartError::Host { step: "an image for the engine", source };
        let scratch = self.config.directory.join("export");
        let (layers, here) = (image.layers.clone(), scratch.clone());
        let written = tokio::task::spawn_blocking(move || write_archive(&layers, &name, &here));
        let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let loaded = match written {
            Ok(file) => self.load(file).await,
            Err(error) => Err(host(error)),
        };
        // It is emptied again before it is used the next time.
        let _ = fs::remove_dir_all(&scratch);
        loaded
    }

    async fn load(&self, archive: File) -> Result<(), StartError> {
        let file = tokio::fs::File::from_std(archive);
        let pieces = stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let count = file.read(&mut piece).await?;
            piece.truncate(count);
            io::Result::Ok((count > 0).then_some((Bytes::from(piece), file)))
        });
        let options = ImportImageOptions { quiet: true, platform: None };
        let loading = self.engine.import_image(options, body_try_stream(pieces), None);
        loading.try_for_each(|_| async { Ok(()) }).await.map_err(|error| engine(&error))
    }
}

fn write_archive(layers: &[PathBuf], name: &str, scratch: &std::path::Path) -> io::Result<File> {
    if scratch.exists() {
        fs::remove_dir_all(scratch)?;
    }
    fs::create_dir(scratch)?;
    let path = scratch.join("archive");
    docker_archive(layers, name, scratch, File::create(&path)?)?;
    File::open(&path)
}

/// The name an image has in the engine: as pinned as its digest.
fn image_name(image: &ResolvedImage) -> String {
    format!("tidegate/image:{}", image.digest.trim_start_matches("sha256:"))
}

fn engine(error: &EngineError) -> StartError {
    match error {
        EngineError::DockerResponseServerError { message, .. } => {
            StartError::Helper(message.trim().to_owned())
        }
        other => StartError::Helper(format!("Docker Engine: {other}")),
    }
}

impl Runtime for DockerRuntime {
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
            let mut found = Reconciled::default();
            let mut instances = std::collections::BTreeSet::new();
            let options = ListContainersOptions {
                all: true,
                filters: Some(self.inner.filters(None)),
                ..ListContainersOptions::default()
            };
            let containers = self.inner.engine.list_containers(Some(options)).await;
            let containers = containers.unwrap_or_else(|error| {
                found.problems.push(error.to_string());
                Vec::new()
            });
            for container in containers {
                let labels = container.labels.unwrap_or_default();
                instances.extend(labels.get(INSTANCE_LABEL).cloned());
                let options =
                    RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
                let name = container.id.unwrap_or_default();
                if let Err(error) = self.inner.engine.remove_container(&name, Some(options)).await {
                    found.problems.push(format!("container {name} stays: {error}"));
                }
            }
            let entries = fs::read_dir(self.inner.config.directory.join("volumes"));
            for entry in entries.into_iter().flatten().flatten() {
                instances.insert(entry.file_name().to_string_lossy().into_owned());
            }
            for instance in &instances {
                self.inner.remove_volumes(instance).await;
            }
            found.instances_removed = instances.len() as u64;
            found
        })
    }

    fn shut_down(&self) -> Pending<'_, ()> {
        Box::pin(async {})
    }
}
