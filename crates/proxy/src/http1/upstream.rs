//! One attempt of a request on an instance that speaks HTTP/1.1.
//!
//! The request's body and the response travel at the same time, so an instance may answer early and a
//! client may stop early. Everything that arrives is read strictly; a response that breaks the rules is
//! answered with 502 and its connection is closed.

use super::body::Framing;
use super::head::{ResponseFacts, Scanned, Scanner, field_room, parse_response};
use super::tunnel::tunnel;
use super::wire::{BodyIn, BodyOut, Encoding};
use crate::buffer::Buffer;
use crate::deadline::Stall;
use crate::endpoints::Lease;
use crate::fields::RawFields;
use crate::pool::dial;
use crate::record::ProxyStatus;
use crate::relay::{Relay, RelayError, SourceError};
use crate::request::{Attempt, AttemptContext, Client, ClientBody, ClientOut, ClientWriter, Reply};
use crate::retry::Outcome;
use plan::decision::Headers;
use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio::time::Instant;

type Upload<'a, B> = Relay<B, BodyOut<'a, TcpStream>>;

/// What happened while the response head was awaited.
#[derive(Debug)]
enum Event {
    Bytes,
    UpstreamEnded,
    Client(SourceError),
    ClientGone,
    Stalled,
}

/// Sends the request and brings the response back.
pub(crate) async fn attempt<C: Client>(
    client: &mut C,
    mut context: AttemptContext<'_, '_>,
    head: &mut Vec<u8>,
    lease: &Lease,
) -> Attempt {
    let worker = context.connection.worker.clone();
    let repeatable = context.whole && context.forwarding.idempotent;
    let pooled = worker.upstreams.take(lease.instance, repeatable);
    let began = context.begins_at();
    let stream = match pooled {
        Some(stream) => stream,
        None => match dial(&*worker.endpoints, lease.instance, &worker.limits).await {
            Ok(stream) => stream,
            Err(error) => {
                let why = ProxyStatus::new("connection_refused", error.to_string());
                return Attempt::Failed(Outcome::ConnectFailure, why);
            }
        },
    };
    let stream = RefCell::new(stream);
    let mut inbox = Buffer::new(&worker.buffers);
    context.forwarding.record.backend_started.get_or_insert(began);
    let framed = context.forwarding.framing == Framing::Chunked;
    let (body, mut writer) = client.split(framed);
    if !context.whole {
        writer.welcome();
    }
    let encoding = match context.forwarding.framing {
        _ if context.whole => Encoding::Plain,
        Framing::Chunked if body.is_framed() => Encoding::Framed,
        Framing::Chunked | Framing::UntilClose => Encoding::Chunked,
        Framing::Empty | Framing::Length(_) => Encoding::Plain,
    };
    let out = BodyOut::new(&stream, std::mem::take(head), encoding);
    let mut upload = Relay::new(body, out);
    let attempt = exchange(&mut context, &stream, &mut inbox, &mut upload, writer).await;
    context.forwarding.record.request_bytes += upload.passed;
    let read = upload.is_finished();
    *head = upload.drain.into_head();
    if !matches!(attempt, Exchanged::Over(_)) {
        // It will not be sent again.
        worker.buffers.give_text(std::mem::take(head));
    }
    match attempt {
        Exchanged::Reusable => {
            if inbox.is_empty() && read {
                let now = worker.read_clock();
                context.forwarding.record.backend_ended = Some(now);
                worker.upstreams.put(lease.instance, stream.into_inner(), now, &worker.limits);
            }
            Attempt::Ended { request_read: read }
        }
        Exchanged::Spent => Attempt::Ended { request_read: read },
        Exchanged::Over(attempt) => attempt,
    }
}

/// How an exchange left its connection.
#[derive(Debug)]
enum Exchanged {
    /// The response is complete and the connection can carry another request.
    Reusable,
    /// The response is complete and the connection is not to be used again.
    Spent,
    /// Something else.
    Over(Attempt),
}

