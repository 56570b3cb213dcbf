//! Counts what a client makes us do without asking for anything.
//!
//! Frames that carry no request and no body (PING, SETTINGS, RST_STREAM, PRIORITY, WINDOW_UPDATE,
//! CONTINUATION, empty DATA, unknown types) are paid for from an allowance. Time and the responses we
//! write refill it, so a client that really downloads never runs out, and a flood ends its connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;
/// Every this many bytes of responses pay for one frame.
const BYTES_PER_FRAME: u32 = 64;
/// A reset costs more: it can make us begin and drop a whole request.
const RESET_COST: u32 = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// A connection whose frames are counted.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    stream: S,
    allowance: Allowance,
    frames: Frames,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    max: u32,
    refill_per_second: u32,
    refilled_at: Instant,
    written: u32,
}

impl Allowance {
    fn spend(&mut self, cost: u32) -> bool {
        if self.left < cost {
            let seconds = self.refilled_at.elapsed().as_secs();
            let refill = u64::from(self.refill_per_second).saturating_mul(seconds);
            if refill > 0 {
                self.refilled_at = Instant::now();
            }
            self.earn(u32::try_from(refill).unwrap_or(u32::MAX));
        }
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    fn earn(&mut self, count: u32) {
        self.left = self.left.saturating_add(count).min(self.max);
    }

    fn written(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.earn(self.written / BYTES_PER_FRAME);
        self.written %= BYTES_PER_FRAME;
    }
}

/// Follows frame boundaries through a stream of bytes.
#[derive(Debug)]
struct Frames {
    /// Bytes to pass over: the preface first, then each frame's payload.
    skip: usize,
    header: [u8; HEADER_BYTES],
    filled: usize,
}

impl Frames {
    /// Calls `visit` with the length, type and flags of every frame header that `data` completes.
    fn follow(&mut self, mut data: &[u8], mut visit: impl FnMut(usize, u8, u8)) {
        while !data.is_empty() {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = &data[skipped..];
            let count = data.len().min(HEADER_BYTES - self.filled);
            self.header[self.filled..self.filled + count].copy_from_slice(&data[..count]);
            self.filled += count;
            data = &data[count..];
            if self.filled == HEADER_BYTES {
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.filled = 0;
                visit(self.skip, kind, flags);
            }
        }
    }
}

/// What a frame costs.
fn cost(length: usize, kind: u8, flags: u8) -> u32 {
    match kind {
        DATA if length == 0 && flags & END_STREAM == 0 => 1,
        DATA | HEADERS => 0,
        RST_STREAM => RESET_COST,
        _ => 1,
    }
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S, max: u32, refill_per_second: u32) -> Metered<S> {
        let refilled_at = Instant::now();
        Metered {
            stream,
            allowance: Allowance { left: max, max, refill_per_second, refilled_at, written: 0 },
            frames: Frames { skip: PREFACE_BYTES, header: [0; HEADER_BYTES], filled: 0 },
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let metered = &mut *self;
        let mut within = true;
        metered.frames.follow(&buffer.filled()[before..], |length, kind, flags| {
            within &= metered.allowance.spend(cost(length, kind, flags));
        });
        if within {
            Poll::Ready(Ok(()))
        } else {
            Poll::Ready(Err(io::Error::other("too many frames that ask for nothing")))
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        self.allowance.written(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices))?;
        self.allowance.written(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: usize, kind: u8, flags: u8) -> Vec<u8> {
        let size = u32::try_from(length).unwrap().to_be_bytes();
        let mut bytes = vec![size[1], size[2], size[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(bytes.len() + length, 0xff);
        bytes
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let mut wire = vec![b'P'; PREFACE_BYTES];
        for (length, kind) in [(0, 4), (5, 1), (300, 0), (8, 6), (0, 0)] {
            wire.extend(frame(length, kind, 0));
        }
        for step in 1..wire.len() {
            let mut frames = Frames { skip: PREFACE_BYTES, header: [0; 9], filled: 0 };
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                frames.follow(piece, |length, kind, _| seen.push((length, kind)));
            }
            assert_eq!(seen, [(0, 4), (5, 1), (300, 0), (8, 6), (0, 0)], "{step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_allowance_runs_out_and_comes_back_with_time_and_responses() {
        let mut metered = Metered::new((), 10, 5);
        assert!((0..10).all(|_| metered.allowance.spend(1)));
        assert!(!metered.allowance.spend(1));
        metered.allowance.written(130);
        assert!(metered.allowance.spend(2));
        assert!(!metered.allowance.spend(1));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!((0..5).all(|_| metered.allowance.spend(1)));
        assert!(!metered.allowance.spend(1));
    }
}
