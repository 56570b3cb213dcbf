//! What goes in and comes out: transactions, entries, commits and snapshots. All plain values.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdMap;

use crate::error::CommitError;
use crate::{CHANGES_MAX, KEY_BYTES_MAX, Revision, VALUE_BYTES_MAX};

/// The bytes of a key and the revision that wrote them.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The transaction that last wrote the key.
    pub revision: Revision,
    /// What was written.
    pub value: Arc<[u8]>,
}

/// What must be true of one key for a transaction to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: Arc<str>,
    /// The revision it must have; `None` when it must be absent.
    pub revision: Option<Revision>,
}

/// What a transaction did to one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Arc<str>,
    /// Its new bytes; `None` when it was deleted.
    pub value: Option<Arc<[u8]>>,
}

impl Change {
    /// The length of its key and value together.
    pub(crate) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, |value| value.len())
    }
}

// Values may be long, and may be private keys: what prints is their size.

impl fmt::Debug for Entry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { revision, value } = self;
        write!(out, "Entry {{ revision: {revision}, {} bytes }}", value.len())
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(out, "Put {{ {:?}, {} bytes }}", self.key, value.len()),
            None => write!(out, "Delete {{ {:?} }}", self.key),
        }
    }
}

/// Conditions and changes that happen together or not at all.
///
/// Conditions see the state before the transaction. Changes apply in order, so the last one to a
/// key stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What happens then.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// A transaction that asks nothing and changes nothing yet.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Asks that the key was last written by this revision.
    #[must_use]
    pub fn expect(mut self, key: impl Into<Arc<str>>, revision: Revision) -> Transaction {
        self.conditions.push(Condition { key: key.into(), revision: Some(revision) });
        self
    }

    /// Asks that the key does not exist.
    #[must_use]
    pub fn expect_absent(mut self, key: impl Into<Arc<str>>) -> Transaction {
        self.conditions.push(Condition { key: key.into(), revision: None });
        self
    }

    /// Writes the key.
    #[must_use]
    pub fn put(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<[u8]>>) -> Transaction {
        self.changes.push(Change { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Removes the key; nothing happens if it is absent.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Arc<str>>) -> Transaction {
        self.changes.push(Change { key: key.into(), value: None });
        self
    }

    pub(crate) fn check_limits(&self) -> Result<(), CommitError> {
        let too_large = |what: String, size, limit| CommitError::TooLarge { what, size, limit };
        if self.changes.len() > CHANGES_MAX {
            let what = "the number of changes".to_owned();
            return Err(too_large(what, self.changes.len(), CHANGES_MAX));
        }
        for Change { key, value } in &self.changes {
            if key.len() > KEY_BYTES_MAX {
                // The key itself would make the message as long as what it complains about.
                let what = "the length of a key in bytes".to_owned();
                return Err(too_large(what, key.len(), KEY_BYTES_MAX));
            }
            let bytes = value.as_ref().map_or(0, |value| value.len());
            if bytes > VALUE_BYTES_MAX {
                let what = format!("the length of `{key}` in bytes");
                return Err(too_large(what, bytes, VALUE_BYTES_MAX));
            }
        }
        Ok(())
    }
}

/// One transaction as it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its number.
    pub revision: Revision,
    /// What it did, each key in the order given.
    pub changes: Vec<Change>,
}

impl Commit {
    /// The length of its keys and values together.
    pub(crate) fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }
}

/// Everything the store held at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The transaction it shows the result of.
    pub revision: Revision,
    /// The keys and their entries.
    pub entries: OrdMap<Arc<str>, Entry>,
}

impl Snapshot {
    /// The entry of one key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The entries whose keys start with the prefix, in the order of their keys.
    pub fn scan<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> + 'a {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.entries.range::<_, str>(from).take_while(move |(key, _)| key.starts_with(prefix))
    }

    /// What becomes of this state when the commit happens: the law that replay follows.
    pub fn apply(&mut self, commit: &Commit) {
        for Change { key, value } in &commit.changes {
            match value {
                Some(value) => {
                    let entry = Entry { revision: commit.revision, value: Arc::clone(value) };
                    self.entries.insert(Arc::clone(key), entry);
                }
                None => {
                    self.entries.remove(key.as_ref());
                }
            }
        }
        self.revision = commit.revision;
    }

    /// What the transaction would do here, or the condition that does not hold. `None` when it
    /// changes nothing.
    pub(crate) fn decide(&self, transaction: Transaction) -> Result<Option<Commit>, CommitError> {
        for condition in &transaction.conditions {
            let actual = self.get(&condition.key).map(|entry| entry.revision);
            if actual != condition.revision {
                return Err(CommitError::Conflict {
                    key: Arc::clone(&condition.key),
                    expected: condition.revision,
                    actual,
                });
            }
        }
        let mut changes = transaction.changes;
        let puts_something = changes.iter().any(|change| change.value.is_some());
        if !puts_something {
            changes.retain(|change| self.entries.contains_key(change.key.as_ref()));
        }
        if changes.is_empty() {
            return Ok(None);
        }
        Ok(Some(Commit { revision: self.revision + 1, changes }))
    }
}
