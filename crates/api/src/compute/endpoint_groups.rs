//! Regional network endpoint groups: the serverless ones.
//!
//! Invariant: a group names exactly one platform, and nothing about it ever changes.

use super::collection::{Collection, Edit, Question, typed, unserved};
use super::names;
use crate::error::{ApiError, Reason};
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::{Kind, Name, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most endpoint groups of a project.
pub(crate) const ENDPOINT_GROUPS_MAX: usize = 10_000;

/// The fields of which a serverless group has exactly one.
const PLATFORMS: &[&str] = &["cloudRun", "cloudFunction", "appEngine"];
/// Fields that a serverless group does not have.
const MISPLACED: &[&str] = &["network", "subnetwork", "defaultPort", "pscTargetService", "pscData"];

pub(crate) struct EndpointGroups;

impl Collection for EndpointGroups {
    fn kind(&self) -> Kind {
        Kind::NetworkEndpointGroup
    }

    fn methods(&self) -> &'static str {
        "regionNetworkEndpointGroups"
    }

    fn word(&self) -> &'static str {
        "networkEndpointGroup"
    }

    fn schema(&self) -> &'static Schema {
        compute::NetworkEndpointGroup::schema()
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("NETWORK_ENDPOINT_GROUPS", ENDPOINT_GROUPS_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let group: compute::NetworkEndpointGroup = typed(document)?;
        let endpoints = match group.cloud_run {
            Some(run) => Endpoints::CloudRun {
                service: given(run.service),
                tag: given(run.tag),
                url_mask: run.url_mask.filter(|mask| !mask.is_empty()),
            },
            None if group.cloud_function.is_some() => Endpoints::CloudFunction,
            None => Endpoints::AppEngine,
        };
        Ok(Resource::NetworkEndpointGroup(Arc::new(EndpointGroup {
            name: name.clone(),
            id: group.id.map(|id| id.0).unwrap_or_default(),
            endpoints,
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.require("networkEndpointType")?;
        let kind = edit.text("networkEndpointType").unwrap_or_default();
        if kind != "SERVERLESS" {
            let why = "Only SERVERLESS network endpoint groups are supported in this region.";
            return Err(ApiError::invalid_field("resource.networkEndpointType", kind, why));
        }
        for field in MISPLACED {
            if let Some(value) = edit.object.get(*field) {
                let shown = value.as_str().map_or_else(|| value.to_string(), str::to_string);
                let why = "The field is not supported for serverless network endpoint groups.";
                return Err(ApiError::invalid_field(&format!("resource.{field}"), &shown, why));
            }
        }
        let platforms: Vec<&&str> =
            PLATFORMS.iter().filter(|platform| edit.object.contains_key(**platform)).collect();
        match platforms[..] {
            [&"cloudRun"] => check_cloud_run(edit),
            [&"cloudFunction"] => check_target(edit, "cloudFunction", "function"),
            [_] => Ok(()),
            _ => Err(ApiError::new(
                Reason::Invalid,
                "Exactly one of cloudRun, cloudFunction and appEngine must be specified for a SERVERLESS network endpoint group.",
            )),
        }?;
        edit.set("size", 0);
        Ok(())
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        let _ = (edit, body);
        match verb {
            "attachNetworkEndpoints" | "detachNetworkEndpoints" => Err(ApiError::new(
                Reason::Invalid,
                "Network endpoints cannot be attached to or detached from a SERVERLESS network endpoint group.",
            )),
            _ => Err(unserved(self.methods(), verb)),
        }
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        let _ = question;
        let id = question.subject.map(|(name, _)| format!("{name}/listNetworkEndpoints"));
        Ok(json!({ "kind": "compute#networkEndpointGroupsListNetworkEndpoints", "id": id }))
    }
}

fn given(text: Option<String>) -> Option<Name> {
    text.filter(|text| !text.is_empty()).map(Name::from)
}

fn check_cloud_run(edit: &Edit<'_>) -> Result<(), ApiError> {
    check_target(edit, "cloudRun", "service")?;
    let run = edit.object.get("cloudRun");
    for field in ["service", "tag"] {
        let text = run.and_then(|run| run.get(field)?.as_str()).unwrap_or_default();
        if !text.is_empty() && !names::is_name(text) {
            let field = format!("resource.cloudRun.{field}");
            return Err(ApiError::invalid_field(&field, text, names::NAME_RULE));
        }
    }
    Ok(())
}

/// A platform's target is named, or extracted by a mask.
fn check_target(edit: &Edit<'_>, platform: &str, target: &str) -> Result<(), ApiError> {
    let text = |field: &str| {
        let value = edit.object.get(platform).and_then(|platform| platform.get(field)?.as_str());
        value.filter(|text| !text.is_empty())
    };
    // What a mask may say is judged where it is compiled.
    if text(target).is_some() || text("urlMask").is_some() {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::Invalid,
        format!(
            "One of resource.{platform}.{target} and resource.{platform}.urlMask must be specified."
        ),
    ))
}
