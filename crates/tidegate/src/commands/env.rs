//! `tidegate env` and `tidegate gcloud`: what points Google Cloud's clients at a server.

use crate::cli::{self, Format, Gcloud};
use crate::components;
use crate::data_dir::DataDir;
use anyhow::Context;
use api::door::pointing::{Pointing, Shell};
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) fn run(dir: &DataDir, how: &cli::Env) -> anyhow::Result<String> {
    let shell = match (how.format, how.shell) {
        (Some(Format::Json), _) => Shell::Json,
        (_, cli::Shell::Bash) => Shell::Posix,
        (_, cli::Shell::Fish) => Shell::Fish,
        (_, cli::Shell::Powershell) => Shell::PowerShell,
    };
    Ok(pointing(dir)?.render(shell).trim_end().to_owned())
}

/// Becomes gcloud; only comes back when that fails.
pub(crate) fn gcloud(dir: &DataDir, how: &Gcloud) -> anyhow::Result<String> {
    let environment = pointing(dir)?.environment();
    let error = Command::new("gcloud").args(&how.arguments).envs(environment).exec();
    Err(error).context("could not run `gcloud`: is the Google Cloud CLI installed and on PATH?")
}

/// What clients need to know of the server that runs on `dir`.
fn pointing(dir: &DataDir) -> anyhow::Result<Pointing> {
    let running = dir.running()?;
    let components = components::linked(dir).context("could not link gcloud's components")?;
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(Pointing {
        path: components::path_with(&components, &path),
        address: running.api,
        bundle: api::door::bundle_file(dir.root()),
        token_file: crate::server::token_file(dir),
        token: crate::server::token(dir)?,
        project: running.project,
        run_app: running.run_app.map(|at| [at.http.into(), at.https.into()]),
    })
}
