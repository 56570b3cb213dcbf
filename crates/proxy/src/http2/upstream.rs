//! One attempt of a request on an instance that speaks HTTP/2 without TLS.
//!
//! Connections are shared by the requests of a worker, up to what the instance allows at once; trailers
//! pass in both directions, which is all that gRPC asks for.

use super::stream::{StreamIn, StreamOut};
use crate::deadline::Stall;
use crate::endpoints::{InstanceId, Lease};
use crate::fields::MapFields;
use crate::http1::body::Framing;
use crate::metrics::IdMap;
use crate::pool::dial;
use crate::record::ProxyStatus;
use crate::relay::{Relay, RelayError, Source, SourceError};
use crate::request::{Attempt, AttemptContext, Client, ClientBody, ClientOut, ClientWriter, Reply};
use crate::retry::Outcome;
use crate::worker::Worker;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, Uri};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// Requests we send at once on one connection, whatever the instance would allow.
const STREAMS_MAX: usize = 100;

/// Bytes one stream may have waiting in a connection's send queue.
const SEND_BUFFER_BYTES: usize = 128 << 10;

#[derive(Debug)]
struct Shared {
    sender: SendRequest<Bytes>,
    streams: Rc<Cell<usize>>,
    closed: Rc<Cell<bool>>,
}

/// One worker's HTTP/2 connections to instances.
#[derive(Debug, Default)]
pub(crate) struct Http2Pool {
    connections: RefCell<IdMap<u64, Vec<Shared>>>,
}

impl Http2Pool {
    /// Forgets connections that have ended.
    pub(crate) fn sweep(&self) {
        self.connections.borrow_mut().retain(|_, shared| {
            shared.retain(|connection| !connection.closed.get());
            !shared.is_empty()
        });
    }

    /// A connection with room for one more stream.
    fn take(&self, instance: InstanceId) -> Option<(SendRequest<Bytes>, Stream)> {
        let mut connections = self.connections.borrow_mut();
        let shared = connections.get_mut(&instance.0)?;
        shared.retain(|connection| !connection.closed.get());
        let free = shared.iter().find(|connection| {
            let max = connection.sender.current_max_send_streams().min(STREAMS_MAX);
            connection.streams.get() < max
        })?;
        Some((free.sender.clone(), Stream::begin(&free.streams)))
    }

    fn put(&self, instance: InstanceId, shared: Shared) {
        self.connections.borrow_mut().entry(instance.0).or_default().push(shared);
    }
}

/// Counts one stream of a connection until it is dropped.
#[derive(Debug)]
struct Stream(Rc<Cell<usize>>);

impl Stream {
    fn begin(streams: &Rc<Cell<usize>>) -> Stream {
        streams.set(streams.get() + 1);
        Stream(streams.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The head of a request to an instance.
pub(crate) fn request_head(
    method: &str,
    authority: &str,
    target: &str,
    fields: HeaderMap,
) -> Request<()> {
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(target).build();
    let mut request = Request::new(());
    // A target or method that HTTP/2 cannot carry leaves the request without one, and it is refused.
    *request.uri_mut() = uri.unwrap_or_default();
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = fields;
    request
}

async fn connect(worker: &Rc<Worker>, instance: InstanceId) -> io::Result<()> {
    let stream = dial(&*worker.endpoints, instance, &worker.limits).await?;
    let limits = &worker.limits;
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(limits.http2_window_bytes)
        .initial_connection_window_size(limits.http2_connection_window_bytes)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake::<_, Bytes>(stream);
    let (sender, connection) = handshake.await.map_err(io::Error::other)?;
    let closed = Rc::new(Cell::new(false));
    let over = closed.clone();
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to an instance ended");
        }
        over.set(true);
    });
    worker.http2_upstreams.put(instance, Shared { sender, streams: Rc::default(), closed });
    Ok(())
}

/// Sends the request and brings the response back.
pub(crate) async fn attempt<C: Client>(
    client: &mut C,
    mut context: AttemptContext<'_, '_>,
    head: &Request<()>,
    lease: &Lease,
) -> Attempt {
    let worker = context.connection.worker.clone();
    let connected = match worker.http2_upstreams.take(lease.instance) {
        Some(connected) => Ok(Some(connected)),
        None => connect(&worker, lease.instance)
            .await
            .map(|()| worker.http2_upstreams.take(lease.instance)),
    };
    let (sender, _stream) = match connected {
        Ok(Some(connected)) => connected,
        Ok(None) => {
            let why = ProxyStatus::new("connection_terminated", "right after it was made");
            return Attempt::Failed(Outcome::ConnectFailure, why);
        }
        Err(error) => {
            let why = ProxyStatus::new("connection_refused", error.to_string());
            return Attempt::Failed(Outcome::ConnectFailure, why);
        }
    };
    let sent = match sender.ready().await {
        Ok(mut sender) => sender.send_request(head.clone(), context.whole),
        Err(error) => Err(error),
    };
    let (response, stream) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            let why = ProxyStatus::new("connection_terminated", error.to_string());
            return Attempt::Failed(outcome_of(&error), why);
        }
    };
    let began = context.begins_at();
    context.forwarding.record.backend_started.get_or_insert(began);
    let (body, mut writer) = client.split(false);
    if !context.whole {
        writer.welcome();
    }
    let mut upload = Relay::new(body, StreamOut::new(Some(stream), context.whole));
    let attempt = exchange(&mut context, response, &mut upload, writer).await;
    context.forwarding.record.request_bytes += upload.passed;
    if !upload.is_finished() {
        upload.drain.reset(Reason::CANCEL);
    }
    attempt
}

