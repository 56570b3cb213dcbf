//! From a folder of source to an image: what Cloud Build and the buildpacks do for Node.js and Python.
//!
//! ```text
//! let builder = Builder::open(config).await?;
//! let built = builder.build(&order, &log).await?;   // built.digest names an image of the store
//! ```
//!
//! `contract` decides, purely, what a source needs and how its image starts; `source` unpacks what
//! was uploaded; `base` has the image below it; `step` runs npm or pip in a container of its own,
//! which reaches the package registries through `way_out` and nothing else; `layout` packs what
//! came out into an image of the store.
//!
//! Invariant: a build leaves an image in the store or a reason, and nothing else: no process, no
//! directory, no image that is half made.

pub mod base;
pub mod contract;
mod docker;
mod files;
mod host;
mod layout;
pub mod log;
mod registries;
pub mod runtimes;
mod source;
mod step;
mod way_out;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::images::{ImageError, ImageStore};
use crate::runtime::{EmbeddedConfig, EmbeddedRuntime, HelperProgram, Runtime};
use contract::{Facts, Wanted};
pub use log::BuildLog;

/// The named limits of this room.
pub mod limits {
    use std::time::Duration;

    /// One build from its first step to its image, as Cloud Build has it by default.
    pub const BUILD_WITHIN: Duration = Duration::from_secs(600);
    /// Builds at once; the next one waits for its turn.
    pub const BUILDS_AT_ONCE_MAX: usize = 2;
    /// Memory of a build's container.
    pub const MEMORY_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
    /// Thousandths of a processor for a build's container.
    pub const PROCESSOR_MILLIS_MAX: u32 = 2_000;
    /// Bytes of a build's log; what comes after is left out.
    pub const LOG_BYTES_MAX: usize = 4 * 1024 * 1024;
    /// Files of a source.
    pub const SOURCE_ENTRIES_MAX: usize = 100_000;
    /// Bytes of a source when unpacked.
    pub const SOURCE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
    /// Bytes of `package.json`, `Procfile` and their like.
    pub const DESCRIPTION_BYTES_MAX: u64 = 1024 * 1024;
    /// Lines of a log that an error carries.
    pub const LINES_IN_FAILURE: usize = 20;
}

/// What is to be built, and how.
#[derive(Clone, Debug)]
pub struct Order {
    /// The uploaded archive: a zip or a packed tar.
    pub source: PathBuf,
    /// The name the image gets in the store, with a tag.
    pub reference: String,
    /// How it is built.
    pub method: Method,
}

/// How a source becomes an image.
#[derive(Clone, Debug)]
pub enum Method {
    /// By the buildpack's contract.
    Buildpack(Buildpack),
    /// By the `Dockerfile` in it.
    Dockerfile,
}

/// What a buildpack is told.
#[derive(Clone, Debug, Default)]
pub struct Buildpack {
    /// A runtime (`nodejs22`) or a base image whose last word is one; found out if absent.
    pub runtime: Option<String>,
    /// The function to serve; without, the source is a web server of its own.
    pub function: Option<String>,
    /// The kind of the function: `http` or `cloudevent`.
    pub signature: Option<String>,
    /// `GOOGLE_ENTRYPOINT` and the user's own variables of the build.
    pub environment: BTreeMap<String, String>,
}

/// An image that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The name it has in the store.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The runtime it has, such as `nodejs22`; none for a Dockerfile.
    pub runtime: Option<String>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The source cannot be read as one.
    #[error("the source cannot be used: {0}")]
    Source(String),
    /// Nobody here can build it.
    #[error("{0}")]
    Unsupported(String),
    /// A step failed; the text has the tool's own words.
    #[error("{step} failed: {reason}")]
    Step {
        /// Which step.
        step: String,
        /// What the tool said.
        reason: String,
    },
    /// It took too long.
    #[error("the build took longer than {} seconds", limits::BUILD_WITHIN.as_secs())]
    TooLong,
    /// An image could not be had or kept.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// This host refused something.
    #[error("the host refused {step}: {source}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl BuildError {
    fn host(step: &'static str) -> impl FnOnce(io::Error) -> BuildError {
        move |source| BuildError::Host { step, source }
    }
}

