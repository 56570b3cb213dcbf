//! What every collection does alike: insert, get, delete, patch, update and a collection's own verbs.
//!
//! Invariant: a refused request has changed nothing; an answered one is on disk with its operation.

use super::call::Call;
use super::collection::{Collection, Edit, INTERNAL, Object, Question, View, id_of, unserved};
use super::link::{self, link_to, location_link};
use super::operations::{self, Report};
use super::{fingerprint, names};
use crate::error::{ApiError, Reason};
use crate::world::Draft;
use model::ResourceName;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The answer that a changed fingerprint gets.
const STALE: &str = "Invalid fingerprint.";

/// Verbs that ask and change nothing.
const QUESTIONS: &[&str] = &[
    "getHealth",
    "listNetworkEndpoints",
    "validate",
    "getSerialPortOutput",
    "getGuestAttributes",
    "listAvailableFeatures",
    "getEffectiveFirewalls",
    "testIamPermissions",
    "listUsable",
];

/// Answers one request about one collection.
pub(crate) async fn handle(
    call: &Call<'_>,
    collection: &dyn Collection,
) -> Result<Value, ApiError> {
    match call.matched.verb {
        "insert" => insert(call, collection).await,
        "get" => get(call, collection),
        "delete" => delete(call, collection).await,
        "patch" => {
            let body = call.required_body()?;
            change(call, collection, |edit| patch(collection, edit, body)).await
        }
        "update" => {
            let body = call.required_body()?;
            change(call, collection, |edit| update(collection, edit, body)).await
        }
        "setLabels" => {
            let body = call.required_body()?;
            change(call, collection, |edit| set_labels(edit, body)).await
        }
        question if QUESTIONS.contains(&question) => ask(call, collection),
        verb => {
            let empty = Value::Object(Object::new());
            let body = call.body.as_ref().unwrap_or(&empty);
            change(call, collection, |edit| collection.verb(verb, edit, body)).await
        }
    }
}

async fn insert(call: &Call<'_>, collection: &dyn Collection) -> Result<Value, ApiError> {
    let body = call.required_body()?;
    let mut body = body.clone();
    wire::clean(&mut body, collection.schema());
    let Value::Object(object) = body else { return Err(ApiError::required("resource")) };
    let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
    names::check(name)?;
    let name = ResourceName {
        project: call.project.id.clone(),
        location: call.location.clone(),
        kind: collection.kind(),
        name: name.into(),
    };
    let insertion = |draft: &mut Draft| make(call, collection, draft, &name, object);
    start(call, insertion).await
}

/// Makes a resource in a draft and reports it.
fn make(
    call: &Call<'_>,
    collection: &dyn Collection,
    draft: &mut Draft,
    name: &ResourceName,
    object: Object,
) -> Result<Arc<str>, ApiError> {
    let id = create(call, collection, draft, name, object)?;
    Ok(report(call, draft, name, id))
}

/// Makes a resource in a draft and returns its id. Collections call it for what comes with theirs.
pub(crate) fn create(
    call: &Call<'_>,
    collection: &dyn Collection,
    draft: &mut Draft,
    name: &ResourceName,
    mut object: Object,
) -> Result<String, ApiError> {
    if draft.contains(&name.to_string()) {
        return Err(ApiError::already_exists(&name.to_string()));
    }
    check_quota(call, collection, draft)?;
    let id = call.api.new_id();
    for field in ["fingerprint", "labelFingerprint"] {
        object.remove(field);
    }
    object.insert("kind".into(), format!("compute#{}", collection.word()).into());
    object.insert("id".into(), id.clone().into());
    object.insert("creationTimestamp".into(), call.now.clone().into());
    object.insert("selfLink".into(), link_to(name).into());
    if let Some((field, link)) = location_link(&name.project, &name.location) {
        object.insert(field.into(), link.into());
    }
    let mut value = Value::Object(object);
    link::normalise(&mut value, collection.links(), call.base(), "resource")?;
    let mut edit = editing(call, draft, name, value);
    collection.complete(&mut edit)?;
    let object = stamped(collection, edit.object);
    draft.put(name.to_string(), Value::Object(object));
    Ok(id)
}

fn check_quota(
    call: &Call<'_>,
    collection: &dyn Collection,
    draft: &Draft,
) -> Result<(), ApiError> {
    let Some((metric, limit)) = collection.quota() else { return Ok(()) };
    let used = names::used(draft.before(), collection.kind(), &call.project.id, limit);
    if used < limit {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::QuotaExceeded,
        format!("Quota '{metric}' exceeded. Limit: {limit}.0 globally."),
    ))
}

