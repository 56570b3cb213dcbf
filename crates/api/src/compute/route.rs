//! Which method of the discovery document a request means.
//!
//! Invariant: among the methods whose path fits, the one with the fewest parameters is meant, so that
//! `sslPolicies/listAvailableFeatures` is a method and never a policy's name.

use crate::error::{ApiError, Reason};
use crate::query::decoded_segment;
use std::sync::LazyLock;
use wire::Method;
use wire::compute::METHODS;

/// `PATCH` on a regional HTTP proxy: not in the document, and what the how-to asks for.
static PATCH_HTTP_PROXY: Method = Method {
    id: "compute.regionTargetHttpProxies.patch",
    http_method: "PATCH",
    path: "projects/{project}/regions/{region}/targetHttpProxies/{targetHttpProxy}",
    query: &[wire::Parameter { name: "requestId", shape: wire::Shape::Text, repeated: false }],
    request: Some(<wire::compute::TargetHttpProxy as wire::Message>::schema),
};

/// A request's method and what its path says.
#[derive(Clone, Debug)]
pub(crate) struct Matched {
    pub(crate) method: &'static Method,
    /// The resource of the document, such as `regionUrlMaps`.
    pub(crate) resource: &'static str,
    /// The method's own name, such as `insert`.
    pub(crate) verb: &'static str,
    /// The path's parameters in order.
    pub(crate) parameters: Vec<(&'static str, String)>,
}

impl Matched {
    /// A path parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
    }

    /// The last path parameter: the resource's own name, when the method is about one resource.
    pub(crate) fn last_parameter(&self) -> Option<&str> {
        self.parameters.last().map(|(_, value)| value.as_str())
    }
}

struct Template {
    method: &'static Method,
    segments: Vec<Segment>,
    parameters: usize,
}

enum Segment {
    Literal(&'static str),
    Parameter(&'static str),
}

static TEMPLATES: LazyLock<Vec<Template>> = LazyLock::new(|| {
    let mut templates: Vec<Template> =
        METHODS.iter().chain([&PATCH_HTTP_PROXY]).map(template).collect();
    templates.sort_by_key(|template| template.parameters);
    templates
});

fn template(method: &'static Method) -> Template {
    let segment =
        |text: &'static str| match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(name) => Segment::Parameter(name),
            None => Segment::Literal(text),
        };
    let segments: Vec<Segment> = method.path.split('/').map(segment).collect();
    let parameters = segments.iter().filter(|s| matches!(s, Segment::Parameter(_))).count();
    Template { method, segments, parameters }
}

impl Template {
    fn matches(&self, path: &[String]) -> Option<Vec<(&'static str, String)>> {
        if path.len() != self.segments.len() {
            return None;
        }
        let mut parameters = Vec::new();
        for (segment, given) in self.segments.iter().zip(path) {
            match segment {
                Segment::Literal(literal) if literal != given => return None,
                Segment::Literal(_) => {}
                Segment::Parameter(name) => parameters.push((*name, given.clone())),
            }
        }
        Some(parameters)
    }
}

/// Finds the method of a path below `/compute/v1/`.
pub(crate) fn route(http_method: &str, path: &str) -> Result<Matched, ApiError> {
    let path: Vec<String> = path.split('/').map(decoded_segment).collect();
    let mut path_is_known = false;
    for template in TEMPLATES.iter() {
        let Some(parameters) = template.matches(&path) else { continue };
        path_is_known = true;
        if template.method.http_method == http_method {
            let id = template.method.id.trim_start_matches("compute.");
            let (resource, verb) = id.rsplit_once('.').unwrap_or((id, ""));
            return Ok(Matched { method: template.method, resource, verb, parameters });
        }
    }
    if path_is_known {
        return Err(ApiError::new(
            Reason::MethodNotAllowed,
            format!("The method {http_method} is not supported for this resource."),
        ));
    }
    Err(ApiError::new(
        Reason::NotFound,
        format!("The requested URL /compute/v1/{} was not found on this server.", path.join("/")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_method_name_one_method_of_the_document() {
        for (method, path, id) in [
            ("POST", "projects/p/global/networks", "networks.insert"),
            ("GET", "projects/p/regions/r/urlMaps/m", "regionUrlMaps.get"),
            ("PUT", "projects/p/regions/r/urlMaps/m", "regionUrlMaps.update"),
            ("POST", "projects/p/regions/r/urlMaps/m/validate", "regionUrlMaps.validate"),
            ("GET", "projects/p/aggregated/urlMaps", "urlMaps.aggregatedList"),
            ("GET", "projects/p", "projects.get"),
            ("POST", "projects/p/regions/r/operations/o/wait", "regionOperations.wait"),
            ("GET", "projects/p/global/images/family/debian-12", "images.getFromFamily"),
            (
                "GET",
                "projects/p/global/sslPolicies/listAvailableFeatures",
                "sslPolicies.listAvailableFeatures",
            ),
            ("PATCH", "projects/p/regions/r/targetHttpProxies/t", "regionTargetHttpProxies.patch"),
        ] {
            let matched = route(method, path).expect(path);
            assert_eq!(format!("{}.{}", matched.resource, matched.verb), id, "{method} {path}");
        }
    }

    #[test]
    fn what_is_no_method_is_refused() {
        for (method, path, reason) in [
            ("GET", "", Reason::NotFound),
            ("GET", "projects/p/global/cats", Reason::NotFound),
            ("PATCH", "projects/p/regions/r/networkEndpointGroups/n", Reason::MethodNotAllowed),
            ("GET", "projects/p/regions/r/urlMaps/m/extra/segments", Reason::NotFound),
        ] {
            assert_eq!(route(method, path).expect_err(path).reason, reason, "{method} {path}");
        }
    }
}
