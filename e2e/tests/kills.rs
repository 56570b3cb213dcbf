//! `kill -9` at random points of the how-to: nothing acknowledged is lost, traffic flows again by itself,
//! and nothing without an owner is left on the host.
//!
//! The points are drawn from a seed that is printed; `KILL_SEED` repeats a run, `KILLS` makes it longer.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::api::{Api, zonal};
use e2e::certificate::{Pair, self_signed};
use e2e::howto::{self, DOMAIN, Ledger, Request, Step};
use e2e::server::Server;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How many kills one run has, unless `KILLS` says otherwise.
const KILLS: usize = 50;

/// The longest a server lives from its being ready until it is killed: most of the how-to.
const LIFE_MILLISECONDS_MAX: u64 = 900;

/// How long a client VM may take after a restart until it tells its host keys.
const KEYS_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn kills_at_random_points_of_the_how_to_lose_nothing() -> Result<()> {
    let Some(mut stage) = Stage::set("kills at random points of the how-to")? else {
        return Ok(());
    };
    let seed = number_from("KILL_SEED").unwrap_or_else(|| rand::rng().random());
    let kills = number_from("KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap_or(KILLS));
    println!("KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);

    let pair = self_signed(DOMAIN, &[])?;
    let mut run = Run { next: 0, ledger: Ledger::default(), host_keys: Value::Null, rounds: 0 };
    let token = stage.server.api()?.token().to_owned();
    let authority = authority(&stage.server)?;
    for kill in 0..kills {
        let life = Duration::from_millis(random.random_range(0..LIFE_MILLISECONDS_MAX));
        run.live_and_die(&mut stage.server, &pair, life).with_context(|| at(kill, life, seed))?;
        stage.server.start_again().with_context(|| at(kill, life, seed))?;
        let api = stage.server.api()?;
        ensure!(api.token() == token, "the token changed; {}", at(kill, life, seed));
        ensure!(self::authority(&stage.server)? == authority, "the CA changed");
        run.check(&stage.server, &api, &pair).with_context(|| at(kill, life, seed))?;
    }
    println!(
        "{kills} kills, {} whole rounds of the how-to, {} ms to ready at last",
        run.rounds,
        stage.server.ready_after.as_millis()
    );
    run.finish(&stage.server, &pair)?;
    stage.strike()
}

fn at(kill: usize, life: Duration, seed: u64) -> String {
    format!("kill {kill}, {life:?} after it was ready; KILL_SEED={seed}")
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn authority(server: &Server) -> Result<Vec<u8>> {
    let bundle = server.environment().get("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE");
    Ok(fs::read(bundle.context("`tidegate env` names the CA bundle")?)?)
}

/// How far the how-to has come over all the lives of the server.
struct Run {
    next: usize,
    ledger: Ledger,
    host_keys: Value,
    rounds: usize,
}

impl Run {
    fn steps(api: &Api, pair: &Pair) -> Vec<Step> {
        howto::build(api, pair).into_iter().chain(howto::clean_up()).collect()
    }

    /// Takes steps until the server, killed after `life`, answers no more.
    fn live_and_die(&mut self, server: &mut Server, pair: &Pair, life: Duration) -> Result<()> {
        let api = server.api()?;
        let steps = Run::steps(&api, pair);
        let pid = i32::try_from(server.pid().context("the server runs")?)?;
        let is_dying = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let killer = scope.spawn(|| {
                std::thread::sleep(life);
                // Said first: a client may see the end before this thread has come back from it.
                is_dying.store(true, Ordering::SeqCst);
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
            });
            let mut outcome = Ok(());
            while outcome.is_ok() {
                outcome = howto::take(&steps[self.next], server, &api, pair, &mut self.ledger);
                if outcome.is_ok() {
                    self.next = (self.next + 1) % steps.len();
                    self.rounds += usize::from(self.next == 0);
                }
                // A step may go well after the kill, when it was the last answer of this life.
                if killer.is_finished() && outcome.is_ok() {
                    break;
                }
            }
            let was_killed = is_dying.load(Ordering::SeqCst);
            killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
            match outcome {
                // The step that failed did so because of the kill, or the server is at fault.
                Err(error) if !was_killed => Err(error.context("a step failed before the kill")),
                _ => Ok(()),
            }
        })?;
        server.kill()
    }

    /// After a restart: everything acknowledged is there, and where the balancer stands, it serves.
    fn check(&mut self, server: &Server, api: &Api, pair: &Pair) -> Result<()> {
        self.ledger.verify(api)?;
        let stands = ["forwardingRules/hello-http-fr", "forwardingRules/hello-https-fr"]
            .iter()
            .all(|rule| self.ledger.has(&e2e::api::regional(rule)));
        let has_client = self.ledger.has(&zonal("instances/vm-client"));
        let is_building = self.next < howto::build(api, pair).len();
        if stands && has_client && is_building {
            for (rule, host) in [("hello-http-fr", None), ("hello-https-fr", Some(DOMAIN))] {
                howto::ask(server, api, pair, Request { rule, host, target: "/" })?;
            }
        }
        self.check_host_keys(api, has_client && is_building)
    }

    fn check_host_keys(&mut self, api: &Api, has_client: bool) -> Result<()> {
        if !has_client {
            self.host_keys = Value::Null;
            return Ok(());
        }
        let path = zonal("instances/vm-client/getGuestAttributes?queryPath=hostkeys/");
        // A VM that was half made is made now, and has its keys once it has started.
        let keys = e2e::wait::until_ok("the VM has host keys", KEYS_LIMIT, || {
            Ok(api.get(&path)?["queryValue"]["items"].take())
        })?;
        let id = api.get(&zonal("instances/vm-client"))?["id"].take();
        let known = json!({ "id": id, "keys": keys });
        // Another round of the how-to has another VM, with an id and keys of its own.
        ensure!(
            self.host_keys["id"] != id || self.host_keys == known,
            "the host keys were {} and are {known}",
            self.host_keys,
        );
        self.host_keys = known;
        Ok(())
    }

    /// Brings the how-to to its end on the last server, so that the project is empty.
    fn finish(&mut self, server: &Server, pair: &Pair) -> Result<()> {
        let api = server.api()?;
        let steps = Run::steps(&api, pair);
        while self.next < steps.len() {
            howto::take(&steps[self.next], server, &api, pair, &mut self.ledger)?;
            self.next += 1;
        }
        self.ledger.verify(&api)
    }
}
