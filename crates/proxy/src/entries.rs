//! What is logged of one request, in the field names of Google's request logs.
//!
//! A load balancer writes an entry for the share of requests its backend service wants logged, into the
//! access log and into Cloud Logging; a Cloud Run service writes one for every request, whichever way it
//! came, into Cloud Logging, and into the access log when no load balancer was on the way.
//!
//! Invariant: an entry is begun while the head of its request is still there, and finished once.

use crate::access_log::{WorkerLog, put_digits, put_json, put_json_text};
use crate::backend;
use crate::fields::{Fields, put_number};
use crate::listening::Serving;
use crate::metrics::Measured;
use crate::record::{ProxyStatus, Subject};
use crate::rewrite::Trace;
use crate::worker::Worker;
use model::ResourceName;
use plan::decision::{Decision, Forward, Matched, RequestHead};
use plan::load_balancer::Listener;
use std::rc::Rc;
use tokio::time::Instant;

/// The entries of one request, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    balancer: Option<Begun>,
    service: Option<Begun>,
}

/// The first half of an entry, and where the whole of it goes.
#[derive(Debug)]
struct Begun {
    text: Vec<u8>,
    is_for_file: bool,
    is_for_store: bool,
}

impl Entries {
    /// Begins what is to be logged of a request that has been decided.
    pub(crate) fn begin<F: Fields>(
        worker: &Rc<Worker>,
        serving: &Serving,
        subject: &Subject<'_, F>,
        trace: &Trace,
        decision: &Decision<'_>,
        started: Instant,
    ) -> Entries {
        if worker.log.is_none() && worker.store.is_none() {
            return Entries::default();
        }
        let (matched, forward) = match decision {
            Decision::Forward(forward) => (&forward.matched, Some(forward)),
            Decision::Respond(respond) => (&respond.matched, None),
        };
        let is_run_app = serving.listener.is_run_app();
        let backend = matched.backend_service;
        let is_sampled =
            !is_run_app && backend.is_some_and(|b| backend::logs(b, || worker.random()));
        let is_stored = (is_sampled || forward.is_some()) && worker.stores_one_more(started);
        let text = |log: &WorkerLog| {
            let mut text = worker.buffers.text();
            text.extend_from_slice(b"{\"timestamp\":\"");
            log.put_time(&mut text, worker.wall_clock(started));
            text
        };
        let begin = |is_for_file: bool, is_for_store: bool| {
            let file = worker.log.as_ref().filter(|_| is_for_file);
            let store = worker.store.as_ref().filter(|_| is_for_store);
            let text = text(file.or(store)?);
            Some(Begun { text, is_for_file, is_for_store })
        };
        let mut entries = Entries::default();
        if is_sampled {
            entries.balancer = begin(true, is_stored).map(|mut begun| {
                begun.text.extend_from_slice(&serving.log_labels);
                put_match(&mut begun.text, matched);
                put_trace(&mut begun.text, &serving.listener.name.project, trace);
                put_request(&mut begun.text, subject);
                begun
            });
        }
        if let Some(forward) = forward {
            entries.service = begin(is_run_app, is_stored).map(|mut begun| {
                put_service(&mut begun.text, forward);
                put_trace(&mut begun.text, &forward.revision.name.project, trace);
                put_request(&mut begun.text, subject);
                begun
            });
        }
        entries
    }

    /// Finishes the entries and hands them over.
    pub(crate) fn finish(
        &mut self,
        worker: &Worker,
        measured: &Measured,
        proxy_status: Option<&ProxyStatus>,
    ) {
        if let Some(mut begun) = self.balancer.take() {
            put_outcome(&mut begun.text, measured);
            if let Some(status) = proxy_status {
                put_proxy_status(&mut begun.text, status);
            }
            begun.hand_over(worker);
        }
        if let Some(mut begun) = self.service.take() {
            put_outcome(&mut begun.text, measured);
            put_severity_and_remark(&mut begun.text, measured, proxy_status);
            begun.hand_over(worker);
        }
    }
}

impl Begun {
    fn hand_over(mut self, worker: &Worker) {
        self.text.extend_from_slice(b"}\n");
        if let Some(log) = worker.log.as_ref().filter(|_| self.is_for_file) {
            log.push(&self.text);
        }
        if let Some(store) = worker.store.as_ref().filter(|_| self.is_for_store) {
            store.push(&self.text);
        }
        worker.buffers.give_text(self.text);
    }
}

fn put_labels<const N: usize>(out: &mut Vec<u8>, labels: [(&str, &str); N]) {
    for (name, value) in labels {
        put_json(out, name.as_bytes());
        out.push(b':');
        put_json(out, value.as_bytes());
        out.push(b',');
    }
}

/// The part of a load balancer's entry that is the same for all requests of a listener.
pub(crate) fn listener_labels(listener: &Listener) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(b"\",\"severity\":\"INFO\",\"logName\":\"projects/");
    out.extend_from_slice(listener.name.project.as_bytes());
    out.extend_from_slice(
        b"/logs/loadbalancing.googleapis.com%2Frequests\",\"resource\":{\"type\":\
          \"internal_http_lb_rule\",\"labels\":{",
    );
    let labels = [
        ("project_id", &*listener.name.project),
        ("region", listener.name.region().unwrap_or("")),
        ("network_name", &listener.network.name),
        ("forwarding_rule_name", &listener.name.name),
        ("target_proxy_name", &listener.target.name),
        ("url_map_name", backend::url_map_name(&listener.url_map)),
    ];
    put_labels(&mut out, labels);
    out
}

