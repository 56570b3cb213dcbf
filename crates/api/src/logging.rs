//! Cloud Logging: reading what services wrote and which requests they answered.
//!
//! Invariant: entries are kept elsewhere; this file turns them into Google's shape, lets through
//! what the filter does, and orders them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wire::logging as messages;

use crate::Api;
use crate::authorization;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::logging_filter::{self, Filter, Operator};
use crate::one_platform::{Call, respond};
use crate::surroundings::utc_timestamp;
use crate::world::State;

/// Entries in one answer when the client does not say.
pub(crate) const ENTRIES_DEFAULT: usize = 50;
/// Entries in one answer at most.
pub(crate) const ENTRIES_MAX: usize = 1000;
/// Projects one request may ask about.
pub(crate) const RESOURCE_NAMES_MAX: usize = 100;

/// Answers what was logged: the binary joins the containers' logs and the requests'.
pub trait Logs: Send + Sync + fmt::Debug {
    /// The entries that lie in the window, in any order. More may be given than asked for.
    fn entries(&self, window: &Window) -> Vec<LogEntry>;
}

/// What part of the log is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The project's id.
    pub project: String,
    /// Nothing from before this moment.
    pub since: Option<SystemTime>,
    /// Nothing but what this service wrote or answered.
    pub service: Option<String>,
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct LogEntry {
    /// When.
    pub at: SystemTime,
    /// Tells entries of one moment apart, and never changes.
    pub insert_id: String,
    /// The log's name within its project, such as `run.googleapis.com/stdout`.
    pub log: String,
    /// Google's word for how serious it is; empty for `DEFAULT`.
    pub severity: String,
    /// What was said.
    pub payload: Payload,
    /// What it is about: `cloud_run_revision` and its labels.
    pub resource_type: String,
    /// The labels of what it is about, such as `service_name`.
    pub resource_labels: BTreeMap<String, String>,
    /// The labels of the entry itself.
    pub labels: BTreeMap<String, String>,
    /// The trace it belongs to.
    pub trace: Option<String>,
    /// The span of that trace.
    pub span: Option<String>,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A line.
    Text(String),
    /// A line that was a JSON object.
    Json(Map<String, Value>),
    /// A request, in the fields of Google's `HttpRequest`, and a remark about it.
    Request {
        /// `requestMethod`, `requestUrl`, `status`, `latency` and their like.
        request: Map<String, Value>,
        /// What else is to be said, such as why it was refused.
        remark: Option<String>,
        /// The same as an object, from whoever says it so.
        details: Option<Map<String, Value>>,
    },
}

/// Answers one request.
pub(crate) fn handle(api: &Api, request: &Request) -> Response {
    let result = Call::read(api, request).and_then(|call| answer(&call));
    respond(request, result)
}

fn answer(call: &Call<'_>) -> Result<Value, ApiError> {
    match (&call.request.method, call.action().1, &call.segments()[..]) {
        (&Method::POST, "list", ["v2", "entries"]) => list(call),
        _ => Err(call.unserved()),
    }
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Reason::Invalid, message)
}

fn list(call: &Call<'_>) -> Result<Value, ApiError> {
    let body = call.required_body::<messages::ListLogEntriesRequest>("")?;
    let text = |field: &str| body.get(field).and_then(Value::as_str).unwrap_or_default();
    let filter = logging_filter::parse(text("filter"));
    let filter = filter.map_err(|sentence| invalid(format!("Unparseable filter: {sentence}")))?;
    let is_descending = match text("orderBy") {
        "" | "timestamp" | "timestamp asc" => false,
        "timestamp desc" => true,
        other => return Err(invalid(format!("The order '{other}' is not supported."))),
    };
    let size = match body.get("pageSize").and_then(Value::as_i64).unwrap_or(0) {
        0 => ENTRIES_DEFAULT,
        size if size > 0 => usize::try_from(size).unwrap_or(ENTRIES_MAX).min(ENTRIES_MAX),
        size => return Err(invalid(format!("The page size {size} is not positive."))),
    };
    let mut entries = passing(call, &filter, &projects(call, &body)?);
    entries.sort_by_key(key);
    if is_descending {
        entries.reverse();
    }
    // A token is the entry the page before it ended with.
    let token = text("pageToken");
    let after = |(at, id): &(OffsetDateTime, String)| format!("{}/{id}", at.unix_timestamp_nanos());
    let start = match token.is_empty() {
        true => 0,
        false => entries.iter().position(|e| after(&key(e)) == token).map_or(0, |at| at + 1),
    };
    let page = &entries[start..entries.len().min(start + size)];
    let mut answer = Map::new();
    if let Some(last) = page.last() {
        answer.insert("entries".into(), page.iter().map(|entry| entry.shown.clone()).collect());
        if start + page.len() < entries.len() {
            answer.insert("nextPageToken".into(), after(&key(last)).into());
        }
    }
    Ok(Value::Object(answer))
}

