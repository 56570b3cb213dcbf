//! Routes: those a client declares, and those that come with networks and subnets.

use super::collection::{Collection, Edit, INTERNAL, Object, View, typed};
use super::link::{COMPUTE_BASE, Link, kept, link_to, required};
use super::networks::generated_name;
use crate::error::{ApiError, Reason};
use ipnet::IpNet;
use model::route::{NextHop, PRIORITY_DEFAULT, Route};
use model::{Kind, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most routes of a project.
pub(crate) const ROUTES_MAX: usize = 10_000;

/// Fields of which a route has exactly one.
const NEXT_HOPS: &[&str] = &[
    "nextHopGateway",
    "nextHopInstance",
    "nextHopIp",
    "nextHopIlb",
    "nextHopVpnTunnel",
    "nextHopNetwork",
];

pub(crate) struct Routes;

impl Collection for Routes {
    fn kind(&self) -> Kind {
        Kind::Route
    }

    fn methods(&self) -> &'static str {
        "routes"
    }

    fn word(&self) -> &'static str {
        "route"
    }

    fn schema(&self) -> &'static Schema {
        compute::Route::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[
            Link { key: "network", kinds: &[Kind::Network] },
            Link { key: "nextHopNetwork", kinds: &[Kind::Network] },
            Link { key: "nextHopInstance", kinds: &[Kind::Instance] },
        ]
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("ROUTES", ROUTES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let route: compute::Route = typed(document)?;
        let destination = route.dest_range.as_deref().unwrap_or_default();
        let destination: IpNet = destination.parse().map_err(|_| {
            let why = "Must be a CIDR address range.";
            ApiError::invalid_field("resource.destRange", destination, why)
        })?;
        let next_hop = if route.next_hop_gateway.is_some() {
            NextHop::InternetGateway
        } else if let Some(network) = &route.next_hop_network {
            NextHop::Network(kept(network, "resource.nextHopNetwork")?)
        } else if let Some(instance) = &route.next_hop_instance {
            NextHop::Instance(kept(instance, "resource.nextHopInstance")?)
        } else if let Some(address) = &route.next_hop_ip {
            NextHop::Address(address.parse().map_err(|_| {
                ApiError::invalid_field("resource.nextHopIp", address, "Must be an IPv4 address.")
            })?)
        } else {
            let other = NEXT_HOPS.iter().find(|field| document.get(field).is_some());
            NextHop::Other((*other.unwrap_or(&"")).into())
        };
        let priority = route.priority.unwrap_or(PRIORITY_DEFAULT);
        Ok(Resource::Route(Arc::new(Route {
            name: name.clone(),
            id: route.id.map(|id| id.0).unwrap_or_default(),
            network: required(route.network.as_ref(), "resource.network")?,
            destination,
            priority,
            next_hop,
            tags: route.tags.unwrap_or_default().into_iter().map(Into::into).collect(),
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.require("network")?;
        edit.require("destRange")?;
        edit.default("priority", PRIORITY_DEFAULT);
        edit.set("routeType", "STATIC");
        let given: Vec<&&str> =
            NEXT_HOPS.iter().filter(|hop| edit.object.contains_key(**hop)).collect();
        match given[..] {
            [] => Err(ApiError::new(
                Reason::Invalid,
                "Exactly one next hop must be specified for a route.",
            )),
            [hop] if *hop == "nextHopNetwork" => Err(ApiError::invalid_field(
                "resource.nextHopNetwork",
                edit.text(hop).unwrap_or_default(),
                "Routes to a network are made with its subnetworks.",
            )),
            [hop] if *hop == "nextHopGateway" => {
                let gateway = edit.text(hop).unwrap_or_default();
                if !gateway.ends_with("global/gateways/default-internet-gateway") {
                    return Err(ApiError::invalid_field(
                        "resource.nextHopGateway",
                        gateway,
                        "Must be the default internet gateway.",
                    ));
                }
                edit.set("nextHopGateway", gateway_link(edit));
                Ok(())
            }
            [_] => Ok(()),
            _ => Err(ApiError::new(
                Reason::Invalid,
                "Only one next hop can be specified for a route.",
            )),
        }
    }

    fn removing(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        if edit.object.contains_key("nextHopNetwork") {
            return Err(ApiError::new(
                Reason::Invalid,
                format!("The local route '{}' of a subnetwork cannot be deleted.", edit.name),
            ));
        }
        Ok(())
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let _ = (view, name);
        object.entry("tags").or_insert_with(|| json!([]));
    }
}

fn gateway_link(edit: &Edit<'_>) -> String {
    let project = &edit.name.project;
    format!("{COMPUTE_BASE}projects/{project}/global/gateways/default-internet-gateway")
}

/// Adds the route to the internet that every network starts with.
pub(crate) fn add_default(edit: &mut Edit<'_>) {
    let hop = gateway_link(edit);
    let network = link_to(edit.name);
    let fields = json!({
        "description": "Default route to the Internet.",
        "destRange": "0.0.0.0/0",
        "priority": PRIORITY_DEFAULT,
        "nextHopGateway": hop,
        "network": network,
        "routeType": "STATIC",
        INTERNAL: { "automatic": true },
    });
    let name = generated_name(edit, "default-route");
    add(edit, &name, fields);
}

/// Adds the route to a subnet's range.
pub(crate) fn add_for_subnet(
    edit: &mut Edit<'_>,
    subnet: &ResourceName,
    network: &str,
    range: &str,
) {
    let fields = json!({
        "description": format!("Default local route to the subnetwork {range}."),
        "destRange": range,
        "priority": 0,
        "nextHopNetwork": network,
        "network": network,
        "routeType": "SUBNET",
        INTERNAL: { "automatic": true, "subnetwork": subnet.to_string() },
    });
    let name = generated_name(edit, "default-route-r");
    add(edit, &name, fields);
}

/// The key of the route that came with a subnet.
pub(crate) fn of_subnet(edit: &Edit<'_>, subnet: &ResourceName) -> Option<String> {
    let prefix = format!("projects/{}/global/routes/", subnet.project);
    let subnet = subnet.to_string();
    let before = edit.draft.before();
    let is_its = |document: &Value| {
        document.get(INTERNAL).and_then(|notes| notes.get("subnetwork")?.as_str()) == Some(&subnet)
    };
    before
        .scan(&prefix)
        .find(|(_, document)| is_its(&document.value()))
        .map(|(key, _)| key.to_string())
}

/// Moves the route of a subnet to its new range.
pub(crate) fn move_to(edit: &mut Edit<'_>, range: &str) {
    let Some(key) = of_subnet(edit, edit.name) else { return };
    let Some(Value::Object(mut route)) = edit.draft.get(&key) else {
        return;
    };
    route.insert("destRange".into(), range.into());
    let description = format!("Default local route to the subnetwork {range}.");
    route.insert("description".into(), description.into());
    edit.draft.put(key, Value::Object(route));
}

fn add(edit: &mut Edit<'_>, name: &str, fields: Value) {
    let name = ResourceName::global(&edit.name.project, Kind::Route, name);
    let Value::Object(mut object) = fields else { return };
    object.insert("kind".into(), "compute#route".into());
    object.insert("id".into(), edit.api.new_id().into());
    object.insert("name".into(), name.name.as_str().into());
    object.insert("creationTimestamp".into(), edit.now.into());
    object.insert("selfLink".into(), link_to(&name).into());
    edit.draft.put(name.to_string(), Value::Object(object));
}
