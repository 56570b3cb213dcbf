//! Regions, zones, machine types and images, and the quotas counted in regions and projects.

use super::call::Call;
use super::collection::unserved;
use super::link::COMPUTE_BASE;
use super::list::{self, Item, Scopes};
use super::{COLLECTIONS, catalog, names};
use crate::error::ApiError;
use crate::world::State;
use model::{Kind, Location};
use serde_json::{Value, json};

pub(crate) fn handle(call: &Call<'_>) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let project = &call.project.id;
    let zone = if let Location::Zone(zone) = &call.location { zone.as_str() } else { "" };
    match (call.matched.resource, call.matched.verb) {
        ("regions", "list") => {
            let items = catalog::REGIONS.iter().map(|region| region_item(&state, project, region));
            list::list(
                call,
                "region",
                &format!("projects/{project}/regions"),
                items.collect(),
                &state,
            )
        }
        ("regions", "get") => {
            let name = call.matched.last_parameter().unwrap_or_default();
            let found = catalog::REGIONS.iter().find(|region| region.name == name);
            let missing = || ApiError::not_found(&format!("projects/{project}/regions/{name}"));
            Ok(region_value(&state, project, found.ok_or_else(missing)?))
        }
        ("zones", "list") => {
            let path = format!("projects/{project}/zones");
            list::list(call, "zone", &path, catalog::zones(project), &state)
        }
        ("zones", "get") => catalog::zone(call),
        ("machineTypes", "list") => {
            let path = format!("projects/{project}/zones/{zone}/machineTypes");
            list::list(call, "machineType", &path, catalog::machine_types(project, zone), &state)
        }
        ("machineTypes", "aggregatedList") => {
            let items = catalog::all_machine_types(project);
            list::aggregated(call, "machineType", "machineTypes", Scopes::Zonal, items, &state)
        }
        ("machineTypes", "get") => catalog::machine_type(call, zone),
        ("images", "list") => {
            let path = format!("projects/{project}/global/images");
            list::list(call, "image", &path, catalog::images(project), &state)
        }
        ("images" | "imageFamilyViews", _) => catalog::image(call),
        (resource, verb) => Err(unserved(resource, verb)),
    }
}

fn region_item(state: &State, project: &str, region: &catalog::Region) -> Item<'static> {
    let key = format!("projects/x/regions/{}", region.name);
    Item::Fixed(key, region_value(state, project, region))
}

fn region_value(state: &State, project: &str, region: &catalog::Region) -> Value {
    let path = format!("projects/{project}/regions/{}", region.name);
    let zones: Vec<String> = region
        .zones()
        .map(|zone| format!("{COMPUTE_BASE}projects/{project}/zones/{zone}"))
        .collect();
    json!({
        "kind": "compute#region",
        "id": catalog::stable_id(region.name),
        "creationTimestamp": catalog::CREATED,
        "name": region.name,
        "description": region.name,
        "status": "UP",
        "zones": zones,
        "selfLink": format!("{COMPUTE_BASE}{path}"),
        "quotas": quotas(state, project, Some(region.name)),
    })
}

/// The quotas of a project's global resources.
pub(crate) fn project_quotas(state: &State, project: &str) -> Value {
    quotas(state, project, None)
}

/// What is counted: in the region, or globally when there is none.
fn quotas(state: &State, project: &str, region: Option<&str>) -> Value {
    let is_global = |kind: Kind| matches!(kind, Kind::Network | Kind::Firewall | Kind::Route);
    let counted = COLLECTIONS.iter().filter(|c| is_global(c.kind()) == region.is_none());
    let entry = |collection: &&&dyn super::collection::Collection| {
        let (metric, limit) = collection.quota()?;
        let usage = match region {
            Some(region) => {
                let plural = collection.kind().collection();
                let zonal = collection.kind() == Kind::Instance;
                let scopes: Vec<String> = match catalog::REGIONS.iter().find(|r| r.name == region) {
                    Some(region) if zonal => {
                        region.zones().map(|zone| format!("zones/{zone}")).collect()
                    }
                    _ => vec![format!("regions/{region}")],
                };
                let count = |scope: &String| {
                    state.scan(&format!("projects/{project}/{scope}/{plural}/")).count()
                };
                scopes.iter().map(count).sum()
            }
            None => names::used(state, collection.kind(), project, limit),
        };
        Some(json!({ "metric": metric, "limit": limit, "usage": usage }))
    };
    counted.collect::<Vec<_>>().iter().filter_map(entry).collect()
}
