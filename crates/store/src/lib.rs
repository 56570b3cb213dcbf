//! Durable, revisioned documents with compare-and-swap and watch.
//!
//! The store keeps keys and bytes and knows no resource. Every transaction takes the next number
//! of one global revision; its changes are on disk, in the current table and in the log, before
//! the caller hears of it. Reads are served from memory and never wait for the disk.
//!
//! Invariant: replaying the log from any revision it still holds, over the state of that
//! revision, gives the current state.

mod disk;
mod error;
mod transaction;
mod watch;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

pub use error::{CommitError, OpenError, WatchError};
pub use transaction::{Change, Commit, Condition, Entry, Snapshot, Transaction};
pub use watch::Watch;

use disk::Disk;
use tokio::sync::{mpsc, oneshot};
use watch::Shared;
use writer::{Request, Writer};

/// The number of a transaction; it grows by one with each that changes something. An empty store
/// has revision 0.
pub type Revision = u64;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most changes one transaction may carry.
pub const CHANGES_MAX: usize = 10_000;
/// How many revisions the log remembers for readers that resume.
pub const LOG_REVISIONS_MAX: u64 = 10_000;
/// How many bytes of keys and values the log remembers, whatever their number.
pub const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Transactions waiting for the disk; a caller beyond that waits to be queued.
pub const COMMITS_QUEUED_MAX: usize = 1024;
/// Transactions made durable by one write to the disk.
pub const COMMITS_BATCHED_MAX: usize = 256;

/// An open store. Clones share it; the last one dropped closes the file.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// Nothing once the store is closed.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in this file, made if absent. Its directory must exist. Blocks while the
    /// file is read.
    pub fn open(path: impl AsRef<Path>) -> Result<Store, OpenError> {
        let (disk, state) = Disk::open(path.as_ref())?;
        let shared = Arc::new(Shared::new(disk, state));
        let (requests, queue) = mpsc::channel(COMMITS_QUEUED_MAX);
        let writer = Writer::new(Arc::clone(&shared), path.as_ref().to_owned());
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|source| OpenError::Thread { source })?;
        let inner = Inner {
            shared,
            requests: Mutex::new(Some(requests)),
            writer: Mutex::new(Some(writer)),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Makes a transaction durable and returns its revision. When it changes nothing (no change,
    /// or only deletions of what is absent) the conditions are still checked, nothing is written
    /// and the current revision is returned.
    ///
    /// Once queued, the transaction goes ahead even if the future is dropped.
    pub async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.check_limits()?;
        let (answer, answered) = oneshot::channel();
        let requests = held(&self.inner.requests).clone().ok_or(CommitError::Closed)?;
        let request = Request { transaction, answer };
        requests.send(request).await.map_err(|_| CommitError::Closed)?;
        // The writer ends when nobody can ask it any more.
        drop(requests);
        answered.await.map_err(|_| CommitError::Closed)?
    }

    /// Closes the file for everybody who shares the store, after what is queued is durable; another
    /// process may open it then. What was read stays readable, and commits are refused. Blocks.
    pub fn close(&self) {
        self.inner.close();
    }

    /// The state after the latest transaction. Costs the same for any number of keys: it shares
    /// memory with the store and never changes.
    pub fn snapshot(&self) -> Snapshot {
        self.inner.shared.snapshot()
    }

    /// The entry of one key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.inner.shared.get(key)
    }

    /// The entries whose keys start with the prefix, in the order of their keys.
    pub fn scan(&self, prefix: &str) -> Vec<(Arc<str>, Entry)> {
        self.snapshot().scan(prefix).map(|(key, entry)| (Arc::clone(key), entry.clone())).collect()
    }

    /// The revision of the latest transaction.
    pub fn revision(&self) -> Revision {
        self.inner.shared.revision()
    }

    /// Every commit later than `after`, first from the log, then as they happen. A reader takes a
    /// [`Snapshot`] and watches after its revision.
    pub fn watch(&self, after: Revision) -> Watch {
        Watch::new(Arc::clone(&self.inner.shared), after)
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn close(&self) {
        // The writer ends when its queue does; waiting for it frees the file for the next opener.
        *held(&self.requests) = None;
        let writer = held(&self.writer).take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
