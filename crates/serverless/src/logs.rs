//! What containers wrote, kept for as long as there is room, to be queried and followed.
//!
//! A service that floods its log pushes out its own lines and nobody else's, until all services
//! together reach the common bound; then the one that holds the most gives way.
//!
//! Invariant: no service holds more than `SERVICE_BYTES_MAX`, and all together no more than
//! `TOTAL_BYTES_MAX`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use plan::fleet::RevisionPlan;
use serde_json::Value;
use tokio::sync::watch;

use crate::runtime::{InstanceId, LogLine, LogSink, Stream};

/// Bytes of lines kept for one service.
pub const SERVICE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of lines kept for all services together.
pub const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What an entry costs besides its text, about.
const ENTRY_OVERHEAD_BYTES: usize = 160;

/// How serious an entry is; the numbers and words are Cloud Logging's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// `DEFAULT`
    #[default]
    Default = 0,
    /// `DEBUG`
    Debug = 100,
    /// `INFO`
    Info = 200,
    /// `NOTICE`
    Notice = 300,
    /// `WARNING`
    Warning = 400,
    /// `ERROR`
    Error = 500,
    /// `CRITICAL`
    Critical = 600,
    /// `ALERT`
    Alert = 700,
    /// `EMERGENCY`
    Emergency = 800,
}

impl Severity {
    /// Cloud Logging's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Default => "DEFAULT",
            Severity::Debug => "DEBUG",
            Severity::Info => "INFO",
            Severity::Notice => "NOTICE",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
            Severity::Critical => "CRITICAL",
            Severity::Alert => "ALERT",
            Severity::Emergency => "EMERGENCY",
        }
    }

    /// Reads the words loggers use, in any case; unknown ones are `None`.
    pub fn parse(word: &str) -> Option<Severity> {
        let severity = match word.to_ascii_uppercase().as_str() {
            "DEFAULT" => Severity::Default,
            "DEBUG" | "TRACE" => Severity::Debug,
            "INFO" | "INFORMATION" => Severity::Info,
            "NOTICE" => Severity::Notice,
            "WARNING" | "WARN" => Severity::Warning,
            "ERROR" | "ERR" => Severity::Error,
            "CRITICAL" | "FATAL" => Severity::Critical,
            "ALERT" => Severity::Alert,
            "EMERGENCY" => Severity::Emergency,
            _ => return None,
        };
        Some(severity)
    }
}

/// Where an entry comes from; the last segment of Cloud Logging's log name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// `run.googleapis.com/stdout`
    Stdout,
    /// `run.googleapis.com/stderr`
    Stderr,
    /// `run.googleapis.com/varlog/system`: what the platform says about an instance.
    System,
}

impl Source {
    /// The log's name within its project.
    pub fn log_name(self) -> &'static str {
        match self {
            Source::Stdout => "run.googleapis.com/stdout",
            Source::Stderr => "run.googleapis.com/stderr",
            Source::System => "run.googleapis.com/varlog/system",
        }
    }
}

/// One entry of a service's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Grows with every entry of the store.
    pub number: u64,
    /// When it was read.
    pub at: SystemTime,
    /// What wrote it.
    pub origin: Arc<Origin>,
    /// By which way.
    pub source: Source,
    /// How serious it says it is.
    pub severity: Severity,
    /// The line, unless it was JSON.
    pub text: String,
    /// The JSON object the line was, without `severity` and the fields below.
    pub json: Option<serde_json::Map<String, Value>>,
    /// `logging.googleapis.com/trace`.
    pub trace: Option<String>,
    /// `logging.googleapis.com/spanId`.
    pub span: Option<String>,
    /// `logging.googleapis.com/labels`.
    pub labels: BTreeMap<String, String>,
}

/// What an entry is about, in the labels of the resource `cloud_run_revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The project id.
    pub project: String,
    /// The region.
    pub location: String,
    /// The service, which is also the configuration.
    pub service: String,
    /// The revision.
    pub revision: String,
    /// The instance.
    pub instance: String,
    /// The container, where there are several.
    pub container: String,
}

