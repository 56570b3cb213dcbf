//! IAM: service accounts, their keys, and the roles there are.
//!
//! Invariant: the private half of a key leaves the server once, in the answer that makes it, and
//! is never kept; only the public half is a document.

use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::name::{Kind, ResourceName};
use serde_json::{Value, json};
use wire::iam as messages;

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::iam_policy;
use crate::oauth::{AccountKeys, key_id, private_der, subject_of};
use crate::one_platform::{Call, project, respond};
use crate::resource_manager;
use crate::roles::{self, ROLES};
use crate::world::State;

/// Service accounts of one project.
pub(crate) const ACCOUNTS_MAX: usize = 100;
/// Keys of one service account.
pub(crate) const KEYS_MAX: usize = 10;

const KEY_LINE_CHARACTERS: usize = 64;
const NEVER: &str = "9999-12-31T23:59:59Z";
const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

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
    let segments = call.segments();
    match (call.action(), &segments[..]) {
        (("GET", ""), ["v1", "roles"]) => list_roles(call),
        (("GET", ""), ["v1", "roles", id]) => role(&format!("roles/{id}")),
        (("GET", ""), ["v1", "projects", project, "serviceAccounts"]) => {
            list(call, &state, project)
        }
        (("POST", ""), ["v1", "projects", project, "serviceAccounts"]) => {
            create(call, project).await
        }
        (_, ["v1", "projects", project, "serviceAccounts", account, rest @ ..]) => {
            let name = account_name(&state, project, account)?;
            match (call.action(), rest) {
                (("GET", ""), []) => Ok(shown(&state, &name)),
                (("PATCH" | "PUT", ""), []) => update(call, &name).await,
                (("DELETE", ""), []) => delete(call, &name).await,
                (("POST", "getIamPolicy" | "setIamPolicy" | "testIamPermissions"), []) => {
                    policy(call, &name).await
                }
                (("POST", ""), ["keys"]) => create_key(call, &name).await,
                (("GET", ""), ["keys"]) => Ok(list_keys(&state, &name)),
                (("GET", ""), ["keys", id]) => {
                    let key = key_document(&name, id);
                    let document = state.get(&key).ok_or_else(|| missing_key(id))?;
                    Ok(key_shown(&name, id, &document))
                }
                (("DELETE", ""), ["keys", id]) => delete_key(call, &name, id).await,
                _ => Err(call.unserved()),
            }
        }
        _ => Err(call.unserved()),
    }
}

/// An account by its address or unique id; `-` stands for whichever project it is in.
pub(crate) fn account_name(
    state: &State,
    project_given: &str,
    account: &str,
) -> Result<ResourceName, ApiError> {
    let unknown = || {
        let message = format!("Unknown service account: {account}");
        ApiError::new(Reason::NotFound, message)
    };
    let home = match project_given {
        "-" => home_of(state, account).ok_or_else(unknown)?,
        given => project(state, given).ok_or_else(unknown)?.id,
    };
    let name = ResourceName {
        project: home,
        location: model::Location::Global,
        kind: Kind::ServiceAccount,
        name: account.into(),
    };
    let exists =
        state.is_account(account) && home_of(state, account).as_ref() == Some(&name.project);
    if exists { Ok(name) } else { Err(unknown()) }
}

/// The project an address names.
fn home_of(state: &State, email: &str) -> Option<model::Name> {
    let (account, domain) = email.split_once('@')?;
    match domain {
        "developer.gserviceaccount.com" => {
            let number = account.strip_suffix("-compute")?;
            number.parse::<u64>().ok()?;
            Some(project(state, number)?.id)
        }
        domain => Some(project(state, domain.strip_suffix(".iam.gserviceaccount.com")?)?.id),
    }
}

fn document_key(project: &str, email: &str) -> String {
    format!("projects/{project}/serviceAccounts/{email}")
}

fn key_document(name: &ResourceName, id: &str) -> String {
    format!("{name}/keys/{id}")
}

