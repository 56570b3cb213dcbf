//! A new server takes the place of the old one while requests come in every way there is: none fails, and
//! client VMs do not notice.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::certificate::{Pair, self_signed};
use e2e::gcloud::Gcloud;
use e2e::howto::{self, DOMAIN, Ledger};
use e2e::http::{Connection, tls};
use e2e::namespace::Namespace;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// How often the server is replaced.
const REPLACEMENTS: usize = 3;

/// Requests each way of asking makes at least between two replacements.
const REQUESTS_BETWEEN: usize = 20;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One way in which requests come.
struct Way<'a> {
    name: &'static str,
    host: &'a str,
    /// Whether requests follow one another on one connection, for as long as the server lets them.
    keeps: bool,
    connect: Box<dyn Fn() -> Result<Box<dyn Stream>> + Send + Sync + 'a>,
}

impl Way<'_> {
    /// Asks until told to stop, and counts; the first failure ends it.
    fn ask(&self, asked: &std::sync::atomic::AtomicUsize, stop: &AtomicBool) -> Result<()> {
        let mut kept: Option<Connection<Box<dyn Stream>>> = None;
        while !stop.load(Ordering::Relaxed) {
            let mut connection = match kept.take() {
                Some(kept) => kept,
                None => Connection::over((self.connect)().context("connecting")?),
            };
            let page = connection.get(self.host, "/")?;
            ensure!(page.status == 200, "{}: {}", page.status, page.text());
            asked.fetch_add(1, Ordering::Relaxed);
            if self.keeps && page.header("connection") != Some("close") {
                kept = Some(connection);
            }
        }
        Ok(())
    }
}

fn ways<'a>(
    inside: &'a Namespace,
    pair: &'a Pair,
    addresses: [SocketAddr; 3],
    own: &'a str,
) -> Vec<Way<'a>> {
    let [http, https, run_app] = addresses;
    let balancer = move || Ok(Box::new(inside.connect(http)?) as Box<dyn Stream>);
    let over_tls = move || {
        Ok(Box::new(tls(inside.connect(https)?, DOMAIN, &pair.certificate)?) as Box<dyn Stream>)
    };
    let direct = move || Ok(Box::new(TcpStream::connect(run_app)?) as Box<dyn Stream>);
    let way = |name, host, keeps, connect| Way { name, host, keeps, connect };
    vec![
        way("kept connections to a load balancer", DOMAIN, true, Box::new(balancer)),
        way("new connections to a load balancer", DOMAIN, false, Box::new(balancer)),
        way("kept TLS connections", DOMAIN, true, Box::new(over_tls)),
        way("new TLS connections", DOMAIN, false, Box::new(over_tls)),
        way("kept connections to a run.app address", own, true, Box::new(direct)),
        way("new connections to a run.app address", own, false, Box::new(direct)),
    ]
}

/// Eight requests on one HTTP/2 connection, by curl; true when each was answered.
fn over_http2(gcloud: &Gcloud, url: &str) -> Result<()> {
    let mut curl = gcloud.program("curl");
    curl.args(["-sS", "-w", "%{http_code} %{http_version}\n"]);
    for _ in 0..8 {
        curl.args(["-o", "/dev/null", url]);
    }
    let output = curl.output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said == "200 2\n".repeat(8), "{said}{wrong}");
    Ok(())
}

#[test]
fn no_request_fails_while_a_new_server_takes_the_place_of_the_old_one() -> Result<()> {
    let Some(mut stage) = Stage::set("a server that is replaced")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    for step in howto::build(&api, &pair) {
        howto::take(&step, &stage.server, &api, &pair, &mut Ledger::default())?;
    }
    let place = format!("--region={}", e2e::REGION);
    gcloud
        .run(&format!("run deploy own --image={} {place} --allow-unauthenticated", e2e::IMAGE))?;
    let describe = format!("run services describe own {place}");
    let url = gcloud.run(&format!("{describe} --format=value(status.url)"))?.trim().to_owned();
    let own = url.strip_prefix("https://").context("an https URL")?;
    let inside = howto::inside(&stage.server, &api, "vm-client")?;
    let run_app = stage.server.environment()["TIDEGATE_RUN_APP_HTTP"].parse()?;
    let addresses = [
        (howto::address(&api, "hello-http-fr")?, 80).into(),
        (howto::address(&api, "hello-https-fr")?, 443).into(),
        run_app,
    ];
    let processes = || -> Result<Option<String>> {
        // The first login tells of the keys it makes, too.
        let said = gcloud.ssh("vm-client", "readlink /proc/self/ns/pid")?;
        Ok(said.lines().find(|line| line.starts_with("pid:")).map(str::to_owned))
    };
    let boot = processes()?;

    let ways = ways(&inside, &pair, addresses, own);
    let counts: Vec<_> = ways.iter().map(|_| Default::default()).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let asking: Vec<_> = ways
            .iter()
            .zip(&counts)
            .map(|(way, count)| (way.name, scope.spawn(|| way.ask(count, &stop))))
            .collect();
        let http2 = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                over_http2(&gcloud, &url)?;
            }
            Ok::<_, anyhow::Error>(())
        });
        let replaced = (0..REPLACEMENTS).try_for_each(|_| {
            let before: Vec<usize> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
            stage.server.replace()?;
            e2e::wait::until("every way is asked again", std::time::Duration::from_secs(60), || {
                let mut both = counts.iter().zip(&before);
                let asked = both
                    .all(|(now, before)| now.load(Ordering::Relaxed) >= before + REQUESTS_BETWEEN);
                let ended = asking.iter().any(|(_, thread)| thread.is_finished());
                (asked || ended).then_some(())
            })
        });
        stop.store(true, Ordering::Relaxed);
        for (name, thread) in asking {
            let ended = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            ended.context(name)?;
        }
        http2.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        replaced
    })?;
    // The API answers, what was declared is there, and the client VM never stopped.
    ensure!(api.names(&e2e::api::regional("forwardingRules"))?.len() == 2, "the forwarding rules");
    let after = processes()?;
    ensure!(boot.is_some() && boot == after, "the client VM was started again");
    stage.strike()
}
