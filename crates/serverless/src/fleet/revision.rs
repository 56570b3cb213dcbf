//! What the keeper knows about one revision, and what follows from it.
//!
//! Everything here is bookkeeping and decisions; starting and stopping is the keeper's.
//!
//! Invariant: an instance is in `running` exactly as long as its slot is in the pool.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use model::run::RevisionScaling;
use plan::fleet::{RevisionPlan, Role, Scaling};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::pool::{Pool, Slot};
use super::specs::Images;
use super::{
    BACKOFF_FIRST, CRASH_AGE, DRAIN_SLACK, ImageSource, PROVEN_KEPT, RETIRED_KEPT, RevisionStatus,
    WAIT_MIN, WAIT_STARTUPS,
};
use crate::autoscaler::{Decision, Driver, Limits, Load, Window, decide};
use crate::runtime::launch::LiveInstance;

/// Starts that the average startup time is taken over.
const STARTUPS_REMEMBERED_MAX: usize = 10;
/// Looks without a request after which an instance loses its processor.
const IDLE_LOOKS_BEFORE_THROTTLING: u32 = 1;

/// One revision as the keeper sees it.
#[derive(Debug)]
pub(crate) struct RevisionState {
    pub(crate) plan: Arc<RevisionPlan>,
    pub(crate) pool: Arc<Pool>,
    /// `None` once no plan lists it any more.
    pub(crate) role: Option<Role>,
    scaling: Scaling,
    pub(crate) images: ImageState,
    pub(crate) check: Check,
    window: Window,
    pub(crate) wanted: u32,
    pub(crate) is_queued: bool,
    pub(crate) launches: BTreeMap<u64, JoinHandle<()>>,
    pub(crate) running: BTreeMap<u64, Running>,
    /// Instances that are being taken off the host.
    pub(crate) stopping: u32,
    failures: u32,
    not_before: Instant,
    startups: VecDeque<Duration>,
    kept_until: Option<Instant>,
    retired_at: Option<Instant>,
    pub(crate) last_failure: Option<(SystemTime, String)>,
}

/// How far the images of a revision are.
#[derive(Debug)]
pub(crate) enum ImageState {
    Unknown,
    Resolving,
    Ready(Arc<Images>),
}

/// Whether the first instance of the revision still has to show that it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    NotNeeded,
    Pending,
    Reported,
}

/// One instance that takes requests, or finishes its last ones.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) slot: Arc<Slot>,
    pub(crate) live: LiveInstance,
    pub(crate) watcher: JoinHandle<()>,
    started_at: Instant,
    closed_at: Option<Instant>,
    processor: Duration,
    processor_millis: u32,
    idle_looks: u32,
}

impl Running {
    pub(crate) fn new(
        slot: Arc<Slot>,
        live: LiveInstance,
        watcher: JoinHandle<()>,
        now: Instant,
    ) -> Running {
        Running {
            slot,
            live,
            watcher,
            started_at: now,
            closed_at: None,
            processor: Duration::ZERO,
            processor_millis: 0,
            idle_looks: 0,
        }
    }

    fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }
}

impl RevisionState {
    /// A revision nobody has listed yet, with the bounds of its own declaration.
    pub(crate) fn new(plan: Arc<RevisionPlan>, pool: Arc<Pool>, now: Instant) -> RevisionState {
        let own = &plan.declared.scaling;
        let scaling = unlisted_scaling(own);
        RevisionState {
            plan,
            pool,
            role: None,
            scaling,
            images: ImageState::Unknown,
            check: Check::NotNeeded,
            window: Window::default(),
            wanted: 0,
            is_queued: false,
            launches: BTreeMap::new(),
            running: BTreeMap::new(),
            stopping: 0,
            failures: 0,
            not_before: now,
            startups: VecDeque::new(),
            kept_until: None,
            retired_at: Some(now),
            last_failure: None,
        }
    }

    /// The plan lists the revision like this.
    pub(crate) fn list(&mut self, plan: Arc<RevisionPlan>, role: Role, scaling: Scaling) {
        self.plan = plan;
        self.scaling = scaling;
        self.retired_at = None;
        match (role, self.check) {
            (Role::Check, Check::NotNeeded) => self.check = Check::Pending,
            (Role::Check, _) => {}
            _ => self.check = Check::NotNeeded,
        }
        self.role = Some(role);
        self.pool.set_disabled(scaling.instances_manual == Some(0));
    }

    /// No plan lists the revision any more.
    pub(crate) fn retire(&mut self, now: Instant) {
        if self.role.take().is_some() {
            self.retired_at = Some(now);
            self.scaling = unlisted_scaling(&self.plan.declared.scaling);
            self.check = Check::NotNeeded;
            self.kept_until = None;
            self.pool.set_disabled(false);
        }
    }