impl AccountKeys for State {
    fn is_account(&self, email: &str) -> bool {
        let Some(home) = home_of(self, email) else { return false };
        email.ends_with("-compute@developer.gserviceaccount.com")
            || self.get(&document_key(&home, email)).is_some()
    }

    fn public_key(&self, email: &str, key_id: &str) -> Option<Vec<u8>> {
        let home = home_of(self, email)?;
        let key = self.get(&format!("{}/keys/{key_id}", document_key(&home, email)))?;
        STANDARD.decode(key.get("publicKey")?.as_str()?).ok()
    }
}

fn shown(state: &State, name: &ResourceName) -> Value {
    let email = name.name.as_str();
    let document = state.get(&name.to_string());
    let text = |field: &str| document.as_ref().and_then(|document| document.get(field)?.as_str());
    let default = "Compute Engine default service account";
    let mut shown = json!({
        "name": name.to_string(),
        "projectId": name.project.as_str(),
        "uniqueId": subject_of(email),
        "oauth2ClientId": subject_of(email),
        "email": email,
        "displayName": text("displayName").unwrap_or(if document.is_none() { default } else { "" }),
        "etag": "MDEwMjE5MjA=",
    });
    if let Some(description) = text("description").filter(|text| !text.is_empty()) {
        shown["description"] = description.into();
    }
    shown
}

fn list(call: &Call<'_>, state: &State, project: &str) -> Result<Value, ApiError> {
    let project = call.project(state, project)?;
    let default = format!("{}-compute@developer.gserviceaccount.com", project.number);
    let prefix = format!("projects/{}/serviceAccounts/", project.id);
    let mut names = vec![account_name(state, &project.id, &default)?];
    names.extend(
        state
            .scan(&prefix)
            .filter_map(|(key, _)| ResourceName::parse(key))
            .filter(|name| name.kind == Kind::ServiceAccount),
    );
    let items = names.iter().map(|name| (name.to_string(), shown(state, name))).collect();
    let (accounts, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "accounts": accounts });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}

async fn create(call: &Call<'_>, project: &str) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::CreateServiceAccountRequest>("")?;
    let project = call.project(&call.api.world().state(), project)?;
    let id = body.get("accountId").and_then(Value::as_str).unwrap_or_default();
    if !is_account_id(id) {
        return Err(ApiError::new(
            Reason::Invalid,
            format!(
                "The account ID \"{id}\" does not have a length between 6 and 30 or is not of the \
                 form [a-z]([-a-z0-9]*[a-z0-9])."
            ),
        ));
    }
    let email = format!("{id}@{}.iam.gserviceaccount.com", project.id);
    let text = |field: &str| body.pointer(&format!("/serviceAccount/{field}")).cloned();
    let document = json!({
        "email": email,
        "displayName": text("displayName").unwrap_or_else(|| "".into()),
        "description": text("description").unwrap_or_else(|| "".into()),
        "createTime": call.now(),
    });
    let key = document_key(&project.id, &email);
    let changed = call.api.world().change(|draft| {
        if draft.contains(&key) {
            let message = format!(
                "Service account {id} already exists within project projects/{}.",
                project.id
            );
            return Err(ApiError::new(Reason::AlreadyExists, message));
        }
        let accounts = |key: &str| !key.contains("/keys/");
        let prefix = format!("projects/{}/serviceAccounts/", project.id);
        if draft.before().scan(&prefix).filter(|(key, _)| accounts(key)).count() >= ACCOUNTS_MAX {
            let message = format!("Maximum number of service accounts ({ACCOUNTS_MAX}) reached.");
            return Err(ApiError::new(Reason::QuotaExceeded, message));
        }
        draft.put(key.clone(), document);
        Ok(())
    });
    let state = changed.await?.state;
    Ok(shown(&state, &account_name(&state, &project.id, &email)?))
}

fn is_account_id(id: &str) -> bool {
    (6..=30).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_lowercase())
        && !id.ends_with('-')
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

