//! Cloud Run's operations: written with the change they report, done when it serves or has failed.
//!
//! Invariant: an operation is in the same change as what it reports, and whether it is done is
//! read from the world, so that a restart forgets nothing.

use std::time::Duration;

use model::ResourceName;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::Place;
use super::document::text;
use super::quantity::seconds;
use super::status::{Truth, service_conditions};
use super::view::{RevisionView, ServiceView};
use crate::Api;
use crate::error::{ApiError, Reason};
use crate::one_platform::{Call, done};
use crate::world::{Draft, State};

/// Operations remembered of one project and region; beyond that the oldest are forgotten.
pub const OPERATIONS_MAX: usize = 500;
/// How long `wait` holds its caller.
pub const WAIT_MAX: Duration = Duration::from_secs(120);
/// How long `wait` holds a caller that does not say.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// Which version's resources an operation answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Knative's.
    V1,
    /// Google's own.
    V2,
}

/// What an operation reports.
pub(crate) struct Report<'a> {
    pub(crate) id: &'a str,
    pub(crate) verb: &'a str,
    /// The service, or a revision that is deleted.
    pub(crate) service: &'a ResourceName,
    pub(crate) generation: u64,
}

fn prefix(name: &ResourceName) -> String {
    let region = name.region().unwrap_or_default();
    format!("projects/{}/locations/{region}/operations/", name.project)
}

/// Writes an operation into the change it reports.
pub(crate) fn start(draft: &mut Draft, report: &Report<'_>, now: &str) {
    let prefix = prefix(report.service);
    let before = draft.before().clone();
    let known: Vec<_> = before.scan(&prefix).collect();
    if known.len() >= OPERATIONS_MAX {
        let oldest = known.iter().min_by_key(|(_, kept)| kept.revision);
        if let Some((key, _)) = oldest {
            draft.delete((*key).clone());
        }
    }
    let document = json!({
        "verb": report.verb,
        "target": report.service.to_string(),
        "generation": report.generation,
        "createTime": now,
    });
    draft.put(format!("{prefix}{}", report.id), document);
}

/// The operation of that key as a client sees it now.
pub(crate) fn shown(
    api: &Api,
    state: &State,
    key: &str,
    version: Version,
) -> Result<Value, ApiError> {
    let missing = || {
        let message = format!("Requested entity was not found: operation '{key}'.");
        ApiError::new(Reason::NotFound, message)
    };
    let document = state.get(key).ok_or_else(missing)?;
    let target = ResourceName::parse(text(&document, "/target")).ok_or_else(missing)?;
    let kind = match (version, target.kind) {
        (Version::V1, _) => "google.cloud.run.v1.Service",
        (Version::V2, model::Kind::Revision) => "google.cloud.run.v2.Revision",
        (Version::V2, _) => "google.cloud.run.v2.Service",
    };
    if text(&document, "/verb") == "delete" {
        return Ok(with_metadata(done(key, kind, json!({ "name": target.to_string() })), kind));
    }
    let Ok(view) = ServiceView::of(api, state, &target) else {
        // The service is gone, so whatever was to become of it has been overtaken.
        return Ok(with_metadata(done(key, kind, json!({ "name": target.to_string() })), kind));
    };
    let generation = document.get("generation").and_then(Value::as_u64).unwrap_or_default();
    let is_overtaken = view.document.generation() > generation;
    let ready = service_conditions(view.seen()).into_iter().next();
    let truth = ready.as_ref().map_or(Truth::Unknown, |ready| ready.truth);
    let resource = match version {
        Version::V1 => view.v1(),
        Version::V2 => super::v2::service::shown(&view),
    };
    let operation = match (is_overtaken, truth, version) {
        (false, Truth::Unknown, _) => json!({ "name": key, "done": false }),
        // Version 1 tells failures in the resource's conditions, version 2 in the operation.
        (false, Truth::False, Version::V2) => {
            let message = ready.map(|ready| ready.message).unwrap_or_default();
            json!({ "name": key, "done": true, "error": { "code": 9, "message": message } })
        }
        _ => done(key, kind, resource.clone()),
    };
    let mut operation = with_metadata(operation, kind);
    if version == Version::V2
        && let (Value::Object(metadata), Value::Object(resource)) =
            (&mut operation["metadata"], resource)
    {
        metadata.extend(resource);
    }
    Ok(operation)
}

