//! Containers: what an instance is, how one is started, watched, reached and stopped.
//!
//! Two layers. Below, the [`Runtime`] and [`Instance`] traits say what a backend can do: make the
//! instance's own network, start one of its containers, dial into it, stop it. Above,
//! [`launch::launch`] starts the containers of an instance in order, probes them, and
//! answers when the instance may take traffic or why it never will.
//!
//! A caller that decides about instances needs three calls:
//!
//! ```ignore
//! let live = launch(&*runtime, spec).await?;       // ready, or a StartFailure with Google's words
//! let socket = live.instance().dial(8080).await?;  // a nonblocking TcpStream inside the instance
//! let end = live.ended().await;                    // exit, failed liveness probe, or stopped
//! ```
//!
//! Invariant: everything an instance owns on the host (processes, network namespace, mounts,
//! control groups, writable layer) carries the mark of the runtime that made it, and is gone when
//! its end has been reported.

mod abandoned;
mod asking;
mod bundle;
mod cgroups;
mod complaints;
mod dialer;
mod docker;
mod embedded;
mod helper;
mod hiding;
mod instance;
pub mod launch;
mod leftovers;
mod link;
mod logs;
mod netlink;
mod orders;
pub mod probes;
mod program;
mod rewriting;
mod sandbox;
mod seccomp;
pub mod spec;
mod surroundings;

use std::future::Future;
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

pub use docker::{DockerConfig, DockerRuntime};
pub use embedded::{EmbeddedConfig, EmbeddedRuntime, HelperProgram};
pub use helper::{HELPER_ARGUMENT, helper_main};
pub use spec::{
    ContainerSpec, InstanceId, InstanceSpec, Limits, Probe, ProbeAction, Probes, Volume,
    VolumeFile, VolumeMount, VolumeSource,
};
pub use surroundings::{METADATA_ADDRESS, MetadataServer, Network, Outward, Surroundings};

/// A future in a box: the traits of this module are used as objects.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to run instances: the embedded one, Docker Engine, or a fake in tests.
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Makes the instance's sandbox (network, volumes) and starts none of its containers yet.
    fn create(&self, spec: Arc<InstanceSpec>)
    -> Pending<'_, Result<Arc<dyn Instance>, StartError>>;

    /// Kills and removes what an earlier life of this server left behind. Called once, before
    /// anything is created: no instance outlives the server that made it.
    fn reconcile(&self) -> Pending<'_, Reconciled>;

    /// Removes what the runtime keeps for itself; called last, when every instance was stopped.
    fn shut_down(&self) -> Pending<'_, ()>;
}

/// One running instance.
pub trait Instance: Send + Sync + std::fmt::Debug {
    /// The name of the instance.
    fn id(&self) -> &InstanceId;

    /// Starts one container of the instance and returns once its program was executed.
    fn start_container<'a>(&'a self, name: &'a str) -> Pending<'a, Result<(), StartError>>;

    /// A TCP connection to `port` on the loopback address inside the instance, nonblocking.
    fn dial(&self, port: u16) -> Pending<'_, std::io::Result<TcpStream>>;

    /// A nonblocking listening socket on the loopback address inside the instance: a way out that
    /// is ours. A backend that cannot make one says so.
    fn listen(&self, _port: u16) -> Pending<'_, std::io::Result<TcpListener>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }

    /// Resolves with the first container that ends, however it ends. Every caller gets the same
    /// answer, also after the fact.
    fn exited(&self) -> Pending<'static, Exit>;

    /// SIGTERM to every container, SIGKILL after `grace`, then everything is removed from the host.
    /// Under way as soon as it is called, whether the future is kept or not; resolves when nothing
    /// of the instance is left. Stopping again can only shorten the grace.
    fn stop(&self, grace: Duration) -> Pending<'static, ()>;

    /// The last lines the instance wrote, oldest first.
    fn log_tail(&self, lines_max: usize) -> Vec<LogLine>;

    /// How much the instance has used so far.
    fn usage(&self) -> Usage;

