//! Which revision gets the next request: percentages as a fixed order of turns.
//!
//! A draw by lot would be right on average and wrong over a thousand requests. The order below is
//! smooth weighted round robin: over any whole number of rounds the shares are exact, and within a
//! round no revision is ever more than one turn away from its share.
//!
//! Invariant: the order has one turn for each percent and names only revisions that are ready.

use super::RevisionPlan;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The shares of the revisions of one service, as an order of turns.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    revisions: Vec<Arc<RevisionPlan>>,
    turns: Box<[u16]>,
}

impl Shares {
    /// Shares by weight. Entries of the same revision add up; those of weight 0 get no turn.
    pub(super) fn new(entries: &[(Arc<RevisionPlan>, u32)]) -> Shares {
        let mut revisions: Vec<Arc<RevisionPlan>> = Vec::new();
        let mut weights: Vec<i64> = Vec::new();
        for (revision, weight) in entries.iter().filter(|(_, weight)| *weight > 0) {
            let known = revisions.iter().position(|known| known.id == revision.id);
            match known.and_then(|index| weights.get_mut(index)) {
                Some(sum) => *sum += i64::from(*weight),
                None => {
                    revisions.push(Arc::clone(revision));
                    weights.push(i64::from(*weight));
                }
            }
        }
        let turns = order(&weights);
        Shares { revisions, turns }
    }

    pub(super) fn pick(&self, turn: u64) -> Option<&Arc<RevisionPlan>> {
        let index = usize::try_from(turn.checked_rem(self.turns.len() as u64)?).ok()?;
        self.revisions.get(usize::from(*self.turns.get(index)?))
    }
}

/// At each turn everybody earns their weight, and whoever has earned most pays for the turn with
/// the sum of all weights.
fn order(weights: &[i64]) -> Box<[u16]> {
    let common = weights.iter().copied().reduce(greatest_common_divisor).unwrap_or(1);
    let weights: Vec<i64> = weights.iter().map(|weight| weight / common).collect();
    let sum: i64 = weights.iter().sum();
    let mut earned = vec![0; weights.len()];
    let mut turns = Vec::new();
    for _ in 0..sum {
        let mut richest = 0;
        for (index, weight) in weights.iter().enumerate() {
            earned[index] += weight;
            // Of two that have earned the same, the first declared goes first.
            if earned[index] > earned[richest] {
                richest = index;
            }
        }
        earned[richest] -= sum;
        turns.extend(u16::try_from(richest));
    }
    turns.into()
}

fn greatest_common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Hands out the turns of one service, or of one list of weights, to all threads that serve it. It is not part of what a plan
/// means: plans of the same service share it, so that a new plan does not start the order anew.
#[derive(Debug, Default)]
pub(crate) struct Turns(AtomicU64);

impl Turns {
    pub(crate) fn take(&self) -> u64 {
        // Only the count matters, not what else the threads have seen.
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(turns: &[u16], kinds: usize) -> Vec<usize> {
        (0..kinds)
            .map(|kind| turns.iter().filter(|turn| usize::from(**turn) == kind).count())
            .collect()
    }

    #[test]
    fn turns_are_spread_and_not_in_blocks() {
        for (weights, turns) in [
            (&[100_i64][..], &[0_u16][..]),
            (&[50, 50], &[0, 1]),
            (&[75, 25], &[0, 0, 1, 0]),
            (&[60, 40], &[0, 1, 0, 1, 0]),
            (&[], &[]),
        ] {
            assert_eq!(&*order(weights), turns, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn over_any_thousand_requests_each_share_is_right_to_one_percent(
            cuts in prop::collection::vec(0..=100_i64, 0..5),
            start in 0..1000_usize,
        ) {
            let mut cuts = cuts;
            cuts.extend([0, 100]);
            cuts.sort_unstable();
            let weights: Vec<i64> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let turns = order(&weights);
            let window: Vec<u16> = (start..start + 1000).map(|i| turns[i % turns.len()]).collect();
            for (count, weight) in counts(&window, weights.len()).into_iter().zip(&weights) {
                let off = i64::try_from(count).unwrap() - weight * 10;
                prop_assert!(off.abs() <= 10, "{weights:?}: {count} for {weight} %");
            }
        }
    }
}
