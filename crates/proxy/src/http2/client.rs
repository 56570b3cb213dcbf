//! The connection of an HTTP/2 client: its streams are requests, each a task of its own.
//!
//! Invariant: what a client can make us hold or do without a request is bounded: streams, windows, header
//! lists, resets, and frames that carry nothing.

use super::meter::Metered;
use super::stream::{StreamIn, StreamOut};
use crate::deadline::Deadline;
use crate::endpoints::Protocol;
use crate::fields::{Fields, MapFields, Sink};
use crate::http1::body::Framing;
use crate::http1::head::{is_target_byte, parse_authority};
use crate::listening::Connection;
use crate::record::Subject;
use crate::relay::{Source, SourceError};
use crate::request::{
    Answer, Client, ClientBody, ClientOut, ClientWriter, Ending, Forwarding, Incoming, Opened,
    OutboundHead, Reply, carry_out, open, outbound_head, wait_out,
};
use crate::rewrite;
use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use plan::decision::RequestHead as PlanHead;
use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

/// Streams that were reset before we looked at them; more end the connection.
const PENDING_RESETS_MAX: usize = 20;

/// Informational responses passed on for one request; an instance that sends more is not listened to.
const INFORMATIONAL_MAX: u8 = 8;

/// Streams we reset ourselves and still remember.
const OWN_RESETS_MAX: usize = 50;

/// Bytes one stream may have waiting in the connection's send queue.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// Streams in progress on one connection, and when the last one ended.
#[derive(Debug)]
struct Activity {
    streams: Cell<usize>,
    ended_at: Cell<Instant>,
}

/// Serves a connection until it ends. The handshake is over by the time the connection is idle, so the
/// task of the connection has no room for it.
pub(crate) fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    connection: Rc<Connection>,
) -> impl Future<Output = ()> {
    let limits = &connection.worker.limits;
    let stream =
        Metered::new(stream, limits.http2_idle_frames_max, limits.http2_idle_frames_refill);
    let handshake = Builder::new()
        .max_concurrent_streams(limits.http2_streams_max)
        .initial_window_size(limits.http2_window_bytes)
        .initial_connection_window_size(limits.http2_connection_window_bytes)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_concurrent_reset_streams(OWN_RESETS_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake::<_, Bytes>(stream);
    let handshake = Box::pin(tokio::time::timeout(limits.handshake_timeout, handshake));
    serve_streams(handshake, connection)
}

type Handshake<S> = Pin<Box<tokio::time::Timeout<h2::server::Handshake<Metered<S>, Bytes>>>>;

async fn serve_streams<S: AsyncRead + AsyncWrite + Unpin>(
    handshake: Handshake<S>,
    connection: Rc<Connection>,
) {
    let limits = &connection.worker.limits;
    let Ok(Ok(mut http2)) = handshake.await else { return };
    let activity = Rc::new(Activity { streams: Cell::new(0), ended_at: Cell::new(Instant::now()) });
    let mut deadline = Deadline::default();
    let mut goodbye_at = None;
    loop {
        let accepted = poll_fn(|cx| {
            connection.handle.register(cx);
            loop {
                if let Poll::Ready(accepted) = http2.poll_accept(cx) {
                    return Poll::Ready(accepted);
                }
                let at = match goodbye_at {
                    Some(at) => at,
                    None if connection.is_closing() => Instant::now(),
                    None => activity.ended_at.get() + connection.patience(),
                };
                if deadline.poll(at, cx).is_pending() {
                    return Poll::Pending;
                }
                let idle = activity.streams.get() == 0;
                if goodbye_at.is_some() {
                    if idle {
                        return Poll::Ready(None);
                    }
                    goodbye_at = Some(Instant::now() + limits.linger);
                } else if idle || connection.is_closing() {
                    http2.graceful_shutdown();
                    goodbye_at = Some(Instant::now() + limits.linger);
                } else {
                    activity.ended_at.set(Instant::now());
                }
            }
        })
        .await;
        let Some(Ok((request, respond))) = accepted else { return };
        connection.mark_used();
        activity.streams.set(activity.streams.get() + 1);
        let (parts, body) = request.into_parts();
        let exchange = Exchange {
            connection: connection.clone(),
            framing: framing(&parts, &body),
            parts,
            body: Some(body),
            respond: Some(respond),
        };
        // In a box, the task is not copied on its way to the runtime.
        tokio::task::spawn_local(Box::pin(stream_task(exchange, activity.clone())));
    }
}

/// Counts a stream out, however its task ends.
#[derive(Debug)]
struct InProgress(Rc<Activity>);

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.ended_at.set(Instant::now());
    }
}

