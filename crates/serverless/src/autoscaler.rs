//! How many instances a revision should have: a decision over what was seen in the last minutes.
//!
//! Two windows look at the same load. The stable one (60 s) follows it calmly; the panic one (6 s)
//! takes over when the load has at least doubled what the instances there are were meant for.
//! Requests that wait are never averaged away: there are at once as many instances wanted as it
//! takes to serve them all. Fewer instances are wanted only when a whole scale-down delay has
//! wanted fewer, and none only after the revision was idle for its time.
//!
//! Invariant: time is an argument, counted from any fixed start, and never goes backwards.

use std::collections::VecDeque;
use std::time::Duration;

/// What the calm average is taken over.
pub const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// What the hasty average is taken over.
pub const PANIC_WINDOW: Duration = Duration::from_secs(6);
/// The load, compared with what the ready instances are meant for, at which the hasty average rules.
pub const PANIC_FACTOR: u32 = 2;
/// How long fewer instances must be wanted before there are fewer.
pub const SCALE_DOWN_DELAY: Duration = Duration::from_secs(60);
/// How long the last instance is kept without a request: the next visitor would pay a cold start.
pub const IDLE_BEFORE_ZERO: Duration = Duration::from_secs(15 * 60);

/// Bounds and targets of one revision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Kept whatever the load.
    pub instances_min: u32,
    /// Never exceeded.
    pub instances_max: u32,
    /// Exactly so many, whatever the load and the bounds.
    pub instances_manual: Option<u32>,
    /// Requests at a time that one instance takes.
    pub concurrency: u32,
    /// Requests at a time that one instance should have; `None` when they do not drive scaling.
    pub concurrency_target: Option<f64>,
    /// Thousandths of a processor that one instance should use; `None` when they do not drive it.
    pub processor_millis_target: Option<f64>,
    /// How long the last instance is kept without a request.
    pub idle_before_zero: Duration,
}

/// What a revision does at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests being served.
    pub requests_in_flight: u32,
    /// Requests waiting for an instance.
    pub requests_waiting: u32,
    /// Thousandths of a processor that all instances use together.
    pub processor_millis: u32,
    /// Instances that take requests.
    pub instances_ready: u32,
    /// Whether a request came or went since the last look, also if none is there now.
    pub was_touched: bool,
}

/// What was seen of one revision, by the second.
#[derive(Clone, Debug, Default)]
pub struct Window {
    seconds: VecDeque<Second>,
    wanted: VecDeque<(u64, u32)>,
    first_second: Option<u64>,
    busy_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Second {
    number: u64,
    looks: u32,
    requests: f64,
    processor_millis: f64,
}

/// The number of instances wanted, and what asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// How many there should be.
    pub instances: u32,
    /// Why.
    pub driver: Driver,
}

/// What determined a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Manual scaling.
    Manual,
    /// The calm average of requests.
    Concurrency,
    /// The hasty average of requests.
    Panic,
    /// The processor.
    Processor,
    /// Requests that wait.
    Waiting,
    /// More were wanted a moment ago.
    Delay,
    /// The last instance, kept warm for the next request.
    KeptWarm,
    /// The lower bound.
    Minimum,
    /// The upper bound: more would be wanted.
    Maximum,
    /// Nothing needs an instance.
    Idle,
}

impl Window {
    /// Takes note of what a revision does at this moment. Looks in the same second are averaged.
    pub fn record(&mut self, load: Load, now: Duration) {
        let requests = load.requests_in_flight + load.requests_waiting;
        if requests > 0 || load.was_touched {
            self.busy_at = Some(now);
        }
        let number = now.as_secs();
        self.first_second.get_or_insert(number);
        let last_is_this = self.seconds.back().is_some_and(|second| second.number == number);
        if !last_is_this {
            let fresh = Second { number, looks: 0, requests: 0.0, processor_millis: 0.0 };
            self.seconds.push_back(fresh);
        }
        if let Some(second) = self.seconds.back_mut() {
            second.looks += 1;
            second.requests += f64::from(requests);
            second.processor_millis += f64::from(load.processor_millis);
        }
        let kept_from = number.saturating_sub(STABLE_WINDOW.as_secs());
        while self.seconds.front().is_some_and(|second| second.number < kept_from) {
            self.seconds.pop_front();
        }
    }

    /// How long no request has been there; `None` when there never was one.
    pub fn idle_for(&self, now: Duration) -> Option<Duration> {
        Some(now.saturating_sub(self.busy_at?))
    }

