//! The life of one request, whatever protocols its two sides speak.
//!
//! [`open`] asks the plan and an instance at once, while the head is still where it was read, and costs
//! nothing to wait; [`carry_out`] is everything that may wait: a delay, the waiting room, attempts.
//!
//! Invariant: one request is decided by one plan, and its lease lives until its last byte has gone.

use crate::admission;
use crate::affinity::Affinity;
use crate::backend;
use crate::deadline::Deadline;
use crate::endpoints::{Acquire, Lease, Protocol, Refusal, Waiting};
use crate::fields::{Fields, put_number};
use crate::http1;
use crate::http1::body::Framing;
use crate::http2;
use crate::limits::VIA_HOPS_MAX;
use crate::listening::{Connection, Serving};
use crate::record::{ProxyStatus, Record, Subject};
use crate::relay::{Drain, Source};
use crate::retry::{Outcome, tries_again};
use crate::rewrite::{self, Edits, RequestContext, ResponseContext, Trace};
use http::HeaderMap;
use plan::decision::{Decision, Forward, Matched, Respond, Why};
use plan::fleet::Arrival;
use std::borrow::Cow;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// A request as its connection read it.
#[derive(Debug)]
pub(crate) struct Incoming<'a, F> {
    pub(crate) subject: Subject<'a, F>,
    /// Path and query.
    pub(crate) target: &'a str,
    pub(crate) framing: Framing,
    /// Whether the client asks for a WebSocket.
    pub(crate) upgrade: bool,
}

/// The head of a request as an instance gets it.
#[derive(Debug)]
pub(crate) enum OutboundHead {
    /// Its bytes, perhaps with the whole body behind it.
    Http1(Vec<u8>),
    /// Its fields and pseudo-fields.
    Http2(Box<http::Request<()>>),
}

/// What became of a request at first sight.
#[derive(Debug)]
pub(crate) enum Opened<'p> {
    /// The balancer answers.
    Answer(Box<Answer<'p>>),
    /// An instance will.
    Forward(Box<Forwarding<'p>>),
}

/// A response made by the balancer.
#[derive(Debug)]
pub(crate) struct Answer<'p> {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Cow<'static, str>,
    pub(crate) delay: Option<Duration>,
    pub(crate) edits: Edits<'p>,
    /// Absent for what was refused before it could be decided.
    pub(crate) record: Option<Record>,
}

impl<'p> Answer<'p> {
    /// An answer with a text and nothing else.
    pub(crate) fn text(status: u16, body: impl Into<Cow<'static, str>>) -> Answer<'p> {
        Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
            delay: None,
            edits: Edits::new(),
            record: None,
        }
    }
}

impl Answer<'_> {
    /// Whether there is a body whose type nobody stated.
    pub(crate) fn has_plain_text(&self) -> bool {
        !self.body.is_empty() && !self.headers.iter().any(|(name, _)| *name == "content-type")
    }
}

/// A request on its way to an instance.
#[derive(Debug)]
pub(crate) struct Forwarding<'p> {
    pub(crate) forward: Forward<'p>,
    pub(crate) record: Record,
    trace: Trace,
    pub(crate) framing: Framing,
    pub(crate) upgrade: bool,
    pub(crate) is_head: bool,
    pub(crate) idempotent: bool,
    /// The lease, and the head for it, if there was room at once.
    ready: Option<(Lease, OutboundHead)>,
    waiting: Option<Queued>,
    /// The request's `Origin`, when the URL map's CORS policy allows it.
    origin: Option<String>,
    timeout: Duration,
    /// Present when the revision wants clients back on their instances.
    affinity: Option<Affinity>,
}

/// A place in a waiting room.
struct Queued(Waiting);

impl std::fmt::Debug for Queued {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Queued")
    }
}

/// Decides a request and asks for an instance.
pub(crate) fn open<'p, F: Fields>(
    connection: &Connection,
    serving: &'p Serving,
    incoming: &Incoming<'_, F>,
    started: Instant,
) -> Opened<'p> {
    let worker = &connection.worker;
    let subject = &incoming.subject;
    let decision = if rewrite::hops_through_us(subject.fields) > VIA_HOPS_MAX {
        Decision::Respond(loop_detected())
    } else {
        serving.decide(&subject.head, worker.random())
    };
    let slot = &connection.slot;
    let trace = rewrite::trace_of(subject.fields, || worker.fresh_trace());
    let record = Record::begin(worker, slot, serving, subject, &trace, &decision, started);
    match decision {
        Decision::Respond(respond) => Opened::Answer(Box::new(answer(respond, record))),
        Decision::Forward(forward) => {
            let arrival = serving.listener.arrival;
            open_forward(connection, incoming, arrival, forward, trace, record)
        }
    }
}

