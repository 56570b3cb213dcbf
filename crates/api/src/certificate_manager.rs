//! Certificate Manager: regional self-managed certificates, for target HTTPS proxies.
//!
//! Invariant: a private key goes in and never comes out, not into an answer, an error or a log.

use std::sync::Arc;

use model::certificate::Certificate;
use model::name::{Kind, ResourceName};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use wire::certificate_manager as messages;

use crate::Api;
use crate::certificate::{self, Examined};
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, ProjectKey, respond};
use crate::surroundings::utc_timestamp;
use crate::world::{Changed, Draft, State};

/// Certificates of one project and region.
pub(crate) const CERTIFICATES_MAX: usize = 1000;
/// Operations remembered of one project and region; beyond that the oldest are forgotten.
pub(crate) const OPERATIONS_MAX: usize = 200;

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let result = match Call::read(api, request) {
        Ok(call) => answer(&call).await,
        Err(error) => Err(error),
    };
    respond(request, result)
}

async fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let segments = call.segments();
    let ["v1", "projects", project, "locations", rest @ ..] = &segments[..] else {
        return Err(call.unserved());
    };
    let project = call.project(&state, project)?;
    match (call.action(), rest) {
        (("GET", ""), [region, "certificates"]) => list(call, &state, &project, region),
        (("POST", ""), [region, "certificates"]) => create(call, &project, region).await,
        (("GET", ""), [region, "certificates", id]) => {
            let name = name_of(&project, region, id)?;
            Ok(shown(&name, &state.get(&name.to_string()).ok_or_else(|| missing(&name))?))
        }
        (("PATCH", ""), [region, "certificates", id]) => {
            patch(call, &name_of(&project, region, id)?).await
        }
        (("DELETE", ""), [region, "certificates", id]) => {
            delete(call, &name_of(&project, region, id)?).await
        }
        (("GET", ""), [region, "operations"]) => list_operations(call, &state, &project, region),
        (("GET", ""), [region, "operations", id]) => {
            let path = format!("projects/{}/locations/{region}/operations/{id}", project.id);
            operation(call.api, &state, &path)
        }
        (("POST", "cancel"), [_, "operations", _]) => Ok(json!({})),
        (
            _,
            [
                _,
                "dnsAuthorizations"
                | "certificateIssuanceConfigs"
                | "certificateMaps"
                | "certificateMapEntries"
                | "trustConfigs",
                ..,
            ],
        ) => Err(ApiError::new(
            Reason::Unimplemented,
            "Only self-managed certificates are served here; use selfManaged.",
        )),
        _ => Err(call.unserved()),
    }
}

/// What a certificate's document means.
pub(crate) fn model(name: &ResourceName, document: &Value) -> Result<Certificate, ApiError> {
    let text =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let chain_pem = text("/selfManaged/pemCertificate").to_owned();
    let Examined { dns_names, expires_at_seconds, .. } = certificate::read_chain(&chain_pem)?;
    Ok(Certificate {
        name: name.clone(),
        id: text("/id").parse().unwrap_or_default(),
        chain_pem,
        private_key_pem: text("/selfManaged/pemPrivateKey").to_owned(),
        dns_names,
        expires_at_seconds,
    })
}

fn missing(name: &ResourceName) -> ApiError {
    ApiError::new(Reason::NotFound, format!("Resource '{name}' was not found"))
}

fn name_of(project: &ProjectKey, region: &str, id: &str) -> Result<ResourceName, ApiError> {
    if !crate::compute::catalog::REGIONS.iter().any(|known| known.name == region) {
        let message = format!("Location {region} is not found or access is unauthorized.");
        return Err(ApiError::new(Reason::Forbidden, message));
    }
    Ok(ResourceName::regional(&project.id, region, Kind::Certificate, id))
}

fn is_certificate_id(id: &str) -> bool {
    (1..=63).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_lowercase())
        && !id.ends_with('-')
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