    /// Looks at the load and decides how many instances there should be.
    pub(crate) fn decide(&mut self, now: Instant, since_start: Duration, idle: Duration) {
        let load = Load {
            requests_in_flight: self.pool.requests_in_flight(),
            requests_waiting: self.pool.requests_waiting(),
            processor_millis: self.running.values().map(|running| running.processor_millis).sum(),
            instances_ready: self.open(),
            was_touched: self.pool.take_touched(),
        };
        self.window.record(load, since_start);
        let limits = self.limits(idle);
        let decision = decide(&limits, &mut self.window, &load, since_start);
        self.wanted = self.overruled(decision, &load, now);
        let at_maximum = decision.driver == Driver::Maximum || self.wanted >= limits.instances_max;
        self.pool.set_condition(at_maximum, self.failures > 0 && self.open() == 0);
    }

    /// What the autoscaler cannot know: revisions that still have to prove themselves, have just
    /// done so, or have lost their traffic.
    fn overruled(&self, decision: Decision, load: &Load, now: Instant) -> u32 {
        if self.check == Check::Pending {
            return decision.instances.max(1);
        }
        let is_kept = self.kept_until.is_some_and(|until| now < until);
        if is_kept && decision.driver != Driver::Manual {
            // Kept, and not made again: a count set by hand may have ended it meanwhile.
            return decision.instances.max(self.open().min(1));
        }
        let Some(retired_at) = self.retired_at else { return decision.instances };
        let needed = load.requests_in_flight + load.requests_waiting;
        let enough = needed.div_ceil(self.plan.concurrency).min(decision.instances);
        match now.duration_since(retired_at) < RETIRED_KEPT {
            true => enough.max(self.open().min(1)),
            false => enough,
        }
    }

    fn limits(&self, idle_before_zero: Duration) -> Limits {
        let declared = &self.plan.declared;
        let share = |percent: u8| (percent > 0).then(|| f64::from(percent) / 100.0);
        let processor_millis: u32 =
            declared.containers.iter().map(|container| container.limits.processor_millis).sum();
        Limits {
            instances_min: self.scaling.instances_min,
            instances_max: self.scaling.instances_max,
            instances_manual: self.scaling.instances_manual,
            concurrency: self.plan.concurrency,
            concurrency_target: share(self.scaling.concurrency_utilization_percent)
                .map(|share| share * f64::from(self.plan.concurrency)),
            processor_millis_target: share(self.scaling.cpu_utilization_percent)
                .map(|share| share * f64::from(processor_millis)),
            idle_before_zero,
        }
    }

    /// Instances that take requests.
    pub(crate) fn open(&self) -> u32 {
        count(self.running.values().filter(|running| running.is_open()))
    }

    /// Whether another instance should be started now.
    pub(crate) fn wants_launch(&self, now: Instant) -> bool {
        self.wanted > self.open() + count(self.launches.values()) && now >= self.not_before
    }

    /// Whether there is anything to look at again soon.
    pub(crate) fn is_active(&self) -> bool {
        !self.running.is_empty()
            || !self.launches.is_empty()
            || self.wanted > 0
            || self.pool.requests_waiting() > 0
            || (self.role.is_none() && self.stopping == 0)
    }

    /// Whether nothing is left of it but this.
    pub(crate) fn is_over(&self) -> bool {
        self.role.is_none()
            && self.running.is_empty()
            && self.launches.is_empty()
            && self.wanted == 0
            && !matches!(self.images, ImageState::Resolving)
    }

    /// Closes the instances there are too many of, idle ones first, then the least busy, then the
    /// youngest. Returns those that can be stopped at once.
    pub(crate) fn close_surplus(&mut self, now: Instant) -> Vec<u64> {
        let surplus = self.open().saturating_sub(self.wanted);
        let mut open: Vec<(u32, Instant, u64)> = self
            .running
            .iter()
            .filter(|(_, running)| running.is_open())
            .map(|(id, running)| (running.slot.in_flight(), running.started_at, *id))
            .collect();
        open.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
        let chosen = open.into_iter().take(usize::try_from(surplus).unwrap_or(usize::MAX));
        let chosen: Vec<u64> = chosen.map(|(.., id)| id).collect();
        chosen.into_iter().filter(|id| self.close(*id, now)).collect()
    }

    /// Lets an instance take no more requests; true when it has none left.
    pub(crate) fn close(&mut self, id: u64, now: Instant) -> bool {
        let Some(running) = self.running.get_mut(&id) else { return false };
        running.closed_at.get_or_insert(now);
        running.slot.close() == 0
    }

