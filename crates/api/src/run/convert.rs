//! Documents into what the rest of the program understands: services and revisions of the model.
//!
//! What has a wrong form (a number that is none, an unknown word) is refused here with its field;
//! what has the right form and a wrong value is a problem of the plan.

use std::collections::{BTreeMap, BTreeSet};

use model::name::{Kind, Name, ResourceName};
use model::run::{
    Access, Container, ContainerLimits, EnvironmentValue, EnvironmentVariable, Ingress, Member,
    Outcome, Port, PortProtocol, Probe, ProbeAction, Revision, RevisionChoice, RevisionScaling,
    SecretVersion, Service, ServiceScaling, TIMEOUT_SECONDS_DEFAULT, TrafficTarget, Volume,
    VolumeMount, VolumeSource, VpcAccess, concurrency_default,
};
use serde_json::Value;
use wire::run_v1;

use super::document::{self, OutcomeDocument, RevisionDocument, ServiceDocument};
use super::names;
use super::quantity::{memory_bytes, processor_millis};
use super::secret_paths::SecretPaths;
use crate::error::{ApiError, Reason};
use crate::iam_policy;

type Annotations = BTreeMap<String, String>;

/// The permission that calling a service needs.
pub(crate) const INVOKE: &str = "run.routes.invoke";

fn wrong(field: impl std::fmt::Display, sentence: impl std::fmt::Display) -> ApiError {
    ApiError::new(Reason::Invalid, format!("{field}: {sentence}"))
}

/// A service as the model has it.
pub(crate) fn service(name: &ResourceName, document: &Value) -> Result<Service, ApiError> {
    let document: ServiceDocument = document::read(document)?;
    let resource: run_v1::Service = wire::parse(&document.resource, "service")?;
    let annotations = resource.metadata.and_then(|metadata| metadata.annotations);
    let annotations = Notes::new("metadata.annotations", annotations.unwrap_or_default());
    let mut invokers = BTreeSet::new();
    if let Some(policy) = &document.policy {
        invokers.extend(iam_policy::members_with(policy, INVOKE));
    }
    invokers.extend(document.project_invokers.iter().cloned());
    let traffic = resource.spec.and_then(|spec| spec.traffic).unwrap_or_default();
    let before: Vec<run_v1::TrafficTarget> = document
        .traffic_before
        .iter()
        .map(|target| wire::parse(target, "trafficBefore"))
        .collect::<Result<_, _>>()?;
    Ok(Service {
        name: name.clone(),
        id: number(&document.id),
        ingress: ingress(&annotations)?,
        default_url_disabled: annotations.flag(names::DEFAULT_URL_DISABLED)?,
        access: Access {
            invokers: invokers.iter().filter_map(|member| Member::parse(member)).collect(),
            invoker_check_disabled: annotations.flag(names::INVOKER_IAM_DISABLED)?,
            custom_audiences: annotations.list(names::CUSTOM_AUDIENCES)?,
        },
        traffic: traffic_targets(&traffic)?,
        traffic_before: traffic_targets(&before)?,
        scaling: ServiceScaling {
            instances_min: annotations.count(names::SERVICE_MIN_SCALE)?.unwrap_or(0),
            instances_max: annotations.count(names::SERVICE_MAX_SCALE)?,
            instances_manual: match annotations.get(names::SCALING_MODE) {
                Some("manual") => {
                    Some(annotations.count(names::MANUAL_INSTANCES)?.unwrap_or_default())
                }
                _ => None,
            },
        },
    })
}

