//! VPC networks.
//!
//! Invariant: a network has its default route from the start, and routes that came with it go with it.

use super::collection::{Collection, Edit, INTERNAL, Object, Question, View, typed};
use super::engine::shown;
use super::link::{COMPUTE_BASE, link_to};
use super::{catalog, firewalls, names, routes, subnetworks};
use crate::error::{ApiError, Reason};
use model::network::{MTU_BYTES_DEFAULT, Network, RoutingMode};
use model::{Kind, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most networks of a project.
pub(crate) const NETWORKS_MAX: usize = 100;

pub(crate) struct Networks;

impl Collection for Networks {
    fn kind(&self) -> Kind {
        Kind::Network
    }

    fn methods(&self) -> &'static str {
        "networks"
    }

    fn word(&self) -> &'static str {
        "network"
    }

    fn schema(&self) -> &'static Schema {
        compute::Network::schema()
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("NETWORKS", NETWORKS_MAX))
    }

    fn deletion_fails_late(&self) -> bool {
        true
    }

    fn immutable(&self) -> &'static [&'static str] {
        &["autoCreateSubnetworks", "description", "IPv4Range"]
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let network: compute::Network = typed(document)?;
        let mtu = network.mtu.unwrap_or_default();
        let mode = network.routing_config.and_then(|config| config.routing_mode);
        Ok(Resource::Network(Arc::new(Network {
            name: name.clone(),
            id: network.id.map(|id| id.0).unwrap_or_default(),
            auto_create_subnetworks: network.auto_create_subnetworks.unwrap_or_default(),
            mtu_bytes: if mtu == 0 {
                MTU_BYTES_DEFAULT
            } else {
                u32::try_from(mtu).unwrap_or_default()
            },
            routing_mode: match mode.as_deref() {
                Some("GLOBAL") => RoutingMode::Global,
                _ => RoutingMode::Regional,
            },
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        if !edit.object.contains_key("autoCreateSubnetworks") {
            return Err(ApiError::new(
                Reason::Invalid,
                "Legacy networks cannot be created. Set 'resource.autoCreateSubnetworks' to true for an auto mode network or to false for a custom mode network.",
            ));
        }
        edit.default("mtu", MTU_BYTES_DEFAULT);
        edit.default("routingConfig", json!({}));
        if let Some(Value::Object(routing)) = edit.object.get_mut("routingConfig") {
            routing.entry("routingMode").or_insert_with(|| "REGIONAL".into());
        }
        edit.default("networkFirewallPolicyEnforcementOrder", "AFTER_CLASSIC_FIREWALL");
        let id = edit.text("id").unwrap_or_default();
        let with_id = format!("{COMPUTE_BASE}projects/{}/global/networks/{id}", edit.name.project);
        edit.set("selfLinkWithId", with_id);
        routes::add_default(edit);
        if edit.object.get("autoCreateSubnetworks") == Some(&true.into()) {
            for (index, region) in catalog::REGIONS.iter().enumerate() {
                subnetworks::add_automatic(edit, region.name, index)?;
            }
        }
        Ok(())
    }

    fn removing(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        let inventory = edit.draft.before().compiled.inventory().clone();
        let own = |network: &ResourceName| network == edit.name;
        let mut gone: Vec<ResourceName> = Vec::new();
        gone.extend(inventory.routes.values().filter(|r| own(&r.network)).map(|r| r.name.clone()));
        gone.extend(
            inventory.subnetworks.values().filter(|s| own(&s.network)).map(|s| s.name.clone()),
        );
        for name in gone {
            let key = name.to_string();
            let came_along =
                edit.draft.get(&key).is_some_and(|d| d.get(INTERNAL).is_some_and(is_automatic));
            if came_along {
                edit.draft.delete(key);
            }
        }
        Ok(())
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        let _ = body;
        match verb {
            "switchToCustomMode" => {
                if edit.object.get("autoCreateSubnetworks") != Some(&true.into()) {
                    return Err(ApiError::new(
                        Reason::Invalid,
                        format!("Network '{}' is not in auto subnet mode.", edit.name),
                    ));
                }
                // What was made automatically is the user's own from now on.
                subnetworks::adopt(edit);
                edit.set("autoCreateSubnetworks", false);
                Ok(())
            }
            _ => Err(super::collection::unserved(self.methods(), verb)),
        }
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        let Some((name, _)) = question.subject else { return Ok(json!({})) };
        let state = question.view.state;
        let inventory = state.compiled.inventory();
        let rules: Vec<Value> = inventory
            .firewalls
            .values()
            .filter(|rule| &rule.network == name)
            .filter_map(|rule| {
                let document = state.get(&rule.name.to_string())?;
                Some(shown(question.view, &firewalls::Firewalls, &rule.name, &document))
            })
            .collect();
        Ok(json!({ "firewalls": rules }))
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let users = view.state.compiled.references.users_of(name);
        let subnets: Vec<Value> =
            users.filter(|user| user.kind == Kind::Subnetwork).map(|s| link_to(s).into()).collect();
        if !subnets.is_empty() {
            object.insert("subnetworks".into(), subnets.into());
        }
    }
}

/// Whether this server's notes on a document say that it came with another.
pub(crate) fn is_automatic(notes: &Value) -> bool {
    notes.get("automatic") == Some(&true.into())
}

/// A name for something nobody named: the prefix and sixteen hexadecimal digits.
pub(crate) fn generated_name(edit: &Edit<'_>, prefix: &str) -> String {
    let name = format!("{prefix}-{:016x}", edit.api.surroundings().random());
    debug_assert!(names::is_name(&name), "{name}");
    name
}
