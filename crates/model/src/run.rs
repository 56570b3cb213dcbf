//! Cloud Run: services, their traffic and access, and the immutable revisions that answer.
//!
//! What a client declares is in [`Service`] and [`Revision`]; what was observed once and for all about
//! a revision is its [`Outcome`]. Values that Google fills in when they are left out (concurrency, port,
//! limits, timeouts, probes) are filled in before they get here.
//!
//! Invariant: a [`Revision`] never changes but for its outcome, which is set once.

use crate::name::{Name, ResourceName};
use std::collections::BTreeSet;
use std::fmt;

/// Requests at a time in one instance, when the client does not say.
pub const CONCURRENCY_DEFAULT: u32 = 80;
/// The most requests at a time that may be asked for.
pub const CONCURRENCY_MAX: u32 = 1000;
/// The time a request may take when the client does not say, in seconds.
pub const TIMEOUT_SECONDS_DEFAULT: u32 = 300;
/// The longest time a request may be given, in seconds.
pub const TIMEOUT_SECONDS_MAX: u32 = 3600;
/// The port a container serves when the client does not say.
pub const PORT_DEFAULT: u16 = 8080;
/// The most instances of a revision when the client does not say.
pub const INSTANCES_MAX_DEFAULT: u32 = 100;
/// The processor limit of a container that does not say, in thousandths of a processor.
pub const PROCESSOR_MILLIS_DEFAULT: u32 = 1000;
/// The memory limit of a container that does not say, in bytes.
pub const MEMORY_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;
/// The share of its concurrency and of its processor at which an instance counts as busy, in percent.
pub const UTILIZATION_PERCENT_DEFAULT: u8 = 60;

/// Requests at a time in an instance with this processor limit, when the client does not say: one if
/// it has less than a whole processor.
pub fn concurrency_default(processor_millis: u32) -> u32 {
    if processor_millis < 1000 { 1 } else { CONCURRENCY_DEFAULT }
}

/// One Cloud Run service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `projects/P/locations/R/services/S`.
    pub name: ResourceName,
    /// A number for `uid`: unique for ever.
    pub id: u64,
    /// Where requests may come from.
    pub ingress: Ingress,
    /// Whether the `run.app` address is switched off; load balancers still reach the service.
    pub default_url_disabled: bool,
    /// Who may call it.
    pub access: Access,
    /// Which revisions get which part of the requests, and under which tags.
    pub traffic: Vec<TrafficTarget>,
    /// `status.traffic` as it was when every revision of it was ready: it stays in force while
    /// `traffic` gives requests to a revision that is not. Empty before there was one.
    pub traffic_before: Vec<TrafficTarget>,
    /// Bounds for the service as a whole.
    pub scaling: ServiceScaling,
}

/// `ingress`: where requests may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ingress {
    /// `all`.
    #[default]
    All,
    /// `internal`: VPC networks of the project, and internal load balancers in them.
    Internal,
    /// `internal-and-cloud-load-balancing`.
    InternalAndCloudLoadBalancing,
    /// `INGRESS_TRAFFIC_NONE`: nobody.
    None,
}

impl Ingress {
    /// The word of the v1 annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            Ingress::All => "all",
            Ingress::Internal => "internal",
            Ingress::InternalAndCloudLoadBalancing => "internal-and-cloud-load-balancing",
            Ingress::None => "none",
        }
    }
}

/// Who may call a service: the members whose roles hold `run.routes.invoke` on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The members, from the service's policy and its project's. Conditional bindings are left out.
    pub invokers: BTreeSet<Member>,
    /// `invokerIamDisabled`: nobody is asked.
    pub invoker_check_disabled: bool,
    /// `customAudiences`, besides the service's own URLs.
    pub custom_audiences: Vec<Name>,
}