async fn stream_task(mut exchange: Exchange, activity: Rc<Activity>) {
    let _in_progress = InProgress(activity);
    let connection = exchange.connection.clone();
    let serving = connection.slot.serving();
    let started = Instant::now();
    let fields = MapFields(&exchange.parts.headers);
    let opened = match incoming(&connection, &exchange.parts, &fields, exchange.framing) {
        Ok(incoming) => open(&connection, &serving, &incoming, started),
        Err(reason) => {
            tracing::debug!(reason, "request refused");
            connection.slot.cells.requests.add(1);
            connection.slot.cells.by_class[4].add(1);
            Opened::Answer(Box::new(Answer::text(400, "Bad Request")))
        }
    };
    let mut deadline = Deadline::default();
    let ending = match opened {
        Opened::Answer(answer) => Ending::Answer(answer),
        Opened::Forward(forwarding) => {
            carry_out(&connection, &mut exchange, forwarding, &mut deadline, started).await
        }
    };
    match ending {
        Ending::Complete { .. } => {}
        Ending::Answer(answer) => Box::pin(exchange.answer(*answer)).await,
        Ending::Broken => exchange.reset(Reason::INTERNAL_ERROR),
    }
}

fn framing(parts: &Parts, body: &RecvStream) -> Framing {
    let length = parts.headers.get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    match (body.is_end_stream(), length) {
        (true, _) | (false, Some(0)) if body.is_end_stream() => Framing::Empty,
        (_, Some(length)) if length > 0 => Framing::Length(length),
        _ => Framing::Chunked,
    }
}

/// One stream.
#[derive(Debug)]
struct Exchange {
    connection: Rc<Connection>,
    parts: Parts,
    framing: Framing,
    body: Option<RecvStream>,
    respond: Option<SendResponse<Bytes>>,
}

impl Exchange {
    async fn answer(&mut self, mut answer: Answer<'_>) {
        wait_out(answer.delay).await;
        let Some(mut respond) = self.respond.take() else { return };
        let mut fields = HeaderMap::new();
        let context =
            rewrite::ResponseContext { edits: answer.edits.clone(), ..Default::default() };
        let own = HeaderMap::new();
        let peer = &self.connection.peer;
        rewrite::response_fields(&MapFields(&own), &context, peer, "HTTP/2.0", &mut fields);
        for (name, value) in &answer.headers {
            fields.put(name.as_bytes(), value.as_bytes());
        }
        if answer.has_plain_text() {
            fields.put(b"content-type", b"text/plain");
        }
        let mut date = Vec::new();
        self.connection.worker.put_date(&mut date);
        fields.put(b"date", &date);
        if !matches!(answer.status, 204 | 304) {
            fields.insert(http::header::CONTENT_LENGTH, answer.body.len().into());
        }
        let bodiless = answer.body.is_empty() || self.parts.method == http::Method::HEAD;
        let response = response(answer.status, fields);
        if let Some(record) = &mut answer.record {
            record.status = answer.status;
            record.response_bytes = answer.body.len() as u64;
        }
        let Ok(mut stream) = respond.send_response(response, bodiless) else { return };
        if !bodiless {
            let body = Bytes::copy_from_slice(answer.body.as_bytes());
            // A client that has gone needs no answer.
            let _ = stream.send_data(body, true);
        }
        // The rest of the request is of no use to anyone; NO_ERROR says that the answer is complete.
        if self.body.as_ref().is_some_and(|body| !body.is_end_stream()) {
            stream.send_reset(Reason::NO_ERROR);
        }
    }

    fn reset(&mut self, reason: Reason) {
        if let Some(respond) = &mut self.respond {
            respond.send_reset(reason);
        }
    }
}

fn expects_continue(fields: &HeaderMap) -> bool {
    let expected = fields.get(http::header::EXPECT);
    expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn response(status: u16, fields: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = fields;
    response
}

fn incoming<'a>(
    connection: &'a Connection,
    parts: &'a Parts,
    fields: &'a MapFields<'a>,
    framing: Framing,
) -> Result<Incoming<'a, MapFields<'a>>, &'static str> {
    if matches!(parts.method, http::Method::CONNECT | http::Method::TRACE) {
        return Err("unsupported method");
    }
    let mut hosts = parts.headers.get_all(http::header::HOST).iter();
    let host = hosts.next().map(|host| host.as_bytes());
    if hosts.next().is_some() {
        return Err("more than one host");
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), Some(host))
            if !host.eq_ignore_ascii_case(authority.as_str().as_bytes()) =>
        {
            return Err("the authority is not the host");
        }
        (Some(authority), _) => authority.as_str().as_bytes(),
        (None, Some(host)) => host,
        (None, None) => return Err("missing authority"),
    };
    let authority = parse_authority(authority).ok_or("malformed authority")?;
    if parts.uri.scheme_str().is_some_and(|scheme| scheme != connection.peer.scheme().as_str()) {
        return Err("the scheme is not the connection's");
    }
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    if !target.starts_with('/') || !target.bytes().all(is_target_byte) {
        return Err("malformed path");
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    Ok(Incoming {
        subject: Subject {
            head: PlanHead {
                method: parts.method.as_str(),
                scheme: connection.peer.scheme(),
                authority,
                path,
                query,
                headers: fields,
                client: (*connection.peer.client.ip()).into(),
            },
            fields,
            protocol: "HTTP/2.0",
            peer: &connection.peer,
            head_bytes: head_bytes(parts),
        },
        target,
        framing,
        upgrade: false,
    })
}

