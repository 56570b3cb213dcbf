//! The control plane measured from outside, and the compiler from inside; the figures go into the
//! section of `docs/benchmarks.md` between this program's markers.
//!
//! Nothing here judges: a figure that misses its aim is written down as it is.

mod change;
mod compile;
mod start;

use anyhow::{Context, Result};
use bench_report::Report;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: bench-control-plane docs/benchmarks.md")?;
    let mut report = Report::on_this_machine("control plane")?;
    compile::measure(&mut report);
    if !e2e::skipped_without_root("starting servers and changing what they serve") {
        start::measure(&mut report)?;
        change::measure(&mut report)?;
    }
    report.write(path.as_ref())
}
