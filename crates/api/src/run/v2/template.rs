//! Revision templates, from one version to the other: version 1 keeps in annotations what version 2
//! has fields for.
//!
//! Invariant: a template that is shown and wanted again unchanged is the same template, so that
//! reading and writing back through version 2 makes no revision.

use serde_json::{Map, Value, json};

use super::container::{self, OfTemplate, copied, is_something};
use super::invalid;
use crate::error::ApiError;
use crate::run::changes::users_own;
use crate::run::document::{annotation, text};
use crate::run::names;
use crate::run::quantity::seconds;

type Object = Map<String, Value>;

const CONNECTOR: &str = "run.googleapis.com/vpc-access-connector";
const HEALTH_CHECK_DISABLED: &str = "run.googleapis.com/health-check-disabled";

/// The annotations of a template that version 2 has fields for.
const WITH_FIELDS: &[&str] = &[
    names::MIN_SCALE,
    names::MAX_SCALE,
    names::CONCURRENCY_TARGET,
    names::CPU_TARGET,
    names::CPU_THROTTLING,
    names::STARTUP_CPU_BOOST,
    names::SESSION_AFFINITY,
    names::EXECUTION_ENVIRONMENT,
    names::DEPENDENCIES,
    names::NETWORK_INTERFACES,
    names::VPC_EGRESS,
    names::CLIENT_NAME,
    names::CLIENT_VERSION,
    CONNECTOR,
    HEALTH_CHECK_DISABLED,
];

/// What a template and a revision share, as version 2 shows it.
pub(super) fn shown(template: &Value) -> Object {
    let note = |name: &str| annotation(template, name).filter(|text| !text.is_empty());
    let flag = |name: &str| note(name).is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let mut shown = Object::new();
    for key in ["labels", "annotations"] {
        let own = users_own(template.pointer(&format!("/metadata/{key}")));
        if !own.is_empty() {
            shown.insert(key.into(), own.into());
        }
    }
    let scaling = scaling_shown(template);
    if !scaling.is_empty() {
        shown.insert("scaling".into(), scaling.into());
    }
    if let Some(access) = vpc_access_shown(template) {
        shown.insert("vpcAccess".into(), access);
    }
    let spec = &template["spec"];
    if let Some(seconds) = spec.get("timeoutSeconds").and_then(Value::as_i64) {
        shown.insert("timeout".into(), format!("{seconds}s").into());
    }
    for (from, to) in [
        ("containerConcurrency", "maxInstanceRequestConcurrency"),
        ("serviceAccountName", "serviceAccount"),
        ("nodeSelector", "nodeSelector"),
    ] {
        if let Some(value) = spec.get(from).filter(|value| is_something(value)) {
            shown.insert(to.into(), value.clone());
        }
    }
    let dependencies = note(names::DEPENDENCIES).and_then(|text| serde_json::from_str(text).ok());
    let of_template = OfTemplate {
        cpu_idle: note(names::CPU_THROTTLING)
            .is_none_or(|text| !text.eq_ignore_ascii_case("false")),
        startup_cpu_boost: flag(names::STARTUP_CPU_BOOST),
        dependencies: dependencies.unwrap_or_default(),
    };
    let items = |key: &str| spec.get(key).and_then(Value::as_array).into_iter().flatten();
    let containers = items("containers").map(|c| container::shown(c, &of_template));
    shown.insert("containers".into(), containers.collect());
    let volumes: Vec<Value> = items("volumes").map(container::volume_shown).collect();
    if !volumes.is_empty() {
        shown.insert("volumes".into(), volumes.into());
    }
    words_shown(template, &mut shown);
    shown
}

fn scaling_shown(template: &Value) -> Object {
    let note = |name: &str| annotation(template, name);
    let mut scaling = Object::new();
    for (field, name) in
        [("minInstanceCount", names::MIN_SCALE), ("maxInstanceCount", names::MAX_SCALE)]
    {
        if let Some(count) = note(name).and_then(|text| text.parse::<u32>().ok()) {
            scaling.insert(field.into(), count.into());
        }
    }
    for (field, name) in [
        ("concurrencyUtilization", names::CONCURRENCY_TARGET),
        ("cpuUtilization", names::CPU_TARGET),
    ] {
        if let Some(share) = note(name).and_then(|text| text.parse::<f64>().ok()) {
            scaling.insert(field.into(), share.into());
        }
    }
    scaling
}

