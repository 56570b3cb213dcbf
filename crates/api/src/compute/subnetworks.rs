//! Subnets, the proxy-only ones included.
//!
//! Invariant: every subnet has its local route; a role swap changes both proxy-only subnets at once.

use super::collection::{Collection, Edit, INTERNAL, Object, Question, View, typed, unserved};
use super::link::{Link, link_to, location_link, required};
use super::networks::is_automatic;
use super::{fingerprint, list, routes};
use crate::error::{ApiError, Reason};
use ipnet::Ipv4Net;
use model::subnetwork::{Purpose, Role, Subnetwork};
use model::{Kind, Location, Name, Resource, ResourceName};
use plan::network::{problems, range};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most subnets of a project.
pub(crate) const SUBNETWORKS_MAX: usize = 10_000;
/// The longest drain of a former active proxy-only subnet, in seconds.
pub(crate) const DRAIN_SECONDS_MAX: i64 = 24 * 3600;
/// The prefix of the subnets of auto mode networks.
const AUTOMATIC_PREFIX: u8 = 20;

pub(crate) struct Subnetworks;

impl Collection for Subnetworks {
    fn kind(&self) -> Kind {
        Kind::Subnetwork
    }

    fn methods(&self) -> &'static str {
        "subnetworks"
    }

    fn word(&self) -> &'static str {
        "subnetwork"
    }

    fn schema(&self) -> &'static Schema {
        compute::Subnetwork::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[Link { key: "network", kinds: &[Kind::Network] }]
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn immutable(&self) -> &'static [&'static str] {
        &["network", "ipCidrRange", "description"]
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("SUBNETWORKS", SUBNETWORKS_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let subnet: compute::Subnetwork = typed(document)?;
        let purpose = subnet.purpose.as_deref().unwrap_or("PRIVATE");
        let secondary = subnet.secondary_ip_ranges.unwrap_or_default();
        Ok(Resource::Subnetwork(Arc::new(Subnetwork {
            name: name.clone(),
            id: subnet.id.map(|id| id.0).unwrap_or_default(),
            network: required(subnet.network.as_ref(), "resource.network")?,
            range: ipv4_range("resource.ipCidrRange", subnet.ip_cidr_range.as_deref())?,
            purpose: Purpose::parse(purpose).ok_or_else(|| {
                ApiError::invalid_field("resource.purpose", purpose, "The purpose is not known.")
            })?,
            role: match subnet.role.as_deref() {
                Some("ACTIVE") => Some(Role::Active),
                Some("BACKUP") => Some(Role::Backup),
                _ => None,
            },
            secondary_ranges: secondary
                .iter()
                .enumerate()
                .map(|(index, range)| {
                    let field = format!("resource.secondaryIpRanges[{index}].ipCidrRange");
                    let name = range.range_name.clone().unwrap_or_default();
                    Ok((Name::from(name), ipv4_range(&field, range.ip_cidr_range.as_deref())?))
                })
                .collect::<Result<_, ApiError>>()?,
            private_google_access: subnet.private_ip_google_access.unwrap_or_default(),
            log_config: document.get("logConfig").map(written),
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.require("network")?;
        edit.require("ipCidrRange")?;
        edit.default("purpose", "PRIVATE");
        let purpose = edit.text("purpose").and_then(Purpose::parse).unwrap_or_default();
        edit.default("stackType", "IPV4_ONLY");
        if purpose.is_proxy_only() {
            edit.set("state", "READY");
        } else {
            edit.default("privateIpGoogleAccess", false);
            edit.default("privateIpv6GoogleAccess", "DISABLE_GOOGLE_ACCESS");
        }
        let text = edit.text("ipCidrRange").unwrap_or_default().to_string();
        let range = ipv4_range("resource.ipCidrRange", Some(&text))?;
        edit.set("gatewayAddress", range::gateway(range).to_string());
        let network = edit.text("network").unwrap_or_default().to_string();
        let name = edit.name.clone();
        routes::add_for_subnet(edit, &name, &network, &text);
        Ok(())
    }

    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        check_purpose(edit, before)?;
        let (old, new) = (before.get("role"), edit.object.get("role").cloned());
        match (old, new) {
            (old, new) if old == new.as_ref() => Ok(()),
            (Some(_), Some(new)) if new == "ACTIVE" => swap_roles(edit),
            (_, new) => {
                let shown = new.as_ref().and_then(Value::as_str).unwrap_or_default();
                let why = "A subnetwork becomes BACKUP when another one becomes ACTIVE.";
                Err(ApiError::invalid_field("resource.role", shown, why))
            }
        }
    }

    fn removing(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        let inventory = edit.draft.before().compiled.inventory();
        if let Some(problem) = problems::subnet_deletion_problem(inventory, edit.name) {
            return Err(ApiError::from_problem(&problem, &BTreeSet::new()));
        }
        let own = inventory.subnetworks.get(edit.name);
        if let Some(subnet) =
            own.filter(|s| s.purpose.is_proxy_only() && s.role == Some(Role::Active))
        {
            let served = inventory.forwarding_rules.values().find(|rule| {
                rule.network == subnet.network && rule.name.region() == edit.name.region()
            });
            if let Some(rule) = served {
                return Err(ApiError::in_use(edit.name, &rule.name));
            }
        }
        if let Some(route) = routes::of_subnet(edit, edit.name) {
            edit.draft.delete(route);
        }
        Ok(())
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        match verb {
            "expandIpCidrRange" => expand(edit, body),
            "setPrivateIpGoogleAccess" => {
                let on =
                    body.get("privateIpGoogleAccess").and_then(Value::as_bool).unwrap_or_default();
                edit.set("privateIpGoogleAccess", on);
                Ok(())
            }
            _ => Err(unserved(self.methods(), verb)),
        }
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        // `listUsable`: the project's own subnets, as there is no sharing between projects.
        let state = question.view.state;
        let own = |subnet: &&Arc<Subnetwork>| subnet.name.project.as_str() == question.base.project;
        let items: Vec<Value> = state
            .compiled
            .inventory()
            .subnetworks
            .values()
            .filter(own)
            .take(list::PAGE_ITEMS_MAX)
            .map(|subnet| {
                json!({
                    "subnetwork": link_to(&subnet.name),
                    "network": link_to(&subnet.network),
                    "ipCidrRange": subnet.range.to_string(),
                    "purpose": subnet.purpose.as_str(),
                })
            })
            .collect();
        let path = format!("projects/{}/aggregated/subnetworks/listUsable", question.base.project);
        Ok(json!({ "kind": "compute#usableSubnetworksAggregatedList", "id": path, "items": items }))
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let _ = name;
        let until = object.get(INTERNAL).and_then(|notes| notes.get("drainingUntil")?.as_i64());
        let now = view.api.surroundings().now().unix_timestamp();
        if until.is_some_and(|until| now < until) {
            object.insert("state".into(), "DRAINING".into());
        }
    }
}

fn ipv4_range(field: &str, text: Option<&str>) -> Result<Ipv4Net, ApiError> {
    let text = text.unwrap_or_default();
    range::parse(text).map_err(|why| ApiError::invalid_field(field, text, why))
}

/// A message as Google repeats it in errors: `{ "enable": false}`.
fn written(value: &Value) -> String {
    let Value::Object(object) = value else { return value.to_string() };
    let fields: Vec<String> =
        object.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{ {}}}", fields.join(", "))
}

/// The purpose stays, except that the older kind of proxy-only subnet may become the newer.
fn check_purpose(edit: &Edit<'_>, before: &Value) -> Result<(), ApiError> {
    let old = before.get("purpose").and_then(Value::as_str).unwrap_or_default();
    let new = edit.text("purpose").unwrap_or_default();
    let migrates = old == "INTERNAL_HTTPS_LOAD_BALANCER" && new == "REGIONAL_MANAGED_PROXY";
    if old == new || migrates {
        return Ok(());
    }
    Err(ApiError::invalid_field("resource.purpose", new, "The purpose cannot be changed."))
}

/// Makes this subnet the active one; the one that was becomes its backup and drains.
fn swap_roles(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    let seconds = match edit.query.get("drainTimeoutSeconds") {
        None => 0,
        Some(text) => match text.parse::<i64>() {
            Ok(seconds) if (0..=DRAIN_SECONDS_MAX).contains(&seconds) => seconds,
            _ => {
                let why = format!("Must be between 0 and {DRAIN_SECONDS_MAX}.");
                return Err(ApiError::invalid_field("drainTimeoutSeconds", text, &why));
            }
        },
    };
    let inventory = edit.draft.before().compiled.inventory();
    let Some(own) = inventory.subnetworks.get(edit.name) else { return Ok(()) };
    let former = inventory.subnetworks.values().find(|other| {
        other.network == own.network
            && other.purpose == own.purpose
            && other.name.region() == own.name.region()
            && other.role == Some(Role::Active)
            && other.name != own.name
    });
    let Some(key) = former.map(|former| former.name.to_string()) else { return Ok(()) };
    let Some(Value::Object(mut former)) = edit.draft.get(&key) else {
        return Ok(());
    };
    let until = edit.api.surroundings().now().unix_timestamp() + seconds;
    former.insert("role".into(), "BACKUP".into());
    former.insert(INTERNAL.into(), json!({ "drainingUntil": until }));
    former.insert("fingerprint".into(), fingerprint::of_resource(&former).into());
    edit.draft.put(key, Value::Object(former));
    edit.object.remove(INTERNAL);
    Ok(())
}

fn expand(edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
    let text = body.get("ipCidrRange").and_then(Value::as_str).unwrap_or_default();
    if text.is_empty() {
        return Err(ApiError::required("ipCidrRange"));
    }
    // Clients send the old address with the new length.
    let wanted = ipv4_range("ipCidrRange", Some(text))?.trunc();
    let current = ipv4_range("resource.ipCidrRange", edit.text("ipCidrRange"))?;
    let purpose = edit.text("purpose").and_then(Purpose::parse).unwrap_or_default();
    if purpose.is_proxy_only() {
        let message = format!("Subnetworks with purpose {} cannot be expanded.", purpose.as_str());
        return Err(ApiError::new(Reason::Invalid, message));
    }
    if !wanted.contains(&current) || wanted == current.trunc() {
        let why =
            format!("The new range must contain and be larger than the current range {current}.");
        return Err(ApiError::invalid_field("ipCidrRange", text, &why));
    }
    let (range, gateway) = (wanted.to_string(), range::gateway(wanted).to_string());
    edit.set("ipCidrRange", range.clone());
    edit.set("gatewayAddress", gateway);
    routes::move_to(edit, &range);
    Ok(())
}

/// Adds the subnet an auto mode network has in a region: the region's own part of 10.128.0.0/9.
pub(crate) fn add_automatic(
    edit: &mut Edit<'_>,
    region: &str,
    index: usize,
) -> Result<(), ApiError> {
    let offset = u32::try_from(index).unwrap_or_default() << (32 - AUTOMATIC_PREFIX);
    let base = u32::from_be_bytes([10, 128, 0, 0]) + offset;
    let range = format!("{}/{AUTOMATIC_PREFIX}", std::net::Ipv4Addr::from_bits(base));
    let project = edit.name.project.clone();
    let name = ResourceName::regional(&project, region, Kind::Subnetwork, &edit.name.name);
    if edit.draft.contains(&name.to_string()) {
        return Err(ApiError::already_exists(&name.to_string()));
    }
    let network = link_to(edit.name);
    let mut object = Object::new();
    for (field, value) in [
        ("kind", "compute#subnetwork".to_string()),
        ("id", edit.api.new_id()),
        ("name", name.name.to_string()),
        ("creationTimestamp", edit.now.to_string()),
        ("selfLink", link_to(&name)),
        ("network", network.clone()),
        ("ipCidrRange", range.clone()),
        ("gatewayAddress", std::net::Ipv4Addr::from_bits(base + 1).to_string()),
        ("purpose", "PRIVATE".to_string()),
        ("stackType", "IPV4_ONLY".to_string()),
        ("privateIpv6GoogleAccess", "DISABLE_GOOGLE_ACCESS".to_string()),
    ] {
        object.insert(field.into(), value.into());
    }
    object.insert("privateIpGoogleAccess".into(), false.into());
    if let Some((field, link)) = location_link(&project, &Location::Region(region.into())) {
        object.insert(field.into(), link.into());
    }
    object.insert(INTERNAL.into(), json!({ "automatic": true }));
    object.insert("fingerprint".into(), fingerprint::of_resource(&object).into());
    edit.draft.put(name.to_string(), Value::Object(object));
    routes::add_for_subnet(edit, &name, &network, &range);
    Ok(())
}

/// Forgets that the subnets of a network were made automatically.
pub(crate) fn adopt(edit: &mut Edit<'_>) {
    let inventory = edit.draft.before().compiled.inventory().clone();
    for subnet in inventory.subnetworks.values().filter(|subnet| &subnet.network == edit.name) {
        let key = subnet.name.to_string();
        let Some(Value::Object(mut object)) = edit.draft.get(&key) else {
            continue;
        };
        if object.get(INTERNAL).is_some_and(is_automatic) {
            object.remove(INTERNAL);
            edit.draft.put(key, Value::Object(object));
        }
    }
}
