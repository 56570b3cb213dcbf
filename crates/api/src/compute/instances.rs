//! Client VMs.
//!
//! Invariant: an instance has its address from the moment it exists, and metadata and tags have each
//! their own fingerprint.

use super::addresses::free_address;
use super::collection::{Collection, Edit, INTERNAL, Object, Question, View, typed, unserved};
use super::link::{COMPUTE_BASE, Link, link_to, required};
use super::projects::{
    STALE_METADATA, checked_metadata, describe_metadata, items, metadata_fingerprint,
};
use super::{catalog, fingerprint};
use crate::error::{ApiError, Reason};
use crate::observed::InstanceStatus;
use model::instance::{Instance, NetworkInterface};
use model::{Kind, Location, Name, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most instances of a project.
pub(crate) const INSTANCES_MAX: usize = 1_000;
/// What an instance's virtual processor is called.
const CPU_PLATFORM: &str = "Intel Skylake";

pub(crate) struct Instances;

impl Collection for Instances {
    fn kind(&self) -> Kind {
        Kind::Instance
    }

    fn methods(&self) -> &'static str {
        "instances"
    }

    fn word(&self) -> &'static str {
        "instance"
    }

    fn schema(&self) -> &'static Schema {
        compute::Instance::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[
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

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("INSTANCES", INSTANCES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let instance: compute::Instance = typed(document)?;
        let notes = document.get(INTERNAL);
        let interfaces = instance.network_interfaces.unwrap_or_default();
        let accounts = instance.service_accounts.unwrap_or_default();
        let tags = instance.tags.and_then(|tags| tags.items).unwrap_or_default();
        Ok(Resource::Instance(Arc::new(Instance {
            name: name.clone(),
            id: instance.id.map(|id| id.0).unwrap_or_default(),
            interfaces: interfaces.iter().enumerate().map(interface).collect::<Result<_, _>>()?,
            tags: tags.into_iter().map(Name::from).collect(),
            metadata: document.get("metadata").map(items).unwrap_or_default(),
            service_accounts: accounts
                .into_iter()
                .filter_map(|a| a.email)
                .map(Name::from)
                .collect(),
            can_ip_forward: instance.can_ip_forward.unwrap_or_default(),
            deletion_protection: instance.deletion_protection.unwrap_or_default(),
            hostname: instance.hostname.filter(|name| !name.is_empty()).map(Name::from),
            running: notes.and_then(|notes| notes.get("running")?.as_bool()).unwrap_or(true),
            boot: notes.and_then(|notes| notes.get("boot")?.as_u64()).unwrap_or_default(),
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        complete_machine_type(edit)?;
        complete_disks(edit)?;
        complete_interfaces(edit)?;
        complete_accounts(edit);
        let metadata = edit.object.get("metadata").cloned().unwrap_or_else(|| json!({}));
        edit.set("metadata", checked_metadata(&metadata, "resource.metadata")?);
        stamp(edit);
        edit.default("canIpForward", false);
        edit.default("deletionProtection", false);
        edit.default("scheduling", json!({}));
        if let Some(Value::Object(scheduling)) = edit.object.get_mut("scheduling") {
            for (field, value) in [
                ("automaticRestart", json!(true)),
                ("onHostMaintenance", json!("MIGRATE")),
                ("preemptible", json!(false)),
                ("provisioningModel", json!("STANDARD")),
            ] {
                scheduling.entry(field).or_insert(value);
            }
        }
        edit.set("cpuPlatform", CPU_PLATFORM);
        edit.set("startRestricted", false);
        edit.set("lastStartTimestamp", edit.now);
        edit.set(INTERNAL, json!({ "running": true, "boot": 1 }));
        Ok(())
    }

    fn removing(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        if edit.object.get("deletionProtection") == Some(&true.into()) {
            let message = format!(
                "Invalid resource usage: 'Resource cannot be deleted if it's protected against deletion. Resource: '{}''.",
                edit.name
            );
            return Err(ApiError::new(Reason::Invalid, message));
        }
        Ok(())
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        match verb {
            "start" | "reset" => {
                let is_running = notes(edit).get("running") != Some(&false.into());
                if verb == "start" && is_running {
                    return Ok(());
                }
                if verb == "reset" && !is_running {
                    let message = format!("The resource '{}' is not ready", edit.name);
                    return Err(ApiError::new(Reason::NotReady, message));
                }
                let boot = notes(edit).get("boot").and_then(Value::as_u64).unwrap_or_default();
                edit.set(INTERNAL, json!({ "running": true, "boot": boot + 1 }));
                edit.set("lastStartTimestamp", edit.now);
            }
            "stop" => {
                let boot = notes(edit).get("boot").cloned().unwrap_or_default();
                edit.set(INTERNAL, json!({ "running": false, "boot": boot }));
                edit.set("lastStopTimestamp", edit.now);
            }
            "setMetadata" => {
                let current =
                    edit.object.get("metadata").map(metadata_fingerprint).unwrap_or_default();
                fingerprint::check(body.get("fingerprint"), &current, STALE_METADATA)?;
                edit.set("metadata", checked_metadata(body, "metadata")?);
                stamp(edit);
            }
            "setTags" => set_tags(edit, body)?,
            "setDeletionProtection" => {
                let on = edit.query.get("deletionProtection").is_none()
                    || edit.query.flag("deletionProtection");
                edit.set("deletionProtection", on);
            }
            _ => return Err(unserved(self.methods(), verb)),
        }
        Ok(())
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        let Some((name, document)) = question.subject else {
            return Err(unserved(self.methods(), question.verb));
        };
        match question.verb {
            "getSerialPortOutput" => serial_output(question, name),
            "getGuestAttributes" => guest_attributes(question, name, document),
            verb => Err(unserved(self.methods(), verb)),
        }
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let notes = object.get(INTERNAL);
        let is_meant_to_run = notes.and_then(|notes| notes.get("running")) != Some(&false.into());
        let seen = view.api.observed().instance_status(name);
        let status = match (is_meant_to_run, seen) {
            (true, Some(InstanceStatus::Running)) => InstanceStatus::Running,
            (true, Some(InstanceStatus::Provisioning) | None) => InstanceStatus::Provisioning,
            (true, Some(_)) => InstanceStatus::Staging,
            (false, Some(InstanceStatus::Terminated) | None) => InstanceStatus::Terminated,
            (false, Some(_)) => InstanceStatus::Stopping,
        };
        object.insert("status".into(), status.as_str().into());
        if let Some(metadata) = object.get_mut("metadata") {
            describe_metadata(metadata);
        }
    }
}

fn interface(
    (index, nic): (usize, &compute::NetworkInterface),
) -> Result<NetworkInterface, ApiError> {
    let field = |name: &str| format!("resource.networkInterfaces[{index}].{name}");
    let address = nic.network_ip.as_deref().filter(|text| !text.is_empty());
    let address = address.map(|text| {
        let why = "Must be an IPv4 address.";
        text.parse().map_err(|_| ApiError::invalid_field(&field("networkIP"), text, why))
    });
    Ok(NetworkInterface {
        network: required(nic.network.as_ref(), &field("network"))?,
        subnetwork: required(nic.subnetwork.as_ref(), &field("subnetwork"))?,
        address: address.transpose()?,
        external: nic.access_configs.as_ref().is_some_and(|configs| !configs.is_empty()),
    })
}

fn notes(edit: &Edit<'_>) -> Object {
    edit.object.get(INTERNAL).and_then(Value::as_object).cloned().unwrap_or_default()
}

/// Writes the fingerprints of metadata and tags.
fn stamp(edit: &mut Edit<'_>) {
    edit.default("metadata", json!({}));
    edit.default("tags", json!({}));
    if let Some(metadata) = edit.object.get_mut("metadata") {
        describe_metadata(metadata);
    }
    if let Some(Value::Object(tags)) = edit.object.get_mut("tags") {
        tags.remove("fingerprint");
        if tags.get("items").and_then(Value::as_array).is_some_and(|items| items.is_empty()) {
            tags.remove("items");
        }
        let print = fingerprint::of(&Value::Object(tags.clone()));
        tags.insert("fingerprint".into(), print.into());
    }
}

fn set_tags(edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
    let current = edit.object.get("tags").and_then(|tags| tags.get("fingerprint")?.as_str());
    let current = current.unwrap_or_default().to_string();
    let stale = "Supplied fingerprint does not match current tags fingerprint.";
    fingerprint::check(body.get("fingerprint"), &current, stale)?;
    let items = body.get("items").cloned().unwrap_or_else(|| json!([]));
    edit.set("tags", json!({ "items": items }));
    stamp(edit);
    Ok(())
}

fn complete_machine_type(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    edit.require("machineType")?;
    let given = edit.text("machineType").unwrap_or_default().to_string();
    let Location::Zone(zone) = &edit.name.location else { return Ok(()) };
    let suffix = given.rsplit_once("zones/").map(|(_, rest)| rest);
    let machine = suffix.and_then(|rest| rest.strip_prefix(&format!("{zone}/machineTypes/")));
    let Some(machine) = machine else {
        let why = format!("The machine type must be in the zone {zone}.");
        return Err(ApiError::invalid_field("resource.machineType", &given, &why));
    };
    let path = format!("projects/{}/zones/{zone}/machineTypes/{machine}", edit.name.project);
    if !catalog::is_machine_type(machine) {
        let why = format!("Machine type with name '{machine}' does not exist in zone '{zone}'.");
        return Err(ApiError::invalid_field("resource.machineType", &given, &why));
    }
    edit.set("machineType", format!("{COMPUTE_BASE}{path}"));
    Ok(())
}

fn complete_disks(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    let (project, name) = (edit.name.project.clone(), edit.name.name.clone());
    let zone = match &edit.name.location {
        Location::Zone(zone) => zone.clone(),
        _ => Name::from(""),
    };
    let Some(Value::Array(disks)) = edit.object.get_mut("disks") else {
        return Err(no_disks());
    };
    if disks.is_empty() {
        return Err(no_disks());
    }
    for (index, disk) in disks.iter_mut().filter_map(Value::as_object_mut).enumerate() {
        let image = disk.get("initializeParams").and_then(|p| p.get("sourceImage")?.as_str());
        if let Some(image) = image
            && !catalog::is_source_image(image)
        {
            let path = image.find("projects/").map_or(image, |start| &image[start..]);
            return Err(ApiError::not_found(path));
        }
        let device = format!("persistent-disk-{index}");
        let disk_name = if index == 0 { name.to_string() } else { format!("{name}-{index}") };
        let source = format!("{COMPUTE_BASE}projects/{project}/zones/{zone}/disks/{disk_name}");
        for (field, value) in [
            ("kind", json!("compute#attachedDisk")),
            ("type", json!("PERSISTENT")),
            ("mode", json!("READ_WRITE")),
            ("interface", json!("SCSI")),
            ("deviceName", json!(device)),
            ("source", json!(source)),
            ("index", json!(index)),
            ("boot", json!(index == 0)),
            ("autoDelete", json!(false)),
            ("diskSizeGb", json!("10")),
        ] {
            disk.entry(field).or_insert(value);
        }
    }
    Ok(())
}

fn no_disks() -> ApiError {
    ApiError::invalid_field("resource.disks", "", "No disks are specified.")
}

fn complete_interfaces(edit: &mut Edit<'_>) -> Result<(), ApiError> {
    edit.default("networkInterfaces", json!([{}]));
    let interfaces = edit.object.get("networkInterfaces").and_then(Value::as_array).cloned();
    let mut completed = Vec::new();
    for (index, interface) in interfaces.unwrap_or_default().into_iter().enumerate() {
        let Value::Object(interface) = interface else { continue };
        completed.push(Value::Object(complete_interface(edit, index, interface)?));
    }
    edit.set("networkInterfaces", completed);
    Ok(())
}

fn complete_interface(edit: &Edit<'_>, index: usize, mut nic: Object) -> Result<Object, ApiError> {
    let inventory = edit.draft.before().compiled.inventory();
    let field = |name: &str| format!("resource.networkInterfaces[{index}].{name}");
    let link = |nic: &Object, name: &str| {
        nic.get(name).and_then(Value::as_str).and_then(ResourceName::parse)
    };
    let (project, region) = (&edit.name.project, edit.name.region().unwrap_or_default());
    let subnetwork = match link(&nic, "subnetwork") {
        Some(subnetwork) => subnetwork,
        None => {
            let network = link(&nic, "network")
                .unwrap_or_else(|| ResourceName::global(project, Kind::Network, "default"));
            let Some(known) = inventory.networks.get(&network) else {
                return Err(ApiError::not_found(&network.to_string()));
            };
            if !known.auto_create_subnetworks {
                let why = "Subnetwork should be specified for custom subnetmode network.";
                return Err(ApiError::invalid_field(&field("network"), &link_to(&network), why));
            }
            ResourceName::regional(project, region, Kind::Subnetwork, &network.name)
        }
    };
    let Some(subnet) = inventory.subnetworks.get(&subnetwork) else {
        return Err(ApiError::not_found(&subnetwork.to_string()));
    };
    nic.insert("subnetwork".into(), link_to(&subnetwork).into());
    nic.entry("network").or_insert_with(|| link_to(&subnet.network).into());
    nic.insert("name".into(), format!("nic{index}").into());
    nic.insert("kind".into(), "compute#networkInterface".into());
    nic.entry("stackType").or_insert_with(|| "IPV4_ONLY".into());
    if nic.get("networkIP").and_then(Value::as_str).is_none_or(str::is_empty) {
        let place = format!("networkInterfaces[{index}].subnetwork");
        let free = free_address(edit, &place, &subnetwork)?;
        nic.insert("networkIP".into(), free.to_string().into());
    }
    if let Some(Value::Array(configs)) = nic.get_mut("accessConfigs") {
        for config in configs.iter_mut().filter_map(Value::as_object_mut) {
            // Without `natIP` clients reach the instance through the tunnel of the front door.
            config.remove("natIP");
            config.entry("kind").or_insert_with(|| "compute#accessConfig".into());
            config.entry("name").or_insert_with(|| "External NAT".into());
            config.entry("type").or_insert_with(|| "ONE_TO_ONE_NAT".into());
            config.entry("networkTier").or_insert_with(|| "PREMIUM".into());
        }
    }
    nic.remove("fingerprint");
    let print = fingerprint::of(&Value::Object(nic.clone()));
    nic.insert("fingerprint".into(), print.into());
    Ok(nic)
}

/// `default` stands for the project's own service account.
fn complete_accounts(edit: &mut Edit<'_>) {
    let email = format!("{}-compute@developer.gserviceaccount.com", edit.base.number);
    if let Some(Value::Array(accounts)) = edit.object.get_mut("serviceAccounts") {
        for account in accounts.iter_mut().filter_map(Value::as_object_mut) {
            if account.get("email") == Some(&"default".into()) {
                account.insert("email".into(), email.clone().into());
            }
        }
    }
}

fn serial_output(question: &Question<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let contents = question.view.api.observed().serial_output(name);
    let start = question.query.get("start").unwrap_or("0");
    let Ok(start) = start.parse::<usize>() else {
        return Err(ApiError::invalid_field("start", start, "Must be a non-negative integer."));
    };
    // A start inside a character begins at the next one.
    let from = (start..=contents.len()).find(|index| contents.is_char_boundary(*index));
    let from = from.unwrap_or(contents.len());
    Ok(json!({
        "kind": "compute#serialPortOutput",
        "selfLink": format!("{}/serialPort", link_to(name)),
        "contents": &contents[from..],
        "start": from.to_string(),
        "next": contents.len().to_string(),
    }))
}

/// The host keys, once the instance or its project wants guest attributes at all.
fn guest_attributes(
    question: &Question<'_>,
    name: &ResourceName,
    document: &Value,
) -> Result<Value, ApiError> {
    let path = question.query.get("queryPath").or(question.query.get("variableKey")).unwrap_or("");
    let project = question.view.state.get(&format!("projects/{}", name.project));
    let of = |metadata: Option<&Value>| {
        let items = metadata.map(items).unwrap_or_default();
        let setting = items.into_iter().find(|(key, _)| key.as_str() == "enable-guest-attributes");
        setting.map(|(_, value)| value.eq_ignore_ascii_case("true"))
    };
    let enabled = of(document.get("metadata"))
        .or_else(|| of(project.as_ref().and_then(|project| project.get("commonInstanceMetadata"))));
    let namespace = path.split('/').next().unwrap_or_default();
    let keys = question.view.api.observed().host_keys(name);
    let is_known = namespace.is_empty() || namespace == "hostkeys";
    if enabled != Some(true) || !is_known || keys.is_empty() {
        let message = format!("The resource '{path}' of type 'Guest Attribute' was not found.");
        return Err(ApiError::new(Reason::NotFound, message));
    }
    let wanted = path.split_once('/').map(|(_, key)| key).unwrap_or_default();
    let items: Vec<Value> = keys
        .iter()
        .filter(|(kind, _)| wanted.is_empty() || kind == wanted)
        .map(|(kind, key)| json!({ "namespace": "hostkeys", "key": kind, "value": key }))
        .collect();
    Ok(json!({
        "kind": "compute#guestAttributes",
        "queryPath": path,
        "queryValue": { "items": items },
        "selfLink": format!("{}/getGuestAttributes/{path}", link_to(name)),
    }))
}
