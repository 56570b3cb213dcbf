//! Regional health checks: kept for clients that declare them; serverless backends have none.

use super::collection::{Collection, Edit, typed};
use crate::error::ApiError;
use model::health_check::HealthCheck;
use model::{Kind, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most health checks of a project.
pub(crate) const HEALTH_CHECKS_MAX: usize = 10_000;
/// The longest interval and timeout, in seconds, and the greatest threshold.
const SECONDS_MAX: i64 = 300;
const THRESHOLD_MAX: i64 = 10;

/// The types with their field and default port.
const TYPES: &[(&str, &str, u16)] = &[
    ("GRPC", "grpcHealthCheck", 0),
    ("GRPC_WITH_TLS", "grpcTlsHealthCheck", 0),
    ("HTTP", "httpHealthCheck", 80),
    ("HTTP2", "http2HealthCheck", 443),
    ("HTTPS", "httpsHealthCheck", 443),
    ("SSL", "sslHealthCheck", 443),
    ("TCP", "tcpHealthCheck", 80),
];

pub(crate) struct HealthChecks;

impl Collection for HealthChecks {
    fn kind(&self) -> Kind {
        Kind::HealthCheck
    }

    fn methods(&self) -> &'static str {
        "regionHealthChecks"
    }

    fn word(&self) -> &'static str {
        "healthCheck"
    }

    fn schema(&self) -> &'static Schema {
        compute::HealthCheck::schema()
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("HEALTH_CHECKS", HEALTH_CHECKS_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let check: compute::HealthCheck = typed(document)?;
        let id = check.id.map(|id| id.0).unwrap_or_default();
        Ok(Resource::HealthCheck(Arc::new(HealthCheck { name: name.clone(), id })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.require("type")?;
        fill_in(edit)
    }

    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        let _ = before;
        fill_in(edit)
    }
}

fn fill_in(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    edit.default("checkIntervalSec", 5);
    edit.default("timeoutSec", 5);
    edit.default("healthyThreshold", 2);
    edit.default("unhealthyThreshold", 2);
    let number = |field: &str| edit.object.get(field).and_then(Value::as_i64).unwrap_or_default();
    for (field, max) in [
        ("checkIntervalSec", SECONDS_MAX),
        ("timeoutSec", SECONDS_MAX),
        ("healthyThreshold", THRESHOLD_MAX),
        ("unhealthyThreshold", THRESHOLD_MAX),
    ] {
        let value = number(field);
        if !(1..=max).contains(&value) {
            let why = format!("Must be between 1 and {max}.");
            return Err(ApiError::invalid_field(
                &format!("resource.{field}"),
                &value.to_string(),
                &why,
            ));
        }
    }
    if number("timeoutSec") > number("checkIntervalSec") {
        let why = "The timeout must not be greater than the check interval.";
        let value = number("timeoutSec").to_string();
        return Err(ApiError::invalid_field("resource.timeoutSec", &value, why));
    }
    let kind = edit.text("type").unwrap_or_default().to_string();
    let Some((_, field, port)) = TYPES.iter().find(|(known, ..)| *known == kind) else {
        return Err(ApiError::invalid_field("resource.type", &kind, "The type is not supported."));
    };
    let misplaced =
        TYPES.iter().find(|(_, other, _)| other != field && edit.object.contains_key(*other));
    if let Some((_, other, _)) = misplaced {
        let why = format!("The field cannot be specified for a health check of type {kind}.");
        return Err(ApiError::invalid_field(&format!("resource.{other}"), "", &why));
    }
    edit.default(field, json!({}));
    if let Some(Value::Object(settings)) = edit.object.get_mut(*field) {
        if *port != 0 && !settings.contains_key("portSpecification") {
            settings.entry("port").or_insert_with(|| (*port).into());
        }
        if kind.starts_with("HTTP") {
            settings.entry("requestPath").or_insert_with(|| "/".into());
        }
        if *port != 0 {
            settings.entry("proxyHeader").or_insert_with(|| "NONE".into());
        }
    }
    Ok(())
}