fn loop_detected<'p>() -> Respond<'p> {
    Respond {
        matched: Matched::default(),
        status: 502,
        headers: Vec::new(),
        body: "loop detected".into(),
        delay: None,
        why: Why::NoRoute,
        header_actions: Default::default(),
    }
}

fn answer<'p>(respond: Respond<'p>, mut record: Record) -> Answer<'p> {
    record.proxy_status = Some(if respond.status == 502 && respond.body == "loop detected" {
        ProxyStatus::new("proxy_loop_detected", "the request came through here too often")
    } else {
        ProxyStatus::of(&respond.why)
    });
    Answer {
        status: respond.status,
        headers: respond.headers,
        body: respond.body,
        delay: respond.delay,
        edits: rewrite::edits(respond.header_actions.iter().map(|action| &action.response)),
        record: Some(record),
    }
}

fn open_forward<'p, F: Fields>(
    connection: &Connection,
    incoming: &Incoming<'_, F>,
    arrival: Arrival,
    forward: Forward<'p>,
    trace: Trace,
    record: Record,
) -> Opened<'p> {
    let head = &incoming.subject.head;
    let limits = &connection.worker.limits;
    let timeout = [forward.timeout, Some(forward.revision.timeout)]
        .into_iter()
        .flatten()
        .fold(limits.backend_timeout, Duration::min);
    let origin = forward.cors.and_then(|policy| {
        let origin = std::str::from_utf8(incoming.subject.fields.first("origin")?).ok()?;
        policy.allows_origin(origin).then(|| origin.to_owned())
    });
    let mut forwarding = Box::new(Forwarding {
        record,
        trace,
        framing: incoming.framing,
        upgrade: incoming.upgrade,
        is_head: head.method == "HEAD",
        idempotent: matches!(head.method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE"),
        ready: None,
        waiting: None,
        origin,
        timeout,
        affinity: Affinity::of(forward.revision, incoming.subject.fields),
        forward,
    });
    let (callers, service) = (&*connection.worker.callers, forwarding.forward.service);
    if let Some(refused) = admission::refused(callers, service, arrival, &incoming.subject) {
        return Opened::Answer(Box::new(forwarding.not_admitted(refused)));
    }
    if forwarding.forward.delay.is_none() {
        match forwarding.ask(connection) {
            Acquire::Ready(lease) => {
                forwarding.settle_on(&lease);
                let head = outbound_head(connection, &forwarding, incoming, lease.protocol);
                forwarding.ready = Some((lease, head));
            }
            Acquire::Wait(waiting) => forwarding.waiting = Some(Queued(waiting)),
            Acquire::Refused(refusal) => {
                return Opened::Answer(Box::new(forwarding.refuse(refusal)));
            }
        }
    }
    Opened::Forward(forwarding)
}

