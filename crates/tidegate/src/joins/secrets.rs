//! Secrets of projects, which clients name by their ids and by their numbers.

use crate::data_dir::DataDir;
use api::Api;
use serverless::fleet::{SecretFiles, SecretSource};
use std::sync::Arc;

/// Files of secrets, found by a project's number as well as by its id.
#[derive(Debug)]
pub(crate) struct ProjectSecrets {
    api: Api,
    files: SecretFiles,
}

impl ProjectSecrets {
    /// The secrets below a data directory.
    pub(crate) fn below(dir: &DataDir, api: &Api) -> ProjectSecrets {
        ProjectSecrets { api: api.clone(), files: SecretFiles::new(dir.join("secrets")) }
    }
}

impl SecretSource for ProjectSecrets {
    fn read(&self, project: &str, secret: &str, version: &str) -> Result<Arc<[u8]>, String> {
        let state = self.api.world().state();
        let mut projects = state.compiled.inventory().projects.values();
        let known = projects.find(|known| known.number.to_string() == project);
        let id = known.map_or_else(|| project.to_owned(), |known| known.name.name.to_string());
        self.files.read(&id, secret, version)
    }
}
