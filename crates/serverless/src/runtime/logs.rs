//! What containers write: lines out of two pipes, a bounded memory of them, and a sink.
//!
//! A container is never held up for long by its own output and never fills anything: lines are
//! cut at a length, counted instead of kept above a rate, and only the last ones are remembered.
//!
//! Invariant: the memory of an instance's lines holds at most `LOG_LINES_KEPT_MAX` lines and
//! `LOG_BYTES_KEPT_MAX` bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::limits::{
    LOG_BYTES_KEPT_MAX, LOG_LINE_BYTES_MAX, LOG_LINES_KEPT_MAX, LOG_LINES_PER_SECOND_MAX,
};
use super::{InstanceId, LogLine, LogSink, Stream};

const READ_BYTES: usize = 64 * 1024;
/// A flooding container is read this much more slowly, so that it spends its own processor time
/// waiting rather than ours reading.
const FLOOD_PAUSE: Duration = Duration::from_millis(20);

/// The last lines of one instance.
#[derive(Debug, Default)]
pub(crate) struct LogTail {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl LogTail {
    fn push(&self, line: LogLine) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.text.len();
        kept.lines.push_back(line);
        while kept.lines.len() > LOG_LINES_KEPT_MAX || kept.bytes > LOG_BYTES_KEPT_MAX {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.text.len();
        }
    }

    /// The last lines, oldest first.
    pub(crate) fn last(&self, lines_max: usize) -> Vec<LogLine> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = kept.lines.len().saturating_sub(lines_max);
        kept.lines.iter().skip(skipped).cloned().collect()
    }
}

/// Where the lines of one output come from and go to.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) instance: InstanceId,
    pub(crate) container: Arc<str>,
    pub(crate) stream: Stream,
    pub(crate) tail: Arc<LogTail>,
    pub(crate) sink: Arc<dyn LogSink>,
}

impl Output {
    /// Reads the pipe to its end.
    pub(crate) async fn follow(self, mut pipe: pipe::Receiver) {
        let mut follower = Follower::new(self);
        let mut bytes = vec![0; READ_BYTES];
        loop {
            // A read error on a pipe means that there is nothing more to come.
            let count = pipe.read(&mut bytes).await.unwrap_or(0);
            if count == 0 {
                break;
            }
            follower.take(&bytes[..count]).await;
        }
        follower.finish();
    }

    fn deliver(&self, text: &[u8], dropped_before: u64) {
        let line = LogLine {
            at: SystemTime::now(),
            container: Arc::clone(&self.container),
            stream: self.stream,
            text: String::from_utf8_lossy(text).into_owned(),
            dropped_before,
        };
        self.sink.line(&self.instance, &line);
        self.tail.push(line);
    }
}

/// Turns the bytes of one output into lines, as they come.
#[derive(Debug)]
pub(crate) struct Follower {
    output: Output,
    splitter: Splitter,
    rate: Rate,
}

impl Follower {
    pub(crate) fn new(output: Output) -> Follower {
        Follower { output, splitter: Splitter::default(), rate: Rate::new(Instant::now()) }
    }

    /// Takes some bytes; takes its time when they are a flood.
    pub(crate) async fn take(&mut self, bytes: &[u8]) {
        let Follower { output, splitter, rate } = self;
        let mut flooded = false;
        let now = Instant::now();
        splitter.take(bytes, |text| match rate.allows(now) {
            Some(dropped_before) => output.deliver(text, dropped_before),
            None => flooded = true,
        });
        if flooded {
            tokio::time::sleep(FLOOD_PAUSE).await;
        }
    }

    /// There are no more bytes.
    pub(crate) fn finish(self) {
        let Follower { output, splitter, rate } = self;
        splitter.finish(|text| output.deliver(text, rate.dropped));
    }
}

/// Cuts bytes into lines of bounded length.
#[derive(Debug, Default)]
struct Splitter {
    line: Vec<u8>,
}

impl Splitter {
    fn take(&mut self, bytes: &[u8], mut deliver: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = LOG_LINE_BYTES_MAX - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if piece.len() > text.len() {
                deliver(self.line.strip_suffix(b"\r").unwrap_or(&self.line));
                self.line.clear();
            }
        }
    }

    /// The last line may have no end.
    fn finish(self, mut deliver: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            deliver(&self.line);
        }
    }
}

/// How many lines pass in each second.
#[derive(Debug)]
struct Rate {
    second_began: Instant,
    passed: u32,
    dropped: u64,
}

impl Rate {
    fn new(now: Instant) -> Rate {
        Rate { second_began: now, passed: 0, dropped: 0 }
    }

    /// Whether a line passes now; if so, how many were dropped since the last one that did.
    fn allows(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.second_began) >= Duration::from_secs(1) {
            self.second_began = now;
            self.passed = 0;
        }
        if self.passed >= LOG_LINES_PER_SECOND_MAX {
            self.dropped += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&str]) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut lines = Vec::new();
        let mut keep = |text: &[u8]| lines.push(String::from_utf8_lossy(text).into_owned());
        for piece in pieces {
            splitter.take(piece.as_bytes(), &mut keep);
        }
        splitter.finish(keep);
        lines
    }

    #[test]
    fn lines_come_out_whole_however_they_were_cut_on_the_way() {
        assert_eq!(split(&["a\nb", "c\r\n", "\n", "d"]), ["a", "bc", "", "d"]);
    }

    #[test]
    fn a_line_without_an_end_is_cut_at_the_limit() {
        let long = "x".repeat(LOG_LINE_BYTES_MAX + 10);
        let lines = split(&[&long, &long, "\nnext\n"]);
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LOG_LINE_BYTES_MAX, 4]);
    }

    #[test]
    fn lines_above_the_rate_are_counted_and_told_with_the_next_one() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let passed = (0..LOG_LINES_PER_SECOND_MAX + 7).filter(|_| rate.allows(start).is_some());
        assert_eq!(passed.count(), LOG_LINES_PER_SECOND_MAX as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(rate.allows(later), Some(7));
        assert_eq!(rate.allows(later), Some(0));
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let tail = LogTail::default();
        for number in 0..LOG_LINES_KEPT_MAX + 5 {
            tail.push(LogLine {
                at: SystemTime::UNIX_EPOCH,
                container: "c".into(),
                stream: Stream::Stdout,
                text: number.to_string(),
                dropped_before: 0,
            });
        }
        let last = tail.last(LOG_LINES_KEPT_MAX * 2);
        assert_eq!(last.len(), LOG_LINES_KEPT_MAX);
        assert_eq!(last[0].text, "5");
        assert_eq!(tail.last(1)[0].text, (LOG_LINES_KEPT_MAX + 4).to_string());
    }
}
