//! One thread that serves: its runtime, its rules, its pools, and the commands it takes between requests.
//!
//! Invariant: nothing a request touches is shared with another worker, except what belongs to others (an
//! instance's lease) and cells that only this worker writes.

use crate::access_log::{WorkerLog, civil};
use crate::buffer::BufferPool;
use crate::callers::Callers;
use crate::endpoints::Endpoints;
use crate::http2::upstream::Http2Pool;
use crate::limits::Limits;
use crate::listening::{Bound, RuleCells, Slot};
use crate::metrics::{Registry, WorkerMetrics};
use crate::pool::Pool;
use crate::rewrite::Trace;
use plan::Plan;
use plan::load_balancer::Listener;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::task::Waker;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

/// How often idle connections to instances are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long the two clocks are taken to run alike.
const CLOCKS_AGREE: Duration = Duration::from_secs(1);

/// Tasks that run before the sockets are asked again. More than the runtime's own choice: with hundreds of
/// busy connections each question costs a system call, and who has become ready waits for its turn anyway.
const EVENT_INTERVAL: u32 = 256;

/// One rule to serve from now on.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) listener: Arc<Listener>,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// New sockets; none for a rule that is already open.
    pub(crate) sockets: Vec<TcpListener>,
    pub(crate) cells: Arc<RuleCells>,
}

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve this plan; answered when it is served.
    Apply {
        plan: Arc<Plan>,
        set: Vec<Set>,
        /// Rules to close, by id.
        remove: Vec<u64>,
        done: Sender<()>,
    },
    /// Finish what is under way and end; answered when nothing is left, or at the deadline.
    Drain {
        within: Duration,
        /// Whether another process accepts on the same sockets from now on.
        handed_over: bool,
        done: Sender<()>,
    },
}

/// A plan as one worker holds it. Requests count their references here, and not in the plan itself, whose
/// count would travel between the cores.
#[derive(Debug, Default)]
pub(crate) struct Held {
    pub(crate) plan: Arc<Plan>,
}

/// Everything a worker's requests share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) limits: Limits,
    pub(crate) endpoints: Arc<dyn Endpoints>,
    pub(crate) callers: Arc<dyn Callers>,
    pub(crate) buffers: Rc<BufferPool>,
    pub(crate) upstreams: Pool,
    pub(crate) http2_upstreams: Http2Pool,
    pub(crate) metrics: WorkerMetrics,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: Option<WorkerLog>,
    /// The way to Cloud Logging.
    pub(crate) store: Option<WorkerLog>,
    /// Since when requests are counted that were kept, and how many were.
    stored: Cell<Option<(Instant, u32)>>,
    pub(crate) draining: Cell<bool>,
    /// Another process accepts on the same sockets.
    pub(crate) handed_over: Cell<bool>,
    pub(crate) stop: Notify,
    pub(crate) connections: Cell<usize>,
    /// Told whenever a connection ends.
    pub(crate) room: Notify,
    /// Tasks that accept again when a connection has ended.
    pub(crate) waiting_for_room: RefCell<Vec<Waker>>,
    plan: RefCell<Rc<Held>>,
    slots: RefCell<HashMap<u64, Rc<Slot>>>,
    random: Cell<u64>,
    date: RefCell<(u64, String)>,
    /// What the clock said when it was last read.
    clock: Cell<Instant>,
    /// The same moment on both clocks, not older than [`CLOCKS_AGREE`].
    clocks: Cell<(Instant, SystemTime)>,
}

/// What a worker is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) limits: Limits,
    pub(crate) endpoints: Arc<dyn Endpoints>,
    pub(crate) callers: Arc<dyn Callers>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: Option<WorkerLog>,
    pub(crate) store: Option<WorkerLog>,
}

impl Worker {
    fn new(parts: Parts) -> Rc<Worker> {
        Rc::new(Worker {
            buffers: BufferPool::new(parts.limits.buffer_bytes_max),
            upstreams: Pool::default(),
            http2_upstreams: Http2Pool::default(),
            metrics: WorkerMetrics::new(&parts.registry, parts.limits.series_max),
            registry: parts.registry,
            log: parts.log,
            store: parts.store,
            stored: Cell::default(),
            draining: Cell::new(false),
            handed_over: Cell::new(false),
            stop: Notify::new(),
            connections: Cell::new(0),
            room: Notify::new(),
            waiting_for_room: RefCell::default(),
            plan: RefCell::default(),
            slots: RefCell::default(),
            random: Cell::new(RandomState::new().build_hasher().finish()),
            date: RefCell::default(),
            clock: Cell::new(Instant::now()),
            clocks: Cell::new((Instant::now(), SystemTime::now())),
            limits: parts.limits,
            endpoints: parts.endpoints,
            callers: parts.callers,
        })
    }

    /// The plan of the moment.
    pub(crate) fn plan(&self) -> Rc<Held> {
        self.plan.borrow().clone()
    }

