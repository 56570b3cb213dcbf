//! Instances as clients notice them: one that a client is brought back to, and those that start because
//! somebody asks.

use crate::Stage;
use anyhow::{Context, Result, anyhow, ensure};
use e2e::balancer::{BY_PATH, Balancer};
use e2e::gcloud::Gcloud;
use e2e::http::{Connection, Page};
use e2e::probe::{self, PROBE};
use e2e::{REGION, wait};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long instances may take to come or go.
const INSTANCES_LIMIT: Duration = Duration::from_secs(60);
/// How often a client comes back.
const VISITS: usize = 10;
/// How many ask a service that has no instance, at a time.
const AT_ONCE: usize = 20;

/// A way to services: at their own addresses, or behind the balancer.
enum Way<'a> {
    RunApp { at: SocketAddr, host: String },
    Balancer(&'a Balancer, &'static str),
}

impl Way<'_> {
    fn open(&self) -> Result<Connection<TcpStream>> {
        match self {
            Way::RunApp { at, .. } => Ok(Connection::over(TcpStream::connect(at)?)),
            Way::Balancer(balancer, _) => balancer.open(),
        }
    }

    fn head(&self, target: &str, cookie: Option<&str>) -> String {
        let field = cookie.map_or_else(String::new, |cookie| format!("Cookie: a=b; {cookie}\r\n"));
        match self {
            Way::RunApp { host, .. } => {
                format!("GET /{target} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n")
            }
            Way::Balancer(_, service) => {
                format!("GET /{service}/{target} HTTP/1.1\r\nHost: {BY_PATH}\r\n{field}\r\n")
            }
        }
    }

    fn get(&self, target: &str, cookie: Option<&str>) -> Result<Page> {
        let page = self.open()?.request(&self.head(target, cookie))?;
        ensure!(page.status == 200, "{target}: {}: {}", page.status, page.text());
        Ok(page)
    }
}

/// How many instances of a service there are, or are being started.
fn instances(stage: &Stage, service: &str) -> Result<u64> {
    let output = stage.server.command(&["status", "--format=json"])?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let services = told["services"].as_array().context("services")?;
    let is_it = |it: &&Value| it["name"].as_str().is_some_and(|name| name.ends_with(service));
    let found = services.iter().find(is_it).with_context(|| format!("{told:#}"))?;
    let revisions = found["revisions"].as_array().context("revisions")?;
    let count = |revision: &Value| -> Option<u64> {
        Some(revision["instancesReady"].as_u64()? + revision["instancesStarting"].as_u64()?)
    };
    revisions.iter().map(count).sum::<Option<u64>>().context("counts of instances")
}

fn expect_instances(stage: &Stage, service: &str, number: u64) -> Result<()> {
    let what = format!("{service} has {number} instances");
    wait::until_ok(&what, INSTANCES_LIMIT, || {
        let there = instances(stage, service)?;
        ensure!(there == number, "there are {there}");
        Ok(())
    })
}

#[test]
fn a_client_comes_back_to_its_instance_and_the_first_ones_after_idle_are_waited_for() -> Result<()>
{
    let soon = "--limit-idle-before-zero-seconds=0";
    let Some(stage) = Stage::set_with("instances", &[soon])? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    probe::load(&stage.server)?;
    let balancer = Balancer::build(&stage.server)?;
    let deploy = |rest: &str| {
        gcloud.run(&format!(
            "run deploy {rest} --image={PROBE} --region={REGION} --allow-unauthenticated"
        ))
    };
    let at: SocketAddr = stage.server.environment()["TIDEGATE_RUN_APP_HTTP"].parse()?;
    let own = |service: &str| -> Result<Way<'_>> {
        let service = balancer.api.ready(service)?;
        let url = service["status"]["url"].as_str().context("a service has a URL")?;
        Ok(Way::RunApp { at, host: url.trim_start_matches("https://").to_owned() })
    };

    deploy("sticky --session-affinity --min-instances=2 --max-instances=2")?;
    expect_instances(&stage, "sticky", 2)?;
    comes_back(&own("sticky")?, "own")?;
    comes_back(&Way::Balancer(&balancer, "sticky"), "behind")?;

    deploy("sleeper --concurrency=5 --max-instances=4")?;
    let scaling = |to: &str| {
        gcloud.run(&format!("beta run services update sleeper --region={REGION} --scaling={to}"))
    };
    scaling("0")?;
    expect_instances(&stage, "sleeper", 0)?;
    let refused = own("sleeper")?.get("id", None).map(|page| page.text());
    ensure!(refused.is_err_and(|error| error.to_string().contains("503")), "it is scaled to zero");
    scaling("auto")?;
    expect_instances(&stage, "sleeper", 0)?;
    all_are_answered(&own("sleeper")?)?;
    stage.strike()
}

/// Two clients, each with an instance of its own, come back to it, whichever is free.
fn comes_back(way: &Way<'_>, held: &str) -> Result<()> {
    let first = way.get("id", None)?;
    let mut holding = way.open()?;
    std::thread::scope(|scope| -> Result<()> {
        let head = way.head(&format!("hold/{held}"), None);
        let request = scope.spawn(move || holding.request(&head));
        // While one request is held, the next goes to the other instance.
        let second = wait::until_ok("the other instance answers", INSTANCES_LIMIT, || {
            let page = way.get("id", None)?;
            ensure!(page.text() != first.text(), "always the same");
            Ok(page)
        });
        let released = way.get(&format!("release/{held}"), Some(&cookie(&first)?));
        let answered = request.join().map_err(|_| anyhow!("the held request panicked"))??;
        ensure!(answered.text() == first.text() && released?.text() == first.text(), "another one");
        let clients = [first, second?];
        for visit in 0..VISITS {
            for client in &clients {
                let page = way.get("id", Some(&cookie(client)?))?;
                ensure!(page.text() == client.text(), "visit {visit}: another instance");
                ensure!(page.header("set-cookie").is_none(), "visit {visit}: a cookie again");
            }
        }
        Ok(())
    })
}

/// The cookie that an answer sets.
fn cookie(page: &Page) -> Result<String> {
    let field = page.header("set-cookie").context("no cookie")?;
    ensure!(field.starts_with("GAESA="), "{field}");
    Ok(field.split(';').next().unwrap_or(field).to_owned())
}

/// Many ask at a time while there is no instance.
fn all_are_answered(way: &Way<'_>) -> Result<()> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| way.get("id", None))).collect();
        for one in asking {
            one.join().map_err(|_| anyhow!("a request panicked"))??;
        }
        Ok(())
    })
}