impl Origin {
    /// An instance of a revision.
    pub fn of(revision: &RevisionPlan, instance: &str) -> Origin {
        let service = &revision.declared.service;
        Origin {
            project: service.project.to_string(),
            location: service.region().unwrap_or_default().to_owned(),
            service: service.name.to_string(),
            revision: revision.name.name.to_string(),
            instance: instance.to_owned(),
            container: String::new(),
        }
    }
}

/// Which entries are asked for; what is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// The project.
    pub project: Option<String>,
    /// The region.
    pub location: Option<String>,
    /// The service.
    pub service: Option<String>,
    /// The revision.
    pub revision: Option<String>,
    /// Not before this.
    pub since: Option<SystemTime>,
    /// Not after this.
    pub until: Option<SystemTime>,
    /// Only later entries than this one.
    pub after_number: Option<u64>,
    /// At least this serious.
    pub severity_min: Option<Severity>,
    /// At most so many, the newest.
    pub limit: usize,
}

/// The log of all services.
#[derive(Debug)]
pub struct LogStore {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    services: HashMap<ServiceKey, Service>,
    instances: HashMap<InstanceId, Arc<Origin>>,
    bytes: usize,
    number: u64,
}

/// Project, region, service.
type ServiceKey = (String, String, String);

#[derive(Debug, Default)]
struct Service {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl Default for LogStore {
    fn default() -> LogStore {
        LogStore { kept: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl LogStore {
    /// An empty store.
    pub fn new() -> Arc<LogStore> {
        Arc::default()
    }

    /// Says whose lines an instance's are; until then they are not kept.
    pub fn register(&self, instance: &InstanceId, revision: &RevisionPlan) {
        let origin = Arc::new(Origin::of(revision, instance.as_str()));
        self.lock().instances.insert(instance.clone(), origin);
    }

    /// Forgets an instance that will not write any more; its lines stay.
    pub fn unregister(&self, instance: &InstanceId) {
        self.lock().instances.remove(instance);
    }

    /// An entry by the platform about an instance or a revision.
    pub fn system(
        &self,
        origin: Origin,
        severity: Severity,
        text: impl Into<String>,
        at: SystemTime,
    ) {
        self.push(Entry {
            number: 0,
            at,
            origin: Arc::new(origin),
            source: Source::System,
            severity,
            text: text.into(),
            json: None,
            trace: None,
            span: None,
            labels: BTreeMap::new(),
        });
    }

    /// The newest entries that fit the query, oldest first.
    pub fn query(&self, query: &Query) -> Vec<Arc<Entry>> {
        let kept = self.lock();
        let wanted = |key: &ServiceKey| {
            let (project, location, service) = key;
            let fits =
                |wanted: &Option<String>, is: &String| wanted.as_ref().is_none_or(|w| w == is);
            fits(&query.project, project)
                && fits(&query.location, location)
                && fits(&query.service, service)
        };
        let mut found: Vec<Arc<Entry>> = Vec::new();
        for (_, service) in kept.services.iter().filter(|(key, _)| wanted(key)) {
            let newest = service.entries.iter().rev().filter(|entry| query.fits(entry));
            found.extend(newest.take(query.limit).cloned());
        }
        drop(kept);
        found.sort_by_key(|entry| entry.number);
        let surplus = found.len().saturating_sub(query.limit);
        found.drain(..surplus);
        found
    }

    /// The number of the newest entry; the receiver hears of every further one. Whoever follows a
    /// log queries after the last number seen each time this changes.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn push(&self, mut entry: Entry) {
        let number = {
            let mut kept = self.lock();
            kept.number += 1;
            entry.number = kept.number;
            kept.push(entry);
            kept.number
        };
        self.newest.send_replace(number);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Query {
    fn fits(&self, entry: &Entry) -> bool {
        self.revision.as_ref().is_none_or(|revision| *revision == entry.origin.revision)
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at <= until)
            && self.after_number.is_none_or(|number| entry.number > number)
            && self.severity_min.is_none_or(|severity| entry.severity >= severity)
    }
}

impl Kept {
    fn push(&mut self, entry: Entry) {
        let origin = &entry.origin;
        let key = (origin.project.clone(), origin.location.clone(), origin.service.clone());
        let service = self.services.entry(key).or_default();
        let before = service.bytes;
        service.bytes += entry.bytes();
        service.entries.push_back(Arc::new(entry));
        while service.bytes > SERVICE_BYTES_MAX && service.drop_oldest() {}
        self.bytes = self.bytes + service.bytes - before;
        while self.bytes > TOTAL_BYTES_MAX {
            let Some(largest) = self.services.values_mut().max_by_key(|s| s.bytes) else { break };
            let before = largest.bytes;
            if !largest.drop_oldest() {
                break;
            }
            self.bytes -= before - largest.bytes;
        }
    }
}

impl Service {
    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.entries.pop_front() else { return false };
        self.bytes -= oldest.bytes();
        true
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        let json =
            self.json.as_ref().map_or(0, |json| json.iter().map(|(k, v)| k.len() + size(v)).sum());
        self.text.len() + json + ENTRY_OVERHEAD_BYTES
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 32,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 32,
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + size(v) + 32).sum::<usize>() + 32,
        _ => 32,
    }
}

impl LogSink for LogStore {
    fn line(&self, instance: &InstanceId, line: &LogLine) {
        let Some(known) = self.lock().instances.get(instance).cloned() else { return };
        let origin = match line.container.is_empty() || *known.container == *line.container {
            true => known,
            false => Arc::new(Origin { container: line.container.to_string(), ..(*known).clone() }),
        };
        if line.dropped_before > 0 {
            let text = format!("{} lines were dropped: they came too fast.", line.dropped_before);
            self.system((*origin).clone(), Severity::Warning, text, line.at);
        }
        self.push(entry_of(origin, line));
    }
}

/// A line as Cloud Logging takes it: a JSON object is a structured entry, anything else is text.
fn entry_of(origin: Arc<Origin>, line: &LogLine) -> Entry {
    let source = match line.stream {
        Stream::Stdout => Source::Stdout,
        Stream::Stderr => Source::Stderr,
    };
    let mut entry = Entry {
        number: 0,
        at: line.at,
        origin,
        source,
        severity: Severity::Default,
        text: String::new(),
        json: None,
        trace: None,
        span: None,
        labels: BTreeMap::new(),
    };
    let is_object = line.text.trim_start().starts_with('{');
    match is_object.then(|| serde_json::from_str(&line.text)) {
        Some(Ok(Value::Object(fields))) => entry.take_fields(fields),
        _ => entry.text.clone_from(&line.text),
    }
    entry
}

impl Entry {
    fn take_fields(&mut self, mut fields: serde_json::Map<String, Value>) {
        let severity = fields.get("severity").and_then(Value::as_str).and_then(Severity::parse);
        if let Some(severity) = severity {
            self.severity = severity;
            fields.remove("severity");
        }
        let mut take = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => Some(text),
            Some(other) => {
                fields.insert(name.to_owned(), other);
                None
            }
            None => None,
        };
        self.trace = take("logging.googleapis.com/trace");
        self.span = take("logging.googleapis.com/spanId");
        if let Some(Value::Object(labels)) = fields.remove("logging.googleapis.com/labels") {
            let text = |value: Value| match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
            self.labels = labels.into_iter().map(|(name, value)| (name, text(value))).collect();
        }
        // A lone message is the text of the entry.
        match (fields.len(), fields.get("message")) {
            (1, Some(Value::String(message))) => self.text.clone_from(message),
            _ => self.json = Some(fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn origin(service: &str, revision: &str) -> Origin {
        Origin {
            project: "p".to_owned(),
            location: "r".to_owned(),
            service: service.to_owned(),
            revision: revision.to_owned(),
            instance: "i".to_owned(),
            container: String::new(),
        }
    }

    fn write(store: &LogStore, service: &str, text: &str) {
        let instance = InstanceId::new(service).unwrap();
        let known = Arc::new(origin(service, "rev"));
        store.lock().instances.insert(instance.clone(), known);
        let line = LogLine {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(store.lock().number),
            container: "".into(),
            stream: Stream::Stdout,
            text: text.to_owned(),
            dropped_before: 0,
        };
        store.line(&instance, &line);
    }

    fn texts(store: &LogStore, query: &Query) -> Vec<String> {
        store.query(query).iter().map(|entry| entry.text.clone()).collect()
    }

    #[test]
    fn a_line_is_text_or_a_structured_entry() {
        let store = LogStore::new();
        let lines = [
            "plain",
            r#"{"severity":"error","message":"broken"}"#,
            r#"{"severity":"WARN","message":"m","user":7,"logging.googleapis.com/trace":"t","logging.googleapis.com/labels":{"a":"b"}}"#,
            r#"{"severity":"LOUD"}"#,
            r#"{"not json"#,
        ];
        for line in lines {
            write(&store, "s", line);
        }
        let entries = store.query(&Query { limit: 10, ..Query::default() });
        let seen: Vec<_> = entries
            .iter()
            .map(|e| (e.severity.as_str(), e.text.as_str(), e.json.is_some()))
            .collect();
        assert_eq!(
            seen,
            [
                ("DEFAULT", "plain", false),
                ("ERROR", "broken", false),
                ("WARNING", "", true),
                ("DEFAULT", "", true),
                ("DEFAULT", r#"{"not json"#, false),
            ]
        );
        assert_eq!(entries[2].trace.as_deref(), Some("t"));
        assert_eq!(entries[2].labels["a"], "b");
    }

    #[test]
    fn a_query_gives_the_newest_that_fit_oldest_first() {
        let store = LogStore::new();
        for (service, text) in
            [("a", "1"), ("b", "2"), ("a", "3"), ("a", r#"{"severity":"ERROR","message":"4"}"#)]
        {
            write(&store, service, text);
        }
        let all = Query { limit: 2, ..Query::default() };
        assert_eq!(texts(&store, &all), ["3", "4"]);
        let of_a = Query { service: Some("a".to_owned()), limit: 9, ..Query::default() };
        assert_eq!(texts(&store, &of_a), ["1", "3", "4"]);
        let errors = Query { severity_min: Some(Severity::Warning), ..of_a.clone() };
        assert_eq!(texts(&store, &errors), ["4"]);
        let later = Query { after_number: Some(2), ..of_a.clone() };
        assert_eq!(texts(&store, &later), ["3", "4"]);
        let since = Query { since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2)), ..of_a };
        assert_eq!(texts(&store, &since), ["3", "4"]);
        assert_eq!(*store.newest().borrow(), 4);
    }

    #[test]
    fn a_flood_pushes_out_its_own_lines_only() {
        let store = LogStore::new();
        write(&store, "quiet", "kept");
        let line = "x".repeat(10_000);
        for _ in 0..300 {
            write(&store, "loud", &line);
        }
        let kept = store.lock();
        assert!(kept.services.values().all(|service| service.bytes <= SERVICE_BYTES_MAX));
        assert_eq!(kept.bytes, kept.services.values().map(|service| service.bytes).sum::<usize>());
        drop(kept);
        let quiet = Query { service: Some("quiet".to_owned()), limit: 9, ..Query::default() };
        assert_eq!(texts(&store, &quiet), ["kept"]);
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_too_strange_to_be_kept(text in r#"(\{"severity":)?\PC{0,200}\}?"#) {
            let store = LogStore::new();
            write(&store, "s", &text);
            let entries = store.query(&Query { limit: 9, ..Query::default() });
            proptest::prop_assert_eq!(entries.len(), 1);
            let is_kept = entries[0].json.is_some() || entries[0].text == text || text.starts_with('{');
            proptest::prop_assert!(is_kept);
        }
    }
}