fn with_metadata(mut operation: Value, kind: &str) -> Value {
    operation["metadata"] = json!({ "@type": format!("type.googleapis.com/{kind}") });
    operation
}

/// The methods of the collection of operations.
pub(crate) async fn answer(
    call: &Call<'_>,
    place: &Place,
    id: Option<&str>,
    version: Version,
) -> Result<Value, ApiError> {
    let key = |id: &str| -> Result<String, ApiError> {
        Ok(format!("projects/{}/locations/{}/operations/{id}", place.project.id, place.region()?))
    };
    match (call.action(), id) {
        (("GET", ""), None) => list(call, place, version),
        (("GET", ""), Some(id)) => shown(call.api, &call.api.world().state(), &key(id)?, version),
        (("POST", "wait"), Some(id)) => wait(call, &key(id)?, version).await,
        (("DELETE", ""), Some(id)) => {
            let key = key(id)?;
            call.api
                .world()
                .change(|draft| {
                    shown(call.api, draft.before(), &key, version)?;
                    draft.delete(key.clone());
                    Ok(())
                })
                .await?;
            Ok(json!({}))
        }
        _ => Err(call.unserved()),
    }
}

fn list(call: &Call<'_>, place: &Place, version: Version) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let prefix = format!("projects/{}/locations/{}/operations/", place.project.id, place.region()?);
    let mut kept: Vec<_> = state.scan(&prefix).collect();
    // Compute's operations in a region of the same name have keys of their own.
    kept.sort_by_key(|(_, document)| std::cmp::Reverse(document.revision));
    let items = kept
        .into_iter()
        .map(|(key, _)| Ok((key.to_string(), shown(call.api, &state, key, version)?)))
        .collect::<Result<Vec<_>, ApiError>>()?;
    let (operations, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "operations": operations });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

/// Holds the caller until the operation is done, for as long as it asks; then says how it stands.
async fn wait(call: &Call<'_>, key: &str, version: Version) -> Result<Value, ApiError> {
    let body = match version {
        Version::V1 => call.body::<wire::run_v1::GoogleLongrunningWaitOperationRequest>("")?,
        Version::V2 => call.body::<wire::run_v2::GoogleLongrunningWaitOperationRequest>("")?,
    };
    let patience = match text(&body, "/timeout") {
        "" => WAIT_DEFAULT,
        given => {
            let whole = seconds(given).map(|seconds| Duration::from_secs(seconds.into()));
            whole.unwrap_or(WAIT_DEFAULT).min(WAIT_MAX)
        }
    };
    let deadline = Instant::now() + patience;
    let (mut states, mut progress) = (call.api.world().states(), call.api.observed().progress());
    loop {
        let state = states.borrow_and_update().clone();
        progress.mark_unchanged();
        let operation = shown(call.api, &state, key, version)?;
        if operation.get("done") == Some(&Value::Bool(true)) {
            return Ok(operation);
        }
        let news = async {
            tokio::select! {
                news = states.changed() => news.is_ok(),
                news = progress.changed() => news.is_ok(),
            }
        };
        match timeout_at(deadline, news).await {
            Ok(true) => {}
            // Time is up, or the server is going down: what is known must do.
            Ok(false) | Err(_) => return Ok(operation),
        }
    }
}

/// The answer to deleting a revision, which version 2 gives as an operation.
pub(crate) fn of_deleted_revision(view: &RevisionView, operation: &str) -> Value {
    let kind = "google.cloud.run.v2.Revision";
    let key = format!("{}{operation}", prefix(&view.name));
    with_metadata(done(&key, kind, super::v2::revision::shown(view)), kind)
}

/// The key of an operation.
pub(crate) fn key_of(name: &ResourceName, operation: &str) -> String {
    format!("{}{operation}", prefix(name))
}
