//! The access log: JSON lines in the field names of Google's request log, never waited for.
//!
//! A worker writes lines into a batch of its own and hands full batches to one writer thread through a
//! bounded queue. When the disk cannot follow, lines are dropped and counted.
//!
//! Invariant: a worker never blocks on the log, and at most `log_bytes_max` bytes wait for the disk.

use crate::metrics::Registry;
use std::cell::{Cell, RefCell};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A batch is handed over when it has grown to this many bytes, or after [`BATCH_AGE_MAX`].
const BATCH_BYTES: usize = 64 << 10;

/// Written batches kept for the workers to fill again.
const SPARE_BATCHES_MAX: usize = 4;

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

/// Where entries go that Cloud Logging is to show: whoever keeps them.
pub trait RequestLog: Send + Sync + 'static {
    /// Takes finished entries, each a JSON object on a line of its own. Called from one thread, which may
    /// take its time: what does not fit meanwhile is dropped and counted.
    fn take(&self, lines: &[u8]);
}

impl std::fmt::Debug for dyn RequestLog {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("RequestLog")
    }
}

/// Hands every batch to a [`RequestLog`] as it is.
struct Handing(Arc<dyn RequestLog>);

impl Write for Handing {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.take(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

/// What the writer thread and the workers share.
#[derive(Debug, Default)]
struct Shared {
    /// Bytes that wait for the disk.
    waiting: AtomicUsize,
    /// Empty batches, so that memory is not given back to the system and asked for again.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// The writer thread and the way to it.
#[derive(Debug)]
pub(crate) struct LogWriter {
    sender: Option<Sender<Batch>>,
    shared: Arc<Shared>,
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
        LogWriter::spawn(out).map(Some)
    }

    /// Starts the thread that hands entries to whoever keeps them.
    pub(crate) fn handing_to(log: &Arc<dyn RequestLog>) -> io::Result<LogWriter> {
        LogWriter::spawn(Box::new(Handing(log.clone())))
    }

    fn spawn(out: Box<dyn Write + Send>) -> io::Result<LogWriter> {
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared::default());
        let its_shared = shared.clone();
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_batches(out, &receiver, &its_shared))?;
        Ok(LogWriter { sender: Some(sender), shared, thread: Some(thread) })
    }

    /// The end a worker writes to.
    pub(crate) fn worker(&self, registry: &Arc<Registry>, bytes_max: usize) -> Option<WorkerLog> {
        Some(WorkerLog {
            batch: RefCell::new(Batch { bytes: Vec::new(), lines: 0 }),
            sender: self.sender.clone()?,
            shared: self.shared.clone(),
            registry: registry.clone(),
            bytes_max,
            started: tokio::sync::Notify::new(),
            second: Cell::default(),
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

fn write_batches(mut out: Box<dyn Write + Send>, batches: &Receiver<Batch>, shared: &Shared) {
    for mut batch in batches {
        if let Err(error) = out.write_all(&batch.bytes).and_then(|()| out.flush()) {
            tracing::warn!(%error, "could not write the access log");
        }
        shared.waiting.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
        batch.bytes.clear();
        let mut spare = shared.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_BATCHES_MAX {
            spare.push(batch.bytes);
        }
    }
}

/// A worker's end of the log.
#[derive(Debug)]
pub(crate) struct WorkerLog {
    batch: RefCell<Batch>,
    sender: Sender<Batch>,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    bytes_max: usize,
    started: tokio::sync::Notify,
    /// The second that was written last, and its text.
    second: Cell<(u64, SecondText)>,
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

    /// Appends an RFC 3339 time with microseconds.
    pub(crate) fn put_time(&self, out: &mut Vec<u8>, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (mut second, mut text) = self.second.get();
        if second != since.as_secs() || text[0] == 0 {
            (second, text) = (since.as_secs(), second_text(since.as_secs()));
            self.second.set((second, text));
        }
        out.extend_from_slice(&text);
        let mut micros = *b"000000Z";
        put_digits(&mut micros[..6], u64::from(since.subsec_micros()));
        out.extend_from_slice(&micros);
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

    /// Memory for a batch; a worker does not wait for the lock of the spare ones.
    fn empty_batch(&self) -> Vec<u8> {
        let spare = self.shared.spare.try_lock().ok().and_then(|mut spare| spare.pop());
        spare.unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES + 2048))
    }

    fn hand_over(&self, batch: &mut Batch) {
        if batch.bytes.is_empty() {
            return;
        }
        let size = batch.bytes.len();
        let fits = self.shared.waiting.fetch_add(size, Ordering::Relaxed) + size <= self.bytes_max;
        if fits {
            let bytes = std::mem::replace(&mut batch.bytes, self.empty_batch());
            let lines = std::mem::take(&mut batch.lines);
            if self.sender.send(Batch { bytes, lines }).is_ok() {
                return;
            }
        }
        self.shared.waiting.fetch_sub(size, Ordering::Relaxed);
        let lost = std::mem::take(&mut batch.lines);
        batch.bytes.clear();
        self.registry.log_lines_dropped.fetch_add(lost, Ordering::Relaxed);
    }
}

/// Appends a JSON string; bytes that are not UTF-8 become the replacement character.
pub(crate) fn put_json(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    put_json_text(out, text);
    out.push(b'"');
}

/// Appends what stands between the quotes of a JSON string.
pub(crate) fn put_json_text(out: &mut Vec<u8>, text: &[u8]) {
    let plain = |byte: &u8| (*byte >= 0x20) & (*byte <= 0x7e) & (*byte != b'"') & (*byte != b'\\');
    let all_plain = |bytes: &[u8]| bytes.iter().fold(true, |all, byte| all & plain(byte));
    // Pieces of a fixed size, and no way out within one, let the compiler look at all its bytes at once.
    let (pieces, rest) = text.as_chunks::<8>();
    if pieces.iter().all(|piece| all_plain(piece)) && all_plain(rest) {
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
}

/// A time up to the point behind its seconds.
type SecondText = [u8; 20];

fn second_text(since_epoch: u64) -> SecondText {
    let (days, seconds) = (since_epoch / 86_400, since_epoch % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.";
    put_digits(&mut text[..4], year);
    put_digits(&mut text[5..7], month);
    put_digits(&mut text[8..10], day);
    put_digits(&mut text[11..13], seconds / 3600);
    put_digits(&mut text[14..16], seconds / 60 % 60);
    put_digits(&mut text[17..19], seconds % 60);
    text
}

/// Fills `out` with the last digits of `number`.
pub(crate) fn put_digits(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789"[(number % 10) as usize];
        number /= 10;
    }
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
        let (sender, _receiver) = channel();
        let writer = LogWriter { sender: Some(sender), shared: Arc::default(), thread: None };
        let log = writer.worker(&Arc::default(), BATCH_BYTES).unwrap();
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, 5, "2000-02-29T00:00:00.000005Z"),
            (1_795_533_051, 999_999, "2026-11-24T15:10:51.999999Z"),
            (1_795_533_051, 42, "2026-11-24T15:10:51.000042Z"),
        ] {
            let mut out = Vec::new();
            log.put_time(&mut out, UNIX_EPOCH + Duration::new(seconds, micros * 1000));
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
        let writer = LogWriter { sender: Some(sender), shared: Arc::default(), thread: None };
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
