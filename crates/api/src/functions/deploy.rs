//! Deploying and deleting functions, from what is asked for to what is written down at the end.

use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use super::operations::{self, Operation};
use super::{FUNCTIONS_MAX, Place, missing, service, view};
use crate::Api;
use crate::builds::{self, Home, Submission, cloud_build};
use crate::error::{ApiError, Reason};
use crate::http::Principal;
use crate::one_platform::{Call, uuid};
use crate::storage;
use crate::surroundings::utc_timestamp;

/// What is done to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Update,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Update => "update",
        }
    }
}

/// A deployment that was accepted.
struct Deployment {
    api: Api,
    principal: Principal,
    place: Place,
    name: String,
    function: Value,
    operation: Operation,
}

/// Writes a function and its operation down and begins to carry it out.
pub(super) async fn begin(
    call: &Call<'_>,
    place: &Place,
    name: &str,
    verb: Verb,
    mut function: Value,
) -> Result<Value, ApiError> {
    let target = format!("{}/functions/{name}", place.location());
    function["name"] = target.as_str().into();
    check(&function)?;
    let builds = builds::of(call.api)?;
    let operation = operations::named(place, &format!("operation-{}", uuid(call.api)));
    let (key, now) = (place.key(name), call.now());
    builds.deploying(&operation.key, true);
    let written = call.api.world().change(|draft| {
        let current = draft.get(&key);
        let mut document = match (verb, current) {
            (Verb::Create, Some(_)) => {
                let message = format!("Resource '{target}' already exists");
                return Err(ApiError::new(Reason::AlreadyExists, message));
            }
            (Verb::Update, None) => return Err(missing(&target)),
            (_, Some(current)) if operations::state_of(call.api, &current).0 == "DEPLOYING" => {
                let message = "An operation on this function is already in progress. Please try \
                               again later.";
                return Err(ApiError::new(Reason::Aborted, message));
            }
            (_, current) => current.unwrap_or_else(|| json!({ "createTime": now })),
        };
        if draft.before().scan(&place.key("")).count() >= FUNCTIONS_MAX {
            let message = format!("Quota 'Functions' exceeded. Limit: {FUNCTIONS_MAX}.");
            return Err(ApiError::new(Reason::QuotaExceeded, message));
        }
        document["wanted"] = function.clone();
        document["state"] = "DEPLOYING".into();
        document["operation"] = operation.key.as_str().into();
        document["updateTime"] = now.as_str().into();
        if let Value::Object(document) = &mut document {
            document.remove("stateMessages");
        }
        draft.put(key.clone(), document);
        operations::start(draft, place, &operation, &target, verb.word(), &now);
        Ok(())
    });
    if let Err(error) = written.await {
        builds.deploying(&operation.key, false);
        return Err(error);
    }
    let deployment = Deployment {
        api: call.api.clone(),
        principal: call.request.principal.clone(),
        place: place.clone(),
        name: name.to_owned(),
        function,
        operation: operation.clone(),
    };
    tokio::spawn(deployment.carry_out());
    operations::get(call, place, &operation.id)
}

/// What a function must have, and what it cannot have here.
fn check(function: &Value) -> Result<(), ApiError> {
    let build = &function["buildConfig"];
    let has = |field: &str| build[field].as_str().is_some_and(|text| !text.is_empty());
    for (field, shown) in
        [("runtime", "build_config.runtime"), ("entryPoint", "build_config.entry_point")]
    {
        if !has(field) {
            return Err(ApiError::new(Reason::Required, format!("{shown}: is required")));
        }
    }
    if build["source"]["storageSource"]["object"].as_str().is_none_or(str::is_empty) {
        let message = "build_config.source.storage_source: a source that was uploaded is required";
        return Err(ApiError::new(Reason::Invalid, message));
    }
    if function["eventTrigger"]["eventType"].as_str().is_some_and(|kind| !kind.is_empty()) {
        let message = "event_trigger: there are no events here; functions are triggered by HTTP.";
        return Err(ApiError::new(Reason::Unimplemented, message));
    }
    if function["serviceConfig"]["vpcConnector"].as_str().is_some_and(|name| !name.is_empty()) {
        let message = "service_config.vpc_connector: there are no connectors here.";
        return Err(ApiError::new(Reason::Unimplemented, message));
    }
    Ok(())
}

impl Deployment {
    async fn carry_out(self) {
        let outcome = self.build_and_roll_out().await;
        self.write_down(outcome).await;
        if let Ok(builds) = builds::of(&self.api) {
            builds.deploying(&self.operation.key, false);
        }
    }

    /// The address of the service, or why there is none.
    async fn build_and_roll_out(&self) -> Result<String, String> {
        let image = self.build().await?;
        let set_service = |document: &mut Value| {
            operations::set_stage(document, "BUILD", "COMPLETE");
            operations::set_stage(document, "SERVICE", "IN_PROGRESS");
        };
        operations::note(&self.api, &self.operation, set_service).await;
        let name = self.name.replace('_', "-");
        let wanted = service::of(&self.function, &name, &image);
        service::roll_out(&self.api, &self.principal, &self.place, &name, &wanted).await
    }

