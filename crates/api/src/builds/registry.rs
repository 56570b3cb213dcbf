//! What this process knows of builds that the store does not: those under way, and where objects
//! lie.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{BuildOrder, Builder, UnderWay};
use crate::storage::Sessions;

/// The builder, the builds under way, and the objects they come from.
#[derive(Debug)]
pub struct Builds {
    builder: Arc<dyn Builder>,
    objects: PathBuf,
    under_way: Mutex<HashMap<String, Arc<dyn UnderWay>>>,
    /// Keys of the operations that are being carried out.
    deploying: Mutex<HashSet<String>>,
    pub(crate) sessions: Sessions,
}

impl Builds {
    /// Builds by this builder, of objects kept in this directory.
    pub fn new(builder: Arc<dyn Builder>, objects: PathBuf) -> Builds {
        Builds {
            builder,
            objects,
            under_way: Mutex::default(),
            deploying: Mutex::default(),
            sessions: Sessions::default(),
        }
    }

    pub(crate) fn builder(&self) -> &dyn Builder {
        &*self.builder
    }

    pub(crate) fn objects(&self) -> &Path {
        &self.objects
    }

    pub(super) fn start(&self, id: &str, order: BuildOrder) -> Arc<dyn UnderWay> {
        let under_way = self.builder.start(order);
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id.to_owned(), Arc::clone(&under_way));
        under_way
    }

    pub(super) fn ended(&self, id: &str) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(crate) fn is_under_way(&self, id: &str) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id)
    }

    /// Says whether an operation is being carried out.
    pub(crate) fn deploying(&self, operation: &str, is_deploying: bool) {
        let mut all = self.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        match is_deploying {
            true => drop(all.insert(operation.to_owned())),
            false => drop(all.remove(operation)),
        }
    }

    pub(crate) fn is_deploying(&self, operation: &str) -> bool {
        self.deploying.lock().unwrap_or_else(PoisonError::into_inner).contains(operation)
    }

    /// What a build under way has said so far.
    pub(crate) fn log(&self, id: &str) -> Option<String> {
        let all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).map(|build| build.log())
    }
}
