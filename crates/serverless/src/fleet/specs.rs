//! From a compiled revision to what the runtime is asked to run.
//!
//! Invariant: nothing is decided here; every value comes from the revision, its resolved images or
//! its secrets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::run::{
    Container, EnvironmentValue, Probe as DeclaredProbe, ProbeAction as DeclaredAction, Revision,
    VolumeSource as DeclaredSource,
};
use plan::fleet::RevisionPlan;

use super::sources::SecretSource;
use crate::images::ResolvedImage;
use crate::runtime::spec::VolumeFile;
use crate::runtime::{
    ContainerSpec, InstanceId, InstanceSpec, Limits, Probe, ProbeAction, Probes, Volume,
    VolumeMount, VolumeSource,
};

/// The images of a revision's containers, by the container's name.
pub(crate) type Images = BTreeMap<String, ResolvedImage>;

/// The specification of one instance, or why a secret it needs cannot be had.
pub(crate) fn instance_spec(
    plan: &Arc<RevisionPlan>,
    id: InstanceId,
    images: &Images,
    secrets: &dyn SecretSource,
) -> Result<InstanceSpec, String> {
    let revision = &plan.declared;
    let project = revision.service.project.as_str();
    let containers: Result<Vec<_>, String> = revision
        .containers
        .iter()
        .map(|container| container_spec(plan, container, images, project, secrets))
        .collect();
    let service = revision.service.name.to_string();
    Ok(InstanceSpec {
        id,
        configuration: service.clone(),
        service,
        revision: plan.name.name.to_string(),
        containers: containers?,
        volumes: volumes(revision, project, secrets)?,
        startup_boost: revision.startup_cpu_boost,
        host_name: "localhost".to_owned(),
        revision_plan: Some(Arc::clone(plan)),
    })
}

/// The name a container has for the runtime; the only container may have none of its own.
pub(crate) fn container_name(plan: &RevisionPlan, container: &Container) -> String {
    match container.name.is_empty() {
        true => format!("{}-1", plan.declared.service.name),
        false => container.name.to_string(),
    }
}

fn container_spec(
    plan: &RevisionPlan,
    container: &Container,
    images: &Images,
    project: &str,
    secrets: &dyn SecretSource,
) -> Result<ContainerSpec, String> {
    let name = container_name(plan, container);
    let image =
        images.get(&name).cloned().ok_or_else(|| format!("container {name} has no image"))?;
    let is_ingress =
        plan.declared.ingress_container().is_some_and(|ingress| ingress.name == container.name);
    let port = is_ingress.then_some(plan.port);
    let probe = |declared: &Option<DeclaredProbe>| {
        declared.as_ref().map(|declared| probe(declared, port.unwrap_or(plan.port)))
    };
    Ok(ContainerSpec {
        image,
        command: container.command.clone(),
        arguments: container.arguments.clone(),
        environment: environment(container, project, secrets)?,
        working_directory: container.working_directory.clone(),
        port,
        limits: Limits {
            processor_millis: container.limits.processor_millis,
            memory_bytes: container.limits.memory_bytes,
        },
        probes: Probes {
            startup: probe(&container.startup_probe),
            liveness: probe(&container.liveness_probe),
            readiness: probe(&container.readiness_probe),
        },
        starts_after: container.depends_on.iter().map(ToString::to_string).collect(),
        mounts: container
            .mounts
            .iter()
            .map(|mount| VolumeMount { volume: mount.volume.to_string(), path: mount.path.clone() })
            .collect(),
        name,
    })
}

fn environment(
    container: &Container,
    project: &str,
    secrets: &dyn SecretSource,
) -> Result<Vec<(String, String)>, String> {
    let variables = container.environment.iter().map(|variable| {
        let value = match &variable.value {
            EnvironmentValue::Literal(text) => text.clone(),
            EnvironmentValue::Secret(version) => {
                let (project, secret) = place(project, &version.secret);
                let bytes = secrets.read(project, secret, &version.version)?;
                String::from_utf8(bytes.to_vec())
                    .map_err(|_| format!("Secret {} is not text", version.secret))?
            }
        };
        Ok((variable.name.to_string(), value))
    });
    variables.collect()
}

fn volumes(
    revision: &Revision,
    project: &str,
    secrets: &dyn SecretSource,
) -> Result<Vec<Volume>, String> {
    let memory_bytes: u64 = revision.containers.iter().map(|c| c.limits.memory_bytes).sum();
    let volume = |declared: &model::run::Volume| {
        let source = match &declared.source {
            DeclaredSource::Empty { bytes_max } => {
                VolumeSource::Memory { bytes_max: bytes_max.unwrap_or(memory_bytes / 2) }
            }
            DeclaredSource::Secret { secret, items, mode_default } => {
                VolumeSource::Files(secret_files(project, secret, items, *mode_default, secrets)?)
            }
            DeclaredSource::HostDirectory { path, read_only } => {
                VolumeSource::HostDirectory { path: path.into(), read_only: *read_only }
            }
        };
        Ok(Volume { name: declared.name.to_string(), source })
    };
    revision.volumes.iter().map(volume).collect()
}

/// Without items, the latest version under the secret's own name.
fn secret_files(
    project: &str,
    secret: &str,
    items: &[(model::Name, String, Option<u32>)],
    mode_default: u32,
    secrets: &dyn SecretSource,
) -> Result<Vec<VolumeFile>, String> {
    let (project, secret) = place(project, secret);
    let file = |version: &str, path: &str, mode: Option<u32>| {
        let contents: Arc<[u8]> = secrets.read(project, secret, version)?;
        Ok(VolumeFile { path: path.to_owned(), contents, mode: mode.unwrap_or(mode_default) })
    };
    if items.is_empty() {
        return Ok(vec![file("latest", secret, None)?]);
    }
    items.iter().map(|(version, path, mode)| file(version, path, *mode)).collect()
}

/// The project and the name of a secret that is given by its name alone, or by its path.
fn place<'a>(project: &'a str, secret: &'a str) -> (&'a str, &'a str) {
    let path = secret.strip_prefix("projects/");
    path.and_then(|rest| rest.split_once("/secrets/")).unwrap_or((project, secret))
}

fn probe(declared: &DeclaredProbe, own_port: u16) -> Probe {
    let action = match &declared.action {
        DeclaredAction::Tcp { port } => ProbeAction::Tcp { port: port.unwrap_or(own_port) },
        DeclaredAction::Http { port, path, headers } => ProbeAction::Http {
            port: port.unwrap_or(own_port),
            path: path.clone(),
            headers: headers.clone(),
        },
        DeclaredAction::Grpc { port, service } => {
            ProbeAction::Grpc { port: port.unwrap_or(own_port), service: service.clone() }
        }
    };
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Probe {
        action,
        initial_delay: seconds(declared.initial_delay_seconds),
        period: seconds(declared.period_seconds),
        timeout: seconds(declared.timeout_seconds),
        failure_threshold: declared.failure_threshold,
        success_threshold: declared.success_threshold,
    }
}
