//! HTTP/2 bodies as the relay knows them.

use crate::relay::{Drain, Source, SourceError};
use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use std::io;
use std::task::{Context, Poll, ready};

/// A body arriving on a stream.
#[derive(Debug)]
pub(crate) struct StreamIn {
    stream: RecvStream,
    chunk: Bytes,
    trailers: Option<HeaderMap>,
    done: bool,
}

impl StreamIn {
    pub(crate) fn new(stream: RecvStream) -> StreamIn {
        let done = stream.is_end_stream();
        StreamIn { stream, chunk: Bytes::new(), trailers: None, done }
    }
}

impl Source for StreamIn {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        let failed = |error| SourceError::Io(io::Error::other(error));
        while self.chunk.is_empty() && !self.done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Poll::Ready(Err(failed(error))),
                None => {
                    self.trailers = ready!(self.stream.poll_trailers(cx)).map_err(failed)?;
                    self.done = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn chunk(&self) -> &[u8] {
        &self.chunk
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
        // The only error is releasing more than was received.
        let _ = self.stream.flow_control().release_capacity(count);
        if self.chunk.is_empty() && self.stream.is_end_stream() {
            self.done = true;
        }
    }

    fn is_done(&self) -> bool {
        self.done && self.chunk.is_empty()
    }

    fn is_last(&self) -> bool {
        self.done || self.stream.is_end_stream()
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    fn end_passed(&self) -> bool {
        false
    }
}

/// A body leaving on a stream.
#[derive(Debug)]
pub(crate) struct StreamOut {
    stream: Option<SendStream<Bytes>>,
    ended: bool,
    sent: u64,
}

impl StreamOut {
    /// `stream` is absent when the head could not be sent; `ended` says that the head was everything.
    pub(crate) fn new(stream: Option<SendStream<Bytes>>, ended: bool) -> StreamOut {
        StreamOut { stream, ended, sent: 0 }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Tells the other side that the rest will not come.
    pub(crate) fn reset(&mut self, reason: Reason) {
        if let Some(stream) = &mut self.stream
            && !self.ended
        {
            stream.send_reset(reason);
        }
    }

    fn stream(&mut self) -> io::Result<&mut SendStream<Bytes>> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drain for StreamOut {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        let stream = self.stream()?;
        stream.reserve_capacity(data.len());
        let mut room = stream.capacity();
        while room == 0 {
            room = match ready!(stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = room.min(data.len());
        let ends = last && count == data.len();
        let piece = Bytes::copy_from_slice(&data[..count]);
        stream.send_data(piece, ends).map_err(io::Error::other)?;
        self.ended |= ends;
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_finish(
        &mut self,
        _cx: &mut Context<'_>,
        trailers: &mut Option<HeaderMap>,
        _end_passed: bool,
    ) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            let stream = self.stream()?;
            let sent = match trailers.take() {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            };
            sent.map_err(io::Error::other)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        match self.stream()?.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}
