//! One table of figures, written between two markers of a Markdown file.

use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

const BEGIN: &str = "<!-- control plane: begin -->";
const END: &str = "<!-- control plane: end -->";

/// The figures so far.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    rows: Vec<[String; 4]>,
}

impl Report {
    /// An empty report that names the machine.
    pub(crate) fn on_this_machine() -> Result<Report> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name\t: "));
        let cores = cpus.lines().filter(|line| line.starts_with("processor\t")).count();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let memory = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        let machine = format!(
            "{cores} cores of {}, {} GiB of memory, Linux {}; the machine was shared with nothing else the \
             measurement knows of.",
            model.unwrap_or("an unnamed processor"),
            memory.unwrap_or(0) >> 20,
            kernel.trim(),
        );
        Ok(Report { machine, rows: Vec::new() })
    }

    /// Adds a line; an aim is empty where there is none.
    pub(crate) fn row(&mut self, what: &str, figure: String, detail: String, aim: &str) {
        self.rows.push([what.to_owned(), figure, detail, aim.to_owned()]);
    }

    /// Adds a line of durations: the median, with the spread beside it.
    pub(crate) fn durations(&mut self, what: &str, mut samples: Vec<Duration>, aim: &str) {
        samples.sort();
        let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
        let detail = format!(
            "p99 {}, most {}, {} samples",
            milliseconds(at(99)),
            milliseconds(at(100)),
            samples.len(),
        );
        self.row(what, milliseconds(at(50)), detail, aim);
    }

    /// Puts the table in the place of the one that is there.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path)?;
        let mut table = format!(
            "{BEGIN}\n\n{}\n\n| what | figure | spread | aim |\n|---|---|---|---|\n",
            self.machine
        );
        for [what, figure, detail, aim] in &self.rows {
            // Writing to a `String` cannot fail.
            let _ = writeln!(table, "| {what} | {figure} | {detail} | {aim} |");
        }
        table.push('\n');
        let begin = text.find(BEGIN).context("the file has a marker for the begin")?;
        let end = text.find(END).context("the file has a marker for the end")?;
        fs::write(path, format!("{}{table}{}", &text[..begin], &text[end..]))?;
        Ok(())
    }
}

/// A duration with as many digits as it deserves.
pub(crate) fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1000.0;
    match milliseconds {
        less if less < 10.0 => format!("{less:.2} ms"),
        less if less < 100.0 => format!("{less:.1} ms"),
        more => format!("{more:.0} ms"),
    }
}
