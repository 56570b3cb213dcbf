//! Regional backend services.

use super::collection::{Collection, Edit, Object, Question, View, typed, unserved};
use super::link::{Link, kept, link_to};
use crate::error::{ApiError, Reason};
use model::backend_service::{Backend, BackendService, LogConfig, TIMEOUT_SECONDS_DEFAULT};
use model::{Kind, Name, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most backend services of a project.
pub(crate) const BACKEND_SERVICES_MAX: usize = 10_000;

pub(crate) struct BackendServices;

impl Collection for BackendServices {
    fn kind(&self) -> Kind {
        Kind::BackendService
    }

    fn methods(&self) -> &'static str {
        "regionBackendServices"
    }

    fn word(&self) -> &'static str {
        "backendService"
    }

    fn schema(&self) -> &'static Schema {
        compute::BackendService::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[
            Link { key: "group", kinds: &[Kind::NetworkEndpointGroup] },
            Link { key: "healthChecks", kinds: &[Kind::HealthCheck] },
            Link { key: "network", kinds: &[Kind::Network] },
        ]
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn immutable(&self) -> &'static [&'static str] {
        &["loadBalancingScheme"]
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("BACKEND_SERVICES", BACKEND_SERVICES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let service: compute::BackendService = typed(document)?;
        Ok(Resource::BackendService(Arc::new(meaning(name, service)?)))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.default("loadBalancingScheme", "EXTERNAL");
        fill_in(edit);
        Ok(())
    }

    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        let _ = before;
        fill_in(edit);
        Ok(())
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        match verb {
            // Clearing what cannot be set succeeds.
            "setSecurityPolicy" if body.get("securityPolicy").is_none_or(|p| p == "") => {
                edit.object.remove("securityPolicy");
                Ok(())
            }
            "setSecurityPolicy" => Err(ApiError::new(
                Reason::Unimplemented,
                "This server has no security policies: Google Cloud Armor is not part of it.",
            )),
            _ => Err(unserved(self.methods(), verb)),
        }
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        match question.verb {
            "getHealth" => get_health(question),
            "listUsable" => Err(unserved(self.methods(), "listUsable")),
            verb => Err(unserved(self.methods(), verb)),
        }
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let users = view.state.compiled.references.users_of(name);
        let mut users: Vec<String> = users.map(link_to).collect();
        users.dedup();
        if !users.is_empty() {
            let users: Vec<Value> = users.iter().map(|link| json!({ "reference": link })).collect();
            object.insert("usedBy".into(), users.into());
        }
    }
}

/// Serverless backends have no health of their own: the answer is that of a group without endpoints.
fn get_health(question: &Question<'_>) -> Result<Value, ApiError> {
    let group = question.body.get("group").and_then(Value::as_str).unwrap_or_default();
    if group.is_empty() {
        return Err(ApiError::required("resource.group"));
    }
    let kinds = [Kind::NetworkEndpointGroup];
    let group = super::link::read_link(group, &kinds, question.base, "resource.group")?;
    let inventory = question.view.state.compiled.inventory();
    let service = question.subject.and_then(|(name, _)| inventory.backend_services.get(name));
    if service.is_some_and(|service| service.backends.iter().any(|b| b.group == group)) {
        return Ok(json!({ "kind": "compute#backendServiceGroupHealth" }));
    }
    Err(ApiError::invalid_field(
        "resource.group",
        &link_to(&group),
        "The group is not a backend of the backend service.",
    ))
}

