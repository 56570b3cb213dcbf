//! Google's own gcloud, pointed at a server by the environment it prints and by nothing else.
//!
//! Invariant: gcloud never sees the user's home: its configuration, its keys and its known hosts live in
//! a folder that goes with this value.

use crate::server::{Server, output_within};
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;

/// How long one command may take; a first `compute ssh` makes a key and waits for it to arrive.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// How long a whole script of commands may take.
const SCRIPT_LIMIT: Duration = Duration::from_secs(900);

/// gcloud with a home of its own.
#[derive(Debug)]
pub struct Gcloud {
    home: TempDir,
    environment: BTreeMap<String, String>,
}

impl Gcloud {
    /// gcloud pointed at `server`; `None`, said aloud, where gcloud is not installed.
    pub fn at(server: &Server) -> Result<Option<Gcloud>> {
        let found = Command::new("gcloud").arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            println!("SKIPPED: gcloud is not installed; only the REST API was driven");
            return Ok(None);
        }
        Ok(Some(Gcloud { home: tempfile::tempdir()?, environment: server.environment().clone() }))
    }

    /// The same home, pointed at the server's present environment.
    pub fn point_again(&mut self, server: &Server) {
        self.environment = server.environment().clone();
    }

    /// Any program in the environment a shell has after `eval "$(tidegate env)"`.
    pub fn program(&self, name: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(name);
        command
            .envs(&self.environment)
            .env("HOME", self.home.path())
            .env("CLOUDSDK_CONFIG", self.home.path().join("gcloud"))
            .current_dir(self.home.path());
        command
    }

    /// A folder for files that commands read and write.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }

    /// Runs `gcloud` with the words of `line`; quotes are not understood.
    pub fn try_run(&self, line: &str) -> Result<Output> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.try_words(&words)
    }

    /// Runs `gcloud` with these arguments.
    pub fn try_words(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.program("gcloud");
        command.args(words);
        output_within(command, COMMAND_LIMIT)
    }

    /// Runs a command that must succeed; its standard output.
    pub fn run(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.words(&words)
    }

    /// Runs a command that must succeed, given as separate arguments.
    pub fn words(&self, words: &[&str]) -> Result<String> {
        let output = self.try_words(words)?;
        ensure!(output.status.success(), "gcloud {}\n{}", words.join(" "), both(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command that must be refused with this text.
    pub fn refused(&self, text: &str, line: &str) -> Result<()> {
        let output = self.try_run(line)?;
        let said = both(&output);
        if output.status.success() {
            bail!("not refused: gcloud {line}\n{said}");
        }
        ensure!(said.contains(text), "refused without saying {text:?}: gcloud {line}\n{said}");
        Ok(())
    }

    /// Runs a command on a client VM by `compute ssh`.
    pub fn ssh(&self, instance: &str, remote: &str) -> Result<String> {
        let zone = format!("--zone={}", crate::ZONE);
        let remote = format!("--command={remote}");
        self.words(&["compute", "ssh", instance, &zone, "--quiet", &remote])
    }

    /// Runs a whole script in the pointed environment; its standard output.
    pub fn script(&self, path: &Path, arguments: &[&str]) -> Result<String> {
        let mut command = self.program("bash");
        command.arg(path).args(arguments);
        let output = output_within(command, SCRIPT_LIMIT)?;
        ensure!(output.status.success(), "{} {arguments:?}\n{}", path.display(), both(&output));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn both(output: &Output) -> String {
    let (said, complained) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(said), String::from_utf8_lossy(complained))
}
