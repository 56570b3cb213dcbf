//! `TailLogEntries`: what is logged from now on, as it is logged.
//!
//! The log is asked again and again by the method that lists it, so a filter means the same in both.
//! Invariant: an entry is sent once; one that arrives late is still sent, if it is no later than
//! `LATENESS_MAX`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method as Verb};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::methods::Rest;
use super::status::Status;
use super::{Answer, Caller, decoded, encoded, frames, started};
use crate::error::{ApiError, Reason};
use crate::surroundings::utc_timestamp;

pub(super) const PATH: &str = "/google.logging.v2.LoggingServiceV2/TailLogEntries";
/// How long a tail lasts at most, as Google's.
const TAIL_MAX: Duration = Duration::from_secs(3600);
/// How often the log is asked.
const ASKED_EVERY: Duration = Duration::from_millis(500);
/// How much later than its own time an entry may arrive.
const LATENESS_MAX: Duration = Duration::from_secs(5);
/// Entries asked for at a time.
const ENTRIES_MAX: usize = 1000;

/// One tail that is under way.
struct Tail {
    caller: Caller,
    closed: watch::Receiver<bool>,
    /// Kept so that the client's end of the call stays open.
    _from_client: Incoming,
    wanted: Wanted,
    until: Instant,
    has_ended: bool,
}

/// What a client wants to see, and what it has seen.
#[derive(Debug)]
struct Wanted {
    resource_names: Value,
    filter: String,
    since: OffsetDateTime,
    /// Entries that were sent and are recent enough to be found again: id and time.
    sent: BTreeMap<String, String>,
}

/// Begins a tail: a first look at the log shows whether it may be seen at all.
pub(super) async fn answer(
    caller: Caller,
    body: Incoming,
    closed: watch::Receiver<bool>,
) -> Result<Answer, Status> {
    let (bytes, from_client) =
        frames::first_message(body).await.map_err(|error| Status::of_error(&error))?;
    let message = decoded("google.logging.v2.TailLogEntriesRequest", &bytes)?;
    let mut wanted = Wanted::of(&message, OffsetDateTime::now_utc());
    wanted.ask(&caller).await?;
    let until = Instant::now() + TAIL_MAX;
    let tail = Tail { caller, closed, _from_client: from_client, wanted, until, has_ended: false };
    let frames = futures_util::stream::unfold(tail, |mut tail| async move {
        let frame = tail.next().await?;
        Some((Ok(frame), tail))
    });
    Ok(started(BodyExt::boxed_unsync(StreamBody::new(frames))))
}

impl Tail {
    /// The next message with entries, or the trailers, after which there is nothing.
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        if self.has_ended {
            return None;
        }
        let entries = self.entries().await;
        let framed = entries.and_then(|entries| {
            let message = json!({ "entries": entries });
            encoded("google.logging.v2.TailLogEntriesResponse", &message)
        });
        match framed {
            Ok(bytes) => Some(Frame::data(frames::framed(&bytes))),
            Err(status) => Some(Frame::trailers(self.ended(&status))),
        }
    }

    async fn entries(&mut self) -> Result<Vec<Value>, Status> {
        loop {
            if timeout(ASKED_EVERY, self.closed.changed()).await.is_ok() {
                let sentence = "The server is going down.";
                return Err(Status::of_error(&ApiError::new(Reason::Unavailable, sentence)));
            }
            if Instant::now() > self.until {
                return Err(Status::OK);
            }
            let entries = self.wanted.ask(&self.caller).await?;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    fn ended(&mut self, status: &Status) -> HeaderMap {
        self.has_ended = true;
        status.trailers()
    }
}

impl Wanted {
    fn of(message: &Value, now: OffsetDateTime) -> Wanted {
        Wanted {
            resource_names: message.get("resourceNames").cloned().unwrap_or_else(|| json!([])),
            filter: message["filter"].as_str().unwrap_or_default().to_owned(),
            since: now,
            sent: BTreeMap::new(),
        }
    }

    /// The entries that are new since the log was last asked.
    async fn ask(&mut self, caller: &Caller) -> Result<Vec<Value>, Status> {
        let mut found = Vec::new();
        let mut page = String::new();
        loop {
            let answer = caller.ask("logging", self.request(&page)).await?;
            found.extend(answer["entries"].as_array().cloned().unwrap_or_default());
            match answer["nextPageToken"].as_str() {
                Some(token) => page = token.to_owned(),
                None => return Ok(self.unsent(found, OffsetDateTime::now_utc())),
            }
        }
    }

    fn request(&self, page: &str) -> Rest {
        let since = format!("timestamp>=\"{}\"", utc_timestamp(self.since));
        let filter = match self.filter.trim() {
            "" => since,
            filter => format!("{since} AND ({filter})"),
        };
        let mut body = Map::new();
        body.insert("resourceNames".into(), self.resource_names.clone());
        body.insert("filter".into(), filter.into());
        body.insert("orderBy".into(), "timestamp asc".into());
        body.insert("pageSize".into(), ENTRIES_MAX.into());
        if !page.is_empty() {
            body.insert("pageToken".into(), page.into());
        }
        Rest {
            verb: Verb::POST,
            path: "/v2/entries:list".to_owned(),
            query: String::new(),
            body: Some(Value::Object(body)),
        }
    }

    /// Those of the entries that were not sent before; from then on they were.
    fn unsent(&mut self, found: Vec<Value>, now: OffsetDateTime) -> Vec<Value> {
        let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("").to_owned();
        let mut unsent = Vec::new();
        for entry in found {
            let (id, at) = (text(&entry, "insertId"), text(&entry, "timestamp"));
            if self.sent.insert(id, at).is_none() {
                unsent.push(entry);
            }
        }
        self.since = self.since.max(now - LATENESS_MAX);
        let since = utc_timestamp(self.since);
        self.sent.retain(|_, at| *at >= since);
        unsent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn an_entry_is_sent_once_even_when_it_is_late() {
        let start = datetime!(2026-11-24 10:00:00 UTC);
        let mut wanted = Wanted::of(&json!({ "filter": "severity>=ERROR" }), start);
        let entry = |id: &str, second: i64| {
            let at = utc_timestamp(start + time::Duration::seconds(second));
            json!({ "insertId": id, "timestamp": at })
        };
        let at = |second: i64| start + time::Duration::seconds(second);
        assert_eq!(wanted.unsent(vec![entry("a", 1)], at(2)).len(), 1);
        let late = vec![entry("late", 0), entry("a", 1), entry("b", 3)];
        assert_eq!(wanted.unsent(late, at(4)).len(), 2);
        assert_eq!(wanted.unsent(vec![entry("b", 3)], at(5)).len(), 0);
        // What is older than the window is not asked for again, so it need not be remembered.
        wanted.unsent(Vec::new(), at(60));
        assert!(wanted.sent.is_empty());
        let body = wanted.request("").body.expect("a body");
        assert_eq!(
            body["filter"],
            "timestamp>=\"2026-11-24T10:00:55.000000Z\" AND (severity>=ERROR)"
        );
    }
}
