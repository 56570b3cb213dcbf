//! What is said of a service and its revisions: conditions, addresses and the traffic in force.
//!
//! Pure: derived from what was declared, the outcomes that were seen, and the plan that serves.
//! Invariant: a service is `Ready` only when the plan that holds its newest revision and its
//! declared traffic is the one that serves.

use plan::fleet::{Role, ServicePlan, TrafficInForce};
use serde_json::{Map, Value, json};

use super::document::{OutcomeDocument, RevisionDocument, ServiceDocument};

/// Google's three answers to whether something holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truth {
    /// It holds.
    True,
    /// It does not, and will not by itself.
    False,
    /// Not known yet.
    Unknown,
}

impl Truth {
    fn word(self) -> &'static str {
        match self {
            Truth::True => "True",
            Truth::False => "False",
            Truth::Unknown => "Unknown",
        }
    }
}

/// One condition of a service or revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) truth: Truth,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Whether a failure of it is only worth knowing.
    pub(crate) is_informative: bool,
    pub(crate) at: String,
}

impl Condition {
    fn new(kind: &'static str, truth: Truth, at: &str) -> Condition {
        let (reason, message) = (String::new(), String::new());
        Condition { kind, truth, reason, message, is_informative: false, at: at.to_owned() }
    }

    fn because(mut self, reason: &str, message: impl Into<String>) -> Condition {
        self.reason = reason.to_owned();
        self.message = message.into();
        self
    }

    /// The condition as v1 writes it.
    pub(crate) fn to_v1(&self) -> Value {
        let mut value = json!({
            "type": self.kind,
            "status": self.truth.word(),
            "lastTransitionTime": self.at,
        });
        for (key, text) in [("reason", &self.reason), ("message", &self.message)] {
            if !text.is_empty() {
                value[key] = text.as_str().into();
            }
        }
        if self.is_informative {
            value["severity"] = "Info".into();
        }
        value
    }
}

/// Everything the status of a service is derived from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) service: &'a ServiceDocument,
    /// The service in the plan that was admitted last.
    pub(crate) plan: &'a ServicePlan,
    /// The newest revision.
    pub(crate) latest: Option<&'a RevisionDocument>,
    /// Whether that plan is the one that serves.
    pub(crate) is_applied: bool,
}

/// `Ready`, `ConfigurationsReady`, `RoutesReady`, in the order Google writes them.
pub(crate) fn service_conditions(seen: Seen<'_>) -> Vec<Condition> {
    let configurations = configurations_ready(seen);
    let routes = routes_ready(seen, &configurations);
    let mut ready = [&configurations, &routes]
        .into_iter()
        .find(|condition| condition.truth == Truth::False)
        .or([&configurations, &routes].into_iter().find(|c| c.truth == Truth::Unknown))
        .unwrap_or(&routes)
        .clone();
    ready.kind = "Ready";
    vec![ready, configurations, routes]
}

fn configurations_ready(seen: Seen<'_>) -> Condition {
    let kind = "ConfigurationsReady";
    let Some(latest) = seen.latest else {
        return Condition::new(kind, Truth::Unknown, &seen.service.updated);
    };
    let name = super::document::text(&latest.resource, "/metadata/name");
    match &latest.outcome {
        None => Condition::new(kind, Truth::Unknown, &seen.service.updated)
            .because("Deploying", format!("Deploying revision {name}.")),
        Some(outcome) if !outcome.ready => {
            Condition::new(kind, Truth::False, latest_of(&seen.service.updated, &outcome.at))
                .because("RevisionFailed", not_ready(name, outcome))
        }
        Some(outcome) if !seen.is_applied => {
            Condition::new(kind, Truth::Unknown, latest_of(&seen.service.updated, &outcome.at))
                .because("Deploying", format!("Deploying revision {name}."))
        }
        Some(outcome) => {
            Condition::new(kind, Truth::True, latest_of(&seen.service.updated, &outcome.at))
        }
    }
}

fn not_ready(name: &str, outcome: &OutcomeDocument) -> String {
    format!("Revision '{name}' is not ready and cannot serve traffic. {}", outcome.message)
}

