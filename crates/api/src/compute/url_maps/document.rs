//! A URL map in a file, as `gcloud compute url-maps export` writes it or a person does: YAML or JSON.
//!
//! Outside of a project a backend service may be called by its name alone; it then belongs to the map's
//! own project and region.

use super::super::link::{Base, link_to, normalise};
use super::super::region_url_maps::LINKS;
use super::meaning;
use model::url_map::UrlMap;
use model::{Kind, Problem, ResourceName};
use serde_json::Value;

/// The largest file that is read, in bytes.
pub(crate) const FILE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The project of a map that does not say.
const PROJECT: &str = "local";
/// The region of a map that does not say.
const REGION: &str = "local";

/// Why a file is not a URL map.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is longer than this program reads.
    #[error("the file is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge,
    /// It is neither YAML nor JSON.
    #[error("the file is not YAML or JSON: {0}")]
    Syntax(String),
    /// It is no URL map: unknown fields, wrong types, malformed links.
    #[error("{0}")]
    Shape(String),
}

/// Reads a URL map from a file's text. The problems are those that no world could mend.
pub fn parse_document(text: &str) -> Result<(UrlMap, Vec<Problem>), DocumentError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(DocumentError::TooLarge);
    }
    let mut document: Value = serde_saphyr::from_str(text)
        .map_err(|error| DocumentError::Syntax(error.to_string().lines().take(1).collect()))?;
    let name = own_name(&document);
    name_services(&mut document, &name);
    let base = Base { project: &name.project, number: 0 };
    normalise(&mut document, LINKS, base, "resource")
        .map_err(|error| DocumentError::Shape(error.message))?;
    let map = wire::parse(&document, "resource")
        .map_err(|error| DocumentError::Shape(error.to_string()))?;
    Ok(meaning(&name, map, document.to_string().len()))
}

/// The map's name in full: by its own link, or else with the project and region of the first service that
/// is named in full.
fn own_name(document: &Value) -> ResourceName {
    let text = |field: &str| document.get(field).and_then(Value::as_str);
    if let Some(name) = text("selfLink").and_then(ResourceName::parse)
        && name.kind == Kind::UrlMap
    {
        return name;
    }
    let own = text("name").unwrap_or("url-map");
    let region = text("region").and_then(|link| link.rsplit('/').next());
    let service = first_service(document);
    match &service {
        Some(service) => ResourceName {
            location: region.map_or_else(
                || service.location.clone(),
                |region| model::Location::Region(region.into()),
            ),
            kind: Kind::UrlMap,
            name: own.into(),
            project: service.project.clone(),
        },
        None => ResourceName::regional(PROJECT, region.unwrap_or(REGION), Kind::UrlMap, own),
    }
}

fn first_service(value: &Value) -> Option<ResourceName> {
    match value {
        Value::String(text) => {
            ResourceName::parse(text).filter(|name| name.kind == Kind::BackendService)
        }
        Value::Array(items) => items.iter().find_map(first_service),
        Value::Object(fields) => fields.values().find_map(first_service),
        _ => None,
    }
}

/// Makes links of services that are called by their name alone.
fn name_services(value: &mut Value, map: &ResourceName) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| name_services(item, map)),
        Value::Object(fields) => {
            for (key, inner) in fields.iter_mut() {
                match inner {
                    Value::String(text) if LINKS.iter().any(|link| link.key == key) => {
                        if !text.is_empty() && !text.contains('/') {
                            let name = text.as_str().into();
                            let kind = Kind::BackendService;
                            *text = link_to(&ResourceName { kind, name, ..map.clone() });
                        }
                    }
                    inner => name_services(inner, map),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_map_is_read_with_its_own_names() {
        let (map, problems) = parse_document(
            "
creationTimestamp: '2026-11-23T22:20:40.675-00:00'
defaultService: https://compute.googleapis.com/compute/v1/projects/p/regions/us-west1/backendServices/b
fingerprint: LjsZMpxk1uo=
hostRules:
- hosts:
  - a.example.com
  pathMatcher: pm1
id: '1234567890000001012'
kind: compute#urlMap
name: hello-map
pathMatchers:
- defaultService: https://compute.googleapis.com/compute/v1/projects/p/regions/us-west1/backendServices/b
  name: pm1
region: https://www.googleapis.com/compute/v1/projects/p/regions/us-west1
selfLink: https://www.googleapis.com/compute/v1/projects/p/regions/us-west1/urlMaps/hello-map
",
        )
        .expect("a URL map");
        assert_eq!(map.name.to_string(), "projects/p/regions/us-west1/urlMaps/hello-map");
        assert_eq!(map.id, 1_234_567_890_000_001_012);
        assert_eq!(map.host_rules.len(), 1);
        assert_eq!(problems, []);
    }

    #[test]
    fn a_service_may_be_called_by_its_name_alone() {
        let (map, _) = parse_document(r#"{"name": "m", "defaultService": "web"}"#).expect("a map");
        let service = map.default.service.expect("a service");
        assert_eq!(service.to_string(), "projects/local/regions/local/backendServices/web");
    }

    #[test]
    fn what_is_no_url_map_is_refused_with_its_field() {
        for (text, expected) in [
            ("a: [", "not YAML or JSON"),
            ("foo: 1", "Unknown name \"foo\""),
            ("hostRules: 5", "hostRules"),
            ("defaultService: a/b", "resource.defaultService"),
            ("defaultService: global/backendBuckets/b", "resource.defaultService"),
        ] {
            let error = parse_document(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
