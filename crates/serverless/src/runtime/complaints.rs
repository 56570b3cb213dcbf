//! What libcontainer complains of inside a container's first process, brought back to the helper.
//!
//! The library reports a failed step by name only and leaves the cause to its log. The helper
//! listens to that log, and since the container's first process is its fork, the cause can be
//! written into the pipe the helper waits on anyway.
//!
//! Invariant: one line for each complaint, written at once, so that the first line is the cause.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

const NO_PIPE: RawFd = -1;

static PIPE: AtomicI32 = AtomicI32::new(NO_PIPE);

/// Starts listening; called once by the helper.
pub(crate) fn listen() {
    // Somebody who listens already keeps listening.
    let _ = tracing::subscriber::set_global_default(Complaints);
}

/// From now on complaints go into this pipe, which must stay open until `silence`.
pub(crate) fn write_to(pipe: RawFd) {
    PIPE.store(pipe, Ordering::Relaxed);
}

/// Complaints go nowhere.
pub(crate) fn silence() {
    PIPE.store(NO_PIPE, Ordering::Relaxed);
}

struct Complaints;

impl Subscriber for Complaints {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let pipe = PIPE.load(Ordering::Relaxed);
        if pipe == NO_PIPE {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        // SAFETY: `write_to` got a descriptor that stays open until `silence`.
        #[allow(unsafe_code)]
        let pipe = unsafe { BorrowedFd::borrow_raw(pipe) };
        if let Ok(pipe) = pipe.try_clone_to_owned() {
            // The helper is gone when this fails, and nobody wants to know any more.
            let _ = File::from(pipe).write_all(line.text().as_bytes());
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn text(self) -> String {
        format!("{}{}", self.message, self.fields).replace('\n', " ") + "\n"
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}: {value:?}"),
        };
    }
}
