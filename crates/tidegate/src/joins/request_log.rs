//! The request logs of load balancers and services: taken from the data plane, shown by Cloud Logging.
//!
//! Invariant: what is kept is bounded in number and in bytes; the oldest gives way to the newest.

use api::logging::{LogEntry, Payload, Window};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Requests kept.
const ENTRIES_MAX: usize = 20_000;

/// Bytes of requests kept.
const BYTES_MAX: usize = 32 << 20;

/// The latest requests, as the data plane wrote them.
#[derive(Debug, Default)]
pub(crate) struct RequestEntries {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<(u64, Arc<[u8]>)>,
    bytes: usize,
    number: u64,
}

impl proxy::RequestLog for RequestEntries {
    fn take(&self, lines: &[u8]) {
        let mut kept = self.kept();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            kept.number += 1;
            kept.bytes += line.len();
            let number = kept.number;
            kept.lines.push_back((number, line.into()));
            while kept.lines.len() > ENTRIES_MAX || kept.bytes > BYTES_MAX {
                let Some((_, oldest)) = kept.lines.pop_front() else { break };
                kept.bytes -= oldest.len();
            }
        }
    }
}

impl RequestEntries {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests that lie in the window, oldest first.
    pub(crate) fn entries(&self, window: &Window) -> Vec<LogEntry> {
        // The data plane does not wait for the reading, and who follows the log reads only what is new.
        let lines: Vec<(u64, Arc<[u8]>)> = self.kept().lines.iter().cloned().collect();
        let is_recent = |line: &[u8]| {
            window.since.is_none_or(|since| begun_at(line).is_some_and(|at| at >= since))
        };
        let recent = lines.iter().filter(|(_, line)| is_recent(line));
        let entries = recent.filter_map(|(number, line)| read(*number, line));
        let label = |entry: &LogEntry, name: &str| entry.resource_labels.get(name).cloned();
        entries
            .filter(|entry| label(entry, "project_id").as_ref() == Some(&window.project))
            .filter(|entry| {
                window.service.is_none() || label(entry, "service_name") == window.service
            })
            .collect()
    }
}

/// When the request of a line began, which is what a line begins with.
fn begun_at(line: &[u8]) -> Option<SystemTime> {
    let rest = line.strip_prefix(b"{\"timestamp\":\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    let text = str::from_utf8(&rest[..end]).ok()?;
    Some(OffsetDateTime::parse(text, &Rfc3339).ok()?.into())
}

/// A line of the data plane as an entry; it writes what this reads.
fn read(number: u64, line: &[u8]) -> Option<LogEntry> {
    let entry: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let log = text("logName")?.rsplit('/').next()?.replace("%2F", "/");
    let resource = entry.get("resource")?;
    let labels = resource.get("labels")?.as_object()?;
    let resource_labels = labels
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    Some(LogEntry {
        at: begun_at(line)?,
        insert_id: format!("r{number:015x}"),
        log,
        severity: text("severity").unwrap_or_default().to_owned(),
        payload: Payload::Request {
            request: entry.get("httpRequest")?.as_object()?.clone(),
            remark: text("textPayload").map(str::to_owned),
            details: entry.get("jsonPayload").and_then(Value::as_object).cloned(),
        },
        resource_type: resource.get("type")?.as_str()?.to_owned(),
        resource_labels,
        labels: BTreeMap::new(),
        trace: text("trace").map(str::to_owned),
        span: text("spanId").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy::RequestLog;

    fn line(project: &str, service: &str, second: u32) -> String {
        format!(
            "{{\"timestamp\":\"2026-11-24T10:00:{second:02}.000001Z\",\"logName\":\"projects/{project}/logs/\
             run.googleapis.com%2Frequests\",\"resource\":{{\"type\":\"cloud_run_revision\",\"labels\":{{\
             \"project_id\":\"{project}\",\"service_name\":\"{service}\"}}}},\"httpRequest\":{{\"status\":200}},\
             \"trace\":\"projects/{project}/traces/0af7651916cd43dd8448eb211c80319c\",\
             \"spanId\":\"00f067aa0ba902b7\",\"severity\":\"INFO\"}}\n"
        )
    }

    #[test]
    fn requests_are_found_by_project_service_and_time() {
        let log = RequestEntries::default();
        log.take((line("p", "one", 1) + &line("p", "two", 2)).as_bytes());
        log.take(line("q", "one", 3).as_bytes());
        let window = |project: &str, service: Option<&str>, since: Option<u64>| Window {
            project: project.into(),
            since: since.map(|s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s)),
            service: service.map(str::to_owned),
        };
        assert_eq!(log.entries(&window("p", None, None)).len(), 2);
        assert_eq!(log.entries(&window("q", None, None)).len(), 1);
        let one = log.entries(&window("p", Some("one"), None));
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].log, "run.googleapis.com/requests");
        let trace = "projects/p/traces/0af7651916cd43dd8448eb211c80319c";
        assert_eq!(one[0].trace.as_deref(), Some(trace));
        assert_eq!(one[0].span.as_deref(), Some("00f067aa0ba902b7"));
        let Payload::Request { request, .. } = &one[0].payload else { panic!("not a request") };
        assert_eq!(request["status"], 200);
        let at_two = 1_795_514_402;
        assert_eq!(log.entries(&window("p", None, Some(at_two))).len(), 1);
    }

    #[test]
    fn the_oldest_gives_way_when_there_is_no_room() {
        let log = RequestEntries::default();
        let one = line("p", "one", 1);
        for _ in 0..ENTRIES_MAX + 10 {
            log.take(one.as_bytes());
        }
        let kept = log.kept();
        assert_eq!((kept.lines.len(), kept.lines[0].0), (ENTRIES_MAX, 11));
        assert_eq!(kept.bytes, ENTRIES_MAX * (one.len() - 1));
    }
}
