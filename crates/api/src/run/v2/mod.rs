//! Version 2: Google's own shape, which SDKs and Terraform speak, over version 1's documents.
//!
//! A read shows the document in version 2's words; a write puts its words into version 1's and then
//! goes the same way, so a template neither version has changed makes no revision.

mod container;
pub(crate) mod revision;
pub(crate) mod service;
mod template;

use model::{Kind, ResourceName};
use serde_json::{Map, Value, json};

use super::changes::{self, Made, Mode, Wish};
use super::operations::{self, Version};
use super::view::{RevisionView, ServiceView};
use super::{Place, listing, policy};
use crate::error::{ApiError, Reason};
use crate::one_platform::{Call, done};

fn invalid(field: impl std::fmt::Display, sentence: impl std::fmt::Display) -> ApiError {
    ApiError::new(Reason::Invalid, format!("{field}: {sentence}"))
}

/// Answers what comes after the location.
pub(crate) async fn answer(
    call: &Call<'_>,
    place: &Place,
    rest: &[&str],
) -> Result<Value, ApiError> {
    match (rest, call.action()) {
        (["operations"], _) => operations::answer(call, place, None, Version::V2).await,
        (["operations", id], _) => operations::answer(call, place, Some(id), Version::V2).await,
        (["builds"], ("POST", "submit")) => {
            crate::builds::submit::answer(call, &place.project, place.region()?).await
        }
        (["services"], ("GET", "")) => list_services(call, place),
        (["services"], ("POST", "")) => create(call, place).await,
        (["services", name], ("GET", "")) => {
            let name = place.resource(Kind::Service, name)?;
            let view = ServiceView::of(call.api, &call.api.world().state(), &name)?;
            Ok(service::shown(&view))
        }
        (["services", name], ("PATCH", "")) => patch(call, place, name).await,
        (["services", name], ("DELETE", "")) => delete(call, place, name).await,
        (["services", name], (_, verb)) if !verb.is_empty() => {
            policy::answer(call, &place.resource(Kind::Service, name)?).await
        }
        (["services", service, "revisions"], ("GET", "")) => list_revisions(call, place, service),
        (["services", service, "revisions", name], ("GET", "")) => {
            Ok(revision::shown(&revision_of(call, place, service, name)?))
        }
        (["services", service, "revisions", name], ("DELETE", "")) => {
            let view = revision_of(call, place, service, name)?;
            check_etag(call, &revision::etag(&view.document))?;
            let is_dry_run = call.query.flag("validateOnly");
            let (view, operation) =
                changes::delete_revision(call, place, &view.name, is_dry_run).await?;
            Ok(operations::of_deleted_revision(&view, &operation))
        }
        _ => Err(call.unserved()),
    }
}

/// The service a client sends. Google's own clients send enums by number.
fn service_body(call: &Call<'_>) -> Result<Value, ApiError> {
    let by_name = |body: &mut Value| wire::grpc::name_enums("google.cloud.run.v2.Service", body);
    call.required_body_after::<wire::run_v2::Service>("service", by_name)
}

async fn create(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    let body = service_body(call)?;
    let id = call.query.get("serviceId").unwrap_or_default();
    if id.is_empty() {
        return Err(invalid("service_id", "is required"));
    }
    let name = place.resource(Kind::Service, id)?;
    let wanted = service::wanted(&name, &body, None)?;
    changes::wanted_name(&wanted)?;
    let is_dry_run = call.query.flag("validateOnly");
    let wish = Wish { mode: Mode::Create, wanted, is_dry_run, forces_revision: false };
    let made = changes::declare(call, place, &name, wish).await?;
    reported(call, &name, &made, is_dry_run)
}

async fn patch(call: &Call<'_>, place: &Place, name: &str) -> Result<Value, ApiError> {
    let body = service_body(call)?;
    let name = place.resource(Kind::Service, name)?;
    let state = call.api.world().state();
    let current = match ServiceView::of(call.api, &state, &name) {
        Ok(view) => Some(view),
        Err(error) if error.reason == Reason::NotFound => None,
        Err(error) => return Err(error),
    };
    if current.is_none() && !call.query.flag("allowMissing") {
        return Err(super::missing(&name));
    }
    if let (Some(view), Some(etag)) = (&current, body.get("etag").and_then(Value::as_str)) {
        same_etag(etag, &service::etag(view))?;
    }
    let shown = current.as_ref().map(service::shown);
    let declared = masked(shown.as_ref(), &body, call.query.get("updateMask"))?;
    let resource = current.as_ref().map(|view| &view.document.resource);
    let mut wanted = service::wanted(&name, &declared, resource)?;
    if let Some(view) = &current {
        // What was read is what may be replaced: whoever came in between is a conflict.
        wanted["metadata"]["resourceVersion"] = view.document.resource_version().into();
    }
    let is_dry_run = call.query.flag("validateOnly");
    let forces_revision = call.query.flag("forceNewRevision");
    let mode = Mode::CreateOrReplace;
    let wish = Wish { mode, wanted, is_dry_run, forces_revision };
    let made = changes::declare(call, place, &name, wish).await?;
    reported(call, &name, &made, is_dry_run)
}