fn outcome_of(error: &h2::Error) -> Outcome {
    match error.reason() {
        Some(Reason::REFUSED_STREAM) => Outcome::RefusedStream,
        _ => Outcome::Reset,
    }
}

/// What happened while the response was awaited.
#[derive(Debug)]
enum Event {
    Head(Box<Response<RecvStream>>),
    Failed(h2::Error),
    Client(SourceError),
    ClientGone,
    Stalled,
}

async fn exchange<B: ClientBody, W: ClientWriter>(
    context: &mut AttemptContext<'_, '_>,
    mut response: ResponseFuture,
    upload: &mut Relay<B, StreamOut>,
    mut writer: W,
) -> Attempt {
    let mut waiting = Waiting::default();
    let event =
        poll_fn(|cx| poll_head(context, &mut response, upload, &mut writer, &mut waiting, cx))
            .await;
    let head = match event {
        Event::Head(head) => *head,
        other => return no_head(context, other, upload.is_finished()),
    };
    let (parts, body) = head.into_parts();
    let status = parts.status.as_u16();
    let grpc = parts.headers.get("grpc-status");
    let grpc = grpc.and_then(|value| value.to_str().ok()?.parse().ok());
    let outcome = Outcome::Status { code: status, grpc };
    if context.tries_again(outcome) {
        let why = ProxyStatus::new("http_request_error", "the last attempt's status");
        return Attempt::Failed(outcome, why);
    }
    let source = StreamIn::new(body);
    let length = parts.headers.get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let framing = match length {
        _ if source.is_done() || context.forwarding.is_head => Framing::Empty,
        Some(length) if length > 0 => Framing::Length(length),
        _ => Framing::Chunked,
    };
    context.forwarding.record.status = status;
    let out = writer.begin(&Reply {
        status,
        fields: &MapFields(&parts.headers),
        framing,
        length: length.filter(|length| framing == Framing::Empty || *length > 0),
        framed: false,
        upgrade: false,
        context: context.forwarding.response_context(),
    });
    let mut download = Relay::new(source, out);
    let ended = bring_back(context, upload, &mut download, waiting).await;
    context.forwarding.record.response_bytes = download.drain.sent();
    context.forwarding.record.backend_ended = Some(Instant::now());
    match ended {
        Ok(()) => Attempt::Ended { request_read: upload.is_finished() },
        Err(why) => {
            context.forwarding.record.proxy_status = Some(why);
            Attempt::Broken
        }
    }
}

/// State of the wait for a response that outlives its head.
#[derive(Debug, Default)]
struct Waiting {
    upload_failed: bool,
    stall: Stall,
}

fn poll_head<B: ClientBody, W: ClientWriter>(
    context: &mut AttemptContext<'_, '_>,
    response: &mut ResponseFuture,
    upload: &mut Relay<B, StreamOut>,
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
            Poll::Ready(Err(RelayError::Drain(_))) => waiting.upload_failed = true,
            Poll::Ready(Ok(())) if !context.whole => {
                context.ends_at = Instant::now() + context.forwarding.timeout();
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
    }
    while let Poll::Ready(Some(Ok(head))) = response.poll_informational(cx) {
        // `100 Continue` is ours to give, and was given when the body was wanted.
        if head.status() != http::StatusCode::CONTINUE {
            writer.inform(head.status().as_u16(), &MapFields(head.headers()));
        }
    }
    match Pin::new(response).poll(cx) {
        Poll::Ready(Ok(head)) => return Poll::Ready(Event::Head(Box::new(head))),
        Poll::Ready(Err(error)) => return Poll::Ready(Event::Failed(error)),
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

fn no_head(context: &mut AttemptContext<'_, '_>, event: Event, request_read: bool) -> Attempt {
    match event {
        Event::Failed(error) => {
            let why = ProxyStatus::new("connection_terminated", error.to_string());
            Attempt::Failed(outcome_of(&error), why)
        }
        Event::Client(SourceError::Malformed(reason)) => {
            Attempt::Refused(400, "Bad Request", ProxyStatus::new("http_request_error", reason))
        }
        Event::Stalled if request_read && Instant::now() < context.ends_at => {
            let why = ProxyStatus::new("http_response_timeout", "no response in time");
            Attempt::Failed(Outcome::AttemptTimeout, why)
        }
        Event::Stalled if request_read => {
            let why = ProxyStatus::new("http_response_timeout", "no response in time");
            Attempt::Refused(504, "upstream request timeout", why)
        }
        Event::Stalled => {
            let why = ProxyStatus::new("http_request_error", "the request body stood still");
            Attempt::Refused(408, "Request Timeout", why)
        }
        Event::Head(_) | Event::Client(_) | Event::ClientGone => {
            let why = ProxyStatus::new("connection_terminated", "the client went away");
            context.forwarding.record.proxy_status = Some(why);
            Attempt::Broken
        }
    }
}

/// Relays the response's body, and what is left of the request's.
async fn bring_back<B: ClientBody, O: ClientOut>(
    context: &mut AttemptContext<'_, '_>,
    upload: &mut Relay<B, StreamOut>,
    download: &mut Relay<StreamIn, O>,
    mut waiting: Waiting,
) -> Result<(), ProxyStatus> {
    let idle = context.connection.worker.limits.stream_idle_timeout;
    poll_fn(|cx| {
        if !upload.is_finished() && !waiting.upload_failed {
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
