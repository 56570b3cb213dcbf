//! Several servers on one machine: the data directory is all that differs.

use crate::Stage;
use anyhow::{Result, ensure};
use e2e::certificate::self_signed;
use e2e::host::Before;
use e2e::howto::{self, DOMAIN, Ledger, Request};
use e2e::server::Server;

#[test]
fn two_servers_with_the_same_names_and_addresses_do_not_meet() -> Result<()> {
    let Some(mut one) = Stage::set("two servers side by side")? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let mut other = Server::start(&folder.path().join("data"))?;
    let pair = self_signed(DOMAIN, &[])?;
    let (one_api, other_api) = (one.server.api()?, other.api()?);

    let (mut one_ledger, mut other_ledger) = (Ledger::default(), Ledger::default());
    for step in howto::build(&one_api, &pair) {
        howto::take(&step, &one.server, &one_api, &pair, &mut one_ledger)?;
        howto::take(&step, &other, &other_api, &pair, &mut other_ledger)?;
    }
    // A token is good at the server that issued it and nowhere else.
    let foreign = other_api.with_token(one_api.token());
    ensure!(
        foreign.compute("GET", "global/networks", None)?.status == 401,
        "a foreign token works"
    );

    // One goes, the other stays as it was.
    one.server.down()?;
    one.before.expect_nothing_left_by(one.server.data())?;
    other_ledger.verify(&other_api)?;
    let request = Request { rule: "hello-http-fr", host: None, target: "/" };
    howto::ask(&other, &other_api, &pair, request)?;
    other.down()?;
    Before::now().expect_nothing_left_by(other.data())
}

#[test]
fn a_second_server_on_the_same_data_is_refused_and_the_first_goes_on() -> Result<()> {
    let Some(stage) = Stage::set("a second server on the same data")? else { return Ok(()) };
    let second = stage.server.command(&["up"])?;
    ensure!(!second.status.success(), "two servers on one data directory");
    ensure!(
        stage.server.api()?.compute("GET", "global/networks", None)?.status == 200,
        "it is gone"
    );
    stage.strike()
}
