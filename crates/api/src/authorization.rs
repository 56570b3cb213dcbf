//! Which permission a request needs, and whether its caller has it.
//!
//! The tables are pure. Invariant: a method that changes something and is served has a permission;
//! only what shows nothing of a project (roles, operations of a caller's own change) needs none.

use model::name::{Kind, ResourceName};
use serde_json::{Value, json};

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Principal, Request};
use crate::iam_policy;
use crate::one_platform::project;
use crate::query::decoded_segment;
use crate::resource_manager;
use crate::world::State;

/// What a request needs of its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Needed {
    permission: String,
    project: String,
    /// The service whose own policy may grant it too: region and name.
    service: Option<(String, String)>,
}

/// Refuses a request to one of the One Platform APIs whose caller lacks the permission.
pub(crate) fn check(api: &Api, request: &Request) -> Result<(), ApiError> {
    let state = api.world().state();
    let needed = match request.service.as_str() {
        "storage" => storage(request, &state),
        _ => needed(request),
    };
    let Some(needed) = needed else { return Ok(()) };
    // A project that does not exist is told apart by the method itself.
    let Some(project) = project(&state, &needed.project) else { return Ok(()) };
    let service = needed.service.as_ref().and_then(|(region, name)| {
        let name = ResourceName::regional(&project.id, region, Kind::Service, name);
        state.get(&name.to_string())?.get("policy").cloned()
    });
    let has_it = has(api, &state, &project.id, service.as_ref(), &request.principal, &needed);
    if has_it? {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::Forbidden,
        format!(
            "Permission '{}' denied on resource '{}' (or resource may not exist).",
            needed.permission,
            request.path.trim_start_matches('/')
        ),
    ))
}

/// Refuses a request to Compute whose caller lacks the permission for this method; `resource` is
/// the path of what it is about.
pub(crate) fn check_compute(
    api: &Api,
    principal: &Principal,
    project: &str,
    method: (&str, &str),
    resource: &str,
) -> Result<(), ApiError> {
    let permission = compute_permission(method.0, method.1);
    let needed = Needed { permission, project: project.to_owned(), service: None };
    if has(api, &api.world().state(), project, None, principal, &needed)? {
        return Ok(());
    }
    let message = format!("Required '{}' permission for '{resource}'", needed.permission);
    Err(ApiError::new(Reason::Forbidden, message))
}

fn has(
    api: &Api,
    state: &State,
    project: &str,
    policy: Option<&Value>,
    principal: &Principal,
    needed: &Needed,
) -> Result<bool, ApiError> {
    // Without identities there is nobody whose permissions could differ from another's; and
    // whoever holds the server's own token is never locked out by a policy.
    if api.platform().is_none() || *principal == api.owner() {
        return Ok(true);
    }
    let of_project = resource_manager::policy_of(api, state, project);
    let mut policies = vec![&of_project];
    policies.extend(policy);
    let wanted = json!({ "permissions": [needed.permission] });
    Ok(!iam_policy::held(&policies, principal, &wanted)?.is_empty())
}

/// The permission of a method of Compute, by the discovery document's words.
fn compute_permission(resource: &str, verb: &str) -> String {
    let resource = if resource == "imageFamilyViews" { "images" } else { resource };
    let verb = match (resource, verb) {
        // Reserving an internal address is a permission of its own.
        ("addresses", "insert") => "createInternal",
        ("addresses", "delete") => "deleteInternal",
        (_, "insert") => "create",
        (_, "aggregatedList" | "listAvailableFeatures") => "list",
        (_, "patch") => "update",
        (_, "wait" | "getHealth" | "listNetworkEndpoints" | "getFromFamily") => "get",
        (_, "getGuestAttributes" | "serialPort" | "getSerialPortOutput") => "get",
        (_, other) => other,
    };
    format!("compute.{resource}.{verb}")
}

/// What a request needs, if it needs anything.
fn needed(request: &Request) -> Option<Needed> {
    let path = request.path.trim_matches('/');
    let mut segments: Vec<String> = path.split('/').map(decoded_segment).collect();
    let last = segments.last_mut()?;
    let verb = match last.rsplit_once(':') {
        Some((name, verb)) => {
            let (name, verb) = (name.to_owned(), verb.to_owned());
            *last = name;
            verb
        }
        None => String::new(),
    };
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let method = (request.method.as_str(), verb.as_str());
    match request.service.as_str() {
        "run" => run(method, &segments, request.host_region.as_deref()),
        "cloudresourcemanager" => match segments[..] {
            ["v1", "projects", project] => {
                let verb = match method {
                    (_, "testIamPermissions") => return None,
                    (_, "") => "get",
                    (_, verb) => verb,
                };
                Some(of_project("resourcemanager.projects", verb, project))
            }
            _ => None,
        },
        "serviceusage" => match segments[..] {
            ["v1", "projects", project, "services", ..] => {
                let verb = match method {
                    (_, "batchEnable" | "enable") => "enable",
                    (_, "disable") => "disable",
                    _ if segments.len() == 4 => "list",
                    _ => "get",
                };
                Some(of_project("serviceusage.services", verb, project))
            }
            _ => None,
        },
        "certificatemanager" => match segments[..] {
            ["v1", "projects", project, "locations", _, "certificates", ref rest @ ..] => {
                let verb = crud(method.0, rest.is_empty());
                Some(of_project("certificatemanager.certs", verb, project))
            }
            _ => None,
        },
        "iam" => iam(method, &segments),
        "artifactregistry" | "cloudbuild" | "cloudfunctions" => built(method, &segments, request),
        // The projects are in the body; each is asked about where they are read.
        _ => None,
    }
}

