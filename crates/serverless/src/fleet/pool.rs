//! The instances of one revision as requests see them: permits to send, and a room to wait in.
//!
//! Called from every worker thread at once. With room on an instance, a request costs a read lock
//! that only a starting or ending instance ever takes for writing, a look at a few counters and
//! one compare-and-swap.
//!
//! Invariant: the permits of an instance that are out never exceed its concurrency, and none is
//! given out once it is closed.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use plan::fleet::RevisionPlan;
use tokio::time::{Instant, timeout_at};

use super::refusal::Refusal;
use crate::runtime::{Allowance, Instance};
use crate::waiting_room::{Entrance, WaitingRoom};

/// Up to so many instances are all looked at; among more, two are drawn.
const INSTANCES_COMPARED_MAX: usize = 8;

/// The instance takes no more requests: it is draining or gone.
const CLOSED: u32 = 1 << 31;
/// The instance's readiness probe fails.
const UNREADY: u32 = 1 << 30;
const COUNT: u32 = UNREADY - 1;

/// What the pool tells whoever starts and stops instances. Must not block.
pub(crate) trait PoolEvents: Send + Sync + fmt::Debug {
    /// Requests wait for an instance of this revision.
    fn demand(&self, revision: &Arc<RevisionPlan>);
    /// A closed instance has finished its last request.
    fn drained(&self, revision: u64, instance: u64);
}

/// The instances of one revision.
#[derive(Debug)]
pub(crate) struct Pool {
    revision: Arc<RevisionPlan>,
    slots: RwLock<Vec<Arc<Slot>>>,
    room: WaitingRoom<Result<Lease, Refusal>>,
    events: Arc<dyn PoolEvents>,
    /// Whether a request came since this was last asked.
    touched: AtomicBool,
    /// Whether the demand was told and not yet looked at.
    demanded: AtomicBool,
    patience_millis: AtomicU64,
    /// What a request hears that waited in vain.
    at_maximum: AtomicBool,
    is_failing: AtomicBool,
    /// Scaled to zero by hand: nobody needs to wait.
    is_disabled: AtomicBool,
}

/// One instance and its permits.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) instance: Arc<dyn Instance>,
    pool: Arc<Pool>,
    permits: AtomicU32,
    concurrency: u32,
    throttled: AtomicBool,
}

/// The right to send one request to one instance; dropping it gives the right back.
pub struct Lease {
    slot: Arc<Slot>,
}

impl Lease {
    /// The number of the instance; never used for another one while the process lives.
    pub fn instance(&self) -> u64 {
        self.slot.id
    }

    /// The revision the instance is of.
    pub fn revision(&self) -> &Arc<RevisionPlan> {
        &self.slot.pool.revision
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Lease({})", self.slot.id)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slot.leave();
    }
}

/// What a pool has to say to a request.
pub(crate) enum PoolAnswer {
    Ready(Lease),
    Wait(PoolWait),
    Refused(Refusal),
    /// The pool was given up in the meantime; its revision has another one now.
    Retired,
}

/// A request in the waiting room; dropping it leaves the room.
pub(crate) struct PoolWait {
    pool: Arc<Pool>,
    number: u64,
    answer: tokio::sync::oneshot::Receiver<Result<Lease, Refusal>>,
    deadline: Instant,
}

impl PoolWait {
    /// The lease, or why there is none after the time a request may wait.
    pub(crate) async fn finish(mut self) -> Result<Lease, Refusal> {
        match timeout_at(self.deadline, &mut self.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refusal::STOPPING),
            Err(_) => Err(self.pool.refusal()),
        }
    }
}

impl Drop for PoolWait {
    fn drop(&mut self) {
        self.pool.room.leave(self.number);
        // An answer that came after the deadline is a lease nobody uses; dropping it gives it back.
    }
}

impl Pool {
    pub(crate) fn new(
        revision: Arc<RevisionPlan>,
        events: Arc<dyn PoolEvents>,
        patience: Duration,
    ) -> Pool {
        let pool = Pool {
            revision,
            slots: RwLock::new(Vec::new()),
            room: WaitingRoom::new(),
            events,
            touched: AtomicBool::new(false),
            demanded: AtomicBool::new(false),
            patience_millis: AtomicU64::new(0),
            at_maximum: AtomicBool::new(false),
            is_failing: AtomicBool::new(false),
            is_disabled: AtomicBool::new(false),
        };
        pool.set_patience(patience);
        pool
    }