async fn update(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let is_patch = call.action().0 == "PATCH";
    let body = match is_patch {
        true => call.required_body::<messages::PatchServiceAccountRequest>("")?,
        false => call.required_body::<messages::ServiceAccount>("")?,
    };
    let account = if is_patch { body.get("serviceAccount") } else { Some(&body) };
    let account = account.cloned().unwrap_or_default();
    let changed = call.api.world().change(|draft| {
        let mut document = draft.get(&name.to_string()).ok_or_else(|| not_ours(name))?;
        for field in ["displayName", "description"] {
            if let Some(value) = account.get(field) {
                document[field] = value.clone();
            }
        }
        draft.put(name.to_string(), document);
        Ok(())
    });
    Ok(shown(&changed.await?.state, name))
}

/// The default account belongs to the project and cannot be changed here.
fn not_ours(name: &ResourceName) -> ApiError {
    let message = format!("The service account {} is managed by the project.", name.name);
    ApiError::new(Reason::FailedPrecondition, message)
}

async fn delete(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let changed = call.api.world().change(|draft| {
        if !draft.contains(&name.to_string()) {
            return Err(not_ours(name));
        }
        let before = draft.before().clone();
        for (key, _) in before.scan(&format!("{name}/keys/")) {
            draft.delete(key.clone());
        }
        draft.delete(policy_key(name));
        draft.delete(name.to_string());
        Ok(())
    });
    changed.await?;
    Ok(json!({}))
}

fn policy_key(name: &ResourceName) -> String {
    format!("iam-policies/{name}")
}

async fn policy(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let key = policy_key(name);
    let state = call.api.world().state();
    match call.action().1 {
        "getIamPolicy" => Ok(iam_policy::shown(state.get(&key).as_ref())),
        "setIamPolicy" => {
            let body = call.required_body::<messages::SetIamPolicyRequest>("")?;
            let wanted = body.get("policy").cloned().unwrap_or_default();
            let fresh = call.api.surroundings().random();
            let changed = call.api.world().change(|draft| {
                let current = draft.get(&key);
                let policy = iam_policy::replaced(current.as_ref(), &wanted, fresh)?;
                draft.put(key.clone(), policy.clone());
                Ok(policy)
            });
            Ok(changed.await?.value)
        }
        _ => {
            let body = call.required_body::<messages::TestIamPermissionsRequest>("")?;
            let held = held(call, &state, name, &body)?;
            Ok(if held.is_empty() { json!({}) } else { json!({ "permissions": held }) })
        }
    }
}

fn held(
    call: &Call<'_>,
    state: &State,
    name: &ResourceName,
    wanted: &Value,
) -> Result<Vec<String>, ApiError> {
    let of_project = resource_manager::policy_of(call.api, state, &name.project);
    let of_account = state.get(&policy_key(name));
    let mut policies = vec![&of_project];
    policies.extend(of_account.as_ref());
    iam_policy::held(&policies, &call.request.principal, wanted)
}

/// Refuses a caller that may not do this with an account.
pub(crate) fn require(
    call: &Call<'_>,
    state: &State,
    name: &ResourceName,
    permission: &str,
) -> Result<(), ApiError> {
    let wanted = json!({ "permissions": [permission] });
    if held(call, state, name, &wanted)?.is_empty() {
        let message =
            format!("Permission '{permission}' denied on resource (or it may not exist).");
        return Err(ApiError::new(Reason::Forbidden, message));
    }
    Ok(())
}

async fn create_key(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    call.body::<messages::CreateServiceAccountKeyRequest>("")?;
    let failed = || ApiError::new(Reason::Internal, "A key could not be made.");
    // Finding two primes takes long enough to keep others waiting.
    let made = tokio::task::spawn_blocking(|| {
        let key = KeyPair::generate(KeySize::Rsa2048).ok()?;
        let private = private_der(&key).ok()?;
        Some((private, key.public_key().as_ref().to_vec()))
    });
    let (private, public) = made.await.ok().flatten().ok_or_else(failed)?;
    let id = key_id(&public);
    let document = json!({
        "publicKey": STANDARD.encode(&public),
        "validAfterTime": call.now(),
    });
    let changed = call.api.world().change(|draft| {
        if draft.before().scan(&format!("{name}/keys/")).count() >= KEYS_MAX {
            let message =
                format!("Precondition check failed: an account has at most {KEYS_MAX} keys.");
            return Err(ApiError::new(Reason::FailedPrecondition, message));
        }
        draft.put(key_document(name, &id), document.clone());
        Ok(())
    });
    changed.await?;
    let mut shown = key_shown(name, &id, &document);
    shown["privateKeyType"] = "TYPE_GOOGLE_CREDENTIALS_FILE".into();
    let file = credentials_file(name, &id, &private);
    shown["privateKeyData"] = STANDARD.encode(format!("{file:#}\n")).into();
    Ok(shown)
}

