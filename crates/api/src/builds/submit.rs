//! Cloud Run's `builds:submit`, which `gcloud run deploy --source` calls.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use wire::run_v2 as messages;

use super::{Home, Submission};
use crate::error::{ApiError, Reason};
use crate::one_platform::{Call, ProjectKey};

/// Begins a build and answers with the operation of Cloud Build that reports it.
pub(crate) async fn answer(
    call: &Call<'_>,
    project: &ProjectKey,
    region: &str,
) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::SubmitBuildRequest>("")?;
    let required = |pointer: &str, field: &str| {
        let text = body.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.map(str::to_owned)
            .ok_or_else(|| ApiError::new(Reason::Required, format!("{field}: is required")))
    };
    for field in ["workerPool", "machineType"] {
        if body[field].as_str().is_some_and(|text| !text.is_empty()) {
            let message = format!("{field}: everything is built on this machine.");
            return Err(ApiError::new(Reason::Invalid, message));
        }
    }
    let buildpack = &body["buildpackBuild"];
    let text =
        |field: &str| buildpack[field].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let variables = buildpack["environmentVariables"].as_object().into_iter().flatten();
    let environment: BTreeMap<String, String> = variables
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    let base = text("baseImage");
    let home = Home { project: project.clone(), region: region.to_owned() };
    let tags = body["tags"].as_array().into_iter().flatten();
    let submission = Submission {
        home: home.clone(),
        bucket: required("/storageSource/bucket", "storage_source.bucket")?,
        object: required("/storageSource/object", "storage_source.object")?,
        image: bare(&required("/imageUri", "image_uri")?),
        has_dockerfile: body.get("dockerBuild").is_some_and(Value::is_object),
        // The general base image of Google's buildpacks names no runtime.
        runtime: base.clone().filter(|image| !image.contains("gcr.io/buildpacks/")),
        function: text("functionTarget"),
        environment,
        tags: tags.filter_map(Value::as_str).map(str::to_owned).collect(),
    };
    let id = super::submit(call.api, submission).await?;
    let build = super::shown(call.api, &call.api.world().state(), &home, &id)?;
    let mut answer = json!({ "buildOperation": super::cloud_build::operation(build) });
    if let Some(base) = base {
        answer["baseImageUri"] = base.into();
    }
    Ok(answer)
}

/// An image's name without tag and digest.
fn bare(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    let path_at = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[path_at..].find(':') {
        Some(colon) => name[..path_at + colon].to_owned(),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_without_its_tag() {
        for (image, name) in [
            ("us-docker.pkg.dev/p/r/app:v1", "us-docker.pkg.dev/p/r/app"),
            ("localhost:5000/app", "localhost:5000/app"),
            ("localhost:5000/app:v1@sha256:0", "localhost:5000/app"),
        ] {
            assert_eq!(bare(image), name);
        }
    }
}