/// What the builder needs to know.
#[derive(Clone, Debug)]
pub struct BuilderConfig {
    /// A directory of its own, below the server's data directory.
    pub directory: PathBuf,
    /// How a helper process is started.
    pub helper: HelperProgram,
    /// Where images go.
    pub images: ImageStore,
    /// Where base images come from, such as `registry.example/runtimes`; without one they are put
    /// together from what this host has.
    pub base_images: Option<String>,
    /// The socket of Docker Engine, for sources with a Dockerfile.
    pub docker_socket: PathBuf,
}

/// Builds images. Clones share everything.
#[derive(Clone, Debug)]
pub struct Builder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: BuilderConfig,
    runtime: EmbeddedRuntime,
    logs: Arc<log::Router>,
    turns: Semaphore,
    numbers: AtomicU64,
    /// What this host has, looked at once.
    host: tokio::sync::OnceCell<Arc<host::Host>>,
    /// One base image is put together at a time.
    assembling: tokio::sync::Mutex<()>,
}

impl Builder {
    /// Opens the builder and removes what an earlier life left half built.
    pub async fn open(config: BuilderConfig) -> io::Result<Builder> {
        let work = config.directory.join("work");
        empty(&work)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&work)?;
        let logs = Arc::new(log::Router::default());
        let runtime =
            open_runtime(&config.directory, config.helper.clone(), Arc::clone(&logs)).await?;
        let inner = Inner {
            config,
            runtime,
            logs,
            turns: Semaphore::new(limits::BUILDS_AT_ONCE_MAX),
            numbers: AtomicU64::new(1),
            host: tokio::sync::OnceCell::new(),
            assembling: tokio::sync::Mutex::default(),
        };
        Ok(Builder { inner: Arc::new(inner) })
    }

    /// Removes what the builder of a server that was killed left on the host.
    pub async fn clear(directory: &Path, helper: HelperProgram) -> io::Result<()> {
        if directory.join("runtime").is_dir() {
            let runtime = open_runtime(directory, helper, Arc::default()).await?;
            runtime.shut_down().await;
        }
        empty(&directory.join("work"))
    }

    /// Removes what the builder's containers need on the host; called last.
    pub async fn shut_down(&self) {
        self.inner.runtime.shut_down().await;
    }

    /// Forgets the name of an image that was built; what it meant is collected when unused.
    pub fn forget(&self, reference: &str) -> Result<bool, ImageError> {
        self.inner.config.images.remove(reference)
    }

    /// Builds one image. What happens is written to the log as it happens. Dropping the future
    /// gives the build up.
    pub async fn build(&self, order: &Order, log: &Arc<BuildLog>) -> Result<Built, BuildError> {
        let _turn = self.inner.turns.acquire().await.map_err(|_| {
            BuildError::Unsupported("The server is going down; nothing more is built.".to_owned())
        })?;
        let work = Work::make(&self.inner)?;
        let building = async {
            match &order.method {
                Method::Buildpack(wish) => self.by_contract(order, wish, &work, log).await,
                Method::Dockerfile => self.by_dockerfile(order, &work, log).await,
            }
        };
        let built = timeout(limits::BUILD_WITHIN, building).await;
        let built = built.unwrap_or(Err(BuildError::TooLong));
        match &built {
            Ok(built) => log.say(&format!("DONE: {}@{}", built.reference, built.digest)),
            Err(error) => log.say(&format!("ERROR: {error}")),
        }
        built
    }

    async fn by_contract(
        &self,
        order: &Order,
        wish: &Buildpack,
        work: &Work,
        log: &Arc<BuildLog>,
    ) -> Result<Built, BuildError> {
        let workspace = fetch_source(order, work, log).await?;
        let facts =
            Facts::read(&workspace).map_err(|error| BuildError::Source(error.to_string()))?;
        let wanted = Wanted {
            runtime: wish.runtime.as_deref(),
            function: wish.function.as_deref(),
            signature: wish.signature.as_deref(),
            environment: &wish.environment,
        };
        let plan = contract::plan(&wanted, &facts, &self.runtimes().await)
            .map_err(BuildError::Unsupported)?;
        log.say(&format!("BUILD: {} for {}", plan.title, plan.runtime));
        let base = self.base(plan.runtime, log).await?;
        step::run(&self.inner, &base, &plan, &wish.environment, work, log).await?;
        log.say("EXPORTING");
        let digest = layout::export(&self.inner.config.images, &base, &plan, work, order).await?;
        let runtime = Some(plan.runtime.to_string());
        Ok(Built { reference: order.reference.clone(), digest, runtime })
    }

    async fn by_dockerfile(
        &self,
        order: &Order,
        work: &Work,
        log: &Arc<BuildLog>,
    ) -> Result<Built, BuildError> {
        let workspace = fetch_source(order, work, log).await?;
        let saved = work.path("image.tar");
        let socket = &self.inner.config.docker_socket;
        docker::build(socket, order, &workspace, &saved, log).await?;
        self.inner.config.images.load(&saved, &|_| {}).await?;
        let image = self.inner.config.images.local(&order.reference).ok_or_else(|| {
            BuildError::Source("Docker Engine saved no image of this name".to_owned())
        })?;
        Ok(Built { reference: order.reference.clone(), digest: image.digest, runtime: None })
    }
}

