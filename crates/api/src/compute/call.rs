//! One request, read and checked as far as every method checks it.

use super::body::json_body;
use super::catalog;
use super::link::Base;
use super::operations::checked_request_id;
use super::route::{Matched, route};
use crate::Api;
use crate::authorization;
use crate::error::{ApiError, Reason};
use crate::http::{Principal, Request};
use crate::query::Query;
use crate::surroundings::pacific_timestamp;
use crate::world::State;
use model::{Kind, Location, Name, ResourceName};
use serde_json::Value;
use wire::compute::STANDARD_PARAMETERS;

/// The project a request is about.
#[derive(Clone, Debug)]
pub(crate) struct ProjectKey {
    pub(crate) id: Name,
    pub(crate) number: u64,
}

/// One request to Compute.
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Api,
    pub(crate) matched: Matched,
    pub(crate) project: ProjectKey,
    pub(crate) location: Location,
    pub(crate) query: Query,
    pub(crate) body: Option<Value>,
    pub(crate) request_id: Option<String>,
    pub(crate) principal: &'a Principal,
    /// The moment of the request, as Compute writes it.
    pub(crate) now: String,
}

impl<'a> Call<'a> {
    /// Reads a request whose path, below `/compute/v1/`, is given apart.
    pub(crate) fn read(
        api: &'a Api,
        request: &'a Request,
        path: &str,
    ) -> Result<Call<'a>, ApiError> {
        let matched = route(request.method.as_str(), path)?;
        let query = Query::parse(&request.query);
        check_query(&matched, &query)?;
        let state = api.world().state();
        let project = project(&state, &matched)?;
        let location = location(&matched)?;
        let body = json_body(request)?;
        if let (Some(schema), Some(body)) = (matched.method.request, &body) {
            wire::check(body, schema(), body_root(&matched))?;
        }
        let request_id = checked_request_id(query.get("requestId"))?.map(str::to_string);
        let now = pacific_timestamp(api.surroundings().now());
        let principal = &request.principal;
        Ok(Call { api, matched, project, location, query, body, request_id, principal, now })
    }

    pub(crate) fn base(&self) -> Base<'_> {
        Base { project: &self.project.id, number: self.project.number }
    }

    /// Refuses a caller that lacks the method's permission.
    pub(crate) fn check_permission(&self) -> Result<(), ApiError> {
        let Matched { resource, verb, .. } = self.matched;
        let named = match (self.resource_name(), &self.body) {
            (Some(name), _) => Some(name),
            (None, Some(body)) => body.get("name").and_then(Value::as_str),
            (None, None) => None,
        };
        let path = match (resource, named) {
            ("projects", _) | (_, None) => self.scope_path().trim_end_matches("/global").into(),
            (_, Some(name)) => format!("{}/{}/{name}", self.scope_path(), collection(resource)),
        };
        let method = (resource, verb);
        authorization::check_compute(self.api, self.principal, &self.project.id, method, &path)
    }

    /// The body of a method that cannot do without.
    pub(crate) fn required_body(&self) -> Result<&Value, ApiError> {
        self.body.as_ref().ok_or_else(|| ApiError::required("resource"))
    }

    /// `projects/P/global`, `projects/P/regions/R` or `projects/P/zones/Z`.
    pub(crate) fn scope_path(&self) -> String {
        let project = &self.project.id;
        match &self.location {
            Location::Global => format!("projects/{project}/global"),
            Location::Region(region) => format!("projects/{project}/regions/{region}"),
            Location::Zone(zone) => format!("projects/{project}/zones/{zone}"),
        }
    }

    /// The name in the path of the resource asked about, or its number.
    pub(crate) fn resource_name(&self) -> Option<&str> {
        let (name, value) = self.matched.parameters.last()?;
        (!["project", "region", "zone"].contains(name)).then_some(value.as_str())
    }

    /// The resource asked about and its document, by name or by numeric id.
    pub(crate) fn subject(
        &self,
        state: &State,
        kind: Kind,
    ) -> Result<(ResourceName, Value), ApiError> {
        let given = self.resource_name().unwrap_or_default();
        let name = ResourceName {
            project: self.project.id.clone(),
            location: self.location.clone(),
            kind,
            name: given.into(),
        };
        if let Some(document) = state.get(&name.to_string()) {
            return Ok((name, document));
        }
        if !given.is_empty() && given.bytes().all(|byte| byte.is_ascii_digit()) {
            let prefix = format!("{}/{}/", self.scope_path(), kind.collection());
            let has_id =
                |document: &Value| document.get("id").and_then(Value::as_str) == Some(given);
            let mut documents = state.scan(&prefix).map(|(key, document)| (key, document.value()));
            if let Some((key, document)) = documents.find(|(_, document)| has_id(document))
                && let Some(name) = ResourceName::parse(key)
            {
                return Ok((name, document));
            }
        }
        Err(ApiError::not_found(&name.to_string()))
    }
}

