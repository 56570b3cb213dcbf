//! Refusals as gRPC tells them: a code, a sentence and details in the trailers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};

use crate::error::{ApiError, Dialect, Reason};
use crate::http::Response;

/// Longer details would not fit what clients read of trailers (8 KiB), in bytes.
const DETAILS_BYTES_MAX: usize = 4 * 1024;
/// The longest sentence in a trailer, in bytes.
const MESSAGE_BYTES_MAX: usize = 2 * 1024;

/// Canonical codes in the order of their numbers.
const CODES: &[&str] = &[
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// How a call ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status {
    code: usize,
    message: String,
    details: Vec<Value>,
}

impl Status {
    /// The call was answered.
    pub(super) const OK: Status = Status { code: 0, message: String::new(), details: Vec::new() };

    /// What a REST answer that is no success says.
    pub(super) fn of_response(response: &Response) -> Status {
        let body: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        let error = &body["error"];
        let word = error["status"].as_str().unwrap_or("UNKNOWN");
        Status {
            code: CODES.iter().position(|code| *code == word).unwrap_or(2),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            details: error["details"].as_array().cloned().unwrap_or_default(),
        }
    }

    /// An error of ours.
    pub(super) fn of_error(error: &ApiError) -> Status {
        Status::of_response(&error.response(Dialect::OnePlatform))
    }

    /// A method nobody serves.
    pub(super) fn unserved(path: &str) -> Status {
        Status::of_error(&ApiError::new(
            Reason::Unimplemented,
            format!("The method {path} is not served here."),
        ))
    }

    /// The trailers that say so.
    pub(super) fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(self.code));
        let sentence = shortened(&self.message);
        if !sentence.is_empty()
            && let Ok(value) =
                HeaderValue::from_str(&utf8_percent_encode(sentence, OUTSIDE_MESSAGE).to_string())
        {
            trailers.insert(HeaderName::from_static("grpc-message"), value);
        }
        if let Some(value) = self.details_value() {
            trailers.insert(HeaderName::from_static("grpc-status-details-bin"), value);
        }
        trailers
    }

    /// The whole `google.rpc.Status`, as `grpc-status-details-bin` carries it.
    fn details_value(&self) -> Option<HeaderValue> {
        if self.code == 0 {
            return None;
        }
        // A detail of a kind that is not described would make the whole unreadable.
        let is_known = |detail: &&Value| {
            let kind = detail["@type"].as_str().and_then(|url| url.rsplit('/').next());
            kind.is_some_and(wire::grpc::knows)
        };
        let details: Vec<&Value> = self.details.iter().filter(is_known).collect();
        let message = shortened(&self.message);
        let status = json!({ "code": self.code, "message": message, "details": details });
        let bytes = wire::grpc::encode("google.rpc.Status", &status).ok()?;
        let text = (bytes.len() <= DETAILS_BYTES_MAX).then(|| STANDARD_NO_PAD.encode(bytes))?;
        HeaderValue::from_str(&text).ok()
    }
}

/// What `grpc-message` escapes: all but printable ASCII, and the escape itself.
const OUTSIDE_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

fn shortened(message: &str) -> &str {
    let end = (0..=MESSAGE_BYTES_MAX.min(message.len())).rev();
    let end = end.into_iter().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Violation, WireError};

    #[test]
    fn a_refusal_keeps_its_code_sentence_and_details() {
        let violation = Violation { path: "service.x".into(), description: "50 % wrong…".into() };
        let error = ApiError::from(WireError { violations: vec![violation] });
        let trailers = Status::of_error(&error).trailers();
        assert_eq!(trailers["grpc-status"], "3");
        assert_eq!(trailers["grpc-message"], "50 %25 wrong%E2%80%A6");
        let bytes = STANDARD_NO_PAD.decode(&trailers["grpc-status-details-bin"]).expect("base64");
        let status = wire::grpc::decode("google.rpc.Status", &bytes).expect("a status");
        assert_eq!(status["details"][0]["fieldViolations"][0]["field"], "service.x");
    }

    #[test]
    fn every_reason_has_a_code() {
        for (reason, code) in [
            (Reason::NotFound, "5"),
            (Reason::AlreadyExists, "6"),
            (Reason::Forbidden, "7"),
            (Reason::FailedPrecondition, "9"),
            (Reason::Aborted, "10"),
            (Reason::Unimplemented, "12"),
            (Reason::Unauthenticated, "16"),
        ] {
            let trailers = Status::of_error(&ApiError::new(reason, "no")).trailers();
            assert_eq!(trailers["grpc-status"], code, "{reason:?}");
        }
        assert_eq!(Status::OK.trailers().len(), 1);
    }
}
