//! The Cloud Run service of a function: declared, waited for and deleted by way of Cloud Run itself.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::Place;
use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Principal, Request};

/// How long a service may take until it is ready, startup probe included.
const READY_WITHIN: Duration = Duration::from_secs(300);
/// Memory of a function that does not say, and the least processor Google gives with each amount.
const MEMORY_DEFAULT: &str = "256Mi";
const PROCESSORS: [(u64, &str); 7] = [
    (128, "83m"),
    (256, "167m"),
    (512, "333m"),
    (1024, "583m"),
    (2048, "1"),
    (8192, "2"),
    (16384, "4"),
];

/// Asks Cloud Run in somebody's name; its refusal is ours.
pub(super) async fn ask(
    api: &Api,
    principal: &Principal,
    method: Method,
    path: String,
    body: Bytes,
) -> Result<Value, ApiError> {
    let request = Request {
        service: "run".to_owned(),
        host_region: None,
        method,
        path,
        query: String::new(),
        headers: HeaderMap::new(),
        body,
        principal: principal.clone(),
    };
    let response = crate::run::handle(api, &request).await;
    let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
    if response.status.is_success() {
        return Ok(answer);
    }
    let reason = match response.status {
        StatusCode::NOT_FOUND => Reason::NotFound,
        StatusCode::FORBIDDEN => Reason::Forbidden,
        StatusCode::CONFLICT => Reason::Aborted,
        StatusCode::INTERNAL_SERVER_ERROR => Reason::Internal,
        _ => Reason::Invalid,
    };
    let message = answer["error"]["message"].as_str().unwrap_or("Cloud Run refused.");
    Err(ApiError::new(reason, message))
}

/// Declares the service and waits until it serves; its address.
pub(super) async fn roll_out(
    api: &Api,
    principal: &Principal,
    place: &Place,
    name: &str,
    service: &Value,
) -> Result<String, String> {
    let services = format!("/v1/{}/services", place.location());
    let one = format!("{services}/{name}");
    let told = |error: ApiError| error.message;
    let exists = ask(api, principal, Method::GET, one.clone(), Bytes::new()).await.is_ok();
    let body = Bytes::from(service.to_string());
    let declared = match exists {
        true => ask(api, principal, Method::PUT, one.clone(), body).await,
        false => ask(api, principal, Method::POST, services, body).await,
    };
    let generation = declared.map_err(told)?["metadata"]["generation"].clone();
    let deadline = Instant::now() + READY_WITHIN;
    let (mut states, mut progress) = (api.world().states(), api.observed().progress());
    loop {
        states.mark_unchanged();
        progress.mark_unchanged();
        let seen = ask(api, principal, Method::GET, one.clone(), Bytes::new()).await;
        let seen = seen.map_err(told)?;
        if seen["status"]["observedGeneration"] == generation {
            let conditions = seen["status"]["conditions"].as_array();
            let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
            match ready.and_then(|ready| ready["status"].as_str()) {
                Some("True") => {
                    return Ok(seen["status"]["url"].as_str().unwrap_or_default().to_owned());
                }
                Some("False") => {
                    let message = ready.and_then(|ready| ready["message"].as_str());
                    return Err(message.unwrap_or("The service failed.").to_owned());
                }
                _ => {}
            }
        }
        let news = async {
            tokio::select! {
                news = states.changed() => news.is_ok(),
                news = progress.changed() => news.is_ok(),
            }
        };
        if timeout_at(deadline, news).await != Ok(true) {
            return Err("The service was not ready in time.".to_owned());
        }
    }
}

