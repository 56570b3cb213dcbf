//! Services, from one version to the other.

use model::ResourceName;
use serde_json::{Map, Value, json};

use super::container::is_something;
use super::{condition, invalid, template};
use crate::error::ApiError;
use crate::run::changes::users_own;
use crate::run::document::{annotation, text};
use crate::run::names;
use crate::run::status::{self, Truth};
use crate::run::view::ServiceView;

type Object = Map<String, Value>;

const INGRESS_WORDS: &[(&str, &str)] = &[
    ("all", "INGRESS_TRAFFIC_ALL"),
    ("internal", "INGRESS_TRAFFIC_INTERNAL_ONLY"),
    ("internal-and-cloud-load-balancing", "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER"),
    ("none", "INGRESS_TRAFFIC_NONE"),
];

/// The annotations of a service that version 2 has fields for.
const WITH_FIELDS: &[&str] = &[
    names::INGRESS,
    names::DESCRIPTION,
    names::LAUNCH_STAGE,
    names::CLIENT_NAME,
    names::CLIENT_VERSION,
    names::DEFAULT_URL_DISABLED,
    names::INVOKER_IAM_DISABLED,
    names::CUSTOM_AUDIENCES,
    names::SERVICE_MIN_SCALE,
    names::SERVICE_MAX_SCALE,
    names::SCALING_MODE,
    names::MANUAL_INSTANCES,
];

/// The etag of a service: its version, quoted as etags are.
pub(crate) fn etag(view: &ServiceView) -> String {
    format!("\"{}\"", view.document.resource_version())
}

/// A service as version 2 shows it.
pub(crate) fn shown(view: &ServiceView) -> Value {
    let resource = &view.document.resource;
    let mut shown = declared(resource);
    let seen = view.seen();
    let conditions = status::service_conditions(seen);
    let metadata = |pointer: &str| text(resource, pointer).to_owned();
    let note = |name: &str| annotation(resource, name).unwrap_or_default().to_owned();
    let full = |revision: &str| format!("{}/revisions/{revision}", view.name);
    let generation = view.document.generation().to_string();
    for (field, value) in [
        ("name", view.name.to_string()),
        ("uid", metadata("/metadata/uid")),
        ("generation", generation.clone()),
        ("observedGeneration", generation),
        ("createTime", metadata("/metadata/creationTimestamp")),
        ("updateTime", view.document.updated.clone()),
        ("creator", note(names::CREATOR)),
        ("lastModifier", note(names::LAST_MODIFIER)),
        ("etag", etag(view)),
    ] {
        shown.insert(field.into(), value.into());
    }
    if let Some((ready, others)) = conditions.split_first() {
        shown.insert("terminalCondition".into(), condition(ready));
        shown.insert("conditions".into(), others.iter().map(condition).collect());
        if ready.truth == Truth::Unknown {
            shown.insert("reconciling".into(), true.into());
        }
    }
    let newest = view.plan.latest_created.as_ref();
    for (field, revision) in [
        ("latestCreatedRevision", newest),
        ("latestReadyRevision", view.plan.latest_ready.as_ref()),
    ] {
        if let Some(revision) = revision {
            shown.insert(field.into(), full(&revision.name.name).into());
        }
    }
    let statuses: Vec<Value> =
        view.plan.traffic_in_force.iter().map(|target| traffic_status(view, target)).collect();
    if !statuses.is_empty() {
        shown.insert("trafficStatuses".into(), statuses.into());
    }
    let urls = status::urls(&view.plan);
    if let Some(url) = urls.first() {
        shown.insert("uri".into(), url.as_str().into());
        shown.insert("urls".into(), urls.into());
    }
    Value::Object(shown)
}