/// One member of an IAM policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// `allUsers`.
    AllUsers,
    /// `allAuthenticatedUsers`.
    AllAuthenticatedUsers,
    /// `user:EMAIL`.
    User(Name),
    /// `serviceAccount:EMAIL`.
    ServiceAccount(Name),
    /// `group:EMAIL`.
    Group(Name),
    /// `domain:DOMAIN`.
    Domain(Name),
}

impl Member {
    /// Reads a member as policies write it; e-mail addresses compare in lower case. `None` for
    /// deleted members and for kinds of identity that cannot call a service here.
    pub fn parse(text: &str) -> Option<Member> {
        match text {
            "allUsers" => return Some(Member::AllUsers),
            "allAuthenticatedUsers" => return Some(Member::AllAuthenticatedUsers),
            _ => {}
        }
        let (kind, value) = text.split_once(':')?;
        let value = Name::from(value.to_ascii_lowercase());
        match kind {
            "user" => Some(Member::User(value)),
            "serviceAccount" => Some(Member::ServiceAccount(value)),
            "group" => Some(Member::Group(value)),
            "domain" => Some(Member::Domain(value)),
            _ => None,
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Member::AllUsers => out.write_str("allUsers"),
            Member::AllAuthenticatedUsers => out.write_str("allAuthenticatedUsers"),
            Member::User(email) => write!(out, "user:{email}"),
            Member::ServiceAccount(email) => write!(out, "serviceAccount:{email}"),
            Member::Group(email) => write!(out, "group:{email}"),
            Member::Domain(domain) => write!(out, "domain:{domain}"),
        }
    }
}

/// One entry of `traffic[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficTarget {
    /// Which revision.
    pub revision: RevisionChoice,
    /// The part of the requests it gets; 0 for an entry that only has a tag.
    pub percent: u32,
    /// The tag with its own address.
    pub tag: Option<Name>,
}

/// Which revision an entry of `traffic[]` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevisionChoice {
    /// `latestRevision: true`: the newest that is ready.
    Latest,
    /// `revisionName`.
    Named(Name),
}

/// Bounds for all instances of a service together; they are shared out by traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceScaling {
    /// `minInstanceCount`.
    pub instances_min: u32,
    /// `maxInstanceCount`.
    pub instances_max: Option<u32>,
    /// `manualInstanceCount`: exactly so many, whatever the load.
    pub instances_manual: Option<u32>,
}

/// One revision of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// `projects/P/locations/R/revisions/REV`.
    pub name: ResourceName,
    /// A number for `uid`: unique for ever.
    pub id: u64,
    /// The service it belongs to.
    pub service: ResourceName,
    /// The service's generation that made it: the higher, the newer.
    pub generation: u64,
    /// Its containers; exactly one takes requests.
    pub containers: Vec<Container>,
    /// Directories its containers can mount.
    pub volumes: Vec<Volume>,
    /// Requests at a time in one instance.
    pub concurrency: u32,
    /// The time a request may take, in seconds.
    pub timeout_seconds: u32,
    /// Bounds and targets for the number of instances.
    pub scaling: RevisionScaling,
    /// `cpuIdle`: whether the processor is taken away while no request is in flight.
    pub cpu_idle: bool,
    /// `startupCpuBoost`.
    pub startup_cpu_boost: bool,
    /// `sessionAffinity`.
    pub session_affinity: bool,
    /// `serviceAccount`, an e-mail address.
    pub service_account: Option<Name>,
    /// `executionEnvironment`, as written.
    pub execution_environment: Option<Name>,
    /// `vpcAccess`: how instances reach the VPC.
    pub vpc_access: Option<VpcAccess>,
    /// Whether its first instance came up; `None` until that is known.
    pub outcome: Option<Outcome>,
}

