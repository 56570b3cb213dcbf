//! What readers see: the state in memory, and the commits as they come.
//!
//! Invariant: a commit appears here only after it is on disk.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use crate::Revision;
use crate::disk::{Disk, Replay};
use crate::error::WatchError;
use crate::transaction::{Commit, Entry, Snapshot};

/// Commits kept in memory, so that a reader who keeps up never touches the disk.
const RECENT_COMMITS_MAX: usize = 256;
/// Bytes of keys and values kept with them; the latest commit stays whatever its size.
const RECENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of keys and values read from the log at a time by a reader who resumes.
const REPLAY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the writer publishes and everybody else reads.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    /// `None` while the disk is failing, and once the store is closed.
    disk: RwLock<Option<Disk>>,
    newest: watch::Sender<Newest>,
}

#[derive(Debug)]
struct State {
    snapshot: Snapshot,
    recent: VecDeque<Arc<Commit>>,
    recent_bytes: usize,
}

impl State {
    fn apply(&mut self, commit: &Arc<Commit>) {
        self.snapshot.apply(commit);
        self.recent.push_back(Arc::clone(commit));
        self.recent_bytes += commit.bytes();
        while self.recent.len() > 1
            && (self.recent.len() > RECENT_COMMITS_MAX || self.recent_bytes > RECENT_BYTES_MAX)
        {
            let oldest = self.recent.pop_front();
            self.recent_bytes -= oldest.map_or(0, |commit| commit.bytes());
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    revision: Revision,
    closed: bool,
}

impl Shared {
    pub(crate) fn new(disk: Disk, snapshot: Snapshot) -> Shared {
        let newest = Newest { revision: snapshot.revision, closed: false };
        Shared {
            state: RwLock::new(State { snapshot, recent: VecDeque::new(), recent_bytes: 0 }),
            disk: RwLock::new(Some(disk)),
            newest: watch::Sender::new(newest),
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.with_state(|state| state.snapshot.clone())
    }

    pub(crate) fn get(&self, key: &str) -> Option<Entry> {
        self.with_state(|state| state.snapshot.get(key).cloned())
    }

    pub(crate) fn revision(&self) -> Revision {
        self.newest.borrow().revision
    }

    pub(crate) fn publish(&self, commits: &[Arc<Commit>]) {
        let Some(last) = commits.last() else { return };
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for commit in commits {
                state.apply(commit);
            }
        }
        self.newest.send_modify(|newest| newest.revision = last.revision);
    }

    pub(crate) fn close(&self) {
        self.take_disk();
        self.newest.send_modify(|newest| newest.closed = true);
    }

    pub(crate) fn take_disk(&self) {
        *self.disk.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn put_disk(&self, disk: Disk) {
        *self.disk.write().unwrap_or_else(PoisonError::into_inner) = Some(disk);
    }

    /// Runs with the open file, or returns `None` while there is none.
    pub(crate) fn with_disk<T>(&self, run: impl FnOnce(&Disk) -> T) -> Option<T> {
        self.disk.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(run)
    }

    fn with_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The commits in memory from this revision on, if it is there.
    fn recent_from(&self, from: Revision) -> Option<Vec<Arc<Commit>>> {
        self.with_state(|state| {
            let oldest = state.recent.front()?.revision;
            let skip = usize::try_from(from.checked_sub(oldest)?).ok()?;
            Some(state.recent.iter().skip(skip).cloned().collect())
        })
    }
}

/// A reader of commits, in order and without a gap. It does not keep the store open.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    newest: watch::Receiver<Newest>,
    /// Read and not yet delivered.
    ready: VecDeque<Arc<Commit>>,
    next: Revision,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, after: Revision) -> Watch {
        let newest = shared.newest.subscribe();
        Watch { shared, newest, ready: VecDeque::new(), next: after + 1 }
    }

    /// The next commit, waiting for it to happen. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Arc<Commit>, WatchError> {
        loop {
            if let Some(commit) = self.ready.pop_front() {
                self.next = commit.revision + 1;
                return Ok(commit);
            }
            let newest = *self.newest.borrow_and_update();
            if newest.revision + 1 < self.next {
                return Err(WatchError::Ahead { newest: newest.revision });
            }
            if newest.revision >= self.next {
                self.read()?;
            } else if newest.closed || self.newest.changed().await.is_err() {
                return Err(WatchError::Closed);
            }
        }
    }

    fn read(&mut self) -> Result<(), WatchError> {
        if let Some(commits) = self.shared.recent_from(self.next) {
            self.ready.extend(commits);
            return Ok(());
        }
        let replay = self.shared.with_disk(|disk| disk.replay(self.next, REPLAY_BYTES_MAX));
        match replay {
            Some(Ok(Replay::Commits(commits))) => {
                self.ready.extend(commits);
                Ok(())
            }
            Some(Ok(Replay::Compacted { oldest })) => Err(WatchError::Compacted { oldest }),
            Some(Err(source)) => Err(WatchError::Io { source: Arc::new(source) }),
            None => Err(WatchError::Closed),
        }
    }
}