fn routes_ready(seen: Seen<'_>, configurations: &Condition) -> Condition {
    let kind = "RoutesReady";
    let at = configurations.at.as_str();
    let serves = seen.plan.traffic_in_force.iter().any(|target| target.percent > 0);
    let follows_latest = follows_latest(seen.plan);
    let failed = configurations.truth == Truth::False;
    match (seen.plan.traffic_is_declared && serves, follows_latest, configurations.truth) {
        // The newest revision is still being tried, and requests are to follow it.
        (_, true, Truth::Unknown) | (true, false, _) if !seen.is_applied => {
            Condition::new(kind, Truth::Unknown, at)
                .because("Deploying", "Waiting for traffic to reach the declared revisions.")
        }
        (_, true, Truth::Unknown) => Condition::new(kind, Truth::Unknown, at)
            .because("Deploying", "Waiting for the newest revision to be ready."),
        (true, _, _) => Condition::new(kind, Truth::True, at),
        (false, _, _) if failed => Condition::new(kind, Truth::False, at)
            .because("RevisionFailed", configurations.message.clone()),
        (false, _, _) => match unready_target(seen.plan) {
            Some((name, true)) => Condition::new(kind, Truth::False, at).because(
                "RevisionFailed",
                format!("Revision '{name}' is not ready and cannot serve traffic."),
            ),
            Some((name, false)) => Condition::new(kind, Truth::Unknown, at)
                .because("Deploying", format!("Waiting for revision {name} to be ready.")),
            None => Condition::new(kind, Truth::Unknown, at)
                .because("Deploying", "Waiting for a revision to be ready."),
        },
    }
}

/// Whether some requests are to go to whichever revision is the newest.
fn follows_latest(plan: &ServicePlan) -> bool {
    use model::run::RevisionChoice::{Latest, Named};
    let newest = plan.latest_created.as_ref().map(|revision| &revision.name.name);
    let declared = &plan.declared.traffic;
    declared.is_empty()
        || declared.iter().any(|target| {
            let is_newest = match &target.revision {
                Latest => true,
                Named(name) => Some(name) == newest,
            };
            target.percent > 0 && is_newest
        })
}

/// A declared target that cannot serve, and whether it never will.
fn unready_target(plan: &ServicePlan) -> Option<(&str, bool)> {
    plan.declared.traffic.iter().filter(|target| target.percent > 0).find_map(|target| {
        let model::run::RevisionChoice::Named(name) = &target.revision else { return None };
        let revision = plan.revisions.get(name)?;
        let has_failed = revision.declared.outcome.is_some();
        (!revision.declared.is_ready()).then_some((name.as_str(), has_failed))
    })
}

/// Two moments as this server writes them compare as texts.
fn latest_of<'a>(one: &'a str, other: &'a str) -> &'a str {
    if one > other { one } else { other }
}

/// The status of a service as v1 writes it.
pub(crate) fn service_v1(seen: Seen<'_>) -> Value {
    let conditions = service_conditions(seen);
    let mut status = Map::new();
    status.insert("observedGeneration".into(), seen.service.generation().into());
    let conditions: Vec<Value> = conditions.iter().map(Condition::to_v1).collect();
    status.insert("conditions".into(), conditions.into());
    if let Some(created) = &seen.plan.latest_created {
        status.insert("latestCreatedRevisionName".into(), created.name.name.as_str().into());
    }
    if let Some(ready) = &seen.plan.latest_ready {
        status.insert("latestReadyRevisionName".into(), ready.name.name.as_str().into());
    }
    if let Some(url) = url(seen.plan) {
        status.insert("url".into(), url.clone().into());
        status.insert("address".into(), json!({ "url": url }));
    }
    let traffic = traffic_v1(seen.plan);
    if !traffic.is_empty() {
        status.insert("traffic".into(), traffic.into());
    }
    Value::Object(status)
}

/// `status.traffic`: what is in force, names resolved, tags with their addresses.
pub(crate) fn traffic_v1(plan: &ServicePlan) -> Vec<Value> {
    let entry = |target: &TrafficInForce| {
        let mut entry = json!({ "revisionName": target.revision.name.name.as_str() });
        if target.percent > 0 {
            entry["percent"] = target.percent.into();
        }
        if target.latest {
            entry["latestRevision"] = true.into();
        }
        if let Some(tag) = &target.tag {
            entry["tag"] = tag.as_str().into();
            if let Some(url) = tag_url(plan, tag) {
                entry["url"] = url.into();
            }
        }
        entry
    };
    plan.traffic_in_force.iter().map(entry).collect()
}

/// The addresses of a service, the one with the project's number first; none when switched off.
pub(crate) fn urls(plan: &ServicePlan) -> Vec<String> {
    match plan.declared.default_url_disabled {
        true => Vec::new(),
        false => plan.hosts.iter().map(|host| format!("https://{host}")).collect(),
    }
}

/// The address of a service.
pub(crate) fn url(plan: &ServicePlan) -> Option<String> {
    urls(plan).into_iter().next()
}

/// The address of a tag.
pub(crate) fn tag_url(plan: &ServicePlan, tag: &str) -> Option<String> {
    let host = plan.hosts.first().filter(|_| !plan.declared.default_url_disabled)?;
    Some(format!("https://{tag}---{host}"))
}