fn editing<'a>(
    call: &'a Call<'_>,
    draft: &'a mut Draft,
    name: &'a ResourceName,
    value: Value,
) -> Edit<'a> {
    let object = if let Value::Object(object) = value { object } else { Map::new() };
    Edit {
        api: call.api,
        draft,
        name,
        base: call.base(),
        object,
        query: &call.query,
        now: &call.now,
    }
}

/// The object with its fingerprints as they are now.
fn stamped(collection: &dyn Collection, mut object: Object) -> Object {
    if collection.has_fingerprint() {
        object.insert("fingerprint".into(), fingerprint::of_resource(&object).into());
    }
    if collection.has_labels() {
        object.insert("labelFingerprint".into(), fingerprint::of_labels(&object).into());
    }
    object
}

fn get(call: &Call<'_>, collection: &dyn Collection) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let (name, document) = call.subject(&state, collection.kind())?;
    let view = View { api: call.api, state: &state };
    Ok(shown(view, collection, &name, &document))
}

/// A document as a client sees it.
pub(crate) fn shown(
    view: View<'_>,
    collection: &dyn Collection,
    name: &ResourceName,
    document: &Value,
) -> Value {
    let Value::Object(object) = document else { return document.clone() };
    let mut object = object.clone();
    collection.present(&view, name, &mut object);
    object.remove(INTERNAL);
    Value::Object(object)
}

fn ask(call: &Call<'_>, collection: &dyn Collection) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let empty = Value::Object(Object::new());
    let body = call.body.as_ref().unwrap_or(&empty);
    let subject = match call.resource_name() {
        // A URL map may be validated before it exists.
        Some(_) if call.matched.verb == "validate" => call.subject(&state, collection.kind()).ok(),
        Some(_) => Some(call.subject(&state, collection.kind())?),
        None => None,
    };
    let question = Question {
        view: View { api: call.api, state: &state },
        verb: call.matched.verb,
        base: call.base(),
        location: &call.location,
        subject: subject.as_ref().map(|(name, document)| (name, document)),
        query: &call.query,
        body,
    };
    match question.verb {
        "testIamPermissions" => Ok(serde_json::json!({
            "permissions": body.get("permissions").cloned().unwrap_or_else(|| Value::Array(Vec::new()))
        })),
        _ => collection.answer(&question),
    }
}

async fn delete(call: &Call<'_>, collection: &dyn Collection) -> Result<Value, ApiError> {
    let removal = |draft: &mut Draft| {
        let (name, document) = subject(call, draft, collection)?;
        let id = id_of(&document).to_string();
        let mut edit = editing(call, draft, &name, document);
        collection.removing(&mut edit)?;
        draft.delete(name.to_string());
        Ok(report(call, draft, &name, id))
    };
    match start(call, removal).await {
        Err(error) if error.reason == Reason::InUse && collection.deletion_fails_late() => {
            let failure = |draft: &mut Draft| {
                let (name, document) = subject(call, draft, collection)?;
                let key = report(call, draft, &name, id_of(&document).to_string());
                operations::fail(call.api, draft, &key, &error);
                Ok(key)
            };
            start(call, failure).await
        }
        other => other,
    }
}

/// Changes one resource by `edit`, inside one change of the world.
async fn change(
    call: &Call<'_>,
    collection: &dyn Collection,
    edit: impl FnOnce(&mut Edit<'_>) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    let changing = |draft: &mut Draft| {
        let (name, before) = subject(call, draft, collection)?;
        let mut editing = editing(call, draft, &name, before.clone());
        edit(&mut editing)?;
        let object = std::mem::take(&mut editing.object);
        let mut value = Value::Object(object);
        link::normalise(&mut value, collection.links(), call.base(), "resource")?;
        if ["patch", "update"].contains(&call.matched.verb) {
            check_immutable(collection, &before, &value)?;
        }
        let mut editing = self::editing(call, draft, &name, value);
        collection.changed(&mut editing, &before)?;
        let object = stamped(collection, editing.object);
        let id = id_of(&before).to_string();
        draft.put(name.to_string(), Value::Object(object));
        Ok(report(call, draft, &name, id))
    };
    start(call, changing).await
}

