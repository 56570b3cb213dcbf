//! The one thread that writes. It takes whatever transactions are waiting, decides each against
//! the state the ones before it leave, and makes them durable with a single write.
//!
//! Invariant: nobody is answered before the write that holds their transaction, or the state
//! their refusal was judged by, is on disk.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::disk::{Disk, Replay};
use crate::error::{CommitError, OpenError, is_disk_full};
use crate::transaction::{Commit, Transaction};
use crate::watch::Shared;
use crate::{COMMITS_BATCHED_MAX, Revision};

type Answer = Result<Revision, CommitError>;

/// One caller's transaction and where its answer goes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) transaction: Transaction,
    pub(crate) answer: oneshot::Sender<Answer>,
}

#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, path: PathBuf) -> Writer {
        Writer { shared, path }
    }

    pub(crate) fn run(self, mut queue: mpsc::Receiver<Request>) {
        let mut requests = Vec::with_capacity(COMMITS_BATCHED_MAX);
        while let Some(first) = queue.blocking_recv() {
            requests.push(first);
            while requests.len() < COMMITS_BATCHED_MAX {
                let Ok(request) = queue.try_recv() else { break };
                requests.push(request);
            }
            self.write(requests.drain(..));
        }
        self.shared.close();
    }

    fn write(&self, requests: impl Iterator<Item = Request>) {
        if let Err(error) = self.ensure_open() {
            refuse(requests.map(|request| request.answer), &error);
            return;
        }
        let mut state = self.shared.snapshot();
        let mut commits: Vec<Arc<Commit>> = Vec::new();
        let mut answers = Vec::new();
        for Request { transaction, answer } in requests {
            let verdict = state.decide(transaction).map(|commit| {
                if let Some(commit) = commit {
                    state.apply(&commit);
                    commits.push(Arc::new(commit));
                }
                state.revision
            });
            answers.push((answer, verdict));
        }
        match self.append(&commits) {
            Ok(()) => {
                for (answer, verdict) in answers {
                    // A caller that went away is no reason to undo what it asked for.
                    let _ = answer.send(verdict);
                }
            }
            Err(error) => refuse(answers.into_iter().map(|(answer, _)| answer), &error),
        }
    }

    /// Makes the commits durable, then visible.
    fn append(&self, commits: &[Arc<Commit>]) -> Result<(), CommitError> {
        let Some(last) = commits.last() else { return Ok(()) };
        match self.shared.with_disk(|disk| disk.append(commits)) {
            Some(Ok(())) => {
                self.shared.publish(commits);
                Ok(())
            }
            Some(Err(error)) => {
                // The database refuses all work after a failed write. Opening it again brings
                // back the last durable state, which tells whether this write is in it.
                self.shared.take_disk();
                let landed = self.ensure_open().is_ok() && self.shared.revision() == last.revision;
                if landed { Ok(()) } else { Err(failed(error)) }
            }
            None => Err(CommitError::Closed),
        }
    }

    /// Opens the file again if a failure closed it, and publishes what turns out to be in it.
    fn ensure_open(&self) -> Result<(), CommitError> {
        if self.shared.with_disk(|_| ()).is_some() {
            return Ok(());
        }
        let (disk, state) = Disk::open(&self.path).map_err(|error| match error {
            OpenError::DiskFull { source, .. } | OpenError::Io { source, .. } => failed(source),
            OpenError::InUse { .. } => failed(redb::Error::DatabaseAlreadyOpen),
            OpenError::FormatNewer { .. } | OpenError::Thread { .. } => CommitError::Closed,
        })?;
        let next = self.shared.revision() + 1;
        let mut landed = Vec::new();
        if state.revision >= next {
            match disk.replay(next, usize::MAX).map_err(failed)? {
                Replay::Commits(commits) => landed = commits,
                // The log keeps thousands of revisions and at most one batch is unaccounted for.
                Replay::Compacted { .. } => return Err(CommitError::Closed),
            }
        }
        self.shared.put_disk(disk);
        self.shared.publish(&landed);
        Ok(())
    }
}

fn refuse(answers: impl Iterator<Item = oneshot::Sender<Answer>>, error: &CommitError) {
    for answer in answers {
        let _ = answer.send(Err(error.clone()));
    }
}

fn failed(error: redb::Error) -> CommitError {
    let source = Arc::new(error);
    match is_disk_full(&source) {
        true => CommitError::DiskFull { source },
        false => CommitError::Io { source },
    }
}
