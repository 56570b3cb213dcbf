//! The file: a table of what is current, the log of how it came to be, and what describes both.
//!
//! Invariant: the three change in one database transaction, so they never disagree.

use std::path::Path;
use std::sync::Arc;

use redb::{
    Database, DatabaseError, Error, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};

use crate::error::{OpenError, is_disk_full};
use crate::transaction::{Change, Commit, Entry, Snapshot};
use crate::{LOG_BYTES_MAX, LOG_REVISIONS_MAX, Revision};

const CURRENT: TableDefinition<'_, &str, (Revision, &[u8])> = TableDefinition::new("current");
const LOG: TableDefinition<'_, LogKey, LogRow> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const META_FORMAT: &str = "format";
const META_REVISION: &str = "revision";
const META_LOG_BYTES: &str = "log-bytes";

/// One row for each change, numbered within its revision.
type LogKey = (Revision, u32);
/// The key that changed and its bytes, none when it was deleted.
type LogRow = (&'static str, Option<&'static [u8]>);

/// The layout of the tables above. A file with a larger number is refused.
const FORMAT: u64 = 1;

/// Memory the database may use for pages. Reads are served elsewhere, so it is the pages around what is
/// being written, and it fills up at the start, when all are read once.
const PAGE_CACHE_BYTES: usize = 1024 * 1024;

/// The open file.
#[derive(Debug)]
pub(crate) struct Disk {
    database: Database,
}

/// What a resuming reader finds in the log.
#[derive(Debug)]
pub(crate) enum Replay {
    /// Commits in order, without a gap, starting where the reader asked.
    Commits(Vec<Arc<Commit>>),
    /// The log starts later than the reader asked.
    Compacted { oldest: Revision },
}

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<(Disk, Snapshot), OpenError> {
        let failed = |source: Error| match source {
            Error::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
            source if is_disk_full(&source) => {
                OpenError::DiskFull { path: path.to_owned(), source }
            }
            source => OpenError::Io { path: path.to_owned(), source },
        };
        let database = open_database(path).map_err(|error| failed(error.into()))?;
        let format = prepare(&database).map_err(failed)?;
        if format > FORMAT {
            let path = path.to_owned();
            return Err(OpenError::FormatNewer { path, found: format, known: FORMAT });
        }
        let state = read_current(&database).map_err(failed)?;
        Ok((Disk { database }, state))
    }

    /// Makes the commits durable, all or none.
    pub(crate) fn append(&self, commits: &[Arc<Commit>]) -> Result<(), Error> {
        let Some(last) = commits.last() else { return Ok(()) };
        let transaction = self.database.begin_write()?;
        {
            let mut current = transaction.open_table(CURRENT)?;
            let mut log = transaction.open_table(LOG)?;
            let mut meta = transaction.open_table(META)?;
            let mut log_bytes = meta.get(META_LOG_BYTES)?.map_or(0, |bytes| bytes.value());
            for commit in commits {
                for (number, change) in (0..).zip(&commit.changes) {
                    let key = change.key.as_ref();
                    match change.value.as_deref() {
                        Some(value) => drop(current.insert(key, (commit.revision, value))?),
                        None => drop(current.remove(key)?),
                    }
                    let row = (key, change.value.as_deref());
                    log.insert((commit.revision, number), row)?;
                    log_bytes += change.bytes() as u64;
                }
            }
            log_bytes -= compact(&mut log, log_bytes, last.revision)?;
            meta.insert(META_REVISION, last.revision)?;
            meta.insert(META_LOG_BYTES, log_bytes)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// The commits from this revision on: at least one if there is one, and no further one once
    /// they hold this many bytes.
    pub(crate) fn replay(&self, from: Revision, bytes_max: usize) -> Result<Replay, Error> {
        let transaction = self.database.begin_read()?;
        let log = transaction.open_table(LOG)?;
        if let Some(oldest) = oldest(&log)?.filter(|oldest| *oldest > from) {
            return Ok(Replay::Compacted { oldest });
        }
        let mut commits: Vec<Commit> = Vec::new();
        let mut bytes = 0;
        for row in log.range((from, 0)..)? {
            let (position, change) = row?;
            let (revision, _) = position.value();
            let (key, value) = change.value();
            let change = Change { key: key.into(), value: value.map(Arc::from) };
            let change_bytes = change.bytes();
            match commits.last_mut() {
                Some(commit) if commit.revision == revision => commit.changes.push(change),
                Some(_) if bytes >= bytes_max => break,
                _ => commits.push(Commit { revision, changes: vec![change] }),
            }
            bytes += change_bytes;
        }
        Ok(Replay::Commits(commits.into_iter().map(Arc::new).collect()))
    }
}

fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(PAGE_CACHE_BYTES).create(path)
}

/// Makes the tables of an empty file, and returns the format.
fn prepare(database: &Database) -> Result<u64, Error> {
    let reading = database.begin_read()?;
    match reading.open_table(META) {
        Ok(meta) => {
            if let Some(format) = meta.get(META_FORMAT)? {
                return Ok(format.value());
            }
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    drop(reading);
    let transaction = database.begin_write()?;
    transaction.open_table(CURRENT)?;
    transaction.open_table(LOG)?;
    transaction.open_table(META)?.insert(META_FORMAT, FORMAT)?;
    transaction.commit()?;
    Ok(FORMAT)
}

fn read_current(database: &Database) -> Result<Snapshot, Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let revision = meta.get(META_REVISION)?.map_or(0, |revision| revision.value());
    let mut snapshot = Snapshot { revision, ..Snapshot::default() };
    for row in transaction.open_table(CURRENT)?.iter()? {
        let (key, entry) = row?;
        let (revision, value) = entry.value();
        let entry = Entry { revision, value: value.into() };
        snapshot.entries.insert(key.value().into(), entry);
    }
    Ok(snapshot)
}

/// Drops the oldest rows until the log is within its bounds; returns the bytes freed. The latest
/// revision stays whatever its size.
fn compact(
    log: &mut redb::Table<'_, LogKey, LogRow>,
    log_bytes: u64,
    latest: Revision,
) -> Result<u64, Error> {
    let mut freed = 0;
    let mut dropping = None;
    while let Some(revision) = oldest(log)? {
        let too_many = latest - revision >= LOG_REVISIONS_MAX;
        let too_large = log_bytes - freed > LOG_BYTES_MAX;
        // A revision goes whole or not at all.
        let begun = dropping == Some(revision);
        if revision == latest || !(too_many || too_large || begun) {
            break;
        }
        dropping = Some(revision);
        if let Some((_, row)) = log.pop_first()? {
            let (key, value) = row.value();
            freed += row_bytes(key, value);
        }
    }
    Ok(freed)
}

fn oldest(log: &impl ReadableTable<LogKey, LogRow>) -> Result<Option<Revision>, Error> {
    Ok(log.first()?.map(|(position, _)| position.value().0))
}

fn row_bytes(key: &str, value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64
}
