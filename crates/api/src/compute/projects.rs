//! Projects as Compute shows them: number, quotas, and the metadata all their VMs share.
//!
//! Invariant: a project's number never changes, and its metadata has each key once.

use super::call::Call;
use super::collection::Object;
use super::engine::start_on;
use super::link::COMPUTE_BASE;
use super::{fingerprint, names, regions};
use crate::Api;
use crate::error::{ApiError, Reason};
use crate::surroundings::{pacific_timestamp, utc_timestamp};
use model::project::Project;
use model::{Name, Resource, ResourceName};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The longest value of one metadata item, in bytes.
pub(crate) const METADATA_VALUE_BYTES_MAX: usize = 256 * 1024;
/// The longest metadata in all, in bytes.
pub(crate) const METADATA_BYTES_MAX: usize = 512 * 1024;
/// The longest key of a metadata item, in bytes.
const METADATA_KEY_BYTES_MAX: usize = 128;
/// Numbers of new projects lie at and above this one, so that they have twelve digits like Google's.
const NUMBER_MIN: u64 = 100_000_000_000;
const NUMBER_SPAN: u64 = 900_000_000_000;

/// What a project's document means.
pub(crate) fn resource(name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
    let number = document.get("projectNumber").and_then(Value::as_str).and_then(|n| n.parse().ok());
    let number = number.ok_or_else(|| ApiError::required("project.projectNumber"))?;
    let metadata = document.get("commonInstanceMetadata");
    Ok(Resource::Project(Arc::new(Project {
        name: name.clone(),
        number,
        common_instance_metadata: metadata.map(items).unwrap_or_default(),
    })))
}

/// The items of a `Metadata` message, in order.
pub(crate) fn items(metadata: &Value) -> Vec<(Name, String)> {
    let text = |item: &Value, field: &str| {
        item.get(field).and_then(Value::as_str).unwrap_or_default().to_string()
    };
    let items = metadata.get("items").and_then(Value::as_array);
    let item = |item: &Value| (Name::from(text(item, "key")), text(item, "value"));
    items.into_iter().flatten().map(item).collect()
}

/// Makes the project if it is not there, and returns its number.
pub(crate) async fn ensure(api: &Api, id: &str, display_name: &str) -> Result<u64, ApiError> {
    if let Some(project) =
        api.world().state().compiled.inventory().projects.get(&ResourceName::project(id))
    {
        return Ok(project.number);
    }
    if !names::is_name(id) {
        return Err(ApiError::invalid_field("project.projectId", id, names::NAME_RULE));
    }
    let number = NUMBER_MIN + api.surroundings().random() % NUMBER_SPAN;
    let document = json!({
        "projectId": id,
        "projectNumber": number.to_string(),
        "name": display_name,
        "lifecycleState": "ACTIVE",
        "createTime": utc_timestamp(api.surroundings().now()),
        "creationTimestamp": pacific_timestamp(api.surroundings().now()),
    });
    let key = ResourceName::project(id).to_string();
    let changed = api.world().change(|draft| {
        if !draft.contains(&key) {
            draft.put(key.clone(), document);
        }
        Ok(())
    });
    let state = changed.await?.state;
    let project = state.compiled.inventory().projects.get(&ResourceName::project(id));
    project.map(|project| project.number).ok_or_else(|| ApiError::not_found(&key))
}

pub(crate) async fn handle(call: &Call<'_>) -> Result<Value, ApiError> {
    match call.matched.verb {
        "setCommonInstanceMetadata" => set_metadata(call).await,
        _ => get(call),
    }
}

fn get(call: &Call<'_>) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let id = &call.project.id;
    let key = format!("projects/{id}");
    let document = state.get(&key).ok_or_else(|| ApiError::not_found(&key))?;
    let number = call.project.number;
    let mut metadata = document.get("commonInstanceMetadata").cloned().unwrap_or_else(|| json!({}));
    describe_metadata(&mut metadata);
    Ok(json!({
        "kind": "compute#project",
        "id": number.to_string(),
        "name": id.as_str(),
        "creationTimestamp": document.get("creationTimestamp"),
        "selfLink": format!("{COMPUTE_BASE}{key}"),
        "commonInstanceMetadata": metadata,
        "defaultServiceAccount": format!("{number}-compute@developer.gserviceaccount.com"),
        "defaultNetworkTier": "PREMIUM",
        "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS",
        "cloudArmorTier": "CA_STANDARD",
        "vmDnsSetting": "ZONAL_ONLY",
        "quotas": regions::project_quotas(&state, id),
    }))
}

/// Adds kind and fingerprint to metadata.
pub(crate) fn describe_metadata(metadata: &mut Value) {
    let fingerprint = metadata_fingerprint(metadata);
    if let Value::Object(object) = metadata {
        object.insert("kind".into(), "compute#metadata".into());
        object.insert("fingerprint".into(), fingerprint.into());
    }
}

/// The fingerprint of metadata, whatever else stands in it.
pub(crate) fn metadata_fingerprint(metadata: &Value) -> String {
    fingerprint::of(metadata.get("items").unwrap_or(&json!([])))
}

/// Judges metadata a client wants to set, and returns what is kept of it.
pub(crate) fn checked_metadata(body: &Value, field: &str) -> Result<Value, ApiError> {
    let mut seen = BTreeSet::new();
    let mut bytes = 0;
    let given = items(body);
    for (index, (key, value)) in given.iter().enumerate() {
        let is_key = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if key.is_empty() || key.len() > METADATA_KEY_BYTES_MAX || !key.bytes().all(is_key) {
            let field = format!("{field}.items[{index}].key");
            return Err(ApiError::invalid_field(
                &field,
                key,
                "Must be a match of regex '[a-zA-Z0-9-_]{1,128}'",
            ));
        }
        if !seen.insert(key.clone()) {
            return Err(ApiError::new(
                Reason::Invalid,
                format!("Metadata has duplicate key: {key}"),
            ));
        }
        bytes += key.len() + value.len();
        if value.len() > METADATA_VALUE_BYTES_MAX || bytes > METADATA_BYTES_MAX {
            let why = format!("Metadata is larger than {METADATA_BYTES_MAX} bytes.");
            return Err(ApiError::invalid_field(
                &format!("{field}.items[{index}].value"),
                key,
                &why,
            ));
        }
    }
    let items: Vec<Value> =
        given.iter().map(|(key, value)| json!({ "key": key.as_str(), "value": value })).collect();
    let mut kept = Object::new();
    if !items.is_empty() {
        kept.insert("items".into(), items.into());
    }
    Ok(Value::Object(kept))
}

/// The refusal of stale metadata.
pub(crate) const STALE_METADATA: &str =
    "Supplied fingerprint does not match current metadata fingerprint.";

async fn set_metadata(call: &Call<'_>) -> Result<Value, ApiError> {
    let body = call.required_body()?;
    let metadata = checked_metadata(body, "metadata")?;
    let name = ResourceName::project(&call.project.id);
    start_on(call, &name, |draft| {
        let key = name.to_string();
        let mut document = draft.get(&key).ok_or_else(|| ApiError::not_found(&key))?;
        let current = document.get("commonInstanceMetadata").cloned().unwrap_or_else(|| json!({}));
        let given = body.get("fingerprint");
        fingerprint::check(given, &metadata_fingerprint(&current), STALE_METADATA)?;
        if let Value::Object(object) = &mut document {
            object.insert("commonInstanceMetadata".into(), metadata);
        }
        draft.put(key, document);
        Ok(call.project.number)
    })
    .await
}
