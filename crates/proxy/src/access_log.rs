//! The access log: JSON lines in the field names of Google's request log, never waited for.
//!
//! A worker writes lines into a batch of its own and hands full batches to one writer thread through a
//! bounded queue. When the disk cannot follow, lines are dropped and counted.
//!
//! Invariant: a worker never blocks on the log, and at most `log_bytes_max` bytes wait for the disk.

use crate::metrics::Registry;
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A batch is handed over when it has grown to this many bytes, or after [`BATCH_AGE_MAX`].
const BATCH_BYTES: usize = 64 << 10;

/// How long a line may wait for its batch to fill.
pub(crate) const BATCH_AGE_MAX: Duration = Duration::from_millis(100);

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere: nothing is even formatted.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

/// The writer thread and the way to it.
#[derive(Debug)]
pub(crate) struct LogWriter {
    sender: Option<Sender<Batch>>,
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Opens the target and starts the thread; `None` when the log is off.
    pub(crate) fn start(target: &LogTarget) -> io::Result<Option<LogWriter>> {
        let out: Box<dyn Write + Send> = match target {
            LogTarget::Off => return Ok(None),
            LogTarget::Stdout => Box::new(io::stdout()),
            LogTarget::File(path) => {
                Box::new(OpenOptions::new().create(true).append(true).open(path)?)
            }
        };
        let (sender, receiver) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let waits = waiting.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_batches(out, &receiver, &waits))?;
        Ok(Some(LogWriter { sender: Some(sender), waiting, thread: Some(thread) }))
    }

    /// The end a worker writes to.
    pub(crate) fn worker(&self, registry: &Arc<Registry>, bytes_max: usize) -> Option<WorkerLog> {
        Some(WorkerLog {
            batch: RefCell::new(Batch { bytes: Vec::new(), lines: 0 }),
            sender: self.sender.clone()?,
            waiting: self.waiting.clone(),
            registry: registry.clone(),
            bytes_max,
            started: tokio::sync::Notify::new(),
        })
    }
}

impl Drop for LogWriter {
    /// Waits until everything handed over is written; the workers' ends are gone by now.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_batches(mut out: Box<dyn Write + Send>, batches: &Receiver<Batch>, waiting: &AtomicUsize) {
    for batch in batches {
        if let Err(error) = out.write_all(&batch.bytes).and_then(|()| out.flush()) {
            tracing::warn!(%error, "could not write the access log");
        }
        waiting.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
    }
}

/// A worker's end of the log.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    batch: RefCell<Batch>,
    sender: Sender<Batch>,
    waiting: Arc<AtomicUsize>,
    registry: Arc<Registry>,
    bytes_max: usize,
    started: tokio::sync::Notify,
}

impl WorkerLog {
    /// Adds one line, its newline included.
    pub(crate) fn push(&self, line: &[u8]) {
        let mut batch = self.batch.borrow_mut();
        if batch.bytes.is_empty() {
            self.started.notify_one();
        }
        batch.bytes.extend_from_slice(line);
        batch.lines += 1;
        if batch.bytes.len() >= BATCH_BYTES {
            self.hand_over(&mut batch);
        }
    }

    /// Hands over what has been written so far.
    pub(crate) fn flush(&self) {
        self.hand_over(&mut self.batch.borrow_mut());
    }

    /// Hands every batch over before it gets old; runs as long as the worker.
    pub(crate) async fn keep_fresh(&self) {
        loop {
            self.started.notified().await;
            tokio::time::sleep(BATCH_AGE_MAX).await;
            self.flush();
        }
    }

    fn hand_over(&self, batch: &mut Batch) {
        if batch.bytes.is_empty() {
            return;
        }
        let size = batch.bytes.len();
        let fits = self.waiting.fetch_add(size, Ordering::Relaxed) + size <= self.bytes_max;
        if fits {
            let bytes = std::mem::replace(&mut batch.bytes, Vec::with_capacity(BATCH_BYTES + 2048));
            let lines = std::mem::take(&mut batch.lines);
            if self.sender.send(Batch { bytes, lines }).is_ok() {
                return;
            }
        }
        self.waiting.fetch_sub(size, Ordering::Relaxed);
        let lost = std::mem::take(&mut batch.lines);
        batch.bytes.clear();
        self.registry.log_lines_dropped.fetch_add(lost, Ordering::Relaxed);
    }
}

/// Appends a JSON string; bytes that are not UTF-8 become the replacement character.
pub(crate) fn put_json(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
    if text.iter().all(plain) {
        out.extend_from_slice(text);
    } else {
        for character in String::from_utf8_lossy(text).chars() {
            match character {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                control if control < ' ' || control == '\x7f' => {
                    out.extend_from_slice(format!("\\u{:04x}", u32::from(control)).as_bytes());
                }
                other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
    out.push(b'"');
}

/// Appends an RFC 3339 time with microseconds.
pub(crate) fn put_time(out: &mut Vec<u8>, at: SystemTime) {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let mut put = |number: u64, digits: u32, end: u8| {
        for place in (0..digits).rev() {
            out.push(b"0123456789"[(number / 10u64.pow(place) % 10) as usize]);
        }
        out.push(end);
    };
    put(year, 4, b'-');
    put(month, 2, b'-');
    put(day, 2, b'T');
    put(seconds / 3600, 2, b':');
    put(seconds / 60 % 60, 2, b':');
    put(seconds % 60, 2, b'.');
    put(u64::from(since.subsec_micros()), 6, b'Z');
}

/// Year, month and day of a day since 1970 (the algorithm of Howard Hinnant's `civil_from_days`).
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000005Z"),
            (1_795_533_051, 999_999, "2026-11-24T15:10:51.999999Z"),
        ] {
            let mut out = Vec::new();
            put_time(&mut out, UNIX_EPOCH + Duration::new(seconds, micros * 1000));
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn any_bytes_become_a_json_string() {
        for text in [&b"plain"[..], b"quote\" back\\ \n\x00 \x7f", "grüße".as_bytes(), b"\xff\xfe"]
        {
            let mut out = Vec::new();
            put_json(&mut out, text);
            let read: String = serde_json::from_slice(&out).unwrap();
            assert_eq!(read, String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn what_the_disk_cannot_take_is_dropped_and_counted() {
        let registry = Arc::new(Registry::default());
        let (sender, receiver) = channel();
        let writer = LogWriter { sender: Some(sender), waiting: Arc::default(), thread: None };
        let log = writer.worker(&registry, 2 * BATCH_BYTES).unwrap();
        let line = [b'x'; 1024];
        for _ in 0..640 {
            log.push(&line);
        }
        log.flush();
        let kept: u64 = receiver.try_iter().map(|batch| batch.lines).sum();
        let dropped = registry.log_lines_dropped.load(Ordering::Relaxed);
        assert_eq!(kept + dropped, 640);
        assert!(kept >= 64 && dropped >= 400, "{kept} kept, {dropped} dropped");
    }
}
