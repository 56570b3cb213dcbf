//! Cloud Run functions, 2nd generation: a function is a build and the Cloud Run service it leads to.
//!
//! A function is a document as its client wrote it, completed with what became of it; deploying one
//! builds its source and then declares the service the way everybody declares services.
//!
//! Invariant: a function's service is changed by its deployment only after its image is there.

mod deploy;
mod operations;
mod service;
mod view;

use http::Method;
use serde_json::{Value, json};
use wire::cloud_functions as messages;

use crate::Api;
use crate::builds;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, ProjectKey, respond, uuid};
use crate::storage;

/// Functions of one project and region.
pub(crate) const FUNCTIONS_MAX: usize = 1000;

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let result = match Call::read(api, request) {
        Ok(call) => answer(&call).await,
        Err(error) => Err(error),
    };
    respond(request, result)
}

/// Where a request looks: a project and a region, or `-` for all of them.
#[derive(Clone, Debug)]
struct Place {
    project: ProjectKey,
    region: String,
}

impl Place {
    fn new(call: &Call<'_>, project: &str, region: &str) -> Result<Place, ApiError> {
        let project = call.project(&call.api.world().state(), project)?;
        let known = crate::compute::catalog::REGIONS.iter().any(|known| known.name == region);
        if !known && region != "-" {
            let message = format!("Location {region} is not found or access is unauthorized.");
            return Err(ApiError::new(Reason::Forbidden, message));
        }
        Ok(Place { project, region: region.to_owned() })
    }

    fn location(&self) -> String {
        format!("projects/{}/locations/{}", self.project.id, self.region)
    }

    /// The key of a function's document.
    fn key(&self, name: &str) -> String {
        format!("functions/{}/functions/{name}", self.location())
    }

    /// The keys of all documents that are asked for begin with this.
    fn prefix(&self) -> String {
        match self.region.as_str() {
            "-" => format!("functions/projects/{}/locations/", self.project.id),
            _ => self.key(""),
        }
    }
}

async fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    match call.segments()[..] {
        ["v1" | "v2", "projects", project, "locations"] => locations(call, project),
        // Nothing is of the 1st generation here.
        ["v1", "projects", _, "locations", _, "functions"] => Ok(json!({})),
        ["v1", "projects", project, "locations", region, "functions", name] => {
            Err(missing(&format!("projects/{project}/locations/{region}/functions/{name}")))
        }
        ["v2", "projects", project, "locations", region, ref rest @ ..] => {
            let place = Place::new(call, project, region)?;
            match (call.action(), rest) {
                (("GET", ""), ["runtimes"]) => runtimes(call).await,
                (("GET", ""), ["operations"]) => operations::list(call, &place),
                (("GET", ""), ["operations", id]) => operations::get(call, &place, id),
                (("GET", ""), ["functions"]) => list(call, &place),
                (("POST", "generateUploadUrl"), ["functions"]) => upload_url(call, &place).await,
                (("POST", ""), ["functions"]) => create(call, &place).await,
                (_, ["functions", name]) => one(call, &place, name).await,
                _ => Err(call.unserved()),
            }
        }
        _ => Err(call.unserved()),
    }
}

async fn one(call: &Call<'_>, place: &Place, name: &str) -> Result<Value, ApiError> {
    match call.action() {
        ("GET", "") => view::shown(call.api, &call.api.world().state(), &place.key(name)),
        ("PATCH", "") => patch(call, place, name).await,
        ("DELETE", "") => deploy::delete(call, place, name).await,
        ("GET" | "POST", verb @ ("getIamPolicy" | "setIamPolicy" | "testIamPermissions")) => {
            let state = call.api.world().state();
            let function = view::document(&state, &place.key(name))?;
            let service = view::service_of(&function);
            let path = format!("/v1/{}/services/{service}:{verb}", place.location());
            let method = call.request.method.clone();
            let body = call.request.body.clone();
            service::ask(call.api, &call.request.principal, method, path, body).await
        }
        _ => Err(call.unserved()),
    }
}