/// The service of a function, as version 1 of Cloud Run writes it.
pub(super) fn of(function: &Value, name: &str, image: &str) -> Value {
    let config = &function["serviceConfig"];
    let text = |field: &str| config[field].as_str().filter(|text| !text.is_empty());
    let memory = text("availableMemory").unwrap_or(MEMORY_DEFAULT);
    let processor = text("availableCpu").unwrap_or_else(|| processor_for(memory));
    let ingress = match text("ingressSettings") {
        Some("ALLOW_INTERNAL_ONLY") => "internal",
        Some("ALLOW_INTERNAL_AND_GCLB") => "internal-and-cloud-load-balancing",
        _ => "all",
    };
    let id = function["name"].as_str().unwrap_or_default().rsplit('/').next();
    let mut labels = function["labels"].as_object().cloned().unwrap_or_default();
    labels.insert("goog-managed-by".to_owned(), "cloudfunctions".into());
    let mut annotations = Map::new();
    for (field, annotation) in [
        ("minInstanceCount", "autoscaling.knative.dev/minScale"),
        ("maxInstanceCount", "autoscaling.knative.dev/maxScale"),
    ] {
        if let Some(count) = config[field].as_u64().filter(|count| *count > 0) {
            annotations.insert(annotation.to_owned(), count.to_string().into());
        }
    }
    annotations.insert("run.googleapis.com/startup-cpu-boost".to_owned(), "true".into());
    let mut template = json!({
        "containerConcurrency": config["maxInstanceRequestConcurrency"].as_u64().unwrap_or(1),
        "timeoutSeconds": config["timeoutSeconds"].as_u64().unwrap_or(60),
        "containers": [{
            "image": image,
            "env": environment(config),
            "ports": [{ "name": "http1", "containerPort": 8080 }],
            "resources": { "limits": { "memory": memory, "cpu": processor } },
        }],
    });
    if let Some(account) = text("serviceAccountEmail") {
        template["serviceAccountName"] = account.into();
    }
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {
                "cloudfunctions.googleapis.com/function-id": id,
                "run.googleapis.com/ingress": ingress,
            },
        },
        "spec": {
            "template": { "metadata": { "annotations": annotations }, "spec": template },
            "traffic": [{ "latestRevision": true, "percent": 100 }],
        },
    })
}

/// The user's variables, secrets among them.
fn environment(config: &Value) -> Value {
    let variables = config["environmentVariables"].as_object().into_iter().flatten();
    let plain = variables.map(|(name, value)| json!({ "name": name, "value": value }));
    let secrets = config["secretEnvironmentVariables"].as_array().into_iter().flatten();
    let secrets = secrets.map(|secret| {
        let version = secret["version"].as_str().unwrap_or("latest");
        json!({
            "name": secret["key"],
            "valueFrom": { "secretKeyRef": { "name": secret["secret"], "key": version } },
        })
    });
    plain.chain(secrets).collect()
}

/// The least processor Google gives with this much memory.
fn processor_for(memory: &str) -> &'static str {
    let end = memory.find(|c: char| !c.is_ascii_digit()).unwrap_or(memory.len());
    let number: u64 = memory[..end].parse().unwrap_or(256);
    let mebibytes = match &memory[end..] {
        "G" | "Gi" => number.saturating_mul(1024),
        "k" | "Ki" => number / 1024,
        "" => number / 1024 / 1024,
        _ => number,
    };
    let found = PROCESSORS.iter().find(|(most, _)| mebibytes <= *most);
    found.map_or("8", |(_, processor)| processor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_brings_its_processor() {
        for (memory, processor) in
            [("256M", "167m"), ("256Mi", "167m"), ("1Gi", "583m"), ("4Gi", "2"), ("32Gi", "8")]
        {
            assert_eq!(processor_for(memory), processor, "{memory}");
        }
    }

    #[test]
    fn settings_of_a_function_become_its_services() {
        let function = json!({
            "name": "projects/p/locations/r/functions/my_f",
            "serviceConfig": {
                "availableMemory": "512Mi",
                "timeoutSeconds": 90,
                "maxInstanceCount": 3,
                "ingressSettings": "ALLOW_INTERNAL_ONLY",
                "environmentVariables": { "A": "b" },
                "secretEnvironmentVariables": [{ "key": "K", "secret": "s", "version": "2" }],
            },
        });
        let service = of(&function, "my-f", "image@sha256:0");
        let template = &service["spec"]["template"];
        assert_eq!(service["metadata"]["annotations"]["run.googleapis.com/ingress"], "internal");
        assert_eq!(template["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"], "3");
        assert_eq!(template["spec"]["timeoutSeconds"], 90);
        assert_eq!(
            template["spec"]["containers"][0]["env"],
            json!([
                { "name": "A", "value": "b" },
                { "name": "K", "valueFrom": { "secretKeyRef": { "name": "s", "key": "2" } } },
            ])
        );
    }
}
