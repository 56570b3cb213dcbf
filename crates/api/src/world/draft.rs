//! A change being edited: the documents it puts and deletes, over the state it started from.

use super::State;
use model::ResourceName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Edits over one state, seen together.
pub struct Draft {
    before: Arc<State>,
    edits: BTreeMap<Arc<str>, Option<Value>>,
}

// Documents hold private keys: what prints is which are edited.
impl fmt::Debug for Draft {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.edits.keys().collect();
        out.debug_struct("Draft").field("edits", &keys).finish_non_exhaustive()
    }
}

impl Draft {
    pub(crate) fn new(before: Arc<State>) -> Draft {
        Draft { before, edits: BTreeMap::new() }
    }

    /// The state the edits are made to.
    pub fn before(&self) -> &Arc<State> {
        &self.before
    }

    /// A document as it would be after the edits so far.
    pub fn get(&self, key: &str) -> Option<Value> {
        match self.edits.get(key) {
            Some(edit) => edit.clone(),
            None => self.before.get(key),
        }
    }

    /// Whether a document would exist after the edits so far.
    pub fn contains(&self, key: &str) -> bool {
        match self.edits.get(key) {
            Some(edit) => edit.is_some(),
            None => self.before.documents.contains_key(key),
        }
    }

    /// Writes a document.
    pub fn put(&mut self, key: impl Into<Arc<str>>, value: Value) {
        self.edits.insert(key.into(), Some(value));
    }

    /// Removes a document, if it is there.
    pub fn delete(&mut self, key: impl Into<Arc<str>>) {
        let key = key.into();
        if self.before.documents.contains_key(&key) {
            self.edits.insert(key, None);
        } else {
            self.edits.remove(&key);
        }
    }

    /// Whether nothing would change.
    pub(crate) fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The edits, by key; `None` deletes.
    pub(crate) fn edits(&self) -> impl Iterator<Item = (&Arc<str>, Option<&Value>)> {
        self.edits.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// The names of the resources edited.
    pub(crate) fn names(&self) -> impl Iterator<Item = ResourceName> {
        self.edits.keys().filter_map(|key| super::state::resource_of(key))
    }
}