/// A revision as the model has it.
pub(crate) fn revision(name: &ResourceName, document: &Value) -> Result<Revision, ApiError> {
    let document: RevisionDocument = document::read(document)?;
    let resource: run_v1::Revision = wire::parse(&document.resource, "revision")?;
    let field = "spec.template.metadata.annotations";
    let annotations = resource.metadata.and_then(|metadata| metadata.annotations);
    let annotations = Notes::new(field, annotations.unwrap_or_default());
    let spec = resource.spec.map(|spec| *spec).unwrap_or_default();
    let dependencies = annotations.dependencies()?;
    let containers = spec.containers.unwrap_or_default();
    let only = containers.len() == 1;
    let mut containers: Vec<Container> = containers
        .into_iter()
        .enumerate()
        .map(|(index, given)| container(index, given, only, &dependencies))
        .collect::<Result<_, _>>()?;
    let processor_millis = containers.iter().map(|c| c.limits.processor_millis).sum();
    let volumes = spec.volumes.unwrap_or_default().into_iter().enumerate().map(volume);
    let mut volumes: Vec<Volume> = volumes.collect::<Result<_, _>>()?;
    annotations.secret_paths()?.put(&mut containers, &mut volumes);
    let region = name.region().unwrap_or_default();
    Ok(Revision {
        name: name.clone(),
        id: number(&document.id),
        service: ResourceName::regional(&name.project, region, Kind::Service, &document.service),
        generation: document.generation,
        containers,
        volumes,
        concurrency: match spec.container_concurrency {
            None | Some(0) => concurrency_default(processor_millis),
            Some(given) => unsigned("spec.template.spec.containerConcurrency", given)?,
        },
        timeout_seconds: match spec.timeout_seconds {
            None => TIMEOUT_SECONDS_DEFAULT,
            Some(given) => unsigned("spec.template.spec.timeoutSeconds", given)?,
        },
        scaling: revision_scaling(&annotations)?,
        cpu_idle: annotations.flag_or(names::CPU_THROTTLING, true)?,
        startup_cpu_boost: annotations.flag(names::STARTUP_CPU_BOOST)?,
        session_affinity: annotations.flag(names::SESSION_AFFINITY)?,
        service_account: spec.service_account_name.filter(|a| !a.is_empty()).map(Name::from),
        execution_environment: annotations.get(names::EXECUTION_ENVIRONMENT).map(Name::from),
        vpc_access: annotations.vpc_access(name)?,
        outcome: document.outcome.map(outcome),
    })
}

fn outcome(document: OutcomeDocument) -> Outcome {
    let digests = document.image_digests.into_iter();
    Outcome {
        ready: document.ready,
        reason: document.reason,
        message: document.message,
        image_digests: digests.map(|(name, digest)| (Name::from(name), digest)).collect(),
    }
}

/// Ids are written by this server; a document with another one is still readable.
fn number(id: &str) -> u64 {
    id.parse().unwrap_or_default()
}

fn unsigned(field: impl std::fmt::Display, value: i32) -> Result<u32, ApiError> {
    u32::try_from(value).map_err(|_| wrong(field, format!("{value} must not be negative")))
}

fn ingress(annotations: &Notes) -> Result<Ingress, ApiError> {
    match annotations.get(names::INGRESS) {
        None | Some("all") => Ok(Ingress::All),
        Some("internal") => Ok(Ingress::Internal),
        Some("internal-and-cloud-load-balancing") => Ok(Ingress::InternalAndCloudLoadBalancing),
        Some("none") => Ok(Ingress::None),
        Some(other) => Err(annotations.wrong(
            names::INGRESS,
            format!(
                "Unknown ingress '{other}'; must be one of all, internal, \
                 internal-and-cloud-load-balancing"
            ),
        )),
    }
}

pub(crate) fn traffic_targets(
    targets: &[run_v1::TrafficTarget],
) -> Result<Vec<TrafficTarget>, ApiError> {
    let read = |(index, target): (usize, &run_v1::TrafficTarget)| {
        let field = format!("spec.traffic[{index}]");
        let named = target.revision_name.as_deref().filter(|name| !name.is_empty());
        let revision = match (named, target.latest_revision.unwrap_or(false)) {
            (Some(name), false) => RevisionChoice::Named(name.into()),
            (None, true) => RevisionChoice::Latest,
            (Some(_), true) => {
                let sentence = "a target must not have both revisionName and latestRevision";
                return Err(wrong(field, sentence));
            }
            (None, false) => {
                let sentence = "a target must have one of revisionName and latestRevision";
                return Err(wrong(field, sentence));
            }
        };
        let percent = target.percent.unwrap_or(0);
        let percent = u32::try_from(percent).ok().filter(|percent| *percent <= 100);
        let percent = percent
            .ok_or_else(|| wrong(format!("{field}.percent"), "must be between 0 and 100"))?;
        let tag = target.tag.as_deref().filter(|tag| !tag.is_empty()).map(Name::from);
        Ok(TrafficTarget { revision, percent, tag })
    };
    targets.iter().enumerate().map(read).collect()
}

fn revision_scaling(annotations: &Notes) -> Result<RevisionScaling, ApiError> {
    let defaults = RevisionScaling::default();
    Ok(RevisionScaling {
        instances_min: annotations.count(names::MIN_SCALE)?.unwrap_or(0),
        instances_max: annotations.count(names::MAX_SCALE)?,
        concurrency_utilization_percent: annotations
            .percent(names::CONCURRENCY_TARGET)?
            .unwrap_or(defaults.concurrency_utilization_percent),
        cpu_utilization_percent: annotations
            .percent(names::CPU_TARGET)?
            .unwrap_or(defaults.cpu_utilization_percent),
    })
}

