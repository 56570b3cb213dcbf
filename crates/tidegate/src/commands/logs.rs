//! `tidegate logs`: what the containers of a Cloud Run service wrote, through the server's Logging API.

use crate::cli::Logs;
use crate::client::Client;
use crate::data_dir::DataDir;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;

const ENTRIES: &str = "http://logging.googleapis.com/v2/entries:list";

/// The most lines one look at the log brings to a program that follows it.
const TAIL_ENTRIES: usize = 1000;

/// How often new lines are asked for while following.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) async fn run(dir: &DataDir, how: &Logs) -> anyhow::Result<()> {
    let (client, running) = Client::of(dir)?;
    let project = how.project.clone().unwrap_or(running.project);
    let mut filter = format!(
        "resource.type = cloud_run_revision AND resource.labels.service_name = {}",
        how.service
    );
    if let Some(region) = &how.region {
        filter.push_str(&format!(" AND resource.labels.location = {region}"));
    }
    let asked = Asked { project, filter, limit: how.limit, follows: how.follow, since: None };
    print_all(&client, asked).await
}

/// Prints what passes the filter from now on, for as long as the caller wants.
pub(crate) async fn tail(client: &Client, project: &str, filter: &str) -> anyhow::Result<()> {
    let now = time::OffsetDateTime::now_utc();
    let since = now.format(&time::format_description::well_known::Rfc3339)?;
    let (project, filter) = (project.to_owned(), format!("({filter})"));
    let asked = Asked { project, filter, limit: TAIL_ENTRIES, follows: true, since: Some(since) };
    print_all(client, asked).await
}

/// What part of the log is printed.
struct Asked {
    project: String,
    filter: String,
    limit: usize,
    follows: bool,
    /// Nothing from before this moment.
    since: Option<String>,
}

async fn print_all(client: &Client, asked: Asked) -> anyhow::Result<()> {
    let Asked { project, filter, limit, follows, mut since } = asked;
    let mut printed: HashSet<String> = HashSet::new();
    loop {
        let from =
            since.as_ref().map(|at| format!(" AND timestamp >= \"{at}\"")).unwrap_or_default();
        let question = json!({
            "resourceNames": [format!("projects/{project}")],
            "filter": format!("{filter}{from}"),
            "orderBy": "timestamp desc",
            "pageSize": limit,
        });
        let answer = client.post(ENTRIES, &question).await?;
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        if let Some(newest) = entries.first().and_then(|entry| entry["timestamp"].as_str()) {
            since = Some(newest.to_owned());
        }
        let mut seen = HashSet::new();
        for entry in entries.iter().rev() {
            let id = entry["insertId"].as_str().unwrap_or_default().to_owned();
            if !printed.contains(&id) {
                print(entry);
            }
            seen.insert(id);
        }
        if !seen.is_empty() {
            printed = seen;
        }
        if !follows {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

#[allow(clippy::print_stdout, reason = "printing is what this verb is for")]
fn print(entry: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let message = match (&entry["textPayload"], &entry["jsonPayload"], &entry["httpRequest"]) {
        (Value::String(line), _, _) => line.clone(),
        (_, Value::Object(fields), _) => match fields.get("message") {
            Some(Value::String(message)) => message.clone(),
            _ => Value::Object(fields.clone()).to_string(),
        },
        (_, _, request) => format!(
            "{} {} {}",
            text(&request["requestMethod"]),
            request["status"],
            text(&request["requestUrl"])
        ),
    };
    let revision = text(&entry["resource"]["labels"]["revision_name"]);
    let severity = entry["severity"].as_str().unwrap_or("DEFAULT");
    println!("{}  {severity:<8}  {revision}  {message}", text(&entry["timestamp"]));
}
