//! The end-to-end tests: one module for each question a user would ask of the whole thing.
//!
//! Each test starts servers of its own on data directories of its own, and leaves the host as it was.

#![allow(clippy::print_stdout, reason = "a test says aloud what it skipped")]

mod acceptance;
mod builds;
mod containers;
mod door;
mod egress;
mod explaining;
mod faults;
mod gcloud;
mod gcloud_run;
mod host;
mod howto;
mod identity;
mod instances;
mod kills;
mod neighbours;
mod refusals;
mod replacing;
mod rollouts;
mod run_app;
mod run_clients;
mod serving;

use e2e::host::Before;
use e2e::server::Server;
use tempfile::TempDir;

/// A server on a data directory that goes with it, and the host as it was before.
struct Stage {
    server: Server,
    before: Before,
    // Dropped last: the server's data is in it.
    _folder: TempDir,
}

impl Stage {
    /// Starts a server for a test; `None`, said aloud, where the test cannot run.
    fn set(what: &str) -> anyhow::Result<Option<Stage>> {
        Stage::set_with(what, &[])
    }

    /// Starts a server with further arguments of `up`.
    fn set_with(what: &str, arguments: &[&str]) -> anyhow::Result<Option<Stage>> {
        if e2e::skipped_without_root(what) {
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let before = Before::now();
        let server = Server::start_with(&folder.path().join("data"), arguments)?;
        Ok(Some(Stage { server, before, _folder: folder }))
    }

    /// Takes the server down and asserts that nothing of it is left.
    fn strike(mut self) -> anyhow::Result<()> {
        self.server.down()?;
        self.before.expect_nothing_left_by(self.server.data())
    }
}