async fn create(call: &Call<'_>, project: &ProjectKey, region: &str) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::Certificate>("certificate")?;
    let id = call.query.get("certificateId").unwrap_or_default();
    if !is_certificate_id(id) {
        let message =
            format!("Invalid resource ID '{id}': it must match [a-z]([-a-z0-9]{{0,61}}[a-z0-9])?.");
        return Err(ApiError::new(Reason::Invalid, message));
    }
    let name = name_of(project, region, id)?;
    if !matches!(body.get("scope").and_then(Value::as_str), None | Some("" | "DEFAULT")) {
        let message = "Regional certificates have the scope DEFAULT.";
        return Err(ApiError::new(Reason::Invalid, message));
    }
    let mut document = json!({
        "id": call.api.new_id(),
        "scope": "DEFAULT",
        "createTime": call.now(),
        "updateTime": call.now(),
    });
    merge(call, &mut document, &body, &["selfManaged", "description", "labels"])?;
    if document.get("selfManaged").is_none() {
        let message = match body.get("managed") {
            Some(_) => "Managed certificates are not served here; use selfManaged.",
            None => "certificate.selfManaged: is required.",
        };
        return Err(ApiError::new(Reason::Invalid, message));
    }
    reported(call, &name, "create", |draft| {
        if draft.contains(&name.to_string()) {
            let message = format!("Resource '{name}' already exists");
            return Err(ApiError::new(Reason::AlreadyExists, message));
        }
        let prefix = prefix(&name.project, region);
        if draft.before().scan(&prefix).count() >= CERTIFICATES_MAX {
            let message = format!("At most {CERTIFICATES_MAX} certificates are allowed.");
            return Err(ApiError::new(Reason::QuotaExceeded, message));
        }
        draft.put(name.to_string(), document);
        Ok(())
    })
    .await
}

fn prefix(project: &str, region: &str) -> String {
    format!("projects/{project}/locations/{region}/certificates/")
}

/// Takes the named fields over from a body, and judges a new certificate with its key.
fn merge(
    call: &Call<'_>,
    document: &mut Value,
    body: &Value,
    fields: &[&str],
) -> Result<(), ApiError> {
    for field in fields {
        match body.get(*field) {
            Some(value) => document[*field] = value.clone(),
            None if *field != "selfManaged" => {
                document.as_object_mut().map(|document| document.remove(*field));
            }
            None => {}
        }
    }
    let text =
        |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if fields.contains(&"selfManaged") && document.get("selfManaged").is_some() {
        let (chain, key) =
            (text("/selfManaged/pemCertificate"), text("/selfManaged/pemPrivateKey"));
        let now = call.api.surroundings().now().unix_timestamp();
        let examined = certificate::examine(chain, key, now)?;
        let expires = OffsetDateTime::from_unix_timestamp(examined.expires_at_seconds);
        let expires = expires.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        document["sanDnsnames"] = examined.dns_names.into();
        document["expireTime"] = utc_timestamp(expires).into();
    }
    Ok(())
}

async fn patch(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::Certificate>("certificate")?;
    let mask = call.query.get("updateMask").unwrap_or_default();
    if mask.is_empty() {
        return Err(ApiError::new(Reason::Invalid, "update_mask: is required."));
    }
    let mut fields = Vec::new();
    for path in mask.split(',').map(str::trim) {
        fields.push(match path.split('.').next().unwrap_or_default() {
            "self_managed" | "selfManaged" => "selfManaged",
            "description" => "description",
            "labels" => "labels",
            other => {
                let message = format!("update_mask: '{other}' cannot be updated.");
                return Err(ApiError::new(Reason::Invalid, message));
            }
        });
    }
    reported(call, name, "update", |draft| {
        let mut document = draft.get(&name.to_string()).ok_or_else(|| missing(name))?;
        merge(call, &mut document, &body, &fields)?;
        document["updateTime"] = call.now().into();
        draft.put(name.to_string(), document);
        Ok(())
    })
    .await
}

async fn delete(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    reported(call, name, "delete", |draft| {
        if !draft.contains(&name.to_string()) {
            return Err(missing(name));
        }
        draft.delete(name.to_string());
        Ok(())
    })
    .await
}

