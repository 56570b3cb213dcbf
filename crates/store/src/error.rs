//! What can go wrong with the store, for callers who must tell the cases apart.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Revision;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another `Store` of this one, holds the file.
    #[error("the store `{path}` is in use by another process")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A later version of the program wrote it; reading it could lose what we do not know.
    #[error(
        "the store `{path}` has format {found}, newer than the {known} this version understands"
    )]
    FormatNewer {
        /// The file.
        path: PathBuf,
        /// The format the file has.
        found: u64,
        /// The newest format this version reads.
        known: u64,
    },
    /// The disk is full, so that the file cannot be made.
    #[error("the store `{path}` cannot be opened: the disk is full")]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: redb::Error,
    },
    /// The file cannot be read or made.
    #[error("the store `{path}` cannot be opened")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: redb::Error,
    },
    /// The writing thread could not be started.
    #[error("the thread that writes the store could not be started")]
    Thread {
        /// What the operating system said.
        source: io::Error,
    },
}

/// Why a transaction was refused. In every case nothing of it happened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A condition did not hold.
    #[error("`{key}` is at {}, not at {}", at(*actual), at(*expected))]
    Conflict {
        /// The key whose condition failed.
        key: Arc<str>,
        /// The revision asked for; `None` when the key had to be absent.
        expected: Option<Revision>,
        /// The revision it has; `None` when it is absent.
        actual: Option<Revision>,
    },
    /// A key, a value or the transaction exceeds a limit.
    #[error("{what} has {size}, more than {limit}")]
    TooLarge {
        /// What is too large.
        what: String,
        /// Its size.
        size: usize,
        /// The limit that it exceeds.
        limit: usize,
    },
    /// No room on the disk. The store goes on, and takes changes again once there is room.
    #[error("the disk is full")]
    DiskFull {
        /// What the database said.
        source: Arc<redb::Error>,
    },
    /// The disk failed otherwise. The store tries again with the next transaction.
    #[error("the store could not be written")]
    Io {
        /// What the database said.
        source: Arc<redb::Error>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

fn at(revision: Option<Revision>) -> String {
    revision.map_or_else(|| "absent".to_owned(), |revision| format!("revision {revision}"))
}

/// Why a watch ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// The log no longer goes back that far; take a snapshot and watch from there.
    #[error("the log starts at revision {oldest}, later than the reader needs")]
    Compacted {
        /// The oldest revision the log holds.
        oldest: Revision,
    },
    /// The reader has seen a revision this store never reached: another store is in its place.
    #[error("the store is at revision {newest}, before what the reader has seen")]
    Ahead {
        /// The latest revision.
        newest: Revision,
    },
    /// The log could not be read.
    #[error("the log of the store could not be read")]
    Io {
        /// What the database said.
        source: Arc<redb::Error>,
    },
    /// The store has been closed and everything in it was delivered.
    #[error("the store is closed")]
    Closed,
}

/// Whether the disk had no room, as opposed to any other failure.
pub(crate) fn is_disk_full(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else { return false };
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