    /// A permit, a place in the waiting room, or a refusal. Never blocks for long.
    pub(crate) fn acquire(self: &Arc<Pool>) -> PoolAnswer {
        if !self.touched.load(Ordering::Relaxed) {
            self.touched.store(true, Ordering::Relaxed);
        }
        // Nobody overtakes those who wait.
        if self.room.len() == 0
            && let Some(lease) = self.try_enter()
        {
            return PoolAnswer::Ready(lease);
        }
        if self.is_disabled.load(Ordering::Relaxed) {
            return PoolAnswer::Refused(Refusal::SCALED_TO_ZERO);
        }
        match self.room.enter(|| self.try_enter().map(Ok)) {
            Entrance::Served(Ok(lease)) => PoolAnswer::Ready(lease),
            Entrance::Served(Err(refusal)) => PoolAnswer::Refused(refusal),
            Entrance::Closed => PoolAnswer::Retired,
            Entrance::Full => PoolAnswer::Refused(Refusal::AT_MAXIMUM),
            Entrance::Waits(ticket) => {
                self.tell_demand();
                let patience = Duration::from_millis(self.patience_millis.load(Ordering::Relaxed));
                PoolAnswer::Wait(PoolWait {
                    pool: Arc::clone(self),
                    number: ticket.number,
                    answer: ticket.answer,
                    deadline: Instant::now() + patience,
                })
            }
        }
    }

    fn tell_demand(&self) {
        if !self.demanded.swap(true, Ordering::SeqCst) {
            self.events.demand(&self.revision);
        }
    }

    /// Called before the demand is looked at, so that what comes later is told again.
    pub(crate) fn take_demand(&self) {
        self.demanded.store(false, Ordering::SeqCst);
    }