/// What Google's servers write into a backend service that leaves it out.
fn fill_in(edit: &mut Edit<'_>) {
    edit.default("protocol", "HTTP");
    edit.default("timeoutSec", TIMEOUT_SECONDS_DEFAULT);
    edit.default("sessionAffinity", "NONE");
    edit.default("connectionDraining", json!({ "drainingTimeoutSec": 0 }));
    if !edit.object.contains_key("portName") && edit.text("protocol") == Some("HTTP") {
        edit.set("portName", "http");
    }
    if let Some(Value::Array(backends)) = edit.object.get_mut("backends") {
        for backend in backends.iter_mut().filter_map(Value::as_object_mut) {
            backend.entry("balancingMode").or_insert_with(|| "UTILIZATION".into());
            backend.entry("capacityScaler").or_insert_with(|| 1.0.into());
        }
    }
    if let Some(Value::Object(log)) = edit.object.get_mut("logConfig")
        && log.get("enable") == Some(&true.into())
    {
        log.entry("sampleRate").or_insert_with(|| 1.0.into());
        log.entry("optionalMode").or_insert_with(|| "EXCLUDE_ALL_OPTIONAL".into());
    }
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    for field in ["backends", "healthChecks", "customRequestHeaders", "customResponseHeaders"] {
        if edit.object.get(field).is_some_and(is_empty) {
            edit.object.remove(field);
        }
    }
}

fn meaning(
    name: &ResourceName,
    service: compute::BackendService,
) -> Result<BackendService, ApiError> {
    let backends = service.backends.unwrap_or_default();
    let checks = service.health_checks.unwrap_or_default();
    let draining = service.connection_draining.and_then(|draining| draining.draining_timeout_sec);
    Ok(BackendService {
        name: name.clone(),
        id: service.id.map(|id| id.0).unwrap_or_default(),
        load_balancing_scheme: word(service.load_balancing_scheme, "EXTERNAL"),
        protocol: word(service.protocol, "HTTP"),
        port_name: service.port_name.filter(|name| !name.is_empty()).map(Name::from),
        timeout_seconds: whole_seconds("timeoutSec", service.timeout_sec, TIMEOUT_SECONDS_DEFAULT)?,
        backends: backends.into_iter().enumerate().map(backend).collect::<Result<_, _>>()?,
        health_checks: checks
            .iter()
            .enumerate()
            .map(|(index, check)| kept(check, &format!("resource.healthChecks[{index}]")))
            .collect::<Result<_, _>>()?,
        session_affinity: word(service.session_affinity, "NONE"),
        custom_request_headers: service.custom_request_headers.unwrap_or_default(),
        custom_response_headers: service.custom_response_headers.unwrap_or_default(),
        log: service.log_config.map(|log| log_config(*log)).unwrap_or_default(),
        draining_timeout_seconds: whole_seconds(
            "connectionDraining.drainingTimeoutSec",
            draining,
            0,
        )?,
        outlier_detection: service.outlier_detection.is_some(),
        circuit_breakers: service.circuit_breakers.is_some(),
        consistent_hash: service.consistent_hash.is_some(),
        locality_policy: service.locality_lb_policy.map(Name::from),
    })
}

fn word(given: Option<String>, default: &str) -> Name {
    given.map_or_else(|| default.into(), Name::from)
}

fn whole_seconds(field: &str, given: Option<i32>, default: u32) -> Result<u32, ApiError> {
    let Some(given) = given else { return Ok(default) };
    u32::try_from(given).map_err(|_| {
        let why = "Must be greater than or equal to 0";
        ApiError::invalid_field(&format!("resource.{field}"), &given.to_string(), why)
    })
}

fn backend((index, backend): (usize, compute::Backend)) -> Result<Backend, ApiError> {
    let field = format!("resource.backends[{index}].group");
    Ok(Backend {
        group: super::link::required(backend.group.as_ref(), &field)?,
        balancing_mode: backend.balancing_mode.map(Name::from),
        capacity_scaler: backend.capacity_scaler,
    })
}

fn log_config(log: compute::BackendServiceLogConfig) -> LogConfig {
    let default = LogConfig::default();
    LogConfig {
        enable: log.enable.unwrap_or(default.enable),
        sample_rate: log.sample_rate.unwrap_or(default.sample_rate),
        optional_mode: log.optional_mode.map_or(default.optional_mode, Name::from),
        optional_fields: log.optional_fields.unwrap_or_default(),
    }
}
