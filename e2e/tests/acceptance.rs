//! The acceptance script, where one is given: `HOWTO_SCRIPT` names it and nothing in it is changed.

use crate::Stage;
use anyhow::Result;
use e2e::certificate::self_signed;
use e2e::gcloud::Gcloud;
use e2e::howto::{self, DOMAIN, Ledger, Request, Step};
use std::path::PathBuf;

#[test]
fn the_acceptance_script_passes_twice_and_again_after_a_restart() -> Result<()> {
    let Some(script) = std::env::var_os("HOWTO_SCRIPT").map(PathBuf::from) else {
        println!(
            "SKIPPED: HOWTO_SCRIPT names no acceptance script; our own rendition is the proof"
        );
        return Ok(());
    };
    let Some(mut stage) = Stage::set("the acceptance script")? else { return Ok(()) };
    let Some(mut gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let passed = gcloud.script(&script, &[])?;
    assert!(passed.contains("steps passed"), "{passed}");
    gcloud.script(&script, &["--keep"])?;

    stage.server.kill()?;
    stage.server.start_again()?;
    gcloud.point_again(&stage.server);
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    // What was kept answers again with no command given.
    let request =
        Request { rule: "hello-http-fr", host: Some("example.com"), target: "/login/web" };
    howto::ask(&stage.server, &api, &pair, request)?;
    for step in howto::clean_up() {
        if !matches!(step, Step::Ask(_)) {
            howto::take(&step, &stage.server, &api, &pair, &mut Ledger::default())?;
        }
    }
    let passed = gcloud.script(&script, &[])?;
    assert!(passed.contains("steps passed"), "{passed}");
    stage.strike()
}
