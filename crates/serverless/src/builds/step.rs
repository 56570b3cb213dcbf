//! The steps of a build, run in a container of their own on the base image.
//!
//! Invariant: the container is gone when this returns or is given up.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::base::PIP_FOLDER;
use super::contract::{LAYERS, Plan, WORKSPACE};
use super::limits::{MEMORY_BYTES_MAX, PROCESSOR_MILLIS_MAX};
use super::registries::Registries;
use super::way_out::{self, WayOut};
use super::{BuildError, BuildLog, Inner, Work, log};
use crate::images::ResolvedImage;
use crate::runtime::{
    ContainerSpec, ExitCause, Instance, InstanceId, InstanceSpec, Limits, Probes, Runtime, Volume,
    VolumeMount, VolumeSource,
};

const CONTAINER: &str = "build";
const SCRATCH: &str = "/scratch";
/// What a log line that begins a step begins with.
const STEP: &str = "STEP: ";

/// Runs the steps of a plan in the build's directory.
pub(super) async fn run(
    inner: &Inner,
    base: &ResolvedImage,
    plan: &Plan,
    user: &BTreeMap<String, String>,
    work: &Work,
    log: &Arc<BuildLog>,
) -> Result<(), BuildError> {
    if plan.steps.is_empty() {
        return Ok(());
    }
    let registries = super::registries::read(std::env::vars());
    prepare(&registries, &work.path("scratch")).map_err(BuildError::host("the build's files"))?;
    let id = InstanceId::new(&format!("build-{}", work.number))
        .ok_or_else(|| BuildError::Unsupported("the build's number is not a name".to_owned()))?;
    let _following = inner.logs.follow(&id, log);
    let spec = Arc::new(spec(id, base, plan, user, &registries, work));
    let failed = |step: &'static str| {
        move |error: crate::runtime::StartError| BuildError::Step {
            step: step.to_owned(),
            reason: causes(&error),
        }
    };
    let instance = inner.runtime.create(spec).await.map_err(failed("making the container"))?;
    let guard = Guard(instance);
    let listener = guard.0.listen(way_out::PORT).await;
    let listener = listener.map_err(BuildError::host("a way out of the container"))?;
    let _way_out = WayOut::open(listener, registries.named)
        .map_err(BuildError::host("a way out of the container"))?;
    guard.0.start_container(CONTAINER).await.map_err(failed("starting the container"))?;
    let exit = guard.0.exited().await;
    guard.0.stop(Duration::ZERO).await;
    let reason = match exit.cause {
        ExitCause::Code(0) => return Ok(()),
        ExitCause::Code(_) => None,
        ref other => Some(format!("it {other}")),
    };
    let text = log.text();
    let (step, said) = last_step(&text);
    let reason = reason.unwrap_or_else(|| log::reason(said));
    Err(BuildError::Step { step: step.to_owned(), reason })
}

/// Stops the container when the build is given up.
struct Guard(Arc<dyn Instance>);

impl Drop for Guard {
    fn drop(&mut self) {
        // Under way as soon as it is called.
        drop(self.0.stop(Duration::ZERO));
    }
}

/// An error with its cause.
fn causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The step that ran last, and what was said since it began.
fn last_step(text: &str) -> (&str, &str) {
    let at = text.rfind(STEP).map_or(0, |at| at + STEP.len());
    text[at..].split_once('\n').unwrap_or((&text[at..], ""))
}

