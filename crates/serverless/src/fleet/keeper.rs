//! The one task that owns the fleet: events come in, instances are started and stopped.
//!
//! Invariant: the keeper never waits for anything but its next event or its next look, so that no
//! pull, start or stop delays another revision.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use plan::Plan;
use plan::fleet::{Deployment, RevisionPlan};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::launching::{
    LaunchFailure, failed_outcome, launch_instance, ready_outcome, resolve_images, survived,
};
use super::pool::PoolEvents;
use super::revision::{Check, ImageState, RevisionState, Running};
use super::specs::Images;
use super::{
    BACKOFF_MAX, CRASH_AGE, CRASH_BACKOFF_MAX, FleetOptions, ImageFailure, ImageTrouble, Refusal,
    RevisionOutcome, RevisionStatus, Shared,
};
use crate::logs::{Origin, Severity};
use crate::runtime::launch::{End, LiveInstance};
use crate::runtime::limits::STOP_GRACE;
use crate::runtime::{ExitCause, InstanceId};

/// How often revisions with instances or visitors are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A new revision whose image turns out to be damaged so often in a row has failed.
const DAMAGE_REPAIRS_MAX: u32 = 3;
/// Every so many looks is a close one.
const LOOKS_PER_CLOSE_LOOK: u32 = 5;

/// What the keeper reacts to.
pub(crate) enum Event {
    Apply(Arc<Plan>),
    Demand(Arc<RevisionPlan>),
    Drained { revision: u64, instance: u64 },
    Resolved { revision: u64, images: Result<Images, ImageFailure> },
    Launched { revision: u64, instance: u64, launched: Result<LiveInstance, LaunchFailure> },
    Readiness { revision: u64, instance: u64, ready: bool },
    Ended { revision: u64, instance: u64, end: End },
    Gone { revision: u64 },
    Status(oneshot::Sender<Vec<RevisionStatus>>),
    Stop { drain: Duration, done: oneshot::Sender<()> },
}

/// Where pools tell what they need.
#[derive(Debug)]
pub(crate) struct Events(pub(crate) mpsc::UnboundedSender<Event>);

impl fmt::Debug for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Event")
    }
}

impl PoolEvents for Events {
    fn demand(&self, revision: &Arc<RevisionPlan>) {
        // Without a keeper nobody starts anything; the visitor's own deadline answers it.
        let _ = self.0.send(Event::Demand(Arc::clone(revision)));
    }

    fn drained(&self, revision: u64, instance: u64) {
        let _ = self.0.send(Event::Drained { revision, instance });
    }
}

pub(crate) struct Keeper {
    options: FleetOptions,
    shared: Arc<Shared>,
    events: mpsc::UnboundedSender<Event>,
    outcomes: mpsc::UnboundedSender<RevisionOutcome>,
    applied: watch::Sender<u64>,
    /// The plan that was applied last.
    plan: Arc<Plan>,
    revisions: HashMap<u64, RevisionState>,
    /// Revisions that want another instance, in the order in which they get one.
    queue: VecDeque<u64>,
    launching: usize,
    started_at: Instant,
    looked_closely_at: Instant,
    next_instance: u64,
    /// Makes the names of this life's instances differ from those of any other.
    life: u32,
    stop: Option<Stopping>,
}

struct Stopping {
    deadline: Instant,
    done: oneshot::Sender<()>,
}

impl Keeper {
    pub(crate) fn new(
        options: FleetOptions,
        shared: Arc<Shared>,
        events: mpsc::UnboundedSender<Event>,
        outcomes: mpsc::UnboundedSender<RevisionOutcome>,
        applied: watch::Sender<u64>,
    ) -> Keeper {
        let now = Instant::now();
        let random = std::hash::RandomState::new().build_hasher().finish();
        Keeper {
            options,
            shared,
            events,
            outcomes,
            applied,
            plan: Arc::default(),
            revisions: HashMap::new(),
            queue: VecDeque::new(),
            launching: 0,
            started_at: now,
            looked_closely_at: now,
            next_instance: 1,
            life: u32::try_from(random & u64::from(u32::MAX)).unwrap_or(0),
            stop: None,
        }
    }