    /// A random number; not for secrets (SplitMix64).
    pub(crate) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Whether one more request may be kept for Cloud Logging in this second; if not, that is counted.
    pub(crate) fn stores_one_more(&self, now: Instant) -> bool {
        if self.store.is_none() {
            return false;
        }
        let (begun, count) = match self.stored.get() {
            Some((begun, count)) if now < begun + Duration::from_secs(1) => (begun, count),
            _ => (now, 0),
        };
        if count >= self.limits.stored_requests_per_second_max {
            self.registry.log_entries_dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.stored.set(Some((begun, count + 1)));
        true
    }

    /// Ids for a request that brings no trace.
    pub(crate) fn fresh_trace(&self) -> Trace {
        let trace = u128::from(self.random()) << 64 | u128::from(self.random() | 1);
        Trace::new(trace, self.random() | 1)
    }

    /// Reads the clock.
    pub(crate) fn read_clock(&self) -> Instant {
        let now = Instant::now();
        self.clock.set(now);
        now
    }

    /// What [`Worker::read_clock`] gave last: right for whoever runs just behind it.
    pub(crate) fn last_clock(&self) -> Instant {
        self.clock.get()
    }

    /// The time of day at a moment that is just past.
    pub(crate) fn wall_clock(&self, at: Instant) -> SystemTime {
        let (then, wall) = self.clocks.get();
        match at.checked_duration_since(then) {
            Some(since) if since < CLOCKS_AGREE => wall + since,
            _ => {
                let wall = SystemTime::now();
                self.clocks.set((at, wall));
                wall
            }
        }
    }

    /// Appends the time of a `Date` field.
    pub(crate) fn put_date(&self, out: &mut Vec<u8>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut date = self.date.borrow_mut();
        if date.0 != now || date.1.is_empty() {
            *date = (now, http_date(now));
        }
        out.extend_from_slice(date.1.as_bytes());
    }

    fn apply(self: &Rc<Worker>, plan: Arc<Plan>, set: Vec<Set>, remove: &[u64]) {
        *self.plan.borrow_mut() = Rc::new(Held { plan });
        let mut slots = self.slots.borrow_mut();
        for id in remove {
            if let Some(slot) = slots.remove(id) {
                slot.close();
            }
        }
        for set in set {
            let id = set.listener.id;
            let bound = Bound::new(set.listener, set.tls);
            let slot = match slots.get(&id) {
                Some(slot) => {
                    slot.rebind(bound);
                    slot.clone()
                }
                None => {
                    let slot = Slot::new(self, bound, set.cells);
                    slots.insert(id, slot.clone());
                    slot
                }
            };
            for socket in set.sockets {
                if let Err(error) = slot.listen(socket) {
                    tracing::error!(%error, rule = id, "could not serve a listening socket");
                }
            }
        }
    }

    async fn drain(&self, within: Duration) {
        self.draining.set(true);
        self.stop.notify_waiters();
        for slot in self.slots.borrow().values() {
            slot.wake_all();
        }
        let over = Instant::now() + within;
        // A queued connection becomes one of ours only now, so the count is watched until the end of
        // what closing the sockets may still bring.
        let settled = async {
            tokio::time::sleep(crate::listening::HANDSHAKE_GRACE * 2).await;
            while self.connections.get() > 0 {
                self.room.notified().await;
            }
        };
        let _ = tokio::time::timeout_at(over, settled).await;
        for log in self.log.iter().chain(&self.store) {
            log.flush();
        }
    }

    async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let now = Instant::now();
            self.upstreams.sweep(now, self.limits.backend_keepalive);
            self.http2_upstreams.sweep();
            self.buffers.sweep();
        }
    }
}

/// Runs a worker until it has drained.
pub(crate) fn run(parts: Parts, mut commands: UnboundedReceiver<Command>) -> io::Result<()> {
    let options = tokio::runtime::LocalOptions::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build_local(options)?;
    runtime.block_on(async move {
        let worker = Worker::new(parts);
        let sweeper = worker.clone();
        tokio::task::spawn_local(async move { sweeper.sweep().await });
        let logger = worker.clone();
        tokio::task::spawn_local(async move {
            if let Some(log) = &logger.log {
                log.keep_fresh().await;
            }
        });
        let storer = worker.clone();
        tokio::task::spawn_local(async move {
            if let Some(store) = &storer.store {
                store.keep_fresh().await;
            }
        });
        while let Some(command) = commands.recv().await {
            match command {
                Command::Apply { plan, set, remove, done } => {
                    worker.apply(plan, set, &remove);
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(());
                }
                Command::Drain { within, handed_over, done } => {
                    worker.handed_over.set(handed_over);
                    worker.drain(within).await;
                    let _ = done.send(());
                    break;
                }
            }
        }
        // Rules hold their worker, so the worker lets its rules go.
        worker.slots.borrow_mut().clear();
    });
    Ok(())
}

/// A time in the form of the `Date` field.
fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[((month + 11) % 12) as usize],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_http_dates() {
        assert_eq!(http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http_date(1_795_533_051), "Tue, 24 Nov 2026 15:10:51 GMT");
    }
}
