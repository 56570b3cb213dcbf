//! Revisions as version 2 shows them.

use serde_json::{Value, json};

use super::{condition, template};
use crate::run::document::{RevisionDocument, annotation, text};
use crate::run::names;
use crate::run::status::{self, Truth};
use crate::run::view::RevisionView;

/// The etag of a revision: its version, quoted as etags are.
pub(super) fn etag(document: &RevisionDocument) -> String {
    format!("\"{}\"", text(&document.resource, "/metadata/resourceVersion"))
}

/// A revision as version 2 shows it.
pub(crate) fn shown(view: &RevisionView) -> Value {
    let resource = &view.document.resource;
    let mut shown = template::shown(resource);
    let metadata = |pointer: &str| text(resource, pointer).to_owned();
    let region = view.name.region().unwrap_or_default();
    let service = &view.document.service;
    let prefix = format!("projects/{}/locations/{region}/services/{service}", view.name.project);
    let created = metadata("/metadata/creationTimestamp");
    let updated = view.document.outcome.as_ref().map_or_else(|| created.clone(), |o| o.at.clone());
    for (field, value) in [
        ("name", format!("{prefix}/revisions/{}", view.name.name)),
        ("uid", metadata("/metadata/uid")),
        ("generation", "1".to_owned()),
        ("observedGeneration", "1".to_owned()),
        ("createTime", created),
        ("updateTime", updated),
        ("service", service.clone()),
        ("creator", annotation(resource, names::CREATOR).unwrap_or_default().to_owned()),
        ("launchStage", "GA".to_owned()),
        ("etag", etag(&view.document)),
    ] {
        shown.insert(field.into(), value.into());
    }
    let conditions = status::revision_conditions(&view.document, view.role);
    shown.insert("conditions".into(), conditions.iter().map(condition).collect());
    if conditions.first().is_some_and(|ready| ready.truth == Truth::Unknown) {
        shown.insert("reconciling".into(), true.into());
    }
    let statuses: Vec<Value> = status::image_digests(&view.document)
        .into_iter()
        .map(|(name, digest)| json!({ "name": name, "imageDigest": digest }))
        .collect();
    if !statuses.is_empty() {
        shown.insert("containerStatuses".into(), statuses.into());
    }
    Value::Object(shown)
}
