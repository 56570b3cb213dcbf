//! The numbers of resources: unique for ever, and larger the later they are given.
//!
//! Whoever came first keeps what two resources want, and the plan reads who came first from the
//! numbers.
//!
//! Invariant: a number is larger than every number given before it and every one in the store.

use crate::surroundings::Surroundings;
use crate::world::{Document, State};
use serde::Deserialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bits below the milliseconds, which chance fills. With them a number has nineteen digits, like
/// Google's, and fits into a signed 64-bit integer for three more centuries.
const CHANCE_BITS: u32 = 20;

/// The source of numbers.
#[derive(Debug)]
pub(crate) struct Ids {
    last: AtomicU64,
}

/// What this file reads of a document.
#[derive(Debug, Deserialize)]
struct Numbered {
    id: String,
}

impl Ids {
    /// A source of numbers above all those of a state.
    pub(crate) fn above(state: &State) -> Ids {
        let number = |document: &Document| document.read::<Numbered>().ok()?.id.parse::<u64>().ok();
        let given = state.documents.values().filter_map(number);
        Ids { last: AtomicU64::new(given.max().unwrap_or_default()) }
    }

    /// The next number.
    pub(crate) fn next(&self, surroundings: &dyn Surroundings) -> u64 {
        let milliseconds = surroundings.now().unix_timestamp_nanos() / 1_000_000;
        let milliseconds = u64::try_from(milliseconds).unwrap_or_default();
        let chance = surroundings.random() & ((1 << CHANCE_BITS) - 1);
        let wanted = (milliseconds << CHANCE_BITS) | chance;
        let above = |last: u64| Some(wanted.max(last + 1));
        match self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, above) {
            Ok(last) | Err(last) => wanted.max(last + 1),
        }
    }
}
