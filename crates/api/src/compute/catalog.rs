//! What is there without anybody declaring it: regions, zones, machine types and images.
//!
//! Invariant: every zone belongs to the region its name starts with.

use super::call::Call;
use super::link::COMPUTE_BASE;
use super::list::Item;
use crate::error::ApiError;
use serde_json::{Value, json};

/// One region and the letters of its zones.
#[derive(Debug)]
pub struct Region {
    /// Its name.
    pub name: &'static str,
    letters: &'static str,
}

impl Region {
    /// The names of its zones.
    pub fn zones(&self) -> impl Iterator<Item = String> {
        self.letters.chars().map(move |letter| format!("{}-{letter}", self.name))
    }
}

const fn region(name: &'static str, letters: &'static str) -> Region {
    Region { name, letters }
}

/// The regions there are, by name.
pub static REGIONS: &[Region] = &[
    region("africa-south1", "abc"),
    region("asia-east1", "abc"),
    region("asia-east2", "abc"),
    region("asia-northeast1", "abc"),
    region("asia-northeast2", "abc"),
    region("asia-northeast3", "abc"),
    region("asia-south1", "abc"),
    region("asia-south2", "abc"),
    region("asia-southeast1", "abc"),
    region("asia-southeast2", "abc"),
    region("australia-southeast1", "abc"),
    region("australia-southeast2", "abc"),
    region("europe-central2", "abc"),
    region("europe-north1", "abc"),
    region("europe-southwest1", "abc"),
    region("europe-west1", "bcd"),
    region("europe-west10", "abc"),
    region("europe-west12", "abc"),
    region("europe-west2", "abc"),
    region("europe-west3", "abc"),
    region("europe-west4", "abc"),
    region("europe-west6", "abc"),
    region("europe-west8", "abc"),
    region("europe-west9", "abc"),
    region("me-central1", "abc"),
    region("me-central2", "abc"),
    region("me-west1", "abc"),
    region("northamerica-northeast1", "abc"),
    region("northamerica-northeast2", "abc"),
    region("northamerica-south1", "abc"),
    region("southamerica-east1", "abc"),
    region("southamerica-west1", "abc"),
    region("us-central1", "abcf"),
    region("us-east1", "bcd"),
    region("us-east4", "abc"),
    region("us-east5", "abc"),
    region("us-south1", "abc"),
    region("us-west1", "abc"),
    region("us-west2", "abc"),
    region("us-west3", "abc"),
    region("us-west4", "abc"),
];

/// When everything of this file came into being, as far as clients are told.
pub(crate) const CREATED: &str = "1969-12-31T16:00:00.000-08:00";

/// Machine types: name, virtual CPUs, memory in MiB.
const MACHINE_TYPES: &[(&str, u32, u32)] = &[
    ("e2-highcpu-2", 2, 2048),
    ("e2-medium", 2, 4096),
    ("e2-micro", 2, 1024),
    ("e2-small", 2, 2048),
    ("e2-standard-2", 2, 8192),
    ("e2-standard-4", 4, 16_384),
    ("f1-micro", 1, 614),
    ("g1-small", 1, 1740),
    ("n1-standard-1", 1, 3840),
    ("n1-standard-2", 2, 7680),
    ("n1-standard-4", 4, 15_360),
    ("n2-standard-2", 2, 8192),
    ("n2-standard-4", 4, 16_384),
];

/// The project whose images there are.
const IMAGE_PROJECT: &str = "debian-cloud";

/// Images: family, name, description.
const IMAGES: &[(&str, &str, &str)] = &[
    ("debian-11", "debian-11-bullseye-v20261110", "Debian, Debian GNU/Linux, 11 (bullseye), amd64"),
    ("debian-12", "debian-12-bookworm-v20261110", "Debian, Debian GNU/Linux, 12 (bookworm), amd64"),
    ("debian-13", "debian-13-trixie-v20261110", "Debian, Debian GNU/Linux, 13 (trixie), amd64"),
];

