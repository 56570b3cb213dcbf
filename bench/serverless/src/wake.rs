//! Cold starts through the balancer, one at a time and many at once.
//!
//! A server that is started again has no instances: each of its services is asked once, over a
//! connection that is open already, and pays the whole start.

use crate::images::Image;
use anyhow::{Result, ensure};
use bench_report::{Report, milliseconds};
use e2e::api::{Api, regional, zonal};
use e2e::host;
use e2e::howto;
use e2e::http::Connection;
use e2e::namespace::Namespace;
use e2e::server::Server;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Services of one image; more samples are taken by starting the server again.
const SERVICES: usize = 25;
/// Between two cold starts, so that spare helpers are there again, as after a quiet moment.
const REST: Duration = Duration::from_millis(100);
/// After a server's start, until its client VM has started too.
const SETTLED: Duration = Duration::from_secs(3);
/// How many services are woken at once.
const AT_ONCE: [usize; 2] = [25, 100];
/// The slowest starts are told one by one, with their phases.
const SLOWEST_TOLD: usize = 3;
/// Warm requests, whose median is taken off the whole to tell what deciding took.
const WARM: usize = 200;

/// A server with a load balancer by URL mask and a client VM.
pub(crate) struct Stage {
    pub(crate) server: Server,
    pub(crate) api: Api,
    _folder: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn set() -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let server = Server::start(&folder.path().join("data"))?;
        let api = server.api()?;
        balancer(&api)?;
        Ok(Stage { server, api, _folder: folder })
    }

    /// Every instance goes, every service stays.
    pub(crate) fn put_to_sleep(&mut self) -> Result<()> {
        self.server.down()?;
        self.server.start_again()?;
        self.api = self.server.api()?;
        Ok(())
    }

    /// The way in, from inside the network.
    fn way_in(&self) -> Result<WayIn> {
        let inside = howto::inside(&self.server, &self.api, "client")?;
        Ok(WayIn { inside, address: howto::address(&self.api, "rule")? })
    }
}

struct WayIn {
    inside: Namespace,
    address: Ipv4Addr,
}

impl WayIn {
    fn open(&self) -> Result<Connection<TcpStream>> {
        Ok(Connection::over(self.inside.connect((self.address, 80).into())?))
    }
}

/// Asks a service once; how long the answer took.
fn ask(client: &mut Connection<TcpStream>, service: &str) -> Result<Duration> {
    let began = Instant::now();
    let page = client.get("example.com", &format!("/{service}"))?;
    let took = began.elapsed();
    ensure!(page.status == 200, "{service}: {} {}", page.status, page.text());
    Ok(took)
}

pub(crate) fn measure(report: &mut Report, images: &[Image], rounds: usize) -> Result<()> {
    let mut stage = Stage::set()?;
    for image in images {
        if let Some(archive) = &image.archive {
            let path = archive.display().to_string();
            let loaded = stage.server.command(&["image", "load", &path])?;
            let said = String::from_utf8_lossy(&loaded.stderr).into_owned();
            ensure!(loaded.status.success(), "{path}: {said}");
        }
    }
    for (kind, image) in images.iter().enumerate() {
        for number in 0..=SERVICES {
            stage.api.deploy(&name(kind, number), &image.reference, &[])?;
        }
        one_at_a_time(report, &mut stage, kind, image, rounds)?;
    }
    for number in SERVICES + 1..AT_ONCE[1] {
        stage.api.deploy(&name(0, number), &images[0].reference, &[])?;
    }
    for count in AT_ONCE {
        stage.put_to_sleep()?;
        std::thread::sleep(SETTLED);
        at_once(report, &stage, count)?;
    }
    stage.server.down()
}

fn name(kind: usize, number: usize) -> String {
    format!("s{kind}-{number}")
}

/// One cold start: how long the client waited, and when the server says that the sandbox was created, the
/// program executed and the port open.
struct Start {
    took: Duration,
    phases: [Duration; 3],
}

fn one_at_a_time(
    report: &mut Report,
    stage: &mut Stage,
    kind: usize,
    image: &Image,
    rounds: usize,
) -> Result<()> {
    let (mut whole, mut starts) = (Vec::new(), Vec::new());
    while whole.len() < rounds {
        stage.put_to_sleep()?;
        // The first start shares the machine with the client VM's, and is not counted.
        let way_in = stage.way_in()?;
        ask(&mut way_in.open()?, &name(kind, SERVICES))?;
        std::thread::sleep(SETTLED);
        let log = stage.server.data().with_extension("log");
        let said_before = fs::metadata(&log)?.len();
        let mut asked = Vec::new();
        for number in 0..SERVICES.min(rounds - whole.len()) {
            let mut client = way_in.open()?;
            std::thread::sleep(REST);
            let service = name(kind, number);
            let took = ask(&mut client, &service)?;
            whole.push(took);
            asked.push((service, took));
        }
        let said = phases_said(&log, said_before)?;
        ensure!(!said.is_empty(), "the server said nothing of its starts");
        starts.extend(asked.into_iter().filter_map(|(service, took)| {
            let of_service = format!("{service}-");
            let (_, phases) = said.iter().find(|(name, _)| name.starts_with(&of_service))?;
            Some(Start { took, phases: *phases })
        }));
    }
    let warm = warm(stage, &name(kind, 0))?;
    tell_phases(report, image.title, starts, warm);
    let aim = if kind < 2 { "p50 under 25 ms, p99 under 80 ms" } else { "" };
    report.durations(&format!("cold start, first byte to first byte, {}", image.title), whole, aim);
    Ok(())
}

