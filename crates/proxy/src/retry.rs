//! Whether a request is sent once more: the default policy, and the policy of a URL map.
//!
//! Pure: what happened goes in, yes or no comes out. Only requests whose bytes are still all there are
//! ever asked about.

use plan::decision::{RetryCondition, RetryPolicy};

/// How an attempt went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The instance answered.
    Status {
        /// The status code.
        code: u16,
        /// `grpc-status` in the head, if there is one.
        grpc: Option<u8>,
    },
    /// No connection could be made.
    ConnectFailure,
    /// The connection ended before a response.
    Reset,
    /// The instance refused the stream without looking at it.
    RefusedStream,
    /// The attempt took longer than it may.
    AttemptTimeout,
}

/// Whether another attempt follows the one that ended in `outcome`.
pub(crate) fn tries_again(
    policy: Option<&RetryPolicy>,
    idempotent: bool,
    attempts: u32,
    outcome: Outcome,
) -> bool {
    let Some(policy) = policy else {
        let failed = match outcome {
            Outcome::Status { code, .. } => matches!(code, 502..=504),
            Outcome::AttemptTimeout => false,
            Outcome::ConnectFailure | Outcome::Reset | Outcome::RefusedStream => true,
        };
        return attempts <= 1 && idempotent && failed;
    };
    attempts <= policy.retries
        && policy.conditions.iter().any(|condition| meets(*condition, outcome))
}

fn meets(condition: RetryCondition, outcome: Outcome) -> bool {
    let grpc =
        |number: u8| matches!(outcome, Outcome::Status { grpc: Some(code), .. } if code == number);
    let no_response = matches!(
        outcome,
        Outcome::ConnectFailure | Outcome::Reset | Outcome::RefusedStream | Outcome::AttemptTimeout
    );
    match condition {
        RetryCondition::ServerError => {
            no_response || matches!(outcome, Outcome::Status { code: 500..=599, .. })
        }
        RetryCondition::GatewayError => {
            no_response || matches!(outcome, Outcome::Status { code: 502..=504, .. })
        }
        RetryCondition::ConnectFailure => outcome == Outcome::ConnectFailure,
        RetryCondition::Retriable4xx => matches!(outcome, Outcome::Status { code: 409, .. }),
        RetryCondition::RefusedStream => outcome == Outcome::RefusedStream,
        RetryCondition::Cancelled => grpc(1),
        RetryCondition::DeadlineExceeded => grpc(4),
        RetryCondition::ResourceExhausted => grpc(8),
        RetryCondition::Internal => grpc(13),
        RetryCondition::Unavailable => grpc(14),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn status(code: u16) -> Outcome {
        Outcome::Status { code, grpc: None }
    }

    #[test]
    fn by_default_an_idempotent_request_is_tried_once_more() {
        for (outcome, again) in [
            (status(502), true),
            (status(503), true),
            (status(504), true),
            (status(500), false),
            (status(200), false),
            (Outcome::ConnectFailure, true),
            (Outcome::Reset, true),
            (Outcome::AttemptTimeout, false),
        ] {
            assert_eq!(tries_again(None, true, 1, outcome), again, "{outcome:?}");
            assert!(!tries_again(None, false, 1, outcome), "{outcome:?} of a POST");
            assert!(!tries_again(None, true, 2, outcome), "{outcome:?} again");
        }
    }

    #[test]
    fn a_policy_decides_by_its_conditions_alone() {
        let policy = |conditions: &[RetryCondition]| RetryPolicy {
            retries: 2,
            per_try_timeout: None,
            conditions: conditions.to_vec(),
        };
        let unavailable = Outcome::Status { code: 200, grpc: Some(14) };
        for (condition, yes, no) in [
            (RetryCondition::ServerError, status(500), status(499)),
            (RetryCondition::GatewayError, status(503), status(500)),
            (RetryCondition::ConnectFailure, Outcome::ConnectFailure, Outcome::Reset),
            (RetryCondition::Retriable4xx, status(409), status(404)),
            (RetryCondition::RefusedStream, Outcome::RefusedStream, Outcome::Reset),
            (RetryCondition::Unavailable, unavailable, status(200)),
        ] {
            let policy = policy(&[condition]);
            assert!(tries_again(Some(&policy), false, 2, yes), "{condition:?}");
            assert!(!tries_again(Some(&policy), false, 3, yes), "{condition:?} too often");
            assert!(!tries_again(Some(&policy), true, 1, no), "{condition:?}");
        }
    }
}
