//! Containers, probes and volumes, from one version to the other.
//!
//! What both versions write alike is passed through; what differs has its line here, both ways.

use serde_json::{Map, Value, json};

use super::invalid;
use crate::error::ApiError;

type Object = Map<String, Value>;

/// What version 2 has per container and version 1 per template.
#[derive(Clone, Debug, Default)]
pub(super) struct OfTemplate {
    pub(super) cpu_idle: bool,
    pub(super) startup_cpu_boost: bool,
    pub(super) dependencies: Map<String, Value>,
}

/// Fields of a container that both versions write alike.
const ALIKE: &[&str] =
    &["name", "image", "command", "args", "workingDir", "volumeMounts", "readinessProbe"];

/// A container as version 2 shows it.
pub(super) fn shown(container: &Value, of_template: &OfTemplate) -> Value {
    let mut shown = copied(container, ALIKE);
    if shown.get("name") == Some(&"".into()) {
        shown.remove("name");
    }
    if let Some(env) = container.get("env").and_then(Value::as_array) {
        shown.insert("env".into(), env.iter().map(variable_shown).collect());
    }
    if let Some(ports) = container.get("ports").and_then(Value::as_array) {
        let port = |port: &Value| Value::Object(copied(port, &["name", "containerPort"]));
        shown.insert("ports".into(), ports.iter().map(port).collect());
    }
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        if let Some(given) = container.get(probe) {
            let mut given = given.clone();
            if let Some(probe) = given.as_object_mut() {
                probe.remove("successThreshold");
            }
            shown.insert(probe.into(), given);
        }
    }
    let mut resources = container.get("resources").cloned().unwrap_or_else(|| json!({}));
    if let Some(resources) = resources.as_object_mut() {
        resources.remove("requests");
        if of_template.cpu_idle {
            resources.insert("cpuIdle".into(), true.into());
        }
        if of_template.startup_cpu_boost {
            resources.insert("startupCpuBoost".into(), true.into());
        }
    }
    shown.insert("resources".into(), resources);
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
    if let Some(names) = of_template.dependencies.get(name) {
        shown.insert("dependsOn".into(), names.clone());
    }
    Value::Object(shown)
}

/// A container as version 1 writes it; what version 1 has in the template goes into `of_template`.
pub(super) fn wanted(
    project: &str,
    field: &str,
    container: &Value,
    of_template: &mut OfTemplate,
) -> Result<Value, ApiError> {
    for unserved in ["sourceCode", "sandboxLauncher", "buildConfig", "baseImageUri"] {
        if container.get(unserved).is_some_and(is_something) {
            return Err(invalid(format!("{field}.{unserved}"), "is not served here"));
        }
    }
    let mut wanted = copied(container, ALIKE);
    for key in ["ports", "startupProbe", "livenessProbe"] {
        if let Some(value) = container.get(key) {
            wanted.insert(key.into(), value.clone());
        }
    }
    if let Some(env) = container.get("env").and_then(Value::as_array) {
        let variables = env.iter().map(|variable| variable_wanted(project, variable));
        wanted.insert("env".into(), variables.collect());
    }
    if let Some(resources) = container.get("resources") {
        let flag = |name: &str| resources.get(name).and_then(Value::as_bool).unwrap_or(false);
        of_template.cpu_idle &= flag("cpuIdle");
        of_template.startup_cpu_boost |= flag("startupCpuBoost");
        if let Some(limits) = resources.get("limits") {
            wanted.insert("resources".into(), json!({ "limits": limits }));
        }
    }
    if let Some(names) = container.get("dependsOn").filter(|names| is_something(names)) {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        of_template.dependencies.insert(name.to_owned(), names.clone());
    }
    Ok(Value::Object(wanted))
}

fn variable_shown(variable: &Value) -> Value {
    let mut shown = copied(variable, &["name", "value"]);
    if let Some(secret) = variable.pointer("/valueFrom/secretKeyRef") {
        let reference = json!({ "secret": secret["name"], "version": secret["key"] });
        shown.insert("valueSource".into(), json!({ "secretKeyRef": reference }));
    }
    Value::Object(shown)
}

fn variable_wanted(project: &str, variable: &Value) -> Value {
    let mut wanted = copied(variable, &["name", "value"]);
    if let Some(secret) = variable.pointer("/valueSource/secretKeyRef") {
        let version = secret.get("version").cloned().unwrap_or_else(|| "latest".into());
        let name = secret.get("secret").and_then(Value::as_str).unwrap_or_default();
        let reference = json!({ "name": secret_wanted(project, name), "key": version });
        wanted.insert("valueFrom".into(), json!({ "secretKeyRef": reference }));
    }
    Value::Object(wanted)
}

