//! What a build says, line by line, kept in a bounded text that can be read while it grows.
//!
//! Invariant: a log never has more than [`LOG_BYTES_MAX`] bytes and ends with a line end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::limits::{LINES_IN_FAILURE, LOG_BYTES_MAX};
use crate::runtime::{InstanceId, LogLine, LogSink};

const CUT: &str = "[the log is full: what follows is left out]\n";

/// The log of one build.
#[derive(Debug, Default)]
pub struct BuildLog {
    text: Mutex<String>,
}

impl BuildLog {
    /// Adds a line.
    pub fn say(&self, line: &str) {
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if text.len() + line.len() + 1 + CUT.len() <= LOG_BYTES_MAX {
            text.push_str(line);
            text.push('\n');
        } else if !text.ends_with(CUT) {
            text.push_str(CUT);
        }
    }

    /// Everything said so far.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Brings the lines of containers to the logs of their builds.
#[derive(Debug, Default)]
pub(crate) struct Router {
    logs: Mutex<HashMap<InstanceId, Arc<BuildLog>>>,
}

impl Router {
    /// From now on the lines of this container go to this log, until the answer is dropped.
    pub(crate) fn follow(self: &Arc<Self>, id: &InstanceId, log: &Arc<BuildLog>) -> Following {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.insert(id.clone(), Arc::clone(log));
        Following { router: Arc::clone(self), id: id.clone() }
    }
}

impl LogSink for Router {
    fn line(&self, instance: &InstanceId, line: &LogLine) {
        let logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = logs.get(instance) {
            if line.dropped_before > 0 {
                log.say(&format!("[{} lines came too fast]", line.dropped_before));
            }
            log.say(&line.text);
        }
    }
}

/// Ends when dropped.
#[derive(Debug)]
pub(crate) struct Following {
    router: Arc<Router>,
    id: InstanceId,
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut logs = self.router.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.remove(&self.id);
    }
}

/// What the tools themselves call the reason, or else the last lines they wrote.
pub(crate) fn reason(text: &str) -> String {
    let complains = |line: &&str| {
        let line = line.trim_start();
        let marks = ["npm error", "npm ERR!", "ERROR:", "error:", "Error:"];
        marks.iter().any(|mark| line.starts_with(mark))
    };
    // npm points to a file of the build that is gone when anybody reads this.
    let is_pointer =
        |line: &&str| line.contains("A complete log of this run") || line.contains("debug-0.log");
    let mut lines: Vec<&str> = text.lines().filter(complains).filter(|l| !is_pointer(l)).collect();
    if lines.is_empty() {
        lines = text.lines().filter(|line| !line.trim().is_empty()).collect();
    }
    lines[lines.len().saturating_sub(LINES_IN_FAILURE)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_the_tools_own_words() {
        let npm = "added 3 packages\nnpm error code E404\nnpm error 404 Not Found - nowhere\n\
                   npm error A complete log of this run can be found in: /scratch/x-debug-0.log\n";
        assert_eq!(reason(npm), "npm error code E404\nnpm error 404 Not Found - nowhere");
        let pip = "Collecting nothing\nERROR: No matching distribution found for nothing\n";
        assert_eq!(reason(pip), "ERROR: No matching distribution found for nothing");
        assert_eq!(reason("one\n\ntwo\n"), "one\ntwo");
    }

    #[test]
    fn a_log_that_is_full_says_so_once() {
        let log = BuildLog::default();
        for _ in 0..(LOG_BYTES_MAX / 1024 + 8) {
            log.say(&"x".repeat(1024));
        }
        let text = log.text();
        assert!(text.len() <= LOG_BYTES_MAX);
        assert_eq!(text.matches("the log is full").count(), 1);
    }
}
