//! Reading and writing HTTP/1.1 bodies on a connection whose two directions are used at once.

use super::body::{Decoder, Framing};
use crate::buffer::Buffer;
use crate::fields::{Sink, put_number};
use crate::relay::{Drain, Source, SourceError};
use http::HeaderMap;
use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// Body bytes up to this count are copied behind a head so that both leave in one write.
const COALESCE_BYTES_MAX: usize = 2048;

/// Bytes waiting to be written, and how many of them are already gone.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    pub(crate) fn new(bytes: Vec<u8>) -> Outgoing {
        Outgoing { bytes, written: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// Writes everything; ready when nothing is left.
    pub(crate) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        io: &RefCell<S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let rest = &self.bytes[self.written..];
            let count = ready!(Pin::new(&mut *io.borrow_mut()).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room behind what is still waiting; forgets what is gone.
    pub(crate) fn open(&mut self) -> &mut Vec<u8> {
        if self.is_empty() {
            self.bytes.clear();
            self.written = 0;
        }
        &mut self.bytes
    }

    /// Writes what is waiting and some of `data` at once; the count is of `data` alone.
    fn poll_send_with<S: AsyncWrite + Unpin>(
        &mut self,
        io: &RefCell<S>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let rest = &self.bytes[self.written..];
            let mut stream = io.borrow_mut();
            let slices = [IoSlice::new(rest), IoSlice::new(data)];
            let count = if rest.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, data))?
            } else {
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let waiting = rest.len();
            if count > waiting || waiting == 0 {
                self.written = self.bytes.len();
                return Poll::Ready(Ok(count - waiting));
            }
            self.written += count;
        }
    }
}

/// A body arriving on a connection.
#[derive(Debug)]
pub(crate) struct BodyIn<'a, S> {
    io: &'a RefCell<S>,
    pub(crate) buffer: &'a mut Buffer,
    pub(crate) decoder: Decoder,
    /// Bytes of data at the front of the buffer.
    data: usize,
    /// Bytes of framing behind the data.
    tail: usize,
}

impl<'a, S> BodyIn<'a, S> {
    /// The body that begins at the front of `buffer`.
    pub(crate) fn new(
        io: &'a RefCell<S>,
        buffer: &'a mut Buffer,
        framing: Framing,
        raw: bool,
    ) -> BodyIn<'a, S> {
        BodyIn { io, buffer, decoder: Decoder::new(framing, raw), data: 0, tail: 0 }
    }
}

impl<S: AsyncRead + Unpin> BodyIn<'_, S> {
    /// From here on the body is whatever the connection carries, until it ends.
    pub(crate) fn become_tunnel(&mut self) {
        self.decoder = Decoder::new(Framing::UntilClose, false);
    }

    /// Reads what follows the body.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.poll_fill(&mut *self.io.borrow_mut(), cx)
    }
}

