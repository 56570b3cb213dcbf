//! VPC firewall rules.

use super::collection::{Collection, Edit, typed};
use super::link::{Link, required};
use crate::error::ApiError;
use ipnet::IpNet;
use model::firewall::{Direction, Firewall, PRIORITY_DEFAULT, Protocol, Traffic, parse_ports};
use model::{Kind, Name, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most firewall rules of a project.
pub(crate) const FIREWALLS_MAX: usize = 10_000;
/// Everywhere, which is meant when nothing is said.
const EVERYWHERE: &str = "0.0.0.0/0";

pub(crate) struct Firewalls;

impl Collection for Firewalls {
    fn kind(&self) -> Kind {
        Kind::Firewall
    }

    fn methods(&self) -> &'static str {
        "firewalls"
    }

    fn word(&self) -> &'static str {
        "firewall"
    }

    fn schema(&self) -> &'static Schema {
        compute::Firewall::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[Link { key: "network", kinds: &[Kind::Network] }]
    }

    fn immutable(&self) -> &'static [&'static str] {
        &["network", "direction"]
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("FIREWALLS", FIREWALLS_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let rule: compute::Firewall = typed(document)?;
        let allowed = rule.allowed.unwrap_or_default();
        let denied = rule.denied.unwrap_or_default();
        Ok(Resource::Firewall(Arc::new(Firewall {
            name: name.clone(),
            id: rule.id.map(|id| id.0).unwrap_or_default(),
            network: required(rule.network.as_ref(), "resource.network")?,
            priority: priority(rule.priority)?,
            direction: match rule.direction.as_deref() {
                Some("EGRESS") => Direction::Egress,
                _ => Direction::Ingress,
            },
            allowed: traffic("allowed", allowed.iter().map(|a| (&a.ip_protocol, &a.ports)))?,
            denied: traffic("denied", denied.iter().map(|d| (&d.ip_protocol, &d.ports)))?,
            source_ranges: ranges("sourceRanges", rule.source_ranges)?,
            destination_ranges: ranges("destinationRanges", rule.destination_ranges)?,
            source_tags: names(rule.source_tags),
            target_tags: names(rule.target_tags),
            source_service_accounts: names(rule.source_service_accounts),
            target_service_accounts: names(rule.target_service_accounts),
            disabled: rule.disabled.unwrap_or_default(),
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        fill_in(edit);
        Ok(())
    }

    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        // `update` may leave out what cannot change.
        let _ = before;
        fill_in(edit);
        Ok(())
    }
}

fn fill_in(edit: &mut Edit<'_>) {
    let project = edit.name.project.clone();
    let network =
        format!("{}projects/{project}/global/networks/default", super::link::COMPUTE_BASE);
    edit.default("network", network);
    edit.default("priority", PRIORITY_DEFAULT);
    edit.default("direction", "INGRESS");
    edit.default("disabled", false);
    edit.default("logConfig", json!({ "enable": false }));
    let is_empty = |field: &str| {
        edit.object.get(field).and_then(Value::as_array).is_none_or(|list| list.is_empty())
    };
    if edit.text("direction") == Some("EGRESS") {
        if is_empty("destinationRanges") {
            edit.set("destinationRanges", json!([EVERYWHERE]));
        }
    } else if is_empty("sourceRanges")
        && is_empty("sourceTags")
        && is_empty("sourceServiceAccounts")
    {
        edit.set("sourceRanges", json!([EVERYWHERE]));
    }
}

fn priority(given: Option<i32>) -> Result<u32, ApiError> {
    let given = given.unwrap_or(i32::try_from(PRIORITY_DEFAULT).unwrap_or_default());
    u32::try_from(given).map_err(|_| {
        let why = "Must be greater than or equal to 0";
        ApiError::invalid_field("resource.priority", &given.to_string(), why)
    })
}

fn traffic<'a>(
    list: &str,
    entries: impl Iterator<Item = (&'a Option<String>, &'a Option<Vec<String>>)>,
) -> Result<Vec<Traffic>, ApiError> {
    let entry = |(index, (protocol, ports)): (usize, (&Option<String>, &Option<Vec<String>>))| {
        let field = format!("resource.{list}[{index}]");
        let word = protocol.as_deref().unwrap_or_default();
        if word.is_empty() {
            return Err(ApiError::required(&format!("{field}.IPProtocol")));
        }
        let protocol = Protocol::parse(word).ok_or_else(|| {
            let why =
                "Must be a protocol name (tcp, udp, icmp, esp, ah, ipip, sctp, all) or number.";
            ApiError::invalid_field(&format!("{field}.IPProtocol"), word, why)
        })?;
        let ports = ports.as_deref().unwrap_or_default().iter().enumerate();
        let port = |(place, text): (usize, &String)| {
            parse_ports(text).ok_or_else(|| {
                let why = "Must be a port number or a range of port numbers.";
                ApiError::invalid_field(&format!("{field}.ports[{place}]"), text, why)
            })
        };
        Ok(Traffic { protocol, ports: ports.map(port).collect::<Result<_, _>>()? })
    };
    entries.enumerate().map(entry).collect()
}

fn ranges(field: &str, given: Option<Vec<String>>) -> Result<Vec<IpNet>, ApiError> {
    let range = |(index, text): (usize, String)| {
        // An address alone is a range of one.
        let parsed = text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        parsed.map_err(|_| {
            let why = "Must be a valid IP address or CIDR address range.";
            ApiError::invalid_field(&format!("resource.{field}[{index}]"), &text, why)
        })
    };
    given.unwrap_or_default().into_iter().enumerate().map(range).collect()
}

fn names(given: Option<Vec<String>>) -> Vec<Name> {
    given.unwrap_or_default().into_iter().map(Name::from).collect()
}
