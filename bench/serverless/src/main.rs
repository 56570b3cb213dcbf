//! The serverless half measured from outside: what a request pays that finds nobody awake, what
//! sleeping and waking services hold in memory, and what Docker Engine takes for the same images.
//!
//! Nothing here judges: a figure that misses its aim is written down as it is.

#![allow(clippy::print_stdout, reason = "a benchmark says what it does and what it left out")]

mod docker;
mod images;
mod scale;
mod wake;

use anyhow::{Context, Result};
use bench_report::Report;
use std::fs;

/// Cold starts of each image, unless `BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 100;

fn main() -> Result<()> {
    let usage = "usage: bench-serverless docs/benchmarks.md PERMITS";
    let path = std::env::args().nth(1).context(usage)?;
    let permits = std::env::args().nth(2).context(usage)?;
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds = rounds.unwrap_or(ROUNDS);
    let mut report = Report::on_this_machine("serverless")?;
    if e2e::skipped_without_root("starting servers, containers and an engine") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let images = images::all(folder.path());
    wake::measure(&mut report, &images, rounds)?;
    docker::measure(&mut report, &images, rounds)?;
    scale::measure(&mut report, rounds)?;
    permit(&mut report, &fs::read_to_string(permits)?);
    report.write(path.as_ref())
}

/// What the fleet's own benchmark said a warm request pays.
fn permit(report: &mut Report, said: &str) {
    for line in said.lines().filter(|line| line.starts_with("warm_request_permit")) {
        let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        if let (Some(threads), Some(cost)) = (word("threads="), word("ns_per_request=")) {
            let what = format!("waiting room and limits, per warm request, {threads} threads");
            report.row(&what, format!("{cost} ns"), "", "under 1 µs");
        }
    }
}
