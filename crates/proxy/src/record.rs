//! What is remembered of one request until it is over: its counters and its line in the access log.
//!
//! Invariant: every request that was decided is recorded exactly once, also one that is aborted or whose
//! task panics, because recording happens on drop.

use crate::backend;
use crate::entries::Entries;
use crate::fields::Fields;
use crate::listening::{Serving, Slot};
use crate::metrics::{Group, GroupKey, Labels, Measured};
use crate::peer::Peer;
use crate::rewrite::Trace;
use crate::worker::Worker;
use model::ResourceName;
use plan::decision::{Decision, Matched, RequestHead, Why};
use plan::fleet::RevisionPlan;
use plan::load_balancer::Listener;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
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
    /// The first parts of what is logged of this request.
    entries: Entries,
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
        trace: &Trace,
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
        let group = worker
            .metrics
            .group(key, || labels(&serving.listener, matched, revision, subject.protocol));
        let entries = Entries::begin(worker, serving, subject, trace, decision, started);
        slot.cells.requests.add(1);
        Record {
            worker: worker.clone(),
            slot: slot.clone(),
            group,
            entries,
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
        let measured =
            self.measured(self.backend_ended.unwrap_or_else(|| self.worker.read_clock()));
        self.group.record(&measured);
        self.slot.cells.by_class[usize::from(self.status / 100).min(5)].add(1);
        self.entries.finish(&self.worker, &measured, self.proxy_status.as_ref());
    }
}

/// The labels under which a request is counted. Services' own addresses have no forwarding rule.
fn labels(
    listener: &Listener,
    matched: &Matched<'_>,
    revision: Option<&Arc<RevisionPlan>>,
    protocol: &'static str,
) -> Labels {
    let named = |name: &ResourceName| name.name.to_string();
    let of_service = Labels {
        service: revision.map(|r| named(&r.declared.service)).unwrap_or_default(),
        revision: revision.map(|r| named(&r.name)).unwrap_or_default(),
        protocol,
        ..Labels::default()
    };
    let place = match listener.is_run_app() {
        true => revision.map(|revision| &revision.name),
        false => Some(&listener.name),
    };
    let in_place = Labels {
        project: place.map(|name| name.project.to_string()).unwrap_or_default(),
        region: place.and_then(|name| name.region()).unwrap_or_default().to_owned(),
        ..of_service
    };
    if listener.is_run_app() {
        return in_place;
    }
    let backend = matched.backend_service;
    Labels {
        network: named(&listener.network),
        forwarding_rule: named(&listener.name),
        target_proxy: named(&listener.target),
        backend_service: backend.map(|b| named(backend::name(b))).unwrap_or_default(),
        ..in_place
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
