//! Resource Manager, version 1: projects and their IAM policies.

use model::ResourceName;
use serde_json::{Value, json};
use wire::resource_manager as messages;

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::iam_policy;
use crate::one_platform::{Call, ProjectKey, respond};
use crate::run;
use crate::world::State;

/// Answers one request.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let result = match Call::read(api, request) {
        Ok(call) => answer(&call).await,
        Err(error) => Err(error),
    };
    respond(request, result)
}

async fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    match (call.action(), &call.segments()[..]) {
        (("GET", ""), ["v1", "projects"]) => list(call, &state),
        (("GET", ""), ["v1", "projects", project]) => {
            Ok(shown(&state, &call.project(&state, project)?))
        }
        (("POST", "getIamPolicy"), ["v1", "projects", project]) => {
            call.body::<messages::GetIamPolicyRequest>("")?;
            Ok(policy_of(call.api, &state, &call.project(&state, project)?.id))
        }
        (("POST", "setIamPolicy"), ["v1", "projects", project]) => {
            set_policy(call, &call.project(&state, project)?).await
        }
        (("POST", "testIamPermissions"), ["v1", "projects", project]) => {
            let body = call.required_body::<messages::TestIamPermissionsRequest>("")?;
            let policy = policy_of(call.api, &state, &call.project(&state, project)?.id);
            let held = iam_policy::held(&[&policy], &call.request.principal, &body)?;
            Ok(if held.is_empty() { json!({}) } else { json!({ "permissions": held }) })
        }
        _ => Err(call.unserved()),
    }
}

/// The key of the document that holds a project's policy.
pub(crate) fn policy_key(project: &str) -> String {
    format!("iam-policies/projects/{project}")
}

/// A project's policy; until one is set, whoever holds the server's own token owns the project.
pub(crate) fn policy_of(api: &Api, state: &State, project: &str) -> Value {
    match state.get(&policy_key(project)) {
        Some(policy) => policy,
        None => json!({
            "version": 1,
            "etag": iam_policy::ETAG_OF_NOTHING,
            "bindings": [{ "role": "roles/owner", "members": [api.owner().member()] }],
        }),
    }
}

async fn set_policy(call: &Call<'_>, project: &ProjectKey) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::SetIamPolicyRequest>("")?;
    let key = policy_key(&project.id);
    let fresh = call.api.surroundings().random();
    let changed = call.api.world().change(|draft| {
        let wanted = body.get("policy").unwrap_or(&Value::Null);
        let policy = iam_policy::replaced(draft.get(&key).as_ref(), wanted, fresh)?;
        let is_owner = |binding: &Value| binding["role"] == "roles/owner";
        let bindings = policy.get("bindings").and_then(Value::as_array);
        if !bindings.into_iter().flatten().any(is_owner) {
            return Err(ApiError::new(
                Reason::BadRequest,
                "The policy must have at least one member with the role roles/owner.",
            ));
        }
        run::spread_project_invokers(draft, &project.id, &policy)?;
        draft.put(key.clone(), policy.clone());
        Ok(policy)
    });
    Ok(changed.await?.value)
}

/// A project as Resource Manager shows it.
fn shown(state: &State, project: &ProjectKey) -> Value {
    let document = state.get(&ResourceName::project(&project.id).to_string());
    let text = |field: &str| document.as_ref().and_then(|document| document.get(field)?.as_str());
    let mut shown = json!({
        "projectNumber": project.number.to_string(),
        "projectId": project.id.as_str(),
        "lifecycleState": "ACTIVE",
        "name": text("name").unwrap_or(&project.id),
    });
    if let Some(created) = text("createTime") {
        shown["createTime"] = created.into();
    }
    shown
}

fn list(call: &Call<'_>, state: &State) -> Result<Value, ApiError> {
    let filter = call.query.get("filter").unwrap_or_default();
    let projects = state.compiled.inventory().projects.values().map(|project| {
        let id = project.name.name.clone();
        shown(state, &ProjectKey { id, number: project.number })
    });
    let key = |project: &Value| project["projectId"].as_str().unwrap_or_default().to_owned();
    let items = projects
        .filter(|project| passes(filter, project))
        .map(|project| (key(&project), project))
        .collect();
    let (projects, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "projects": projects });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

/// Resource Manager's filters, as far as projects here have fields: `name:x lifecycleState:ACTIVE`.
fn passes(filter: &str, project: &Value) -> bool {
    filter.split_whitespace().all(|term| {
        let (field, wanted) = term.split_once([':', '=']).unwrap_or(("id", term));
        let field = match field {
            "id" | "projectId" => "projectId",
            "name" | "displayName" => "name",
            "lifecycleState" => "lifecycleState",
            // Labels and parents: projects have none here.
            _ => return wanted == "*" && term.starts_with('-'),
        };
        let wanted = wanted.trim_matches('"').to_ascii_lowercase();
        let value = project[field].as_str().unwrap_or_default().to_ascii_lowercase();
        match wanted.strip_suffix('*') {
            Some(prefix) => value.starts_with(prefix),
            None => value == wanted,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_lets_through_what_it_names() {
        let project = json!({ "projectId": "demo", "name": "Demo", "lifecycleState": "ACTIVE" });
        for (filter, expected) in [
            ("", true),
            ("lifecycleState:ACTIVE", true),
            ("lifecycleState:DELETE_REQUESTED", false),
            ("name:dem* lifecycleState:ACTIVE", true),
            ("id:other", false),
            ("labels.a:b", false),
        ] {
            assert_eq!(passes(filter, &project), expected, "{filter}");
        }
    }
}
