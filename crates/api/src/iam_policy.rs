//! IAM policies: reading, replacing under their etag, and what they grant.
//!
//! Pure. Invariant: a policy that is kept has an etag that no earlier policy of the same resource
//! had, so that a read-modify-write over a stale copy is always seen.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::compute::same_bytes;
use crate::error::{ApiError, Reason};
use crate::http::Principal;
use crate::roles;

/// The etag of a policy that was never set.
pub(crate) const ETAG_OF_NOTHING: &str = "ACAB";
/// Members in all bindings of a policy together.
pub(crate) const MEMBERS_MAX: usize = 1500;
/// Groups among them.
pub(crate) const GROUPS_MAX: usize = 250;

/// The policy as a client sees it.
pub(crate) fn shown(policy: Option<&Value>) -> Value {
    policy.cloned().unwrap_or_else(|| json!({ "etag": ETAG_OF_NOTHING }))
}

/// The policy that takes the place of `current`; `fresh` makes its etag its own.
pub(crate) fn replaced(
    current: Option<&Value>,
    wanted: &Value,
    fresh: u64,
) -> Result<Value, ApiError> {
    let current_etag = current.and_then(|policy| policy.get("etag")?.as_str());
    let current_etag = current_etag.unwrap_or(ETAG_OF_NOTHING);
    if let Some(given) = wanted.get("etag").and_then(Value::as_str)
        && !given.is_empty()
        && !same_bytes(given, current_etag)
    {
        return Err(ApiError::new(
            Reason::Aborted,
            format!(
                "There were concurrent policy changes. Please retry the whole read-modify-write \
                 with exponential backoff. The request's ETag '{given}' did not match the current \
                 policy's ETag '{current_etag}'."
            ),
        ));
    }
    let version = wanted.get("version").and_then(Value::as_i64).unwrap_or(0);
    if !matches!(version, 0 | 1 | 3) {
        return Err(invalid(format!("Policy version {version} is not supported; use 1 or 3.")));
    }
    let bindings = checked_bindings(wanted, version)?;
    let has_condition = bindings.iter().any(|binding| binding.get("condition").is_some());
    let mut policy = json!({
        "version": if has_condition { 3 } else { 1 },
        "etag": STANDARD.encode([&[7, 6], &fresh.to_be_bytes()[2..]].concat()),
    });
    if !bindings.is_empty() {
        policy["bindings"] = bindings.into();
    }
    Ok(policy)
}

fn checked_bindings(policy: &Value, version: i64) -> Result<Vec<Value>, ApiError> {
    let given = policy.get("bindings").and_then(Value::as_array);
    let mut bindings: Vec<Value> = Vec::new();
    let (mut members_count, mut groups_count) = (0, 0);
    for binding in given.into_iter().flatten() {
        let role = binding.get("role").and_then(Value::as_str).unwrap_or_default();
        if !roles::is_well_formed(role) {
            return Err(invalid(format!("Role '{role}' is not supported for this resource.")));
        }
        let members = members_of(binding);
        for member in &members {
            check_member(member)?;
        }
        members_count += members.len();
        groups_count += members.iter().filter(|member| member.starts_with("group:")).count();
        let condition = binding.get("condition").filter(|condition| !condition.is_null());
        if condition.is_some() && version != 3 {
            let sentence = "Policies with conditional bindings need version 3.";
            return Err(invalid(sentence.to_owned()));
        }
        if members.is_empty() {
            continue;
        }
        let same = bindings.iter_mut().find(|known| {
            known["role"].as_str() == Some(role) && known.get("condition") == condition
        });
        let mut all: BTreeSet<String> = members.into_iter().map(str::to_owned).collect();
        match same {
            Some(known) => {
                all.extend(members_of(known).into_iter().map(str::to_owned));
                known["members"] = json!(all);
            }
            None => {
                let mut kept = json!({ "members": all, "role": role });
                if let Some(condition) = condition {
                    kept["condition"] = condition.clone();
                }
                bindings.push(kept);
            }
        }
    }
    if members_count > MEMBERS_MAX || groups_count > GROUPS_MAX {
        return Err(invalid(format!(
            "The policy has {members_count} members and {groups_count} groups; at most \
             {MEMBERS_MAX} and {GROUPS_MAX} are allowed."
        )));
    }
    Ok(bindings)
}

