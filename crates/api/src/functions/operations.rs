//! The operations of functions: a document each, written as a deployment goes on.
//!
//! Invariant: an operation that is told to be under way is carried on by this process; one that a
//! restart interrupted is told as failed.

use serde_json::{Value, json};

use super::Place;
use crate::Api;
use crate::builds;
use crate::error::{ApiError, Reason};
use crate::one_platform::Call;
use crate::world::Draft;

/// Operations remembered of one project and region.
pub(crate) const OPERATIONS_MAX: usize = 200;
const PACKAGE: &str = "type.googleapis.com/google.cloud.functions.v2";
const INTERRUPTED: &str =
    "The server was restarted while the function was deployed; deploy it again.";
/// Google's code for what failed because of what was asked for.
const INVALID_ARGUMENT: u32 = 3;

/// The name and the key of an operation.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) id: String,
    pub(super) key: String,
}

fn prefix(place: &Place) -> String {
    format!("functions/{}/operations/", place.location())
}

pub(super) fn named(place: &Place, id: &str) -> Operation {
    Operation { id: id.to_owned(), key: format!("{}{id}", prefix(place)) }
}

/// Writes an operation into the change it reports.
pub(super) fn start(
    draft: &mut Draft,
    place: &Place,
    operation: &Operation,
    target: &str,
    verb: &str,
    now: &str,
) {
    let before = draft.before().clone();
    let mut known: Vec<_> = before.scan(&prefix(place)).collect();
    if known.len() >= OPERATIONS_MAX {
        known.sort_by_key(|(_, kept)| kept.revision);
        draft.delete(known[0].0.clone());
    }
    let stages = match verb {
        "delete" => json!([stage("SERVICE", "IN_PROGRESS")]),
        _ => json!([stage("BUILD", "NOT_STARTED"), stage("SERVICE", "NOT_STARTED")]),
    };
    let document = json!({
        "target": target,
        "verb": verb,
        "createTime": now,
        "stages": stages,
        "done": false,
    });
    draft.put(operation.key.clone(), document);
}

fn stage(name: &str, state: &str) -> Value {
    json!({ "name": name, "state": state })
}

/// Changes an operation that is under way.
pub(super) async fn note(api: &Api, operation: &Operation, change: impl FnOnce(&mut Value)) {
    let changed = api.world().change(|draft| {
        if let Some(mut document) = draft.get(&operation.key) {
            change(&mut document);
            draft.put(operation.key.clone(), document);
        }
        Ok(())
    });
    if let Err(error) = changed.await {
        tracing::error!(%error, operation = operation.id, "an operation could not be written");
    }
}

/// Sets the state of a stage.
pub(super) fn set_stage(document: &mut Value, name: &str, state: &str) {
    let stages = document["stages"].as_array_mut().into_iter().flatten();
    for stage in stages.filter(|stage| stage["name"] == name) {
        stage["state"] = state.into();
    }
}

pub(super) fn get(call: &Call<'_>, place: &Place, id: &str) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let operation = named(place, id);
    let document = state.get(&operation.key).ok_or_else(|| {
        let message = format!("Requested entity was not found: operation '{id}'.");
        ApiError::new(Reason::NotFound, message)
    })?;
    Ok(shown(call.api, &state, &operation, &document))
}

pub(super) fn list(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let items = state
        .scan(&prefix(place))
        .map(|(key, kept)| {
            let operation = named(place, key.rsplit('/').next().unwrap_or_default());
            (key.to_string(), shown(call.api, &state, &operation, &kept.value()))
        })
        .collect();
    let (operations, next) = call.page(items, "pageSize", "pageToken")?;
    Ok(json!({ "operations": operations, "nextPageToken": next.unwrap_or_default() }))
}

fn shown(api: &Api, state: &crate::world::State, operation: &Operation, document: &Value) -> Value {
    let mut metadata = json!({
        "@type": format!("{PACKAGE}.OperationMetadata"),
        "createTime": document["createTime"],
        "target": document["target"],
        "verb": document["verb"],
        "apiVersion": "v2",
        "stages": document["stages"],
    });
    if let Some(end) = document.get("endTime") {
        metadata["endTime"] = end.clone();
    }
    let mut shown = json!({
        "name": operation.key.trim_start_matches("functions/"),
        "metadata": metadata,
        "done": document["done"],
    });
    let failure = document.get("failure").and_then(Value::as_str);
    let is_done = document["done"] == true;
    let failure = failure.or((!is_done && !is_carried_on(api, operation)).then_some(INTERRUPTED));
    if let Some(message) = failure {
        shown["done"] = true.into();
        shown["error"] = json!({ "code": INVALID_ARGUMENT, "message": message });
    } else if is_done {
        shown["response"] = match document["verb"] == "delete" {
            true => json!({ "@type": "type.googleapis.com/google.protobuf.Empty" }),
            false => {
                let key = format!("functions/{}", document["target"].as_str().unwrap_or_default());
                let mut function = super::view::shown(api, state, &key).unwrap_or_default();
                function["@type"] = format!("{PACKAGE}.Function").into();
                function
            }
        };
    }
    shown
}

fn is_carried_on(api: &Api, operation: &Operation) -> bool {
    builds::of(api).is_ok_and(|builds| builds.is_deploying(&operation.key))
}

/// The state of a function, and a message when a restart changed it.
pub(super) fn state_of(api: &Api, function: &Value) -> (String, Option<Value>) {
    let state = function["state"].as_str().unwrap_or("STATE_UNSPECIFIED");
    let operation = function["operation"].as_str().unwrap_or_default();
    let is_moving = matches!(state, "DEPLOYING" | "DELETING");
    if is_moving && !builds::of(api).is_ok_and(|builds| builds.is_deploying(operation)) {
        let message = json!({ "severity": "ERROR", "type": "Interrupted", "message": INTERRUPTED });
        return ("FAILED".to_owned(), Some(message));
    }
    (state.to_owned(), None)
}