    /// The average over the seconds of the window, the current one included. A second nobody looked
    /// at was idle; before the first look there was nothing to average.
    fn average(&self, over: Duration, now: Duration, of: impl Fn(&Second) -> f64) -> f64 {
        let last = now.as_secs();
        let first =
            (last + 1).saturating_sub(over.as_secs()).max(self.first_second.unwrap_or(last));
        let seconds = last + 1 - first.min(last);
        let within = self.seconds.iter().rev().take_while(|second| second.number >= first);
        let sum: f64 = within.map(|second| of(second) / f64::from(second.looks.max(1))).sum();
        // A window is at most minutes long, which f64 counts exactly.
        sum / u32::try_from(seconds).map_or(f64::INFINITY, f64::from)
    }

    /// Remembers what is wanted now and returns the most that was wanted within the delay.
    fn most_wanted(&mut self, wanted: u32, now: Duration) -> u32 {
        let number = now.as_secs();
        match self.wanted.back_mut() {
            Some((second, most)) if *second == number => *most = wanted.max(*most),
            _ => self.wanted.push_back((number, wanted)),
        }
        let kept_from = number.saturating_sub(SCALE_DOWN_DELAY.as_secs());
        while self.wanted.front().is_some_and(|(second, _)| *second < kept_from) {
            self.wanted.pop_front();
        }
        self.wanted.iter().map(|(_, wanted)| *wanted).max().unwrap_or(wanted)
    }
}

/// How many instances there should be now. The window has already seen this load.
pub fn decide(limits: &Limits, window: &mut Window, load: &Load, now: Duration) -> Decision {
    if let Some(instances) = limits.instances_manual {
        return Decision { instances, driver: Driver::Manual };
    }
    let now_wanted = wanted(limits, window, load, now);
    let most = window.most_wanted(now_wanted.instances, now);
    let delayed = match most > now_wanted.instances {
        true => Decision { instances: most, driver: Driver::Delay },
        false => now_wanted,
    };
    let is_warm = window.idle_for(now).is_some_and(|idle| idle < limits.idle_before_zero);
    let kept = match delayed.instances == 0 && is_warm && load.instances_ready > 0 {
        true => Decision { instances: 1, driver: Driver::KeptWarm },
        false => delayed,
    };
    // A lower bound above the upper one is refused on declaration; here the upper one holds.
    if kept.instances > limits.instances_max {
        return Decision { instances: limits.instances_max, driver: Driver::Maximum };
    }
    let instances_min = limits.instances_min.min(limits.instances_max);
    match kept.instances < instances_min {
        true => Decision { instances: instances_min, driver: Driver::Minimum },
        false => kept,
    }
}

/// What the load alone asks for, without bounds and without delay.
fn wanted(limits: &Limits, window: &Window, load: &Load, now: Duration) -> Decision {
    let mut best = Decision { instances: 0, driver: Driver::Idle };
    let mut propose = |instances: u32, driver: Driver| {
        if instances > best.instances {
            best = Decision { instances, driver };
        }
    };
    if let Some(target) = limits.concurrency_target {
        let stable = window.average(STABLE_WINDOW, now, |second| second.requests);
        propose(instances_for(stable, target), Driver::Concurrency);
        let panic = instances_for(window.average(PANIC_WINDOW, now, |s| s.requests), target);
        if panic >= PANIC_FACTOR * load.instances_ready.max(1) {
            propose(panic, Driver::Panic);
        }
    }
    if let Some(target) = limits.processor_millis_target.filter(|_| load.instances_ready > 0) {
        let stable = window.average(STABLE_WINDOW, now, |second| second.processor_millis);
        // An idle process still wakes up now and then; that alone keeps no instance.
        let served = window.average(STABLE_WINDOW, now, |second| second.requests) > 0.0;
        if served {
            propose(instances_for(stable, target), Driver::Processor);
        }
    }
    if load.requests_waiting > 0 {
        let requests = load.requests_in_flight + load.requests_waiting;
        propose(requests.div_ceil(limits.concurrency.max(1)), Driver::Waiting);
    }
    if load.requests_in_flight > 0 {
        propose(1, Driver::Concurrency);
    }
    best
}