    /// The image of the function, by its digest.
    async fn build(&self) -> Result<String, String> {
        let home = Home { project: self.place.project.clone(), region: self.place.region.clone() };
        let config = &self.function["buildConfig"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let source = &config["source"]["storageSource"];
        let variables = config["environmentVariables"].as_object().into_iter().flatten();
        let environment: BTreeMap<String, String> =
            variables.map(|(name, value)| (name.clone(), text(value))).collect();
        let image = image_of(&self.place, &self.name);
        let submission = Submission {
            home: home.clone(),
            bucket: text(&source["bucket"]),
            object: text(&source["object"]),
            image: image.clone(),
            has_dockerfile: false,
            runtime: Some(text(&config["runtime"])),
            function: Some(text(&config["entryPoint"])),
            environment,
            tags: vec![format!("function_{}", self.name)],
        };
        let submitted = builds::submit(&self.api, submission).await;
        let id = submitted.map_err(|error| error.message)?;
        let build = builds::shown(&self.api, &self.api.world().state(), &home, &id);
        let build = build.unwrap_or_default();
        let note_build = |document: &mut Value| {
            operations::set_stage(document, "BUILD", "IN_PROGRESS");
            if let Some(stage) = document["stages"].get_mut(0) {
                stage["resource"] = build["name"].clone();
                stage["resourceUri"] = build["logUrl"].clone();
            }
        };
        operations::note(&self.api, &self.operation, note_build).await;
        self.note_build(&text(&build["name"])).await;
        match builds::finished(&self.api, &home, &id).await {
            Ok(digest) => Ok(format!("{image}@{digest}")),
            Err(_) => {
                let build = builds::shown(&self.api, &self.api.world().state(), &home, &id);
                Err(cloud_build::failure(&build.unwrap_or_default()))
            }
        }
    }

    async fn note_build(&self, build: &str) {
        self.change(|document| document["build"] = build.into()).await;
    }

    /// Changes the function's document, if it is still there.
    async fn change(&self, change: impl FnOnce(&mut Value)) {
        let key = self.place.key(&self.name);
        let changed = self.api.world().change(|draft| {
            if let Some(mut document) = draft.get(&key) {
                change(&mut document);
                draft.put(key.clone(), document);
            }
            Ok(())
        });
        if let Err(error) = changed.await {
            tracing::error!(%error, function = key, "a function could not be written");
        }
    }

    async fn write_down(&self, outcome: Result<String, String>) {
        let now = utc_timestamp(self.api.surroundings().now());
        let failure = outcome.as_ref().err().cloned();
        self.change(|document| match &outcome {
            Ok(uri) => {
                document["state"] = "ACTIVE".into();
                document["uri"] = uri.as_str().into();
                document["updateTime"] = now.as_str().into();
            }
            Err(message) => {
                // What served before goes on serving.
                let serves = document.get("uri").is_some();
                document["state"] = if serves { "ACTIVE" } else { "FAILED" }.into();
                document["stateMessages"] = json!([{
                    "severity": "ERROR",
                    "type": "DeploymentFailed",
                    "message": message,
                }]);
            }
        })
        .await;
        let close = |document: &mut Value| {
            document["done"] = true.into();
            document["endTime"] = now.as_str().into();
            match failure {
                Some(message) => document["failure"] = message.into(),
                None => operations::set_stage(document, "SERVICE", "COMPLETE"),
            }
        };
        operations::note(&self.api, &self.operation, close).await;
    }
}

/// The name of a function's image, without a tag.
fn image_of(place: &Place, name: &str) -> String {
    let Place { project, region } = place;
    format!("{region}-docker.pkg.dev/{}/gcf-artifacts/{}", project.id, name.replace('_', "--"))
}

/// Deletes a function, its service, its image's name and its source.
pub(super) async fn delete(call: &Call<'_>, place: &Place, name: &str) -> Result<Value, ApiError> {
    let target = format!("{}/functions/{name}", place.location());
    let key = place.key(name);
    let function = view::document(&call.api.world().state(), &key)?;
    if operations::state_of(call.api, &function).0 == "DEPLOYING" {
        let message =
            "An operation on this function is already in progress. Please try again later.";
        return Err(ApiError::new(Reason::Aborted, message));
    }
    let service = format!("/v1/{}/services/{}", place.location(), view::service_of(&function));
    let deleted = service::ask(
        call.api,
        &call.request.principal,
        Method::DELETE,
        service,
        bytes::Bytes::new(),
    );
    match deleted.await {
        Err(error) if error.reason != Reason::NotFound => return Err(error),
        _ => {}
    }
    let builds = builds::of(call.api)?;
    builds.builder().forget(&format!("{}:latest", image_of(place, name)));
    let source = &function["wanted"]["buildConfig"]["source"]["storageSource"];
    if let (Some(bucket), Some(object)) = (source["bucket"].as_str(), source["object"].as_str())
        && bucket.starts_with("gcf-v2-uploads-")
    {
        storage::forget(call.api, bucket, object).await;
    }
    let operation = operations::named(place, &format!("operation-{}", uuid(call.api)));
    let now = call.now();
    let written = call.api.world().change(|draft| {
        draft.delete(key.clone());
        operations::start(draft, place, &operation, &target, "delete", &now);
        if let Some(mut document) = draft.get(&operation.key) {
            operations::set_stage(&mut document, "SERVICE", "COMPLETE");
            document["done"] = true.into();
            document["endTime"] = now.as_str().into();
            draft.put(operation.key.clone(), document);
        }
        Ok(())
    });
    written.await?;
    operations::get(call, place, &operation.id)
}
