//! Fingerprints: what a client shows to prove it changes what it has seen.
//!
//! Invariant: equal contents have equal fingerprints; a fingerprint never depends on itself.

use super::collection::{INTERNAL, Object};
use crate::error::{ApiError, Reason};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The length of a fingerprint before base64, in bytes.
const FINGERPRINT_BYTES: usize = 8;

/// The fingerprint of any value.
pub(crate) fn of(value: &Value) -> String {
    let hash = digest(&SHA256, value.to_string().as_bytes());
    STANDARD.encode(&hash.as_ref()[..FINGERPRINT_BYTES])
}

/// The fingerprint of a resource.
pub(crate) fn of_resource(object: &Object) -> String {
    let mut content = object.clone();
    for field in ["fingerprint", "labelFingerprint", "selfLink", INTERNAL] {
        content.remove(field);
    }
    of(&Value::Object(content))
}

/// The fingerprint of a resource's labels, present or not.
pub(crate) fn of_labels(object: &Object) -> String {
    of(object.get("labels").unwrap_or(&Value::Object(Object::new())))
}

/// Refuses a fingerprint other than the current one.
pub(crate) fn check(given: Option<&Value>, current: &str, what: &str) -> Result<(), ApiError> {
    match given.and_then(Value::as_str) {
        Some(given) if same_bytes(given, current) => Ok(()),
        _ => Err(ApiError::new(Reason::ConditionNotMet, what)),
    }
}

/// Whether two base64 texts say the same. Clients that keep bytes as bytes write them back in the
/// URL-safe alphabet, whichever they were given.
pub(crate) fn same_bytes(one: &str, other: &str) -> bool {
    let standard = |text: &str| text.trim_end_matches('=').replace('-', "+").replace('_', "/");
    standard(one) == standard(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_same_in_both_alphabets_of_base64() {
        for given in ["tLImo/AYWdA=", "tLImo_AYWdA=", "tLImo_AYWdA"] {
            assert!(check(Some(&given.into()), "tLImo/AYWdA=", "stale").is_ok(), "{given}");
        }
        for given in ["", "tLImo/AYWdB=", "AAAAAAAAAAA="] {
            assert!(check(Some(&given.into()), "tLImo/AYWdA=", "stale").is_err(), "{given}");
        }
    }
}
