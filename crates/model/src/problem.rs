//! What is wrong with what was declared, as values that name the resource and the field.
//!
//! A world can have many problems at once and is still compiled; a change is refused when it adds one.
//! Which HTTP status and reason a [`Cause`] becomes is decided in `api/src/error.rs` and nowhere else.

use crate::name::ResourceName;
use std::fmt;

/// One thing wrong with what was declared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The resource whose declaration is wrong.
    pub resource: ResourceName,
    /// The field as Google writes it, from the resource down: `ipCidrRange`, `backends[0].group`.
    /// Empty when the trouble is with the resource as a whole.
    pub field: String,
    /// What is wrong with it.
    pub cause: Cause,
}

/// Why a declaration cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The value can never be right: `Invalid value for field 'resource.F': 'V'. WHY` (400 `invalid`).
    Invalid {
        /// The value as it was given, for the message.
        value: String,
        /// A sentence in Google's words, ending with a full stop.
        why: String,
    },
    /// A field that must be given is missing (400 `required`).
    Required,
    /// The field names a resource that was never created or is already gone (404 `notFound`).
    Dangling {
        /// The missing resource.
        target: ResourceName,
    },
    /// Two resources claim what only one can have, such as an address and port (400 `invalid`).
    Taken {
        /// The value both want, for the message.
        value: String,
        /// Who has it.
        holder: ResourceName,
        /// A sentence in Google's words, ending with a full stop.
        why: String,
    },
    /// The resource is still used by another (400 `resourceInUseByAnotherResource`).
    InUse {
        /// Who uses it.
        user: ResourceName,
    },
    /// Refused with a whole message of Google's own that has no field in it (400 `invalid`).
    Refused {
        /// The whole message.
        message: String,
    },
    /// A bound of the project is reached (403 `quotaExceeded`).
    QuotaExceeded {
        /// The quota's metric, such as `NETWORKS`.
        metric: String,
        /// The limit.
        limit: u64,
    },
}

impl Problem {
    /// A value that can never be right; `why` is a sentence in Google's words.
    pub fn invalid(
        resource: &ResourceName,
        field: impl Into<String>,
        value: impl fmt::Display,
        why: impl Into<String>,
    ) -> Problem {
        let cause = Cause::Invalid { value: value.to_string(), why: why.into() };
        Problem { resource: resource.clone(), field: field.into(), cause }
    }

    /// A field that must be given and is not.
    pub fn required(resource: &ResourceName, field: impl Into<String>) -> Problem {
        Problem { resource: resource.clone(), field: field.into(), cause: Cause::Required }
    }

    /// A reference to something that does not exist.
    pub fn dangling(
        resource: &ResourceName,
        field: impl Into<String>,
        target: &ResourceName,
    ) -> Problem {
        let cause = Cause::Dangling { target: target.clone() };
        Problem { resource: resource.clone(), field: field.into(), cause }
    }

    /// A refusal whose whole message is Google's.
    pub fn refused(
        resource: &ResourceName,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Problem {
        let cause = Cause::Refused { message: message.into() };
        Problem { resource: resource.clone(), field: field.into(), cause }
    }
}

impl fmt::Display for Problem {
    /// Google's message for the problem, as a client sees it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = &self.field;
        match &self.cause {
            Cause::Invalid { value, why } | Cause::Taken { value, why, .. } => {
                write!(out, "Invalid value for field 'resource.{field}': '{value}'. {why}")
            }
            Cause::Required => write!(out, "Required field 'resource.{field}' not specified"),
            Cause::Dangling { target } => write!(out, "The resource '{target}' was not found"),
            Cause::InUse { user } => write!(
                out,
                "The {} resource '{}' is already being used by '{user}'",
                self.resource.kind.word(),
                self.resource,
            ),
            Cause::Refused { message } => out.write_str(message),
            Cause::QuotaExceeded { metric, limit } => {
                write!(out, "Quota '{metric}' exceeded. Limit: {limit}.0 globally.")
            }
        }
    }
}
