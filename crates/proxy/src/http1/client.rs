//! The connection of an HTTP/1.1 client: one request after another until either side has had enough.
//!
//! Between requests the connection holds no buffer and its future is small; what a request needs while it
//! waits is allocated for that request alone.

use super::body::Framing;
use super::head::{Refused, RequestFacts, Scanned, Scanner, field_room, parse_request};
use super::wire::{BodyIn, Outgoing, put_status_line};
use super::writer::{Writer, put_connection, put_length};
use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::endpoints::Protocol;
use crate::fields::{RawFields, Sink};
use crate::limits::REPLAY_BYTES_MAX;
use crate::listening::Connection;
use crate::record::Subject;
use crate::relay::{Source, SourceError};
use crate::request::{
    Answer, Client, ClientBody, Ending, Forwarding, Incoming, Opened, OutboundHead, carry_out,
    open, outbound_head, wait_out,
};
use crate::rewrite;
use http::HeaderMap;
use plan::decision::RequestHead as PlanHead;
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// How many bytes a client may still send after its last response before its connection is cut.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Serves a connection until it ends; `buffer` may hold what was already read of it. The stream comes in
/// its cell, because a task keeps room for what it was given and for what it makes of it.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    io: RefCell<S>,
    connection: Rc<Connection>,
    mut buffer: Buffer,
) {
    let mut deadline = Deadline::default();
    // When the last request was over; a connection that has just come is looked at on its own.
    let mut idle_since = None;
    loop {
        let head = match next_head(&connection, &io, &mut buffer, &mut deadline, idle_since).await {
            Head::Complete(length) => length,
            Head::Refused(refused) => {
                Box::pin(refuse(&connection, &io, &mut buffer, &mut deadline, refused)).await;
                return;
            }
            Head::Ended => return,
        };
        let request = Box::pin(request(&connection, &io, &mut buffer, &mut deadline, head));
        match request.await {
            After::Next => idle_since = Some(connection.worker.last_clock()),
            After::End if buffer.is_empty() && connection.peer.tls.is_none() => return,
            After::End if buffer.is_empty() => {
                // Nothing the client sent is unread, so closing cannot reset what it has yet to read.
                let span = connection.worker.limits.linger;
                let shutdown =
                    deadline.within(span, |cx| Pin::new(&mut *io.borrow_mut()).poll_shutdown(cx));
                let _ = Box::pin(shutdown).await;
                return;
            }
            After::End | After::Close => {
                buffer.release();
                Box::pin(close(&connection, &io, &mut deadline)).await;
                return;
            }
            After::Cut => return,
        }
    }
}

/// What comes after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Next,
    /// The client sent all it had to, and has all it gets.
    End,
    /// The client may still be sending.
    Close,
    Cut,
}

/// What the wait for a head ended with.
#[derive(Debug)]
enum Head {
    Complete(usize),
    Refused(Refused),
    Ended,
}

