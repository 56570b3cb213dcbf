//! What a rule or a default does with a request: the compiled form of a destination.
//!
//! Invariant: an action is complete. One that could not be compiled leads nowhere, and the map has a
//! problem that says why.

use super::dice::{self, Draw};
use super::template::TemplateRewrite;
use crate::decision::{CorsPolicy, HeaderAction, RetryPolicy};
use crate::fleet::Turns;
use model::url_map::{Percentage, UrlRedirect};
use std::sync::Arc;
use std::time::Duration;

/// The number of a backend service among those a URL map names.
pub(crate) type BackendId = u32;

/// What is done with a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Action {
    pub(crate) to: To,
    /// `urlRewrite.hostRewrite`.
    pub(crate) host_rewrite: Option<Box<str>>,
    pub(crate) path_rewrite: PathRewrite,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<Box<RetryPolicy>>,
    pub(crate) cors: Option<Box<CorsPolicy>>,
    pub(crate) fault: Option<Box<Fault>>,
}

impl Action {
    /// The weighted backend service that the dice choose, if there are several to choose from.
    pub(crate) fn drawn(&self, dice: u64) -> Option<&WeightedService> {
        match &self.to {
            To::Weighted(weighted) => weighted.pick(dice),
            To::Service(_) | To::Redirect(_) | To::Nowhere => None,
        }
    }
}

/// Where the request goes.
#[derive(Clone, Debug, Default)]
pub(crate) enum To {
    /// Nowhere: the declaration was unsound.
    #[default]
    Nowhere,
    /// One backend service.
    Service(BackendId),
    /// One of several.
    Weighted(Weighted),
    /// Back to the client.
    Redirect(Box<UrlRedirect>),
}

/// `weightedBackendServices[]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Weighted {
    pub(crate) total: u32,
    pub(crate) services: Vec<WeightedService>,
    /// Shared by every plan that holds these very weights.
    turns: Arc<Turns>,
    round: Round,
}

/// How far from the golden section a better step is looked for.
const STEPS_TRIED: u64 = 50;

/// The order in which the points below the sum of the weights are taken, each once: steps of a length
/// that shares no factor with the sum, near the golden section of it, so that shares are right within
/// a round too.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// How many requests it takes until every share is exact.
    turns: u64,
    step: u64,
    /// What all weights are multiples of.
    unit: u32,
}

/// One of several backend services.
#[derive(Clone, Debug)]
pub(crate) struct WeightedService {
    /// The sum of the weights up to and with this one.
    pub(crate) up_to: u32,
    pub(crate) weight: u32,
    pub(crate) backend: BackendId,
    pub(crate) header_action: HeaderAction,
}

impl Round {
    fn of(turns: u32, unit: u32) -> Round {
        let golden = u64::from(turns) * 618 / 1000;
        let near = golden.saturating_sub(STEPS_TRIED)..=golden + STEPS_TRIED;
        let coprime = near.filter_map(|step| Some((unevenness(step, turns.into())?, step)));
        let step = coprime.min().map_or(1, |(_, step)| step);
        Round { turns: turns.into(), step, unit }
    }
}

/// How unevenly points lie that are so many steps apart: the greatest quotient of Euclid's algorithm,
/// which is 1 for the golden section. `None` when the two share a factor.
fn unevenness(step: u64, turns: u64) -> Option<u64> {
    let (mut a, mut b, mut greatest) = (turns, step, 0);
    while b > 0 {
        greatest = greatest.max(a / b);
        (a, b) = (b, a % b);
    }
    (a == 1).then_some(greatest)
}

impl Weighted {
    pub(crate) fn new(services: Vec<WeightedService>) -> Weighted {
        let weights = || services.iter().map(|service| service.weight);
        let total: u32 = weights().sum();
        let unit = weights().reduce(greatest_common_divisor).unwrap_or(0).max(1);
        let round = Round::of(total / unit, unit);
        Weighted { total, services, turns: Arc::default(), round }
    }

    /// The one that the dice choose.
    pub(crate) fn pick(&self, random: u64) -> Option<&WeightedService> {
        self.at(dice::below(dice::draw(random, Draw::Weight), self.total))
    }

