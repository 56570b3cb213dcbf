//! The instances of every revision: started when requests need them, stopped when they do not.
//!
//! Requests come in by [`Fleet::acquire`], from any thread; what ought to run comes in by
//! [`Fleet::apply`]; whether a new revision works goes out as a [`RevisionOutcome`]. In between
//! one task, the keeper, owns all that changes and reacts to events; pulling images and starting
//! instances happen in tasks of their own that report back to it.
//!
//! Invariant: a request is refused only for a reason in [`Refusal`]; instances that start, end,
//! drain or crash make it wait.

#[cfg(test)]
mod fake;
mod keeper;
mod launching;
mod pool;
mod refusal;
mod revision;
mod sources;
mod specs;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use model::ResourceName;
use model::run::Outcome;
use plan::Plan;
use plan::fleet::RevisionPlan;
use tokio::sync::{mpsc, oneshot, watch};

pub use pool::Lease;
pub use refusal::Refusal;
pub use sources::{
    ImageFailure, ImageSource, ImageTrouble, SECRET_BYTES_MAX, SecretFiles, SecretSource,
    StoreImages,
};

use crate::autoscaler::IDLE_BEFORE_ZERO;
use crate::images::Progress;
use crate::logs::LogStore;
use crate::runtime::Runtime;
use keeper::{Event, Events, Keeper};
use pool::{Pool, PoolAnswer, Slot};

/// Instances that are being started at a time, over all revisions.
pub const LAUNCHES_AT_ONCE_MAX: usize = 16;
/// The least time a request waits for an instance.
pub const WAIT_MIN: Duration = Duration::from_secs(10);
/// A request waits this many times as long as starting an instance takes on average.
pub const WAIT_STARTUPS: f64 = 3.5;
/// How long the instances of a revision without traffic stay for requests of an earlier plan.
pub const RETIRED_KEPT: Duration = Duration::from_secs(5);
/// How long the instance that proved a new revision is kept without a request.
pub const PROVEN_KEPT: Duration = Duration::from_secs(60);
/// An instance that ends before this age counts as a crash at the start.
pub const CRASH_AGE: Duration = Duration::from_secs(10);
/// The pause after the first failure in a row; each further one doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The longest pause between attempts to start an instance that keeps failing to start.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// The longest pause after instances that did start and then crashed, and after starts that failed by
/// the host's fault: shorter than a request waits, so that each has its chance.
pub const CRASH_BACKOFF_MAX: Duration = Duration::from_secs(4);
/// What a draining instance gets beyond the time one request may take.
pub const DRAIN_SLACK: Duration = Duration::from_secs(30);

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// What runs instances.
    pub runtime: Arc<dyn Runtime>,
    /// Where images come from.
    pub images: Arc<dyn ImageSource>,
    /// Where secrets come from.
    pub secrets: Arc<dyn SecretSource>,
    /// Where the platform's own words about instances go, and whose lines are whose.
    pub logs: Arc<LogStore>,
    /// How long the last instance of a revision is kept without a request.
    pub idle_before_zero: Duration,
    /// Instances that are being started at a time.
    pub launches_at_once_max: usize,
    /// Whether the processor is taken from idle instances that did not ask to keep it.
    pub throttles_idle_instances: bool,
}

impl FleetOptions {
    /// The usual bounds.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        images: Arc<dyn ImageSource>,
        secrets: Arc<dyn SecretSource>,
        logs: Arc<LogStore>,
    ) -> FleetOptions {
        FleetOptions {
            runtime,
            images,
            secrets,
            logs,
            idle_before_zero: IDLE_BEFORE_ZERO,
            launches_at_once_max: LAUNCHES_AT_ONCE_MAX,
            throttles_idle_instances: true,
        }
    }
}

/// Whether the first instance of a new revision came up: to be recorded, once and for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionOutcome {
    /// The revision.
    pub revision: ResourceName,
    /// Its number.
    pub id: u64,
    /// How it went.
    pub outcome: Outcome,
}

/// What is there of one revision, as seen at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionStatus {
    /// The revision.
    pub revision: ResourceName,
    /// How many instances the autoscaler wants.
    pub instances_wanted: u32,
    /// Instances that take requests.
    pub instances_ready: u32,
    /// Instances that are being started.
    pub instances_starting: u32,
    /// Instances that finish their last requests.
    pub instances_draining: u32,
    /// Requests being served.
    pub requests_in_flight: u32,
    /// Requests waiting for an instance.
    pub requests_waiting: u32,
    /// The image that is being pulled for it, and how far that is.
    pub pulling: Option<(String, Progress)>,
    /// When and why an instance last failed.
    pub last_failure: Option<(SystemTime, String)>,
}

/// A lease that comes later. Dropping it gives up the place in the waiting room.
pub type Waiting = Pin<Box<dyn Future<Output = Result<Lease, Refusal>> + Send>>;

/// The answer to a request for an instance.
pub enum Acquired {
    /// An instance has room now.
    Ready(Lease),
    /// None has; the future says when one has, or that none will.
    Waiting(Waiting),
    /// None will have.
    Refused(Refusal),
}

