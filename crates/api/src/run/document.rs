//! What is kept of a service and of a revision: the resource as v1 writes it, and beside it what
//! is not part of the resource.
//!
//! Invariant: `resource` holds no status. What is derived is derived when it is asked for; only an
//! outcome is kept, because it cannot be observed twice.

use model::ResourceName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::missing;
use crate::error::{ApiError, Reason};
use crate::world::{Document, State};

/// The document of a service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceDocument {
    /// The v1 resource without its status.
    pub(crate) resource: Value,
    /// A number that is never given again.
    pub(crate) id: String,
    /// When the intent last changed.
    pub(crate) updated: String,
    /// The service's IAM policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<Value>,
    /// The members the project's policy lets call every service of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) project_invokers: Vec<String>,
    /// The traffic that was in force when the intent last changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) traffic_before: Vec<Value>,
}

/// The document of a revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RevisionDocument {
    /// The v1 resource without its status.
    pub(crate) resource: Value,
    /// A number that is never given again.
    pub(crate) id: String,
    /// The bare name of its service.
    pub(crate) service: String,
    /// The generation of the service that made it.
    pub(crate) generation: u64,
    /// How its first instance fared, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<OutcomeDocument>,
}

/// How the first instance of a revision fared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OutcomeDocument {
    pub(crate) ready: bool,
    #[serde(default)]
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) message: String,
    /// Container name and digest, in order.
    #[serde(default)]
    pub(crate) image_digests: Vec<(String, String)>,
    /// When it was seen.
    pub(crate) at: String,
}

/// Reads a document of either kind.
pub(crate) fn read<T: for<'a> Deserialize<'a>>(value: &Value) -> Result<T, ApiError> {
    T::deserialize(value).map_err(unreadable)
}

/// Reads a document as it is kept.
pub(crate) fn read_kept<T: for<'a> Deserialize<'a>>(kept: &Document) -> Result<T, ApiError> {
    kept.read().map_err(unreadable)
}

/// The document of a service or revision of that name.
pub(crate) fn of<T: for<'a> Deserialize<'a>>(
    state: &State,
    name: &ResourceName,
) -> Result<T, ApiError> {
    read_kept(state.documents.get(&*name.to_string()).ok_or_else(|| missing(name))?)
}

/// The document as it is kept.
pub(crate) fn write<T: Serialize>(document: &T) -> Result<Value, ApiError> {
    serde_json::to_value(document).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> ApiError {
    ApiError::new(Reason::Internal, format!("A Cloud Run document could not be read: {error}"))
}

impl ServiceDocument {
    /// `metadata.generation`.
    pub(crate) fn generation(&self) -> u64 {
        self.resource.pointer("/metadata/generation").and_then(Value::as_u64).unwrap_or(1)
    }

    /// `metadata.resourceVersion`.
    pub(crate) fn resource_version(&self) -> &str {
        text(&self.resource, "/metadata/resourceVersion")
    }
}

/// The text at a JSON pointer; empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// An annotation of a resource or template.
pub(crate) fn annotation<'a>(resource: &'a Value, name: &str) -> Option<&'a str> {
    resource.pointer("/metadata/annotations")?.get(name)?.as_str()
}

/// The object under a key, made if it is not there.
pub(crate) fn object<'a>(value: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    let inner = &mut value[key];
    if !inner.is_object() {
        *inner = json!({});
    }
    match inner {
        Value::Object(object) => object,
        // Just made one.
        _ => unreachable!("the value was made an object"),
    }
}
