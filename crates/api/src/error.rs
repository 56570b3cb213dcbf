//! Every refusal the API can give: its HTTP status, Google's reason and the envelope around it.
//!
//! Invariant: this is the only file that chooses a status or writes an error envelope; everyone
//! else names a `Reason` and a sentence.

use crate::http::Response;
use http::StatusCode;
use model::{Cause, Problem, ResourceName};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use wire::WireError;

/// Why a request was refused, in Google's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A field's value is not acceptable.
    Invalid,
    /// A required field is missing.
    Required,
    /// The JSON could not be read as the method's request message.
    BadRequest,
    /// Someone still refers to the resource.
    InUse,
    /// The resource is still being made or removed.
    NotReady,
    /// The resource's state does not allow it.
    FailedPrecondition,
    /// The token is missing or not ours.
    Unauthenticated,
    /// The caller may not do this.
    Forbidden,
    /// A quota would be exceeded.
    QuotaExceeded,
    /// The API is switched off for the project.
    ServiceDisabled,
    /// There is no such resource.
    NotFound,
    /// There is no such method at this path.
    MethodNotAllowed,
    /// The name is taken.
    AlreadyExists,
    /// Somebody else changed it meanwhile (One Platform's etag conflicts).
    Aborted,
    /// The fingerprint is stale.
    ConditionNotMet,
    /// The body is larger than the server reads.
    TooLarge,
    /// The method exists and this server does not serve it.
    Unimplemented,
    /// The disk or another part of this server failed.
    Internal,
    /// The server is going down or not yet up.
    Unavailable,
}

impl Reason {
    /// The HTTP status that goes with the reason.
    pub fn status(self) -> StatusCode {
        match self {
            Reason::Invalid
            | Reason::Required
            | Reason::BadRequest
            | Reason::InUse
            | Reason::NotReady
            | Reason::FailedPrecondition => StatusCode::BAD_REQUEST,
            Reason::Unauthenticated => StatusCode::UNAUTHORIZED,
            Reason::Forbidden | Reason::QuotaExceeded | Reason::ServiceDisabled => {
                StatusCode::FORBIDDEN
            }
            Reason::NotFound => StatusCode::NOT_FOUND,
            Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Reason::AlreadyExists | Reason::Aborted => StatusCode::CONFLICT,
            Reason::ConditionNotMet => StatusCode::PRECONDITION_FAILED,
            Reason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Reason::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word in `errors[].reason`.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Invalid => "invalid",
            Reason::Required => "required",
            Reason::BadRequest => "badRequest",
            Reason::InUse => "resourceInUseByAnotherResource",
            Reason::NotReady => "resourceNotReady",
            Reason::FailedPrecondition => "failedPrecondition",
            Reason::Unauthenticated => "authError",
            Reason::Forbidden => "forbidden",
            Reason::QuotaExceeded => "quotaExceeded",
            Reason::ServiceDisabled => "accessNotConfigured",
            Reason::NotFound => "notFound",
            Reason::MethodNotAllowed => "httpMethodNotAllowed",
            Reason::AlreadyExists => "alreadyExists",
            Reason::Aborted => "aborted",
            Reason::ConditionNotMet => "conditionNotMet",
            Reason::TooLarge => "uploadTooLarge",
            Reason::Unimplemented => "notImplemented",
            Reason::Internal => "internalError",
            Reason::Unavailable => "backendError",
        }
    }

    /// The canonical code's name in `status`.
    pub fn canonical(self) -> &'static str {
        match self {
            Reason::Invalid | Reason::Required | Reason::BadRequest | Reason::TooLarge => {
                "INVALID_ARGUMENT"
            }
            Reason::InUse | Reason::NotReady | Reason::FailedPrecondition => "FAILED_PRECONDITION",
            Reason::ConditionNotMet => "FAILED_PRECONDITION",
            Reason::Unauthenticated => "UNAUTHENTICATED",
            Reason::Forbidden | Reason::ServiceDisabled => "PERMISSION_DENIED",
            Reason::QuotaExceeded => "RESOURCE_EXHAUSTED",
            Reason::NotFound => "NOT_FOUND",
            Reason::MethodNotAllowed | Reason::Unimplemented => "UNIMPLEMENTED",
            Reason::AlreadyExists => "ALREADY_EXISTS",
            Reason::Aborted => "ABORTED",
            Reason::Internal => "INTERNAL",
            Reason::Unavailable => "UNAVAILABLE",
        }
    }
}

/// Which family of Google APIs the envelope is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Compute: the `errors` list with domain and reason.
    Compute,
    /// One Platform APIs (Run, IAM, Resource Manager …): `status` and optional `details`.
    OnePlatform,
}

/// One refusal, ready to be written in either dialect.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Why.
    pub reason: Reason,
    /// The sentence the user sees.
    pub message: String,
    /// `error.details`, each with an `@type`.
    pub details: Vec<Value>,
}

