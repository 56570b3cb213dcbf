//! Artifact Registry: the repositories that deployments from source put their images in.
//!
//! A repository is a name; images are in the image store of this machine, whoever asks for them.

use serde_json::{Value, json};
use wire::artifact_registry as messages;

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{Call, done, respond};

/// Repositories of one project and region.
pub(crate) const REPOSITORIES_MAX: usize = 1000;
const KIND: &str = "google.devtools.artifactregistry.v1.Repository";
/// Every operation of this API is done when it is answered.
const OPERATION: &str = "done";

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let result = match Call::read(api, request) {
        Ok(call) => answer(&call).await,
        Err(error) => Err(error),
    };
    respond(request, result)
}

async fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    let segments = call.segments();
    let ["v1", "projects", project, "locations", region, ref rest @ ..] = segments[..] else {
        return Err(call.unserved());
    };
    let project = call.project(&call.api.world().state(), project)?;
    let location = format!("projects/{}/locations/{region}", project.id);
    let repositories = format!("artifactregistry/{location}/repositories/");
    match (call.action(), rest) {
        (("GET", ""), ["repositories"]) => list(call, &repositories),
        (("POST", ""), ["repositories"]) => create(call, &location, &repositories).await,
        (("GET", ""), ["repositories", name]) => get(call, &format!("{repositories}{name}")),
        (("DELETE", ""), ["repositories", name]) => {
            let key = format!("{repositories}{name}");
            get(call, &key)?;
            call.api
                .world()
                .change(|draft| {
                    draft.delete(key.clone());
                    Ok(())
                })
                .await?;
            let name = format!("{location}/operations/{OPERATION}");
            Ok(done(&name, "google.protobuf.Empty", json!({})))
        }
        (("GET", ""), ["operations", OPERATION]) => {
            let name = format!("{location}/operations/{OPERATION}");
            Ok(done(&name, "google.protobuf.Empty", json!({})))
        }
        (("GET", ""), ["operations", id]) => {
            let name = format!("{location}/operations/{id}");
            let repository = id.strip_prefix("create-").unwrap_or_default();
            Ok(done(&name, KIND, get(call, &format!("{repositories}{repository}"))?))
        }
        _ => Err(call.unserved()),
    }
}

fn get(call: &Call<'_>, key: &str) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    state.get(key).ok_or_else(|| {
        let name = key.trim_start_matches("artifactregistry/");
        ApiError::new(Reason::NotFound, format!("Repository \"{name}\" not found"))
    })
}

fn list(call: &Call<'_>, prefix: &str) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let items = state.scan(prefix);
    let items = items.map(|(key, kept)| (key.to_string(), kept.value())).collect();
    let (repositories, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "repositories": repositories });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

async fn create(call: &Call<'_>, location: &str, prefix: &str) -> Result<Value, ApiError> {
    let mut body = call.required_body::<messages::Repository>("repository")?;
    let id = call.query.get("repositoryId").unwrap_or_default().to_owned();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if id.is_empty() || id.len() > 63 || !id.bytes().all(plain) {
        let message = format!("Invalid value for field 'repository_id': '{id}'.");
        return Err(ApiError::new(Reason::Invalid, message));
    }
    if body["format"].as_str().is_some_and(|format| format != "DOCKER") {
        let message = "Repositories here hold container images: format must be DOCKER.";
        return Err(ApiError::new(Reason::Unimplemented, message));
    }
    let key = format!("{prefix}{id}");
    body["name"] = format!("{location}/repositories/{id}").into();
    body["createTime"] = call.now().into();
    body["updateTime"] = call.now().into();
    let made = call.api.world().change(|draft| {
        if draft.contains(&key) {
            let message = "the repository already exists";
            return Err(ApiError::new(Reason::AlreadyExists, message));
        }
        if draft.before().scan(prefix).count() >= REPOSITORIES_MAX {
            let message = format!("Quota 'Repositories' exceeded. Limit: {REPOSITORIES_MAX}.");
            return Err(ApiError::new(Reason::QuotaExceeded, message));
        }
        draft.put(key.clone(), body.clone());
        Ok(())
    });
    made.await?;
    Ok(done(&format!("{location}/operations/create-{id}"), KIND, body))
}
