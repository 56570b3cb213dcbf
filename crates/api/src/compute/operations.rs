//! Compute's operations: written with the change they report, finished when the change is in force.
//!
//! Invariant: an operation is in the same transaction as its change, so the revision of its document
//! says which plan holds the change.

use super::collection::{INTERNAL, Object, View};
use super::link::{link_to, location_link};
use crate::Api;
use crate::error::{ApiError, Reason};
use crate::observed::Settled;
use crate::surroundings::pacific_timestamp;
use crate::world::{Document, Draft, State};
use model::{Location, ResourceName};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

/// How many operations are remembered; beyond that the oldest finished ones are forgotten.
pub const OPERATIONS_MAX: usize = 5_000;
/// How many old operations one change forgets at most.
const FORGOTTEN_AT_ONCE_MAX: usize = 8;
/// How many finished operations one change writes down at most.
const RECORDED_AT_ONCE_MAX: usize = 100;
/// How long `wait` holds its caller.
pub const WAIT_MAX: Duration = Duration::from_secs(120);
/// How long the answer to a change is held, so that what is done at once is told as done. Clients then
/// ask no second time, and those that would poll an address of Google's own never do.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_millis(200);

/// How operations ended that are not written down yet.
#[derive(Debug, Default)]
pub(crate) struct Completions {
    ended: Mutex<BTreeMap<Arc<str>, Ending>>,
}

#[derive(Clone, Debug)]
struct Ending {
    at: String,
    failure: Option<(String, String)>,
}

impl Completions {
    fn with<T>(&self, run: impl FnOnce(&mut BTreeMap<Arc<str>, Ending>) -> T) -> T {
        run(&mut self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What an operation reports.
pub(crate) struct Report<'a> {
    pub(crate) verb: &'a str,
    pub(crate) target: &'a ResourceName,
    pub(crate) target_id: String,
    pub(crate) user: &'a str,
    pub(crate) request_id: Option<&'a str>,
}

/// Writes an operation into the change it reports and returns its key.
pub(crate) fn start(api: &Api, draft: &mut Draft, report: &Report<'_>) -> Arc<str> {
    record_completions(api, draft);
    forget_oldest(api, draft);
    let now = api.surroundings().now();
    let name = operation_name(api, now);
    let (project, location) = (&report.target.project, &report.target.location);
    let key: Arc<str> = format!("{}/operations/{name}", scope_path(project, location)).into();
    let moment = pacific_timestamp(now);
    let mut document = json!({
        "kind": "compute#operation",
        "id": api.new_id(),
        "name": name,
        "operationType": report.verb,
        "targetLink": link_to(report.target),
        "targetId": report.target_id,
        "user": report.user,
        "insertTime": moment,
        "startTime": moment,
        "selfLink": format!("{}{key}", super::link::COMPUTE_BASE),
    });
    if let Value::Object(object) = &mut document {
        if let Some((field, link)) = location_link(project, location) {
            object.insert(field.into(), link.into());
        }
        if let Some(id) = report.request_id {
            object.insert("clientOperationId".into(), id.into());
            draft.put(request_key(project, id), json!({ "operation": &*key }));
        }
    }
    draft.put(key.clone(), document);
    key
}

/// Makes an operation one that has failed with the change it was for.
pub(crate) fn fail(api: &Api, draft: &mut Draft, key: &Arc<str>, error: &ApiError) {
    let Some(Value::Object(object)) = draft.get(key) else { return };
    let ending = Ending {
        at: pacific_timestamp(api.surroundings().now()),
        failure: Some((error_code(error.reason), error.message.clone())),
    };
    draft.put(key.clone(), Value::Object(ended(object, &ending)));
}

/// `RESOURCE_IN_USE_BY_ANOTHER_RESOURCE` of `resourceInUseByAnotherResource`.
fn error_code(reason: Reason) -> String {
    let mut code = String::new();
    for character in reason.word().chars() {
        if character.is_ascii_uppercase() {
            code.push('_');
        }
        code.push(character.to_ascii_uppercase());
    }
    code
}

fn operation_name(api: &Api, now: OffsetDateTime) -> String {
    let milliseconds = now.unix_timestamp_nanos() / 1_000_000;
    let (first, second) = (api.surroundings().random(), api.surroundings().random());
    format!(
        "operation-{milliseconds}-{:013x}-{:08x}-{:08x}",
        first >> 12,
        second >> 32,
        second & 0xffff_ffff
    )
}

fn scope_path(project: &str, location: &Location) -> String {
    match location {
        Location::Global => format!("projects/{project}/global"),
        Location::Region(region) => format!("projects/{project}/regions/{region}"),
        Location::Zone(zone) => format!("projects/{project}/zones/{zone}"),
    }
}

fn request_key(project: &str, request_id: &str) -> String {
    format!("request-ids/{project}/{}", request_id.to_ascii_lowercase())
}

/// The operation an earlier request of this id started.
pub(crate) fn replayed(draft: &Draft, project: &str, request_id: Option<&str>) -> Option<Arc<str>> {
    let entry = draft.get(&request_key(project, request_id?))?;
    let key = entry.get("operation")?.as_str()?;
    draft.contains(key).then(|| key.into())
}

/// Reads `requestId`: a UUID other than the one of zeros.
pub(crate) fn checked_request_id(text: Option<&str>) -> Result<Option<&str>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => match Uuid::parse_str(text) {
            Ok(id) if !id.is_nil() => Ok(Some(text)),
            _ => Err(ApiError::invalid_field(
                "requestId",
                text,
                "Must be a valid UUID other than 00000000-0000-0000-0000-000000000000.",
            )),
        },
    }
}

