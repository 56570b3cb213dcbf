//! What services that sleep cost: a thousand of them, declared by several clients at once.

use crate::wake::Stage;
use anyhow::{Context, Result, anyhow, ensure};
use bench_report::{Report, milliseconds};
use e2e::REGION;
use e2e::api::Api;
use e2e::server::Server;
use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Services that sleep; a short run has fewer.
const SERVICES: usize = 1000;
/// Clients that deploy at once.
const CLIENTS: usize = 4;

pub(crate) fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let services = if rounds < crate::ROUNDS { SERVICES / 20 } else { SERVICES };
    let mut stage = Stage::set()?;
    stage.put_to_sleep()?;
    let before = resident_kib(&stage.server)?;
    let began = Instant::now();
    deploy(&stage, services)?;
    let took = began.elapsed();
    report.row(
        &format!("{services} services deployed, each started once, by {CLIENTS} clients"),
        format!("{:.1} s", took.as_secs_f64()),
        "",
        "",
    );
    stage.put_to_sleep()?;
    report.row(
        &format!("start to ready, {services} services"),
        milliseconds(stage.server.ready_after),
        "",
        "",
    );
    let grown = resident_kib(&stage.server)?.saturating_sub(before);
    report.row(
        &format!("memory of {services} services scaled to zero"),
        format!("{:.1} MiB", f64::from(u32::try_from(grown)?) / 1024.0),
        &format!(
            "{} KiB each; resident, beside a server without services",
            grown / services as u64
        ),
        "under 20 MiB",
    );
    stage.server.down()
}

fn deploy(stage: &Stage, services: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= services {
                            return Ok(());
                        }
                        deploy_one(&stage.api, &format!("sleeping-{number}"))?;
                    }
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

/// Deploys a service as `deploy` of Google's own API does it, and waits for its operation: asking again and
/// again whether it is ready would take the processors from what is being measured.
fn deploy_one(api: &Api, name: &str) -> Result<()> {
    let project = &api.project;
    let services =
        format!("https://run.googleapis.com/v2/projects/{project}/locations/{REGION}/services");
    let service = json!({
        "ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY",
        "template": { "containers": [{ "image": e2e::IMAGE }] },
    });
    let post = |url: &str, body: Value| api.call("POST", url, Some(&body.to_string()))?.ok();
    let operation = post(&format!("{services}?serviceId={name}"), service)?;
    api.allow_unauthenticated(name)?;
    let id = operation["name"].as_str().context("an operation has a name")?;
    let wait = format!("https://run.googleapis.com/v2/{id}:wait");
    let operation = post(&wait, json!({ "timeout": "120s" }))?;
    let is_ready = operation["done"] == true && operation["error"].is_null();
    ensure!(is_ready, "{name} is not ready: {operation}");
    Ok(())
}

fn resident_kib(server: &Server) -> Result<u64> {
    let pid = server.pid().context("the server runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.split_whitespace().next());
    Ok(figure.context("VmRSS is in /proc/PID/status")?.parse()?)
}