impl fmt::Debug for Acquired {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Acquired::Ready(lease) => lease.fmt(out),
            Acquired::Waiting(_) => out.write_str("Waiting"),
            Acquired::Refused(refusal) => refusal.fmt(out),
        }
    }
}

/// All instances of all revisions. Clones are the same fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    events: mpsc::UnboundedSender<Event>,
    applied: watch::Receiver<u64>,
}

/// What worker threads look things up in.
#[derive(Debug)]
struct Shared {
    pools: RwLock<HashMap<u64, Arc<Pool>>>,
    slots: RwLock<HashMap<u64, Arc<Slot>>>,
    is_stopping: AtomicBool,
    events: Arc<Events>,
}

impl Fleet {
    /// Starts the keeper, inside a tokio runtime, with no instance at all. The outcomes of new
    /// revisions come from the receiver.
    pub fn start(options: FleetOptions) -> (Fleet, mpsc::UnboundedReceiver<RevisionOutcome>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let (outcomes, outcomes_seen) = mpsc::unbounded_channel();
        let (applied, applied_seen) = watch::channel(0);
        let shared = Arc::new(Shared {
            pools: RwLock::default(),
            slots: RwLock::default(),
            is_stopping: AtomicBool::new(false),
            events: Arc::new(Events(events.clone())),
        });
        let keeper = Keeper::new(options, Arc::clone(&shared), events.clone(), outcomes, applied);
        tokio::spawn(keeper.run(inbox));
        (Fleet { shared, events, applied: applied_seen }, outcomes_seen)
    }

    /// Makes this plan the one that ought to run. Never blocks and never waits for anything.
    pub fn apply(&self, plan: &Arc<Plan>) {
        // A keeper that has ended has nothing left to apply a plan to.
        let _ = self.events.send(Event::Apply(Arc::clone(plan)));
    }

    /// The number of the newest plan that was applied.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    /// Room on an instance of the revision, now, later or not at all.
    pub fn acquire(&self, revision: &Arc<RevisionPlan>) -> Acquired {
        self.acquire_preferring(revision, None)
    }

    /// Like [`Fleet::acquire`], on this instance if it is there and has room: session affinity.
    pub fn acquire_preferring(
        &self,
        revision: &Arc<RevisionPlan>,
        instance: Option<u64>,
    ) -> Acquired {
        loop {
            if self.shared.is_stopping.load(Ordering::SeqCst) {
                return Acquired::Refused(Refusal::STOPPING);
            }
            let pool = self.shared.pool(revision);
            if let Some(lease) = instance.and_then(|instance| pool.acquire_from(instance)) {
                return Acquired::Ready(lease);
            }
            return match pool.acquire() {
                PoolAnswer::Ready(lease) => Acquired::Ready(lease),
                PoolAnswer::Wait(wait) => Acquired::Waiting(Box::pin(wait.finish())),
                PoolAnswer::Refused(refusal) => Acquired::Refused(refusal),
                PoolAnswer::Retired => {
                    self.shared.forget_pool(&pool);
                    continue;
                }
            };
        }
    }

    /// Connects to the port of an instance that a lease named.
    pub fn dial(
        &self,
        instance: u64,
    ) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        let slots = self.shared.slots.read().unwrap_or_else(PoisonError::into_inner);
        let found = slots.get(&instance).map(|slot| (Arc::clone(&slot.instance), slot.port()));
        async move {
            match found {
                Some((instance, port)) => instance.dial(port).await,
                None => Err(io::ErrorKind::NotConnected.into()),
            }
        }
    }

    /// What is there of each revision that has instances or should have.
    pub async fn status(&self) -> Vec<RevisionStatus> {
        let (answer, status) = oneshot::channel();
        let _ = self.events.send(Event::Status(answer));
        status.await.unwrap_or_default()
    }

    /// Refuses further requests, lets those in flight finish within `drain`, and stops every
    /// instance. Returns when nothing of them is left on the host.
    pub async fn stop(&self, drain: Duration) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        let (done, stopped) = oneshot::channel();
        let _ = self.events.send(Event::Stop { drain, done });
        let _ = stopped.await;
    }
}

impl Shared {
    /// The pool of a revision, made if it is not there: a request may know a plan before the
    /// keeper does, or one that the keeper has left behind.
    fn pool(&self, revision: &Arc<RevisionPlan>) -> Arc<Pool> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&revision.id) {
            return Arc::clone(pool);
        }
        drop(pools);
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.entry(revision.id).or_insert_with(|| {
            let events: Arc<Events> = Arc::clone(&self.events);
            Arc::new(Pool::new(Arc::clone(revision), events, WAIT_MIN))
        });
        Arc::clone(pool)
    }

    fn forget_pool(&self, pool: &Arc<Pool>) {
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let id = pool.revision().id;
        if pools.get(&id).is_some_and(|known| Arc::ptr_eq(known, pool)) {
            pools.remove(&id);
        }
    }

    fn add_slot(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.insert(slot.id, Arc::clone(slot));
    }

    fn forget_slot(&self, id: u64) {
        self.slots.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
