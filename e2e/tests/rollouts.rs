//! Revisions and traffic through the balancer: shares that are exact, a bad revision that takes
//! nothing, and rollouts that lose no request.

use crate::Stage;
use anyhow::{Context, Result, bail, ensure};
use e2e::api::{Api, condition};
use e2e::balancer::Balancer;
use e2e::wait;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Over how many requests shares are counted.
const COUNTED: usize = 1000;
/// How far from its share a revision may be over that many: one percent of them.
const OFF_MAX: usize = 10;
/// Rollouts while requests flow.
const ROLLOUTS: usize = 8;
/// How long a deployment may take.
const DEPLOY_LIMIT: Duration = Duration::from_secs(60);

/// The service as it is declared, changed by `edit` and declared again; awaited by its condition.
fn declare(api: &Api, edit: impl FnOnce(&mut Value)) -> Result<Value> {
    let url = api.run_url("hello");
    let mut service = api.call("GET", &url, None)?.ok()?;
    edit(&mut service);
    api.call("PUT", &url, Some(&service.to_string()))?.ok()?;
    wait::until("the deployment is ready or has failed", DEPLOY_LIMIT, || {
        let service = api.call("GET", &url, None).ok()?.ok().ok()?;
        let is_current =
            service["status"]["observedGeneration"] == service["metadata"]["generation"];
        let is_settled = condition(&service, "Ready")["status"] != "Unknown";
        (is_current && is_settled).then_some(service)
    })
}

fn colour(service: &mut Value, revision: &str, colour: &str) {
    let template = &mut service["spec"]["template"];
    template["metadata"]["name"] = revision.into();
    template["spec"]["containers"][0]["env"] = json!([{ "name": "COLOUR", "value": colour }]);
}

/// Which of the revisions answered how many of so many requests.
fn answered_by(
    balancer: &Balancer,
    revisions: &[&str],
    requests: usize,
) -> Result<BTreeMap<String, usize>> {
    let mut client = balancer.open()?;
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let page = client.get("other.example.com", "/")?;
        let text = page.text();
        ensure!(page.status == 200, "{}: {text}", page.status);
        let Some(revision) = revisions.iter().find(|name| text.contains(**name)) else {
            bail!("none of {revisions:?} answered: {text}");
        };
        *counts.entry((*revision).to_owned()).or_default() += 1;
    }
    Ok(counts)
}

#[test]
fn shares_are_exact_bad_revisions_take_nothing_and_rollouts_lose_nothing() -> Result<()> {
    let Some(stage) = Stage::set("revisions and traffic")? else { return Ok(()) };
    let balancer = Balancer::build(&stage.server)?;
    traffic(&balancer)?;
    balancer.asked_meanwhile(|| rollouts(&balancer))?;
    stage.strike()
}

/// A revision without traffic, percentages, a rollback, and a revision that never starts.
fn traffic(balancer: &Balancer) -> Result<()> {
    let api = &balancer.api;
    let service = api.call("GET", &api.run_url("hello"), None)?.ok()?;
    let first = service["status"]["latestReadyRevisionName"].as_str().context("a revision")?;
    let both = [first, "hello-blue"];
    let only = |name: &str| BTreeMap::from([(name.to_owned(), 100)]);

    let tagged = declare(api, |service| {
        colour(service, "hello-blue", "blue");
        service["spec"]["traffic"] = json!([
            { "revisionName": first, "percent": 100 },
            { "revisionName": "hello-blue", "tag": "next" },
        ]);
    })?;
    let url = tagged["status"]["traffic"][1]["url"].as_str().context("a tag has an address")?;
    ensure!(url.starts_with("https://next---hello-"), "{url}");
    ensure!(
        answered_by(balancer, &both, 100)? == only(first),
        "a revision without traffic answered"
    );

    for (of_first, of_blue) in [(75, 25), (50, 50), (1, 99)] {
        declare(api, |service| {
            service["spec"]["traffic"] = json!([
                { "revisionName": first, "percent": of_first },
                { "revisionName": "hello-blue", "percent": of_blue },
            ]);
        })?;
        let counts = answered_by(balancer, &both, COUNTED)?;
        for (name, percent) in [(first, of_first), ("hello-blue", of_blue)] {
            let count = counts.get(name).copied().unwrap_or_default();
            let off = count.abs_diff(percent * COUNTED / 100);
            ensure!(off <= OFF_MAX, "{name}: {count} of {COUNTED} for {percent} %");
        }
    }
    declare(api, |service| {
        service["spec"]["traffic"] = json!([{ "revisionName": first, "percent": 100 }]);
    })?;
    ensure!(answered_by(balancer, &both, 100)? == only(first), "the rollback left requests behind");

    let failed = declare(api, |service| {
        colour(service, "hello-bad", "none");
        service["spec"]["template"]["spec"]["containers"][0]["command"] = json!(["/nothing"]);
        service["spec"]["traffic"] = json!([{ "latestRevision": true, "percent": 100 }]);
    })?;
    ensure!(condition(&failed, "Ready")["status"] == "False", "{:#}", failed["status"]);
    let latest = failed["status"]["latestReadyRevisionName"].as_str();
    ensure!(latest == Some("hello-blue"), "{latest:?}");
    ensure!(failed["status"]["latestCreatedRevisionName"] == "hello-bad", "the newest was made");
    answered_by(balancer, &both, 100).map(|_| ())
}

fn rollouts(balancer: &Balancer) -> Result<()> {
    for number in 0..ROLLOUTS {
        let name = format!("hello-roll-{number}");
        let rolled = declare(&balancer.api, |service| {
            colour(service, &name, &number.to_string());
            let container = &mut service["spec"]["template"]["spec"]["containers"][0];
            if let Some(container) = container.as_object_mut() {
                container.remove("command");
            }
            service["spec"]["traffic"] = json!([{ "latestRevision": true, "percent": 100 }]);
        })?;
        let ready = condition(&rolled, "Ready");
        ensure!(ready["status"] == "True", "rollout {number}: {ready}");
        answered_by(balancer, &[&name], 5)?;
    }
    Ok(())
}
