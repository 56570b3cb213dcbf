//! From what a client wants a service to be, to the documents that say so: the service completed
//! with what the server fills in, and the revision it makes, if it makes one.
//!
//! Pure: time, chance and the caller come in [`Context`]. Invariant: a revision is made exactly
//! when the template differs from the last one, so that traffic and metadata change without one.

use model::run::concurrency_default;
use model::{Kind, ResourceName};
use serde_json::{Map, Value, json};

use super::document::{RevisionDocument, ServiceDocument, annotation, object, text};
use super::names;
use super::quantity::processor_millis;
use crate::error::{ApiError, Reason};

/// Annotations only the server writes; what a client sends for them is its copy of an older answer.
const SERVER_ANNOTATIONS: &[&str] = &[
    names::INGRESS_STATUS,
    names::URLS,
    names::OPERATION_ID,
    names::CREATOR,
    names::LAST_MODIFIER,
];

/// Who changes which project's service, when, and the numbers nobody has had before.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// The service.
    pub(crate) name: ResourceName,
    /// The number of its project.
    pub(crate) project_number: u64,
    /// The e-mail address of the caller.
    pub(crate) caller: String,
    /// The moment, as the API writes it.
    pub(crate) now: String,
    /// The service's id, should it be made.
    pub(crate) service_id: String,
    /// The revision's id, should one be made.
    pub(crate) revision_id: String,
    /// The service's uid, should it be made.
    pub(crate) service_uid: String,
    /// The revision's uid, should one be made.
    pub(crate) revision_uid: String,
    /// The operation that reports the change.
    pub(crate) operation: String,
    /// Chance, for names and versions.
    pub(crate) random: u64,
    /// The traffic in force before the change, as v1 writes it.
    pub(crate) traffic_in_force: Vec<Value>,
    /// Whether a revision is made although the template is the last one.
    pub(crate) forces_revision: bool,
}

/// The documents of a change.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    /// The service as it becomes.
    pub(crate) service: ServiceDocument,
    /// The revision it makes, by its bare name.
    pub(crate) revision: Option<(String, RevisionDocument)>,
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Reason::Invalid, message)
}

/// What becomes of a service whose document is `current`, when a client wants it to be `wanted`.
/// `revision` finds a revision of the region by its bare name.
pub(crate) fn declare(
    context: &Context,
    current: Option<&ServiceDocument>,
    wanted: &Value,
    revision: impl Fn(&str) -> Option<Value>,
) -> Result<Intent, ApiError> {
    check_identity(context, current, wanted)?;
    super::unserved::check(wanted)?;
    let mut template = wanted
        .pointer("/spec/template")
        .filter(|template| template.is_object())
        .cloned()
        .ok_or_else(|| invalid("spec.template: is required"))?;
    complete_template(&mut template, context);
    let traffic = traffic(wanted);
    let spec = json!({ "template": template, "traffic": traffic });

    let last = current.map(|current| &current.resource["spec"]);
    let is_same = |key: &str| last.is_some_and(|last| same(&last[key], &spec[key]));
    let makes_revision = context.forces_revision || !is_same("template");
    let changes_spec = makes_revision || !is_same("traffic");
    let generation = match current {
        None => 1,
        Some(current) => current.generation() + u64::from(changes_spec),
    };
    let metadata = metadata(context, current, wanted, generation);
    let uid = text(&metadata, "/uid").to_owned();
    let revision = match makes_revision {
        true => new_revision(context, &spec["template"], generation, &uid, revision)?,
        false => None,
    };
    let service = ServiceDocument {
        resource: json!({
            "apiVersion": names::API_VERSION,
            "kind": "Service",
            "metadata": metadata,
            "spec": spec,
        }),
        id: current.map_or_else(|| context.service_id.clone(), |current| current.id.clone()),
        updated: context.now.clone(),
        policy: current.and_then(|current| current.policy.clone()),
        project_invokers: current.map(|c| c.project_invokers.clone()).unwrap_or_default(),
        traffic_before: traffic_before(&context.traffic_in_force),
    };
    Ok(Intent { service, revision })
}

