//! Places that may be written to by whoever was given their address, and uploads in pieces.
//!
//! Invariant: an address is good for one object, for a bounded time, and cannot be guessed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::{Duration, OffsetDateTime};

use crate::error::{ApiError, Reason};
use crate::http::Principal;

/// How long a signed address is good, as Cloud Functions has it.
const SIGNED_FOR: Duration = Duration::minutes(30);
/// Addresses and uploads in pieces that are open at a time.
const OPEN_MAX: usize = 64;

/// What is open for writing.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    signed: Mutex<HashMap<String, Signed>>,
    pieces: Mutex<HashMap<String, Pieces>>,
}

#[derive(Clone, Debug)]
struct Signed {
    bucket: String,
    object: String,
    until: OffsetDateTime,
    principal: Principal,
}

/// An upload that comes in pieces.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    pub(super) bucket: String,
    pub(super) object: String,
    pub(super) content_type: String,
    pub(super) bytes: Vec<u8>,
    pub(super) begun: OffsetDateTime,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_many() -> ApiError {
    let message = format!("At most {OPEN_MAX} uploads are open at a time.");
    ApiError::new(Reason::QuotaExceeded, message)
}

impl Sessions {
    /// Lets whoever has the signature write this object, in the name of who asked.
    pub(crate) fn sign(
        &self,
        signature: &str,
        bucket: &str,
        object: &str,
        principal: &Principal,
        now: OffsetDateTime,
    ) -> Result<(), ApiError> {
        let mut signed = lock(&self.signed);
        signed.retain(|_, each| each.until > now);
        if signed.len() >= OPEN_MAX {
            return Err(too_many());
        }
        let place = Signed {
            bucket: bucket.to_owned(),
            object: object.to_owned(),
            until: now + SIGNED_FOR,
            principal: principal.clone(),
        };
        signed.insert(signature.to_owned(), place);
        Ok(())
    }

    /// In whose name a signature lets this path be written.
    pub(crate) fn signer(
        &self,
        signature: &str,
        path: &str,
        now: OffsetDateTime,
    ) -> Option<Principal> {
        let signed = lock(&self.signed);
        let place = signed.get(signature).filter(|place| place.until > now)?;
        let is_it = path.trim_start_matches('/') == format!("{}/{}", place.bucket, place.object);
        is_it.then(|| place.principal.clone())
    }

    pub(super) fn begin(&self, id: &str, pieces: Pieces) -> Result<(), ApiError> {
        let mut all = lock(&self.pieces);
        let oldest = pieces.begun - SIGNED_FOR;
        all.retain(|_, each| each.begun > oldest);
        if all.len() >= OPEN_MAX {
            return Err(too_many());
        }
        all.insert(id.to_owned(), pieces);
        Ok(())
    }

    /// Takes an upload out to add to it.
    pub(super) fn take(&self, id: &str) -> Option<Pieces> {
        lock(&self.pieces).remove(id)
    }

    /// Puts an upload back.
    pub(super) fn put_back(&self, id: &str, pieces: Pieces) {
        lock(&self.pieces).insert(id.to_owned(), pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn a_signature_is_good_for_one_object_and_for_a_while() {
        let sessions = Sessions::default();
        let principal = Principal { email: "a@b.example".to_owned(), is_service_account: false };
        let now = datetime!(2026-01-01 00:00 UTC);
        sessions.sign("s", "bucket", "a.zip", &principal, now).unwrap();
        for (signature, path, later, good) in [
            ("s", "/bucket/a.zip", Duration::ZERO, true),
            ("s", "/bucket/b.zip", Duration::ZERO, false),
            ("x", "/bucket/a.zip", Duration::ZERO, false),
            ("s", "/bucket/a.zip", Duration::hours(1), false),
        ] {
            let signer = sessions.signer(signature, path, now + later);
            assert_eq!(signer.is_some(), good, "{signature} {path} {later}");
        }
    }
}
