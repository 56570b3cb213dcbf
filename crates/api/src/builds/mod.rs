//! Builds: from a source that was uploaded to an image, as Cloud Build's resources tell it.
//!
//! Who builds is behind the [`Builder`] trait; here a build is a document that is written when it
//! begins and when it ends, with its log beside it as an object of storage.
//!
//! Invariant: a build that is told to be under way is under way in this process; one that a restart
//! interrupted is told as failed.

pub(crate) mod cloud_build;
mod registry;
pub(crate) mod submit;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::Api;
use crate::door::BoxFuture;
use crate::error::{ApiError, Reason};
use crate::one_platform::ProjectKey;
use crate::storage;
use crate::world::State;

pub use registry::Builds;

/// Builds remembered of one project and region; beyond that the oldest are forgotten.
pub const BUILDS_MAX: usize = 200;

/// Who builds images: the binary joins the builder.
pub trait Builder: Send + Sync + fmt::Debug {
    /// The runtimes that can be built for, the preferred first.
    fn runtimes(&self) -> BoxFuture<'_, Vec<Offer>>;

    /// Starts a build, which goes on whether or not anybody waits for it.
    fn start(&self, order: BuildOrder) -> Arc<dyn UnderWay>;

    /// Forgets the name of an image that was built.
    fn forget(&self, reference: &str);
}

/// A runtime that can be built for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// `nodejs22`.
    pub name: String,
    /// `Node.js 22`.
    pub title: String,
}

/// What is to be built.
#[derive(Clone, Debug, Default)]
pub struct BuildOrder {
    /// The uploaded archive on this machine.
    pub source: PathBuf,
    /// The name the image gets, with a tag.
    pub reference: String,
    /// Built from the source's Dockerfile rather than by the buildpack's contract.
    pub has_dockerfile: bool,
    /// A runtime or a base image; found out if absent.
    pub runtime: Option<String>,
    /// The function to serve.
    pub function: Option<String>,
    /// The user's own variables of the build.
    pub environment: BTreeMap<String, String>,
}

/// A build that was started.
pub trait UnderWay: Send + Sync + fmt::Debug {
    /// What it has said so far.
    fn log(&self) -> String;

    /// Resolves when it has ended: with an image or a reason.
    fn finished(&self) -> BoxFuture<'_, Result<Finished, String>>;
}

/// An image that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The digest of its manifest.
    pub digest: String,
}

/// Where a build is told of: a project and a region.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) project: ProjectKey,
    pub(crate) region: String,
}

/// What is to be built and told of.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    pub(crate) home: Home,
    /// Bucket and object of the source.
    pub(crate) bucket: String,
    pub(crate) object: String,
    /// The image's name without tag or digest.
    pub(crate) image: String,
    pub(crate) has_dockerfile: bool,
    pub(crate) runtime: Option<String>,
    pub(crate) function: Option<String>,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) tags: Vec<String>,
}

impl Home {
    fn prefix(&self) -> String {
        format!("cloudbuild/projects/{}/locations/{}/builds/", self.project.id, self.region)
    }

    pub(crate) fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix())
    }

    /// The bucket with the logs of builds.
    pub(crate) fn log_bucket(&self) -> String {
        format!("{}-{}-cloudbuild-logs", self.project.number, self.region)
    }
}

/// Builds of this server, if it has any.
pub(crate) fn of(api: &Api) -> Result<&Arc<Builds>, ApiError> {
    let builds = api.platform().and_then(|platform| platform.builds.as_ref());
    builds.ok_or_else(|| {
        ApiError::new(Reason::Unimplemented, "This server builds nothing: deploy an image.")
    })
}

/// Begins a build; answers with its id once it is on disk. Its end is written by itself.
pub(crate) async fn submit(api: &Api, wanted: Submission) -> Result<String, ApiError> {
    let builds = of(api)?.clone();
    let state = api.world().state();
    let source = storage::file_of(api, &state, &wanted.bucket, &wanted.object)?;
    let id = crate::one_platform::uuid(api);
    let document = begun(api, &wanted, &id);
    let key = wanted.home.key(&id);
    let forgotten = api.world().change(|draft| {
        let forgotten = oldest_beyond_bound(draft.before(), &wanted.home);
        for key in &forgotten {
            draft.delete(key.clone());
        }
        draft.put(key.clone(), document.clone());
        Ok(forgotten)
    });
    for key in forgotten.await?.value {
        let id = key.rsplit('/').next().unwrap_or_default();
        storage::forget(api, &wanted.home.log_bucket(), &log_object(id)).await;
    }
    let order = BuildOrder {
        source,
        reference: format!("{}:latest", wanted.image),
        has_dockerfile: wanted.has_dockerfile,
        runtime: wanted.runtime.clone(),
        function: wanted.function.clone(),
        environment: wanted.environment.clone(),
    };
    let under_way = builds.start(&id, order);
    tokio::spawn(settle(api.clone(), wanted, id.clone(), under_way));
    Ok(id)
}