/// What is one word or a yes.
fn words_shown(template: &Value, shown: &mut Object) {
    let note = |name: &str| annotation(template, name).filter(|text| !text.is_empty());
    let flag = |name: &str| note(name).is_some_and(|text| text.eq_ignore_ascii_case("true"));
    match note(names::EXECUTION_ENVIRONMENT) {
        Some("gen1") => {
            shown.insert("executionEnvironment".into(), "EXECUTION_ENVIRONMENT_GEN1".into());
        }
        Some("gen2") => {
            shown.insert("executionEnvironment".into(), "EXECUTION_ENVIRONMENT_GEN2".into());
        }
        _ => {}
    }
    for (field, name) in [
        ("sessionAffinity", names::SESSION_AFFINITY),
        ("healthCheckDisabled", HEALTH_CHECK_DISABLED),
    ] {
        if flag(name) {
            shown.insert(field.into(), true.into());
        }
    }
    for (field, name) in [("client", names::CLIENT_NAME), ("clientVersion", names::CLIENT_VERSION)]
    {
        if let Some(value) = note(name) {
            shown.insert(field.into(), value.into());
        }
    }
}

fn vpc_access_shown(template: &Value) -> Option<Value> {
    let interfaces = annotation(template, names::NETWORK_INTERFACES)
        .and_then(|text| serde_json::from_str::<Value>(text).ok());
    let connector = annotation(template, CONNECTOR).filter(|text| !text.is_empty());
    if interfaces.is_none() && connector.is_none() {
        return None;
    }
    let mut access = Object::new();
    if let Some(interfaces) = interfaces {
        access.insert("networkInterfaces".into(), interfaces);
    }
    if let Some(connector) = connector {
        access.insert("connector".into(), connector.into());
    }
    let egress = match annotation(template, names::VPC_EGRESS) {
        Some("all-traffic" | "all") => "ALL_TRAFFIC",
        _ => "PRIVATE_RANGES_ONLY",
    };
    access.insert("egress".into(), egress.into());
    Some(Value::Object(access))
}

/// A template as version 1 writes it; `current` is the one it takes the place of.
pub(super) fn wanted(
    project: &str,
    template: &Value,
    current: Option<&Value>,
) -> Result<Value, ApiError> {
    check_served(template)?;
    let mut of_template =
        OfTemplate { cpu_idle: true, startup_cpu_boost: false, dependencies: Map::new() };
    let items = |key: &str| template.get(key).and_then(Value::as_array).into_iter().flatten();
    let containers = items("containers").enumerate().map(|(index, given)| {
        let field = format!("template.containers[{index}]");
        container::wanted(project, &field, given, &mut of_template)
    });
    let containers: Vec<Value> = containers.collect::<Result<_, _>>()?;
    let volumes = items("volumes").enumerate().map(|(index, given)| {
        container::volume_wanted(project, &format!("template.volumes[{index}]"), given)
    });
    let volumes: Vec<Value> = volumes.collect::<Result<_, _>>()?;

    let mut spec = json!({ "containers": containers });
    if !volumes.is_empty() {
        spec["volumes"] = volumes.into();
    }
    if let Some(timeout) = template.get("timeout").and_then(Value::as_str) {
        let refused = || invalid("template.timeout", format!("'{timeout}' must be whole seconds"));
        spec["timeoutSeconds"] = seconds(timeout).ok_or_else(refused)?.into();
    }
    for (from, to) in [
        ("maxInstanceRequestConcurrency", "containerConcurrency"),
        ("serviceAccount", "serviceAccountName"),
        ("nodeSelector", "nodeSelector"),
    ] {
        if let Some(value) = template.get(from).filter(|value| is_something(value)) {
            spec[to] = value.clone();
        }
    }
    let mut metadata = json!({
        "labels": kept_labels(template, current),
        "annotations": annotations(template, &of_template, current)?,
    });
    let revision = text(template, "/revision");
    if !revision.is_empty() {
        metadata["name"] = revision.into();
    }
    Ok(json!({ "metadata": metadata, "spec": spec }))
}

fn check_served(template: &Value) -> Result<(), ApiError> {
    const UNSERVED: &[&str] = &[
        "encryptionKey",
        "serviceMesh",
        "workloadIdentityConfig",
        "ambientNetworking",
        "sandboxes",
        "gpuZonalRedundancyDisabled",
    ];
    let given = UNSERVED.iter().find(|field| template.get(field).is_some_and(is_something));
    given.map_or(Ok(()), |field| Err(invalid(format!("template.{field}"), "is not served here")))
}

/// The user's labels, and those of the system that version 2 has no field for.
fn kept_labels(template: &Value, current: Option<&Value>) -> Object {
    let mut labels = users_own(template.get("labels"));
    let of_current = current.and_then(|current| current.pointer("/metadata/labels")?.as_object());
    for (name, value) in of_current.into_iter().flatten() {
        if names::is_system(name) {
            labels.insert(name.clone(), value.clone());
        }
    }
    labels
}

