//! What a person watches: one line a step, rewritten in place on a terminal, appended elsewhere.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};

/// Standard output as a list of steps.
#[derive(Debug)]
pub(crate) struct Screen {
    is_terminal: bool,
    shown: RefCell<String>,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        Screen { is_terminal: std::io::stdout().is_terminal(), shown: RefCell::default() }
    }

    /// A line that stands.
    pub(crate) fn line(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A step has begun.
    pub(crate) fn begin(&self, title: &str) {
        if self.is_terminal {
            self.write(&format!("{title} …"));
        }
        self.shown.borrow_mut().clear();
    }

    /// What the step that has begun is doing now; said once for each thing it does.
    pub(crate) fn progress(&self, title: &str, doing: &str) {
        if doing.is_empty() || *self.shown.borrow() == doing {
            return;
        }
        *self.shown.borrow_mut() = doing.to_owned();
        let line = match self.is_terminal {
            true => format!("\r\x1b[K{title} … {doing}"),
            false => format!("{title} … {doing}\n"),
        };
        self.write(&line);
    }

    /// The step is done; `how` says with what result.
    pub(crate) fn done(&self, title: &str, how: &str) {
        let again = if self.is_terminal { "\r\x1b[K" } else { "" };
        self.write(&format!("{again}{title}  ({how})\n"));
    }

    /// Whoever reads the output may have gone away; the server goes on.
    fn write(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