impl<S: AsyncRead + Unpin> Source for BodyIn<'_, S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        while self.data == 0 && !self.decoder.is_done() {
            if !self.buffer.is_empty() {
                let step = self
                    .decoder
                    .step(self.buffer.data())
                    .map_err(|malformed| SourceError::Malformed(malformed.0))?;
                if step.data.is_empty() {
                    self.buffer.consume(step.consumed);
                } else {
                    self.buffer.consume(step.data.start);
                    self.data = step.data.len();
                    self.tail = step.consumed - step.data.end;
                }
                if step.consumed > 0 {
                    continue;
                }
            }
            let filled = self.buffer.poll_fill(&mut *self.io.borrow_mut(), cx);
            match ready!(filled) {
                Ok(0) if self.decoder.ends_at_close() => self.decoder.finish(),
                Ok(0) => return Poll::Ready(Err(SourceError::EarlyEnd)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(SourceError::Io(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn chunk(&self) -> &[u8] {
        &self.buffer.data()[..self.data]
    }

    fn consume(&mut self, count: usize) {
        self.data -= count;
        let tail = if self.data == 0 { std::mem::take(&mut self.tail) } else { 0 };
        self.buffer.consume(count + tail);
    }

    fn is_done(&self) -> bool {
        self.data == 0 && self.decoder.is_done()
    }

    fn is_last(&self) -> bool {
        self.decoder.is_done() && !self.decoder.has_trailers()
    }

    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.decoder.take_trailers()
    }

    fn end_passed(&self) -> bool {
        self.decoder.end_passed()
    }
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As it comes: its length was declared, or the connection ends with it.
    Plain,
    /// As chunks that are already framed.
    Framed,
    /// As chunks that are framed here.
    Chunked,
}

/// A head and the body behind it, leaving on a connection.
#[derive(Debug)]
pub(crate) struct BodyOut<'a, S> {
    io: &'a RefCell<S>,
    pub(crate) outgoing: Outgoing,
    encoding: Encoding,
    end_written: bool,
    sent: u64,
}

impl<'a, S> BodyOut<'a, S> {
    /// Writes `head` first.
    pub(crate) fn new(io: &'a RefCell<S>, head: Vec<u8>, encoding: Encoding) -> BodyOut<'a, S> {
        let sent = head.len() as u64;
        BodyOut { io, outgoing: Outgoing::new(head), encoding, end_written: false, sent }
    }

    /// Goes on behind what is already waiting.
    pub(crate) fn resume(
        io: &'a RefCell<S>,
        outgoing: Outgoing,
        encoding: Encoding,
    ) -> BodyOut<'a, S> {
        let sent = outgoing.bytes.len() as u64;
        BodyOut { io, outgoing, encoding, end_written: false, sent }
    }

    /// The bytes it was made with, for sending them again; only where nothing was written behind them.
    pub(crate) fn into_head(self) -> Vec<u8> {
        self.outgoing.bytes
    }

    /// Bytes given to the connection, head and framing included.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }
}

impl<S: AsyncWrite + Unpin> BodyOut<'_, S> {
    fn write_end(&mut self, trailers: &mut Option<HeaderMap>, end_passed: bool) {
        match self.encoding {
            Encoding::Plain => return,
            Encoding::Framed if end_passed => return,
            Encoding::Framed | Encoding::Chunked => {}
        }
        let bytes = self.outgoing.open();
        let before = bytes.len();
        if self.encoding == Encoding::Chunked {
            bytes.extend_from_slice(b"0\r\n");
        }
        for (name, value) in trailers.take().iter().flatten() {
            bytes.put(name.as_str().as_bytes(), value.as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        self.sent += (bytes.len() - before) as u64;
    }
}

impl<S: AsyncWrite + Unpin> Drain for BodyOut<'_, S> {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        _last: bool,
    ) -> Poll<io::Result<usize>> {
        if self.encoding == Encoding::Chunked {
            ready!(self.poll_head(cx, data.len()))?;
            let bytes = self.outgoing.open();
            let before = bytes.len();
            write!(bytes, "{:x}\r\n", data.len())?;
            bytes.extend_from_slice(data);
            bytes.extend_from_slice(b"\r\n");
            self.sent += (bytes.len() - before) as u64;
            return Poll::Ready(Ok(data.len()));
        }
        let count = if !self.outgoing.is_empty() && data.len() <= COALESCE_BYTES_MAX {
            if self.outgoing.bytes.len() > 2 * crate::limits::BUFFER_BYTES {
                ready!(self.outgoing.poll_send(self.io, cx))?;
            }
            self.outgoing.open().extend_from_slice(data);
            data.len()
        } else {
            ready!(self.outgoing.poll_send_with(self.io, cx, data))?
        };
        self.sent += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_finish(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Option<HeaderMap>,
        end_passed: bool,
    ) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.end_written, true) {
            self.write_end(trailers, end_passed);
        }
        self.poll_flush(cx)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.outgoing.poll_send(self.io, cx))?;
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> BodyOut<'_, S> {
    /// Makes room for a chunk of `size` behind what is waiting.
    fn poll_head(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<io::Result<()>> {
        let waiting = self.outgoing.bytes.len();
        let small = waiting + size <= COALESCE_BYTES_MAX * 4;
        if small { Poll::Ready(Ok(())) } else { self.outgoing.poll_send(self.io, cx) }
    }
}

/// Appends a status line with the standard reason.
pub(crate) fn put_status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(out, u64::from(status));
    out.push(b' ');
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason());
    out.extend_from_slice(reason.unwrap_or("").as_bytes());
    out.extend_from_slice(b"\r\n");
}