    pub(crate) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Event>) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks_taken = 0_u32;
        loop {
            let is_active = self.stop.is_some() || self.revisions.values().any(|r| r.is_active());
            tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                _ = looks.tick(), if is_active => {
                    looks_taken = looks_taken.wrapping_add(1);
                    self.look(looks_taken.is_multiple_of(LOOKS_PER_CLOSE_LOOK));
                }
            }
            self.launch_queued();
            if self.stop.is_some() && self.is_empty() {
                self.finish_stop().await;
                return;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Apply(plan) => self.apply(&plan, now),
            Event::Demand(plan) => {
                let id = plan.id;
                self.state_of(&plan, now).pool.take_demand();
                self.evaluate(id, now);
            }
            Event::Drained { revision, instance } => self.stop_drained(revision, instance, now),
            Event::Resolved { revision, images } => self.resolved(revision, images, now),
            Event::Launched { revision, instance, launched } => {
                self.launched(revision, instance, launched, now);
            }
            Event::Readiness { revision, instance, ready } => {
                let state = self.revisions.get(&revision);
                if let Some(running) = state.and_then(|state| state.running.get(&instance)) {
                    running.slot.set_ready(ready);
                }
            }
            Event::Ended { revision, instance, end } => self.ended(revision, instance, end, now),
            Event::Gone { revision } => {
                if let Some(state) = self.revisions.get_mut(&revision) {
                    state.stopping = state.stopping.saturating_sub(1);
                }
            }
            Event::Status(answer) => {
                let images = &*self.options.images;
                let mut status: Vec<_> =
                    self.revisions.values().map(|state| state.status(images)).collect();
                status.sort_by(|a, b| a.revision.cmp(&b.revision));
                let _ = answer.send(status);
            }
            Event::Stop { drain, done } => self.begin_stop(drain, done, now),
        }
    }

    fn apply(&mut self, plan: &Arc<Plan>, now: Instant) {
        if plan.number < *self.applied.borrow() {
            return;
        }
        if self.stop.is_some() {
            // Nothing runs any more, and nobody should wait for it.
            self.applied.send_replace(plan.number);
            return;
        }
        let before = std::mem::replace(&mut self.plan, Arc::clone(plan));
        for service in plan.fleet.changed_since(&before.fleet) {
            let former = before.fleet.service(&service);
            let listed = plan.fleet.service(&service);
            self.list(
                former.map_or(&[][..], |service| &service.deployments),
                listed.map_or(&[][..], |service| &service.deployments),
                now,
            );
        }
        self.applied.send_replace(plan.number);
    }

    /// What of one service is to run, which was something else before.
    fn list(&mut self, former: &[Deployment], listed: &[Deployment], now: Instant) {
        let is_listed = |id: u64| listed.iter().any(|deployment| deployment.revision.id == id);
        let former = former.iter().map(|deployment| deployment.revision.id);
        let gone: Vec<u64> = former.filter(|id| !is_listed(*id)).collect();
        for Deployment { revision, role, scaling } in listed {
            self.state_of(revision, now).list(Arc::clone(revision), *role, *scaling);
            self.evaluate(revision.id, now);
        }
        for id in gone {
            if let Some(state) = self.revisions.get_mut(&id) {
                state.retire(now);
            }
            self.evaluate(id, now);
        }
    }

    /// The state of a revision, made if there is none.
    fn state_of(&mut self, plan: &Arc<RevisionPlan>, now: Instant) -> &mut RevisionState {
        let shared = &self.shared;
        self.revisions
            .entry(plan.id)
            .or_insert_with(|| RevisionState::new(Arc::clone(plan), shared.pool(plan), now))
    }

    /// Decides how many instances the revision should have, closes those it has too many of, and
    /// queues it for those it has too few of.
    fn evaluate(&mut self, id: u64, now: Instant) {
        let since_start = now.duration_since(self.started_at);
        let Some(state) = self.revisions.get_mut(&id) else { return };
        match self.stop.is_some() {
            true => state.wanted = 0,
            false => state.decide(now, since_start, self.options.idle_before_zero),
        }
        if state.wants_launch(now) && !state.is_queued {
            state.is_queued = true;
            self.queue.push_back(id);
        }
        let drained = state.close_surplus(now);
        for instance in drained {
            self.stop_instance(id, instance);
        }
        self.forget_if_over(id);
    }

    fn forget_if_over(&mut self, id: u64) {
        let is_over = self.revisions.get(&id).is_some_and(RevisionState::is_over);
        if !is_over {
            return;
        }
        // Instances that are still being removed are nobody's concern but the host's; on the way
        // down they are waited for.
        let Some(state) = self.revisions.get(&id).filter(|state| state.stopping == 0) else {
            return;
        };
        if state.pool.retire_if_unused() {
            self.shared.forget_pool(&state.pool);
            self.revisions.remove(&id);
        }
    }

    fn look(&mut self, closely: bool) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.looked_closely_at);
        if closely {
            self.looked_closely_at = now;
        }
        let active = self.revisions.iter().filter(|(_, state)| state.is_active());
        let active: Vec<u64> = active.map(|(id, _)| *id).collect();
        let give_up = self.stop.as_ref().is_some_and(|stop| now >= stop.deadline);
        for id in active {
            if let Some(state) = self.revisions.get_mut(&id) {
                if closely {
                    state.look_closely(now, elapsed, self.options.throttles_idle_instances);
                }
                let mut over = state.drained(now);
                if give_up {
                    over = state.running.keys().copied().collect();
                    for launch in std::mem::take(&mut state.launches).into_values() {
                        launch.abort();
                    }
                }
                for instance in over {
                    self.stop_instance(id, instance);
                }
            }
            self.evaluate(id, now);
        }
    }

    /// Starts what is queued, one instance a turn for each revision, as far as the bound allows.
    fn launch_queued(&mut self) {
        let now = Instant::now();
        while self.launching < self.options.launches_at_once_max.max(1) {
            let Some(id) = self.queue.pop_front() else { return };
            let Some(state) = self.revisions.get_mut(&id) else { continue };
            state.is_queued = false;
            if !state.wants_launch(now) || self.stop.is_some() {
                continue;
            }
            match &state.images {
                ImageState::Ready(images) => {
                    let images = Arc::clone(images);
                    self.launch(id, images);
                    if let Some(state) = self.revisions.get_mut(&id).filter(|s| s.wants_launch(now))
                    {
                        state.is_queued = true;
                        self.queue.push_back(id);
                    }
                }
                ImageState::Resolving => {}
                ImageState::Unknown => {
                    state.images = ImageState::Resolving;
                    let (plan, events) = (Arc::clone(&state.plan), self.events.clone());
                    let source = Arc::clone(&self.options.images);
                    tokio::spawn(async move {
                        let images = survived(resolve_images(&*source, &plan)).await;
                        let images = images.unwrap_or_else(|message| {
                            Err(ImageFailure { trouble: ImageTrouble::Unavailable, message })
                        });
                        let _ = events.send(Event::Resolved { revision: plan.id, images });
                    });
                }
            }
        }
    }

    fn launch(&mut self, id: u64, images: Arc<Images>) {
        let Some(state) = self.revisions.get_mut(&id) else { return };
        let number = self.next_instance;
        self.next_instance += 1;
        let text = format!("{}-{:08x}-{number:x}", state.plan.name.name, self.life);
        // Revision names are made of the same characters and are short enough.
        let Some(name) = InstanceId::new(&text) else { return };
        let (plan, events) = (Arc::clone(&state.plan), self.events.clone());
        let options = self.options.clone();
        let task = tokio::spawn(async move {
            let launched = survived(launch_instance(&options, &plan, name, &images)).await;
            let launched = launched
                .unwrap_or_else(|message| Err(LaunchFailure::plain("InternalError", message)));
            let _ = events.send(Event::Launched { revision: plan.id, instance: number, launched });
        });
        state.launches.insert(number, task);
        self.launching += 1;
    }

    fn resolved(&mut self, id: u64, images: Result<Images, ImageFailure>, now: Instant) {
        let Some(state) = self.revisions.get_mut(&id) else { return };
        match images {
            Ok(images) => state.images = ImageState::Ready(Arc::new(images)),
            Err(failure) => {
                state.images = ImageState::Unknown;
                let origin = Origin::of(&state.plan, "");
                let text = failure.message.clone();
                self.options.logs.system(origin, Severity::Error, text, SystemTime::now());
                let failure = LaunchFailure::plain(failure.trouble.reason(), failure.message);
                self.failed_to_start(id, failure, now);
            }
        }
        self.evaluate(id, now);
    }

    fn launched(
        &mut self,
        id: u64,
        instance: u64,
        launched: Result<LiveInstance, LaunchFailure>,
        now: Instant,
    ) {
        self.launching = self.launching.saturating_sub(1);
        let Some(state) = self.revisions.get_mut(&id) else { return };
        state.launches.remove(&instance);
        match launched {
            Err(failure) => self.failed_to_start(id, failure, now),
            Ok(live) if self.stop.is_some() => {
                state.stopping += 1;
                self.remove_from_host(id, live);
            }
            Ok(live) => {
                let slot = state.pool.slot(instance, Arc::clone(live.instance()));
                // Whoever is served by it dials it by its number at once.
                self.shared.add_slot(&slot);
                state.pool.admit(&slot);
                let watcher = watch_instance(self.events.clone(), id, instance, &live);
                let is_check = state.check == Check::Pending;
                state.note_started(live.phases().ready, now);
                tracing::info!(
                    revision = %state.plan.name.name,
                    instance = %live.instance().id(),
                    created = ?live.phases().created,
                    executed = ?live.phases().executed,
                    took = ?live.phases().ready,
                    "instance is ready"
                );
                state.running.insert(instance, Running::new(slot, live, watcher, now));
                if let (true, ImageState::Ready(images)) = (is_check, &state.images) {
                    let outcome = ready_outcome(&state.plan, images);
                    self.report(id, outcome);
                }
            }
        }
        self.evaluate(id, now);
    }

    /// A revision that still had to prove itself has failed for good, unless only its image was damaged;
    /// any other tries again later.
    fn failed_to_start(&mut self, id: u64, failure: LaunchFailure, now: Instant) {
        let Some(state) = self.revisions.get_mut(&id) else { return };
        tracing::warn!(
            revision = %state.plan.name.name,
            reason = failure.reason,
            "instance did not start: {}", failure.summary
        );
        if failure.is_damaged {
            state.images = ImageState::Unknown;
        }
        let is_final = !failure.is_damaged || state.failures() >= DAMAGE_REPAIRS_MAX;
        // What the host refused a moment ago costs little to ask for again.
        let pause_max = if failure.is_host_fault { CRASH_BACKOFF_MAX } else { BACKOFF_MAX };
        state.note_failure(failure.summary, SystemTime::now(), now, pause_max);
        if is_final && state.check == Check::Pending {
            state.check = Check::Reported;
            let none = Images::new();
            let images = match &state.images {
                ImageState::Ready(images) => images,
                _ => &none,
            };
            let outcome = failed_outcome(&state.plan, images, failure.reason, failure.message);
            self.report(id, outcome);
        }
    }

    fn report(&self, id: u64, outcome: model::run::Outcome) {
        let Some(state) = self.revisions.get(&id) else { return };
        let revision = state.plan.name.clone();
        // With nobody left to record it, the check is made again in the next life.
        let _ = self.outcomes.send(RevisionOutcome { revision, id, outcome });
    }

    fn ended(&mut self, id: u64, instance: u64, end: End, now: Instant) {
        let Some(state) = self.revisions.get_mut(&id) else { return };
        let Some(age) = state.age(instance, now) else { return };
        if let Some(sentence) = end_sentence(&end) {
            tracing::warn!(revision = %state.plan.name.name, instance, "{sentence}");
            if let Some(running) = state.running.get(&instance) {
                let name = running.live.instance().id().as_str();
                let origin = Origin::of(&state.plan, name);
                let at = SystemTime::now();
                self.options.logs.system(origin, Severity::Error, sentence.clone(), at);
            }
            match age < CRASH_AGE {
                true => state.note_failure(sentence, SystemTime::now(), now, CRASH_BACKOFF_MAX),
                false => state.last_failure = Some((SystemTime::now(), sentence)),
            }
        }
        self.stop_instance(id, instance);
        self.evaluate(id, now);
    }

    fn stop_drained(&mut self, id: u64, instance: u64, now: Instant) {
        let Some(state) = self.revisions.get(&id) else { return };
        let is_drained = state
            .running
            .get(&instance)
            .is_some_and(|running| running.slot.is_closed() && running.slot.in_flight() == 0);
        if is_drained {
            self.stop_instance(id, instance);
            self.evaluate(id, now);
        }
    }

    /// Takes an instance out of traffic and off the host.
    fn stop_instance(&mut self, id: u64, instance: u64) {
        let Some(state) = self.revisions.get_mut(&id) else { return };
        let Some(running) = state.running.remove(&instance) else { return };
        running.slot.close();
        state.pool.remove(instance);
        self.shared.forget_slot(instance);
        running.watcher.abort();
        // What it does between SIGTERM and its end needs its processor.
        running.slot.unthrottle();
        state.stopping += 1;
        self.remove_from_host(id, running.live);
    }

    /// Ends in `Gone`.
    fn remove_from_host(&self, id: u64, live: LiveInstance) {
        let (events, logs) = (self.events.clone(), Arc::clone(&self.options.logs));
        tokio::spawn(async move {
            live.stop(STOP_GRACE).await;
            logs.unregister(live.instance().id());
            let _ = events.send(Event::Gone { revision: id });
        });
    }

    fn begin_stop(&mut self, drain: Duration, done: oneshot::Sender<()>, now: Instant) {
        self.stop = Some(Stopping { deadline: now + drain, done });
        self.queue.clear();
        let ids: Vec<u64> = self.revisions.keys().copied().collect();
        for id in ids {
            let Some(state) = self.revisions.get_mut(&id) else { continue };
            state.is_queued = false;
            state.role = None;
            state.pool.refuse_waiting(Refusal::STOPPING);
            self.evaluate(id, now);
        }
    }

    /// Launches are waited for as well: what is given up halfway is removed behind our back.
    fn is_empty(&self) -> bool {
        self.revisions.values().all(|state| {
            state.running.is_empty() && state.launches.is_empty() && state.stopping == 0
        })
    }

    async fn finish_stop(&mut self) {
        self.options.runtime.shut_down().await;
        if let Some(stop) = self.stop.take() {
            let _ = stop.done.send(());
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Keeper({} revisions)", self.revisions.len())
    }
}