/// Which rule of the listener's URL map answered.
fn put_match(out: &mut Vec<u8>, matched: &Matched<'_>) {
    out.extend_from_slice(b"\"matched_url_path_rule\":");
    put_json(out, matched.rule.as_bytes());
    if let Some(backend) = matched.backend_service {
        out.extend_from_slice(b",\"backend_target_name\":\"");
        // A resource's name needs no escaping, and neither does a method or an authority that was accepted.
        out.extend_from_slice(backend::name(backend).name.as_bytes());
        out.extend_from_slice(b"\",\"backend_target_type\":\"BACKEND_SERVICE\"");
    }
    out.extend_from_slice(b"}}");
}

/// The service and revision, as the resource a Cloud Run entry is about.
fn put_service(out: &mut Vec<u8>, forward: &Forward<'_>) {
    let revision: &ResourceName = &forward.revision.name;
    let service = &*forward.service.name().name;
    out.extend_from_slice(b"\",\"logName\":\"projects/");
    out.extend_from_slice(revision.project.as_bytes());
    out.extend_from_slice(
        b"/logs/run.googleapis.com%2Frequests\",\"resource\":{\"type\":\"cloud_run_revision\",\
          \"labels\":{",
    );
    let labels = [
        ("project_id", &*revision.project),
        ("location", revision.region().unwrap_or("")),
        ("service_name", service),
        ("configuration_name", service),
    ];
    put_labels(out, labels);
    out.extend_from_slice(b"\"revision_name\":");
    put_json(out, revision.name.as_bytes());
    out.extend_from_slice(b"}}");
}

/// The trace of the request, under which the entries of its container are found too.
fn put_trace(out: &mut Vec<u8>, project: &str, trace: &Trace) {
    out.extend_from_slice(b",\"trace\":\"projects/");
    out.extend_from_slice(project.as_bytes());
    out.extend_from_slice(b"/traces/");
    out.extend_from_slice(trace.id());
    out.extend_from_slice(b"\",\"spanId\":\"");
    out.extend_from_slice(trace.span_id());
    out.push(b'"');
}

/// What the client asked for; `httpRequest` stays open.
fn put_request<F: Fields>(out: &mut Vec<u8>, subject: &Subject<'_, F>) {
    out.extend_from_slice(b",\"httpRequest\":{\"requestMethod\":\"");
    out.extend_from_slice(subject.head.method.as_bytes());
    out.extend_from_slice(b"\",\"requestUrl\":");
    put_url(out, &subject.head);
    if let Some(value) = subject.fields.first("user-agent") {
        out.extend_from_slice(b",\"userAgent\":");
        put_json(out, value);
    }
    if let Some(value) = subject.fields.first("referer") {
        out.extend_from_slice(b",\"referer\":");
        put_json(out, value);
    }
    out.extend_from_slice(b",\"remoteIp\":\"");
    out.extend_from_slice(subject.peer.client_address());
    out.push(b':');
    put_number(out, u64::from(subject.peer.client.port()));
    out.extend_from_slice(b"\",\"serverIp\":\"");
    out.extend_from_slice(subject.peer.server_address());
    out.extend_from_slice(b"\",\"protocol\":\"");
    out.extend_from_slice(subject.protocol.as_bytes());
    out.push(b'"');
}

fn put_url(out: &mut Vec<u8>, head: &RequestHead<'_>) {
    out.push(b'"');
    out.extend_from_slice(head.scheme.as_str().as_bytes());
    out.extend_from_slice(b"://");
    out.extend_from_slice(head.authority.as_bytes());
    put_json_text(out, head.path.as_bytes());
    if let Some(query) = head.query {
        out.push(b'?');
        put_json_text(out, query.as_bytes());
    }
    out.push(b'"');
}

/// What is known when the request is over; closes `httpRequest`.
fn put_outcome(out: &mut Vec<u8>, measured: &Measured) {
    out.extend_from_slice(b",\"status\":");
    put_number(out, u64::from(measured.status));
    out.extend_from_slice(b",\"requestSize\":\"");
    put_number(out, measured.request_bytes);
    out.extend_from_slice(b"\",\"responseSize\":\"");
    put_number(out, measured.response_bytes);
    out.extend_from_slice(b"\",\"latency\":\"");
    put_number(out, measured.total.as_secs());
    out.push(b'.');
    let mut micros = *b"000000s\"}";
    put_digits(&mut micros[..6], u64::from(measured.total.subsec_micros()));
    out.extend_from_slice(&micros);
}

fn put_proxy_status(out: &mut Vec<u8>, status: &ProxyStatus) {
    out.extend_from_slice(
        b",\"jsonPayload\":{\"@type\":\"type.googleapis.com/google.cloud.loadbalancing.type.\
          LoadBalancerLogEntry\",\"proxyStatus\":",
    );
    let text = format!("error=\"{}\"; details=\"{}\"", status.error, status.details);
    put_json(out, text.as_bytes());
    out.push(b'}');
}

/// Cloud Run tells by the severity how a request went, and in a sentence why it was not passed on.
fn put_severity_and_remark(out: &mut Vec<u8>, measured: &Measured, status: Option<&ProxyStatus>) {
    let severity: &[u8] = match measured.status {
        400..=499 => b"WARNING",
        0 | 500.. => b"ERROR",
        _ => b"INFO",
    };
    out.extend_from_slice(b",\"severity\":\"");
    out.extend_from_slice(severity);
    out.push(b'"');
    if let Some(status) = status {
        out.extend_from_slice(b",\"textPayload\":");
        put_json(out, status.details.as_bytes());
    }
}