/// The home of the build's user, with what npm and pip read there.
fn prepare(registries: &Registries, scratch: &Path) -> std::io::Result<()> {
    fs::create_dir_all(scratch.join("home/.config/pip"))?;
    fs::create_dir_all(scratch.join("tmp"))?;
    for (file, text) in [
        ("home/.npmrc", &registries.npmrc),
        ("home/.config/pip/pip.conf", &registries.pip_conf),
        ("roots.pem", &registries.roots),
    ] {
        // Passwords of registries may stand in them.
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(scratch.join(file))?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}

fn script(plan: &Plan) -> String {
    let mut script = format!("set -e\ncd {WORKSPACE}\n");
    for (name, line) in &plan.steps {
        script.push_str(&format!("echo '{STEP}{name}'\n{line}\n"));
    }
    script
}

fn environment(
    plan: &Plan,
    user: &BTreeMap<String, String>,
    registries: &Registries,
) -> Vec<(String, String)> {
    let mut all = plan.environment.clone();
    all.extend(user.iter().map(|(name, value)| (name.clone(), value.clone())));
    all.extend(registries.environment.iter().map(|(name, value)| (name.clone(), value.clone())));
    let proxy = format!("http://127.0.0.1:{}", way_out::PORT);
    let roots = format!("{SCRATCH}/roots.pem");
    for (name, value) in [
        ("HOME", &*format!("{SCRATCH}/home")),
        ("TMPDIR", &format!("{SCRATCH}/tmp")),
        ("HTTP_PROXY", &proxy),
        ("HTTPS_PROXY", &proxy),
        ("http_proxy", &proxy),
        ("https_proxy", &proxy),
        ("NO_PROXY", ""),
        ("no_proxy", ""),
        ("NPM_CONFIG_PROXY", &proxy),
        ("NPM_CONFIG_HTTPS_PROXY", &proxy),
        ("NPM_CONFIG_NOPROXY", ""),
        ("NPM_CONFIG_CAFILE", &roots),
        ("NPM_CONFIG_CACHE", &format!("{SCRATCH}/npm")),
        ("NPM_CONFIG_AUDIT", "false"),
        ("NPM_CONFIG_FUND", "false"),
        ("NPM_CONFIG_UPDATE_NOTIFIER", "false"),
        ("NODE_EXTRA_CA_CERTS", &roots),
        ("SSL_CERT_FILE", &roots),
        ("PIP_CERT", &roots),
        ("PIP_NO_CACHE_DIR", "1"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
        ("PYTHONPATH", PIP_FOLDER),
    ] {
        all.insert(name.to_owned(), value.to_owned());
    }
    all.into_iter().collect()
}

fn spec(
    id: InstanceId,
    base: &ResolvedImage,
    plan: &Plan,
    user: &BTreeMap<String, String>,
    registries: &Registries,
    work: &Work,
) -> InstanceSpec {
    let mut volumes = Vec::new();
    let mut mounts = Vec::new();
    let mut add = |name: String, path: &Path, inside: &str, read_only: bool| {
        let source = VolumeSource::HostDirectory { path: path.to_owned(), read_only };
        volumes.push(Volume { name: name.clone(), source });
        mounts.push(VolumeMount { volume: name, path: inside.to_owned() });
    };
    for (name, inside) in [("workspace", WORKSPACE), ("layers", LAYERS), ("scratch", SCRATCH)] {
        add(name.to_owned(), &work.path(name), inside, false);
    }
    for (index, folder) in registries.folders.iter().enumerate() {
        if let Some(inside) = folder.to_str() {
            add(format!("packages-{index}"), folder, inside, true);
        }
    }
    let container = ContainerSpec {
        name: CONTAINER.to_owned(),
        image: base.clone(),
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script(plan)],
        arguments: Vec::new(),
        environment: environment(plan, user, registries),
        working_directory: Some(WORKSPACE.to_owned()),
        port: None,
        limits: Limits { processor_millis: PROCESSOR_MILLIS_MAX, memory_bytes: MEMORY_BYTES_MAX },
        probes: Probes::default(),
        starts_after: Vec::new(),
        mounts,
    };
    InstanceSpec {
        id,
        service: String::new(),
        revision: String::new(),
        configuration: String::new(),
        containers: vec![container],
        volumes,
        startup_boost: false,
        host_name: "build".to_owned(),
        revision_plan: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_that_failed_is_the_last_one_that_began() {
        let text = "FETCHSOURCE\nSTEP: npm install\nadded 3\nSTEP: npm run build\nnpm error x\n";
        assert_eq!(last_step(text), ("npm run build", "npm error x\n"));
    }
}
