//! What is remembered of one request until it is over: its counters and its line in the access log.
//!
//! Invariant: every request that was decided is recorded exactly once, also one that is aborted or whose
//! task panics, because recording happens on drop.

use crate::access_log::{put_json, put_time};
use crate::backend;
use crate::fields::{Fields, put_number};
use crate::listening::{Serving, Slot};
use crate::metrics::{Group, GroupKey, Labels, Measured};
use crate::peer::Peer;
use crate::worker::Worker;
use plan::decision::{Decision, Matched, RequestHead, Why};
use plan::load_balancer::Listener;
use std::borrow::Cow;
use std::rc::Rc;
use std::time::SystemTime;
use tokio::time::Instant;

/// Why the balancer ended a request, in the words of RFC 9209.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyStatus {
    pub(crate) error: &'static str,
    pub(crate) details: Cow<'static, str>,
}

impl ProxyStatus {
    pub(crate) fn new(error: &'static str, details: impl Into<Cow<'static, str>>) -> ProxyStatus {
        ProxyStatus { error, details: details.into() }
    }

    /// What a decision of the plan is called in the log.
    pub(crate) fn of(why: &Why) -> ProxyStatus {
        match why {
            Why::Redirect => ProxyStatus::new("proxy_internal_response", "redirect"),
            Why::CorsPreflight => ProxyStatus::new("proxy_internal_response", "cors_preflight"),
            Why::FaultAbort => ProxyStatus::new("proxy_internal_response", "fault_filter_abort"),
            other => ProxyStatus::new("destination_not_found", format!("{other:?}")),
        }
    }
}

/// One request on its way.
#[derive(Debug)]
pub(crate) struct Record {
    worker: Rc<Worker>,
    slot: Rc<Slot>,
    group: Rc<Group>,
    /// The first part of the log line, when this request is logged.
    line: Option<Vec<u8>>,
    started: Instant,
    pub(crate) status: u16,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) backend_started: Option<Instant>,
    pub(crate) backend_ended: Option<Instant>,
    pub(crate) proxy_status: Option<ProxyStatus>,
}

impl Record {
    /// Begins the record of a request that has been decided.
    pub(crate) fn begin<F: Fields>(
        worker: &Rc<Worker>,
        slot: &Rc<Slot>,
        serving: &Serving,
        subject: &Subject<'_, F>,
        decision: &Decision<'_>,
        started: Instant,
    ) -> Record {
        let (matched, revision) = match decision {
            Decision::Forward(forward) => (&forward.matched, Some(forward.revision)),
            Decision::Respond(respond) => (&respond.matched, None),
        };
        let backend = matched.backend_service;
        let key = GroupKey {
            rule: serving.listener.id,
            backend: backend.map_or(0, |backend| backend::id(backend)),
            revision: revision.map_or(0, |revision| revision.id),
            protocol: subject.protocol,
        };
        let group = worker.metrics.group(key, || {
            let rule = &serving.listener;
            let project = rule.name.project.to_string();
            let named = |name: &model::ResourceName| name.name.to_string();
            Labels {
                project,
                region: rule.name.region().unwrap_or("").to_owned(),
                network: named(&rule.network),
                forwarding_rule: named(&rule.name),
                target_proxy: named(&rule.target),
                backend_service: backend.map(|b| named(backend::name(b))).unwrap_or_default(),
                service: revision.map(|r| named(&r.declared.service)).unwrap_or_default(),
                revision: revision.map(|r| named(&r.name)).unwrap_or_default(),
                protocol: subject.protocol,
            }
        });
        let line = worker.log.as_ref().and_then(|_| {
            let sampled = backend.is_some_and(|b| backend::logs(b, || worker.random()));
            sampled.then(|| first_half(worker.buffers.text(), serving, subject, matched))
        });
        slot.cells.requests.add(1);
        Record {
            worker: worker.clone(),
            slot: slot.clone(),
            group,
            line,
            started,
            status: 0,
            request_bytes: subject.head_bytes,
            response_bytes: 0,
            backend_started: None,
            backend_ended: None,
            proxy_status: None,
        }
    }

    fn measured(&self, now: Instant) -> Measured {
        let backend = self
            .backend_started
            .map(|start| self.backend_ended.unwrap_or(now).saturating_duration_since(start));
        Measured {
            status: self.status,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            total: now.saturating_duration_since(self.started),
            backend,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // The end of the backend's part is the end of the request, but for what the log costs.
        let measured = self.measured(self.backend_ended.unwrap_or_else(Instant::now));
        self.group.record(&measured);
        self.slot.cells.by_class[usize::from(self.status / 100).min(5)].add(1);
        if let (Some(mut line), Some(log)) = (self.line.take(), &self.worker.log) {
            second_half(&mut line, &measured, self.proxy_status.as_ref());
            log.push(&line);
            self.worker.buffers.give_text(line);
        }
    }
}

/// What the log says about a request beyond its decision.
#[derive(Debug)]
pub(crate) struct Subject<'a, F> {
    pub(crate) head: RequestHead<'a>,
    pub(crate) fields: &'a F,
    pub(crate) protocol: &'static str,
    pub(crate) peer: &'a Peer,
    pub(crate) head_bytes: u64,
}

