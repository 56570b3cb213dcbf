//! Cloud Build: looking at builds and waiting for them. What is built is submitted through Cloud
//! Run and Cloud Functions.

use serde_json::{Value, json};

use super::Home;
use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, respond};
use crate::world::State;

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let result = match Call::read(api, request) {
        Ok(call) => answer(&call),
        Err(error) => Err(error),
    };
    respond(request, result)
}

fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let home = |project: &str, region: &str| -> Result<Home, ApiError> {
        Ok(Home { project: call.project(&state, project)?, region: region.to_owned() })
    };
    match (call.action(), &call.segments()[..]) {
        (
            ("GET", ""),
            ["v1", "projects", project, "locations", region, "defaultServiceAccount"],
        ) => {
            let project = call.project(&state, project)?;
            let (id, number) = (&project.id, project.number);
            let account = format!("{number}-compute@developer.gserviceaccount.com");
            Ok(json!({
                "name": format!("projects/{id}/locations/{region}/defaultServiceAccount"),
                "serviceAccountEmail": format!("projects/{id}/serviceAccounts/{account}"),
            }))
        }
        (("GET", ""), ["v1", "projects", project, "locations", region, "builds"]) => {
            list(call, &state, &home(project, region)?)
        }
        (("GET", ""), ["v1", "projects", project, "builds"]) => {
            list(call, &state, &home(project, "-")?)
        }
        (("GET", ""), ["v1", "projects", project, "locations", region, "builds", id]) => {
            super::shown(call.api, &state, &home(project, region)?, id)
        }
        (("GET", ""), ["v1", "projects", project, "locations", region, "operations", id]) => {
            let build = super::shown(call.api, &state, &home(project, region)?, id)?;
            Ok(operation(build))
        }
        (("POST", "cancel"), _) => {
            let message = "A build cannot be cancelled here; it ends by itself after 600 seconds.";
            Err(ApiError::new(Reason::Unimplemented, message))
        }
        (("POST", ""), ["v1", "projects", .., "builds"]) => {
            let message = "Builds are submitted by `gcloud run deploy --source` and `gcloud functions \
                           deploy` here, not by their steps.";
            Err(ApiError::new(Reason::Unimplemented, message))
        }
        _ => Err(call.unserved()),
    }
}

fn list(call: &Call<'_>, state: &State, home: &Home) -> Result<Value, ApiError> {
    let prefix = match home.region.as_str() {
        "-" | "global" => format!("cloudbuild/projects/{}/locations/", home.project.id),
        _ => home.prefix(),
    };
    let mut kept: Vec<_> = state.scan(&prefix).collect();
    kept.sort_by_cached_key(|(_, kept)| std::cmp::Reverse(created(&kept.value())));
    let items = kept
        .into_iter()
        .filter_map(|(key, _)| {
            let segments: Vec<&str> = key.split('/').collect();
            let [_, _, _, _, region, _, id] = segments[..] else { return None };
            let home = Home { region: region.to_owned(), ..home.clone() };
            Some((key.to_string(), super::shown(call.api, state, &home, id).ok()?))
        })
        .collect();
    let (builds, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "builds": builds });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

fn created(build: &Value) -> String {
    build["createTime"].as_str().unwrap_or_default().to_owned()
}

/// A build as the operation that makes it.
pub(super) fn operation(build: Value) -> Value {
    const PACKAGE: &str = "type.googleapis.com/google.devtools.cloudbuild.v1";
    let text = |field: &str| build[field].as_str().unwrap_or_default().to_owned();
    let mut operation = json!({
        "name": text("name").replace("/builds/", "/operations/"),
        "metadata": { "@type": format!("{PACKAGE}.BuildOperationMetadata"), "build": build },
    });
    match build["status"].as_str() {
        Some("WORKING" | "QUEUED") => operation["done"] = false.into(),
        Some("SUCCESS") => {
            let mut response = build;
            response["@type"] = format!("{PACKAGE}.Build").into();
            operation["done"] = true.into();
            operation["response"] = response;
        }
        _ => {
            operation["done"] = true.into();
            operation["error"] = json!({ "code": 2, "message": failure(&build) });
        }
    }
    operation
}

/// What a failed build is told as, with the way to its log.
pub(crate) fn failure(build: &Value) -> String {
    let name: Vec<&str> = build["name"].as_str().unwrap_or_default().split('/').collect();
    let (region, id) = match name[..] {
        [_, _, _, region, _, id] => (region, id),
        _ => ("-", "-"),
    };
    let detail = build["statusDetail"].as_str().unwrap_or_default();
    let end = if detail.ends_with('.') { "" } else { "." };
    format!("Build failed; {detail}{end} The whole log: gcloud builds log {id} --region={region}")
}