/// Writes the head an instance gets, from the head the client sent.
pub(crate) fn outbound_head<F: Fields>(
    connection: &Connection,
    forwarding: &Forwarding<'_>,
    incoming: &Incoming<'_, F>,
    protocol: Protocol,
) -> OutboundHead {
    let forward = &forwarding.forward;
    let authority = forward.authority.unwrap_or(incoming.subject.head.authority);
    let target = forward.path_and_query.as_deref().unwrap_or(incoming.target);
    let edits = rewrite::edits(
        (forward.header_actions.iter().map(|action| &action.request))
            .chain(Some(backend::request_edit(forward.backend_service))),
    );
    let context = RequestContext {
        peer: &connection.peer,
        protocol: incoming.subject.protocol,
        trace: forwarding.trace,
        original_path: forward.path_and_query.as_ref().map(|_| incoming.target),
        edits,
        http2: protocol == Protocol::H2c,
    };
    let method = incoming.subject.head.method;
    match protocol {
        Protocol::Http1 => {
            let mut out = connection.worker.buffers.text();
            for part in [method, " ", target, " HTTP/1.1\r\nhost: ", authority, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
            rewrite::request_fields(incoming.subject.fields, &context, &mut out);
            put_request_framing(&mut out, method, incoming);
            OutboundHead::Http1(out)
        }
        Protocol::H2c => {
            let mut fields = HeaderMap::new();
            rewrite::request_fields(incoming.subject.fields, &context, &mut fields);
            if let Framing::Length(length) = incoming.framing {
                fields.insert(http::header::CONTENT_LENGTH, length.into());
            }
            OutboundHead::Http2(Box::new(http2::upstream::request_head(
                method, authority, target, fields,
            )))
        }
    }
}

fn put_request_framing<F>(out: &mut Vec<u8>, method: &str, incoming: &Incoming<'_, F>) {
    match incoming.framing {
        Framing::Empty if incoming.upgrade => {
            out.extend_from_slice(b"connection: upgrade\r\nupgrade: websocket\r\n");
        }
        Framing::Empty if matches!(method, "POST" | "PUT" | "PATCH") => {
            out.extend_from_slice(b"content-length: 0\r\n");
        }
        Framing::Empty => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            put_number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked | Framing::UntilClose => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The request's body, as its connection reads it.
pub(crate) trait ClientBody: Source {
    /// Whether the bytes come with their chunk framing.
    fn is_framed(&self) -> bool;
    /// From here on the body is whatever the connection carries, until it ends.
    fn become_tunnel(&mut self);
    /// Ready when the client has gone and nobody waits for a response; asked once the body is done.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The head of a response, on its way to the client.
#[derive(Debug)]
pub(crate) struct Reply<'a, F> {
    pub(crate) status: u16,
    pub(crate) fields: &'a F,
    pub(crate) framing: Framing,
    /// The declared length, also where no body follows.
    pub(crate) length: Option<u64>,
    /// Whether the body's bytes come with their chunk framing.
    pub(crate) framed: bool,
    pub(crate) upgrade: bool,
    pub(crate) context: ResponseContext<'a>,
}

/// The way back to the client, before the response begins.
pub(crate) trait ClientWriter {
    /// Where the body goes.
    type Out: ClientOut;
    /// Tells a client that waits for it to send its body.
    fn welcome(&mut self);
    /// Passes an informational response on.
    fn inform<F: Fields>(&mut self, status: u16, fields: &F);
    /// Sends what was written so far.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ready when the client has given the request up.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Whether chunk framing can be passed on as it is.
    fn takes_framed(&self) -> bool;
    /// Begins the response.
    fn begin<F: Fields>(self, reply: &Reply<'_, F>) -> Self::Out;
}

/// Where a response's body goes.
pub(crate) trait ClientOut: Drain {
    /// Bytes given to the connection so far.
    fn sent(&self) -> u64;
}

/// One request's side of a client connection.
pub(crate) trait Client {
    /// The body.
    type Body<'a>: ClientBody
    where
        Self: 'a;
    /// The way back.
    type Writer<'a>: ClientWriter
    where
        Self: 'a;
    /// Ready when the client has gone while the request waits for an instance.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// Writes the outbound head once more; only before the first `split`.
    fn outbound_head(&self, forwarding: &Forwarding<'_>, protocol: Protocol) -> OutboundHead;
    /// Puts a small body that is all there behind its head. True when the head is now the whole request.
    fn absorb_body(&mut self, head: &mut OutboundHead) -> bool;
    /// The body, with its chunk framing if `framed`, and the way back.
    fn split(&mut self, framed: bool) -> (Self::Body<'_>, Self::Writer<'_>);
}

/// How a request ended for its connection.
#[derive(Debug)]
pub(crate) enum Ending<'p> {
    /// The response went out; whether the connection may carry another request is its own to know, but
    /// not if the request was left unread.
    Complete {
        /// Whether the request was read to its end.
        request_read: bool,
    },
    /// The balancer answers after all.
    Answer(Box<Answer<'p>>),
    /// The response was cut, or the client is gone: the connection is of no more use.
    Broken,
}

/// How one attempt ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// For good.
    Ended {
        /// See [`Ending::Complete`].
        request_read: bool,
    },
    /// The response was cut, or the client is gone.
    Broken,
    /// It failed in a way that may allow another one.
    Failed(Outcome, ProxyStatus),
    /// The balancer answers, whatever the policy says.
    Refused(u16, &'static str, ProxyStatus),
}

/// What every attempt needs to know.
#[derive(Debug)]
pub(crate) struct AttemptContext<'a, 'p> {
    pub(crate) connection: &'a Connection,
    pub(crate) forwarding: &'a mut Forwarding<'p>,
    pub(crate) deadline: &'a mut Deadline,
    /// When the response has to be complete, once the request is.
    pub(crate) ends_at: Instant,
    /// Attempts made, this one included.
    pub(crate) attempts: u32,
    /// Whether the outbound head is the whole request and can be sent again.
    pub(crate) whole: bool,
    /// When the attempt began, if that is already known.
    pub(crate) begun: Option<Instant>,
    /// When this attempt counts as too slow, once that is known.
    pub(crate) attempt_ends_at: Option<Instant>,
}

impl AttemptContext<'_, '_> {
    /// When this attempt begins: with the request itself, if nothing had to be waited for.
    pub(crate) fn begins_at(&self) -> Instant {
        self.begun.unwrap_or_else(Instant::now)
    }

    /// When this attempt has to have brought a response head.
    pub(crate) fn attempt_ends_at(&mut self) -> Instant {
        let Some(span) = self.forwarding.forward.retry.and_then(|policy| policy.per_try_timeout)
        else {
            return self.ends_at;
        };
        let at = *self.attempt_ends_at.get_or_insert_with(|| Instant::now() + span);
        at.min(self.ends_at)
    }

    /// Whether a response like this is not passed on because another attempt follows.
    pub(crate) fn tries_again(&self, outcome: Outcome) -> bool {
        let policy = self.forwarding.forward.retry;
        self.whole && tries_again(policy, self.forwarding.idempotent, self.attempts, outcome)
    }
}

impl<'p> Forwarding<'p> {
    /// The time from the end of the request to the end of the response.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks for an instance, the client's own first if it has one.
    fn ask(&self, connection: &Connection) -> Acquire {
        let endpoints = &connection.worker.endpoints;
        match &self.affinity {
            None => endpoints.acquire(self.forward.revision),
            Some(affinity) => {
                endpoints.acquire_preferring(self.forward.revision, affinity.wanted())
            }
        }
    }

    /// Remembers which instance answers.
    fn settle_on(&mut self, lease: &Lease) {
        if let Some(affinity) = &mut self.affinity {
            affinity.give(lease.instance);
        }
    }

    /// Edits, CORS and the cookie of the response.
    pub(crate) fn response_context<'a>(&'a self) -> ResponseContext<'a> {
        let forward = &self.forward;
        let edits = rewrite::edits(
            (forward.header_actions.iter().map(|action| &action.response))
                .chain(Some(backend::response_edit(forward.backend_service))),
        );
        let cors = forward.cors.zip(self.origin.clone());
        let cookie = self.affinity.as_ref().and_then(Affinity::set_cookie);
        ResponseContext { edits, cors, cookie }
    }

    fn not_admitted(self, refused: plan::fleet::Refusal) -> Answer<'p> {
        let status = ProxyStatus::new("http_request_denied", refused.log);
        let mut answer = self.answer(refused.status, refused.body, status);
        answer.headers.push(("content-type", "text/html; charset=UTF-8".to_owned()));
        if let Some(challenge) = refused.authenticate {
            answer.headers.push(("www-authenticate", challenge.to_owned()));
        }
        answer
    }

    fn refuse(self, refusal: Refusal) -> Answer<'p> {
        let status = ProxyStatus::new("destination_unavailable", refusal.reason);
        self.answer(refusal.status, refusal.body, status)
    }

    fn answer(
        mut self,
        status: u16,
        body: impl Into<Cow<'static, str>>,
        proxy_status: ProxyStatus,
    ) -> Answer<'p> {
        self.record.proxy_status = Some(proxy_status);
        let forward = &self.forward;
        Answer {
            edits: rewrite::edits(forward.header_actions.iter().map(|action| &action.response)),
            record: Some(self.record),
            ..Answer::text(status, body)
        }
    }
}