fn instances_for(amount: f64, target: f64) -> u32 {
    // Sums of thousandths may end a hair above a whole number; that is no reason for one more.
    let instances = (amount / target.max(f64::MIN_POSITIVE) - 1e-9).ceil();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "bounded just before"
    )]
    let whole = instances.clamp(0.0, f64::from(u32::MAX)) as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONCURRENCY: u32 = 10;

    fn limits() -> Limits {
        Limits {
            instances_min: 0,
            instances_max: 100,
            instances_manual: None,
            concurrency: CONCURRENCY,
            concurrency_target: Some(f64::from(CONCURRENCY) * 0.6),
            processor_millis_target: Some(600.0),
            idle_before_zero: IDLE_BEFORE_ZERO,
        }
    }

    /// A revision on a virtual clock: requests come by a curve, instances take a while to start.
    struct Simulation {
        limits: Limits,
        startup: Duration,
        window: Window,
        starting: VecDeque<Duration>,
        ready: u32,
        now: Duration,
        seed: u64,
        history: Vec<Moment>,
    }

    #[derive(Clone, Copy, Debug)]
    struct Moment {
        at: Duration,
        ready: u32,
        waiting: u32,
        decision: Decision,
    }

    const STEP: Duration = Duration::from_millis(200);

    impl Simulation {
        fn new(limits: Limits, seed: u64) -> Simulation {
            Simulation {
                limits,
                startup: Duration::from_secs(2),
                window: Window::default(),
                starting: VecDeque::new(),
                ready: 0,
                now: Duration::ZERO,
                seed,
                history: Vec::new(),
            }
        }

        /// Up to a fifth more or less, the same for the same seed.
        fn jittered(&mut self, requests: f64) -> u32 {
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            let factor = 0.8 + 0.4 * ((self.seed % 1000) as f64 / 1000.0);
            instances_for((requests * factor).round(), 1.0)
        }

        fn run(&mut self, length: Duration, curve: impl Fn(f64) -> f64) {
            let began = self.now;
            while self.now - began < length {
                while self.starting.front().is_some_and(|at| *at <= self.now) {
                    self.starting.pop_front();
                    self.ready += 1;
                }
                let requests = self.jittered(curve((self.now - began).as_secs_f64()));
                let served = requests.min(self.ready * self.limits.concurrency);
                let load = Load {
                    requests_in_flight: served,
                    requests_waiting: requests - served,
                    processor_millis: served * 20,
                    instances_ready: self.ready,
                    was_touched: false,
                };
                self.window.record(load, self.now);
                let decision = decide(&self.limits, &mut self.window, &load, self.now);
                let there = self.ready + u32::try_from(self.starting.len()).unwrap();
                for _ in there..decision.instances {
                    self.starting.push_back(self.now + self.startup);
                }
                if decision.instances < there {
                    self.starting.truncate(decision.instances.saturating_sub(self.ready) as usize);
                    self.ready = self.ready.min(decision.instances);
                }
                let waiting = load.requests_waiting;
                self.history.push(Moment { at: self.now, ready: self.ready, waiting, decision });
                self.now += STEP;
            }
        }

        fn since(&self, seconds: u64) -> impl Iterator<Item = &Moment> {
            self.history.iter().filter(move |m| m.at >= Duration::from_secs(seconds))
        }

        fn changes_of_direction(&self, from_seconds: u64) -> usize {
            let wanted: Vec<u32> = self.since(from_seconds).map(|m| m.decision.instances).collect();
            let steps = wanted.windows(2).filter(|pair| pair[0] != pair[1]);
            let directions: Vec<bool> = steps.map(|pair| pair[1] > pair[0]).collect();
            directions.windows(2).filter(|pair| pair[0] != pair[1]).count()
        }
    }

    /// A few seeds always; `SIMULATION_SEEDS=1000` runs as many.
    fn seeds() -> std::ops::RangeInclusive<u64> {
        let wanted = std::env::var("SIMULATION_SEEDS").ok().and_then(|text| text.parse().ok());
        1..=wanted.unwrap_or(5)
    }

    #[test]
    fn a_burst_from_zero_gets_its_instances_at_once_and_gives_them_back() {
        for seed in seeds() {
            let mut simulation = Simulation::new(limits(), seed);
            simulation.run(Duration::from_secs(30), |_| 200.0);
            let first = simulation.history[0];
            assert!(first.decision.instances >= 16, "{first:?}");
            assert!(simulation.since(5).all(|moment| moment.waiting == 0), "seed {seed}");

            simulation.run(Duration::from_secs(200), |_| 0.0);
            let last = simulation.history.last().unwrap();
            assert_eq!((last.ready, last.decision.driver), (1, Driver::KeptWarm), "seed {seed}");
            simulation.run(IDLE_BEFORE_ZERO, |_| 0.0);
            let last = simulation.history.last().unwrap();
            assert_eq!((last.ready, last.decision.driver), (0, Driver::Idle), "seed {seed}");
        }
    }

    #[test]
    fn a_steady_load_settles_at_its_target_and_stays_there() {
        for seed in seeds() {
            let mut simulation = Simulation::new(limits(), seed);
            simulation.run(Duration::from_secs(600), |_| 60.0);
            let wanted: Vec<u32> = simulation.since(180).map(|m| m.decision.instances).collect();
            let (least, most) = (wanted.iter().min().unwrap(), wanted.iter().max().unwrap());
            assert!((9..=12).contains(least) && most - least <= 1, "seed {seed}: {least}..{most}");
        }
    }

    #[test]
    fn a_ramp_is_followed_without_requests_left_waiting() {
        for seed in seeds() {
            let mut simulation = Simulation::new(limits(), seed);
            simulation.run(Duration::from_secs(300), |t| t);
            let waited = simulation.since(20).filter(|moment| moment.waiting > 0).count();
            let share = waited as f64 / simulation.history.len() as f64;
            assert!(share < 0.03, "seed {seed}: {share}");
        }
    }

    #[test]
    fn a_day_rises_and_falls_without_flapping() {
        for seed in seeds() {
            let mut simulation = Simulation::new(limits(), seed);
            let day = 3600.0;
            simulation.run(Duration::from_secs(3 * 3600), |t| {
                100.0 - 100.0 * (t / day * std::f64::consts::TAU).cos()
            });
            let peaks = simulation.since(60).map(|m| m.ready).max().unwrap();
            assert!((30..=45).contains(&peaks), "seed {seed}: {peaks}");
            // Three times up and three times down, with some hesitation at the turning points.
            let turns = simulation.changes_of_direction(60);
            assert!(turns <= 40, "seed {seed}: {turns}");
        }
    }

    #[test]
    fn load_that_comes_and_goes_faster_than_the_delay_does_not_flap() {
        for seed in seeds() {
            let mut simulation = Simulation::new(limits(), seed);
            simulation.run(Duration::from_secs(900), |t| if t % 20.0 < 10.0 { 90.0 } else { 0.0 });
            let wanted: Vec<u32> = simulation.since(120).map(|m| m.decision.instances).collect();
            let (least, most) = (wanted.iter().min().unwrap(), wanted.iter().max().unwrap());
            // The load swings between 0 and 15 instances' worth, 39 times.
            assert!(*least >= 8 && *most <= 18, "seed {seed}: {least}..{most}");
            let turns = simulation.changes_of_direction(120);
            assert!(turns <= 26, "seed {seed}: {turns}");
        }
    }

    #[test]
    fn the_processor_asks_for_instances_where_requests_would_not() {
        let mut window = Window::default();
        let load = Load {
            requests_in_flight: 3,
            processor_millis: 1900,
            instances_ready: 2,
            ..Load::default()
        };
        for second in 0..60 {
            window.record(load, Duration::from_secs(second));
        }
        let decision = decide(&limits(), &mut window, &load, Duration::from_secs(59));
        assert_eq!(decision, Decision { instances: 4, driver: Driver::Processor });
        let mut without = limits();
        without.processor_millis_target = None;
        let decision = decide(&without, &mut Window::default(), &load, Duration::from_secs(59));
        assert_eq!(decision, Decision { instances: 1, driver: Driver::Concurrency });
    }

    #[test]
    fn manual_scaling_ignores_the_load() {
        for manual in [0, 3] {
            let fixed = Limits { instances_manual: Some(manual), ..limits() };
            let load = Load { requests_waiting: 500, ..Load::default() };
            let decision = decide(&fixed, &mut Window::default(), &load, Duration::ZERO);
            assert_eq!(decision, Decision { instances: manual, driver: Driver::Manual });
        }
    }

    proptest! {
        #[test]
        fn bounds_hold_and_a_busy_revision_keeps_an_instance(
            loads in prop::collection::vec((0..300_u32, 0..300_u32, 0..4000_u32, 0..100_u32), 1..200),
            instances_min in 0..5_u32,
            instances_max in 1..40_u32,
        ) {
            let bounded = Limits { instances_min, instances_max, ..limits() };
            let mut window = Window::default();
            for (second, (in_flight, waiting, processor_millis, ready)) in (0..).zip(loads) {
                let load = Load {
                    requests_in_flight: in_flight,
                    requests_waiting: waiting,
                    processor_millis,
                    instances_ready: ready,
                    was_touched: false,
                };
                let now = Duration::from_secs(second);
                window.record(load, now);
                let decision = decide(&bounded, &mut window, &load, now);
                prop_assert!(decision.instances <= instances_max);
                prop_assert!(decision.instances >= instances_min.min(instances_max));
                prop_assert!(in_flight + waiting == 0 || decision.instances > 0);
            }
        }
    }
}