/// The fields a client declares.
fn declared(resource: &Value) -> Object {
    let note = |name: &str| annotation(resource, name).filter(|text| !text.is_empty());
    let mut shown = Object::new();
    for key in ["labels", "annotations"] {
        let own = users_own(resource.pointer(&format!("/metadata/{key}")));
        if !own.is_empty() {
            shown.insert(key.into(), own.into());
        }
    }
    for (field, name) in [
        ("description", names::DESCRIPTION),
        ("client", names::CLIENT_NAME),
        ("clientVersion", names::CLIENT_VERSION),
    ] {
        if let Some(value) = note(name) {
            shown.insert(field.into(), value.into());
        }
    }
    shown.insert("launchStage".into(), note(names::LAUNCH_STAGE).unwrap_or("GA").into());
    let ingress = note(names::INGRESS).unwrap_or("all");
    if let Some((_, word)) = INGRESS_WORDS.iter().find(|(known, _)| *known == ingress) {
        shown.insert("ingress".into(), (*word).into());
    }
    for (field, name) in [
        ("defaultUriDisabled", names::DEFAULT_URL_DISABLED),
        ("invokerIamDisabled", names::INVOKER_IAM_DISABLED),
    ] {
        if note(name).is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            shown.insert(field.into(), true.into());
        }
    }
    let audiences = note(names::CUSTOM_AUDIENCES).and_then(|text| serde_json::from_str(text).ok());
    if let Some(audiences @ Value::Array(_)) = audiences {
        shown.insert("customAudiences".into(), audiences);
    }
    let mut scaling = Object::new();
    for (field, name) in [
        ("minInstanceCount", names::SERVICE_MIN_SCALE),
        ("maxInstanceCount", names::SERVICE_MAX_SCALE),
        ("manualInstanceCount", names::MANUAL_INSTANCES),
    ] {
        if let Some(count) = note(name).and_then(|text| text.parse::<u32>().ok()) {
            scaling.insert(field.into(), count.into());
        }
    }
    if let Some(mode) = note(names::SCALING_MODE) {
        scaling.insert("scalingMode".into(), mode.to_ascii_uppercase().into());
    }
    if !scaling.is_empty() {
        shown.insert("scaling".into(), scaling.into());
    }
    let of_service = &resource["spec"]["template"];
    let mut template = template::shown(of_service);
    let revision = text(of_service, "/metadata/name");
    if !revision.is_empty() {
        template.insert("revision".into(), revision.into());
    }
    shown.insert("template".into(), template.into());
    let traffic = resource.pointer("/spec/traffic").and_then(Value::as_array);
    shown.insert("traffic".into(), traffic.into_iter().flatten().map(target_shown).collect());
    shown
}

const LATEST: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
const NAMED: &str = "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION";

fn target_shown(target: &Value) -> Value {
    let mut shown = super::container::copied(target, &["percent", "tag"]);
    match target.get("revisionName").and_then(Value::as_str) {
        Some(revision) => {
            shown.insert("type".into(), NAMED.into());
            shown.insert("revision".into(), revision.into());
        }
        None => {
            shown.insert("type".into(), LATEST.into());
        }
    }
    Value::Object(shown)
}

fn target_wanted((index, target): (usize, &Value)) -> Result<Value, ApiError> {
    let mut wanted = super::container::copied(target, &["percent", "tag"]);
    wanted.retain(|_, value| is_something(value));
    let field = format!("traffic[{index}].revision");
    match (text(target, "/type"), text(target, "/revision")) {
        (LATEST, "") => {
            wanted.insert("latestRevision".into(), true.into());
        }
        (LATEST, _) => return Err(invalid(field, "must be empty for the latest revision")),
        (_, "") => return Err(invalid(field, "is required")),
        (_, revision) => {
            let bare = revision.rsplit('/').next().unwrap_or_default();
            wanted.insert("revisionName".into(), bare.into());
        }
    }
    Ok(Value::Object(wanted))
}

fn traffic_status(view: &ServiceView, target: &plan::fleet::TrafficInForce) -> Value {
    let mut shown = json!({
        "type": if target.latest { LATEST } else { NAMED },
        "revision": target.revision.name.name.as_str(),
    });
    if target.percent > 0 {
        shown["percent"] = target.percent.into();
    }
    if let Some(tag) = &target.tag {
        shown["tag"] = tag.as_str().into();
        if let Some(url) = status::tag_url(&view.plan, tag) {
            shown["uri"] = url.into();
        }
    }
    shown
}

/// A service as version 1 writes it; `current` is the resource it takes the place of.
pub(super) fn wanted(
    name: &ResourceName,
    body: &Value,
    current: Option<&Value>,
) -> Result<Value, ApiError> {
    check_served(body)?;
    let template = body.get("template").filter(|template| template.is_object());
    let template = template.ok_or_else(|| invalid("template", "is required"))?;
    let current_template = current.and_then(|current| current.pointer("/spec/template"));
    let traffic = body.get("traffic").and_then(Value::as_array);
    let traffic = traffic.into_iter().flatten().enumerate().map(target_wanted);
    let traffic: Vec<Value> = traffic.collect::<Result<_, _>>()?;
    check_own(body, "labels")?;
    check_own(body, "annotations")?;
    Ok(json!({
        "metadata": {
            "name": name.name.as_str(),
            "labels": users_own(body.get("labels")),
            "annotations": annotations(body, current)?,
        },
        "spec": {
            "template": template::wanted(&name.project, template, current_template)?,
            "traffic": traffic,
        },
    }))
}

