//! `tidegate status`: forwarding rules, services and client VMs as a person wants to read them.

use crate::cli::{Format, Formatted};
use crate::client::Client;
use crate::data_dir::DataDir;
use crate::table::Table;
use serde_json::Value;

const STATUS: &str = "http://tidegate.googleapis.com/v1/status";

pub(crate) async fn run(dir: &DataDir, how: Formatted) -> anyhow::Result<String> {
    let (client, running) = Client::of(dir)?;
    let status = client.get(STATUS).await?;
    if how.format == Format::Json {
        return Ok(format!("{status:#}"));
    }
    let heading = format!(
        "Tidegate {} on {}, API at {}, metrics at http://{}/metrics",
        running.version,
        dir.root().display(),
        running.api,
        running.metrics,
    );
    let parts = [
        heading,
        forwarding_rules(&status),
        services(&status),
        run_app(&status),
        instances(&status),
    ];
    Ok(parts.join("\n\n"))
}

fn rows<'v>(status: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> + use<'v> {
    status[field].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// `projects/p/regions/us-west1/forwardingRules/f` as people say it: `us-west1/f`.
fn short(name: &Value) -> String {
    let name = name.as_str().unwrap_or_default();
    let segments: Vec<&str> = name.split('/').collect();
    match segments[..] {
        ["projects", _, _, place, _, last] => format!("{place}/{last}"),
        _ => segments.last().copied().unwrap_or_default().to_owned(),
    }
}

fn forwarding_rules(status: &Value) -> String {
    let heading =
        ["FORWARDING RULE", "ADDRESS", "NETWORK", "TARGET", "URL MAP", "HEALTH", "REQUESTS", "5XX"];
    let mut table = Table::new(&heading);
    for rule in rows(status, "forwardingRules") {
        let address = format!("{}:{}", text(&rule["address"]), rule["port"]);
        let target = format!("{} ({})", text(&rule["target"]), text(&rule["protocol"]));
        table.row(vec![
            short(&rule["name"]),
            address,
            text(&rule["network"]),
            target,
            text(&rule["urlMap"]),
            text(&rule["health"]),
            text(&rule["requests"]),
            text(&rule["responsesByClass"][5]),
        ]);
    }
    table.or("No forwarding rules yet.")
}

fn services(status: &Value) -> String {
    let heading = ["SERVICE", "REVISION", "STATE", "TRAFFIC", "INSTANCES", "IN FLIGHT", "WAITING"];
    let mut table = Table::new(&heading);
    let mut failures = Vec::new();
    for service in rows(status, "services") {
        for revision in rows(service, "revisions") {
            let state = match revision["ready"].as_bool() {
                Some(true) => "READY".to_owned(),
                Some(false) => {
                    let name = text(&revision["name"]);
                    failures.push(format!("{name} failed: {}", text(&revision["message"]).trim()));
                    "FAILED".to_owned()
                }
                None => "DEPLOYING".to_owned(),
            };
            let tags: Vec<String> = rows(revision, "tags").map(text).collect();
            let tags =
                if tags.is_empty() { String::new() } else { format!(" ({})", tags.join(", ")) };
            let starting = revision["instancesStarting"].as_u64().unwrap_or_default();
            let starting =
                if starting > 0 { format!(" +{starting} starting") } else { String::new() };
            table.row(vec![
                short(&service["name"]),
                text(&revision["name"]),
                state,
                format!("{}%{tags}", revision["percent"]),
                format!("{}{starting}", revision["instancesReady"]),
                text(&revision["requestsInFlight"]),
                text(&revision["requestsWaiting"]),
            ]);
        }
    }
    let table = table.or("No Cloud Run services yet.");
    [vec![table], failures].concat().join("\n\n")
}

/// Where services are answered under their own URLs.
fn run_app(status: &Value) -> String {
    let mut table = Table::new(&["RUN.APP URLS", "ADDRESS", "REQUESTS", "5XX"]);
    for listener in rows(status, "runApp") {
        table.row(vec![
            text(&listener["protocol"]),
            text(&listener["address"]),
            text(&listener["requests"]),
            text(&listener["responsesByClass"][5]),
        ]);
    }
    table.or("No listener for the URLs of services.")
}

fn instances(status: &Value) -> String {
    let mut table = Table::new(&["CLIENT VM", "ADDRESS", "NETWORK", "STATUS"]);
    for instance in rows(status, "instances") {
        let state = match instance["failure"].as_str() {
            Some(why) => format!("{}: {why}", text(&instance["status"])),
            None => text(&instance["status"]),
        };
        table.row(vec![
            short(&instance["name"]),
            text(&instance["address"]),
            text(&instance["network"]),
            state,
        ]);
    }
    table.or("No client VMs yet.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_server_is_told_as_three_tables() {
        let status = json!({
            "forwardingRules": [{
                "name": "projects/p/regions/us-west1/forwardingRules/hello-http-fr",
                "network": "lb-network", "address": "10.1.2.2", "port": 80, "protocol": "HTTP",
                "target": "hello-http-proxy", "urlMap": "hello-map", "health": "SERVING",
                "requests": 12, "responsesByClass": [0, 0, 11, 0, 0, 1],
            }],
            "services": [{
                "name": "projects/p/locations/us-west1/services/hello",
                "revisions": [{
                    "name": "hello-00001-abc", "ready": true, "percent": 100, "tags": ["blue"],
                    "instancesReady": 1, "instancesStarting": 2, "requestsInFlight": 0,
                    "requestsWaiting": 3,
                }],
            }],
            "instances": [],
        });
        assert_eq!(
            forwarding_rules(&status),
            "FORWARDING RULE         ADDRESS      NETWORK     TARGET                   URL MAP    HEALTH   \
             REQUESTS  5XX\n\
             us-west1/hello-http-fr  10.1.2.2:80  lb-network  hello-http-proxy (HTTP)  hello-map  SERVING  \
             12        1"
        );
        assert_eq!(
            services(&status),
            "SERVICE         REVISION         STATE  TRAFFIC      INSTANCES      IN FLIGHT  WAITING\n\
             us-west1/hello  hello-00001-abc  READY  100% (blue)  1 +2 starting  0          3"
        );
        assert_eq!(instances(&status), "No client VMs yet.");
    }

    #[test]
    fn why_a_revision_failed_stands_below_the_table() {
        let status = json!({ "services": [{
            "name": "projects/p/locations/us-west1/services/s",
            "revisions": [{ "name": "s-00001-abc", "ready": false, "percent": 0, "message": "It\nfell." }],
        }] });
        let told = services(&status);
        assert!(told.ends_with("\n\ns-00001-abc failed: It\nfell."), "{told}");
        assert!(told.contains("FAILED "), "{told}");
    }
}
