//! Service Usage: which APIs a project has switched on. Here every API that is served is, from the
//! first, and switching one on or off is remembered.

use serde_json::{Value, json};
use wire::service_usage as messages;

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, ProjectKey, done, respond};
use crate::world::State;

/// Services in one `batchEnable`, as Google bounds it.
pub(crate) const BATCH_MAX: usize = 20;

/// The APIs that can be switched on: name and title.
const SERVICES: &[(&str, &str)] = &[
    ("artifactregistry.googleapis.com", "Artifact Registry API"),
    ("certificatemanager.googleapis.com", "Certificate Manager API"),
    ("cloudbuild.googleapis.com", "Cloud Build API"),
    ("cloudfunctions.googleapis.com", "Cloud Functions API"),
    ("cloudresourcemanager.googleapis.com", "Cloud Resource Manager API"),
    ("compute.googleapis.com", "Compute Engine API"),
    ("iam.googleapis.com", "Identity and Access Management (IAM) API"),
    ("iamcredentials.googleapis.com", "IAM Service Account Credentials API"),
    ("iap.googleapis.com", "Cloud Identity-Aware Proxy API"),
    ("logging.googleapis.com", "Cloud Logging API"),
    ("oslogin.googleapis.com", "Cloud OS Login API"),
    ("run.googleapis.com", "Cloud Run Admin API"),
    ("secretmanager.googleapis.com", "Secret Manager API"),
    ("serviceusage.googleapis.com", "Service Usage API"),
    ("storage.googleapis.com", "Cloud Storage API"),
];

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
    let ["v1", "projects", project, ref rest @ ..] = segments[..] else {
        return operation(call, &segments);
    };
    let project = call.project(&state, project)?;
    match (call.action(), rest) {
        (("GET", ""), ["services"]) => list(call, &state, &project),
        (("GET", "batchGet"), ["services"]) => {
            let names = call.query.iter().filter(|(name, _)| *name == "names");
            let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
            let services = names
                .map(|(_, path)| shown_by_name(&state, &project, &last(path)))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(json!({ "services": services }))
        }
        (("GET", ""), ["services", name]) => shown_by_name(&state, &project, name),
        (("POST", "batchEnable"), ["services"]) => {
            let body = call.required_body::<messages::BatchEnableServicesRequest>("")?;
            let ids = body.get("serviceIds").and_then(Value::as_array);
            let ids: Vec<&str> = ids.into_iter().flatten().filter_map(Value::as_str).collect();
            if ids.len() > BATCH_MAX {
                let message = format!("At most {BATCH_MAX} services can be enabled at a time.");
                return Err(ApiError::new(Reason::Invalid, message));
            }
            switch(call, &project, &ids, true).await?;
            let state = call.api.world().state();
            let services = ids
                .iter()
                .map(|name| shown_by_name(&state, &project, name))
                .collect::<Result<Vec<_>, _>>()?;
            let kind = "google.api.serviceusage.v1.BatchEnableServicesResponse";
            Ok(done("operations/noop.DONE_OPERATION", kind, json!({ "services": services })))
        }
        (("POST", verb @ ("enable" | "disable")), ["services", name]) => {
            let is_on = verb == "enable";
            switch(call, &project, &[name], is_on).await?;
            let service = shown_by_name(&call.api.world().state(), &project, name)?;
            let kind = match is_on {
                true => "google.api.serviceusage.v1.EnableServiceResponse",
                false => "google.api.serviceusage.v1.DisableServiceResponse",
            };
            Ok(done("operations/noop.DONE_OPERATION", kind, json!({ "service": service })))
        }
        _ => Err(call.unserved()),
    }
}

/// Every operation of this API is done when it is answered, under one name.
fn operation(call: &Call<'_>, segments: &[&str]) -> Result<Value, ApiError> {
    match (call.action(), segments) {
        (("GET", ""), ["v1", "operations", name @ "noop.DONE_OPERATION"]) => {
            Ok(done(&format!("operations/{name}"), "google.protobuf.Empty", json!({})))
        }
        _ => Err(call.unserved()),
    }
}

fn key(project: &ProjectKey) -> String {
    format!("service-usage/projects/{}", project.id)
}

fn is_on(state: &State, project: &ProjectKey, name: &str) -> bool {
    let switched = state.get(&key(project)).and_then(|document| document.get(name)?.as_bool());
    switched.unwrap_or(true)
}

async fn switch(
    call: &Call<'_>,
    project: &ProjectKey,
    names: &[&str],
    is_on: bool,
) -> Result<(), ApiError> {
    for name in names {
        title(name)?;
    }
    let changed = call.api.world().change(|draft| {
        let before = draft.get(&key(project));
        let mut document = before.clone().unwrap_or_else(|| json!({}));
        for name in names {
            document[*name] = is_on.into();
        }
        if before.as_ref() != Some(&document) {
            draft.put(key(project), document);
        }
        Ok(())
    });
    changed.await.map(|_| ())
}

fn title(name: &str) -> Result<&'static str, ApiError> {
    let found = SERVICES.iter().find(|(known, _)| *known == name);
    found.map(|(_, title)| *title).ok_or_else(|| {
        let message = format!("Not found or permission denied for service(s): {name}.");
        ApiError::new(Reason::Forbidden, message)
    })
}

fn shown_by_name(state: &State, project: &ProjectKey, name: &str) -> Result<Value, ApiError> {
    Ok(shown(state, project, name, title(name)?))
}

fn shown(state: &State, project: &ProjectKey, name: &str, title: &str) -> Value {
    let parent = format!("projects/{}", project.number);
    json!({
        "name": format!("{parent}/services/{name}"),
        "parent": parent,
        "config": { "name": name, "title": title },
        "state": if is_on(state, project, name) { "ENABLED" } else { "DISABLED" },
    })
}

fn list(call: &Call<'_>, state: &State, project: &ProjectKey) -> Result<Value, ApiError> {
    let wanted = match call.query.get("filter") {
        None | Some("") => None,
        Some("state:ENABLED") => Some("ENABLED"),
        Some("state:DISABLED") => Some("DISABLED"),
        Some(other) => {
            let message = format!("The filter '{other}' must be state:ENABLED or state:DISABLED.");
            return Err(ApiError::new(Reason::Invalid, message));
        }
    };
    let items = SERVICES
        .iter()
        .map(|(name, title)| ((*name).to_owned(), shown(state, project, name, title)))
        .filter(|(_, service)| wanted.is_none_or(|wanted| service["state"] == wanted))
        .collect();
    let (services, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "services": services });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}