async fn next_head<S: AsyncRead + Unpin>(
    connection: &Connection,
    io: &RefCell<S>,
    buffer: &mut Buffer,
    deadline: &mut Deadline,
    mut idle_since: Option<Instant>,
) -> Head {
    let limits = &connection.worker.limits;
    let mut scanner = Scanner::default();
    let mut blank_line_seen = false;
    // Read lazily: a head that is all there costs no look at the clock.
    let mut first_byte_at: Option<Instant> = None;
    loop {
        // An empty line in front of a request is a habit of old clients; one is overlooked.
        if !blank_line_seen && buffer.data().starts_with(b"\r\n") {
            blank_line_seen = true;
            buffer.consume(2);
        }
        match scanner.scan(buffer.data()) {
            Scanned::Complete(length) if length <= limits.head_bytes_max => {
                return Head::Complete(length);
            }
            Scanned::Partial if buffer.data().len() <= limits.head_bytes_max => {}
            Scanned::BareLineEnd => {
                return Head::Refused(Refused { status: 400, reason: "bare line end in the head" });
            }
            _ if scanner.first_line().is_some_and(|length| length <= limits.head_bytes_max) => {
                return Head::Refused(Refused { status: 431, reason: "request head too large" });
            }
            _ => return Head::Refused(Refused { status: 414, reason: "request line too long" }),
        }
        let idle = buffer.is_empty();
        let read = poll_fn(|cx| {
            connection.handle.register(cx);
            if let Poll::Ready(read) = buffer.poll_fill(&mut *io.borrow_mut(), cx) {
                return Poll::Ready(read);
            }
            let at = if idle {
                *idle_since.get_or_insert_with(Instant::now) + connection.patience()
            } else {
                *first_byte_at.get_or_insert_with(Instant::now) + limits.head_timeout
            };
            deadline.poll(at, cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
        })
        .await;
        match read {
            Ok(0) => return Head::Ended,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !idle => {
                return Head::Refused(Refused { status: 408, reason: "request head too slow" });
            }
            Err(_) => return Head::Ended,
        }
    }
}

/// One request, from its complete head to the end of its response.
async fn request<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &Connection,
    io: &RefCell<S>,
    buffer: &mut Buffer,
    deadline: &mut Deadline,
    length: usize,
) -> After {
    connection.mark_used();
    let serving = connection.slot.serving();
    let started = Instant::now();
    let opened = {
        let mut room = field_room();
        let https = connection.peer.tls.is_some();
        match parse_request(&buffer.data()[..length], &mut room, https) {
            Ok(head) => {
                let fields = RawFields(head.fields);
                let incoming = incoming(connection, &head, &fields, length);
                Ok((
                    head.facts,
                    head.method == "HEAD",
                    open(connection, &serving, &incoming, started),
                ))
            }
            Err(refused) => Err(refused),
        }
    };
    let (facts, is_head, opened) = match opened {
        Ok(opened) => opened,
        Err(refused) => {
            refuse(connection, io, buffer, deadline, refused).await;
            return After::Cut;
        }
    };
    let mut exchange = Exchange {
        connection,
        io,
        buffer,
        head_bytes: length,
        framing: facts.framing,
        facts,
        is_head,
        welcome: facts.expects_continue,
        watching: true,
        keep_alive: Cell::new(facts.keep_alive && !connection.is_closing()),
    };
    let ending = match opened {
        Opened::Answer(answer) => Ending::Answer(answer),
        Opened::Forward(forwarding) => {
            carry_out(connection, &mut exchange, forwarding, deadline, started).await
        }
    };
    match ending {
        Ending::Complete { request_read } => match (request_read, exchange.keep_alive.get()) {
            (true, true) => After::Next,
            (true, false) => After::End,
            (false, _) => After::Close,
        },
        Ending::Broken => After::Cut,
        Ending::Answer(answer) => exchange.answer(*answer, deadline).await,
    }
}

fn incoming<'a>(
    connection: &'a Connection,
    head: &super::head::RequestHead<'a>,
    fields: &'a RawFields<'a>,
    length: usize,
) -> Incoming<'a, RawFields<'a>> {
    let (path, query) = match memchr::memchr(b'?', head.target.as_bytes()) {
        Some(at) => (&head.target[..at], Some(&head.target[at + 1..])),
        None => (head.target, None),
    };
    Incoming {
        subject: Subject {
            head: PlanHead {
                method: head.method,
                scheme: connection.peer.scheme(),
                authority: head.authority,
                path,
                query,
                headers: fields,
                client: (*connection.peer.client.ip()).into(),
            },
            fields,
            protocol: if head.facts.http11 { "HTTP/1.1" } else { "HTTP/1.0" },
            peer: &connection.peer,
            head_bytes: length as u64,
        },
        target: head.target,
        framing: head.facts.framing,
        upgrade: head.facts.upgrade,
    }
}

/// One request of an HTTP/1.1 connection.
#[derive(Debug)]
struct Exchange<'c, S> {
    connection: &'c Connection,
    io: &'c RefCell<S>,
    buffer: &'c mut Buffer,
    /// Bytes of the head, still at the front of the buffer; 0 when they are used up.
    head_bytes: usize,
    /// How the rest of the body is framed.
    framing: Framing,
    facts: RequestFacts,
    is_head: bool,
    /// Whether the client still waits to be told to send its body.
    welcome: bool,
    /// Whether to look for the client's end while the request waits for an instance.
    watching: bool,
    keep_alive: Cell<bool>,
}