/// What gcloud writes to a file and every Google library reads back.
fn credentials_file(name: &ResourceName, id: &str, private: &[u8]) -> Value {
    let email = name.name.as_str();
    let mut pem = "-----BEGIN PRIVATE KEY-----\n".to_owned();
    for line in STANDARD.encode(private).as_bytes().chunks(KEY_LINE_CHARACTERS) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    json!({
        "type": "service_account",
        "project_id": name.project.as_str(),
        "private_key_id": id,
        "private_key": pem,
        "client_email": email,
        "client_id": subject_of(email),
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": TOKEN_URI,
        "auth_provider_x509_cert_url": "https://www.googleapis.com/oauth2/v1/certs",
        "universe_domain": "googleapis.com",
    })
}

fn key_shown(name: &ResourceName, id: &str, document: &Value) -> Value {
    json!({
        "name": format!("{name}/keys/{id}"),
        "keyAlgorithm": "KEY_ALG_RSA_2048",
        "keyOrigin": "GOOGLE_PROVIDED",
        "keyType": "USER_MANAGED",
        "validAfterTime": document.get("validAfterTime").cloned().unwrap_or_default(),
        "validBeforeTime": NEVER,
    })
}

fn list_keys(state: &State, name: &ResourceName) -> Value {
    let prefix = format!("{name}/keys/");
    let keys: Vec<Value> = state
        .scan(&prefix)
        .filter_map(|(key, kept)| Some(key_shown(name, key.strip_prefix(&prefix)?, &kept.value())))
        .collect();
    json!({ "keys": keys })
}

fn missing_key(id: &str) -> ApiError {
    ApiError::new(Reason::NotFound, format!("Service account key {id} does not exist."))
}

async fn delete_key(call: &Call<'_>, name: &ResourceName, id: &str) -> Result<Value, ApiError> {
    let key = key_document(name, id);
    let changed = call.api.world().change(|draft| {
        if !draft.contains(&key) {
            return Err(missing_key(id));
        }
        draft.delete(key.clone());
        Ok(())
    });
    changed.await?;
    Ok(json!({}))
}

fn role(name: &str) -> Result<Value, ApiError> {
    let role = roles::role(name).ok_or_else(|| {
        let message = format!("The role named {name} was not found.");
        ApiError::new(Reason::NotFound, message)
    })?;
    let mut shown = json!({
        "name": role.name,
        "title": role.title,
        "description": role.description,
        "stage": "GA",
        "etag": "AA==",
    });
    let permissions: Vec<&str> = role.listed_permissions().collect();
    if !permissions.is_empty() {
        shown["includedPermissions"] = permissions.into();
    }
    Ok(shown)
}

fn list_roles(call: &Call<'_>) -> Result<Value, ApiError> {
    let is_full = call.query.get("view") == Some("FULL");
    let items = ROLES.iter().map(|listed| {
        let mut shown = role(listed.name)?;
        if let (false, Value::Object(shown)) = (is_full, &mut shown) {
            shown.remove("includedPermissions");
        }
        Ok((listed.name.to_owned(), shown))
    });
    let items = items.collect::<Result<Vec<_>, ApiError>>()?;
    let (roles, next) = call.page(items, "pageSize", "pageToken")?;
    let mut answer = json!({ "roles": roles });
    if let Some(next) = next {
        answer["nextPageToken"] = next.into();
    }
    Ok(answer)
}