/// The conditions of a revision.
pub(crate) fn revision_conditions(
    document: &RevisionDocument,
    role: Option<Role>,
) -> Vec<Condition> {
    let created = super::document::text(&document.resource, "/metadata/creationTimestamp");
    let all = |truth: Truth, at: &str, kinds: &[&'static str]| -> Vec<Condition> {
        kinds.iter().map(|kind| Condition::new(kind, truth, at)).collect()
    };
    let Some(outcome) = &document.outcome else {
        let kinds = ["Ready", "ContainerHealthy", "ResourcesAvailable"];
        let mut conditions = all(Truth::Unknown, created, &kinds);
        for condition in &mut conditions {
            condition.reason = "Deploying".to_owned();
            condition.message = "Starting the first instance of the revision.".to_owned();
        }
        conditions.insert(1, Condition::new("Active", Truth::Unknown, created));
        return conditions;
    };
    let at = outcome.at.as_str();
    if !outcome.ready {
        let failed = |kind| {
            Condition::new(kind, Truth::False, at).because(&outcome.reason, &*outcome.message)
        };
        // An image that cannot be had is no fault of a container that never ran.
        let part = match outcome.reason.as_str() {
            "ContainerMissing" | "ContainerPermissionDenied" => "ContainerReady",
            _ => "ContainerHealthy",
        };
        let mut conditions = vec![failed("Ready"), Condition::new("Active", Truth::False, at)];
        conditions.push(failed(part));
        conditions.push(Condition::new("ResourcesAvailable", Truth::True, at));
        return conditions;
    }
    let kinds = ["Ready", "ContainerHealthy", "ContainerReady", "ResourcesAvailable"];
    let mut conditions = all(Truth::True, at, &kinds);
    let mut active = match role {
        Some(_) => Condition::new("Active", Truth::True, at),
        None => Condition::new("Active", Truth::False, at)
            .because("NoTraffic", "The revision is not serving any requests."),
    };
    active.is_informative = true;
    conditions.insert(1, active);
    conditions
}

/// The status of a revision as v1 writes it.
pub(crate) fn revision_v1(document: &RevisionDocument, role: Option<Role>) -> Value {
    let conditions: Vec<Value> =
        revision_conditions(document, role).iter().map(Condition::to_v1).collect();
    let mut status = json!({
        "observedGeneration": 1,
        "conditions": conditions,
        "serviceName": document.service,
    });
    let digests = image_digests(document);
    if let Some((_, digest)) = digests.first() {
        status["imageDigest"] = digest.as_str().into();
        let statuses: Vec<Value> = digests
            .iter()
            .map(|(name, digest)| json!({ "name": name, "imageDigest": digest }))
            .collect();
        status["containerStatuses"] = statuses.into();
    }
    status
}

/// Each container's name and its image with the digest it was resolved to, as clients take it for
/// an image again.
pub(crate) fn image_digests(document: &RevisionDocument) -> Vec<(String, String)> {
    let Some(outcome) = &document.outcome else { return Vec::new() };
    let containers = document.resource.pointer("/spec/containers").and_then(Value::as_array);
    let image_of = |name: &str| {
        let named = |container: &&Value| {
            let of_container = container.get("name").and_then(Value::as_str).unwrap_or_default();
            of_container == name || outcome.image_digests.len() == 1
        };
        containers?.iter().find(named)?.get("image")?.as_str()
    };
    let resolved = |(name, digest): &(String, String)| {
        let image = image_of(name)?;
        Some((name.clone(), format!("{}@{digest}", repository(image))))
    };
    outcome.image_digests.iter().filter_map(resolved).collect()
}

/// An image without its tag and digest.
fn repository(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    match image.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_pinned_without_its_tag_and_keeps_its_registrys_port() {
        for (image, expected) in [
            ("hello", "hello"),
            ("hello:v2", "hello"),
            ("localhost:5000/hello", "localhost:5000/hello"),
            ("localhost:5000/hello:v2", "localhost:5000/hello"),
            ("r.example/hello:v2@sha256:00", "r.example/hello"),
        ] {
            assert_eq!(repository(image), expected, "{image}");
        }
    }

    #[test]
    fn a_revision_whose_container_failed_says_why_and_blames_the_right_part() {
        for (reason, part) in [
            ("HealthCheckContainerError", "ContainerHealthy"),
            ("ContainerMissing", "ContainerReady"),
        ] {
            let document = RevisionDocument {
                resource: json!({ "metadata": { "name": "s-1", "creationTimestamp": "t0" } }),
                id: "1".to_owned(),
                service: "s".to_owned(),
                generation: 1,
                outcome: Some(OutcomeDocument {
                    ready: false,
                    reason: reason.to_owned(),
                    message: "It did not listen.".to_owned(),
                    image_digests: Vec::new(),
                    at: "t1".to_owned(),
                }),
            };
            let conditions = revision_conditions(&document, None);
            let said: Vec<_> = conditions.iter().map(|c| (c.kind, c.truth, &*c.message)).collect();
            assert_eq!(said[0], ("Ready", Truth::False, "It did not listen."));
            assert_eq!(said[2], (part, Truth::False, "It did not listen."));
        }
    }
}
