//! Whether a service takes a request: by the way it came, and by the token it brings.
//!
//! Invariant: a token is looked at only where the service is not open to everybody.

use crate::callers::{Callers, Identity};
use crate::fields::Fields;
use crate::record::Subject;
use plan::fleet::{Arrival, Caller, Refusal, ServicePlan};

/// Why the service does not take the request, in Google's words; `None` when it does.
pub(crate) fn refused<F: Fields>(
    callers: &dyn Callers,
    service: &ServicePlan,
    arrival: Arrival,
    subject: &Subject<'_, F>,
) -> Option<Refusal> {
    let identity = (!service.is_public())
        .then(|| bearer_token(subject.fields))
        .flatten()
        .map(|token| callers.identify(token));
    let caller = match &identity {
        None => Caller::Anonymous,
        Some(Identity::Invalid) => Caller::Invalid,
        Some(Identity::Known { member, audience }) => Caller::Identified { member, audience },
    };
    service.admits(arrival, caller).refusal(subject.head.path)
}

/// The token of a request: `X-Serverless-Authorization` counts before `Authorization`.
fn bearer_token(fields: &impl Fields) -> Option<&str> {
    let value = fields
        .first("x-serverless-authorization")
        .or_else(|| fields.first("authorization"))
        .and_then(|value| std::str::from_utf8(value).ok())?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
