//! From a change to its being served, and from a deployment to its first answer.
//!
//! A client on a kept connection asks again and again; “from DONE” is the time from the operation's
//! answer to the first answer that is the new one, one round trip of the client's included.

use crate::start::{balancer, rule};
use anyhow::{Result, ensure};
use bench_report::Report;
use e2e::api::{Api, regional, zonal};
use e2e::howto;
use e2e::http::Connection;
use e2e::server::Server;
use serde_json::json;
use std::time::Instant;

/// How often the map is changed.
const CHANGES: usize = 300;

/// How many path rules the world has besides.
const ROUTES: usize = 5000;

/// How many path rules one map may have in one matcher.
const ROUTES_PER_MAP: usize = 500;

/// How many services are deployed.
const DEPLOYMENTS: usize = 20;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut server = Server::start(&folder.path().join("data"))?;
    let api = server.api()?;
    balancer(&api, "10.64.0.0/24")?;
    api.insert(&regional("forwardingRules"), &rule(&api, "rule", "80"))?;
    let network = api.link("global/networks/n");
    let subnet = api.link(&regional("subnetworks/s"));
    let mut vm = howto::client_vm(&network, &subnet);
    vm["name"] = "client".into();
    let started = Instant::now();
    api.insert(&zonal("instances"), &vm)?;
    report.durations("client VM, request to RUNNING", vec![started.elapsed()], "");

    deployments(report, &server, &api)?;
    changes(report, &server, &api, "a small world")?;
    for number in 0..ROUTES / ROUTES_PER_MAP {
        api.insert(&regional("urlMaps"), &many_routes(&api, number))?;
    }
    changes(report, &server, &api, &format!("{ROUTES} routes"))?;
    server.down()
}

fn many_routes(api: &Api, number: usize) -> serde_json::Value {
    let service = api.link(&regional("backendServices/bs"));
    let rules: Vec<_> = (0..ROUTES_PER_MAP)
        .map(|rule| json!({ "paths": [format!("/{number}/{rule}/*")], "service": service }))
        .collect();
    json!({ "name": format!("many-{number}"), "defaultService": service,
        "hostRules": [{ "hosts": ["many.example.com"], "pathMatcher": "m" }],
        "pathMatchers": [{ "name": "m", "defaultService": service, "pathRules": rules }] })
}

fn changes(report: &mut Report, server: &Server, api: &Api, world: &str) -> Result<()> {
    let inside = howto::inside(server, api, "client")?;
    let address = howto::address(api, "rule")?;
    let mut client = Connection::over(inside.connect((address, 80).into())?);
    let path = regional("urlMaps/map");
    let service = api.link(&regional("backendServices/bs"));
    let (mut from_request, mut from_done, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let mut map = api.get(&path)?;
        let target = format!("/generation/{change}");
        map["hostRules"] = json!([{ "hosts": ["where.example.com"], "pathMatcher": "m" }]);
        map["pathMatchers"] = json!([{ "name": "m", "defaultService": service,
            "pathRules": [{ "paths": ["/where"], "urlRedirect": { "pathRedirect": target } }] }]);
        let started = Instant::now();
        let operation = api.compute("PUT", &path, Some(&map))?.ok()?;
        answer.push(started.elapsed());
        api.done(operation)?;
        let done = Instant::now();
        loop {
            let page = client.get("where.example.com", "/where")?;
            ensure!(page.status < 500, "{}: {}", page.status, page.text());
            if page.header("location").is_some_and(|location| location.ends_with(&target)) {
                break;
            }
        }
        from_done.push(done.elapsed());
        from_request.push(started.elapsed());
    }
    report.durations(&format!("change, request to answer ({world})"), answer, "");
    report.durations(&format!("change to serving, from the request ({world})"), from_request, "");
    report.durations(
        &format!("change to serving, from DONE ({world})"),
        from_done,
        "p99 under 10 ms",
    );
    Ok(())
}

fn deployments(report: &mut Report, server: &Server, api: &Api) -> Result<()> {
    // The first one unpacks the image; every later one starts a container of it.
    let started = Instant::now();
    api.deploy("first", e2e::IMAGE, &[])?;
    report.durations("first deployment, request to Ready", vec![started.elapsed()], "");
    let inside = howto::inside(server, api, "client")?;
    let address = howto::address(api, "rule")?;
    let (mut ready, mut first_answer) = (Vec::new(), Vec::new());
    for number in 0..DEPLOYMENTS {
        let name = format!("service-{number}");
        let started = Instant::now();
        api.deploy(&name, e2e::IMAGE, &[])?;
        ready.push(started.elapsed());
        let stream = inside.connect((address, 80).into())?;
        let page = Connection::over(stream).get("any.example.com", &format!("/{name}"))?;
        ensure!(page.status == 200, "{name}: {}", page.status);
        first_answer.push(started.elapsed());
    }
    report.durations("deployment, request to Ready (image at hand)", ready, "");
    report.durations("deployment, request to first page through the balancer", first_answer, "");
    Ok(())
}