/// `log-ID.txt`, where gcloud looks for the log.
pub(crate) fn log_object(id: &str) -> String {
    format!("log-{id}.txt")
}

fn oldest_beyond_bound(state: &State, home: &Home) -> Vec<String> {
    let mut known: Vec<_> = state
        .scan(&home.prefix())
        .filter(|(_, kept)| kept.value()["status"] != "WORKING")
        .map(|(key, kept)| (kept.revision, key.to_string()))
        .collect();
    known.sort();
    let beyond = (known.len() + 1).saturating_sub(BUILDS_MAX);
    known.into_iter().take(beyond).map(|(_, key)| key).collect()
}

fn begun(api: &Api, wanted: &Submission, id: &str) -> Value {
    let Home { project, region } = &wanted.home;
    let now = crate::surroundings::utc_timestamp(api.surroundings().now());
    json!({
        "id": id,
        "name": format!("projects/{}/locations/{region}/builds/{id}", project.id),
        "projectId": project.id.as_str(),
        "status": "WORKING",
        "createTime": now,
        "startTime": now,
        "timeout": "600s",
        "images": [wanted.image],
        "source": { "storageSource": { "bucket": wanted.bucket, "object": wanted.object } },
        "logsBucket": format!("gs://{}", wanted.home.log_bucket()),
        "logUrl": format!(
            "https://console.cloud.google.com/cloud-build/builds;region={region}/{id}?project={}",
            project.number
        ),
        "options": { "logging": "GCS_ONLY" },
        "tags": wanted.tags,
    })
}

/// Waits for the end of a build and writes it down.
async fn settle(api: Api, wanted: Submission, id: String, under_way: Arc<dyn UnderWay>) {
    let outcome = under_way.finished().await;
    let bucket = wanted.home.log_bucket();
    let log = under_way.log().into_bytes();
    let object = log_object(&id);
    let kept = storage::keep(&api, &wanted.home, &bucket, &object, "text/plain", log);
    if let Err(error) = kept.await {
        tracing::warn!(%error, build = id, "the log of a build is lost");
    }
    let now = crate::surroundings::utc_timestamp(api.surroundings().now());
    let key = wanted.home.key(&id);
    let written = api.world().change(|draft| {
        let Some(mut document) = draft.get(&key) else { return Ok(()) };
        document["finishTime"] = now.into();
        match outcome {
            Ok(finished) => {
                document["status"] = "SUCCESS".into();
                let image = json!({ "name": wanted.image, "digest": finished.digest });
                document["results"] = json!({ "images": [image] });
            }
            Err(reason) => {
                document["status"] = "FAILURE".into();
                document["statusDetail"] = reason.as_str().into();
                document["failureInfo"] = json!({ "type": "USER_BUILD_STEP", "detail": reason });
            }
        }
        draft.put(key.clone(), document);
        Ok(())
    });
    if let Err(error) = written.await {
        tracing::error!(%error, build = id, "the end of a build could not be written down");
    }
    if let Ok(builds) = of(&api) {
        builds.ended(&id);
    }
}

/// A build as a client sees it now.
pub(crate) fn shown(api: &Api, state: &State, home: &Home, id: &str) -> Result<Value, ApiError> {
    let mut document = state.get(&home.key(id)).ok_or_else(|| {
        ApiError::new(Reason::NotFound, format!("Requested entity was not found: build '{id}'."))
    })?;
    if document["status"] == "WORKING" && !of(api).is_ok_and(|builds| builds.is_under_way(id)) {
        document["status"] = "INTERNAL_ERROR".into();
        document["statusDetail"] = "The server was restarted while this was built.".into();
    }
    Ok(document)
}

/// Waits for the end of a build: the digest of its image, or why there is none.
pub(crate) async fn finished(api: &Api, home: &Home, id: &str) -> Result<String, String> {
    let mut states = api.world().states();
    loop {
        let state = states.borrow_and_update().clone();
        let build = shown(api, &state, home, id).map_err(|error| error.message)?;
        match build["status"].as_str() {
            Some("WORKING") => {}
            Some("SUCCESS") => {
                let digest = build["results"]["images"][0]["digest"].as_str();
                return Ok(digest.unwrap_or_default().to_owned());
            }
            _ => return Err(build["statusDetail"].as_str().unwrap_or_default().to_owned()),
        }
        if states.changed().await.is_err() {
            return Err("The server is going down.".to_owned());
        }
    }
}