/// Tells the keeper when the readiness of an instance changes, and when it ends.
fn watch_instance(
    events: mpsc::UnboundedSender<Event>,
    revision: u64,
    instance: u64,
    live: &LiveInstance,
) -> tokio::task::JoinHandle<()> {
    let ended = live.ended();
    let mut readiness = live.ready();
    tokio::spawn(async move {
        tokio::pin!(ended);
        loop {
            tokio::select! {
                end = &mut ended => {
                    let _ = events.send(Event::Ended { revision, instance, end });
                    return;
                }
                changed = readiness.changed() => {
                    if changed.is_err() {
                        // There are no readiness probes; only the end is left to wait for.
                        let end = ended.await;
                        let _ = events.send(Event::Ended { revision, instance, end });
                        return;
                    }
                    let ready = *readiness.borrow_and_update();
                    let _ = events.send(Event::Readiness { revision, instance, ready });
                }
            }
        }
    })
}

/// What is said about an instance that ended by itself, in the words Cloud Run logs.
fn end_sentence(end: &End) -> Option<String> {
    match end {
        End::Stopped => None,
        End::Unhealthy(sentence) => Some(sentence.clone()),
        End::Exited(exit) => Some(match &exit.cause {
            ExitCause::Stopped => return None,
            ExitCause::Code(code) => format!("Container called exit({code})."),
            ExitCause::Signal(signal) => format!("Container terminated on signal {signal}."),
            ExitCause::OutOfMemory => "Memory limit exceeded: the container used more memory than \
                                       its limit and was terminated. Consider increasing the limit."
                .to_owned(),
            ExitCause::HelperLost => "The container lost its supervisor.".to_owned(),
        }),
    }
}