    /// The one whose turn it is. Requests that are really carried out take turns, in whatever thread,
    /// which makes the shares exact.
    pub(crate) fn take_turn(&self) -> Option<&WeightedService> {
        self.in_turn(self.turns.take())
    }

    fn in_turn(&self, turn: u64) -> Option<&WeightedService> {
        let Round { turns, step, unit } = self.round;
        // Both factors are sums of weights at most, far below 2^32.
        let point = (turn.checked_rem(turns)? * step) % turns;
        self.at(u32::try_from(point).ok()?.checked_mul(unit)?)
    }

    fn at(&self, point: u32) -> Option<&WeightedService> {
        self.services.get(self.services.partition_point(|service| service.up_to <= point))
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// What becomes of the path.
#[derive(Clone, Debug, Default)]
pub(crate) enum PathRewrite {
    #[default]
    None,
    /// `pathPrefixRewrite`: the matched part is replaced.
    Prefix(Box<str>),
    /// `pathTemplateRewrite`: the path is made of the variables of the matched template.
    Template(Box<TemplateRewrite>),
}

/// `faultInjectionPolicy`.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) abort: Option<(u16, Percentage)>,
    pub(crate) delay: Option<(Duration, Percentage)>,
}

impl Fault {
    /// The delay of this request, if it gets one.
    pub(crate) fn delay(&self, random: u64) -> Option<Duration> {
        let (delay, share) = self.delay?;
        dice::hits(share, random, Draw::Delay).then_some(delay)
    }

    /// The status this request is aborted with, if it is.
    pub(crate) fn abort(&self, random: u64) -> Option<u16> {
        let (status, share) = self.abort?;
        dice::hits(share, random, Draw::Abort).then_some(status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weighted(weights: &[u32]) -> Weighted {
        let mut up_to = 0;
        let service = |(weight, backend): (&u32, u32)| {
            up_to += weight;
            WeightedService { up_to, weight: *weight, backend, header_action: <_>::default() }
        };
        Weighted::new(weights.iter().zip(0..).map(service).collect())
    }

    #[test]
    fn turns_alternate_and_do_not_come_in_blocks() {
        for (weights, turns) in [
            (&[100_u32][..], "000000"),
            (&[500, 500], "010101"),
            (&[1, 1, 1], "021021"),
            (&[3, 1], "01000100"),
            (&[0, 7], "1111"),
        ] {
            let weighted = weighted(weights);
            let taken: String = (0..turns.len())
                .map(|_| weighted.take_turn().expect("a service").backend.to_string())
                .collect();
            assert_eq!(taken, turns, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn over_a_round_every_share_is_exact_and_over_any_thousand_to_one_percent(
            weights in prop::collection::vec(0..=1000_u32, 1..6),
            start in 0..1_000_000_u64,
        ) {
            prop_assume!(weights.iter().sum::<u32>() > 0);
            let weighted = weighted(&weights);
            let mut counts = vec![0; weights.len()];
            for turn in start..start + weighted.round.turns {
                counts[weighted.in_turn(turn).expect("a service").backend as usize] += 1;
            }
            let exact: Vec<u32> = weights.iter().map(|weight| weight / weighted.round.unit).collect();
            prop_assert_eq!(&counts, &exact);
            let mut counts = vec![0; weights.len()];
            for turn in start..start + 1000 {
                counts[weighted.in_turn(turn).expect("a service").backend as usize] += 1;
            }
            for (count, weight) in counts.iter().zip(&weights) {
                let share = 1000.0 * f64::from(*weight) / f64::from(weighted.total);
                prop_assert!((f64::from(*count) - share).abs() <= 10.0, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn weights_are_shares_and_a_weight_of_zero_gets_nothing() {
        let weighted = weighted(&[0, 30, 0, 70, 0]);
        let mut counts = [0; 5];
        for random in 0..100_000 {
            counts[weighted.pick(random).expect("a service").backend as usize] += 1;
        }
        assert_eq!(counts.iter().sum::<i32>(), 100_000);
        assert_eq!([counts[0], counts[2], counts[4]], [0, 0, 0]);
        assert!((29_000..31_000).contains(&counts[1]), "{counts:?}");
    }
}
