//! Compute Engine's API, version 1: one engine for all collections, one small file for each.
//!
//! Invariant: what a method accepts is what the discovery document says it accepts, and nothing is
//! acknowledged before it is on disk.

pub mod body;
pub mod catalog;
pub mod link;
pub mod url_maps;

mod addresses;
mod backend_services;
mod batch;
mod call;
mod collection;
mod endpoint_groups;
mod engine;
mod filter;
mod fingerprint;
mod firewalls;
mod forwarding_rules;
mod health_checks;
mod instances;
mod list;
mod mask;
mod names;
mod networks;
pub(crate) mod operations;
pub(crate) mod projects;
mod region_url_maps;
mod regions;
mod route;
mod routes;
mod ssl_certificates;
mod ssl_policies;
mod subnetworks;
mod target_http_proxies;
mod target_https_proxies;

pub(crate) use fingerprint::same_bytes;
pub use operations::{ANSWER_WAIT_MAX, OPERATIONS_MAX, WAIT_MAX};

use crate::Api;
use crate::error::{ApiError, Dialect};
use crate::http::{Request, Response};
use crate::query::Query;
use call::Call;
use collection::Collection;
use http::StatusCode;
use list::{Item, Scopes};
use mask::Mask;
use model::{Kind, Resource, ResourceName};
use serde_json::Value;
use std::time::Duration;

/// Every collection whose resources are declared.
static COLLECTIONS: &[&dyn Collection] = &[
    &addresses::Addresses,
    &backend_services::BackendServices,
    &endpoint_groups::EndpointGroups,
    &firewalls::Firewalls,
    &forwarding_rules::ForwardingRules,
    &health_checks::HealthChecks,
    &instances::Instances,
    &networks::Networks,
    &routes::Routes,
    &ssl_certificates::SslCertificates,
    &ssl_policies::SslPolicies,
    &subnetworks::Subnetworks,
    &target_http_proxies::TargetHttpProxies,
    &target_https_proxies::TargetHttpsProxies,
    &region_url_maps::UrlMaps,
];

/// Collections that a client may list and that stay empty here: the discovery document's resource, the
/// plural and the singular.
const EMPTY_COLLECTIONS: &[(&str, &str, &str)] = &[
    ("backendServices", "backendServices", "backendService"),
    ("globalAddresses", "addresses", "address"),
    ("globalForwardingRules", "forwardingRules", "forwardingRule"),
    ("healthChecks", "healthChecks", "healthCheck"),
    ("networkEndpointGroups", "networkEndpointGroups", "networkEndpointGroup"),
    ("regionSecurityPolicies", "securityPolicies", "securityPolicy"),
    ("securityPolicies", "securityPolicies", "securityPolicy"),
    ("sslCertificates", "sslCertificates", "sslCertificate"),
    ("sslPolicies", "sslPolicies", "sslPolicy"),
    ("targetHttpProxies", "targetHttpProxies", "targetHttpProxy"),
    ("targetHttpsProxies", "targetHttpsProxies", "targetHttpsProxy"),
    ("urlMaps", "urlMaps", "urlMap"),
];

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    match request.path.strip_prefix("/compute/v1/") {
        Some(path) => one(api, request, path, ANSWER_WAIT_MAX).await,
        None if request.path.starts_with("/batch/compute/v1") => batch::handle(api, request).await,
        None => {
            let url = &request.path;
            let message = format!("The requested URL {url} was not found on this server.");
            ApiError::new(crate::error::Reason::NotFound, message).response(Dialect::Compute)
        }
    }
}

/// Answers one request below `/compute/v1/`; the answer to a change waits a little for it to be done.
async fn one(api: &Api, request: &Request, path: &str, wait_max: Duration) -> Response {
    match answer(api, request, path, wait_max).await {
        Ok(response) => response,
        Err(error) => error.response(Dialect::Compute),
    }
}

async fn answer(
    api: &Api,
    request: &Request,
    path: &str,
    wait_max: Duration,
) -> Result<Response, ApiError> {
    let query = Query::parse(&request.query);
    let mask =
        query.get("fields").filter(|fields| !fields.is_empty()).map(Mask::parse).transpose()?;
    let call = Call::read(api, request, path)?;
    call.check_permission()?;
    if call.matched.verb == "delete" && call.matched.resource.ends_with("Operations") {
        delete_operation(&call).await?;
        return Ok(Response::empty());
    }
    let value = settled(&call, dispatch(&call).await?, wait_max).await?;
    let value = match mask {
        Some(mask) => mask.apply(value),
        None => value,
    };
    let is_compact = matches!(query.get("prettyPrint"), Some("false" | "False" | "0"));
    Ok(if is_compact {
        Response::json_text(StatusCode::OK, value.to_string())
    } else {
        Response::json(StatusCode::OK, &value)
    })
}

/// The operation of a change once it is done, or as it stands when time is up.
async fn settled(call: &Call<'_>, value: Value, wait_max: Duration) -> Result<Value, ApiError> {
    let is_change = call.matched.method.http_method != "GET" && call.matched.verb != "wait";
    let is_running = value.get("status") == Some(&"RUNNING".into());
    let name = value.get("name").and_then(Value::as_str);
    match name.filter(|_| is_change && is_running && wait_max > Duration::ZERO) {
        Some(name) => {
            let key = format!("{}/operations/{name}", call.scope_path());
            operations::wait(call.api, &key, wait_max).await
        }
        None => Ok(value),
    }
}