/// Makes a change and the operation that reports it.
async fn reported(
    call: &Call<'_>,
    name: &ResourceName,
    verb: &str,
    edit: impl FnOnce(&mut Draft) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    let region = name.region().unwrap_or_default();
    let id = format!("operation-{:016x}", call.api.surroundings().random());
    let path = format!("projects/{}/locations/{region}/operations/{id}", name.project);
    let document = json!({ "verb": verb, "target": name.to_string(), "createTime": call.now() });
    let changed = call.api.world().change(|draft| {
        edit(draft)?;
        let before = draft.before().clone();
        let prefix = operation_key(&path[..path.len() - id.len()]);
        let known: Vec<_> = before.scan(&prefix).collect();
        if known.len() >= OPERATIONS_MAX
            && let Some((oldest, _)) = known.iter().min_by_key(|(_, kept)| kept.revision)
        {
            draft.delete((*oldest).clone());
        }
        draft.put(operation_key(&path), document);
        Ok(())
    });
    let Changed { state, .. } = changed.await?;
    operation(call.api, &state, &path)
}

/// Operations of other APIs live under paths of the same form.
fn operation_key(path: &str) -> String {
    format!("certificate-manager/{path}")
}

fn operation(api: &Api, state: &State, path: &str) -> Result<Value, ApiError> {
    let missing = || ApiError::new(Reason::NotFound, format!("Resource '{path}' was not found"));
    let kept = state.documents.get(&*operation_key(path)).ok_or_else(missing)?;
    let document = kept.value();
    let text = |field: &str| document.get(field).and_then(Value::as_str).unwrap_or_default();
    let is_done = *api.observed().progress().borrow() >= kept.revision;
    let mut operation = json!({
        "name": path,
        "done": is_done,
        "metadata": {
            "@type": "type.googleapis.com/google.cloud.certificatemanager.v1.OperationMetadata",
            "apiVersion": "v1",
            "createTime": text("createTime"),
            "target": text("target"),
            "verb": text("verb"),
            "requestedCancellation": false,
        },
    });
    if is_done {
        operation["metadata"]["endTime"] = text("createTime").into();
        let target = ResourceName::parse(text("target"));
        let certificate = target.filter(|_| text("verb") != "delete").and_then(|name| {
            let document = state.get(&name.to_string())?;
            Some(shown(&name, &document))
        });
        let mut response = certificate.unwrap_or_else(|| json!({}));
        response["@type"] = match text("verb") {
            "delete" => "type.googleapis.com/google.protobuf.Empty",
            _ => "type.googleapis.com/google.cloud.certificatemanager.v1.Certificate",
        }
        .into();
        operation["response"] = response;
    }
    Ok(operation)
}

fn list_operations(
    call: &Call<'_>,
    state: &State,
    project: &ProjectKey,
    region: &str,
) -> Result<Value, ApiError> {
    let prefix = operation_key(&format!("projects/{}/locations/{region}/operations/", project.id));
    let paths = state.scan(&prefix).filter_map(|(key, _)| key.strip_prefix("certificate-manager/"));
    let items = paths
        .map(|path| Ok((path.to_owned(), operation(call.api, state, path)?)))
        .collect::<Result<Vec<_>, ApiError>>()?;
    paged(call, items, "operations")
}

fn list(
    call: &Call<'_>,
    state: &State,
    project: &ProjectKey,
    region: &str,
) -> Result<Value, ApiError> {
    let prefixes: Vec<String> = match region {
        "-" => {
            let regions = crate::compute::catalog::REGIONS.iter();
            regions.map(|region| prefix(&project.id, region.name)).collect()
        }
        // Nothing is global here, and asking for it is no mistake.
        "global" => Vec::new(),
        region => vec![prefix(&project.id, name_of(project, region, "x")?.region().unwrap_or(""))],
    };
    let items = prefixes.iter().flat_map(|prefix| state.scan(prefix)).filter_map(|(key, kept)| {
        let name = ResourceName::parse(key)?;
        Some((key.to_string(), shown(&name, &kept.value())))
    });
    paged(call, items.collect(), "certificates")
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

/// A certificate as Certificate Manager shows it: without its key.
fn shown(name: &ResourceName, document: &Value) -> Value {
    let mut shown = document.as_object().cloned().unwrap_or_default();
    shown.remove("id");
    let own = shown.insert("selfManaged".into(), json!({})).unwrap_or_default();
    if let Some(chain) = own.get("pemCertificate") {
        shown.insert("pemCertificate".into(), chain.clone());
    }
    shown.insert("name".into(), name.to_string().into());
    Value::Object(shown)
}

/// The certificate as a resource of the inventory.
pub(crate) fn resource(name: &ResourceName, document: &Value) -> Result<model::Resource, ApiError> {
    Ok(model::Resource::Certificate(Arc::new(model(name, document)?)))
}
