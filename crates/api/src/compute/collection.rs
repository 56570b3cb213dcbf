//! What one collection adds to what all collections do alike.
//!
//! The engine does names, ids, times, links, fingerprints, operations and refusals; a collection's file
//! says which defaults it fills in, what cannot change, which verbs it has and what is shown besides
//! what was written.

use super::link::{Base, Link};
use crate::Api;
use crate::error::{ApiError, Reason};
use crate::query::Query;
use crate::world::{Draft, State};
use model::{Kind, Location, Resource, ResourceName};
use serde_json::{Map, Value};
use wire::{Message, Schema};

/// The key of a kept document under which this server's own notes stand; never shown to a client.
pub(crate) const INTERNAL: &str = "x-tidegate";

/// A JSON object.
pub(crate) type Object = Map<String, Value>;

/// One collection of Compute resources.
pub(crate) trait Collection: Sync {
    /// What it holds.
    fn kind(&self) -> Kind;
    /// The resource of the discovery document that has its methods, such as `regionUrlMaps`.
    fn methods(&self) -> &'static str;
    /// The word of `kind`, such as `urlMap` of `compute#urlMap`.
    fn word(&self) -> &'static str;
    /// The resource's message.
    fn schema(&self) -> &'static Schema;
    /// The typed meaning of a kept document.
    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError>;

    /// The fields that hold links.
    fn links(&self) -> &'static [Link] {
        &[]
    }
    /// Whether the resource has a `fingerprint`.
    fn has_fingerprint(&self) -> bool {
        false
    }
    /// Whether the resource has `labels` with their `labelFingerprint`.
    fn has_labels(&self) -> bool {
        false
    }
    /// The fields no patch or update may change.
    fn immutable(&self) -> &'static [&'static str] {
        &[]
    }
    /// The quota that counts it: metric and limit.
    fn quota(&self) -> Option<(&'static str, usize)> {
        None
    }
    /// Whether a deletion that somebody's use forbids is accepted and then fails as an operation.
    fn deletion_fails_late(&self) -> bool {
        false
    }
    /// Fills in what the client left out of a new resource, and makes what comes with it.
    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        let _ = edit;
        Ok(())
    }
    /// Has the last word on a patched or updated resource.
    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        let _ = (edit, before);
        Ok(())
    }
    /// Refuses a deletion, or removes what goes with the resource.
    fn removing(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        let _ = edit;
        Ok(())
    }
    /// Carries out one of its own verbs on one resource.
    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        let _ = (edit, body);
        Err(unserved(self.methods(), verb))
    }
    /// Answers a method that changes nothing.
    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        Err(unserved(self.methods(), question.verb))
    }
    /// Adds to a resource what is not written in its document.
    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let _ = (view, name, object);
    }
}

/// A method that exists at Google and not here.
pub(crate) fn unserved(methods: &str, verb: &str) -> ApiError {
    ApiError::new(
        Reason::Unimplemented,
        format!("Tidegate does not serve compute.{methods}.{verb}."),
    )
}

/// A resource being made or changed, inside the change.
pub(crate) struct Edit<'a> {
    pub(crate) api: &'a Api,
    pub(crate) draft: &'a mut Draft,
    pub(crate) name: &'a ResourceName,
    /// The project's id and number.
    pub(crate) base: Base<'a>,
    /// The document.
    pub(crate) object: Object,
    /// The query of the request.
    pub(crate) query: &'a Query,
    /// The moment of the change, as Compute writes it.
    pub(crate) now: &'a str,
}

impl Edit<'_> {
    /// A field's text, if it is there and not empty.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.object.get(field).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// Writes a field unless it is there.
    pub(crate) fn default(&mut self, field: &str, value: impl Into<Value>) {
        self.object.entry(field).or_insert_with(|| value.into());
    }

    /// Writes a field.
    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        self.object.insert(field.to_string(), value.into());
    }

    /// A field that must be given.
    pub(crate) fn require(&self, field: &str) -> Result<(), ApiError> {
        let is_given = self.object.get(field).is_some_and(|value| {
            !value.is_null()
                && value.as_str() != Some("")
                && value.as_array().is_none_or(|a| !a.is_empty())
        });
        if is_given { Ok(()) } else { Err(ApiError::required(&format!("resource.{field}"))) }
    }

    /// The resource a link field names.
    pub(crate) fn reference(&self, field: &str) -> Option<ResourceName> {
        self.text(field).and_then(ResourceName::parse)
    }
}

/// A request that changes nothing.
pub(crate) struct Question<'a> {
    pub(crate) view: View<'a>,
    pub(crate) verb: &'a str,
    pub(crate) base: Base<'a>,
    /// Where the method is asked.
    pub(crate) location: &'a Location,
    /// The resource asked about and its document, when the method is about one.
    pub(crate) subject: Option<(&'a ResourceName, &'a Value)>,
    pub(crate) query: &'a Query,
    pub(crate) body: &'a Value,
}

/// What presenting a resource may look at.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) api: &'a Api,
    pub(crate) state: &'a State,
}

/// A kept document as its strict type.
pub(crate) fn typed<T: Message>(document: &Value) -> Result<T, ApiError> {
    let mut document = document.clone();
    if let Value::Object(object) = &mut document {
        object.remove(INTERNAL);
    }
    Ok(wire::parse(&document, "resource")?)
}

/// The numeric id of a kept document.
pub(crate) fn id_of(document: &Value) -> u64 {
    document.get("id").and_then(Value::as_str).and_then(|id| id.parse().ok()).unwrap_or_default()
}