/// Whether there is a region of that name.
pub fn is_region(name: &str) -> bool {
    REGIONS.iter().any(|region| region.name == name)
}

/// Whether there is a zone of that name.
pub fn is_zone(name: &str) -> bool {
    let Some((region, letter)) = name.rsplit_once('-') else { return false };
    let of_region = REGIONS.iter().find(|known| known.name == region);
    of_region.is_some_and(|known| letter.len() == 1 && known.letters.contains(letter))
}

/// Whether images of that project can be asked for.
pub(crate) fn is_image_project(name: &str) -> bool {
    name == IMAGE_PROJECT
}

/// Whether there is a machine type of that name.
pub(crate) fn is_machine_type(name: &str) -> bool {
    machine(name).is_some()
}

fn machine(name: &str) -> Option<&'static (&'static str, u32, u32)> {
    // `custom-CPUS-MEMORY` types are taken as they are asked for.
    MACHINE_TYPES.iter().find(|(known, ..)| *known == name)
}

/// A number that is the same at every start and differs between names.
pub(crate) fn stable_id(text: &str) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    (hash >> 1).to_string()
}

fn zone_value(project: &str, region: &str, zone: &str) -> Value {
    let path = format!("projects/{project}/zones/{zone}");
    json!({
        "kind": "compute#zone",
        "id": stable_id(zone),
        "creationTimestamp": CREATED,
        "name": zone,
        "description": zone,
        "status": "UP",
        "region": format!("{COMPUTE_BASE}projects/{project}/regions/{region}"),
        "selfLink": format!("{COMPUTE_BASE}{path}"),
        "availableCpuPlatforms": ["Intel Skylake"],
    })
}

fn machine_value(project: &str, zone: &str, (name, cpus, memory): &(&str, u32, u32)) -> Value {
    json!({
        "kind": "compute#machineType",
        "id": stable_id(name),
        "creationTimestamp": CREATED,
        "name": name,
        "description": format!("{cpus} vCPUs, {memory} MB RAM"),
        "guestCpus": cpus,
        "memoryMb": memory,
        "imageSpaceGb": 0,
        "maximumPersistentDisks": 128,
        "maximumPersistentDisksSizeGb": "263168",
        "isSharedCpu": name.starts_with("e2-m") || name.starts_with("e2-s") || name.starts_with('f') || name.starts_with('g'),
        "zone": zone,
        "selfLink": format!("{COMPUTE_BASE}projects/{project}/zones/{zone}/machineTypes/{name}"),
    })
}

fn image_value((family, name, description): &(&str, &str, &str)) -> Value {
    json!({
        "kind": "compute#image",
        "id": stable_id(name),
        "creationTimestamp": "2026-11-10T08:00:00.000-08:00",
        "name": name,
        "family": family,
        "description": description,
        "architecture": "X86_64",
        "status": "READY",
        "sourceType": "RAW",
        "diskSizeGb": "10",
        "archiveSizeBytes": "1000000000",
        "licenses": [format!("{COMPUTE_BASE}projects/{IMAGE_PROJECT}/global/licenses/{name}")],
        "selfLink": format!("{COMPUTE_BASE}projects/{IMAGE_PROJECT}/global/images/{name}"),
    })
}

/// All zones.
pub(crate) fn zones(project: &str) -> Vec<Item<'static>> {
    let of_region = |region: &'static Region| {
        let item = move |zone: String| {
            Item::Fixed(format!("projects/x/zones/{zone}"), zone_value(project, region.name, &zone))
        };
        region.zones().map(item)
    };
    REGIONS.iter().flat_map(of_region).collect()
}

