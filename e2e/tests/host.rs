//! The host is left as it was found, whatever a server was doing when it ended.

use crate::Stage;
use anyhow::{Result, ensure};
use e2e::certificate::self_signed;
use e2e::host;
use e2e::howto::{self, DOMAIN, Ledger, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn down_takes_a_whole_balancer_away_and_up_brings_it_back() -> Result<()> {
    let Some(mut stage) = Stage::set("down and up again")? else { return Ok(()) };
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    let mut ledger = Ledger::default();
    for step in howto::build(&api, &pair) {
        howto::take(&step, &stage.server, &api, &pair, &mut ledger)?;
    }
    ensure!(host::processes_of(stage.server.data()).len() > 1, "there are a VM and containers");
    stage.server.down()?;
    stage.before.expect_nothing_left_by(stage.server.data())?;

    stage.server.start_again()?;
    let api = stage.server.api()?;
    ledger.verify(&api)?;
    let request = Request { rule: "hello-http-fr", host: None, target: "/" };
    howto::ask(&stage.server, &api, &pair, request)?;
    stage.strike()
}

#[test]
fn down_after_a_kill_takes_away_what_the_dead_server_left() -> Result<()> {
    let Some(mut stage) = Stage::set("down after a kill")? else { return Ok(()) };
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    for step in howto::build(&api, &pair) {
        howto::take(&step, &stage.server, &api, &pair, &mut Ledger::default())?;
    }
    stage.server.kill()?;
    stage.strike()
}

#[test]
fn an_interrupt_ends_the_server_in_order() -> Result<()> {
    let Some(mut stage) = Stage::set("an interrupt")? else { return Ok(()) };
    let pid = stage.server.pid().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    kill(Pid::from_raw(pid), Signal::SIGINT)?;
    e2e::wait::until("the server ends", std::time::Duration::from_secs(20), || {
        host::stat(u32::try_from(pid).ok()?).is_none_or(|stat| stat.state == 'Z').then_some(())
    })?;
    stage.server.kill()?;
    stage.before.expect_nothing_left_by(stage.server.data())
}