    /// Changes how much processor time the instance may use from now on.
    fn set_processor(&self, allowance: Allowance);
}

/// How much of its processor limit an instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// What the limits say.
    Full,
    /// The limits of startup boost: one more processor, or twice as much below one.
    Boosted,
    /// Next to nothing: no request is in flight and the processor is only promised during requests.
    Throttled,
}

/// Processor time and memory of an instance, all containers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time used since the start.
    pub processor: Duration,
    /// Memory in use now, in bytes; 0 where the host does not account for it.
    pub memory_bytes: u64,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The container's name.
    pub container: String,
    /// What ended it.
    pub cause: ExitCause,
}

/// What ended a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// It returned this exit status.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// The kernel killed it because it used more memory than its limit.
    OutOfMemory,
    /// The supervising helper process went away, and the container with it.
    HelperLost,
    /// We stopped it.
    Stopped,
}

impl std::fmt::Display for ExitCause {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitCause::Code(code) => write!(out, "exited with status {code}"),
            ExitCause::Signal(signal) => write!(out, "was ended by signal {signal}"),
            ExitCause::OutOfMemory => out.write_str("used more memory than its limit"),
            ExitCause::HelperLost => out.write_str("lost its supervisor"),
            ExitCause::Stopped => out.write_str("was stopped"),
        }
    }
}

/// Which of its two outputs a container wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line a container wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was read.
    pub at: SystemTime,
    /// Which container wrote it.
    pub container: Arc<str>,
    /// To which output.
    pub stream: Stream,
    /// The line without its end, at most [`limits::LOG_LINE_BYTES_MAX`] long; foreign bytes replaced.
    pub text: String,
    /// Lines of the same output that were dropped just before this one because they came too fast.
    pub dropped_before: u64,
}

/// Where log lines go as they arrive. Called on the runtime's own tasks: it must not block.
pub trait LogSink: Send + Sync + std::fmt::Debug {
    /// Takes one line.
    fn line(&self, instance: &InstanceId, line: &LogLine);
}

/// Why an instance or a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the image or the revision asks to run is not there or cannot be executed.
    #[error("container `{container}` could not be executed: {reason}")]
    Execute {
        /// The container's name.
        container: String,
        /// What the kernel or the runtime said.
        reason: String,
    },
    /// The specification cannot be run by this backend.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of the specification.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The host refused something the sandbox needs.
    #[error("the host refused {step}")]
    Host {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The helper process of the instance reported a failure or went away.
    #[error("the instance's helper failed: {0}")]
    Helper(String),
}

/// What `reconcile` found and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Instances of an earlier life whose processes were killed.
    pub instances_removed: u64,
    /// What could not be removed, in words.
    pub problems: Vec<String>,
}

/// Twelve hexadecimal digits of the directory's name.
fn mark_of(directory: &std::path::Path) -> String {
    let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The named limits of this room.
pub mod limits {
    use std::time::Duration;

    /// A longer line is cut and its rest dropped.
    pub const LOG_LINE_BYTES_MAX: usize = 64 * 1024;
    /// Lines kept in memory for each instance.
    pub const LOG_LINES_KEPT_MAX: usize = 500;
    /// Bytes of lines kept in memory for each instance.
    pub const LOG_BYTES_KEPT_MAX: usize = 256 * 1024;
    /// Lines a second and output that reach the sink; more are counted as dropped.
    pub const LOG_LINES_PER_SECOND_MAX: u32 = 2_000;
    /// Lines told with a failed start.
    pub const LOG_LINES_IN_FAILURE: usize = 20;
    /// A helper that was asked for something and has not answered by then is killed.
    pub const HELPER_ANSWERS_WITHIN: Duration = Duration::from_secs(30);
    /// Between SIGTERM and SIGKILL, as Cloud Run has it.
    pub const STOP_GRACE: Duration = Duration::from_secs(10);
    /// Processes and threads an instance may have.
    pub const PROCESSES_MAX: u32 = 4_096;
    /// Open files of a container's processes, as Cloud Run has it.
    pub const OPEN_FILES_MAX: u64 = 25_000;
}