/// `Resource 'projects/…' was not found`.
fn missing(name: &str) -> ApiError {
    ApiError::new(Reason::NotFound, format!("Resource '{name}' was not found"))
}

fn locations(call: &Call<'_>, project: &str) -> Result<Value, ApiError> {
    let project = call.project(&call.api.world().state(), project)?;
    let items = crate::compute::catalog::REGIONS.iter().map(|region| {
        let name = region.name;
        let location = json!({
            "name": format!("projects/{}/locations/{name}", project.id),
            "locationId": name,
            "displayName": name,
        });
        (name.to_string(), location)
    });
    let (locations, next) = call.page(items.collect(), "pageSize", "pageToken")?;
    Ok(json!({ "locations": locations, "nextPageToken": next.unwrap_or_default() }))
}

async fn runtimes(call: &Call<'_>) -> Result<Value, ApiError> {
    let offers = builds::of(call.api)?.builder().runtimes().await;
    let runtimes: Vec<Value> = offers
        .into_iter()
        .map(|offer| {
            json!({
                "name": offer.name,
                "displayName": offer.title,
                "stage": "GA",
                "environment": "GEN_2",
            })
        })
        .collect();
    Ok(json!({ "runtimes": runtimes }))
}

fn list(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    let filter = call.query.get("filter").unwrap_or_default();
    if filter.contains("GEN_1") && !filter.contains("GEN_2") {
        return Ok(json!({}));
    }
    let state = call.api.world().state();
    let items = state
        .scan(&place.prefix())
        .filter(|(key, _)| key.split('/').nth(5) == Some("functions"))
        .filter_map(|(key, _)| Some((key.to_string(), view::shown(call.api, &state, key).ok()?)))
        .collect();
    let (functions, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "functions": functions });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

/// An address that a source may be written to, without a token.
async fn upload_url(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    call.body::<messages::GenerateUploadUrlRequest>("")?;
    let builds = builds::of(call.api)?;
    let Place { project, region } = place;
    let bucket = format!("gcf-v2-uploads-{}-{region}", project.number);
    let object = format!("{}.zip", uuid(call.api));
    let home = builds::Home { project: project.clone(), region: region.clone() };
    storage::ensure_bucket(call.api, &home, &bucket).await?;
    let surroundings = call.api.surroundings();
    let signature = format!("{:016x}{:016x}", surroundings.random(), surroundings.random());
    let now = surroundings.now();
    builds.sessions.sign(&signature, &bucket, &object, &call.request.principal, now)?;
    Ok(json!({
        "uploadUrl": format!(
            "https://storage.googleapis.com/{bucket}/{object}?X-Goog-Signature={signature}"
        ),
        "storageSource": { "bucket": bucket, "object": object },
    }))
}

async fn create(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::Function>("function")?;
    let name = call.query.get("functionId").unwrap_or_default().to_owned();
    if !is_function_name(&name) {
        let message = format!(
            "Function name '{name}' is invalid: it must contain only lowercase letters, numbers \
             and hyphens, start with a letter, end with a letter or a number and be at most 63 \
             characters long."
        );
        return Err(ApiError::new(Reason::Invalid, message));
    }
    deploy::begin(call, place, &name, deploy::Verb::Create, body).await
}

fn is_function_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    name.len() <= 63
        && name.bytes().all(plain)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with(['-', '_'])
}

async fn patch(call: &Call<'_>, place: &Place, name: &str) -> Result<Value, ApiError> {
    debug_assert_eq!(call.request.method, Method::PATCH);
    let body = call.required_body::<messages::Function>("function")?;
    let state = call.api.world().state();
    let current = view::document(&state, &place.key(name))?;
    let mask = call.query.get("updateMask").filter(|mask| !mask.is_empty());
    let wanted = view::merged(&current["wanted"], &body, mask);
    deploy::begin(call, place, name, deploy::Verb::Update, wanted).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_functions_name_becomes_a_services_name() {
        for (name, valid) in
            [("hello", true), ("hello_world-2", true), ("Hello", false), ("a-", false), ("", false)]
        {
            assert_eq!(is_function_name(name), valid, "{name}");
        }
    }
}
