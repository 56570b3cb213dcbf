//! What a service may ask of Cloud Run that has no counterpart here, refused by the name gcloud has
//! for it.
//!
//! Invariant: nothing is kept that would be silently without effect where somebody relies on it.

use serde_json::Value;

use crate::error::{ApiError, Reason};

/// Annotations without a counterpart: where they stand, their name, what they are, gcloud's flag.
const ANNOTATIONS: &[(&str, &str, &str, &str)] = &[
    (
        SERVICE,
        "run.googleapis.com/binary-authorization",
        "Binary Authorization",
        "--binary-authorization",
    ),
    (SERVICE, "run.googleapis.com/iap-enabled", "Identity-Aware Proxy", "--iap"),
    (SERVICE, "run.googleapis.com/threat-detection", "threat detection", "--threat-detection"),
    (SERVICE, "run.googleapis.com/regions", "a service in several regions", "--regions"),
    (TEMPLATE, "run.googleapis.com/cloudsql-instances", "Cloud SQL", "--add-cloudsql-instances"),
    (
        TEMPLATE,
        "run.googleapis.com/vpc-access-connector",
        "a VPC Access connector (use --network and --subnet)",
        "--vpc-connector",
    ),
    (TEMPLATE, "run.googleapis.com/encryption-key", "a key of Cloud KMS", "--key"),
    (
        TEMPLATE,
        "run.googleapis.com/post-key-revocation-action-type",
        "a key of Cloud KMS",
        "--post-key-revocation-action-type",
    ),
    (
        TEMPLATE,
        "run.googleapis.com/encryption-key-shutdown-hours",
        "a key of Cloud KMS",
        "--encryption-key-shutdown-hours",
    ),
    (TEMPLATE, "run.googleapis.com/mesh", "Cloud Service Mesh", "--mesh"),
];

const SERVICE: &str = "metadata.annotations";
const TEMPLATE: &str = "spec.template.metadata.annotations";
const GPU_LIMIT: &str = "nvidia.com/gpu";
const GPU_TYPE: &str = "run.googleapis.com/accelerator";

/// Refuses what is not served; `wanted` is the service as version 1 writes it.
pub(crate) fn check(wanted: &Value) -> Result<(), ApiError> {
    for (place, name, what, flag) in ANNOTATIONS {
        let annotations = place.split('.').try_fold(wanted, |value, key| value.get(key));
        let given = annotations.and_then(|annotations| annotations.get(name)?.as_str());
        if given.is_some_and(|text| !matches!(text, "" | "false")) {
            return Err(refused(&format!("{place}[{name}]"), what, flag));
        }
    }
    let spec = wanted.pointer("/spec/template/spec");
    let selector = spec.and_then(|spec| spec.get("nodeSelector")?.get(GPU_TYPE)?.as_str());
    if selector.is_some_and(|text| !text.is_empty()) {
        return Err(refused("spec.template.spec.nodeSelector", "a GPU", "--gpu-type"));
    }
    let containers = spec.and_then(|spec| spec.get("containers")?.as_array());
    for (index, container) in containers.into_iter().flatten().enumerate() {
        let limit = container.pointer("/resources/limits").and_then(|limits| limits.get(GPU_LIMIT));
        if limit.and_then(Value::as_str).is_some_and(|text| !matches!(text, "" | "0")) {
            let field = format!("spec.template.spec.containers[{index}].resources.limits");
            return Err(refused(&format!("{field}[{GPU_LIMIT}]"), "a GPU", "--gpu"));
        }
    }
    Ok(())
}

fn refused(field: &str, what: &str, flag: &str) -> ApiError {
    ApiError::new(Reason::Invalid, format!("{field}: {what} is not served here (gcloud's {flag})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judged(service: Value) -> String {
        check(&service).map_or_else(|error| error.message, |()| "accepted".to_owned())
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_gclouds_name_for_it() {
        let of_template = |name: &str, value: &str| json!({ "spec": { "template": { "metadata": { "annotations": { name: value } } } } });
        for (service, expected) in [
            (json!({}), "accepted"),
            (
                of_template("run.googleapis.com/cloudsql-instances", "p:r:i"),
                "--add-cloudsql-instances",
            ),
            (of_template("run.googleapis.com/cloudsql-instances", ""), "accepted"),
            (of_template("run.googleapis.com/vpc-access-connector", "c"), "--vpc-connector"),
            (of_template("run.googleapis.com/vpc-access-egress", "all-traffic"), "accepted"),
            (
                json!({ "metadata": { "annotations": { "run.googleapis.com/iap-enabled": "true" } } }),
                "--iap",
            ),
            (
                json!({ "metadata": { "annotations": { "run.googleapis.com/iap-enabled": "false" } } }),
                "accepted",
            ),
            (
                json!({ "spec": { "template": { "spec": { "containers": [{ "resources": { "limits": { GPU_LIMIT: "1" } } }] } } } }),
                "containers[0].resources.limits[nvidia.com/gpu]",
            ),
            (
                json!({ "spec": { "template": { "spec": { "nodeSelector": { GPU_TYPE: "nvidia-l4" } } } } }),
                "--gpu-type",
            ),
        ] {
            let judged = judged(service.clone());
            assert!(judged.contains(expected), "{service}: {judged}");
        }
    }
}