impl ApiError {
    /// A refusal with its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> ApiError {
        ApiError { reason, message: message.into(), details: Vec::new() }
    }

    /// `Invalid value for field 'resource.F': 'V'. WHY`.
    pub fn invalid_field(field: &str, value: &str, why: &str) -> ApiError {
        ApiError::new(
            Reason::Invalid,
            format!("Invalid value for field '{field}': '{value}'. {why}"),
        )
    }

    /// `Required field 'resource.F' not specified`.
    pub fn required(field: &str) -> ApiError {
        ApiError::new(Reason::Required, format!("Required field '{field}' not specified"))
    }

    /// `The resource 'projects/…' was not found`.
    pub fn not_found(resource: &str) -> ApiError {
        ApiError::new(Reason::NotFound, format!("The resource '{resource}' was not found"))
    }

    /// `The resource 'projects/…' already exists`.
    pub fn already_exists(resource: &str) -> ApiError {
        ApiError::new(Reason::AlreadyExists, format!("The resource '{resource}' already exists"))
    }

    /// What a new problem of the world is to the caller whose change would add it. A reference that
    /// leads nowhere because the change removed its target means that the target is still in use.
    pub fn from_problem(problem: &Problem, removed: &BTreeSet<ResourceName>) -> ApiError {
        match &problem.cause {
            Cause::Dangling { target } if removed.contains(target) => {
                ApiError::in_use(target, &problem.resource)
            }
            cause => ApiError::new(reason_of(cause), problem.to_string()),
        }
    }

    /// `The url_map resource 'projects/…' is already being used by 'projects/…'`.
    pub fn in_use(resource: &ResourceName, user: &ResourceName) -> ApiError {
        let word = resource.kind.word();
        ApiError::new(
            Reason::InUse,
            format!("The {word} resource '{resource}' is already being used by '{user}'"),
        )
    }

    /// The refusal as the HTTP answer in the given dialect.
    pub fn response(&self, dialect: Dialect) -> Response {
        Response::json(self.reason.status(), &json!({ "error": self.body(dialect) }))
    }

    /// The value under `error`.
    pub fn body(&self, dialect: Dialect) -> Value {
        let mut body = serde_json::Map::new();
        body.insert("code".into(), self.reason.status().as_u16().into());
        body.insert("message".into(), self.message.clone().into());
        if dialect == Dialect::Compute {
            body.insert(
                "errors".into(),
                json!([{ "message": self.message, "domain": "global", "reason": self.reason.word() }]),
            );
        }
        body.insert("status".into(), self.reason.canonical().into());
        if !self.details.is_empty() {
            body.insert("details".into(), self.details.clone().into());
        }
        Value::Object(body)
    }
}

fn reason_of(cause: &Cause) -> Reason {
    match cause {
        Cause::Invalid { .. } | Cause::Taken { .. } | Cause::Refused { .. } => Reason::Invalid,
        Cause::Required => Reason::Required,
        Cause::Dangling { .. } => Reason::NotFound,
        Cause::InUse { .. } => Reason::InUse,
        Cause::QuotaExceeded { .. } => Reason::QuotaExceeded,
    }
}

impl From<WireError> for ApiError {
    fn from(error: WireError) -> ApiError {
        let violation = |violation: &wire::Violation| {
            let mut entry = serde_json::Map::new();
            if !violation.path.is_empty() {
                entry.insert("field".into(), violation.path.clone().into());
            }
            entry.insert("description".into(), violation.description.clone().into());
            Value::Object(entry)
        };
        let violations: Vec<Value> = error.violations.iter().map(violation).collect();
        let details = vec![json!({
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": violations,
        })];
        ApiError { reason: Reason::BadRequest, message: error.to_string(), details }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Kind;

    #[test]
    fn each_cause_becomes_googles_status_and_sentence() {
        let user = ResourceName::regional("p", "r", Kind::BackendService, "b");
        let target = ResourceName::regional("p", "r", Kind::NetworkEndpointGroup, "n");
        let dangling = Problem::dangling(&user, "backends[0].group", &target);
        let cases = [
            (
                Problem::required(&user, "name"),
                400,
                "required",
                "Required field 'resource.name' not specified",
            ),
            (
                Problem::invalid(&user, "timeoutSec", 300, "Too long."),
                400,
                "invalid",
                "Invalid value for field 'resource.timeoutSec': '300'. Too long.",
            ),
            (
                dangling,
                404,
                "notFound",
                "The resource 'projects/p/regions/r/networkEndpointGroups/n' was not found",
            ),
        ];
        for (problem, status, reason, message) in cases {
            let body = ApiError::from_problem(&problem, &BTreeSet::new()).body(Dialect::Compute);
            assert_eq!(body["code"], status, "{message}");
            assert_eq!(body["errors"][0]["reason"], reason);
            assert_eq!(body["message"], message);
        }
    }

    #[test]
    fn a_reference_to_what_the_change_removes_means_it_is_in_use() {
        let user = ResourceName::regional("p", "r", Kind::BackendService, "b");
        let target = ResourceName::regional("p", "r", Kind::NetworkEndpointGroup, "n");
        let problem = Problem::dangling(&user, "backends[0].group", &target);
        let error = ApiError::from_problem(&problem, &BTreeSet::from([target]));
        assert_eq!(error.reason, Reason::InUse);
        assert_eq!(
            error.message,
            "The network_endpoint_group resource 'projects/p/regions/r/networkEndpointGroups/n' is already being used by 'projects/p/regions/r/backendServices/b'"
        );
    }
}
