//! The way back to an HTTP/1.1 client: heads, framing and bodies of responses.

use super::body::Framing;
use super::wire::{BodyOut, Encoding, Outgoing, put_status_line};
use crate::buffer::BufferPool;
use crate::fields::{Fields, put_number};
use crate::listening::Connection;
use crate::relay::Drain;
use crate::request::{ClientOut, ClientWriter, Reply};
use crate::rewrite;
use http::HeaderMap;
use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// The way back to an HTTP/1.1 client.
#[derive(Debug)]
pub(super) struct Writer<'a, S> {
    pub(super) io: &'a RefCell<S>,
    pub(super) buffers: &'a BufferPool,
    pub(super) connection: &'a Connection,
    pub(super) outgoing: Outgoing,
    pub(super) welcome: bool,
    pub(super) http11: bool,
    pub(super) is_head: bool,
    pub(super) keep_alive: &'a Cell<bool>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> ClientWriter for Writer<'a, S> {
    type Out = Out<'a, S>;

    fn welcome(&mut self) {
        if std::mem::take(&mut self.welcome) {
            self.outgoing.open().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
    }

    fn inform<F: Fields>(&mut self, status: u16, fields: &F) {
        if !self.http11 {
            return;
        }
        let bytes = self.outgoing.open();
        put_status_line(bytes, status);
        let context = rewrite::ResponseContext::default();
        rewrite::response_fields(fields, &context, &self.connection.peer, "HTTP/1.1", bytes);
        bytes.extend_from_slice(b"\r\n");
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.outgoing.poll_send(self.io, cx))?;
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn takes_framed(&self) -> bool {
        self.http11
    }

    fn begin<F: Fields>(mut self, reply: &Reply<'_, F>) -> Out<'a, S> {
        if self.outgoing.bytes.capacity() == 0 {
            self.outgoing = Outgoing::new(self.buffers.text());
        }
        let bytes = self.outgoing.open();
        put_status_line(bytes, reply.status);
        let peer = &self.connection.peer;
        rewrite::response_fields(reply.fields, &reply.context, peer, "HTTP/1.1", bytes);
        let mut encoding = Encoding::Plain;
        match (reply.framing, reply.length) {
            _ if reply.upgrade => {
                bytes.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
            }
            (Framing::Empty, None) if !self.is_head && !matches!(reply.status, 204 | 304) => {
                bytes.extend_from_slice(b"content-length: 0\r\n");
            }
            (Framing::Empty, None) => {}
            (_, Some(length)) => put_length(bytes, length),
            (_, None) if self.http11 => {
                bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
                encoding = if reply.framed { Encoding::Framed } else { Encoding::Chunked };
            }
            (_, None) => self.keep_alive.set(false),
        }
        put_connection(bytes, self.keep_alive.get(), self.http11, reply.upgrade);
        bytes.extend_from_slice(b"\r\n");
        Out { body: BodyOut::resume(self.io, self.outgoing, encoding), buffers: self.buffers }
    }
}

pub(super) fn put_length(bytes: &mut Vec<u8>, length: u64) {
    bytes.extend_from_slice(b"content-length: ");
    put_number(bytes, length);
    bytes.extend_from_slice(b"\r\n");
}

pub(super) fn put_connection(bytes: &mut Vec<u8>, keep_alive: bool, http11: bool, upgrade: bool) {
    match (keep_alive, http11) {
        _ if upgrade => {}
        (true, true) => {}
        (true, false) => bytes.extend_from_slice(b"connection: keep-alive\r\n"),
        (false, _) => bytes.extend_from_slice(b"connection: close\r\n"),
    }
}

/// The response's body on its way to the client.
#[derive(Debug)]
pub(super) struct Out<'a, S> {
    body: BodyOut<'a, S>,
    buffers: &'a BufferPool,
}

impl<S: AsyncWrite + Unpin> Drain for Out<'_, S> {
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        last: bool,
    ) -> Poll<io::Result<usize>> {
        self.body.poll_write(cx, data, last)
    }

    fn poll_finish(
        &mut self,
        cx: &mut Context<'_>,
        trailers: &mut Option<HeaderMap>,
        end_passed: bool,
    ) -> Poll<io::Result<()>> {
        self.body.poll_finish(cx, trailers, end_passed)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.body.poll_flush(cx)
    }
}

impl<S: AsyncWrite + Unpin> ClientOut for Out<'_, S> {
    fn sent(&self) -> u64 {
        self.body.sent()
    }
}

impl<S> Drop for Out<'_, S> {
    fn drop(&mut self) {
        self.buffers.give_text(std::mem::take(&mut self.body.outgoing.bytes));
    }
}
