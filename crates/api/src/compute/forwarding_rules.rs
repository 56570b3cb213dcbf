//! Regional forwarding rules of internal Application Load Balancers.
//!
//! Invariant: a rule has a literal address and exactly one port from the moment it exists.

use super::addresses::free_address;
use super::collection::{Collection, Edit, typed, unserved};
use super::link::{Link, kept, link_to, read_link, required};
use super::names;
use crate::error::{ApiError, Reason};
use model::forwarding_rule::ForwardingRule;
use model::{Kind, Name, Resource, ResourceName};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most forwarding rules of a project.
pub(crate) const FORWARDING_RULES_MAX: usize = 10_000;
/// The only scheme there is here.
const SCHEME: &str = "INTERNAL_MANAGED";
/// Where the name of the reserved address is noted, which the client sees only as a literal.
const RESERVED: &str = "reservedAddress";

pub(crate) struct ForwardingRules;

impl Collection for ForwardingRules {
    fn kind(&self) -> Kind {
        Kind::ForwardingRule
    }

    fn methods(&self) -> &'static str {
        "forwardingRules"
    }

    fn word(&self) -> &'static str {
        "forwardingRule"
    }

    fn schema(&self) -> &'static Schema {
        compute::ForwardingRule::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[
            Link { key: "target", kinds: &[Kind::TargetHttpProxy, Kind::TargetHttpsProxy] },
            Link { key: "network", kinds: &[Kind::Network] },
            Link { key: "subnetwork", kinds: &[Kind::Subnetwork] },
        ]
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn immutable(&self) -> &'static [&'static str] {
        &[
            "IPAddress",
            "IPProtocol",
            "allowGlobalAccess",
            "loadBalancingScheme",
            "network",
            "portRange",
            "serviceLabel",
            "subnetwork",
            "target",
        ]
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("FORWARDING_RULES", FORWARDING_RULES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let rule: compute::ForwardingRule = typed(document)?;
        let notes = document.get(super::collection::INTERNAL);
        let reserved = notes.and_then(|notes| notes.get(RESERVED)?.as_str());
        let address = rule.ip_address.as_deref().unwrap_or_default();
        Ok(Resource::ForwardingRule(Arc::new(ForwardingRule {
            name: name.clone(),
            id: rule.id.map(|id| id.0).unwrap_or_default(),
            load_balancing_scheme: rule.load_balancing_scheme.unwrap_or_default().into(),
            network: required(rule.network.as_ref(), "resource.network")?,
            subnetwork: required(rule.subnetwork.as_ref(), "resource.subnetwork")?,
            address: literal(address)?,
            reserved_address: reserved.map(|link| kept(link, "resource.IPAddress")).transpose()?,
            port: port(rule.port_range.as_deref().unwrap_or_default())?,
            target: required(rule.target.as_ref(), "resource.target")?,
            allow_global_access: rule.allow_global_access.unwrap_or_default(),
            service_label: rule.service_label.filter(|label| !label.is_empty()).map(Name::from),
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        check_scheme(edit)?;
        edit.require("target")?;
        complete_port(edit)?;
        complete_network(edit)?;
        complete_address(edit)?;
        edit.default("IPProtocol", "TCP");
        if edit.text("IPProtocol") != Some("TCP") {
            let protocol = edit.text("IPProtocol").unwrap_or_default();
            let why = "Must be TCP for a forwarding rule with a target HTTP or HTTPS proxy.";
            return Err(ApiError::invalid_field("resource.IPProtocol", protocol, why));
        }
        edit.default("networkTier", "PREMIUM");
        complete_service_label(edit)
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        match verb {
            "setTarget" => match body.get("target").and_then(Value::as_str) {
                Some(link) if !link.is_empty() => {
                    let kinds = [Kind::TargetHttpProxy, Kind::TargetHttpsProxy];
                    edit.set("target", link_to(&read_link(link, &kinds, edit.base, "target")?));
                    Ok(())
                }
                _ => Err(ApiError::required("target")),
            },
            _ => Err(unserved(self.methods(), verb)),
        }
    }
}

fn literal(text: &str) -> Result<Ipv4Addr, ApiError> {
    text.parse().map_err(|_| {
        ApiError::invalid_field("resource.IPAddress", text, "Must be an IPv4 address.")
    })
}

/// The one port of `80-80` or `80`.
fn port(range: &str) -> Result<u16, ApiError> {
    let refuse = |why: &str| ApiError::invalid_field("resource.portRange", range, why);
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first == last => Ok(first),
        (Some(_), Some(_)) => Err(refuse(
            "Exactly one port must be specified for a forwarding rule with an HTTP or HTTPS target proxy.",
        )),
        _ => Err(refuse("Must be a port number between 1 and 65535.")),
    }
}

fn check_scheme(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    edit.default("loadBalancingScheme", "EXTERNAL");
    let scheme = edit.text("loadBalancingScheme").unwrap_or_default();
    if scheme != SCHEME {
        let why = "Only INTERNAL_MANAGED forwarding rules are supported by this server.";
        return Err(ApiError::invalid_field("resource.loadBalancingScheme", scheme, why));
    }
    if let Some(service) = edit.text("backendService") {
        let why = "A forwarding rule with a target proxy must not have a backend service.";
        return Err(ApiError::invalid_field("resource.backendService", service, why));
    }
    Ok(())
}

fn complete_port(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    if let Some(ports) = edit.object.get("ports") {
        let why = "Ports can only be specified for forwarding rules with a backend service; use portRange.";
        return Err(ApiError::invalid_field("resource.ports", &ports.to_string(), why));
    }
    edit.require("portRange")?;
    let port = port(edit.text("portRange").unwrap_or_default())?;
    edit.set("portRange", format!("{port}-{port}"));
    Ok(())
}

/// The network follows from the subnet, which a custom mode network demands.
fn complete_network(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    let inventory = edit.draft.before().compiled.inventory().clone();
    let Some(subnetwork) = edit.reference("subnetwork") else {
        return complete_subnetwork(edit, &inventory);
    };
    let Some(subnet) = inventory.subnetworks.get(&subnetwork) else {
        return Err(ApiError::not_found(&subnetwork.to_string()));
    };
    if !edit.object.contains_key("network") {
        edit.set("network", link_to(&subnet.network));
    }
    Ok(())
}

/// In an auto mode network, the subnet of the rule's region is meant.
fn complete_subnetwork(edit: &mut Edit<'_>, inventory: &model::Inventory) -> Result<(), ApiError> {
    let project = edit.name.project.clone();
    let network = edit
        .reference("network")
        .unwrap_or_else(|| ResourceName::global(&project, Kind::Network, "default"));
    let Some(known) = inventory.networks.get(&network) else {
        return Err(ApiError::not_found(&network.to_string()));
    };
    let region = edit.name.region().unwrap_or_default();
    let subnet = ResourceName::regional(&project, region, Kind::Subnetwork, &network.name);
    if known.auto_create_subnetworks && inventory.subnetworks.contains_key(&subnet) {
        edit.set("network", link_to(&network));
        edit.set("subnetwork", link_to(&subnet));
        return Ok(());
    }
    Err(ApiError::new(
        Reason::Invalid,
        "Invalid value for field 'resource.subnetwork': ''. Subnetwork must be specified for custom subnet mode network.",
    ))
}

/// The address: a literal, a reserved address by name or link, or the next free one of the subnet.
fn complete_address(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    let Some(given) = edit.text("IPAddress").map(str::to_string) else {
        let subnetwork = edit.reference("subnetwork");
        let subnetwork = subnetwork.ok_or_else(|| ApiError::required("resource.subnetwork"))?;
        let free = free_address(edit, "subnetwork", &subnetwork)?;
        edit.set("IPAddress", free.to_string());
        return Ok(());
    };
    if given.parse::<Ipv4Addr>().is_ok() {
        return Ok(());
    }
    let name = if names::is_name(&given) {
        let region = edit.name.region().unwrap_or_default();
        ResourceName::regional(&edit.name.project, region, Kind::Address, &given)
    } else {
        read_link(&given, &[Kind::Address], edit.base, "resource.IPAddress")?
    };
    let inventory = edit.draft.before().compiled.inventory();
    let Some(reserved) = inventory.addresses.get(&name) else {
        return Err(ApiError::not_found(&name.to_string()));
    };
    let Some(address) = reserved.address else {
        return Err(ApiError::new(Reason::NotReady, format!("The resource '{name}' is not ready")));
    };
    edit.set("IPAddress", address.to_string());
    edit.set(super::collection::INTERNAL, serde_json::json!({ RESERVED: name.to_string() }));
    Ok(())
}

/// `LABEL.RULE.il7.REGION.lb.PROJECT.internal`.
fn complete_service_label(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    let Some(label) = edit.text("serviceLabel").map(str::to_string) else { return Ok(()) };
    if !names::is_name(&label) {
        return Err(ApiError::invalid_field("resource.serviceLabel", &label, names::NAME_RULE));
    }
    let (name, project) = (&edit.name.name, &edit.name.project);
    let region = edit.name.region().unwrap_or_default();
    edit.set("serviceName", format!("{label}.{name}.il7.{region}.lb.{project}.internal"));
    Ok(())
}
