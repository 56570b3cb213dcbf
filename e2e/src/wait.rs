//! Waiting for a condition with a deadline.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(2);

/// Looks at a condition until it gives a value; an error that names `what` once `limit` has passed.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(INTERVAL);
    }
}

/// Like [`until`] for something that can fail meanwhile; the last failure is told at the deadline.
pub fn until_ok<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut last = None;
    let found = until(what, limit, || attempt().map_err(|error| last = Some(error)).ok());
    match (found, last) {
        (Err(waited), Some(last)) => Err(last.context(waited)),
        (found, _) => found,
    }
}