fn annotations(
    template: &Value,
    of_template: &OfTemplate,
    current: Option<&Value>,
) -> Result<Object, ApiError> {
    let mut notes = users_own(template.get("annotations"));
    let of_current =
        current.and_then(|current| current.pointer("/metadata/annotations")?.as_object());
    let system = of_current
        .into_iter()
        .flatten()
        .filter(|(name, _)| names::is_system(name) && !WITH_FIELDS.contains(&name.as_str()));
    notes.extend(system.map(|(name, value)| (name.clone(), value.clone())));
    let mut flag = |name: &str, value: bool, default: bool| {
        // The same answer in other letters (gcloud writes `True`) is not a change.
        let before = current.and_then(|current| annotation(current, name));
        match before.filter(|text| text.eq_ignore_ascii_case(&value.to_string())) {
            Some(text) => notes.insert(name.to_owned(), text.into()),
            None if value != default => notes.insert(name.to_owned(), value.to_string().into()),
            None => None,
        };
    };
    let given = |name: &str| template.get(name).and_then(Value::as_bool).unwrap_or(false);
    flag(names::CPU_THROTTLING, of_template.cpu_idle, true);
    flag(names::STARTUP_CPU_BOOST, of_template.startup_cpu_boost, false);
    flag(names::SESSION_AFFINITY, given("sessionAffinity"), false);
    flag(HEALTH_CHECK_DISABLED, given("healthCheckDisabled"), false);
    for (field, name) in [
        ("minInstanceCount", names::MIN_SCALE),
        ("maxInstanceCount", names::MAX_SCALE),
        ("concurrencyUtilization", names::CONCURRENCY_TARGET),
        ("cpuUtilization", names::CPU_TARGET),
    ] {
        let value = template.get("scaling").and_then(|scaling| scaling.get(field));
        if let Some(number) = value.filter(|value| value.is_number()) {
            // Whether zero was written out or left out, it says nothing.
            let before = current.and_then(|current| annotation(current, name));
            if number.as_f64() != Some(0.0) || before == Some("0") {
                notes.insert(name.to_owned(), number.to_string().into());
            }
        }
    }
    match text(template, "/executionEnvironment") {
        "EXECUTION_ENVIRONMENT_GEN1" => {
            notes.insert(names::EXECUTION_ENVIRONMENT.into(), "gen1".into());
        }
        "EXECUTION_ENVIRONMENT_GEN2" => {
            notes.insert(names::EXECUTION_ENVIRONMENT.into(), "gen2".into());
        }
        _ => {}
    }
    if !of_template.dependencies.is_empty() {
        let value = Value::Object(of_template.dependencies.clone());
        put_json(&mut notes, names::DEPENDENCIES, &value, current);
    }
    vpc_access_wanted(&mut notes, template, current)?;
    for (field, name) in [("client", names::CLIENT_NAME), ("clientVersion", names::CLIENT_VERSION)]
    {
        notes
            .extend(copied(template, &[field]).into_values().map(|value| (name.to_owned(), value)));
    }
    Ok(notes)
}

fn vpc_access_wanted(
    notes: &mut Object,
    template: &Value,
    current: Option<&Value>,
) -> Result<(), ApiError> {
    let Some(access) = template.get("vpcAccess").filter(|access| is_something(access)) else {
        return Ok(());
    };
    if let Some(interfaces) = access.get("networkInterfaces").filter(|value| is_something(value)) {
        put_json(notes, names::NETWORK_INTERFACES, interfaces, current);
    }
    if let Some(connector) = access.get("connector").filter(|value| is_something(value)) {
        notes.insert(CONNECTOR.into(), connector.clone());
    }
    let before = current.and_then(|current| annotation(current, names::VPC_EGRESS));
    match (text(access, "/egress"), before) {
        ("ALL_TRAFFIC", Some(before @ "all")) => {
            notes.insert(names::VPC_EGRESS.into(), before.into());
        }
        ("ALL_TRAFFIC", _) => {
            notes.insert(names::VPC_EGRESS.into(), "all-traffic".into());
        }
        ("PRIVATE_RANGES_ONLY" | "", None) => {}
        ("PRIVATE_RANGES_ONLY" | "", Some(_)) => {
            notes.insert(names::VPC_EGRESS.into(), "private-ranges-only".into());
        }
        (other, _) => {
            return Err(invalid("template.vpcAccess.egress", format!("'{other}' is unknown")));
        }
    }
    Ok(())
}

/// JSON inside an annotation: the text of before when it says the same.
fn put_json(notes: &mut Object, name: &str, value: &Value, current: Option<&Value>) {
    let before = current.and_then(|current| annotation(current, name));
    let same =
        before.filter(|text| serde_json::from_str::<Value>(text).ok().as_ref() == Some(value));
    let text = same.map_or_else(|| value.to_string(), str::to_owned);
    notes.insert(name.to_owned(), text.into());
}
