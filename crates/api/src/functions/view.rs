//! A function's document and how a client sees it.
//!
//! The document has the function as its client `wanted` it and beside it what became of it: state,
//! messages, the build, the service. The service itself is looked at when it is shown.

use serde_json::{Map, Value, json};

use super::missing;
use crate::Api;
use crate::error::ApiError;
use crate::world::State;

/// The document at a key.
pub(super) fn document(state: &State, key: &str) -> Result<Value, ApiError> {
    state.get(key).ok_or_else(|| missing(key.trim_start_matches("functions/")))
}

/// The name of a function's service: its own, in the letters a service may have.
pub(super) fn service_of(function: &Value) -> String {
    let name = function["wanted"]["name"].as_str().unwrap_or_default();
    name.rsplit('/').next().unwrap_or_default().replace('_', "-")
}

/// The function as a client sees it now.
pub(super) fn shown(api: &Api, state: &State, key: &str) -> Result<Value, ApiError> {
    let document = document(state, key)?;
    let mut shown = document["wanted"].as_object().cloned().unwrap_or_default();
    for field in ["createTime", "updateTime", "stateMessages"] {
        if let Some(value) = document.get(field) {
            shown.insert(field.to_owned(), value.clone());
        }
    }
    shown.insert("environment".to_owned(), "GEN_2".into());
    let (state_now, message) = super::operations::state_of(api, &document);
    shown.insert("state".to_owned(), state_now.into());
    if let Some(message) = message {
        shown.insert("stateMessages".to_owned(), json!([message]));
    }
    let location: Vec<&str> = key.split('/').collect();
    if let [_, _, project, _, region, _, name] = location[..] {
        let url = format!("https://{region}-{project}.cloudfunctions.net/{name}");
        shown.insert("url".to_owned(), url.into());
    }
    if let Some(build) = document.get("build").and_then(Value::as_str) {
        within(&mut shown, "buildConfig", |config| {
            config.insert("build".to_owned(), build.into());
        });
    }
    add_service(state, &document, key, &mut shown);
    Ok(Value::Object(shown))
}

/// What the service says that the function does not.
fn add_service(state: &State, document: &Value, key: &str, shown: &mut Map<String, Value>) {
    let location = key.trim_start_matches("functions/").split("/functions/").next();
    let name = format!("{}/services/{}", location.unwrap_or_default(), service_of(document));
    let found = model::ResourceName::parse(&name);
    let plan = found.and_then(|found| state.compiled.plan.fleet.service(&found));
    within(shown, "serviceConfig", |config| {
        config.entry("allTrafficOnLatestRevision").or_insert(true.into());
        let Some(plan) = plan else { return };
        config.insert("service".to_owned(), name.into());
        if let Some(uri) = document.get("uri") {
            config.insert("uri".to_owned(), uri.clone());
        }
        if let Some(revision) = &plan.latest_ready {
            config.insert("revision".to_owned(), revision.name.name.as_str().into());
        }
    });
}

/// Changes the message in a field, which is made when it is absent.
fn within(of: &mut Map<String, Value>, field: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let mut message = match of.remove(field) {
        Some(Value::Object(message)) => message,
        _ => Map::new(),
    };
    change(&mut message);
    of.insert(field.to_owned(), message.into());
}

/// A function changed as a mask says; without one, by everything that is given.
pub(super) fn merged(current: &Value, given: &Value, mask: Option<&str>) -> Value {
    let mut merged = current.clone();
    let fields: Vec<String> = match mask {
        Some(mask) => mask.split(',').map(|path| path.trim().to_owned()).collect(),
        None => given.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect(),
    };
    for field in fields {
        let path: Vec<String> = field.split('.').map(camel).collect();
        let value = path.iter().try_fold(given, |at, name| at.get(name)).cloned();
        set(&mut merged, &path, value);
    }
    merged
}

/// Masks may name fields as JSON does or as the protocol's own files do.
fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

fn set(of: &mut Value, path: &[String], value: Option<Value>) {
    let [name, rest @ ..] = path else { return };
    if !of.is_object() {
        *of = json!({});
    }
    let Value::Object(fields) = of else { return };
    match (rest, value) {
        ([], Some(value)) => drop(fields.insert(name.clone(), value)),
        ([], None) => drop(fields.remove(name)),
        (rest, value) => set(fields.entry(name.clone()).or_insert_with(|| json!({})), rest, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_says_what_is_changed() {
        let current = json!({ "name": "f", "serviceConfig": { "timeoutSeconds": 60, "availableMemory": "256M" } });
        let given = json!({ "serviceConfig": { "timeoutSeconds": 90 }, "labels": { "a": "b" } });
        for (mask, expected) in [
            (
                Some("serviceConfig.timeoutSeconds,service_config.available_memory"),
                json!({ "name": "f", "serviceConfig": { "timeoutSeconds": 90 } }),
            ),
            (
                Some("labels"),
                json!({ "name": "f", "labels": { "a": "b" }, "serviceConfig": { "timeoutSeconds": 60, "availableMemory": "256M" } }),
            ),
            (
                None,
                json!({ "name": "f", "labels": { "a": "b" }, "serviceConfig": { "timeoutSeconds": 90 } }),
            ),
        ] {
            assert_eq!(merged(&current, &given, mask), expected);
        }
    }
}