fn container(
    index: usize,
    given: run_v1::Container,
    only: bool,
    dependencies: &BTreeMap<String, Vec<String>>,
) -> Result<Container, ApiError> {
    let field = format!("spec.template.spec.containers[{index}]");
    let name = given.name.unwrap_or_default();
    let ports = given.ports.unwrap_or_default();
    let port = match &ports[..] {
        [] => only.then(Port::default),
        [port] => Some(self::port(&field, port)?),
        _ => {
            return Err(wrong(
                format!("{field}.ports"),
                "should contain 0 or 1 port (field: ports)",
            ));
        }
    };
    let limits = given.resources.and_then(|resources| resources.limits).unwrap_or_default();
    let probe = |probe: Option<Box<run_v1::Probe>>, name: &str, startup_default: bool| match probe {
        Some(given) => self::probe(&format!("{field}.{name}"), *given).map(Some),
        None => Ok((startup_default && port.is_some()).then(startup_probe_default)),
    };
    let environment = given.env.unwrap_or_default().into_iter().enumerate();
    let mounts = given.volume_mounts.unwrap_or_default().into_iter();
    Ok(Container {
        image: given.image.unwrap_or_default(),
        command: given.command.unwrap_or_default(),
        arguments: given.args.unwrap_or_default(),
        environment: environment
            .map(|(at, variable)| environment_variable(&format!("{field}.env[{at}]"), variable))
            .collect::<Result<_, _>>()?,
        working_directory: given.working_dir.filter(|directory| !directory.is_empty()),
        port,
        limits: container_limits(&field, &limits)?,
        startup_probe: probe(given.startup_probe, "startupProbe", true)?,
        liveness_probe: probe(given.liveness_probe, "livenessProbe", false)?,
        readiness_probe: probe(given.readiness_probe, "readinessProbe", false)?,
        mounts: mounts
            .map(|mount| VolumeMount {
                volume: mount.name.unwrap_or_default().into(),
                path: mount.mount_path.unwrap_or_default(),
            })
            .collect(),
        depends_on: dependencies
            .get(&name)
            .map(|names| names.iter().map(|name| Name::from(name.as_str())).collect())
            .unwrap_or_default(),
        name: name.into(),
    })
}

fn port(field: &str, given: &run_v1::ContainerPort) -> Result<Port, ApiError> {
    let protocol = match given.name.as_deref() {
        None | Some("" | "http1") => PortProtocol::Http1,
        Some("h2c") => PortProtocol::H2c,
        Some(other) => {
            let sentence = format!("Port name '{other}' must be empty, 'http1' or 'h2c'");
            return Err(wrong(format!("{field}.ports[0].name"), sentence));
        }
    };
    if !matches!(given.protocol.as_deref(), None | Some("" | "TCP")) {
        return Err(wrong(format!("{field}.ports[0].protocol"), "must be TCP"));
    }
    let number = given.container_port.unwrap_or(i32::from(model::run::PORT_DEFAULT));
    let number = u16::try_from(number).ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| {
        let field = format!("{field}.ports[0].container_port");
        wrong(field, "must be between 1 and 65535, inclusive")
    })?;
    Ok(Port { number, protocol })
}

/// What Cloud Run asks of a container that serves and names no startup probe.
fn startup_probe_default() -> Probe {
    Probe {
        action: ProbeAction::Tcp { port: None },
        initial_delay_seconds: 0,
        period_seconds: 240,
        timeout_seconds: 240,
        failure_threshold: 1,
        success_threshold: 1,
    }
}

fn container_limits(field: &str, limits: &Annotations) -> Result<ContainerLimits, ApiError> {
    let defaults = ContainerLimits::default();
    let amount = |name: &str| limits.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let refused = |name: &str, text: &str| {
        let what = if name == "cpu" { "cpu" } else { "container memory" };
        let sentence = format!("Invalid value specified for {what}: '{text}' is not an amount.");
        wrong(format!("{field}.resources.limits.{name}"), sentence)
    };
    Ok(ContainerLimits {
        processor_millis: match amount("cpu") {
            None => defaults.processor_millis,
            Some(text) => processor_millis(text).ok_or_else(|| refused("cpu", text))?,
        },
        memory_bytes: match amount("memory") {
            None => defaults.memory_bytes,
            Some(text) => memory_bytes(text).ok_or_else(|| refused("memory", text))?,
        },
    })
}

