//! Recording how the first instance of a revision fared.

use model::ResourceName;
use model::run::Outcome;

use super::document::{self, OutcomeDocument, RevisionDocument};
use crate::Api;
use crate::error::ApiError;
use crate::surroundings::utc_timestamp;

/// The longest message that is kept, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 * 1024;

impl Api {
    /// Keeps how the first instance of a revision fared. The first word counts: a later one, or one
    /// about a revision that is gone, changes nothing.
    pub async fn record_outcome(
        &self,
        revision: &ResourceName,
        outcome: Outcome,
    ) -> Result<(), ApiError> {
        let key = revision.to_string();
        let at = utc_timestamp(self.surroundings().now());
        let changed = self.world().change(|draft| {
            let Some(kept) = draft.get(&key) else { return Ok(()) };
            let mut document: RevisionDocument = document::read(&kept)?;
            if document.outcome.is_some() {
                return Ok(());
            }
            let digests = outcome.image_digests.into_iter();
            document.outcome = Some(OutcomeDocument {
                ready: outcome.ready,
                reason: outcome.reason,
                message: shortened(outcome.message),
                image_digests: digests.map(|(name, digest)| (name.to_string(), digest)).collect(),
                at,
            });
            draft.put(key.clone(), document::write(&document)?);
            Ok(())
        });
        changed.await.map(|_| ())
    }
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
    }
    message
}