/// Unpacks what was ordered into the build's workspace, and says so.
async fn fetch_source(order: &Order, work: &Work, log: &BuildLog) -> Result<PathBuf, BuildError> {
    let (archive, workspace) = (order.source.clone(), work.path("workspace"));
    log.say("FETCHSOURCE");
    let unpacked = workspace.clone();
    blocking(move || source::unpack(&archive, &workspace)).await?;
    Ok(unpacked)
}

/// The runtime builds run in, with nothing left in it of an earlier life.
async fn open_runtime(
    directory: &Path,
    helper: HelperProgram,
    logs: Arc<log::Router>,
) -> io::Result<EmbeddedRuntime> {
    let (runtime, problems) = EmbeddedRuntime::open(EmbeddedConfig {
        directory: directory.join("runtime"),
        helper,
        sink: logs,
        spare_helpers: 0,
    })?;
    for problem in problems {
        tracing::debug!("for builds: {problem}");
    }
    runtime.reconcile().await;
    Ok(runtime)
}

/// Removes a directory, if it is there.
fn empty(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The directory of one build, removed when dropped.
#[derive(Debug)]
pub(crate) struct Work {
    number: u64,
    directory: PathBuf,
}

impl Work {
    fn make(inner: &Inner) -> Result<Work, BuildError> {
        let number = inner.numbers.fetch_add(1, Ordering::Relaxed);
        let work = Work {
            number,
            directory: inner.config.directory.join("work").join(number.to_string()),
        };
        for name in ["", "workspace", "layers", "scratch"] {
            fs::DirBuilder::new()
                .mode(0o755)
                .create(work.directory.join(name))
                .map_err(BuildError::host("a directory for the build"))?;
        }
        Ok(work)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the builder is opened again.
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "a build's files stay");
        }
    }
}

/// Runs work that blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BuildError::Host {
            step: "to finish its work",
            source: io::Error::other(error.to_string()),
        }),
    }
}

/// A small file of a source, as text; none where there is none.
fn small_text(path: &Path) -> io::Result<Option<String>> {
    use std::io::Read;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(limits::DESCRIPTION_BYTES_MAX).read_to_end(&mut text)?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}
