//! `tidegate doctor`: what the host lacks, what it is for, and which command installs it.

use crate::cli::Doctor;
use crate::table::Table;
use anyhow::{Context, bail};
use std::process::Command;

/// One thing the host must have.
struct Check {
    what: String,
    purpose: String,
    package: Option<String>,
    found: Result<String, String>,
}

pub(crate) fn run(how: Doctor) -> anyhow::Result<String> {
    let mut checks = checks();
    if how.install {
        install(&missing(&checks))?;
        checks = self::checks();
    }
    let mut table = Table::new(&["", "NEEDED", "FOR", "FOUND"]);
    for check in &checks {
        let (mark, found) = match &check.found {
            Ok(found) => ("ok", found.clone()),
            Err(why) => ("MISSING", why.clone()),
        };
        table.row(vec![mark.into(), check.what.clone(), check.purpose.clone(), found]);
    }
    let packages = missing(&checks);
    if checks.iter().all(|check| check.found.is_ok()) {
        return Ok(format!("{table}\n\nEverything Tidegate needs is here."));
    }
    if packages.is_empty() {
        bail!("{table}\n\nSomething is missing that no package brings.");
    }
    let packages = packages.join(" ");
    bail!(
        "{table}\n\nInstall what is missing with\n  apt-get install -y {packages}\nor let \
         `tidegate doctor --install` do it."
    )
}

/// What stands in the way of a start, for `tidegate up`: `None` when nothing does.
pub(crate) fn obstacles() -> Option<String> {
    let checks = checks();
    let missing: Vec<String> = checks
        .iter()
        .filter_map(|check| {
            let why = check.found.as_ref().err()?;
            Some(format!("  {} ({}): {why}", check.what, check.purpose))
        })
        .collect();
    (!missing.is_empty()).then(|| missing.join("\n"))
}

fn checks() -> Vec<Check> {
    let root = nix::unistd::geteuid().is_root();
    let mut checks = vec![Check {
        what: "root".into(),
        purpose: "network namespaces, containers, addresses".into(),
        package: None,
        found: if root { Ok("yes".into()) } else { Err("run Tidegate as root".into()) },
    }];
    checks.extend(vpc::requirements().into_iter().map(|requirement| Check {
        what: requirement.program.to_owned(),
        purpose: requirement.purpose.to_owned(),
        package: Some(requirement.package.to_owned()),
        found: match requirement.found {
            Some(path) => Ok(path.display().to_string()),
            None => Err(format!("install the package {}", requirement.package)),
        },
    }));
    checks
}

fn missing(checks: &[Check]) -> Vec<String> {
    let lacking = checks.iter().filter(|check| check.found.is_err());
    let mut packages: Vec<_> = lacking.filter_map(|check| check.package.clone()).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn install(packages: &[String]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    for arguments in
        [vec!["update".to_owned()], [&["install".into(), "-y".into()], packages].concat()]
    {
        let status = Command::new("apt-get")
            .args(&arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // Packages may not start what they bring: Tidegate only needs the programs.
            .env("RUNLEVEL", "1")
            .status()
            .context("could not run apt-get: install the packages by hand")?;
        if !status.success() {
            bail!("`apt-get {}` failed", arguments.join(" "));
        }
    }
    Ok(())
}