fn of_project(collection: &str, verb: &str, project: &str) -> Needed {
    let permission = format!("{collection}.{verb}");
    Needed { permission, project: project.to_owned(), service: None }
}

/// The word in a permission for a plain method on a collection or one of its members.
fn crud(method: &str, is_collection: bool) -> &'static str {
    match (method, is_collection) {
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("DELETE", _) => "delete",
        _ => "update",
    }
}

fn run(method: (&str, &str), segments: &[&str], host_region: Option<&str>) -> Option<Needed> {
    let (project, region, rest) = match segments {
        ["apis", _, _, "namespaces", project, rest @ ..] => {
            (*project, host_region.unwrap_or_default(), rest)
        }
        ["v1" | "v2", "projects", project, "locations"] => {
            return Some(of_project("run.locations", "list", project));
        }
        ["v1" | "v2", "projects", project, "locations", region, rest @ ..] => {
            (*project, *region, rest)
        }
        _ => return None,
    };
    let (collection, name, service) = match rest {
        ["services", service, "revisions", name @ ..] => ("revisions", name, Some(*service)),
        ["services", service] => ("services", &rest[1..], Some(*service)),
        [collection, name @ ..] => (*collection, name, None),
        [] => return None,
    };
    let verb = match method.1 {
        "testIamPermissions" => return None,
        // Who was told of an operation may wait for it.
        "wait" => "get",
        "" => crud(method.0, name.is_empty()),
        verb => verb,
    };
    let mut needed = of_project(&format!("run.{collection}"), verb, project);
    needed.service = service.map(|service| (region.to_owned(), service.to_owned()));
    Some(needed)
}

/// The APIs that make images and what they are kept in.
fn built(method: (&str, &str), segments: &[&str], request: &Request) -> Option<Needed> {
    let [_, "projects", project, rest @ ..] = segments else { return None };
    let (collection, name) = match rest {
        ["locations", _, collection, name @ ..] => (*collection, name),
        ["builds", name @ ..] => ("builds", name),
        _ => return None,
    };
    let verb = match method.1 {
        "testIamPermissions" => return None,
        "generateUploadUrl" => "sourceCodeSet",
        "generateDownloadUrl" => "sourceCodeGet",
        "" => crud(method.0, name.is_empty()),
        verb => verb,
    };
    match collection {
        "functions" | "builds" | "repositories" => {
            Some(of_project(&format!("{}.{collection}", request.service), verb, project))
        }
        _ => None,
    }
}

/// Storage names no project in its paths; the bucket's is asked about.
fn storage(request: &Request, state: &State) -> Option<Needed> {
    let path = request.path.trim_matches('/');
    let segments: Vec<String> = path.split('/').map(decoded_segment).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (bucket, rest) = match segments[..] {
        ["storage", "v1", "b"] => {
            let query = crate::query::Query::parse(&request.query);
            let project = query.get("project")?.to_owned();
            let verb = crud(request.method.as_str(), true);
            return Some(of_project("storage.buckets", verb, &project));
        }
        ["storage", "v1", "b", bucket, ref rest @ ..] => (bucket, rest.to_vec()),
        ["upload", "storage", "v1", "b", bucket, ..]
        | ["resumable", "upload", "storage", "v1", "b", bucket, ..] => (bucket, vec!["o", ""]),
        [bucket, ..] => (bucket, vec!["o", ""]),
        [] => return None,
    };
    let project = crate::storage::project_of(state, bucket)?;
    let method = request.method.as_str();
    Some(match rest[..] {
        [] => of_project("storage.buckets", crud(method, false), &project),
        [_] => of_project("storage.objects", crud(method, true), &project),
        _ if matches!(method, "PUT" | "POST") => of_project("storage.objects", "create", &project),
        _ => of_project("storage.objects", crud(method, false), &project),
    })
}

fn iam(method: (&str, &str), segments: &[&str]) -> Option<Needed> {
    let ["v1", "projects", project, "serviceAccounts", rest @ ..] = segments else { return None };
    // `-` stands for the project in the account's address.
    let of_account = rest.first().and_then(|account| account.split_once('@')).map(|(_, d)| d);
    let home = of_account.and_then(|domain| domain.strip_suffix(".iam.gserviceaccount.com"));
    let project = if *project == "-" { home? } else { project };
    let (collection, verb) = match (rest, method.1) {
        (_, "testIamPermissions") => return None,
        ([_, "keys", key @ ..], _) => ("iam.serviceAccountKeys", crud(method.0, key.is_empty())),
        (_, "") => ("iam.serviceAccounts", crud(method.0, rest.is_empty())),
        (_, verb) => return Some(of_project("iam.serviceAccounts", verb, project)),
    };
    Some(of_project(collection, verb, project))
}

