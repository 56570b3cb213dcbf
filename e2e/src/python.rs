//! Python with Google's client packages from PyPI, in an environment of its own.
//!
//! Invariant: an environment is used only when all its packages are installed; a note beside it,
//! written last, says which they are.

use crate::server::output_within;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long the packages may take to come.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// An environment `name` with these packages, made once below `folder`; its Python.
pub fn with_packages(folder: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let lock = File::create(folder.join(format!("{name}.lock")))?;
    lock.lock().context("another test makes the environment")?;
    let (place, marker) = (folder.join(name), folder.join(format!("{name}.packages")));
    let python = place.join("bin/python");
    let wanted = packages.join("\n");
    if python.exists() && fs::read_to_string(&marker).is_ok_and(|held| held == wanted) {
        return Ok(python);
    }
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    let mut make = Command::new("python3");
    make.args(["-m", "venv"]).arg(&place);
    succeeded(make)?;
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    succeeded(install)?;
    fs::write(marker, wanted)?;
    Ok(python)
}

fn succeeded(command: Command) -> Result<()> {
    let what = format!("{command:?}");
    let output = output_within(command, INSTALL_LIMIT)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{what}\n{said}");
    Ok(())
}