/// A volume as version 2 shows it.
pub(super) fn volume_shown(volume: &Value) -> Value {
    let mut shown = copied(volume, &["name", "nfs"]);
    if let Some(empty) = volume.get("emptyDir") {
        let mut empty = empty.clone();
        if let Some(medium) = empty.get("medium").and_then(Value::as_str) {
            empty["medium"] = medium.to_ascii_uppercase().into();
        }
        shown.insert("emptyDir".into(), empty);
    }
    if let Some(secret) = volume.get("secret") {
        let mut of_secret = copied(secret, &["defaultMode"]);
        of_secret.insert("secret".into(), secret["secretName"].clone());
        if let Some(items) = secret.get("items").and_then(Value::as_array) {
            of_secret.insert(
                "items".into(),
                items.iter().map(|i| renamed(i, "key", "version")).collect(),
            );
        }
        shown.insert("secret".into(), of_secret.into());
    }
    if let Some(csi) = volume.get("csi") {
        let mut gcs = copied(csi, &["readOnly"]);
        if let Some(bucket) = csi.pointer("/volumeAttributes/bucketName") {
            gcs.insert("bucket".into(), bucket.clone());
        }
        shown.insert("gcs".into(), gcs.into());
    }
    Value::Object(shown)
}

/// A volume as version 1 writes it.
pub(super) fn volume_wanted(project: &str, field: &str, volume: &Value) -> Result<Value, ApiError> {
    if volume.get("cloudSqlInstance").is_some_and(is_something) {
        return Err(invalid(format!("{field}.cloudSqlInstance"), "is not served here"));
    }
    let mut wanted = copied(volume, &["name", "nfs"]);
    if let Some(empty) = volume.get("emptyDir") {
        let mut empty = empty.clone();
        match empty.get("medium").and_then(Value::as_str) {
            Some("MEMORY") => empty["medium"] = "Memory".into(),
            Some("DISK") => empty["medium"] = "Disk".into(),
            _ => {}
        }
        wanted.insert("emptyDir".into(), empty);
    }
    if let Some(secret) = volume.get("secret") {
        let mut of_secret = copied(secret, &["defaultMode"]);
        let name = secret.get("secret").and_then(Value::as_str).unwrap_or_default();
        of_secret.insert("secretName".into(), secret_wanted(project, name).into());
        if let Some(items) = secret.get("items").and_then(Value::as_array) {
            of_secret.insert(
                "items".into(),
                items.iter().map(|i| renamed(i, "version", "key")).collect(),
            );
        }
        wanted.insert("secret".into(), of_secret.into());
    }
    if let Some(gcs) = volume.get("gcs") {
        let mut csi = copied(gcs, &["readOnly"]);
        csi.insert("driver".into(), "gcsfuse.run.googleapis.com".into());
        csi.insert("volumeAttributes".into(), json!({ "bucketName": gcs["bucket"] }));
        wanted.insert("csi".into(), csi.into());
    }
    Ok(Value::Object(wanted))
}

fn renamed(item: &Value, from: &str, to: &str) -> Value {
    let mut item = item.as_object().cloned().unwrap_or_default();
    if let Some(value) = item.remove(from) {
        item.insert(to.to_owned(), value);
    }
    Value::Object(item)
}

/// A secret of the own project goes by its name, one of another by its path.
fn secret_wanted<'a>(project: &str, secret: &'a str) -> &'a str {
    let below = secret.strip_prefix("projects/").and_then(|rest| rest.strip_prefix(project));
    below.and_then(|rest| rest.strip_prefix("/secrets/")).unwrap_or(secret)
}

/// Those fields of an object.
pub(super) fn copied(value: &Value, fields: &[&str]) -> Object {
    let given = |field: &&str| Some(((*field).to_owned(), value.get(field)?.clone()));
    fields.iter().filter_map(given).collect()
}

/// Whether a value says anything: not null, not false, not empty.
pub(super) fn is_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_another_project_keeps_its_path() {
        for (given, expected) in [
            ("s", "s"),
            ("projects/p/secrets/s", "s"),
            ("projects/p2/secrets/s", "projects/p2/secrets/s"),
            ("projects/7/secrets/s", "projects/7/secrets/s"),
        ] {
            assert_eq!(secret_wanted("p", given), expected, "{given}");
        }
    }
}
