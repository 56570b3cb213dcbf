//! The world as it is declared: every document, what they mean, and the one writer that changes them.
//!
//! A change is edited as a [`Draft`], compiled with everything else, refused if it adds a problem,
//! committed to disk, and only then published. Readers hold an [`Arc`] of one [`State`] and are never
//! waited for.
//!
//! Invariant: the published state is exactly what the store holds at its revision.

mod draft;
mod open;
mod state;

pub use draft::Draft;
pub use open::OpenError;
pub use state::{Document, State};

use crate::error::{ApiError, Reason};
use model::ResourceName;
use plan::Plan;
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{CommitError, Store, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

/// The world. Clones share it.
#[derive(Clone, Debug)]
pub struct World {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    /// Whoever holds this is the writer. It is held while the disk writes.
    writer: Arc<Mutex<()>>,
    state: watch::Sender<Arc<State>>,
    plan: watch::Sender<Arc<Plan>>,
}

/// A change that is on disk.
#[derive(Debug)]
pub struct Changed<T> {
    /// What the editor returned.
    pub value: T,
    /// The world from the change on.
    pub state: Arc<State>,
}

impl World {
    /// Lets go of the store's file, for another process to open it: reading goes on, and every change is
    /// refused. Blocks.
    pub fn close(&self) {
        self.inner.store.close();
    }

    /// Reads every document of the store and compiles the world they declare.
    pub fn open(store: Store) -> Result<World, OpenError> {
        let state = Arc::new(open::load(&store)?);
        let plan = watch::Sender::new(state.compiled.plan.clone());
        let writer = Arc::new(Mutex::new(()));
        let inner = Inner { store, writer, state: watch::Sender::new(state), plan };
        Ok(World { inner: Arc::new(inner) })
    }

    /// The world at this moment.
    pub fn state(&self) -> Arc<State> {
        self.inner.state.borrow().clone()
    }

    /// The latest plan, and word of every later one.
    pub fn plans(&self) -> watch::Receiver<Arc<Plan>> {
        self.inner.plan.subscribe()
    }

    /// The latest state, and word of every later one.
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.subscribe()
    }

    /// Changes the world, or refuses and changes nothing. The editor runs alone, sees the latest
    /// state, and may be refused after it ran: by a problem the change would add, or by the disk.
    ///
    /// Once the editor has returned, dropping the future changes nothing about what happens.
    pub async fn change<T>(
        &self,
        edit: impl FnOnce(&mut Draft) -> Result<T, ApiError>,
    ) -> Result<Changed<T>, ApiError> {
        let guard = self.inner.writer.clone().lock_owned().await;
        let before = self.state();
        let mut draft = Draft::new(before.clone());
        let value = edit(&mut draft)?;
        if draft.is_empty() {
            return Ok(Changed { value, state: before });
        }
        let next = admitted(&before, &draft)?;
        let committed = self.inner.clone().commit(draft, next, guard);
        let state = tokio::spawn(committed)
            .await
            .map_err(|_| ApiError::new(Reason::Internal, "The change was interrupted."))??;
        Ok(Changed { value, state })
    }

    /// What a change would lead to, or why it would be refused. Nothing happens.
    pub fn rehearse<T>(
        &self,
        edit: impl FnOnce(&mut Draft) -> Result<T, ApiError>,
    ) -> Result<Changed<T>, ApiError> {
        let before = self.state();
        let mut draft = Draft::new(before.clone());
        let value = edit(&mut draft)?;
        let state = if draft.is_empty() { before } else { Arc::new(admitted(&before, &draft)?) };
        Ok(Changed { value, state })
    }
}

/// The state the draft leads to, if it adds no problem.
fn admitted(before: &State, draft: &Draft) -> Result<State, ApiError> {
    let next = before.next(draft)?;
    let edited: BTreeSet<ResourceName> = draft.names().collect();
    let mut added: Vec<_> = next.compiled.problems_since(&before.compiled).collect();
    // What the caller wrote comes before what it does to others.
    added.sort_by_key(|problem| !edited.contains(&problem.resource));
    match added.first() {
        None => Ok(next),
        Some(problem) => {
            let gone = |name: &ResourceName| !next.compiled.inventory().contains(name);
            let removed: BTreeSet<_> = edited.iter().filter(|name| gone(name)).cloned().collect();
            Err(ApiError::from_problem(problem, &removed))
        }
    }
}

impl Inner {
    async fn commit(
        self: Arc<Inner>,
        draft: Draft,
        next: State,
        _writer: OwnedMutexGuard<()>,
    ) -> Result<Arc<State>, ApiError> {
        let transaction = transaction(&draft, &next);
        let revision = self.store.commit(transaction).await.map_err(refused_by_disk)?;
        debug_assert_eq!(revision, next.revision, "nobody else writes to the store");
        let next = Arc::new(next);
        self.state.send_replace(next.clone());
        self.plan.send_replace(next.compiled.plan.clone());
        Ok(next)
    }
}

/// What leads from the state before a draft to the one after it.
fn transaction(draft: &Draft, next: &State) -> Transaction {
    let mut transaction = Transaction::new();
    for (key, _) in draft.edits() {
        transaction = match draft.before().documents.get(key) {
            Some(document) => transaction.expect(key.clone(), document.revision),
            None => transaction.expect_absent(key.clone()),
        };
        transaction = match next.documents.get(key) {
            Some(document) => transaction.put(key.clone(), document.json().clone()),
            None => transaction.delete(key.clone()),
        };
    }
    transaction
}

fn refused_by_disk(error: CommitError) -> ApiError {
    let reason = match error {
        CommitError::TooLarge { .. } => Reason::TooLarge,
        CommitError::Closed => Reason::Unavailable,
        CommitError::Conflict { .. } | CommitError::DiskFull { .. } | CommitError::Io { .. } => {
            Reason::Internal
        }
    };
    tracing::error!(%error, "a change could not be made durable");
    ApiError::new(reason, format!("The change was not made: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_document_is_the_very_bytes_the_store_keeps() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path().join("store")).expect("a store");
        let world = World::open(store.clone()).expect("a world");
        let written = json!({ "b": [1, "two", null] });
        let edit = |draft: &mut Draft| {
            draft.put("a", written.clone());
            Ok(())
        };
        let changed = world.change(edit).await.expect("a change").state;
        let opened = World::open(store.clone()).expect("a world").state();
        let kept = store.get("a").expect("an entry").value;
        for state in [changed, opened] {
            assert_eq!(state.get("a").as_ref(), Some(&written));
            assert!(Arc::ptr_eq(state.documents["a"].json(), &kept));
        }
    }
}