fn check_identity(
    context: &Context,
    current: Option<&ServiceDocument>,
    wanted: &Value,
) -> Result<(), ApiError> {
    let name = &context.name;
    for (pointer, expected) in [("/apiVersion", names::API_VERSION), ("/kind", "Service")] {
        let given = text(wanted, pointer);
        if !given.is_empty() && given != expected {
            let field = pointer.trim_start_matches('/');
            return Err(invalid(format!("{field}: expected '{expected}', got '{given}'")));
        }
    }
    let given = text(wanted, "/metadata/name");
    if given != name.name.as_str() {
        return Err(invalid(format!(
            "metadata.name: Expected '{}' in the request body to match the request URL, got '{given}'",
            name.name
        )));
    }
    let namespace = text(wanted, "/metadata/namespace");
    let number = context.project_number.to_string();
    if !namespace.is_empty() && namespace != name.project.as_str() && namespace != number {
        return Err(invalid(format!(
            "metadata.namespace: Expected the project ID '{}' or number '{number}', got '{namespace}'",
            name.project
        )));
    }
    let version = text(wanted, "/metadata/resourceVersion");
    match current {
        Some(current) if !version.is_empty() && version != current.resource_version() => {
            Err(ApiError::new(
                Reason::Aborted,
                format!(
                    "Conflict for resource '{}': version '{version}' was specified but current \
                     version is '{}'.",
                    name.name,
                    current.resource_version()
                ),
            ))
        }
        _ => Ok(()),
    }
}

fn metadata(
    context: &Context,
    current: Option<&ServiceDocument>,
    wanted: &Value,
    generation: u64,
) -> Value {
    let of_current = |pointer: &str| {
        current.map(|current| text(&current.resource, pointer)).filter(|text| !text.is_empty())
    };
    let given = |key: &str| {
        let map = wanted.pointer("/metadata").and_then(|metadata| metadata.get(key));
        map.and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let mut annotations = given("annotations");
    annotations.retain(|name, _| !SERVER_ANNOTATIONS.contains(&name.as_str()));
    annotations.entry(names::INGRESS).or_insert_with(|| "all".into());
    let creator = current.and_then(|current| annotation(&current.resource, names::CREATOR));
    let creator = creator.unwrap_or(&context.caller);
    annotations.insert(names::CREATOR.into(), creator.into());
    annotations.insert(names::LAST_MODIFIER.into(), context.caller.as_str().into());
    annotations.insert(names::OPERATION_ID.into(), context.operation.as_str().into());
    let mut labels = given("labels");
    let region = context.name.region().unwrap_or_default();
    labels.insert(names::LOCATION_LABEL.into(), region.into());
    let namespace = context.project_number.to_string();
    json!({
        "name": context.name.name.as_str(),
        "namespace": namespace,
        "selfLink": format!(
            "/apis/{}/namespaces/{namespace}/services/{}", names::API_VERSION, context.name.name
        ),
        "uid": of_current("/metadata/uid").unwrap_or(&context.service_uid),
        "creationTimestamp": of_current("/metadata/creationTimestamp").unwrap_or(&context.now),
        "generation": generation,
        // The first letters are those of Google's versions, which encode a moment.
        "resourceVersion": format!("AAY{:012x}", context.random >> 16),
        "labels": labels,
        "annotations": annotations,
    })
}

/// `spec.traffic` as it is kept; everything goes to the newest revision when nothing is said.
fn traffic(wanted: &Value) -> Value {
    let mut traffic = match wanted.pointer("/spec/traffic") {
        Some(Value::Array(targets)) if !targets.is_empty() => targets.clone(),
        _ => vec![json!({ "latestRevision": true, "percent": 100 })],
    };
    for target in traffic.iter_mut().filter_map(Value::as_object_mut) {
        // The address of a tag is the server's to say, and names no target.
        target.remove("url");
        target.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)));
    }
    traffic.into()
}

/// The traffic in force with every revision named: which was the latest does not matter any more.
fn traffic_before(in_force: &[Value]) -> Vec<Value> {
    let named = |target: &Value| {
        let mut target = target.as_object().cloned().unwrap_or_default();
        target.retain(|key, _| matches!(key.as_str(), "revisionName" | "percent" | "tag"));
        Value::Object(target)
    };
    in_force.iter().map(named).collect()
}