struct Passing {
    at: OffsetDateTime,
    insert_id: String,
    shown: Value,
}

fn key(entry: &Passing) -> (OffsetDateTime, String) {
    (entry.at, entry.insert_id.clone())
}

fn projects(call: &Call<'_>, body: &Value) -> Result<Vec<String>, ApiError> {
    let names = |field: &str| {
        let names = body.get(field).and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
    };
    let given: Vec<String> = names("resourceNames").chain(names("projectIds")).collect();
    if given.is_empty() || given.len() > RESOURCE_NAMES_MAX {
        let message = format!("Between 1 and {RESOURCE_NAMES_MAX} resource names are required.");
        return Err(invalid(message));
    }
    let state = call.api.world().state();
    let project = |name: &String| {
        let name = name.strip_prefix("projects/").unwrap_or(name);
        let name = name.split('/').next().unwrap_or_default();
        let project = call.project(&state, name)?.id;
        authorization::check_logs(call.api, &state, &call.request.principal, &project)?;
        Ok(project.to_string())
    };
    let mut projects: Vec<String> = given.iter().map(project).collect::<Result<_, ApiError>>()?;
    projects.sort_unstable();
    projects.dedup();
    Ok(projects)
}

fn passing(call: &Call<'_>, filter: &Filter, projects: &[String]) -> Vec<Passing> {
    let Some(platform) = call.api.platform() else { return Vec::new() };
    let since = filter.required(&["timestamp"], Operator::GreaterOrEqual);
    let service = filter.required(&["resource", "labels", "service_name"], Operator::Equal);
    let mut passing = Vec::new();
    let state = call.api.world().state();
    for project in projects {
        let window = Window {
            project: project.clone(),
            since: since
                .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
                .map(SystemTime::from),
            service: service.map(str::to_owned),
        };
        for mut entry in platform.logs.entries(&window) {
            if let Some(manager) = manager(&state, project, &entry.resource_labels) {
                entry.labels.insert(MANAGER.to_owned(), manager);
            }
            let shown = shown(project, &entry);
            if filter.passes(&shown) {
                let at = OffsetDateTime::from(entry.at);
                passing.push(Passing { at, insert_id: entry.insert_id, shown });
            }
        }
    }
    passing
}

/// The label by which entries of functions are found.
const MANAGER: &str = "goog-managed-by";

/// Who manages the service an entry is of, as the service says.
fn manager(state: &State, project: &str, labels: &BTreeMap<String, String>) -> Option<String> {
    let (location, service) = (labels.get("location")?, labels.get("service_name")?);
    let document =
        state.get(&format!("projects/{project}/locations/{location}/services/{service}"))?;
    let manager = document.pointer("/resource/metadata/labels/goog-managed-by")?;
    manager.as_str().map(str::to_owned)
}

/// Log names are one path segment: their slash is encoded.
const IN_LOG_NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');

/// An entry in Google's shape.
fn shown(project: &str, entry: &LogEntry) -> Value {
    let log = utf8_percent_encode(&entry.log, IN_LOG_NAME);
    let at = utc_timestamp(OffsetDateTime::from(entry.at));
    let mut shown = json!({
        "insertId": entry.insert_id,
        "logName": format!("projects/{project}/logs/{log}"),
        "timestamp": at,
        "receiveTimestamp": at,
        "resource": { "type": entry.resource_type, "labels": entry.resource_labels },
    });
    if !entry.severity.is_empty() && entry.severity != "DEFAULT" {
        shown["severity"] = entry.severity.as_str().into();
    }
    if !entry.labels.is_empty() {
        shown["labels"] = json!(entry.labels);
    }
    for (field, value) in [("trace", &entry.trace), ("spanId", &entry.span)] {
        if let Some(value) = value {
            shown[field] = value.as_str().into();
        }
    }
    match &entry.payload {
        Payload::Text(text) => shown["textPayload"] = text.as_str().into(),
        Payload::Json(object) => shown["jsonPayload"] = object.clone().into(),
        Payload::Request { request, remark, details } => {
            shown["httpRequest"] = request.clone().into();
            if let Some(details) = details {
                shown["jsonPayload"] = details.clone().into();
            }
            if let Some(remark) = remark {
                shown["textPayload"] = remark.as_str().into();
            }
        }
    }
    shown
}