fn members_of(binding: &Value) -> Vec<&str> {
    let members = binding.get("members").and_then(Value::as_array);
    members.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn check_member(member: &str) -> Result<(), ApiError> {
    const KINDS: [&str; 7] =
        ["user", "serviceAccount", "group", "domain", "deleted", "principal", "principalSet"];
    if matches!(member, "allUsers" | "allAuthenticatedUsers") {
        return Ok(());
    }
    match member.split_once(':') {
        Some((kind, value)) if KINDS.contains(&kind) && !value.is_empty() => Ok(()),
        Some((kind, "")) => Err(invalid(format!("The member {kind}: is malformed."))),
        _ => Err(invalid(format!(
            "The member {member} is of an unknown type. Please set a valid type prefix for the \
             member."
        ))),
    }
}

fn invalid(message: String) -> ApiError {
    ApiError::new(Reason::Invalid, message)
}

/// The members whom a policy grants this permission without a condition.
pub(crate) fn members_with(policy: &Value, permission: &str) -> BTreeSet<String> {
    let bindings = policy.get("bindings").and_then(Value::as_array);
    let granting = bindings.into_iter().flatten().filter(|binding| {
        let role = binding.get("role").and_then(Value::as_str).unwrap_or_default();
        binding.get("condition").is_none() && roles::grants(role, permission)
    });
    granting.flat_map(members_of).map(str::to_owned).collect()
}

/// Those of the wanted permissions which these policies grant a caller.
pub(crate) fn held(
    policies: &[&Value],
    principal: &Principal,
    wanted: &Value,
) -> Result<Vec<String>, ApiError> {
    let wanted = wanted.get("permissions").and_then(Value::as_array);
    let mut held = Vec::new();
    for permission in wanted.into_iter().flatten().filter_map(Value::as_str) {
        if permission.contains('*') || permission.split('.').count() < 3 {
            return Err(invalid(format!(
                "Permission {permission} is not valid for this resource."
            )));
        }
        let is_caller = |member: &String| {
            *member == principal.member()
                || *member == "allUsers"
                || *member == "allAuthenticatedUsers"
        };
        if policies.iter().any(|policy| members_with(policy, permission).iter().any(is_caller)) {
            held.push(permission.to_owned());
        }
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(role: &str, members: &[&str]) -> Value {
        json!({ "role": role, "members": members })
    }

    #[test]
    fn a_stale_etag_is_a_conflict_and_none_at_all_is_not() {
        let first = replaced(None, &json!({ "etag": ETAG_OF_NOTHING }), 1).expect("set");
        let second = replaced(Some(&first), &json!({ "etag": first["etag"] }), 2).expect("set");
        assert_ne!(first["etag"], second["etag"]);
        let stale = replaced(Some(&second), &json!({ "etag": first["etag"] }), 3);
        assert_eq!(stale.expect_err("stale").reason, Reason::Aborted);
        assert!(replaced(Some(&second), &json!({}), 3).is_ok());
        STANDARD.decode(second["etag"].as_str().expect("text")).expect("clients demand base64");
    }

    #[test]
    fn bindings_of_one_role_become_one_and_empty_ones_go() {
        let wanted = json!({ "bindings": [
            binding("roles/run.invoker", &["user:b@x.example"]),
            binding("roles/run.invoker", &["allUsers", "user:b@x.example"]),
            binding("roles/viewer", &[]),
        ]});
        let policy = replaced(None, &wanted, 1).expect("set");
        assert_eq!(
            policy["bindings"],
            json!([binding("roles/run.invoker", &["allUsers", "user:b@x.example"])])
        );
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let conditional = json!({
            "role": "roles/viewer", "members": ["allUsers"], "condition": { "expression": "true" },
        });
        for (wanted, text) in [
            (json!({ "version": 2 }), "Policy version 2"),
            (json!({ "bindings": [binding("viewer", &["allUsers"])] }), "Role 'viewer'"),
            (json!({ "bindings": [binding("roles/viewer", &["ann"])] }), "The member ann is of an"),
            (json!({ "bindings": [binding("roles/viewer", &["user:"])] }), "malformed"),
            (json!({ "bindings": [conditional], "version": 1 }), "need version 3"),
        ] {
            let error = replaced(None, &wanted, 1).expect_err(text);
            assert!(error.message.contains(text), "{}", error.message);
        }
    }

    #[test]
    fn a_caller_holds_what_its_roles_grant() {
        let policy = json!({ "bindings": [
            binding("roles/run.invoker", &["allUsers"]),
            binding("roles/owner", &["user:owner@x.example"]),
        ]});
        let wanted = json!({ "permissions": ["run.routes.invoke", "run.services.setIamPolicy"] });
        let caller = |email: &str| Principal { email: email.to_owned(), is_service_account: false };
        let held_by = |email| held(&[&policy], &caller(email), &wanted).expect("well formed");
        assert_eq!(held_by("owner@x.example").len(), 2);
        assert_eq!(held_by("guest@x.example"), ["run.routes.invoke"]);
        assert!(held(&[], &caller("a"), &json!({ "permissions": ["run.*"] })).is_err());
    }
}