/// `urlMaps` of `regionUrlMaps`, which is how methods are told apart and not how paths are written.
fn collection(resource: &str) -> String {
    match resource.strip_prefix("region").filter(|rest| *rest != "s") {
        Some(rest) => rest[..1].to_ascii_lowercase() + &rest[1..],
        None => resource.to_owned(),
    }
}

/// Faults in a resource are told below `resource`, those in a verb's own message at the top.
fn body_root(matched: &Matched) -> &'static str {
    match matched.verb {
        "insert" | "patch" | "update" => "resource",
        _ => "",
    }
}

fn check_query(matched: &Matched, query: &Query) -> Result<(), ApiError> {
    for (name, value) in query.iter() {
        let known = |parameter: &&wire::Parameter| parameter.name == name;
        let standard = STANDARD_PARAMETERS.iter().find(known);
        match matched.method.query.iter().find(known).or(standard) {
            Some(parameter) => {
                let is_bound = name != "maxResults";
                if is_bound {
                    wire::check_parameter(name, value, &parameter.shape)?;
                }
            }
            // Clients' own system parameters, such as `$alt`, and one that gcloud sends with every
            // list although the document gives it to some only.
            None if name.starts_with('$') || name == "returnPartialSuccess" => {}
            None => {
                let message = format!(
                    "Invalid JSON payload received. Unknown name \"{name}\": Cannot bind query parameter. Field '{name}' could not be found in request message."
                );
                return Err(ApiError::new(Reason::BadRequest, message));
            }
        }
    }
    Ok(())
}

/// The project of the path, by id or by number.
fn project(state: &State, matched: &Matched) -> Result<ProjectKey, ApiError> {
    let given = matched.parameter("project").unwrap_or_default();
    let projects = &state.compiled.inventory().projects;
    if let Some(project) = projects.get(&ResourceName::project(given)) {
        return Ok(ProjectKey { id: project.name.name.clone(), number: project.number });
    }
    if let Ok(number) = given.parse::<u64>()
        && let Some(project) = projects.values().find(|project| project.number == number)
    {
        return Ok(ProjectKey { id: project.name.name.clone(), number });
    }
    let about_images = ["images", "imageFamilyViews"].contains(&matched.resource);
    if about_images && catalog::is_image_project(given) {
        return Ok(ProjectKey { id: given.into(), number: 0 });
    }
    Err(ApiError::new(Reason::NotFound, format!("Failed to find project {given}")))
}

fn location(matched: &Matched) -> Result<Location, ApiError> {
    // A region or zone that is itself asked about is looked up there.
    let is_about_itself = ["regions", "zones", "imageFamilyViews"].contains(&matched.resource);
    if let (Some(region), false) = (matched.parameter("region"), is_about_itself) {
        if !catalog::is_region(region) {
            return Err(ApiError::invalid_field("region", region, "Unknown region."));
        }
        return Ok(Location::Region(region.into()));
    }
    if let (Some(zone), false) = (matched.parameter("zone"), is_about_itself) {
        if !catalog::is_zone(zone) {
            return Err(ApiError::invalid_field("zone", zone, "Unknown zone."));
        }
        return Ok(Location::Zone(zone.into()));
    }
    Ok(Location::Global)
}