/// Fills in what Cloud Run fills in when it is left out.
fn complete_template(template: &mut Value, context: &Context) {
    let account = format!("{}-compute@developer.gserviceaccount.com", context.project_number);
    let spec = object(template, "spec");
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    let mut millis = 0;
    if let Some(containers) = containers {
        let only = containers.len() == 1;
        for container in containers.iter_mut().filter(|container| container.is_object()) {
            complete_container(container, only);
            millis += processor_millis(text(container, "/resources/limits/cpu")).unwrap_or(1000);
        }
    }
    if spec.get("containerConcurrency").and_then(Value::as_i64).unwrap_or(0) == 0 {
        spec.insert("containerConcurrency".into(), concurrency_default(millis).into());
    }
    let timeout = model::run::TIMEOUT_SECONDS_DEFAULT;
    spec.entry("timeoutSeconds").or_insert_with(|| timeout.into());
    if spec.get("serviceAccountName").and_then(Value::as_str).is_none_or(str::is_empty) {
        spec.insert("serviceAccountName".into(), account.into());
    }
}

fn complete_container(container: &mut Value, only: bool) {
    let has_ports = container.get("ports").and_then(Value::as_array).is_some_and(|p| !p.is_empty());
    if only && !has_ports {
        container["ports"] =
            json!([{ "name": "http1", "containerPort": model::run::PORT_DEFAULT }]);
    }
    let ports = container.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        if port.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
            port.insert("name".into(), "http1".into());
        }
        port.entry("containerPort").or_insert_with(|| model::run::PORT_DEFAULT.into());
    }
    let resources = object(container, "resources");
    let limits = resources.entry("limits").or_insert_with(|| json!({}));
    if let Some(limits) = limits.as_object_mut() {
        limits.entry("cpu").or_insert_with(|| "1000m".into());
        limits.entry("memory").or_insert_with(|| "512Mi".into());
    }
}

/// Whether two parts of a specification mean the same: empty and absent are one, and which client
/// wrote it does not matter.
fn same(one: &Value, other: &Value) -> bool {
    essence(one) == essence(other)
}

fn essence(value: &Value) -> Value {
    let is_nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Object(object) => object.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .filter(|(key, _)| {
                    ![names::CLIENT_NAME, names::CLIENT_VERSION].contains(&key.as_str())
                })
                .map(|(key, value)| (key.clone(), essence(value)))
                .filter(|(_, value)| !is_nothing(value))
                .collect(),
        ),
        // Items keep their place: an empty argument is an argument.
        Value::Array(items) => items.iter().map(essence).collect(),
        other => other.clone(),
    }
}

/// The revision a template makes; none when a revision of the name it gives is already the same.
fn new_revision(
    context: &Context,
    template: &Value,
    generation: u64,
    service_uid: &str,
    existing: impl Fn(&str) -> Option<Value>,
) -> Result<Option<(String, RevisionDocument)>, ApiError> {
    let service = context.name.name.as_str();
    let given = text(template, "/metadata/name");
    let name = match given.is_empty() {
        true => invented_name(service, generation, context.random, |name| existing(name).is_some()),
        false => given.to_owned(),
    };
    let resource = revision_resource(context, template, &name, generation, service_uid);
    if let Some(existing) = existing(&name) {
        let of_us = text(&existing, "/service") == service;
        return match of_us && same(&existing["resource"]["spec"], &resource["spec"]) {
            true => Ok(None),
            false => Err(ApiError::new(
                Reason::AlreadyExists,
                format!("Revision named '{name}' with different configuration already exists."),
            )),
        };
    }
    let document = RevisionDocument {
        resource,
        id: context.revision_id.clone(),
        service: service.to_owned(),
        generation,
        outcome: None,
    };
    Ok(Some((name, document)))
}

/// `hello-00001-abc`: the service, its generation, and three letters that are not taken.
fn invented_name(
    service: &str,
    generation: u64,
    random: u64,
    is_taken: impl Fn(&str) -> bool,
) -> String {
    const LETTERS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";
    let suffix = |number: u64| -> String {
        let letter = |power: u64| char::from(LETTERS[(number / power % 20) as usize]);
        [1, 20, 400].map(letter).iter().collect()
    };
    (0..8000)
        .map(|attempt| {
            format!("{service}-{generation:05}-{}", suffix(random.wrapping_add(attempt)))
        })
        .find(|name| !is_taken(name))
        .unwrap_or_else(|| format!("{service}-{generation:05}-{random:016x}"))
}