/// One container of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name; empty for the only container.
    pub name: Name,
    /// The image as the client wrote it.
    pub image: String,
    /// `command[]`, in place of the image's entry point.
    pub command: Vec<String>,
    /// `args[]`.
    pub arguments: Vec<String>,
    /// `env[]` in order; the last of two with one name wins.
    pub environment: Vec<EnvironmentVariable>,
    /// `workingDir`.
    pub working_directory: Option<String>,
    /// Where it serves requests; only on the container that takes them.
    pub port: Option<Port>,
    /// `resources.limits`.
    pub limits: ContainerLimits,
    /// `startupProbe`.
    pub startup_probe: Option<Probe>,
    /// `livenessProbe`.
    pub liveness_probe: Option<Probe>,
    /// `readinessProbe`.
    pub readiness_probe: Option<Probe>,
    /// `volumeMounts[]`.
    pub mounts: Vec<VolumeMount>,
    /// `dependsOn[]`: containers that must have started before this one.
    pub depends_on: Vec<Name>,
}

/// One entry of `env[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentVariable {
    /// Its name.
    pub name: Name,
    /// Where its value comes from.
    pub value: EnvironmentValue,
}

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvironmentValue {
    /// `value`.
    Literal(String),
    /// `secretKeyRef`.
    Secret(SecretVersion),
}

/// A version of a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretVersion {
    /// The secret's name.
    pub secret: Name,
    /// A number, an alias or `latest`.
    pub version: Name,
}

/// The port requests arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// `containerPort`.
    pub number: u16,
    /// What is spoken there, from the port's name.
    pub protocol: PortProtocol,
}

impl Default for Port {
    fn default() -> Port {
        Port { number: PORT_DEFAULT, protocol: PortProtocol::Http1 }
    }
}

/// What a container speaks on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PortProtocol {
    /// `http1`, which is also the meaning of no name.
    #[default]
    Http1,
    /// `h2c`: HTTP/2 with prior knowledge, without TLS.
    H2c,
}

/// `resources.limits` of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerLimits {
    /// `cpu`, in thousandths of a processor.
    pub processor_millis: u32,
    /// `memory`, in bytes.
    pub memory_bytes: u64,
}

impl Default for ContainerLimits {
    fn default() -> ContainerLimits {
        ContainerLimits {
            processor_millis: PROCESSOR_MILLIS_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
        }
    }
}

/// A health probe, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub action: ProbeAction,
    /// `initialDelaySeconds`.
    pub initial_delay_seconds: u32,
    /// `periodSeconds`.
    pub period_seconds: u32,
    /// `timeoutSeconds`.
    pub timeout_seconds: u32,
    /// `failureThreshold`.
    pub failure_threshold: u32,
    /// `successThreshold`, which only readiness probes have.
    pub success_threshold: u32,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAction {
    /// `tcpSocket`.
    Tcp {
        /// The port; the container's own when it is not given.
        port: Option<u16>,
    },
    /// `httpGet`.
    Http {
        /// The port; the container's own when it is not given.
        port: Option<u16>,
        /// Path and query; `/` when it is not given.
        path: String,
        /// `httpHeaders[]`.
        headers: Vec<(String, String)>,
    },
    /// `grpc`.
    Grpc {
        /// The port; the container's own when it is not given.
        port: Option<u16>,
        /// The service asked about; empty for the server as a whole.
        service: String,
    },
}

/// One entry of `volumes[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: Name,
    /// What is in it.
    pub source: VolumeSource,
}

/// What is in a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// `emptyDir` in memory.
    Empty {
        /// `sizeLimit`, in bytes; half the memory of the instance when it is not given.
        bytes_max: Option<u64>,
    },
    /// `secret`.
    Secret {
        /// The secret's name.
        secret: Name,
        /// `items[]`: version, path, and permission bits if they differ from the default.
        items: Vec<(Name, String, Option<u32>)>,
        /// `defaultMode`.
        mode_default: u32,
    },
    /// A directory of this host, which stands in for Cloud Storage and NFS.
    HostDirectory {
        /// Which.
        path: String,
        /// Whether it cannot be written to.
        read_only: bool,
    },
}

