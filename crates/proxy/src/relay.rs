//! A body on its way from one side to the other: one loop for every pair of protocols.
//!
//! Nothing is read that could not be written on, so a slow reader slows its writer down and a body of any
//! size passes through one buffer. What is there is always sent before more is waited for, so a stream
//! is never held back.

use http::HeaderMap;
use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};

/// Why a body ended before its end.
#[derive(Debug)]
pub(crate) enum SourceError {
    /// The connection failed.
    Io(io::Error),
    /// The connection ended inside the body.
    EarlyEnd,
    /// The body breaks the rules of its framing.
    Malformed(&'static str),
}

impl fmt::Display for SourceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceError::Io(error) => error.fmt(out),
            SourceError::EarlyEnd => out.write_str("the connection ended"),
            SourceError::Malformed(reason) => out.write_str(reason),
        }
    }
}

/// A body that can be read.
pub(crate) trait Source {
    /// Ready when `chunk` is not empty or the body `is_done`.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>>;
    /// The bytes that are there.
    fn chunk(&self) -> &[u8];
    /// Forgets the first bytes of the chunk.
    fn consume(&mut self, count: usize);
    /// Whether nothing is left.
    fn is_done(&self) -> bool;
    /// Whether nothing follows the chunk.
    fn is_last(&self) -> bool;
    /// The trailer fields, once the body is done.
    fn take_trailers(&mut self) -> Option<HeaderMap>;
    /// Whether the end of the framing was part of the chunks.
    fn end_passed(&self) -> bool;
}

/// A place a body can be written to.
pub(crate) trait Drain {
    /// Writes some of `data`; `last` says that nothing follows it.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>>;
    /// Ends the body and sends everything on its way. Called until it is ready.
    fn poll_finish(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Option<HeaderMap>,
        end_passed: bool,
    ) -> Poll<io::Result<()>>;
    /// Sends on its way what was written.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Which side ended a relay.
#[derive(Debug)]
pub(crate) enum RelayError {
    /// The side that sends the body.
    Source(SourceError),
    /// The side that receives it.
    Drain(io::Error),
}

/// One body in transit.
#[derive(Debug)]
pub(crate) struct Relay<S, D> {
    pub(crate) source: S,
    pub(crate) drain: D,
    /// Bytes passed on so far; it moves exactly when the relay makes progress.
    pub(crate) passed: u64,
    trailers: Option<HeaderMap>,
    ended: bool,
    failed: Option<SourceError>,
}

impl<S: Source, D: Drain> Relay<S, D> {
    pub(crate) fn new(source: S, drain: D) -> Relay<S, D> {
        Relay { source, drain, passed: 0, trailers: None, ended: false, failed: None }
    }

    /// Whether the whole body has been passed on.
    pub(crate) fn is_finished(&self) -> bool {
        self.ended
    }

    /// Passes on what there is; ready at the end.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayError>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            // What arrived before the failure is still delivered.
            if self.failed.is_some() {
                ready!(self.drain.poll_flush(cx)).map_err(RelayError::Drain)?;
            }
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(RelayError::Source(error)));
            }
            match self.source.poll_ready(cx) {
                Poll::Ready(Err(error)) => self.failed = Some(error),
                Poll::Pending => {
                    ready!(self.drain.poll_flush(cx)).map_err(RelayError::Drain)?;
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) if self.source.is_done() => {
                    if self.trailers.is_none() {
                        self.trailers = self.source.take_trailers();
                    }
                    let end_passed = self.source.end_passed();
                    ready!(self.drain.poll_finish(cx, &mut self.trailers, end_passed))
                        .map_err(RelayError::Drain)?;
                    self.ended = true;
                }
                Poll::Ready(Ok(())) => {
                    let last = self.source.is_last();
                    let written = ready!(self.drain.poll_write(cx, self.source.chunk(), last))
                        .map_err(RelayError::Drain)?;
                    self.source.consume(written);
                    self.passed += written as u64;
                }
            }
        }
    }
}

impl<S: Source> Source for &mut S {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        (**self).poll_ready(cx)
    }
    fn chunk(&self) -> &[u8] {
        (**self).chunk()
    }
    fn consume(&mut self, count: usize) {
        (**self).consume(count);
    }
    fn is_done(&self) -> bool {
        (**self).is_done()
    }
    fn is_last(&self) -> bool {
        (**self).is_last()
    }
    fn take_trailers(&mut self) -> Option<HeaderMap> {
        (**self).take_trailers()
    }
    fn end_passed(&self) -> bool {
        (**self).end_passed()
    }
}
