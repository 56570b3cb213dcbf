//! The IAM policies of services.
//!
//! Invariant: what a project's policy grants is written into each of its services in the same
//! change, so that who may call a service is read from its document alone.

use model::{Kind, ResourceName};
use serde_json::{Value, json};

use super::convert::INVOKE;
use super::document::{self, ServiceDocument};
use super::missing;
use crate::error::ApiError;
use crate::iam_policy;
use crate::one_platform::Call;
use crate::resource_manager;
use crate::world::{Draft, State};

/// `getIamPolicy`, `setIamPolicy` and `testIamPermissions` of a service.
pub(crate) async fn answer(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    match call.action() {
        ("GET" | "POST", "getIamPolicy") => {
            let state = call.api.world().state();
            let document = service(&state, name)?;
            Ok(iam_policy::shown(document.policy.as_ref()))
        }
        ("POST", "setIamPolicy") => {
            let body = call.required_body::<wire::run_v1::SetIamPolicyRequest>("")?;
            let fresh = call.api.surroundings().random();
            let changed = call.api.world().change(|draft| {
                let mut document: ServiceDocument = match draft.get(&name.to_string()) {
                    Some(kept) => document::read(&kept)?,
                    None => return Err(missing(name)),
                };
                let wanted = body.get("policy").unwrap_or(&Value::Null);
                let policy = iam_policy::replaced(document.policy.as_ref(), wanted, fresh)?;
                document.policy = Some(policy.clone());
                draft.put(name.to_string(), document::write(&document)?);
                Ok(policy)
            });
            Ok(changed.await?.value)
        }
        ("POST", "testIamPermissions") => {
            let body = call.required_body::<wire::run_v1::TestIamPermissionsRequest>("")?;
            let state = call.api.world().state();
            // gcloud asks before it makes a service whether it may open it to everybody.
            let policy = service(&state, name).ok().and_then(|document| document.policy);
            let of_project = resource_manager::policy_of(call.api, &state, &name.project);
            let mut policies = vec![&of_project];
            policies.extend(policy.as_ref());
            let held = iam_policy::held(&policies, &call.request.principal, &body)?;
            Ok(if held.is_empty() { json!({}) } else { json!({ "permissions": held }) })
        }
        _ => Err(call.unserved()),
    }
}

fn service(state: &State, name: &ResourceName) -> Result<ServiceDocument, ApiError> {
    document::of(state, name)
}

/// The members a project's policy lets call all its services.
pub(crate) fn project_invokers(state: &State, project: &str) -> Vec<String> {
    let policy = state.get(&resource_manager::policy_key(project));
    policy.map(|policy| iam_policy::members_with(&policy, INVOKE)).into_iter().flatten().collect()
}

/// Writes what a project's new policy grants into its services.
pub(crate) fn spread_project_invokers(
    draft: &mut Draft,
    project: &str,
    policy: &Value,
) -> Result<(), ApiError> {
    let invokers: Vec<String> = iam_policy::members_with(policy, INVOKE).into_iter().collect();
    let before = draft.before().clone();
    let prefix = format!("projects/{project}/locations/");
    for (key, kept) in before.scan(&prefix) {
        if ResourceName::parse(key).is_none_or(|name| name.kind != Kind::Service) {
            continue;
        }
        let mut document: ServiceDocument = document::read_kept(kept)?;
        if document.project_invokers != invokers {
            document.project_invokers.clone_from(&invokers);
            draft.put(key.clone(), document::write(&document)?);
        }
    }
    Ok(())
}