async fn exchange<'c, B: ClientBody, W: ClientWriter>(
    context: &mut AttemptContext<'_, '_>,
    stream: &RefCell<TcpStream>,
    inbox: &mut Buffer,
    upload: &mut Upload<'c, B>,
    mut writer: W,
) -> Exchanged {
    let mut waiting = Waiting { upload_failed: false, stall: Stall::default() };
    let (facts, framed, out) = loop {
        let head = next_head(context, stream, inbox, upload, &mut writer, &mut waiting).await;
        let length = match head {
            Ok(length) => length,
            Err(attempt) => return Exchanged::Over(attempt),
        };
        match read_head(context, &inbox.data()[..length], writer) {
            HeadRead::Final(facts, framed, out) => {
                inbox.consume(length);
                break (facts, framed, out);
            }
            HeadRead::Interim(same) => writer = same,
            HeadRead::Over(attempt) => return Exchanged::Over(attempt),
        }
        inbox.consume(length);
    };
    if facts.upgrade {
        let ended = tunnel(context, stream, inbox, &mut upload.source, out).await;
        return Exchanged::Over(ended);
    }
    let mut download = Relay::new(BodyIn::new(stream, inbox, facts.framing, framed), out);
    let ended = bring_back(context, upload, &mut download, waiting).await;
    context.forwarding.record.response_bytes = download.drain.sent();
    match ended {
        Ok(()) if facts.keep_alive && upload.is_finished() => Exchanged::Reusable,
        Ok(()) => Exchanged::Spent,
        Err(why) => {
            context.forwarding.record.proxy_status = Some(why);
            Exchanged::Over(Attempt::Broken)
        }
    }
}

/// What a complete head turned out to be.
#[derive(Debug)]
enum HeadRead<W: ClientWriter> {
    /// The response begins: its facts, whether its chunks travel as they are, and its way out.
    Final(ResponseFacts, bool, W::Out),
    /// An informational response; another head follows.
    Interim(W),
    /// The attempt has ended.
    Over(Attempt),
}

/// Reads a head once and begins the response, unless it is another one that counts.
fn read_head<W: ClientWriter>(
    context: &mut AttemptContext<'_, '_>,
    head: &[u8],
    mut writer: W,
) -> HeadRead<W> {
    let mut room = field_room();
    let (status, fields, facts) = match parse_response(head, &mut room, context.forwarding.is_head)
    {
        Ok(head) => (head.status, RawFields(head.fields), head.facts),
        Err(reason) => return HeadRead::Over(broken(reason)),
    };
    if status < 200 && !facts.upgrade {
        // `100 Continue` is ours to give, and was given when the body was wanted.
        if status != 100 {
            writer.inform(status, &fields);
        }
        return HeadRead::Interim(writer);
    }
    if status == 101 && !context.forwarding.upgrade {
        return HeadRead::Over(broken("101 nobody asked for"));
    }
    let outcome = Outcome::Status { code: status, grpc: grpc_status(&fields) };
    if context.whole && context.tries_again(outcome) {
        let why = ProxyStatus::new("http_request_error", "the last attempt's status");
        return HeadRead::Over(Attempt::Failed(outcome, why));
    }
    let framed = facts.framing == Framing::Chunked && writer.takes_framed();
    context.forwarding.record.status = status;
    let out = writer.begin(&Reply {
        status,
        fields: &fields,
        framing: facts.framing,
        length: facts.length,
        framed,
        upgrade: facts.upgrade,
        context: context.forwarding.response_context(),
    });
    HeadRead::Final(facts, framed, out)
}

/// `grpc-status` of a head, where a service that failed at once puts it.
fn grpc_status(fields: &RawFields<'_>) -> Option<u8> {
    std::str::from_utf8(fields.first("grpc-status")?).ok()?.parse().ok()
}

fn broken(reason: &'static str) -> Attempt {
    const BODY: &str = "upstream connect error or disconnect/reset before headers. reset reason: \
                        protocol error";
    Attempt::Refused(502, BODY, ProxyStatus::new("http_protocol_error", reason))
}

/// State of the wait for a response that outlives one head.
#[derive(Debug)]
struct Waiting {
    upload_failed: bool,
    stall: Stall,
}