impl<S> Exchange<'_, S> {
    fn consume_head(&mut self) {
        self.buffer.consume(std::mem::take(&mut self.head_bytes));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client for Exchange<'_, S> {
    type Body<'a>
        = RequestBody<'a, S>
    where
        Self: 'a;
    type Writer<'a>
        = Writer<'a, S>
    where
        Self: 'a;

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What arrives meanwhile belongs to the body or to the next request; an end of sending is no end.
        if self.watching {
            match ready!(self.buffer.poll_fill(&mut *self.io.borrow_mut(), cx)) {
                Ok(_) => self.watching = false,
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => self.watching = false,
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    fn outbound_head(&self, forwarding: &Forwarding<'_>, protocol: Protocol) -> OutboundHead {
        let mut room = field_room();
        let https = self.connection.peer.tls.is_some();
        let parsed = parse_request(&self.buffer.data()[..self.head_bytes], &mut room, https);
        match parsed {
            Ok(head) => {
                let fields = RawFields(head.fields);
                let incoming = incoming(self.connection, &head, &fields, self.head_bytes);
                outbound_head(self.connection, forwarding, &incoming, protocol)
            }
            // The same bytes were parsed before; an empty head makes the instance refuse.
            Err(_) => OutboundHead::Http1(Vec::new()),
        }
    }

    fn absorb_body(&mut self, head: &mut OutboundHead) -> bool {
        self.consume_head();
        let OutboundHead::Http1(bytes) = head else {
            return self.framing == Framing::Empty;
        };
        match self.framing {
            Framing::Empty => true,
            Framing::Length(length) => {
                let here = self.buffer.data();
                match usize::try_from(length) {
                    Ok(length) if length <= REPLAY_BYTES_MAX && length <= here.len() => {
                        bytes.extend_from_slice(&here[..length]);
                        self.buffer.consume(length);
                        self.framing = Framing::Empty;
                        true
                    }
                    _ => false,
                }
            }
            Framing::Chunked | Framing::UntilClose => false,
        }
    }

    fn split(&mut self, framed: bool) -> (RequestBody<'_, S>, Writer<'_, S>) {
        self.consume_head();
        let body = RequestBody {
            body: BodyIn::new(self.io, self.buffer, self.framing, framed),
            framed,
            watching: true,
        };
        let writer = Writer {
            io: self.io,
            buffers: &self.connection.worker.buffers,
            connection: self.connection,
            outgoing: Outgoing::default(),
            welcome: self.welcome,
            http11: self.facts.http11,
            is_head: self.is_head,
            keep_alive: &self.keep_alive,
        };
        (body, writer)
    }
}

/// The body of a request, and after it the watch over the client.
#[derive(Debug)]
struct RequestBody<'a, S> {
    body: BodyIn<'a, S>,
    framed: bool,
    watching: bool,
}

impl<S: AsyncRead + Unpin> Source for RequestBody<'_, S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.body.poll_ready(cx)
    }
    fn chunk(&self) -> &[u8] {
        self.body.chunk()
    }
    fn consume(&mut self, count: usize) {
        self.body.consume(count);
    }
    fn is_done(&self) -> bool {
        self.body.is_done()
    }
    fn is_last(&self) -> bool {
        self.body.is_last()
    }
    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.take_trailers()
    }
    fn end_passed(&self) -> bool {
        self.body.end_passed()
    }
}

