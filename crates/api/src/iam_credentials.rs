//! IAM Service Account Credentials: short-lived tokens for callers that may act as an account.

use model::name::ResourceName;
use serde_json::{Value, json};
use time::Duration;
use wire::iam_credentials as messages;

use crate::Api;
use crate::error::{ApiError, Reason};
use crate::http::{Principal, Request, Response};
use crate::iam;
use crate::oauth::{ACCESS_TOKEN_SECONDS, ACCESS_TOKEN_SECONDS_MAX};
use crate::one_platform::{Call, respond};
use crate::surroundings::utc_timestamp;

/// Answers one request.
pub(crate) fn handle(api: &Api, request: &Request) -> Response {
    let result = Call::read(api, request).and_then(|call| answer(&call));
    respond(request, result)
}

fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    let ["v1", "projects", project, "serviceAccounts", account] = call.segments()[..] else {
        return Err(not_found(call));
    };
    let state = call.api.world().state();
    let name = iam::account_name(&state, project, account)?;
    match call.action() {
        ("POST", "generateAccessToken") => {
            iam::require(call, &state, &name, "iam.serviceAccounts.getAccessToken")?;
            access_token(call, &name)
        }
        ("POST", "generateIdToken") => {
            iam::require(call, &state, &name, "iam.serviceAccounts.getOpenIdToken")?;
            id_token(call, &name)
        }
        _ => Err(call.unserved()),
    }
}

/// SDKs ask for `allowedLocations`, which need not exist.
fn not_found(call: &Call<'_>) -> ApiError {
    let message = format!("The requested URL {} was not found.", call.request.path);
    ApiError::new(Reason::NotFound, message)
}

fn access_token(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::GenerateAccessTokenRequest>("")?;
    let invalid = |message: &str| Err(ApiError::new(Reason::Invalid, message));
    let scopes = body.get("scope").and_then(Value::as_array);
    if scopes.is_none_or(Vec::is_empty) {
        return invalid("scope: at least one scope is required.");
    }
    let seconds = match body.get("lifetime").and_then(Value::as_str) {
        None => ACCESS_TOKEN_SECONDS,
        Some(text) => match text.strip_suffix('s').and_then(|number| number.parse().ok()) {
            Some(seconds) if (1..=ACCESS_TOKEN_SECONDS_MAX).contains(&seconds) => seconds,
            _ => return invalid("lifetime: must be a positive number of seconds, at most 43200s."),
        },
    };
    let now = call.api.surroundings().now();
    let principal = Principal { email: name.name.to_string(), is_service_account: true };
    let token = call.api.identity()?.access_token(&principal, seconds, now);
    // google-auth reads whole seconds and nothing finer.
    let expires = (now + Duration::seconds(seconds)).truncate_to_second();
    let expires = utc_timestamp(expires).replace(".000000Z", "Z");
    Ok(json!({ "accessToken": token, "expireTime": expires }))
}

fn id_token(call: &Call<'_>, name: &ResourceName) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::GenerateIdTokenRequest>("")?;
    let audience = body.get("audience").and_then(Value::as_str).unwrap_or_default();
    if audience.is_empty() {
        return Err(ApiError::new(Reason::Invalid, "audience: is required."));
    }
    let now = call.api.surroundings().now();
    let token = call.api.identity()?.id_token(&name.name, audience, now)?;
    Ok(json!({ "token": token }))
}