/// One entry of `volumeMounts[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: Name,
    /// `mountPath`.
    pub path: String,
}

/// Bounds and targets for the instances of one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevisionScaling {
    /// `minInstanceCount`.
    pub instances_min: u32,
    /// `maxInstanceCount`, when it was given.
    pub instances_max: Option<u32>,
    /// The share of the concurrency to aim for, in percent; 0 when it does not drive scaling.
    pub concurrency_utilization_percent: u8,
    /// The share of the processor to aim for, in percent; 0 when it does not drive scaling.
    pub cpu_utilization_percent: u8,
}

impl Default for RevisionScaling {
    fn default() -> RevisionScaling {
        RevisionScaling {
            instances_min: 0,
            instances_max: None,
            concurrency_utilization_percent: UTILIZATION_PERCENT_DEFAULT,
            cpu_utilization_percent: UTILIZATION_PERCENT_DEFAULT,
        }
    }
}

/// `vpcAccess`: direct egress into a VPC network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpcAccess {
    /// `networkInterfaces[0].network`.
    pub network: Option<ResourceName>,
    /// `networkInterfaces[0].subnetwork`.
    pub subnetwork: Option<ResourceName>,
    /// `networkInterfaces[0].tags`.
    pub tags: Vec<Name>,
    /// Whether everything goes through the VPC, rather than private ranges only.
    pub all_traffic: bool,
}

/// How the first instance of a revision fared: observed once, kept for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it came up. Only then may the revision take traffic.
    pub ready: bool,
    /// Google's word for a failure, such as `HealthCheckContainerError`; empty when ready.
    pub reason: String,
    /// Google's sentence for it; empty when ready.
    pub message: String,
    /// The digest each container's image was resolved to, `sha256:…`, by the container's name.
    pub image_digests: Vec<(Name, String)>,
}

impl Service {
    /// A service names its revisions by bare name and without a reference: they are its own.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}

impl Revision {
    /// The network and subnet it sends into, if it does.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let Some(access) = &self.vpc_access else { return Vec::new() };
        let field = |name: &str| format!("template.vpcAccess.networkInterfaces[0].{name}");
        let network = access.network.iter().map(|name| (field("network"), name.clone()));
        let subnetwork = access.subnetwork.iter().map(|name| (field("subnetwork"), name.clone()));
        network.chain(subnetwork).collect()
    }

    /// Whether its first instance came up.
    pub fn is_ready(&self) -> bool {
        self.outcome.as_ref().is_some_and(|outcome| outcome.ready)
    }

    /// The container that takes requests: the one with a port, or else the only one.
    pub fn ingress_container(&self) -> Option<&Container> {
        let with_port = self.containers.iter().find(|container| container.port.is_some());
        with_port.or(match &self.containers[..] {
            [only] => Some(only),
            _ => None,
        })
    }

    /// Where requests arrive.
    pub fn port(&self) -> Port {
        self.ingress_container().and_then(|container| container.port).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_policies_write_them() {
        for (text, read_back) in [
            ("allUsers", Some("allUsers")),
            ("allAuthenticatedUsers", Some("allAuthenticatedUsers")),
            ("user:Ann@Example.com", Some("user:ann@example.com")),
            (
                "serviceAccount:a@p.iam.gserviceaccount.com",
                Some("serviceAccount:a@p.iam.gserviceaccount.com"),
            ),
            ("domain:example.com", Some("domain:example.com")),
            ("deleted:user:ann@example.com?uid=1", None),
            ("ann@example.com", None),
        ] {
            let member = Member::parse(text).map(|member| member.to_string());
            assert_eq!(member.as_deref(), read_back, "{text}");
        }
    }

    #[test]
    fn less_than_a_processor_serves_one_request_at_a_time_by_default() {
        assert_eq!([500, 999, 1000, 2000].map(concurrency_default), [1, 1, 80, 80]);
    }
}