/// Writes endings that are only remembered so far into a change that is made anyway.
fn record_completions(api: &Api, draft: &mut Draft) {
    let endings: Vec<(Arc<str>, Ending)> = api.completions().with(|ended| {
        ended.retain(|key, _| {
            draft.get(key).is_some_and(|document| document.get("status").is_none())
        });
        ended.iter().take(RECORDED_AT_ONCE_MAX).map(|(k, e)| (k.clone(), e.clone())).collect()
    });
    for (key, ending) in endings {
        if let Some(Value::Object(object)) = draft.get(&key) {
            draft.put(key, Value::Object(ended(object, &ending)));
        }
    }
}

fn forget_oldest(api: &Api, draft: &mut Draft) {
    let before = draft.before().clone();
    let excess = (before.operations.len() + 1).saturating_sub(OPERATIONS_MAX);
    let view = View { api, state: &before };
    let oldest = before.operations.keys().take(excess.min(FORGOTTEN_AT_ONCE_MAX));
    for (_, key) in oldest {
        let Some(document) = before.documents.get(key) else { continue };
        if presented(view, key, document).get("status") == Some(&"DONE".into()) {
            delete(draft, key);
        }
    }
}

/// Removes an operation and what its request id remembered.
pub(crate) fn delete(draft: &mut Draft, key: &Arc<str>) {
    let request_id = draft.get(key).and_then(|document| {
        let project = key.split('/').nth(1)?;
        let id = document.get("clientOperationId")?.as_str()?;
        Some(request_key(project, id))
    });
    if let Some(request_id) = request_id {
        draft.delete(request_id);
    }
    draft.delete(key.clone());
}

/// An operation as a client sees it now.
pub(crate) fn presented(view: View<'_>, key: &Arc<str>, document: &Document) -> Object {
    let Value::Object(object) = document.value() else { return Object::new() };
    if object.contains_key("status") {
        return object;
    }
    if let Some(ending) = view.api.completions().with(|ended| ended.get(key).cloned()) {
        return ended(object, &ending);
    }
    let target = object.get("targetLink").and_then(Value::as_str).and_then(ResourceName::parse);
    let observed = view.api.observed();
    let is_applied = *observed.progress().borrow() >= document.revision;
    let settled = match (is_applied, target) {
        (false, _) => Settled::Pending,
        (true, Some(target)) => observed.settled(document.revision, &target),
        (true, None) => Settled::Done,
    };
    let failure = match settled {
        Settled::Pending => return running(object),
        Settled::Done => None,
        Settled::Failed { code, message } => Some((code, message)),
    };
    let ending = Ending { at: pacific_timestamp(view.api.surroundings().now()), failure };
    let ending =
        view.api.completions().with(|all| all.entry(key.clone()).or_insert(ending).clone());
    ended(object, &ending)
}

fn running(mut object: Object) -> Object {
    object.insert("status".into(), "RUNNING".into());
    object.insert("progress".into(), 0.into());
    object.remove(INTERNAL);
    object
}

fn ended(mut object: Object, ending: &Ending) -> Object {
    object.insert("status".into(), "DONE".into());
    object.insert("progress".into(), 100.into());
    object.insert("endTime".into(), ending.at.clone().into());
    if let Some((code, message)) = &ending.failure {
        object.insert("error".into(), json!({ "errors": [{ "code": code, "message": message }] }));
        object.insert("httpErrorStatusCode".into(), 400.into());
        object.insert("httpErrorMessage".into(), "BAD REQUEST".into());
    }
    object.remove(INTERNAL);
    object
}

/// An operation of this state by its key.
pub(crate) fn get(api: &Api, state: &State, key: &str) -> Result<Value, ApiError> {
    let (key, document) =
        state.documents.get_key_value(key).ok_or_else(|| ApiError::not_found(key))?;
    Ok(Value::Object(presented(View { api, state }, key, document)))
}

/// Holds the caller until the operation is done, or until time is up; then says how it stands.
pub(crate) async fn wait(api: &Api, key: &str, wait_max: Duration) -> Result<Value, ApiError> {
    let mut progress = api.observed().progress();
    let deadline = tokio::time::Instant::now() + wait_max;
    loop {
        progress.mark_unchanged();
        let operation = get(api, &api.world().state(), key)?;
        if operation.get("status") == Some(&"DONE".into()) {
            return Ok(operation);
        }
        match tokio::time::timeout_at(deadline, progress.changed()).await {
            Ok(Ok(())) => {}
            // Time is up, or the server is going down: what is known must do.
            Ok(Err(_)) | Err(_) => return Ok(operation),
        }
    }
}