    pub(crate) fn take_touched(&self) -> bool {
        self.touched.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn set_patience(&self, patience: Duration) {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience_millis.store(millis, Ordering::Relaxed);
    }

    /// What is known of the revision, for those who will have waited in vain.
    pub(crate) fn set_condition(&self, at_maximum: bool, is_failing: bool) {
        self.at_maximum.store(at_maximum, Ordering::Relaxed);
        self.is_failing.store(is_failing, Ordering::Relaxed);
    }

    /// Whether requests without an instance are refused at once.
    pub(crate) fn set_disabled(&self, is_disabled: bool) {
        self.is_disabled.store(is_disabled, Ordering::Relaxed);
        if is_disabled {
            self.refuse_waiting(Refusal::SCALED_TO_ZERO);
        }
    }

    /// A permit of this instance, if it has one.
    pub(crate) fn acquire_from(&self, instance: u64) -> Option<Lease> {
        self.with_slots(|slots| {
            let slot = slots.iter().find(|slot| slot.id == instance)?;
            slot.enter().then(|| Lease { slot: Arc::clone(slot) })
        })
    }

    /// Gives the pool up, unless somebody waits in it. Whoever comes later is told.
    pub(crate) fn retire_if_unused(&self) -> bool {
        self.room.close_if_empty()
    }

    fn refusal(&self) -> Refusal {
        if self.is_failing.load(Ordering::Relaxed) {
            Refusal::FAILING
        } else if self.at_maximum.load(Ordering::Relaxed) {
            Refusal::AT_MAXIMUM
        } else {
            Refusal::TOO_SLOW
        }
    }

    pub(crate) fn requests_waiting(&self) -> u32 {
        u32::try_from(self.room.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn requests_in_flight(&self) -> u32 {
        self.with_slots(|slots| slots.iter().map(|slot| slot.in_flight()).sum())
    }

    pub(crate) fn revision(&self) -> &Arc<RevisionPlan> {
        &self.revision
    }

    /// An instance of the revision, which gets no request until it is admitted.
    pub(crate) fn slot(self: &Arc<Pool>, id: u64, instance: Arc<dyn Instance>) -> Arc<Slot> {
        Arc::new(Slot {
            id,
            instance,
            pool: Arc::clone(self),
            permits: AtomicU32::new(0),
            concurrency: self.revision.concurrency.min(COUNT),
            throttled: AtomicBool::new(false),
        })
    }

    /// Takes an instance in and serves those who wait.
    pub(crate) fn admit(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.push(Arc::clone(slot));
        drop(slots);
        self.serve_waiting();
    }

    pub(crate) fn remove(&self, id: u64) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|slot| slot.id != id);
    }

    /// Answers everybody who waits with this refusal.
    pub(crate) fn refuse_waiting(&self, refusal: Refusal) {
        drop(self.room.serve(|| Some(Err(refusal.clone()))));
    }

    fn serve_waiting(&self) {
        // The spare lease goes back outside the lock of the room, which its return may need.
        let spare = self.room.serve(|| self.try_enter().map(Ok));
        drop(spare);
    }

    /// A permit of the least busy instance that has one.
    fn try_enter(&self) -> Option<Lease> {
        self.with_slots(|slots| {
            if slots.len() > INSTANCES_COMPARED_MAX
                && let Some(slot) = less_busy(two_of(slots))
                && slot.enter()
            {
                return Some(Lease { slot: Arc::clone(slot) });
            }
            while let Some(slot) = less_busy(slots.iter()) {
                if slot.enter() {
                    return Some(Lease { slot: Arc::clone(slot) });
                }
            }
            None
        })
    }

    fn with_slots<T>(&self, use_them: impl FnOnce(&[Arc<Slot>]) -> T) -> T {
        use_them(&self.slots.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Of those that have room, the one with the fewest requests; of equals the first, so that the
/// later ones fall idle and can go.
fn less_busy<'a>(slots: impl Iterator<Item = &'a Arc<Slot>>) -> Option<&'a Arc<Slot>> {
    let with_room = slots.filter_map(|slot| Some((slot.room()?, slot)));
    with_room.min_by_key(|(in_flight, _)| *in_flight).map(|(_, slot)| slot)
}

/// Two instances by lot: to compare these is nearly as good as to compare all.
fn two_of(slots: &[Arc<Slot>]) -> impl Iterator<Item = &Arc<Slot>> {
    thread_local! {
        static LOT: Cell<u64> = const { Cell::new(0x9e37_79b9_7f4a_7c15) };
    }
    let drawn = LOT.with(|lot| {
        let mut bits = lot.get();
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        lot.set(bits);
        bits
    });
    let len = slots.len() as u64;
    let index = |bits: u64| usize::try_from(bits % len.max(1)).unwrap_or(0);
    [index(drawn), index(drawn >> 32)].into_iter().filter_map(|index| slots.get(index))
}

impl Slot {
    /// The port requests go to.
    pub(crate) fn port(&self) -> u16 {
        self.pool.revision.port
    }

    /// The requests it has, if it takes one more.
    fn room(&self) -> Option<u32> {
        let permits = self.permits.load(Ordering::Relaxed);
        (permits < self.concurrency).then_some(permits)
    }

    fn enter(&self) -> bool {
        // Either mark makes the number larger than any concurrency.
        let taken = self.permits.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |permits| {
            (permits < self.concurrency).then_some(permits + 1)
        });
        if taken.is_ok() && self.throttled.load(Ordering::SeqCst) {
            self.unthrottle();
        }
        taken.is_ok()
    }

    fn leave(&self) {
        let before = self.permits.fetch_sub(1, Ordering::SeqCst);
        if before & CLOSED != 0 {
            if before & COUNT == 1 {
                self.pool.events.drained(self.pool.revision.id, self.id);
            }
        } else if self.pool.room.len() > 0 {
            self.pool.serve_waiting();
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.permits.load(Ordering::SeqCst) & COUNT
    }

    /// Gives out no more permits; returns how many are still out. The drained event follows the
    /// last one, unless there is none.
    pub(crate) fn close(&self) -> u32 {
        self.permits.fetch_or(CLOSED, Ordering::SeqCst) & COUNT
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.permits.load(Ordering::SeqCst) & CLOSED != 0
    }

    /// Follows the readiness probe.
    pub(crate) fn set_ready(&self, ready: bool) {
        if ready {
            self.permits.fetch_and(!UNREADY, Ordering::SeqCst);
            self.pool.serve_waiting();
        } else {
            self.permits.fetch_or(UNREADY, Ordering::SeqCst);
        }
    }

    /// Takes the processor away while no request is there.
    pub(crate) fn throttle_if_idle(&self) {
        if self.in_flight() > 0 || self.throttled.load(Ordering::SeqCst) {
            return;
        }
        self.instance.set_processor(Allowance::Throttled);
        self.throttled.store(true, Ordering::SeqCst);
        // A request that came in between saw no mark, and is seen here; one that comes later
        // sees the mark.
        if self.in_flight() > 0 {
            self.unthrottle();
        }
    }

    /// Gives the processor back.
    pub(crate) fn unthrottle(&self) {
        if self.throttled.swap(false, Ordering::SeqCst) {
            self.instance.set_processor(Allowance::Full);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::fake::standing_instance;
    use crate::fleet::tests::revision_plan;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<String>>);

    impl PoolEvents for Told {
        fn demand(&self, _revision: &Arc<RevisionPlan>) {
            self.0.lock().unwrap().push("demand".to_owned());
        }

        fn drained(&self, _revision: u64, instance: u64) {
            self.0.lock().unwrap().push(format!("drained {instance}"));
        }
    }

    fn pool(concurrency: u32) -> (Arc<Pool>, Arc<Told>) {
        let told = Arc::new(Told::default());
        let events = Arc::clone(&told) as Arc<dyn PoolEvents>;
        let patience = Duration::from_secs(60);
        (Arc::new(Pool::new(revision_plan(concurrency), events, patience)), told)
    }

    fn ready(answer: PoolAnswer) -> Option<Lease> {
        match answer {
            PoolAnswer::Ready(lease) => Some(lease),
            _ => None,
        }
    }

    #[test]
    fn the_least_busy_instance_is_taken_and_of_equals_the_first() {
        let (pool, _) = pool(2);
        for id in 1..=3 {
            pool.admit(&pool.slot(id, standing_instance()));
        }
        let leases: Vec<Lease> = (0..4).filter_map(|_| ready(pool.acquire())).collect();
        let taken: Vec<u64> = leases.iter().map(Lease::instance).collect();
        assert_eq!(taken, [1, 2, 3, 1]);
    }

    #[test]
    fn a_closed_instance_takes_nothing_more_and_tells_when_it_is_drained() {
        let (pool, told) = pool(2);
        let slot = pool.slot(7, standing_instance());
        pool.admit(&slot);
        let leases: Vec<Lease> = (0..2).filter_map(|_| ready(pool.acquire())).collect();
        assert_eq!((leases.len(), slot.close()), (2, 2));
        assert!(pool.try_enter().is_none());
        drop(leases);
        assert_eq!(*told.0.lock().unwrap(), ["drained 7"]);
    }

    #[test]
    fn an_instance_that_is_not_ready_is_passed_over_until_it_is() {
        let (pool, _) = pool(2);
        let slot = pool.slot(1, standing_instance());
        pool.admit(&slot);
        let held = ready(pool.acquire());
        slot.set_ready(false);
        assert!(pool.try_enter().is_none());
        drop(held);
        slot.set_ready(true);
        assert_eq!(slot.in_flight(), 0);
        assert!(pool.try_enter().is_some());
    }

    /// Many threads, few permits: nobody gets one too many, nobody is forgotten.
    #[test]
    fn concurrency_is_exact_over_all_threads_and_no_visitor_is_left_behind() {
        const THREADS: u32 = 8;
        const REQUESTS: u32 = 3_000;
        for concurrency in [1, 3] {
            let (pool, _) = pool(concurrency);
            let instances = 2;
            let occupied: Arc<Vec<AtomicU32>> =
                Arc::new((0..instances).map(|_| AtomicU32::new(0)).collect());
            for id in 0..instances {
                pool.admit(&pool.slot(id, standing_instance()));
            }
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    let (pool, occupied) = (Arc::clone(&pool), Arc::clone(&occupied));
                    std::thread::spawn(move || {
                        let runtime =
                            tokio::runtime::Builder::new_current_thread().enable_time().build();
                        runtime.unwrap().block_on(async {
                            for _ in 0..REQUESTS {
                                let lease = match pool.acquire() {
                                    PoolAnswer::Ready(lease) => lease,
                                    PoolAnswer::Wait(wait) => wait.finish().await.unwrap(),
                                    _ => panic!("refused"),
                                };
                                let counter = &occupied[usize::try_from(lease.instance()).unwrap()];
                                let now = counter.fetch_add(1, Ordering::SeqCst) + 1;
                                assert!(now <= concurrency, "{now} at a time");
                                std::hint::spin_loop();
                                counter.fetch_sub(1, Ordering::SeqCst);
                            }
                        });
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!((pool.requests_in_flight(), pool.requests_waiting()), (0, 0));
        }
    }
}
