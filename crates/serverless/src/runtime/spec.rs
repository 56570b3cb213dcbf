//! What an instance is to be: its containers, limits, probes and volumes.
//!
//! Pure data, filled in by whoever decides about instances from the compiled revision and the
//! resolved images. Defaults are Cloud Run's.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plan::fleet::RevisionPlan;

use crate::images::ResolvedImage;

/// The name of an instance: lower-case letters, digits and hyphens, unique for this server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// Longest name that is taken: it becomes part of paths and control group names.
    pub const BYTES_MAX: usize = 128;

    /// The name, if it may be one.
    pub fn new(name: &str) -> Option<InstanceId> {
        let fits = !name.is_empty() && name.len() <= Self::BYTES_MAX;
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (fits && plain && !name.starts_with('-')).then(|| InstanceId(Arc::from(name)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// One instance of a revision.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    /// Its name.
    pub id: InstanceId,
    /// `K_SERVICE`.
    pub service: String,
    /// `K_REVISION`.
    pub revision: String,
    /// `K_CONFIGURATION`.
    pub configuration: String,
    /// Its containers: one with a port takes the requests, the others are sidecars.
    pub containers: Vec<ContainerSpec>,
    /// Directories its containers share.
    pub volumes: Vec<Volume>,
    /// Whether the processor limit is raised until the startup probes have passed.
    pub startup_boost: bool,
    /// The host name seen inside; Cloud Run says `localhost`.
    pub host_name: String,
    /// What it is an instance of: whose identity it has, and which network it is attached to.
    /// Without, it has neither.
    pub revision_plan: Option<Arc<RevisionPlan>>,
}

impl InstanceSpec {
    /// The container that takes the requests, with its port.
    pub fn ingress(&self) -> Option<(&ContainerSpec, u16)> {
        self.containers.iter().find_map(|container| Some((container, container.port?)))
    }
}

/// One container of an instance.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Its name, unique in the instance.
    pub name: String,
    /// What it runs.
    pub image: ResolvedImage,
    /// Replaces the image's `ENTRYPOINT` (and then its `CMD` too) unless empty.
    pub command: Vec<String>,
    /// Replaces the image's `CMD` unless empty.
    pub arguments: Vec<String>,
    /// The user's environment; the last of two with one name wins.
    pub environment: Vec<(String, String)>,
    /// Replaces the image's `WORKDIR`.
    pub working_directory: Option<String>,
    /// The port it serves requests on; only the ingress container has one.
    pub port: Option<u16>,
    /// How much it may use.
    pub limits: Limits,
    /// How its health is asked for.
    pub probes: Probes,
    /// Containers that must have started (their startup probe passed) before this one does.
    pub starts_after: Vec<String>,
    /// Where volumes appear in it.
    pub mounts: Vec<VolumeMount>,
}

/// What a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a processor.
    pub processor_millis: u32,
    /// Memory, writable files in memory included.
    pub memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { processor_millis: 1_000, memory_bytes: 512 * 1024 * 1024 }
    }
}

/// A directory that containers of one instance share.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name, unique in the instance.
    pub name: String,
    /// What is in it.
    pub source: VolumeSource,
}

/// Where the contents of a volume come from.
#[derive(Clone, Debug)]
pub enum VolumeSource {
    /// Empty at the start, in memory, gone with the instance.
    Memory {
        /// Most it can hold.
        bytes_max: u64,
    },
    /// These files, read-only: secrets.
    Files(Vec<VolumeFile>),
    /// A directory of the host.
    HostDirectory {
        /// Which.
        path: PathBuf,
        /// Whether it can be written to.
        read_only: bool,
    },
}

/// One file of a volume made of given contents.
#[derive(Clone, Debug)]
pub struct VolumeFile {
    /// Relative path inside the volume.
    pub path: String,
    /// What is in it.
    pub contents: Arc<[u8]>,
    /// Permission bits, such as 0o444.
    pub mode: u32,
}

/// Where a volume appears inside a container.
#[derive(Clone, Debug)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Absolute path inside the container.
    pub path: String,
}

/// The probes of a container.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// Must pass before anything else happens; the ingress container has a TCP one by default.
    pub startup: Option<Probe>,
    /// Ends the instance when it fails.
    pub liveness: Option<Probe>,
    /// Takes the instance out of traffic while it fails.
    pub readiness: Option<Probe>,
}

/// How a container is asked whether it is well, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub action: ProbeAction,
    /// Wait before the first question.
    pub initial_delay: Duration,
    /// From one question to the next.
    pub period: Duration,
    /// An answer later than this is none.
    pub timeout: Duration,
    /// Failures in a row that make the probe fail.
    pub failure_threshold: u32,
    /// Passes in a row that make a failed readiness probe pass again.
    pub success_threshold: u32,
}

impl Probe {
    /// Cloud Run's probe of a port when the user gives none: 240 s to start listening.
    pub fn default_startup(port: u16) -> Probe {
        Probe {
            action: ProbeAction::Tcp { port },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(240),
            timeout: Duration::from_secs(240),
            failure_threshold: 1,
            success_threshold: 1,
        }
    }

    /// A probe with Cloud Run's defaults for what the user left out.
    pub fn with_defaults(action: ProbeAction) -> Probe {
        Probe {
            action,
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            failure_threshold: 3,
            success_threshold: 1,
        }
    }
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    /// Does the port accept a connection?
    Tcp {
        /// Which port.
        port: u16,
    },
    /// Does a GET answer with a status from 200 to 399?
    Http {
        /// Which port.
        port: u16,
        /// Path and query.
        path: String,
        /// Further header fields.
        headers: Vec<(String, String)>,
    },
    /// Does `grpc.health.v1.Health/Check` say SERVING?
    Grpc {
        /// Which port.
        port: u16,
        /// The service asked about; empty for the server as a whole.
        service: String,
    },
}