async fn dispatch(call: &Call<'_>) -> Result<Value, ApiError> {
    match (call.matched.resource, call.matched.verb) {
        ("projects", _) => projects::handle(call).await,
        ("regions" | "zones" | "machineTypes" | "images" | "imageFamilyViews", _) => {
            regions::handle(call)
        }
        ("globalOperations" | "regionOperations" | "zoneOperations", _) => operation(call).await,
        (resource, verb) => match COLLECTIONS.iter().find(|c| c.methods() == resource) {
            Some(collection) => match verb {
                "list" => list::list_collection(call, *collection),
                "aggregatedList" => aggregated(call, *collection),
                _ => engine::handle(call, *collection).await,
            },
            None => other_scope(call, resource, verb),
        },
    }
}

/// The global twin of a regional collection: its aggregated list shows the regional resources, and
/// nothing else is in it.
fn other_scope(call: &Call<'_>, resource: &str, verb: &str) -> Result<Value, ApiError> {
    let Some((_, plural, word)) = EMPTY_COLLECTIONS.iter().find(|(known, ..)| *known == resource)
    else {
        return Err(collection::unserved(resource, verb));
    };
    let state = call.api.world().state();
    match verb {
        "list" => {
            let path = format!("{}/{plural}", call.scope_path());
            list::list(call, word, &path, Vec::new(), &state)
        }
        "aggregatedList" => match COLLECTIONS.iter().find(|c| c.kind().collection() == *plural) {
            Some(collection) => aggregated(call, *collection),
            None => {
                let scopes = Scopes::RegionalAndGlobal;
                list::aggregated(call, word, plural, scopes, Vec::new(), &state)
            }
        },
        "listAvailableFeatures" => Ok(ssl_policies::available_features()),
        _ => Err(engine::never(call, plural)),
    }
}

fn aggregated(call: &Call<'_>, collection: &dyn Collection) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let plural = collection.kind().collection();
    let scopes = match collection.kind() {
        Kind::Subnetwork => Scopes::Regional,
        Kind::Instance => Scopes::Zonal,
        Kind::NetworkEndpointGroup => Scopes::All,
        _ => Scopes::RegionalAndGlobal,
    };
    let items = all_scopes(&call.project.id)
        .into_iter()
        .flat_map(|scope| list::resources(&state, collection, &format!("{scope}/{plural}/")))
        .collect();
    list::aggregated(call, collection.word(), plural, scopes, items, &state)
}

/// Every scope of a project, as the start of a path.
fn all_scopes(project: &str) -> Vec<String> {
    let mut scopes = vec![format!("projects/{project}/global")];
    for region in catalog::REGIONS {
        scopes.push(format!("projects/{project}/regions/{}", region.name));
        scopes.extend(region.zones().map(|zone| format!("projects/{project}/zones/{zone}")));
    }
    scopes
}

async fn operation(call: &Call<'_>) -> Result<Value, ApiError> {
    let path = format!("{}/operations", call.scope_path());
    let state = call.api.world().state();
    match call.matched.verb {
        "list" => {
            let prefix = format!("{path}/");
            list::list(call, "operation", &path, operation_items(&state, &prefix), &state)
        }
        "aggregatedList" => {
            let items = all_scopes(&call.project.id)
                .into_iter()
                .flat_map(|scope| operation_items(&state, &format!("{scope}/operations/")))
                .collect();
            list::aggregated(call, "operation", "operations", Scopes::All, items, &state)
        }
        "wait" => {
            let key = operation_key(call, &state)?;
            operations::wait(call.api, &key, operations::WAIT_MAX).await
        }
        _ => operations::get(call.api, &state, &operation_key(call, &state)?),
    }
}

fn operation_items<'a>(state: &'a crate::world::State, prefix: &str) -> Vec<Item<'a>> {
    state.scan(prefix).map(|(key, document)| Item::Operation(key, document)).collect()
}

/// The key of the operation in the path, which may give its number.
fn operation_key(call: &Call<'_>, state: &crate::world::State) -> Result<String, ApiError> {
    let given = call.resource_name().unwrap_or_default();
    let key = format!("{}/operations/{given}", call.scope_path());
    if state.documents.contains_key(key.as_str()) {
        return Ok(key);
    }
    let prefix = format!("{}/operations/", call.scope_path());
    let has_id = |value: &Value| value.get("id").and_then(Value::as_str) == Some(given);
    let found = state.scan(&prefix).find(|(_, document)| has_id(&document.value()));
    found.map(|(key, _)| key.to_string()).ok_or_else(|| ApiError::not_found(&key))
}

async fn delete_operation(call: &Call<'_>) -> Result<(), ApiError> {
    let key = operation_key(call, &call.api.world().state())?;
    let removal = |draft: &mut crate::world::Draft| {
        if !draft.contains(&key) {
            return Err(ApiError::not_found(&key));
        }
        operations::delete(draft, &key.as_str().into());
        Ok(())
    };
    call.api.world().change(removal).await.map(|_| ())
}

/// What the document of a Compute resource means.
pub(crate) fn resource(
    name: &ResourceName,
    document: &Value,
) -> Result<Option<Resource>, ApiError> {
    match COLLECTIONS.iter().find(|collection| collection.kind() == name.kind) {
        Some(collection) => collection.model(name, document).map(Some),
        None => Ok(None),
    }
}