/// Everything of a request that may wait.
pub(crate) async fn carry_out<'p, C: Client>(
    connection: &Connection,
    client: &mut C,
    mut forwarding: Box<Forwarding<'p>>,
    deadline: &mut Deadline,
    started: Instant,
) -> Ending<'p> {
    if let Some(delay) = forwarding.forward.delay {
        tokio::time::sleep(delay).await;
    }
    let ends_at = started + forwarding.timeout;
    let at_once = forwarding.ready.is_some();
    let mut head = None;
    let mut attempts = 0;
    let mut whole = false;
    loop {
        let (lease, fresh_head) = match forwarding.ready.take() {
            Some((lease, head)) => (lease, Some(head)),
            None => match acquire(connection, client, &mut forwarding, deadline, ends_at).await {
                Some(Ok(lease)) => {
                    forwarding.settle_on(&lease);
                    (lease, None)
                }
                Some(Err(refusal)) => return Ending::Answer(Box::new(forwarding.refuse(refusal))),
                None => return Ending::Broken,
            },
        };
        let head = head.get_or_insert_with(|| {
            let mut fresh =
                fresh_head.unwrap_or_else(|| client.outbound_head(&forwarding, lease.protocol));
            whole = client.absorb_body(&mut fresh);
            fresh
        });
        attempts += 1;
        let context = AttemptContext {
            connection,
            forwarding: &mut forwarding,
            deadline: &mut *deadline,
            ends_at,
            attempts,
            whole,
            begun: (at_once && attempts == 1).then_some(started),
            attempt_ends_at: None,
        };
        let attempt = match head {
            OutboundHead::Http1(bytes) => {
                http1::upstream::attempt(client, context, bytes, &lease).await
            }
            OutboundHead::Http2(request) => {
                http2::upstream::attempt(client, context, request, &lease).await
            }
        };
        drop(lease);
        match attempt {
            Attempt::Ended { request_read } => return Ending::Complete { request_read },
            Attempt::Broken => return Ending::Broken,
            Attempt::Refused(status, body, why) => {
                return Ending::Answer(Box::new(forwarding.answer(status, body, why)));
            }
            Attempt::Failed(outcome, why) => {
                let policy = forwarding.forward.retry;
                let again = whole && tries_again(policy, forwarding.idempotent, attempts, outcome);
                if !again {
                    return Ending::Answer(Box::new(failed(*forwarding, outcome, why)));
                }
            }
        }
    }
}

