//! Reserved regional addresses.
//!
//! Invariant: an internal address has its literal from the moment it exists.

use super::collection::{Collection, Edit, Object, View, typed};
use super::link::{Link, kept, link_to, optional};
use crate::error::ApiError;
use model::address::{Address, AddressPurpose, AddressType};
use model::{Kind, Resource, ResourceName};
use plan::network::address;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most reserved addresses of a project.
pub(crate) const ADDRESSES_MAX: usize = 10_000;

pub(crate) struct Addresses;

impl Collection for Addresses {
    fn kind(&self) -> Kind {
        Kind::Address
    }

    fn methods(&self) -> &'static str {
        "addresses"
    }

    fn word(&self) -> &'static str {
        "address"
    }

    fn schema(&self) -> &'static Schema {
        compute::Address::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[
            Link { key: "subnetwork", kinds: &[Kind::Subnetwork] },
            Link { key: "network", kinds: &[Kind::Network] },
        ]
    }

    fn has_labels(&self) -> bool {
        true
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("INTERNAL_ADDRESSES", ADDRESSES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let address: compute::Address = typed(document)?;
        Ok(Resource::Address(Arc::new(Address {
            name: name.clone(),
            id: address.id.map(|id| id.0).unwrap_or_default(),
            address: address.address.as_deref().map(literal).transpose()?,
            address_type: match address.address_type.as_deref() {
                Some("INTERNAL") => AddressType::Internal,
                _ => AddressType::External,
            },
            purpose: match address.purpose.as_deref() {
                None | Some("GCE_ENDPOINT") => AddressPurpose::GceEndpoint,
                Some("SHARED_LOADBALANCER_VIP") => AddressPurpose::SharedLoadBalancerVip,
                Some(_) => AddressPurpose::Other,
            },
            subnetwork: optional(address.subnetwork.as_ref(), "resource.subnetwork")?,
            network: optional(address.network.as_ref(), "resource.network")?,
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.default("addressType", "EXTERNAL");
        if edit.text("addressType") != Some("INTERNAL") {
            let why = "This server has no external addresses to reserve; specify INTERNAL and a subnetwork.";
            return Err(ApiError::invalid_field("resource.addressType", "EXTERNAL", why));
        }
        edit.default("purpose", "GCE_ENDPOINT");
        edit.default("networkTier", "PREMIUM");
        edit.default("ipVersion", "IPV4");
        match (edit.text("address").is_some(), edit.text("subnetwork")) {
            (false, Some(subnetwork)) => {
                let subnetwork = kept(subnetwork, "resource.subnetwork")?;
                let free = free_address(edit, "subnetwork", &subnetwork)?;
                edit.set("address", free.to_string());
            }
            (false, None) => edit.require("subnetwork")?,
            (true, _) => {}
        }
        Ok(())
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let users = users(view, name, object);
        let status = if users.is_empty() { "RESERVED" } else { "IN_USE" };
        object.insert("status".into(), status.into());
        if !users.is_empty() {
            object.insert("users".into(), users.into());
        }
    }
}

fn literal(text: &str) -> Result<Ipv4Addr, ApiError> {
    text.parse()
        .map_err(|_| ApiError::invalid_field("resource.address", text, "Must be an IPv4 address."))
}

/// The lowest free address of a subnet, for the resource being edited.
pub(crate) fn free_address(
    edit: &Edit<'_>,
    field: &str,
    subnetwork: &ResourceName,
) -> Result<Ipv4Addr, ApiError> {
    let inventory = edit.draft.before().compiled.inventory();
    address::allocate(inventory, edit.name, field, subnetwork)
        .map_err(|problem| ApiError::from_problem(&problem, &BTreeSet::new()))
}

/// Links to the forwarding rules and instances that use the address.
fn users(view: &View<'_>, name: &ResourceName, object: &Object) -> Vec<Value> {
    let inventory = view.state.compiled.inventory();
    let literal = object.get("address").and_then(Value::as_str).and_then(|text| text.parse().ok());
    let subnetwork = inventory.addresses.get(name).and_then(|address| address.subnetwork.as_ref());
    let mut users: BTreeSet<String> =
        view.state.compiled.references.users_of(name).map(link_to).collect();
    if let (Some(literal), Some(subnetwork)) = (literal, subnetwork) {
        let neighbours = view.state.compiled.references.users_of(subnetwork);
        users.extend(neighbours.filter(|user| has_address(view, user, literal)).map(link_to));
    }
    users.into_iter().map(Value::from).collect()
}

/// Whether a forwarding rule or an instance has the address.
fn has_address(view: &View<'_>, user: &ResourceName, address: Ipv4Addr) -> bool {
    let inventory = view.state.compiled.inventory();
    match inventory.get(user) {
        Some(Resource::ForwardingRule(rule)) => rule.address == address,
        Some(Resource::Instance(instance)) => {
            instance.interfaces.iter().any(|interface| interface.address == Some(address))
        }
        _ => false,
    }
}