fn revision_resource(
    context: &Context,
    template: &Value,
    name: &str,
    generation: u64,
    service_uid: &str,
) -> Value {
    let given = |key: &str| -> Map<String, Value> {
        let map = template.pointer("/metadata").and_then(|metadata| metadata.get(key));
        map.and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let service = context.name.name.as_str();
    let namespace = context.project_number.to_string();
    let mut labels = given("labels");
    for (label, value) in [
        (names::SERVICE_LABEL, service.to_owned()),
        (names::SERVICE_UID_LABEL, service_uid.to_owned()),
        (names::CONFIGURATION_LABEL, service.to_owned()),
        (names::CONFIGURATION_GENERATION_LABEL, generation.to_string()),
        (names::LOCATION_LABEL, context.name.region().unwrap_or_default().to_owned()),
    ] {
        labels.insert(label.into(), value.into());
    }
    let mut annotations = given("annotations");
    annotations.insert(names::CREATOR.into(), context.caller.as_str().into());
    let mut spec = template.get("spec").cloned().unwrap_or_else(|| json!({}));
    show_startup_probe(&mut spec);
    json!({
        "apiVersion": names::API_VERSION,
        "kind": "Revision",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "selfLink": format!(
                "/apis/{}/namespaces/{namespace}/revisions/{name}", names::API_VERSION
            ),
            "uid": context.revision_uid,
            "resourceVersion": format!("AAY{:012x}", context.random >> 16),
            "creationTimestamp": context.now,
            "generation": 1,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": names::API_VERSION,
                "kind": "Configuration",
                "name": service,
                "uid": service_uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": spec,
    })
}

/// Writes the startup probe a serving container gets when it names none, as Google's revisions do.
fn show_startup_probe(spec: &mut Value) {
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    for container in containers.into_iter().flatten() {
        let port = container.pointer("/ports/0/containerPort").cloned();
        let (Some(port), None) = (port, container.get("startupProbe")) else { continue };
        container["startupProbe"] = json!({
            "failureThreshold": 1,
            "periodSeconds": 240,
            "timeoutSeconds": 240,
            "tcpSocket": { "port": port },
        });
    }
}

/// The name of a revision of a service.
pub(crate) fn revision_name(service: &ResourceName, name: &str) -> ResourceName {
    let region = service.region().unwrap_or_default();
    ResourceName::regional(&service.project, region, Kind::Revision, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context {
            name: ResourceName::regional("p", "us-west1", Kind::Service, "hello"),
            project_number: 123,
            caller: "owner@example.com".to_owned(),
            now: "2026-01-01T00:00:00.000000Z".to_owned(),
            service_id: "1".to_owned(),
            revision_id: "2".to_owned(),
            service_uid: "service-uid".to_owned(),
            revision_uid: "revision-uid".to_owned(),
            operation: "operation".to_owned(),
            random: 421 << 20,
            traffic_in_force: Vec::new(),
            forces_revision: false,
        }
    }

    fn wanted(nonce: &str) -> Value {
        json!({
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": { "name": "hello", "namespace": "p" },
            "spec": { "template": {
                "metadata": { "labels": { "client.knative.dev/nonce": nonce } },
                "spec": { "containers": [{ "image": "i", "name": "" }], "nodeSelector": {} },
            } },
        })
    }

    /// Makes a service and then wants it to be what `change` makes of it.
    fn change(change: impl Fn(&mut Value)) -> Result<String, ApiError> {
        let first = declare(&context(), None, &wanted("a"), |_| None).expect("declared");
        let (name, revision) = first.revision.expect("a first revision");
        let revision = super::super::document::write(&revision).expect("a document");
        let mut next = first.service.resource.clone();
        change(&mut next);
        let context = Context { random: 99 << 30, ..context() };
        let found = |asked: &str| (asked == name).then(|| revision.clone());
        let intent = declare(&context, Some(&first.service), &next, found)?;
        let revision = intent.revision.map_or("no revision".to_owned(), |(name, _)| {
            name.trim_end_matches(|c: char| c.is_ascii_lowercase()).to_owned()
        });
        Ok(format!("generation {}, {revision}", intent.service.generation()))
    }

    #[test]
    fn a_new_template_or_nonce_makes_a_revision_and_nothing_else_does() {
        type Change = fn(&mut Value);
        let cases: [(&str, Change, &str); 9] = [
            ("nothing", |_| {}, "generation 1, no revision"),
            (
                "a label of the service",
                |s| s["metadata"]["labels"]["a"] = "b".into(),
                "generation 1, no revision",
            ),
            (
                "another client",
                |s| {
                    s["spec"]["template"]["metadata"]["annotations"] =
                        json!({ names::CLIENT_VERSION: "529" })
                },
                "generation 1, no revision",
            ),
            (
                "an empty map",
                |s| s["spec"]["template"]["metadata"]["annotations"] = json!({}),
                "generation 1, no revision",
            ),
            (
                "traffic",
                |s| {
                    s["spec"]["traffic"] =
                        json!([{ "revisionName": "hello-00001-x", "percent": 100 }])
                },
                "generation 2, no revision",
            ),
            (
                "an image",
                |s| s["spec"]["template"]["spec"]["containers"][0]["image"] = "j".into(),
                "generation 2, hello-00002-",
            ),
            (
                "a nonce",
                |s| {
                    s["spec"]["template"]["metadata"]["labels"]["client.knative.dev/nonce"] =
                        "b".into()
                },
                "generation 2, hello-00002-",
            ),
            (
                "an argument",
                |s| s["spec"]["template"]["spec"]["containers"][0]["args"] = json!([""]),
                "generation 2, hello-00002-",
            ),
            (
                "a name",
                |s| s["spec"]["template"]["metadata"]["name"] = "hello-blue".into(),
                "generation 2, hello-",
            ),
        ];
        for (what, edit, expected) in cases {
            assert_eq!(change(edit).expect(what), expected, "{what}");
        }
    }

    #[test]
    fn a_stale_version_or_a_foreign_name_is_refused() {
        type Change = fn(&mut Value);
        let cases: [(Change, Reason, &str); 6] = [
            (
                |s| s["metadata"]["resourceVersion"] = "AAYold".into(),
                Reason::Aborted,
                "Conflict for resource 'hello': version 'AAYold' was specified",
            ),
            (|s| s["metadata"]["name"] = "other".into(), Reason::Invalid, "metadata.name"),
            (|s| s["metadata"]["namespace"] = "q".into(), Reason::Invalid, "metadata.namespace"),
            (|s| s["kind"] = "Job".into(), Reason::Invalid, "kind: expected 'Service'"),
            (|s| s["spec"]["template"] = Value::Null, Reason::Invalid, "spec.template"),
            (
                |s| {
                    s["spec"]["template"]["metadata"]["name"] = "hello-00001-zzz".into();
                    s["metadata"]["resourceVersion"] = Value::Null;
                    s["spec"]["template"]["spec"]["containers"] = json!([{ "image": "j" }]);
                },
                Reason::AlreadyExists,
                "with different configuration",
            ),
        ];
        for (edit, reason, text) in cases {
            let outcome = match text {
                // The one revision there is has a name chance chose.
                "with different configuration" => {
                    let first =
                        declare(&context(), None, &wanted("a"), |_| None).expect("declared");
                    let document = first.revision.expect("a revision").1;
                    let document = super::super::document::write(&document).expect("a document");
                    let mut next = first.service.resource.clone();
                    edit(&mut next);
                    declare(&context(), Some(&first.service), &next, |_| Some(document.clone()))
                        .map(|_| String::new())
                }
                _ => change(edit),
            };
            let error = outcome.expect_err(text);
            assert_eq!(error.reason, reason, "{text}");
            assert!(error.message.contains(text), "{}", error.message);
        }
    }

    #[test]
    fn what_is_left_out_is_filled_in_and_what_the_server_says_is_not_kept_from_clients() {
        let mut wanted = wanted("a");
        wanted["metadata"]["annotations"] = json!({ names::CREATOR: "evil", names::URLS: "[]" });
        let intent = declare(&context(), None, &wanted, |_| None).expect("declared");
        let resource = &intent.service.resource;
        let container = &resource["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["ports"], json!([{ "name": "http1", "containerPort": 8080 }]));
        assert_eq!(container["resources"]["limits"], json!({ "cpu": "1000m", "memory": "512Mi" }));
        assert_eq!(resource["spec"]["template"]["spec"]["containerConcurrency"], 80);
        assert_eq!(
            resource["spec"]["traffic"],
            json!([{ "latestRevision": true, "percent": 100 }])
        );
        assert_eq!(annotation(resource, names::CREATOR), Some("owner@example.com"));
        assert_eq!(annotation(resource, names::URLS), None);
        let (name, revision) = intent.revision.expect("a revision");
        assert!(name.starts_with("hello-00001-"), "{name}");
        let probe = revision.resource.pointer("/spec/containers/0/startupProbe/tcpSocket/port");
        assert_eq!(probe, Some(&json!(8080)));
        assert!(resource.pointer("/spec/template/metadata/name").is_none());
    }
}
