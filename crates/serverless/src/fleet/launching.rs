//! The two slow things: making images ready, and starting an instance. Each runs in a task of its
//! own and ends in one event.
//!
//! Invariant: nothing here changes the keeper's state.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use model::Name;
use model::run::Outcome;
use plan::fleet::RevisionPlan;

use super::specs::{Images, container_name, instance_spec};
use super::{FleetOptions, ImageFailure, ImageSource, ImageTrouble};
use crate::logs::{Origin, Severity};
use crate::runtime::InstanceId;
use crate::runtime::launch::{LiveInstance, StartFailure, launch};

/// Log lines of a failed start that go into its message.
const LOG_LINES_IN_MESSAGE: usize = 10;

/// Why an instance could not be started.
#[derive(Clone, Debug)]
pub(crate) struct LaunchFailure {
    /// Cloud Run's word.
    pub(crate) reason: &'static str,
    /// What the user is told, with the last lines of the log.
    pub(crate) message: String,
    /// One line for logs and status.
    pub(crate) summary: String,
    /// The container is not to blame.
    pub(crate) is_host_fault: bool,
    /// An image turned out to be damaged: it has to be brought anew before the next attempt.
    pub(crate) is_damaged: bool,
}

impl LaunchFailure {
    /// One that has no log to tell more.
    pub(crate) fn plain(reason: &'static str, message: String) -> LaunchFailure {
        let summary = message.clone();
        LaunchFailure { reason, message, summary, is_host_fault: false, is_damaged: false }
    }
}

/// Runs one of the two; what panics in it, for want of a thread for example, ends as a failure
/// rather than never.
pub(crate) async fn survived<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
        format!("the server could not do its work: {text}")
    })
}

/// The images of all containers of a revision. What its outcome pinned stays pinned.
pub(crate) async fn resolve_images(
    images: &dyn ImageSource,
    revision: &RevisionPlan,
) -> Result<Images, ImageFailure> {
    let pinned = revision.declared.outcome.as_ref();
    let mut resolved = Images::new();
    for container in &revision.declared.containers {
        let digest = pinned.and_then(|outcome| {
            let mut digests = outcome.image_digests.iter();
            digests.find(|(name, _)| *name == container.name).map(|(_, digest)| digest.as_str())
        });
        let image = images.resolve(&container.image, digest).await?;
        resolved.insert(container_name(revision, container), image);
    }
    Ok(resolved)
}

/// Starts one instance and waits until it may take requests.
pub(crate) async fn launch_instance(
    options: &FleetOptions,
    revision: &Arc<RevisionPlan>,
    id: InstanceId,
    images: &Images,
) -> Result<LiveInstance, LaunchFailure> {
    let spec = instance_spec(revision, id.clone(), images, &*options.secrets);
    let spec = spec.map_err(|message| LaunchFailure::plain("SecretsAccessCheckFailed", message))?;
    options.logs.register(&id, revision);
    let failure = match launch(&*options.runtime, Arc::new(spec)).await {
        Ok(live) => return Ok(live),
        Err(failure) => failure,
    };
    options.logs.unregister(&id);
    let tell = |text: String| {
        let origin = Origin::of(revision, id.as_str());
        options.logs.system(origin, Severity::Error, text, SystemTime::now());
    };
    tell(failure.detail.clone());
    for image in images.values() {
        if let Some(damage) = options.images.damage(image).await {
            let text = format!("image '{}' is damaged on this disk ({damage})", image.reference);
            tell(format!("{text}; it is brought anew."));
            let plain = LaunchFailure::plain(ImageTrouble::Unavailable.reason(), text);
            return Err(LaunchFailure { is_host_fault: true, is_damaged: true, ..plain });
        }
    }
    Err(described(failure))
}

fn described(failure: StartFailure) -> LaunchFailure {
    let StartFailure { mut message, detail, log_tail, host_fault, .. } = failure;
    if !detail.is_empty() && detail != message {
        message = format!("{message}\n\n{detail}");
    }
    let first = log_tail.len().saturating_sub(LOG_LINES_IN_MESSAGE);
    let lines: Vec<&str> = log_tail[first..].iter().map(|line| line.text.as_str()).collect();
    if !lines.is_empty() {
        message = format!("{message}\n\nThe last lines of its log:\n{}", lines.join("\n"));
    }
    let reason = if host_fault { "InternalError" } else { "HealthCheckContainerError" };
    let is_host_fault = host_fault;
    LaunchFailure { reason, message, summary: detail, is_host_fault, is_damaged: false }
}

/// The outcome of a revision whose first instance came up.
pub(crate) fn ready_outcome(revision: &RevisionPlan, images: &Images) -> Outcome {
    Outcome {
        ready: true,
        reason: String::new(),
        message: String::new(),
        image_digests: digests(revision, images),
    }
}

/// The outcome of a revision whose first instance did not.
pub(crate) fn failed_outcome(
    revision: &RevisionPlan,
    images: &Images,
    reason: &str,
    message: String,
) -> Outcome {
    let image_digests = digests(revision, images);
    Outcome { ready: false, reason: reason.to_owned(), message, image_digests }
}

fn digests(revision: &RevisionPlan, images: &Images) -> Vec<(Name, String)> {
    let containers = revision.declared.containers.iter();
    let digest = |container: &model::run::Container| {
        let image = images.get(&container_name(revision, container))?;
        Some((container.name.clone(), image.digest.clone()))
    };
    containers.filter_map(digest).collect()
}