/// Sends the request and waits until a response head is complete at the front of the inbox.
async fn next_head<B: ClientBody, W: ClientWriter>(
    context: &mut AttemptContext<'_, '_>,
    stream: &RefCell<TcpStream>,
    inbox: &mut Buffer,
    upload: &mut Upload<'_, B>,
    writer: &mut W,
    waiting: &mut Waiting,
) -> Result<usize, Attempt> {
    let mut scanner = Scanner::default();
    loop {
        match scanner.scan(inbox.data()) {
            Scanned::Complete(length) => return Ok(length),
            Scanned::BareLineEnd => return Err(broken("bare line end in the response head")),
            Scanned::Partial => {}
        }
        let event =
            poll_fn(|cx| poll_exchange(context, stream, inbox, upload, writer, waiting, cx)).await;
        match event {
            Event::Bytes => {}
            Event::ClientGone | Event::Client(SourceError::Io(_) | SourceError::EarlyEnd) => {
                let why = ProxyStatus::new("connection_terminated", "the client went away");
                context.forwarding.record.proxy_status = Some(why);
                return Err(Attempt::Broken);
            }
            Event::Client(SourceError::Malformed(reason)) => {
                let why = ProxyStatus::new("http_request_error", reason);
                return Err(Attempt::Refused(400, "Bad Request", why));
            }
            Event::UpstreamEnded if inbox.is_empty() => {
                let why = ProxyStatus::new("connection_terminated", "before the response head");
                return Err(Attempt::Failed(Outcome::Reset, why));
            }
            Event::UpstreamEnded => return Err(broken("the response head was cut")),
            Event::Stalled if upload.is_finished() => {
                let why = ProxyStatus::new("http_response_timeout", "no response in time");
                let overall = Instant::now() >= context.ends_at;
                return Err(if overall {
                    Attempt::Refused(504, "upstream request timeout", why)
                } else {
                    Attempt::Failed(Outcome::AttemptTimeout, why)
                });
            }
            Event::Stalled => {
                let why = ProxyStatus::new("http_request_error", "the request body stood still");
                return Err(Attempt::Refused(408, "Request Timeout", why));
            }
        }
    }
}

fn poll_exchange<B: ClientBody, W: ClientWriter>(
    context: &mut AttemptContext<'_, '_>,
    stream: &RefCell<TcpStream>,
    inbox: &mut Buffer,
    upload: &mut Upload<'_, B>,
    writer: &mut W,
    waiting: &mut Waiting,
    cx: &mut Context<'_>,
) -> Poll<Event> {
    if writer.poll_flush(cx).map(|flushed| flushed.is_err()) == Poll::Ready(true) {
        return Poll::Ready(Event::ClientGone);
    }
    if !upload.is_finished() && !waiting.upload_failed {
        match upload.poll(cx) {
            Poll::Ready(Err(RelayError::Source(error))) => {
                return Poll::Ready(Event::Client(error));
            }
            // The instance may have answered before it stopped reading.
            Poll::Ready(Err(RelayError::Drain(_))) => waiting.upload_failed = true,
            Poll::Ready(Ok(())) if !context.whole => {
                context.ends_at = Instant::now() + context.forwarding.timeout();
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
    }
    match inbox.poll_fill(&mut *stream.borrow_mut(), cx) {
        Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Event::UpstreamEnded),
        Poll::Ready(Ok(_)) => return Poll::Ready(Event::Bytes),
        Poll::Pending => {}
    }
    let over = upload.is_finished() || waiting.upload_failed;
    if writer.poll_gone(cx).is_ready() || (over && upload.source.poll_gone(cx).is_ready()) {
        return Poll::Ready(Event::ClientGone);
    }
    let limit = if over {
        context.attempt_ends_at()
    } else {
        waiting.stall.at(upload.passed, context.connection.worker.limits.stream_idle_timeout)
    };
    context.deadline.poll(limit, cx).map(|()| Event::Stalled)
}

/// Relays the response's body, and what is left of the request's.
async fn bring_back<B: ClientBody, O: ClientOut>(
    context: &mut AttemptContext<'_, '_>,
    upload: &mut Upload<'_, B>,
    download: &mut Relay<BodyIn<'_, TcpStream>, O>,
    mut waiting: Waiting,
) -> Result<(), ProxyStatus> {
    let idle = context.connection.worker.limits.stream_idle_timeout;
    poll_fn(|cx| {
        if !upload.is_finished() && !waiting.upload_failed {
            // A request that fails while its response is on its way does not undo the response.
            waiting.upload_failed = matches!(upload.poll(cx), Poll::Ready(Err(_)));
        }
        match download.poll(cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(RelayError::Source(error))) => {
                let details = format!("inside the response body: {error}");
                return Poll::Ready(Err(ProxyStatus::new("connection_terminated", details)));
            }
            Poll::Ready(Err(RelayError::Drain(error))) => {
                let details = format!("by the client: {error}");
                return Poll::Ready(Err(ProxyStatus::new("connection_terminated", details)));
            }
            Poll::Pending => {}
        }
        let moved = upload.passed + download.passed;
        let limit = waiting.stall.at(moved, idle).min(context.ends_at);
        context
            .deadline
            .poll(limit, cx)
            .map(|()| Err(ProxyStatus::new("http_response_timeout", "inside the response body")))
    })
    .await
}
