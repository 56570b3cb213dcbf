//! From starting the program to its being ready, and what it then holds in memory.

use anyhow::{Context, Result};
use bench_report::Report;
use e2e::api::{Api, regional};
use e2e::server::Server;
use serde_json::json;
use std::fs;
use std::time::Duration;

/// How often an empty server is started.
const EMPTY_STARTS: usize = 20;

/// How often a server with its forwarding rules is started.
const FULL_STARTS: usize = 3;

/// How many forwarding rules a full server has.
const FORWARDING_RULES: usize = 1000;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    // The first start makes keys and files; what a user waits for every day is the second.
    let mut server = Server::start(&data)?;
    report.durations("first start to ready (makes the CA)", vec![server.ready_after], "");
    let mut empty = Vec::new();
    for _ in 0..EMPTY_STARTS {
        server.down()?;
        server.start_again()?;
        empty.push(server.ready_after);
    }
    report.durations("start to ready, empty", empty, "under 50 ms");
    let resident = resident_kib(&server)?;
    report.row("resident memory, empty and idle", mib(resident), "", "20 MiB");

    declare_rules(&server.api()?)?;
    let mut full = Vec::new();
    let mut after_kill = Vec::new();
    for _ in 0..FULL_STARTS {
        server.down()?;
        server.start_again()?;
        full.push(server.ready_after);
        server.kill()?;
        server.start_again()?;
        after_kill.push(server.ready_after);
    }
    let rules = format!("{FORWARDING_RULES} forwarding rules");
    report.durations(&format!("start to ready, {rules}"), full, "");
    report.durations(&format!("start to ready after kill -9, {rules}"), after_kill, "");
    report.row(&format!("resident memory, {rules}"), mib(resident_kib(&server)?), "", "");
    server.down()
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", Duration::from_millis(kib).as_secs_f64() * 1000.0 / 1024.0)
}

fn resident_kib(server: &Server) -> Result<u64> {
    let pid = server.pid().context("the server runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.split_whitespace().next());
    Ok(figure.context("VmRSS is in /proc/PID/status")?.parse()?)
}

fn declare_rules(api: &Api) -> Result<()> {
    balancer(api, "10.64.0.0/16")?;
    for number in 0..FORWARDING_RULES {
        let body = rule(api, &format!("rule-{number}"), "80");
        api.change("POST", &regional("forwardingRules"), Some(&body))?;
    }
    Ok(())
}

/// Network, subnets, backend by mask, map and proxy, under fixed names.
pub(crate) fn balancer(api: &Api, range: &str) -> Result<()> {
    let network = api.link("global/networks/n");
    let link = |path: &str| api.link(&regional(path));
    api.insert("global/networks", &json!({ "name": "n", "autoCreateSubnetworks": false }))?;
    for (collection, body) in [
        ("subnetworks", json!({ "name": "s", "network": network, "ipCidrRange": range })),
        (
            "subnetworks",
            json!({ "name": "proxies", "network": network, "ipCidrRange": "10.200.0.0/23",
                "purpose": "REGIONAL_MANAGED_PROXY", "role": "ACTIVE" }),
        ),
        (
            "networkEndpointGroups",
            json!({ "name": "neg", "networkEndpointType": "SERVERLESS",
                "cloudRun": { "urlMask": "/<service>" } }),
        ),
        (
            "backendServices",
            json!({ "name": "bs", "loadBalancingScheme": "INTERNAL_MANAGED", "protocol": "HTTP",
                "backends": [{ "group": link("networkEndpointGroups/neg") }] }),
        ),
        ("urlMaps", json!({ "name": "map", "defaultService": link("backendServices/bs") })),
        ("targetHttpProxies", json!({ "name": "proxy", "urlMap": link("urlMaps/map") })),
    ] {
        api.insert(&regional(collection), &body)?;
    }
    Ok(())
}

/// A forwarding rule of the balancer.
pub(crate) fn rule(api: &Api, name: &str, port: &str) -> serde_json::Value {
    json!({ "name": name, "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": port,
        "network": api.link("global/networks/n"),
        "subnetwork": api.link(&regional("subnetworks/s")),
        "target": api.link(&regional("targetHttpProxies/proxy")) })
}
