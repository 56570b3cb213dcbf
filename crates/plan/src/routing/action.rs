//! What a rule or a default does with a request: the compiled form of a destination.
//!
//! Invariant: an action is complete. One that could not be compiled leads nowhere, and the map has a
//! problem that says why.

use super::dice::{self, Draw};
use super::template::TemplateRewrite;
use crate::decision::{CorsPolicy, HeaderAction, RetryPolicy};
use model::url_map::{Percentage, UrlRedirect};
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

impl Weighted {
    /// The one that the dice choose.
    pub(crate) fn pick(&self, random: u64) -> Option<&WeightedService> {
        let point = dice::below(dice::draw(random, Draw::Weight), self.total);
        self.services.get(self.services.partition_point(|service| service.up_to <= point))
    }
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

    #[test]
    fn weights_are_shares_and_a_weight_of_zero_gets_nothing() {
        let mut weighted = Weighted::default();
        for (backend, weight) in [(0, 0), (1, 30), (2, 0), (3, 70), (4, 0)] {
            weighted.total += weight;
            let (up_to, header_action) = (weighted.total, HeaderAction::default());
            weighted.services.push(WeightedService { up_to, weight, backend, header_action });
        }
        let mut counts = [0; 5];
        for random in 0..100_000 {
            counts[weighted.pick(random).expect("a service").backend as usize] += 1;
        }
        assert_eq!(counts.iter().sum::<i32>(), 100_000);
        assert_eq!([counts[0], counts[2], counts[4]], [0, 0, 0]);
        assert!((29_000..31_000).contains(&counts[1]), "{counts:?}");
    }
}
