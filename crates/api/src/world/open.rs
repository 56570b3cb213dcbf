//! Reading the whole store at start.

use super::state::{Document, State, is_operation, resource_of};
use crate::convert;
use crate::error::ApiError;
use model::Inventory;
use plan::Compiled;
use serde_json::Value;
use std::sync::Arc;
use store::Store;

/// Why the world could not be read from its store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A document is not JSON.
    #[error("the document `{key}` of the store is not JSON")]
    NotJson {
        /// Its key.
        key: Arc<str>,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A document cannot be what its key says.
    #[error("the document `{key}` of the store cannot be understood")]
    NotAResource {
        /// Its key.
        key: Arc<str>,
        /// What is wrong with it.
        source: ApiError,
    },
}

pub(crate) fn load(store: &Store) -> Result<State, OpenError> {
    let snapshot = store.snapshot();
    let mut state = State { revision: snapshot.revision, ..State::default() };
    let mut inventory = Inventory::default();
    for (key, entry) in &snapshot.entries {
        let value: Value = serde_json::from_slice(&entry.value)
            .map_err(|source| OpenError::NotJson { key: key.clone(), source })?;
        if let Some(name) = resource_of(key) {
            let resource = convert::resource(&name, &value)
                .map_err(|source| OpenError::NotAResource { key: key.clone(), source })?;
            resource.into_iter().for_each(|resource| inventory.insert(resource));
        }
        if is_operation(key) {
            state.operations.insert((entry.revision, key.clone()), ());
        }
        let document = Document::new(entry.value.clone(), entry.revision);
        state.documents.insert(key.clone(), document);
    }
    state.compiled = plan::compile(&inventory, snapshot.revision, &Compiled::default());
    Ok(state)
}
