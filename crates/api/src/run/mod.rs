//! Cloud Run: version 1, which gcloud speaks, and version 2, which SDKs and Terraform speak, as two
//! views of the same documents.
//!
//! Invariant: a change is admitted by the plan it leads to, and both versions go the same way to it.

mod changes;
pub(crate) mod convert;
mod document;
mod intent;
mod listing;
mod names;
mod operations;
mod outcome;
mod policy;
mod quantity;
mod secret_paths;
mod selector;
mod status;
mod unserved;
mod v1;
mod v2;
mod view;

pub use operations::{OPERATIONS_MAX, WAIT_MAX};
pub(crate) use policy::spread_project_invokers;

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, ProjectKey, respond};
use crate::world::State;
use model::{Kind, ResourceName};
use serde_json::{Value, json};

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let result = match Call::read(api, request) {
        Ok(call) => answer(&call).await,
        Err(error) => Err(error),
    };
    respond(request, result)
}

async fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    match call.segments()[..] {
        ["apis", "serving.knative.dev", "v1", "namespaces", project, ref rest @ ..] => {
            let region = call.request.host_region.as_deref();
            let region = region.ok_or_else(needs_a_region)?;
            v1::answer(call, &Place::new(call, project, region)?, rest).await
        }
        ["v1", "projects", project, "locations"] => locations(call, project),
        ["v2", "projects", project, "locations"] => locations(call, project),
        ["v1", "projects", project, "locations", region, ref rest @ ..] => {
            v1::answer(call, &Place::new(call, project, region)?, rest).await
        }
        ["v2", "projects", project, "locations", region, ref rest @ ..] => {
            v2::answer(call, &Place::new(call, project, region)?, rest).await
        }
        _ => Err(call.unserved()),
    }
}

fn needs_a_region() -> ApiError {
    ApiError::new(
        Reason::BadRequest,
        "The namespaces of Cloud Run are regional: use REGION-run.googleapis.com.",
    )
}

/// Where a request looks: a project and one of its regions, or all of them.
#[derive(Clone, Debug)]
struct Place {
    project: ProjectKey,
    region: Option<String>,
}

impl Place {
    fn new(call: &Call<'_>, project: &str, region: &str) -> Result<Place, ApiError> {
        let project = call.project(&call.api.world().state(), project)?;
        let region = match region {
            "-" => None,
            region if crate::compute::catalog::REGIONS.iter().any(|known| known.name == region) => {
                Some(region.to_owned())
            }
            region => {
                let message = format!("Location {region} is not found or access is unauthorized.");
                return Err(ApiError::new(Reason::Forbidden, message));
            }
        };
        Ok(Place { project, region })
    }

    /// The region of a request about one resource.
    fn region(&self) -> Result<&str, ApiError> {
        let refused = || ApiError::new(Reason::BadRequest, "The location '-' is for lists only.");
        self.region.as_deref().ok_or_else(refused)
    }

    fn resource(&self, kind: Kind, name: &str) -> Result<ResourceName, ApiError> {
        Ok(ResourceName::regional(&self.project.id, self.region()?, kind, name))
    }

    /// The keys of all documents of a kind begin with one of these.
    fn prefixes(&self, kind: Kind) -> Vec<String> {
        let prefix = |region: &str| {
            format!("projects/{}/locations/{region}/{}/", self.project.id, kind.collection())
        };
        match &self.region {
            Some(region) => vec![prefix(region)],
            None => crate::compute::catalog::REGIONS.iter().map(|r| prefix(r.name)).collect(),
        }
    }
}

/// `Resource 'hello' of kind 'SERVICE' in region 'us-west1' in project 'p' does not exist.`
fn missing(name: &ResourceName) -> ApiError {
    let kind = name.kind.word().to_ascii_uppercase();
    ApiError::new(
        Reason::NotFound,
        format!(
            "Resource '{}' of kind '{kind}' in region '{}' in project '{}' does not exist.",
            name.name,
            name.region().unwrap_or_default(),
            name.project
        ),
    )
}

fn locations(call: &Call<'_>, project: &str) -> Result<Value, ApiError> {
    let state: &State = &call.api.world().state();
    let project = call.project(state, project)?;
    let items = crate::compute::catalog::REGIONS.iter().map(|region| {
        let region = region.name;
        let location = json!({
            "name": format!("projects/{}/locations/{region}", project.id),
            "locationId": region,
            "displayName": region,
            "labels": { "cloud.googleapis.com/region": region },
        });
        (region.to_string(), location)
    });
    let (locations, next) = call.page(items.collect(), "pageSize", "pageToken")?;
    let mut answer = json!({ "locations": locations });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}