/// The part of a log entry that is the same for all requests of a listener.
pub(crate) fn listener_labels(listener: &Listener) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(b"\",\"severity\":\"INFO\",\"logName\":\"projects/");
    out.extend_from_slice(listener.name.project.as_bytes());
    out.extend_from_slice(
        b"/logs/loadbalancing.googleapis.com%2Frequests\",\"resource\":{\"type\":\
          \"internal_http_lb_rule\",\"labels\":{",
    );
    let labels: [(&str, &str); 6] = [
        ("project_id", &listener.name.project),
        ("region", listener.name.region().unwrap_or("")),
        ("network_name", &listener.network.name),
        ("forwarding_rule_name", &listener.name.name),
        ("target_proxy_name", &listener.target.name),
        ("url_map_name", backend::url_map_name(&listener.url_map)),
    ];
    for (name, value) in labels {
        put_json(&mut out, name.as_bytes());
        out.push(b':');
        put_json(&mut out, value.as_bytes());
        out.push(b',');
    }
    out
}

/// Everything of a log entry that is known once a request is decided.
fn first_half<F: Fields>(
    mut out: Vec<u8>,
    serving: &Serving,
    subject: &Subject<'_, F>,
    matched: &Matched<'_>,
) -> Vec<u8> {
    out.extend_from_slice(b"{\"timestamp\":\"");
    put_time(&mut out, SystemTime::now());
    out.extend_from_slice(&serving.log_labels);
    out.extend_from_slice(b"\"matched_url_path_rule\":");
    put_json(&mut out, matched.rule.as_bytes());
    if let Some(backend) = matched.backend_service {
        out.extend_from_slice(b",\"backend_target_name\":");
        put_json(&mut out, backend::name(backend).name.as_bytes());
        out.extend_from_slice(b",\"backend_target_type\":\"BACKEND_SERVICE\"");
    }
    out.extend_from_slice(b"}},\"httpRequest\":{\"requestMethod\":");
    put_json(&mut out, subject.head.method.as_bytes());
    out.extend_from_slice(b",\"requestUrl\":");
    put_url(&mut out, &subject.head);
    if let Some(value) = subject.fields.first("user-agent") {
        out.extend_from_slice(b",\"userAgent\":");
        put_json(&mut out, value);
    }
    if let Some(value) = subject.fields.first("referer") {
        out.extend_from_slice(b",\"referer\":");
        put_json(&mut out, value);
    }
    out.extend_from_slice(b",\"remoteIp\":\"");
    out.extend_from_slice(subject.peer.remote.as_bytes());
    out.extend_from_slice(b"\",\"serverIp\":\"");
    let server = subject.peer.forwarded.rsplit(',').next().unwrap_or("");
    out.extend_from_slice(server.as_bytes());
    out.extend_from_slice(b"\",\"protocol\":\"");
    out.extend_from_slice(subject.protocol.as_bytes());
    out.push(b'"');
    out
}

fn put_url(out: &mut Vec<u8>, head: &RequestHead<'_>) {
    let mut url: smallvec::SmallVec<[u8; 256]> = smallvec::SmallVec::new();
    url.extend_from_slice(head.scheme.as_str().as_bytes());
    url.extend_from_slice(b"://");
    url.extend_from_slice(head.authority.as_bytes());
    url.extend_from_slice(head.path.as_bytes());
    if let Some(query) = head.query {
        url.push(b'?');
        url.extend_from_slice(query.as_bytes());
    }
    put_json(out, &url);
}

/// What is known when the request is over.
fn second_half(out: &mut Vec<u8>, measured: &Measured, proxy_status: Option<&ProxyStatus>) {
    out.extend_from_slice(b",\"status\":");
    put_number(out, u64::from(measured.status));
    out.extend_from_slice(b",\"requestSize\":\"");
    put_number(out, measured.request_bytes);
    out.extend_from_slice(b"\",\"responseSize\":\"");
    put_number(out, measured.response_bytes);
    out.extend_from_slice(b"\",\"latency\":\"");
    put_number(out, measured.total.as_secs());
    out.push(b'.');
    let micros = measured.total.subsec_micros();
    for place in [100_000, 10_000, 1_000, 100, 10, 1] {
        out.push(b"0123456789"[(micros / place % 10) as usize]);
    }
    out.extend_from_slice(b"s\"}");
    if let Some(status) = proxy_status {
        out.extend_from_slice(
            b",\"jsonPayload\":{\"@type\":\"type.googleapis.com/google.cloud.loadbalancing.type.\
              LoadBalancerLogEntry\",\"proxyStatus\":",
        );
        let text = format!("error=\"{}\"; details=\"{}\"", status.error, status.details);
        put_json(out, text.as_bytes());
        out.push(b'}');
    }
    out.extend_from_slice(b"}\n");
}
