//! One table of figures, written between two markers of a Markdown file: `<!-- SUBJECT: begin -->` and its end.

#![allow(clippy::print_stdout, reason = "who waits for a measurement sees its figures come")]

use anyhow::{Context, Result};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The figures so far.
#[derive(Debug)]
pub struct Report {
    subject: &'static str,
    machine: String,
    rows: Vec<[String; 4]>,
}

impl Report {
    /// An empty report about a subject, which names its markers, that tells of the machine.
    pub fn on_this_machine(subject: &'static str) -> Result<Report> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name\t: "));
        let cores = cpus.lines().filter(|line| line.starts_with("processor\t")).count();
        let load = fs::read_to_string("/proc/loadavg")?;
        let machine = format!(
            "{cores} cores of {}, Linux {}, load average before the run {}.",
            model.unwrap_or("an unnamed processor"),
            fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
            load.split(' ').next().unwrap_or_default(),
        );
        Ok(Report { subject, machine, rows: Vec::new() })
    }

    /// Adds a line; an aim is empty where there is none.
    pub fn row(&mut self, what: &str, figure: String, spread: &str, aim: &str) {
        println!("{what}: {figure} {spread}");
        self.rows.push([what.to_owned(), figure, spread.to_owned(), aim.to_owned()]);
    }

    /// Adds a line of durations: the median, with the spread beside it.
    pub fn durations(&mut self, what: &str, mut samples: Vec<Duration>, aim: &str) {
        samples.sort();
        let at = |percent: usize| samples.get((samples.len().max(1) - 1) * percent / 100);
        let text = |percent: usize| at(percent).map_or_else(String::new, |it| milliseconds(*it));
        let spread =
            format!("p99 {}, {} to {}, {} samples", text(99), text(0), text(100), samples.len());
        self.row(what, text(50), &spread, aim);
    }

    /// Puts the table in the place of the one that is there.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path)?;
        let head = "| what | figure | spread | aim |\n|---|---|---|---|\n";
        let begin = format!("<!-- {}: begin -->", self.subject);
        let end = format!("<!-- {}: end -->", self.subject);
        let mut table = format!("{begin}\n\n{}\n\n{head}", self.machine);
        for [what, figure, spread, aim] in &self.rows {
            // Writing to a `String` cannot fail.
            let _ = writeln!(table, "| {what} | {figure} | {spread} | {aim} |");
        }
        table.push('\n');
        let from = text.find(&begin).context("the file has a marker for the begin")?;
        let to = text.find(&end).context("the file has a marker for the end")?;
        fs::write(path, format!("{}{table}{}", &text[..from], &text[to..]))?;
        Ok(())
    }
}

/// A duration with as many digits as it deserves.
pub fn milliseconds(duration: Duration) -> String {
    match duration.as_secs_f64() * 1000.0 {
        less if less < 10.0 => format!("{less:.2} ms"),
        less if less < 100.0 => format!("{less:.1} ms"),
        more => format!("{more:.0} ms"),
    }
}