fn environment_variable(
    field: &str,
    given: run_v1::EnvVar,
) -> Result<EnvironmentVariable, ApiError> {
    let secret = given.value_from.and_then(|source| source.secret_key_ref);
    let value = match (given.value, secret) {
        (value, None) => EnvironmentValue::Literal(value.unwrap_or_default()),
        (None, Some(secret)) => EnvironmentValue::Secret(SecretVersion {
            secret: secret.name.unwrap_or_default().into(),
            version: secret.key.unwrap_or_else(|| "latest".to_owned()).into(),
        }),
        (Some(_), Some(_)) => {
            return Err(wrong(field, "must not have both value and valueFrom"));
        }
    };
    Ok(EnvironmentVariable { name: given.name.unwrap_or_default().into(), value })
}

fn probe(field: &str, given: run_v1::Probe) -> Result<Probe, ApiError> {
    let port = |port: Option<i32>| match port {
        None | Some(0) => Ok(None),
        Some(number) => match u16::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(wrong(field, "the port must be between 1 and 65535, inclusive")),
        },
    };
    let action = match (given.http_get, given.tcp_socket, given.grpc) {
        (Some(http), None, None) => ProbeAction::Http {
            port: port(http.port)?,
            path: http.path.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned()),
            headers: http
                .http_headers
                .unwrap_or_default()
                .into_iter()
                .map(|header| (header.name.unwrap_or_default(), header.value.unwrap_or_default()))
                .collect(),
        },
        (None, None, Some(grpc)) => {
            let service = grpc.service.unwrap_or_default();
            ProbeAction::Grpc { port: port(grpc.port)?, service }
        }
        (None, tcp, None) => ProbeAction::Tcp { port: port(tcp.and_then(|tcp| tcp.port))? },
        _ => {
            return Err(wrong(field, "must have exactly one of httpGet, tcpSocket and grpc"));
        }
    };
    let count = |name: &str, value: Option<i32>, default: u32| match value {
        None | Some(0) => Ok(default),
        Some(value) => unsigned(format!("{field}.{name}"), value),
    };
    Ok(Probe {
        action,
        initial_delay_seconds: count("initialDelaySeconds", given.initial_delay_seconds, 0)?,
        period_seconds: count("periodSeconds", given.period_seconds, 10)?,
        timeout_seconds: count("timeoutSeconds", given.timeout_seconds, 1)?,
        failure_threshold: count("failureThreshold", given.failure_threshold, 3)?,
        success_threshold: count("successThreshold", given.success_threshold, 1)?,
    })
}

fn volume((index, given): (usize, run_v1::Volume)) -> Result<Volume, ApiError> {
    let field = format!("spec.template.spec.volumes[{index}]");
    let name = Name::from(given.name.unwrap_or_default());
    let mode = |mode: i32| {
        let mode = u32::try_from(mode).ok().filter(|mode| *mode <= 0o777);
        mode.ok_or_else(|| wrong(&field, "a mode must be between 0 and 0777"))
    };
    let source = if let Some(empty) = given.empty_dir {
        let limit = empty.size_limit.filter(|limit| !limit.is_empty());
        let bytes = |text: String| {
            let refused = || wrong(&field, format!("'{text}' is not a size"));
            memory_bytes(&text).ok_or_else(refused)
        };
        VolumeSource::Empty { bytes_max: limit.map(bytes).transpose()? }
    } else if let Some(secret) = given.secret {
        let items = secret.items.unwrap_or_default().into_iter().map(|item| {
            let mode = item.mode.map(mode).transpose()?;
            let version = Name::from(item.key.unwrap_or_else(|| "latest".to_owned()));
            Ok((version, item.path.unwrap_or_default(), mode))
        });
        VolumeSource::Secret {
            secret: secret.secret_name.unwrap_or_default().into(),
            items: items.collect::<Result<_, ApiError>>()?,
            mode_default: secret.default_mode.map(mode).transpose()?.unwrap_or(0o444),
        }
    } else if let Some(csi) = given.csi {
        let attributes = csi.volume_attributes.unwrap_or_default();
        let path = attributes.get("bucketName").cloned().unwrap_or_default();
        VolumeSource::HostDirectory { path, read_only: csi.read_only.unwrap_or(false) }
    } else if let Some(nfs) = given.nfs {
        let path = nfs.path.unwrap_or_default();
        VolumeSource::HostDirectory { path, read_only: nfs.read_only.unwrap_or(false) }
    } else {
        let sentence = "must have one of emptyDir, secret, csi and nfs";
        return Err(wrong(field, sentence));
    };
    Ok(Volume { name, source })
}