/// One zone.
pub(crate) fn zone(call: &Call<'_>) -> Result<Value, ApiError> {
    let (project, name) = (&call.project.id, call.matched.last_parameter().unwrap_or_default());
    let missing = || ApiError::not_found(&format!("projects/{project}/zones/{name}"));
    let region = name.rsplit_once('-').map(|(region, _)| region).filter(|_| is_zone(name));
    Ok(zone_value(project, region.ok_or_else(missing)?, name))
}

/// The machine types of one zone.
pub(crate) fn machine_types(project: &str, zone: &str) -> Vec<Item<'static>> {
    let item = |machine: &'static (&'static str, u32, u32)| {
        let key = format!("projects/x/zones/{zone}/{}", machine.0);
        Item::Fixed(key, machine_value(project, zone, machine))
    };
    MACHINE_TYPES.iter().map(item).collect()
}

/// The machine types of all zones.
pub(crate) fn all_machine_types(project: &str) -> Vec<Item<'static>> {
    let zones = REGIONS.iter().flat_map(|region| region.zones());
    zones.flat_map(|zone| machine_types(project, &zone)).collect()
}

/// One machine type.
pub(crate) fn machine_type(call: &Call<'_>, zone: &str) -> Result<Value, ApiError> {
    let (project, name) = (&call.project.id, call.matched.last_parameter().unwrap_or_default());
    let path = format!("projects/{project}/zones/{zone}/machineTypes/{name}");
    machine(name)
        .map(|found| machine_value(project, zone, found))
        .ok_or_else(|| ApiError::not_found(&path))
}

/// The images of a project.
pub(crate) fn images(project: &str) -> Vec<Item<'static>> {
    let item = |image: &'static (&'static str, &'static str, &'static str)| {
        Item::Fixed(format!("projects/x/global/{}", image.1), image_value(image))
    };
    if is_image_project(project) { IMAGES.iter().map(item).collect() } else { Vec::new() }
}

/// One image: by name, by family, or the view of a family that zones see.
pub(crate) fn image(call: &Call<'_>) -> Result<Value, ApiError> {
    let (project, name) = (&call.project.id, call.matched.last_parameter().unwrap_or_default());
    let by_family =
        call.matched.verb == "getFromFamily" || call.matched.resource == "imageFamilyViews";
    let fits =
        |image: &&(&str, &str, &str)| if by_family { image.0 == name } else { image.1 == name };
    let found = IMAGES.iter().find(fits).filter(|_| is_image_project(project));
    let collection = if by_family { "images/family" } else { "images" };
    let missing = || ApiError::not_found(&format!("projects/{project}/global/{collection}/{name}"));
    let value = image_value(found.ok_or_else(missing)?);
    if call.matched.resource == "imageFamilyViews" {
        return Ok(json!({ "image": value }));
    }
    Ok(value)
}

/// Whether an instance's disk may be made from this link: an image or a family of the known project.
pub(crate) fn is_source_image(link: &str) -> bool {
    let path = link.rsplit_once("projects/").map_or(link, |(_, path)| path);
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_known = IMAGES.iter().any(|(family, image, _)| *family == name || *image == name);
    is_known && path.starts_with(IMAGE_PROJECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_a_region_and_one_of_its_letters() {
        for (zone, known) in [
            ("us-west1-a", true),
            ("us-central1-f", true),
            ("us-west1-f", false),
            ("us-west1-", false),
            ("us-west1-ab", false),
            ("us-west9-a", false),
            ("us", false),
        ] {
            assert_eq!(is_zone(zone), known, "{zone}");
        }
    }

    #[test]
    fn the_how_tos_image_is_known_in_every_form() {
        for link in [
            "https://compute.googleapis.com/compute/v1/projects/debian-cloud/zones/-/imageFamilyViews/debian-12",
            "projects/debian-cloud/global/images/family/debian-12",
            "projects/debian-cloud/global/images/debian-12-bookworm-v20261110",
        ] {
            assert!(is_source_image(link), "{link}");
        }
        assert!(!is_source_image("projects/other/global/images/family/debian-12"));
    }
}