/// The size of a head as it would be in HTTP/1.1.
fn head_bytes(parts: &Parts) -> u64 {
    let line = parts.method.as_str().len() + parts.uri.path().len();
    let fields: usize =
        parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    (line + fields) as u64
}

impl Client for Exchange {
    type Body<'a>
        = RequestBody
    where
        Self: 'a;
    type Writer<'a>
        = Writer<'a>
    where
        Self: 'a;

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.respond {
            Some(respond) => respond.poll_reset(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    fn outbound_head(&self, forwarding: &Forwarding<'_>, protocol: Protocol) -> OutboundHead {
        let fields = MapFields(&self.parts.headers);
        match incoming(&self.connection, &self.parts, &fields, self.framing) {
            Ok(incoming) => outbound_head(&self.connection, forwarding, &incoming, protocol),
            // The same head was accepted before; an empty one makes the instance refuse.
            Err(_) => OutboundHead::Http1(Vec::new()),
        }
    }

    fn absorb_body(&mut self, _head: &mut OutboundHead) -> bool {
        self.framing == Framing::Empty
    }

    fn split(&mut self, _framed: bool) -> (RequestBody, Writer<'_>) {
        let body = if self.framing == Framing::Empty { None } else { self.body.take() };
        let writer = Writer {
            connection: &self.connection,
            respond: &mut self.respond,
            is_head: self.parts.method == http::Method::HEAD,
            waits: self.framing != Framing::Empty && expects_continue(&self.parts.headers),
            informed: 0,
        };
        (RequestBody { body: body.map(StreamIn::new) }, writer)
    }
}

/// The body of a request; absent when there is none.
#[derive(Debug)]
struct RequestBody {
    body: Option<StreamIn>,
}

impl Source for RequestBody {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SourceError>> {
        self.body.as_mut().map_or(Poll::Ready(Ok(())), |body| body.poll_ready(cx))
    }
    fn chunk(&self) -> &[u8] {
        self.body.as_ref().map_or(b"", |body| body.chunk())
    }
    fn consume(&mut self, count: usize) {
        if let Some(body) = &mut self.body {
            body.consume(count);
        }
    }
    fn is_done(&self) -> bool {
        self.body.as_ref().is_none_or(Source::is_done)
    }
    fn is_last(&self) -> bool {
        self.body.as_ref().is_none_or(Source::is_last)
    }
    fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.body.as_mut().and_then(Source::take_trailers)
    }
    fn end_passed(&self) -> bool {
        false
    }
}

impl ClientBody for RequestBody {
    fn is_framed(&self) -> bool {
        false
    }

    fn become_tunnel(&mut self) {}

    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// The way back to an HTTP/2 client.
#[derive(Debug)]
struct Writer<'a> {
    connection: &'a Connection,
    respond: &'a mut Option<SendResponse<Bytes>>,
    is_head: bool,
    /// Whether the client wants to be told to send its body.
    waits: bool,
    informed: u8,
}

impl Writer<'_> {
    fn inform_of(&mut self, status: u16, fields: HeaderMap) {
        if self.informed < INFORMATIONAL_MAX
            && let Some(respond) = &mut self.respond
        {
            self.informed += 1;
            // A stream that takes none any more is found out by what follows.
            let _ = respond.send_informational(response(status, fields));
        }
    }
}

impl ClientWriter for Writer<'_> {
    type Out = StreamOut;

    fn welcome(&mut self) {
        if std::mem::take(&mut self.waits) {
            self.inform_of(100, HeaderMap::new());
        }
    }

    fn inform<F: Fields>(&mut self, status: u16, fields: &F) {
        let mut sent = HeaderMap::new();
        let context = rewrite::ResponseContext::default();
        rewrite::response_fields(fields, &context, &self.connection.peer, "HTTP/2.0", &mut sent);
        self.inform_of(status, sent);
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.respond {
            Some(respond) => respond.poll_reset(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    fn takes_framed(&self) -> bool {
        false
    }

    fn begin<F: Fields>(self, reply: &Reply<'_, F>) -> StreamOut {
        let mut fields = HeaderMap::new();
        let peer = &self.connection.peer;
        rewrite::response_fields(reply.fields, &reply.context, peer, "HTTP/2.0", &mut fields);
        if let Some(length) = reply.length {
            fields.insert(http::header::CONTENT_LENGTH, length.into());
        }
        let ends = reply.framing == Framing::Empty || self.is_head;
        let stream = self
            .respond
            .as_mut()
            .and_then(|respond| respond.send_response(response(reply.status, fields), ends).ok());
        StreamOut::new(stream, ends)
    }
}

impl ClientOut for StreamOut {
    fn sent(&self) -> u64 {
        StreamOut::sent(self)
    }
}