/// Annotations with the field they stand under.
struct Notes {
    field: &'static str,
    notes: Annotations,
}

impl Notes {
    fn new(field: &'static str, notes: Annotations) -> Notes {
        Notes { field, notes }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.notes.get(name).map(String::as_str).filter(|text| !text.is_empty())
    }

    fn wrong(&self, name: &str, sentence: impl std::fmt::Display) -> ApiError {
        wrong(format!("{}[{name}]", self.field), sentence)
    }

    fn flag(&self, name: &str) -> Result<bool, ApiError> {
        self.flag_or(name, false)
    }

    fn flag_or(&self, name: &str, default: bool) -> Result<bool, ApiError> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => Err(self.wrong(name, format!("'{other}' must be true or false"))),
        }
    }

    fn count(&self, name: &str) -> Result<Option<u32>, ApiError> {
        let read = |text: &str| {
            let refused = |_| self.wrong(name, format!("'{text}' must be a whole number"));
            text.parse().map_err(refused)
        };
        self.get(name).map(read).transpose()
    }

    /// A share such as `0.6`, or `disabled`.
    fn percent(&self, name: &str) -> Result<Option<u8>, ApiError> {
        let read = |text: &str| match text {
            "disabled" => Ok(0),
            _ => {
                let millis = if text == "0" { Some(0) } else { processor_millis(text) };
                let percent = millis.and_then(|millis| u8::try_from(millis / 10).ok());
                percent.ok_or_else(|| self.wrong(name, format!("'{text}' must be a share")))
            }
        };
        self.get(name).map(read).transpose()
    }

    fn list(&self, name: &str) -> Result<Vec<Name>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(Vec::new()) };
        let items: Vec<String> = serde_json::from_str(text)
            .map_err(|_| self.wrong(name, "must be a JSON list of strings"))?;
        Ok(items.into_iter().map(Name::from).collect())
    }

    fn dependencies(&self) -> Result<BTreeMap<String, Vec<String>>, ApiError> {
        let Some(text) = self.get(names::DEPENDENCIES) else { return Ok(BTreeMap::new()) };
        let sentence = "must be a JSON map from a container to the containers it waits for";
        serde_json::from_str(text).map_err(|_| self.wrong(names::DEPENDENCIES, sentence))
    }

    fn secret_paths(&self) -> Result<SecretPaths, ApiError> {
        let Some(text) = self.get(names::SECRETS) else { return Ok(SecretPaths::default()) };
        let sentence = "must be a list of alias:projects/PROJECT/secrets/SECRET";
        SecretPaths::parse(text).ok_or_else(|| self.wrong(names::SECRETS, sentence))
    }

    fn vpc_access(&self, revision: &ResourceName) -> Result<Option<VpcAccess>, ApiError> {
        let Some(text) = self.get(names::NETWORK_INTERFACES) else { return Ok(None) };
        let name = names::NETWORK_INTERFACES;
        let refused = || self.wrong(name, "must be a JSON list of one network interface");
        let interfaces: Vec<Value> = serde_json::from_str(text).map_err(|_| refused())?;
        let [interface] = &interfaces[..] else { return Err(refused()) };
        let text = |field: &str| {
            let text = interface.get(field).and_then(Value::as_str);
            text.filter(|text| !text.is_empty())
        };
        let project = &revision.project;
        let network = text("network").map(|link| {
            let short = || ResourceName::global(project, Kind::Network, link);
            ResourceName::parse(link).unwrap_or_else(short)
        });
        let region = revision.region().unwrap_or_default();
        let subnetwork = text("subnetwork").map(|link| {
            let short = || ResourceName::regional(project, region, Kind::Subnetwork, link);
            ResourceName::parse(link).unwrap_or_else(short)
        });
        let tags = interface.get("tags").and_then(Value::as_array).into_iter().flatten();
        let all_traffic = match self.get(names::VPC_EGRESS) {
            None | Some("private-ranges-only") => false,
            Some("all-traffic" | "all") => true,
            Some(other) => {
                let sentence = format!("'{other}' must be all-traffic or private-ranges-only");
                return Err(self.wrong(names::VPC_EGRESS, sentence));
            }
        };
        let tags = tags.filter_map(Value::as_str).map(Name::from).collect();
        Ok(Some(VpcAccess { network, subnetwork, tags, all_traffic }))
    }
}
