//! One moment of the world: the documents, what they mean, and a few ways to find them.
//!
//! A document is kept as the bytes the store keeps, the very same ones, and is read when somebody asks for
//! it: as a tree it would take ten times the memory, for as long as nobody looks.
//!
//! Invariant: `compiled.inventory()` is what the documents say, and `operations` lists exactly the
//! operations among them.

use super::Draft;
use crate::convert;
use crate::error::{ApiError, Reason};
use imbl::OrdMap;
use model::ResourceName;
use plan::Compiled;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

/// One document and the revision that wrote it.
#[derive(Clone)]
pub struct Document {
    /// JSON, shared with the store.
    json: Arc<[u8]>,
    /// The revision of its last change.
    pub revision: u64,
}

impl Document {
    /// A document whose bytes were written by this server, or are known to be JSON.
    pub(crate) fn new(json: Arc<[u8]>, revision: u64) -> Document {
        Document { json, revision }
    }

    /// The document as a tree.
    pub fn value(&self) -> Value {
        let value = serde_json::from_slice(&self.json);
        debug_assert!(value.is_ok(), "a document is JSON from the start");
        value.unwrap_or_default()
    }

    /// The document as a type it can be read as.
    pub(crate) fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.json)
    }

    /// The bytes, for the store.
    pub(crate) fn json(&self) -> &Arc<[u8]> {
        &self.json
    }
}

// Documents hold private keys: what prints is when they were written.
impl fmt::Debug for Document {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Document").field("revision", &self.revision).finish_non_exhaustive()
    }
}

/// Everything declared at one revision.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The revision of the store.
    pub revision: u64,
    /// All documents by key. A resource's key is its relative path, `projects/…`.
    pub documents: OrdMap<Arc<str>, Document>,
    /// Compute's operations in the order they were started: revision and key.
    pub operations: OrdMap<(u64, Arc<str>), ()>,
    /// What the documents mean.
    pub compiled: Compiled,
}

/// The name of the resource whose document has this key; none for documents that are no resource.
pub(crate) fn resource_of(key: &str) -> Option<ResourceName> {
    key.starts_with("projects/").then(|| ResourceName::parse(key)).flatten()
}

/// Whether this is the key of a Compute operation.
pub(crate) fn is_operation(key: &str) -> bool {
    let is_operation = key.starts_with("projects/") && key.contains("/operations/operation-");
    // The other APIs' operations are in locations and are theirs to keep.
    is_operation && !key.contains("/locations/")
}

impl State {
    /// A document by its key.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.documents.get(key).map(Document::value)
    }

    /// The documents whose keys start with the prefix, in the order of their keys.
    pub fn scan<'a>(
        &'a self,
        prefix: &str,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Document)> + use<'a> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let prefix = prefix.to_string();
        let documents = self.documents.range::<_, str>(from);
        documents.take_while(move |(key, _)| key.starts_with(&prefix))
    }

    /// The state after the draft's edits, compiled.
    pub(crate) fn next(&self, draft: &Draft) -> Result<State, ApiError> {
        let revision = self.revision + 1;
        let mut documents = self.documents.clone();
        let mut operations = self.operations.clone();
        let mut inventory = self.compiled.inventory().clone();
        for (key, value) in draft.edits() {
            if let (true, Some(old)) = (is_operation(key), self.documents.get(key)) {
                operations.remove(&(old.revision, key.clone()));
            }
            let name = resource_of(key);
            match value {
                Some(value) => {
                    if let Some(name) = &name
                        && let Some(resource) = convert::resource(name, value)?
                    {
                        inventory.insert(resource);
                    }
                    if is_operation(key) {
                        operations.insert((revision, key.clone()), ());
                    }
                    documents.insert(key.clone(), Document::new(written(key, value)?, revision));
                }
                None => {
                    if let Some(name) = &name {
                        inventory.remove(name);
                    }
                    documents.remove(key);
                }
            }
        }
        let compiled = plan::compile(&inventory, revision, &self.compiled);
        Ok(State { revision, documents, operations, compiled })
    }
}

fn written(key: &str, value: &Value) -> Result<Arc<[u8]>, ApiError> {
    let refused =
        |error| ApiError::new(Reason::Internal, format!("`{key}` cannot be written: {error}"));
    serde_json::to_vec(value).map(Arc::from).map_err(refused)
}