/// Refuses a caller that may not read the log of a project.
pub(crate) fn check_logs(
    api: &Api,
    state: &State,
    principal: &Principal,
    project: &str,
) -> Result<(), ApiError> {
    let needed = of_project("logging.logEntries", "list", project);
    if has(api, state, project, None, principal, &needed)? {
        return Ok(());
    }
    let message = "Permission 'logging.logEntries.list' denied on resource (or it may not exist).";
    Err(ApiError::new(Reason::Forbidden, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, Method};

    fn permission(method: &str, service: &str, path: &str) -> String {
        let (host_region, service) = match service.strip_suffix("-run") {
            Some(region) => (Some(region.to_owned()), "run"),
            None => (None, service),
        };
        let request = Request {
            service: service.to_owned(),
            host_region,
            method: Method::from_bytes(method.as_bytes()).expect("a method"),
            path: path.to_owned(),
            query: String::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            principal: Principal { email: "a@b.example".to_owned(), is_service_account: false },
        };
        needed(&request).map_or("none".to_owned(), |n| format!("{} in {}", n.permission, n.project))
    }

    #[test]
    fn every_method_needs_the_permission_google_names() {
        let knative = "/apis/serving.knative.dev/v1/namespaces/p";
        let v2 = "/v2/projects/p/locations/r";
        for (method, service, path, expected) in [
            ("POST", "r-run", format!("{knative}/services"), "run.services.create in p"),
            ("PUT", "r-run", format!("{knative}/services/s"), "run.services.update in p"),
            ("GET", "r-run", format!("{knative}/revisions"), "run.revisions.list in p"),
            ("DELETE", "r-run", format!("{knative}/revisions/v"), "run.revisions.delete in p"),
            ("PATCH", "run", format!("{v2}/services/s"), "run.services.update in p"),
            (
                "POST",
                "run",
                format!("{v2}/services/s:setIamPolicy"),
                "run.services.setIamPolicy in p",
            ),
            ("POST", "run", format!("{v2}/services/s:testIamPermissions"), "none"),
            ("GET", "run", format!("{v2}/services/s/revisions"), "run.revisions.list in p"),
            ("POST", "run", format!("{v2}/operations/o:wait"), "run.operations.get in p"),
            ("GET", "run", "/v1/projects/p/locations".to_owned(), "run.locations.list in p"),
            (
                "GET",
                "cloudresourcemanager",
                "/v1/projects/p".to_owned(),
                "resourcemanager.projects.get in p",
            ),
            (
                "POST",
                "cloudresourcemanager",
                "/v1/projects/p:setIamPolicy".to_owned(),
                "resourcemanager.projects.setIamPolicy in p",
            ),
            (
                "POST",
                "serviceusage",
                "/v1/projects/p/services:batchEnable".to_owned(),
                "serviceusage.services.enable in p",
            ),
            (
                "POST",
                "iam",
                "/v1/projects/p/serviceAccounts".to_owned(),
                "iam.serviceAccounts.create in p",
            ),
            (
                "POST",
                "iam",
                "/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com/keys".to_owned(),
                "iam.serviceAccountKeys.create in p",
            ),
            (
                "POST",
                "cloudfunctions",
                format!("{v2}/functions:generateUploadUrl"),
                "cloudfunctions.functions.sourceCodeSet in p",
            ),
            (
                "DELETE",
                "cloudfunctions",
                format!("{v2}/functions/f"),
                "cloudfunctions.functions.delete in p",
            ),
            (
                "GET",
                "cloudbuild",
                "/v1/projects/p/builds".to_owned(),
                "cloudbuild.builds.list in p",
            ),
            ("POST", "run", format!("{v2}/builds:submit"), "run.builds.submit in p"),
            ("GET", "iam", "/v1/roles/run.invoker".to_owned(), "none"),
            (
                "POST",
                "certificatemanager",
                "/v1/projects/p/locations/r/certificates".to_owned(),
                "certificatemanager.certs.create in p",
            ),
        ] {
            assert_eq!(permission(method, service, &path), expected, "{method} {path}");
        }
    }

    #[test]
    fn methods_of_compute_have_the_words_of_its_permissions() {
        for (resource, verb, expected) in [
            ("regionUrlMaps", "insert", "compute.regionUrlMaps.create"),
            ("regionUrlMaps", "patch", "compute.regionUrlMaps.update"),
            ("regionTargetHttpProxies", "setUrlMap", "compute.regionTargetHttpProxies.setUrlMap"),
            ("addresses", "insert", "compute.addresses.createInternal"),
            ("regionOperations", "wait", "compute.regionOperations.get"),
            ("instances", "aggregatedList", "compute.instances.list"),
        ] {
            assert_eq!(compute_permission(resource, verb), expected);
        }
    }
}