/// How long a service takes that is awake.
fn warm(stage: &Stage, service: &str) -> Result<Vec<Duration>> {
    let way_in = stage.way_in()?;
    let mut client = way_in.open()?;
    let mut warm = Vec::new();
    for _ in 0..WARM {
        // Not every server keeps a connection; what opening one costs is not the request's.
        if warm.len() % 10 == 0 {
            client = way_in.open()?;
        }
        match ask(&mut client, service) {
            Ok(took) => warm.push(took),
            Err(_) => client = way_in.open()?,
        }
    }
    warm.sort();
    Ok(warm)
}

/// What the server said of all starts, and what is left of the whole beside it: the program's first
/// answer is in that, which costs some of them more than a later one.
fn tell_phases(report: &mut Report, title: &str, mut starts: Vec<Start>, warm: Vec<Duration>) {
    let warm_median = warm.get(warm.len() / 2).copied().unwrap_or_default();
    let parts = |start: &Start| {
        let [created, executed, ready] = start.phases;
        let rest = start.took.saturating_sub(ready).saturating_sub(warm_median);
        [rest, created, executed.saturating_sub(created), ready.saturating_sub(executed)]
    };
    let names = ["deciding and first answer", "sandbox created", "program executed", "listening"];
    starts.sort_by_key(|start| start.took);
    for start in starts.iter().rev().take(SLOWEST_TOLD) {
        let parts = names.iter().zip(parts(start)).map(|(name, part)| format!("{name} {part:.1?}"));
        let parts: Vec<String> = parts.collect();
        println!("a slow start of {title}, {:.1?}: {}", start.took, parts.join(", "));
    }
    for (index, name) in names.into_iter().enumerate() {
        let samples = starts.iter().map(|start| parts(start)[index]).collect();
        report.durations(&format!("— {title}: {name}"), samples, "");
    }
    report.durations(&format!("— {title}: first byte of a warm answer"), warm, "");
}

/// The phases of each start by revision, as the server's log has them from this byte on.
fn phases_said(log: &Path, from: u64) -> Result<BTreeMap<String, [Duration; 3]>> {
    let text = fs::read(log)?;
    let from = usize::try_from(from)?.min(text.len());
    let text = String::from_utf8_lossy(&text[from..]).into_owned();
    let mut phases = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains("instance is ready")) {
        let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let time = |name: &str| word(name).and_then(duration);
        if let (Some(revision), Some(created), Some(executed), Some(took)) =
            (word("revision="), time("created="), time("executed="), time("took="))
        {
            phases.insert(revision.to_owned(), [created, executed, took]);
        }
    }
    Ok(phases)
}

/// A duration as Rust's `Debug` writes it.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    Some(Duration::from_secs_f64(number.parse::<f64>().ok()? * factor))
}

fn at_once(report: &mut Report, stage: &Stage, count: usize) -> Result<()> {
    let way_in = stage.way_in()?;
    let clients = (0..count).map(|_| way_in.open()).collect::<Result<Vec<_>>>()?;
    let barrier = Barrier::new(count + 1);
    let (times, all) = std::thread::scope(|scope| {
        let asking: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(number, mut client)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    ask(&mut client, &name(0, number))
                })
            })
            .collect();
        barrier.wait();
        let began = Instant::now();
        let times: Vec<_> = asking.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (times, began.elapsed())
    });
    let mut answered = Vec::new();
    for time in times {
        answered.push(time.map_err(|_| anyhow::anyhow!("a client panicked"))??);
    }
    answered.sort();
    let spread = format!("median {}", milliseconds(answered[answered.len() / 2]));
    let aim = if count == AT_ONCE[1] { "3 s" } else { "" };
    report.row(
        &format!("{count} services woken at once, all answered"),
        milliseconds(all),
        &spread,
        aim,
    );
    let helpers = host::processes_of(stage.server.data());
    let own = stage.server.pid();
    let kib: u64 = helpers.iter().filter(|it| Some(it.pid) != own).map(|it| pss_kib(it.pid)).sum();
    let each = kib / u64::try_from(count)?;
    report.row(
        &format!("memory per instance, {count} awake: helper and program"),
        format!("{each} KiB"),
        "proportional set size",
        "",
    );
    Ok(())
}

fn pss_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Network, subnets, backend by mask, map, proxy, rule and a client VM.
fn balancer(api: &Api) -> Result<()> {
    let network = api.link("global/networks/n");
    let link = |path: &str| api.link(&regional(path));
    let subnet = link("subnetworks/s");
    api.insert("global/networks", &json!({ "name": "n", "autoCreateSubnetworks": false }))?;
    let parts: [(&str, Value); 7] = [
        ("subnetworks", json!({ "name": "s", "network": network, "ipCidrRange": "10.64.0.0/24" })),
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
        (
            "forwardingRules",
            json!({ "name": "rule", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
                "network": network, "subnetwork": subnet, "target": link("targetHttpProxies/proxy") }),
        ),
    ];
    for (collection, body) in parts {
        api.insert(&regional(collection), &body)?;
    }
    let mut vm = howto::client_vm(&network, &subnet);
    vm["name"] = "client".into();
    api.insert(&zonal("instances"), &vm)?;
    Ok(())
}