/// The declared fields as they become: those the mask names from the body, the others as they are.
fn masked(shown: Option<&Value>, body: &Value, mask: Option<&str>) -> Result<Value, ApiError> {
    let mask = mask.filter(|mask| !mask.is_empty() && *mask != "*");
    let (Some(shown), Some(mask)) = (shown, mask) else { return Ok(body.clone()) };
    let mut declared = shown.clone();
    for path in mask.split(',') {
        let path: Vec<String> = path.trim().split('.').map(camel_case).collect();
        let schema = <wire::run_v2::Service as wire::Message>::schema();
        if schema.field(&path[0]).is_none() {
            return Err(invalid("update_mask", format!("'{}' is no field", path.join("."))));
        }
        let value = path.iter().try_fold(body, |value, key| value.get(key));
        put(&mut declared, &path, value.cloned());
    }
    Ok(declared)
}

/// Field masks are written in snake case or in JSON's own.
fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

fn put(target: &mut Value, path: &[String], value: Option<Value>) {
    let Some((key, rest)) = path.split_first() else { return };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(object) = target.as_object_mut() else { return };
    match (rest.is_empty(), value) {
        (true, Some(value)) => {
            object.insert(key.clone(), value);
        }
        (true, None) => {
            object.remove(key);
        }
        (false, value) => put(object.entry(key.clone()).or_insert(Value::Null), rest, value),
    }
}

async fn delete(call: &Call<'_>, place: &Place, name: &str) -> Result<Value, ApiError> {
    let name = place.resource(Kind::Service, name)?;
    let is_dry_run = call.query.flag("validateOnly");
    let check = |view: &ServiceView| check_etag(call, &service::etag(view));
    let made = changes::delete_service(call, place, &name, is_dry_run, check).await?;
    let key = operations::key_of(&name, &made.operation);
    let mut shown = service::shown(&made.view);
    shown["deleteTime"] = call.now().into();
    let kind = "google.cloud.run.v2.Service";
    let mut operation = done(&key, kind, shown.clone());
    operation["metadata"] = shown;
    operation["metadata"]["@type"] = format!("type.googleapis.com/{kind}").into();
    Ok(operation)
}

fn reported(
    call: &Call<'_>,
    name: &ResourceName,
    made: &Made,
    is_dry_run: bool,
) -> Result<Value, ApiError> {
    let key = operations::key_of(name, &made.operation);
    match is_dry_run {
        // Nobody can ask for the operation of a change that was not made.
        true => Ok(done(&key, "google.cloud.run.v2.Service", service::shown(&made.view))),
        false => operations::shown(call.api, &made.state, &key, Version::V2),
    }
}

fn check_etag(call: &Call<'_>, current: &str) -> Result<(), ApiError> {
    call.query.get("etag").map_or(Ok(()), |given| same_etag(given, current))
}

fn same_etag(given: &str, current: &str) -> Result<(), ApiError> {
    if given.is_empty() || given == current {
        return Ok(());
    }
    let message = format!("The etag {given} does not match the current etag {current}.");
    Err(ApiError::new(Reason::Aborted, message))
}

fn list_services(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let views = listing::services(call.api, &state, place)?;
    let items = views.iter().map(|view| (view.name.to_string(), service::shown(view))).collect();
    paged(call, items, "services")
}

fn list_revisions(call: &Call<'_>, place: &Place, service: &str) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let views = listing::revisions(&state, place)?;
    let of_service = views.iter().filter(|view| service == "-" || view.document.service == service);
    let items = of_service.map(|v| (v.name.to_string(), revision::shown(v))).collect();
    paged(call, items, "revisions")
}

fn paged(call: &Call<'_>, items: Vec<(String, Value)>, plural: &str) -> Result<Value, ApiError> {
    let (items, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = Map::new();
    if !items.is_empty() {
        answer.insert(plural.to_owned(), items.into());
    }
    if let Some(next) = next {
        answer.insert("nextPageToken".to_owned(), next.into());
    }
    Ok(Value::Object(answer))
}

fn revision_of(
    call: &Call<'_>,
    place: &Place,
    service: &str,
    name: &str,
) -> Result<RevisionView, ApiError> {
    let name = place.resource(Kind::Revision, name)?;
    let view = RevisionView::of(&call.api.world().state(), &name)?;
    match view.document.service == service {
        true => Ok(view),
        false => Err(super::missing(&name)),
    }
}

/// A condition in version 2's words.
fn condition(condition: &super::status::Condition) -> Value {
    use super::status::Truth;
    let mut value = json!({
        "type": condition.kind,
        "state": match condition.truth {
            Truth::True => "CONDITION_SUCCEEDED",
            Truth::False => "CONDITION_FAILED",
            Truth::Unknown => "CONDITION_RECONCILING",
        },
        "lastTransitionTime": condition.at,
    });
    if condition.is_informative {
        value["severity"] = "INFO".into();
    }
    if !condition.message.is_empty() {
        value["message"] = condition.message.as_str().into();
    }
    match condition.reason.as_str() {
        "RevisionFailed" => value["reason"] = "REVISION_FAILED".into(),
        "ContainerMissing" => value["reason"] = "CONTAINER_MISSING".into(),
        "ContainerPermissionDenied" => value["reason"] = "CONTAINER_PERMISSION_DENIED".into(),
        "HealthCheckContainerError" => {
            value["revisionReason"] = "HEALTH_CHECK_CONTAINER_ERROR".into();
        }
        "NoTraffic" => value["revisionReason"] = "NO_DEPLOYMENT".into(),
        _ => {}
    }
    value
}