impl<S: AsyncRead + Unpin> ClientBody for RequestBody<'_, S> {
    fn is_framed(&self) -> bool {
        self.framed
    }

    fn become_tunnel(&mut self) {
        self.body.become_tunnel();
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The next request may already be arriving, or the client may have closed its sending half and
        // still wait for the response: only a failed connection means that nobody does.
        if self.watching && self.body.buffer.is_empty() {
            match ready!(self.body.poll_more(cx)) {
                Ok(_) => self.watching = false,
                Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Exchange<'_, S> {
    /// Sends a response of the balancer's own. The connection can go on only if the request has no body
    /// left to read.
    async fn answer(&mut self, mut answer: Answer<'_>, deadline: &mut Deadline) -> After {
        wait_out(answer.delay).await;
        self.consume_head();
        let keep_alive = self.keep_alive.get() && self.framing == Framing::Empty;
        let mut bytes = self.connection.worker.buffers.text();
        put_answer(&mut bytes, self.connection, &answer, keep_alive, self.facts.http11);
        if !self.is_head {
            bytes.extend_from_slice(answer.body.as_bytes());
        }
        if let Some(record) = &mut answer.record {
            record.status = answer.status;
            record.response_bytes = bytes.len() as u64;
        }
        let mut outgoing = Outgoing::new(bytes);
        let sent = send(self.connection, self.io, deadline, &mut outgoing).await;
        self.connection.worker.buffers.give_text(outgoing.bytes);
        match (sent, keep_alive) {
            (Err(_), _) => After::Cut,
            (Ok(()), true) => After::Next,
            (Ok(()), false) => After::Close,
        }
    }
}

fn put_answer(
    bytes: &mut Vec<u8>,
    connection: &Connection,
    answer: &Answer<'_>,
    keep_alive: bool,
    http11: bool,
) {
    put_status_line(bytes, answer.status);
    let own = RawFields(&[]);
    let mut list = crate::fields::FieldList::default();
    let context = rewrite::ResponseContext { edits: answer.edits.clone(), ..Default::default() };
    rewrite::response_fields(&own, &context, &connection.peer, "HTTP/1.1", &mut list);
    for (name, value) in &answer.headers {
        bytes.put(name.as_bytes(), value.as_bytes());
    }
    if answer.has_plain_text() {
        bytes.extend_from_slice(b"content-type: text/plain\r\n");
    }
    bytes.extend_from_slice(b"date: ");
    connection.worker.put_date(bytes);
    bytes.extend_from_slice(b"\r\n");
    for (name, value) in &list.0 {
        bytes.put(name, value);
    }
    if !matches!(answer.status, 204 | 304) {
        put_length(bytes, answer.body.len() as u64);
    }
    put_connection(bytes, keep_alive, http11, false);
    bytes.extend_from_slice(b"\r\n");
}

async fn send<S: AsyncWrite + Unpin>(
    connection: &Connection,
    io: &RefCell<S>,
    deadline: &mut Deadline,
    outgoing: &mut Outgoing,
) -> io::Result<()> {
    let span = connection.worker.limits.stream_idle_timeout;
    let sent = deadline.within(span, |cx| {
        ready!(outgoing.poll_send(io, cx))?;
        Pin::new(&mut *io.borrow_mut()).poll_flush(cx)
    });
    sent.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Answers what was refused before it could be decided, and closes.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &Connection,
    io: &RefCell<S>,
    buffer: &mut Buffer,
    deadline: &mut Deadline,
    refused: Refused,
) {
    buffer.release();
    connection.slot.cells.requests.add(1);
    connection.slot.cells.by_class[usize::from(refused.status / 100)].add(1);
    tracing::debug!(status = refused.status, reason = refused.reason, "request refused");
    let reason = http::StatusCode::from_u16(refused.status).ok().and_then(|s| s.canonical_reason());
    let answer = Answer::text(refused.status, reason.unwrap_or(""));
    let mut bytes = Vec::new();
    put_answer(&mut bytes, connection, &answer, false, true);
    bytes.extend_from_slice(answer.body.as_bytes());
    if send(connection, io, deadline, &mut Outgoing::new(bytes)).await.is_ok() {
        close(connection, io, deadline).await;
    }
}

/// Ends a connection so that the client gets the last response even while it is still sending.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &Connection,
    io: &RefCell<S>,
    deadline: &mut Deadline,
) {
    let span = connection.worker.limits.linger;
    let shutdown = deadline.within(span, |cx| Pin::new(&mut *io.borrow_mut()).poll_shutdown(cx));
    if !matches!(shutdown.await, Ok(Ok(()))) {
        return;
    }
    let mut buffer = Buffer::new(&connection.worker.buffers);
    let mut left = LINGER_BYTES_MAX;
    let drained = deadline.within(span, |cx| {
        loop {
            match ready!(buffer.poll_fill(&mut *io.borrow_mut(), cx)) {
                Ok(count) if count > 0 && count <= left => left -= count,
                _ => return Poll::Ready(()),
            }
            buffer.release();
        }
    });
    let _ = drained.await;
}