fn check_immutable(
    collection: &dyn Collection,
    before: &Value,
    after: &Value,
) -> Result<(), ApiError> {
    for field in collection.immutable() {
        let (old, new) = (before.get(field), after.get(field));
        if old != new {
            let shown = match new {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            let field = format!("resource.{field}");
            return Err(ApiError::invalid_field(
                &field,
                &shown,
                "Field cannot be changed after creation.",
            ));
        }
    }
    Ok(())
}

/// Merges a patch into the document: RFC 7396, after what only the server writes is left out.
fn patch(collection: &dyn Collection, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
    if collection.has_fingerprint() && body.get("fingerprint").is_some_and(|f| !f.is_null()) {
        let current = edit.text("fingerprint").unwrap_or_default().to_string();
        fingerprint::check(body.get("fingerprint"), &current, STALE)?;
    }
    let mut patch = body.clone();
    drop_server_fields(&mut patch, collection);
    let mut merged = Value::Object(std::mem::take(&mut edit.object));
    merge(&mut merged, &patch);
    if let Value::Object(object) = merged {
        edit.object = object;
    }
    Ok(())
}

/// Leaves out of a patch the top-level fields a client cannot set, and keeps its nulls: they delete.
fn drop_server_fields(patch: &mut Value, collection: &dyn Collection) {
    let Value::Object(object) = patch else { return };
    object.retain(|name, value| {
        let own = ["name", "fingerprint", "labelFingerprint"].contains(&name.as_str());
        let field = collection.schema().field(name).filter(|field| !field.output_only && !own);
        if let (Some(_), false) = (field, value.is_null()) {
            let mut wrapped = Value::Object(Map::from_iter([(name.clone(), value.take())]));
            wire::clean(&mut wrapped, collection.schema());
            *value = wrapped.get_mut(name).map(Value::take).unwrap_or_default();
        }
        field.is_some()
    });
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(object) = target else { return };
    for (name, change) in changes {
        if change.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

/// Replaces the document by the body, keeping what only the server writes.
fn update(collection: &dyn Collection, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
    if collection.has_fingerprint() {
        let current = edit.text("fingerprint").unwrap_or_default().to_string();
        fingerprint::check(body.get("fingerprint"), &current, STALE)?;
    }
    let mut body = body.clone();
    wire::clean(&mut body, collection.schema());
    let Value::Object(mut object) = body else { return Err(ApiError::required("resource")) };
    for (name, value) in std::mem::take(&mut edit.object) {
        let server_writes = collection.schema().field(&name).is_none_or(|field| field.output_only);
        let is_fixed = collection.immutable().contains(&name.as_str());
        if server_writes || name == "name" || is_fixed && !object.contains_key(&name) {
            object.insert(name, value);
        }
    }
    edit.object = object;
    Ok(())
}

fn set_labels(edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
    let current = fingerprint::of_labels(&edit.object);
    let given = body.get("labelFingerprint");
    fingerprint::check(
        given,
        &current,
        "Labels fingerprint either invalid or resource labels have changed",
    )?;
    match body.get("labels").filter(|labels| labels.as_object().is_some_and(|l| !l.is_empty())) {
        Some(labels) => {
            names::check_labels(labels)?;
            edit.object.insert("labels".into(), labels.clone());
        }
        None => {
            edit.object.remove("labels");
        }
    }
    Ok(())
}

/// The resource a request is about, as the draft sees it.
fn subject(
    call: &Call<'_>,
    draft: &Draft,
    collection: &dyn Collection,
) -> Result<(ResourceName, Value), ApiError> {
    call.subject(draft.before(), collection.kind())
}

fn report(
    call: &Call<'_>,
    draft: &mut Draft,
    target: &ResourceName,
    target_id: String,
) -> Arc<str> {
    let report = Report {
        verb: call.matched.verb,
        target,
        target_id,
        user: &call.principal.email,
        request_id: call.request_id.as_deref(),
    };
    operations::start(call.api, draft, &report)
}

/// Makes one change that ends in an operation and answers with it; a repeated request answers with the
/// operation it started the first time and changes nothing.
pub(crate) async fn start(
    call: &Call<'_>,
    edit: impl FnOnce(&mut Draft) -> Result<Arc<str>, ApiError>,
) -> Result<Value, ApiError> {
    let changed = call
        .api
        .world()
        .change(|draft| {
            match operations::replayed(draft, &call.project.id, call.request_id.as_deref()) {
                Some(key) => Ok(key),
                None => edit(draft),
            }
        })
        .await?;
    operations::get(call.api, &changed.state, &changed.value)
}

/// Reports a change of something that is no collection's resource, such as the project.
pub(crate) async fn start_on(
    call: &Call<'_>,
    target: &ResourceName,
    edit: impl FnOnce(&mut Draft) -> Result<u64, ApiError>,
) -> Result<Value, ApiError> {
    start(call, |draft| {
        let id = edit(draft)?;
        Ok(report(call, draft, target, id.to_string()))
    })
    .await
}

/// The 404 of a collection nothing is ever put into.
pub(crate) fn never(call: &Call<'_>, collection: &str) -> ApiError {
    let scope = call.scope_path();
    match (call.matched.verb, call.resource_name()) {
        ("get", Some(name)) => ApiError::not_found(&format!("{scope}/{collection}/{name}")),
        (verb, _) => unserved(call.matched.resource, verb),
    }
}