/// Version 2 refuses the system's annotations and labels, for which it has fields.
fn check_own(body: &Value, key: &str) -> Result<(), ApiError> {
    for root in [Some(body), body.get("template")].into_iter().flatten() {
        let map = root.get(key).and_then(Value::as_object);
        let system = map.into_iter().flatten().map(|(name, _)| name).find(|n| names::is_system(n));
        if let Some(name) = system {
            let sentence = format!("'{name}' is a system {key} and cannot be set in this version");
            return Err(invalid(key, sentence));
        }
    }
    Ok(())
}

fn check_served(body: &Value) -> Result<(), ApiError> {
    const UNSERVED: &[&str] = &[
        "binaryAuthorization",
        "multiRegionSettings",
        "iapEnabled",
        "buildConfig",
        "sshEnabled",
        "threatDetectionEnabled",
    ];
    let given = UNSERVED.iter().find(|field| body.get(field).is_some_and(is_something));
    given.map_or(Ok(()), |field| Err(invalid(field, "is not served here")))
}

fn annotations(body: &Value, current: Option<&Value>) -> Result<Object, ApiError> {
    let mut notes = users_own(body.get("annotations"));
    let of_current =
        current.and_then(|current| current.pointer("/metadata/annotations")?.as_object());
    let system = of_current
        .into_iter()
        .flatten()
        .filter(|(name, _)| names::is_system(name) && !WITH_FIELDS.contains(&name.as_str()));
    notes.extend(system.map(|(name, value)| (name.clone(), value.clone())));
    let ingress = match text(body, "/ingress") {
        "" | "INGRESS_TRAFFIC_UNSPECIFIED" => "all",
        word => INGRESS_WORDS
            .iter()
            .find(|(_, known)| *known == word)
            .map(|(ingress, _)| *ingress)
            .ok_or_else(|| invalid("ingress", format!("'{word}' is unknown")))?,
    };
    notes.insert(names::INGRESS.into(), ingress.into());
    for (field, name) in [
        ("description", names::DESCRIPTION),
        ("client", names::CLIENT_NAME),
        ("clientVersion", names::CLIENT_VERSION),
    ] {
        let value = text(body, &format!("/{field}"));
        if !value.is_empty() {
            notes.insert(name.into(), value.into());
        }
    }
    match text(body, "/launchStage") {
        "" | "GA" | "LAUNCH_STAGE_UNSPECIFIED" => {}
        stage => {
            notes.insert(names::LAUNCH_STAGE.into(), stage.into());
        }
    }
    for (field, name) in [
        ("defaultUriDisabled", names::DEFAULT_URL_DISABLED),
        ("invokerIamDisabled", names::INVOKER_IAM_DISABLED),
    ] {
        if body.get(field).and_then(Value::as_bool).unwrap_or(false) {
            notes.insert(name.into(), "true".into());
        }
    }
    if let Some(audiences) = body.get("customAudiences").filter(|value| is_something(value)) {
        notes.insert(names::CUSTOM_AUDIENCES.into(), audiences.to_string().into());
    }
    if let Some(scaling) = body.get("scaling") {
        for (field, name) in [
            ("minInstanceCount", names::SERVICE_MIN_SCALE),
            ("maxInstanceCount", names::SERVICE_MAX_SCALE),
            ("manualInstanceCount", names::MANUAL_INSTANCES),
        ] {
            let count = scaling.get(field).and_then(Value::as_i64);
            let says_nothing = field == "minInstanceCount" && count == Some(0);
            if let Some(count) = count.filter(|_| !says_nothing) {
                notes.insert(name.into(), count.to_string().into());
            }
        }
        match text(scaling, "/scalingMode") {
            "MANUAL" => {
                notes.insert(names::SCALING_MODE.into(), "manual".into());
            }
            "AUTOMATIC" => {
                notes.insert(names::SCALING_MODE.into(), "automatic".into());
            }
            _ => {}
        }
    }
    Ok(notes)
}
