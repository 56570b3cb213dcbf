//! What Cloud Logging shows, answered by the log of the containers and that of the requests.

use crate::joins::request_log::RequestEntries;
use api::logging::{LogEntry, Logs, Payload, Window};
use serverless::logs::{Entry, LogStore, Query};
use std::sync::Arc;

/// Entries handed over at once; the newest of a longer log.
const ENTRIES_MAX: usize = 20_000;

/// The log of the containers, and that of the requests.
#[derive(Debug)]
pub(crate) struct ContainerLogs {
    store: Arc<LogStore>,
    requests: Arc<RequestEntries>,
}

impl ContainerLogs {
    pub(crate) fn new(store: Arc<LogStore>, requests: Arc<RequestEntries>) -> ContainerLogs {
        ContainerLogs { store, requests }
    }
}

impl Logs for ContainerLogs {
    fn entries(&self, window: &Window) -> Vec<LogEntry> {
        let query = Query {
            project: Some(window.project.clone()),
            service: window.service.clone(),
            since: window.since,
            limit: ENTRIES_MAX,
            ..Query::default()
        };
        let written = self.store.query(&query);
        let mut entries: Vec<LogEntry> = written.iter().map(|entry| shown(entry)).collect();
        entries.extend(self.requests.entries(window));
        entries
    }
}

fn shown(entry: &Entry) -> LogEntry {
    let origin = &entry.origin;
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut labels = entry.labels.clone();
    labels.extend([label("instanceId", &origin.instance)]);
    if !origin.container.is_empty() {
        labels.extend([label("container_name", &origin.container)]);
    }
    LogEntry {
        at: entry.at,
        insert_id: format!("{:016x}", entry.number),
        log: entry.source.log_name().to_owned(),
        severity: entry.severity.as_str().to_owned(),
        payload: match &entry.json {
            Some(object) => Payload::Json(object.clone()),
            None => Payload::Text(entry.text.clone()),
        },
        resource_type: "cloud_run_revision".to_owned(),
        resource_labels: [
            label("project_id", &origin.project),
            label("location", &origin.location),
            label("service_name", &origin.service),
            label("configuration_name", &origin.service),
            label("revision_name", &origin.revision),
        ]
        .into(),
        labels,
        trace: entry.trace.clone(),
        span: entry.span.clone(),
    }
}