    /// Closed instances that have finished, or have had their time.
    pub(crate) fn drained(&self, now: Instant) -> Vec<u64> {
        let bound = self.plan.timeout + DRAIN_SLACK;
        let over = |running: &Running| {
            let closed_for = running.closed_at.map(|at| now.duration_since(at));
            closed_for.is_some_and(|closed| running.slot.in_flight() == 0 || closed >= bound)
        };
        self.running.iter().filter(|(_, running)| over(running)).map(|(id, _)| *id).collect()
    }

    /// Once a second: what the processors did, who has been idle, who has lived long enough.
    pub(crate) fn look_closely(&mut self, now: Instant, elapsed: Duration, throttles: bool) {
        let declared = &self.plan.declared;
        // Probes have to be answered in time also between requests.
        let is_probed = declared.containers.iter().any(|container| {
            container.liveness_probe.is_some() || container.readiness_probe.is_some()
        });
        let throttles = throttles && declared.cpu_idle && !is_probed;
        let measures = self.scaling.cpu_utilization_percent > 0;
        for running in self.running.values_mut().filter(|running| running.is_open()) {
            if measures {
                let used = running.live.instance().usage().processor;
                let millis = used.saturating_sub(running.processor).as_secs_f64() * 1000.0;
                let rate = millis / elapsed.as_secs_f64().max(0.001);
                running.processor = used;
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a rate of processors, never negative and far below the limit"
                )]
                let rate = rate.min(f64::from(u32::MAX)) as u32;
                running.processor_millis = rate;
            }
            let is_idle = running.slot.in_flight() == 0;
            running.idle_looks = if is_idle { running.idle_looks.saturating_add(1) } else { 0 };
            if throttles && running.idle_looks > IDLE_LOOKS_BEFORE_THROTTLING {
                running.slot.throttle_if_idle();
            }
        }
        let oldest = self.running.values().map(|running| running.started_at).min();
        if oldest.is_some_and(|started| now.duration_since(started) >= CRASH_AGE) {
            self.failures = 0;
        }
    }

    /// An instance came up.
    pub(crate) fn note_started(&mut self, took: Duration, now: Instant) {
        self.startups.push_back(took);
        while self.startups.len() > STARTUPS_REMEMBERED_MAX {
            self.startups.pop_front();
        }
        let sum: Duration = self.startups.iter().sum();
        let average = sum / u32::try_from(self.startups.len()).unwrap_or(1).max(1);
        self.pool.set_patience(average.mul_f64(WAIT_STARTUPS).max(WAIT_MIN));
        if self.check == Check::Pending {
            self.check = Check::Reported;
            self.kept_until = Some(now + PROVEN_KEPT);
        }
    }

    /// An instance could not be started, or ended too young: the next attempt waits, each time
    /// twice as long up to a bound.
    pub(crate) fn note_failure(
        &mut self,
        summary: String,
        at: SystemTime,
        now: Instant,
        pause_max: Duration,
    ) {
        self.last_failure = Some((at, summary));
        let doublings = self.failures.min(16);
        let pause = BACKOFF_FIRST.saturating_mul(1 << doublings).min(pause_max);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + pause;
    }

    /// How often in a row its instances could not be started or ended too young.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// How long the instance has been there, if it is.
    pub(crate) fn age(&self, id: u64, now: Instant) -> Option<Duration> {
        Some(now.duration_since(self.running.get(&id)?.started_at))
    }

    pub(crate) fn status(&self, images: &dyn ImageSource) -> RevisionStatus {
        let is_resolving = matches!(self.images, ImageState::Resolving);
        let containers = self.plan.declared.containers.iter().filter(|_| is_resolving);
        let mut pulls = containers.filter_map(|container| {
            Some((container.image.clone(), images.progress(&container.image)?))
        });
        RevisionStatus {
            revision: self.plan.name.clone(),
            instances_wanted: self.wanted,
            instances_ready: self.open(),
            instances_starting: count(self.launches.values()),
            instances_draining: count(self.running.values().filter(|r| !r.is_open())),
            requests_in_flight: self.pool.requests_in_flight(),
            requests_waiting: self.pool.requests_waiting(),
            pulling: pulls.next(),
            last_failure: self.last_failure.clone(),
        }
    }
}

fn count<T>(of: impl Iterator<Item = T>) -> u32 {
    u32::try_from(of.count()).unwrap_or(u32::MAX)
}

/// A revision that only requests of another plan still ask for.
fn unlisted_scaling(own: &RevisionScaling) -> Scaling {
    Scaling {
        instances_min: 0,
        instances_max: own.instances_max.unwrap_or(model::run::INSTANCES_MAX_DEFAULT).max(1),
        instances_manual: None,
        concurrency_utilization_percent: own.concurrency_utilization_percent,
        cpu_utilization_percent: own.cpu_utilization_percent,
    }
}