/// The answer for a request whose last attempt failed, in the words of the real balancer.
fn failed<'p>(forwarding: Forwarding<'p>, outcome: Outcome, why: ProxyStatus) -> Answer<'p> {
    const RESET: &str = "upstream connect error or disconnect/reset before headers. reset reason: ";
    match outcome {
        Outcome::AttemptTimeout => forwarding.answer(504, "upstream request timeout", why),
        Outcome::ConnectFailure => {
            forwarding.answer(503, format!("{RESET}connection failure"), why)
        }
        Outcome::Reset => forwarding.answer(503, format!("{RESET}connection termination"), why),
        Outcome::RefusedStream => {
            forwarding.answer(503, format!("{RESET}remote refused stream reset"), why)
        }
        Outcome::Status { .. } => forwarding.answer(502, format!("{RESET}protocol error"), why),
    }
}

/// Waits for room on an instance, at most until the request times out; nothing when the client goes.
async fn acquire<C: Client>(
    connection: &Connection,
    client: &mut C,
    forwarding: &mut Forwarding<'_>,
    deadline: &mut Deadline,
    ends_at: Instant,
) -> Option<Result<Lease, Refusal>> {
    let acquired = match forwarding.waiting.take() {
        Some(Queued(waiting)) => Acquire::Wait(waiting),
        None => forwarding.ask(connection),
    };
    match acquired {
        Acquire::Ready(lease) => Some(Ok(lease)),
        Acquire::Refused(refusal) => Some(Err(refusal)),
        Acquire::Wait(mut waiting) => deadline
            .until(ends_at, |cx| match client.poll_gone(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => waiting.as_mut().poll(cx).map(Some),
            })
            .await
            .unwrap_or_else(|_| {
                Some(Err(Refusal {
                    status: 504,
                    body: "upstream request timeout".into(),
                    reason: "no instance became available in time".into(),
                }))
            }),
    }
}

/// Waits out the delay of an answer.
pub(crate) async fn wait_out(delay: Option<Duration>) {
    if let Some(delay) = delay {
        tokio::time::sleep(delay).await;
    }
}
