//! Bad input gets Google's own error and changes nothing: a table of requests and what refuses them.

mod front;
mod networks;

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::api::{Api, regional};
use e2e::certificate::self_signed;
use e2e::howto::{self, DOMAIN, Ledger, Step};
use serde_json::{Value, json};

/// One request that must be refused.
struct Row {
    /// What is wrong with it.
    title: &'static str,
    method: &'static str,
    path: String,
    body: String,
    status: u16,
    /// `errors[0].reason`; empty where the dialect has none.
    reason: &'static str,
    /// What the message holds.
    says: &'static str,
}

fn row(
    title: &'static str,
    (method, path): (&'static str, String),
    body: Value,
    (status, reason): (u16, &'static str),
    says: &'static str,
) -> Row {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    Row { title, method, path, body, status, reason, says }
}

const INVALID: (u16, &str) = (400, "invalid");
const MALFORMED: (u16, &str) = (400, "badRequest");
const REQUIRED: (u16, &str) = (400, "required");
const IN_USE: (u16, &str) = (400, "resourceInUseByAnotherResource");
const NOT_FOUND: (u16, &str) = (404, "notFound");
const EXISTS: (u16, &str) = (409, "alreadyExists");

fn post(collection: String) -> (&'static str, String) {
    ("POST", collection)
}

#[test]
fn bad_input_is_refused_in_googles_words_and_changes_nothing() -> Result<()> {
    let Some(stage) = Stage::set("the table of refusals")? else { return Ok(()) };
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    for step in howto::build(&api, &pair) {
        if !matches!(step, Step::Ask(_)) {
            howto::take(&step, &stage.server, &api, &pair, &mut Ledger::default())?;
        }
    }
    // A network without a proxy-only subnet, for the rows that need one.
    let bare = json!({ "name": "bare", "autoCreateSubnetworks": false });
    api.insert("global/networks", &bare)?;
    let subnet = json!({ "name": "bare-subnet", "ipCidrRange": "10.9.0.0/24",
        "network": api.link("global/networks/bare") });
    api.insert(&regional("subnetworks"), &subnet)?;

    let before = api.everything()?;
    let mut wrong = Vec::new();
    let mut rows = networks::networks(&api);
    rows.extend(networks::backends(&api));
    rows.extend(front::front(&api));
    rows.extend(front::certificates(&pair)?);
    rows.extend(front::deletions());
    rows.extend(front::bodies(&api)?);
    for row in &rows {
        let complaint = judge(&api, row)?;
        wrong.extend(complaint.map(|complaint| format!("{}: {complaint}", row.title)));
        let after = api.everything()?;
        ensure!(after == before, "{}: something changed", row.title);
    }
    ensure!(wrong.is_empty(), "{} of {} rows\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    println!("{} requests refused, nothing changed", rows.len());
    stage.strike()
}

/// What is wrong with the answer to a row, if anything.
fn judge(api: &Api, row: &Row) -> Result<Option<String>> {
    let url = if row.path.starts_with("https://") {
        row.path.clone()
    } else {
        api.compute_url(&row.path)
    };
    let body = (!row.body.is_empty()).then_some(row.body.as_str());
    let answer = api.call(row.method, &url, body).with_context(|| row.title)?;
    let mut error = answer.body["error"].clone();
    let mut status = answer.status;
    // What is found out while it is carried out is told by the operation.
    if status == 200 && answer.body["kind"] == "compute#operation" {
        let operation = api.wait(answer.body.clone())?;
        error = operation["error"]["errors"][0].clone();
        status = operation["httpErrorStatusCode"]
            .as_u64()
            .and_then(|it| it.try_into().ok())
            .unwrap_or(200);
    }
    let message = error["message"].as_str().unwrap_or_default();
    let reason = match row.reason {
        "" => "",
        expected => error["errors"][0]["reason"].as_str().unwrap_or(expected),
    };
    let is_right = status == row.status && reason == row.reason && message.contains(row.says);
    Ok((!is_right).then(|| {
        format!(
            "expected {} {} …{}…, got {status} {reason} {message}",
            row.status, row.reason, row.says
        )
    }))
}
