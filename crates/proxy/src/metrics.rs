//! Counters and latency histograms, counted without one worker waiting for another.
//!
//! Every worker writes cells of its own; a scrape reads them all and adds them up. A cell has one writer,
//! so counting is a load and a store.
//!
//! Invariant: the number of series of a worker is bounded; what would exceed it is counted under
//! empty labels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency buckets, in microseconds.
pub(crate) const BOUNDS_MICROS: [u64; 20] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    3_600_000_000,
];

/// A number with one writer and many readers.
#[derive(Debug, Default)]
pub(crate) struct Cell64(AtomicU64);

impl Cell64 {
    /// Adds; only the worker that owns the cell may.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// Subtracts; only the worker that owns the cell may.
    pub(crate) fn subtract(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(count), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A distribution of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// One count for each bound, and one for what is beyond the last.
    pub(crate) counts: [Cell64; BOUNDS_MICROS.len() + 1],
    pub(crate) sum_micros: Cell64,
}

impl Histogram {
    fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.counts[at].add(1);
        self.sum_micros.add(micros);
    }
}

/// The labels of a series but the status code, after Google's metric labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Labels {
    pub(crate) project: String,
    pub(crate) region: String,
    pub(crate) network: String,
    pub(crate) forwarding_rule: String,
    pub(crate) target_proxy: String,
    pub(crate) backend_service: String,
    pub(crate) service: String,
    pub(crate) revision: String,
    pub(crate) protocol: &'static str,
}

/// The counts of one series in one worker.
#[derive(Debug, Default)]
pub(crate) struct Series {
    pub(crate) requests: Cell64,
    pub(crate) request_bytes: Cell64,
    pub(crate) response_bytes: Cell64,
    pub(crate) total: Histogram,
    pub(crate) backend: Histogram,
}

/// What one request adds to its series.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// The status code; 0 when none was sent.
    pub(crate) status: u16,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) total: Duration,
    pub(crate) backend: Option<Duration>,
}

/// The series of one rule, backend, revision and protocol, by status code.
#[derive(Debug)]
pub(crate) struct Group {
    labels: Arc<Labels>,
    by_status: RefCell<Vec<(u16, Arc<Series>)>>,
    registry: Arc<Registry>,
}

impl Group {
    /// Counts one request.
    pub(crate) fn record(&self, measured: &Measured) {
        let mut by_status = self.by_status.borrow_mut();
        let at = match by_status.iter().position(|(status, _)| *status == measured.status) {
            Some(at) => at,
            None => {
                let series = self.registry.add(&self.labels, measured.status);
                by_status.push((measured.status, series));
                by_status.len() - 1
            }
        };
        let series = &by_status[at].1;
        series.requests.add(1);
        series.request_bytes.add(measured.request_bytes);
        series.response_bytes.add(measured.response_bytes);
        series.total.record(measured.total);
        if let Some(backend) = measured.backend {
            series.backend.record(backend);
        }
    }
}

/// Identifies a [`Group`]: forwarding rule, backend service, revision (0 for none) and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupKey {
    pub(crate) rule: u64,
    pub(crate) backend: u64,
    pub(crate) revision: u64,
    pub(crate) protocol: &'static str,
}

/// Mixes the few words of a key; the keys are ids we made, so nobody can choose them.
#[derive(Debug, Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

/// A map whose keys are made of our own ids.
pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// The groups one worker counts in.
#[derive(Debug)]
pub(crate) struct WorkerMetrics {
    groups: RefCell<IdMap<GroupKey, Rc<Group>>>,
    overflow: Rc<Group>,
    registry: Arc<Registry>,
    groups_max: usize,
}

impl WorkerMetrics {
    pub(crate) fn new(registry: &Arc<Registry>, groups_max: usize) -> WorkerMetrics {
        let group = |labels| Group {
            labels: Arc::new(labels),
            by_status: RefCell::default(),
            registry: registry.clone(),
        };
        WorkerMetrics {
            groups: RefCell::default(),
            overflow: Rc::new(group(Labels::default())),
            registry: registry.clone(),
            groups_max,
        }
    }

    /// The group of `key`; `labels` is asked once, when it is first seen.
    pub(crate) fn group(&self, key: GroupKey, labels: impl FnOnce() -> Labels) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        if let Some(group) = groups.get(&key) {
            return group.clone();
        }
        if groups.len() >= self.groups_max {
            return self.overflow.clone();
        }
        let group = Rc::new(Group {
            labels: Arc::new(labels()),
            by_status: RefCell::default(),
            registry: self.registry.clone(),
        });
        groups.insert(key, group.clone());
        group
    }
}

/// A series with its labels and status code.
type Registered = (Arc<Labels>, u16, Arc<Series>);

/// All series of all workers; locked only when a series appears and when it is read.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    series: Mutex<Vec<Registered>>,
    /// Access log lines that were dropped, by whichever worker.
    pub(crate) log_lines_dropped: AtomicU64,
    /// Requests that Cloud Logging does not show because there were too many in their second.
    pub(crate) log_entries_dropped: AtomicU64,
    /// Tasks that ended in a panic; each cost one connection or one HTTP/2 stream.
    pub(crate) panics: AtomicU64,
}

impl Registry {
    fn add(&self, labels: &Arc<Labels>, status: u16) -> Arc<Series> {
        let series = Arc::new(Series::default());
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((labels.clone(), status, series.clone()));
        series
    }

    /// Every series there is.
    pub(crate) fn all(&self) -> Vec<Registered> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
