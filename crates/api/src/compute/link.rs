//! References between resources: read in every form clients write, kept in the one form Google returns.
//!
//! Invariant: two links to one resource are the same text once normalised.

use crate::error::{ApiError, Reason};
use model::name::Scope;
use model::{Kind, Location, ResourceName};
use serde_json::Value;

/// What precedes a Compute resource's path in every link this server writes.
pub const COMPUTE_BASE: &str = "https://www.googleapis.com/compute/v1/";
/// What precedes a Certificate Manager resource's path.
pub const CERTIFICATE_MANAGER_BASE: &str = "//certificatemanager.googleapis.com/";

/// A field that holds links, found by its name at any depth of a resource.
#[derive(Debug)]
pub struct Link {
    /// The field's name.
    pub key: &'static str,
    /// What it may name.
    pub kinds: &'static [Kind],
}

/// Where the resource that holds the links lives.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// The project's id.
    pub project: &'a str,
    /// The project's number, which clients may write in its place.
    pub number: u64,
}

/// The link to a resource as this server writes it.
pub fn link_to(name: &ResourceName) -> String {
    match name.kind.scope() {
        Scope::Located => format!("{CERTIFICATE_MANAGER_BASE}{name}"),
        Scope::Compute | Scope::Project | Scope::Plain => format!("{COMPUTE_BASE}{name}"),
    }
}

/// The link to the region or zone of a resource, under the field that holds it.
pub(crate) fn location_link(project: &str, location: &Location) -> Option<(&'static str, String)> {
    match location {
        Location::Global => None,
        Location::Region(region) => {
            Some(("region", format!("{COMPUTE_BASE}projects/{project}/regions/{region}")))
        }
        Location::Zone(zone) => {
            Some(("zone", format!("{COMPUTE_BASE}projects/{project}/zones/{zone}")))
        }
    }
}

/// Reads a link in any form: a URL of any host, `projects/…`, or a path below the own project.
pub fn read_link(
    text: &str,
    kinds: &[Kind],
    base: Base<'_>,
    field: &str,
) -> Result<ResourceName, ApiError> {
    let trimmed = text.trim_start_matches('/');
    let whole = match trimmed.split('/').next() {
        Some("regions" | "zones" | "global") => format!("projects/{}/{trimmed}", base.project),
        _ => text.to_string(),
    };
    let malformed = || ApiError::invalid_field(field, text, "The URL is malformed.");
    let mut name = ResourceName::parse(&whole).ok_or_else(malformed)?;
    if name.project.as_str() == base.number.to_string() {
        name.project = base.project.into();
    }
    if kinds.contains(&name.kind) {
        return Ok(name);
    }
    let expected: Vec<&str> = kinds.iter().map(|kind| kind.collection()).collect();
    let why = format!(
        "Unexpected resource collection '{}'. Expected: '{}'.",
        name.kind.collection(),
        expected.join("', '")
    );
    Err(ApiError::invalid_field(field, text, &why))
}

/// Brings every link of a resource into its kept form.
pub(crate) fn normalise(
    value: &mut Value,
    links: &[Link],
    base: Base<'_>,
    path: &str,
) -> Result<(), ApiError> {
    match value {
        Value::Object(object) => {
            for (name, inner) in object.iter_mut() {
                let path = format!("{path}.{name}");
                match links.iter().find(|link| link.key == name) {
                    Some(link) => normalise_field(inner, link, base, &path)?,
                    None => normalise(inner, links, base, &path)?,
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                normalise(item, links, base, &format!("{path}[{index}]"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn normalise_field(
    value: &mut Value,
    link: &Link,
    base: Base<'_>,
    path: &str,
) -> Result<(), ApiError> {
    match value {
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => *text = link_to(&read_link(text, link.kinds, base, path)?),
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                normalise_field(item, link, base, &format!("{path}[{index}]"))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A link of a kept document, which was normalised when it was written.
pub(crate) fn kept(text: &str, field: &str) -> Result<ResourceName, ApiError> {
    ResourceName::parse(text)
        .ok_or_else(|| ApiError::invalid_field(field, text, "The URL is malformed."))
}

/// A link of a kept document that must be there.
pub(crate) fn required(text: Option<&String>, field: &str) -> Result<ResourceName, ApiError> {
    match text.filter(|text| !text.is_empty()) {
        Some(text) => kept(text, field),
        None => {
            Err(ApiError::new(Reason::Required, format!("Required field '{field}' not specified")))
        }
    }
}

/// A link of a kept document that may be absent or empty.
pub(crate) fn optional(
    text: Option<&String>,
    field: &str,
) -> Result<Option<ResourceName>, ApiError> {
    text.filter(|text| !text.is_empty()).map(|text| kept(text, field)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LINKS: &[Link] = &[
        Link { key: "network", kinds: &[Kind::Network] },
        Link { key: "sslCertificates", kinds: &[Kind::SslCertificate, Kind::Certificate] },
    ];

    fn normalised(mut value: Value) -> Result<Value, ApiError> {
        normalise(&mut value, LINKS, Base { project: "p", number: 42 }, "resource").map(|()| value)
    }

    #[test]
    fn every_form_of_a_link_becomes_the_one_google_returns() {
        let kept = "https://www.googleapis.com/compute/v1/projects/p/global/networks/n";
        for form in [
            "https://compute.googleapis.com/compute/v1/projects/p/global/networks/n",
            "http://127.0.0.1:1/compute/v1/projects/p/global/networks/n",
            "projects/p/global/networks/n",
            "projects/42/global/networks/n",
            "global/networks/n",
            "/global/networks/n",
            kept,
        ] {
            let value = normalised(json!({"a": [{"network": form}]})).expect(form);
            assert_eq!(value["a"][0]["network"], kept, "{form}");
        }
        let value = normalised(json!({"sslCertificates": [
            "regions/r/sslCertificates/c",
            "https://certificatemanager.googleapis.com/v1/projects/p/locations/r/certificates/c",
        ]}));
        assert_eq!(
            value.expect("links")["sslCertificates"],
            json!([
                "https://www.googleapis.com/compute/v1/projects/p/regions/r/sslCertificates/c",
                "//certificatemanager.googleapis.com/projects/p/locations/r/certificates/c",
            ])
        );
    }

    #[test]
    fn what_is_no_link_of_the_kind_is_refused_with_its_field() {
        for (form, message) in [
            ("n", "Invalid value for field 'resource.a[0].network': 'n'. The URL is malformed."),
            (
                "global/firewalls/n",
                "Invalid value for field 'resource.a[0].network': 'global/firewalls/n'. Unexpected resource collection 'firewalls'. Expected: 'networks'.",
            ),
        ] {
            let error = normalised(json!({"a": [{"network": form}]})).expect_err(form);
            assert_eq!(error.message, message);
        }
    }
}
