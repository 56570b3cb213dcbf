//! `tidegate demo`: the server, and Google's how-to carried out on it step by step through its own API.
//!
//! Every step is one call any client could make. A step whose resource is already there is left as it is,
//! so the demo of a data directory can be started again.

mod steps;

use crate::cli::Up;
use crate::client::{Client, Refused};
use crate::data_dir::DataDir;
use crate::screen::Screen;
use crate::server::Server;
use crate::vm_shell::SshKey;
use anyhow::{Context, bail};
use http::{Method, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};
use steps::{Step, Wait};

/// How long a service may take to become ready, its image's way from a registry included.
const READY_PATIENCE: Duration = Duration::from_secs(600);

/// How often a service that is not ready yet is asked about.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub(crate) async fn run(dir: &DataDir, options: &Up) -> anyhow::Result<()> {
    let screen = Screen::new();
    screen.line(&format!("Tidegate {} on {}", env!("CARGO_PKG_VERSION"), dir.root().display()));
    let server = Server::start(dir, options).await?;
    let carried_out = tokio::select! {
        done = carry_out(&server, dir, &screen) => done,
        () = crate::server::asked_to_stop() => Ok(()),
    };
    if carried_out.is_ok() && !server.is_stopping() {
        crate::server::asked_to_stop().await;
    }
    screen.line("Stopping: connections are drained and the host is left as it was found.");
    server.stop().await?;
    carried_out
}

async fn carry_out(server: &Server, dir: &DataDir, screen: &Screen) -> anyhow::Result<()> {
    let client = Client::new(server.running().api, crate::server::token(dir)?);
    let key = SshKey::open(dir.join("demo"))?;
    let ports = server.vm_ports();
    let world = steps::World::of(&server.running().project, key.metadata_line()?)?;
    let steps = world.steps();
    let count = steps.len() + 2;
    for (index, step) in steps.iter().enumerate() {
        let title = format!("{:>2}/{count}  {}", index + 1, step.title);
        perform(&client, step, &title, screen).await.with_context(|| step.title.to_owned())?;
    }
    let http = world.address_of(&client, "http").await?;
    let https = world.address_of(&client, "https").await?;
    let mut first_line = String::new();
    let requests = [
        format!("curl -sS http://{http}"),
        format!("curl -k -s 'https://{0}:443' --connect-to {0}:443:{https}:443", steps::DOMAIN),
    ];
    for (index, command) in requests.iter().enumerate() {
        let title = format!("{:>2}/{count}  vm-client$ {command}", steps.len() + 1 + index);
        let page = key.run(&ports, &world.vm(), command).await?;
        let line = steps::title_of(&page);
        screen.done(&title, &line);
        first_line = line;
    }
    let place = dir.root().display();
    screen.line(&format!(
        "
The load balancer serves inside the VPC network lb-network:
  HTTP     http://{http}
  HTTPS    https://{https}   (certificate for {})
  page     {first_line}

Point a shell at it:
  eval \"$(tidegate env --data-dir {place})\"
and then, for example:
  gcloud compute ssh vm-client --zone={} --command='curl -s http://{http}'

Ctrl-C stops everything.",
        steps::DOMAIN,
        steps::ZONE,
    ));
    Ok(())
}

/// Carries out one step and waits for what it waits for.
async fn perform(client: &Client, step: &Step, title: &str, screen: &Screen) -> anyhow::Result<()> {
    screen.begin(title);
    let began = Instant::now();
    match client.call(step.method.clone(), &step.url, step.body.as_ref()).await {
        Ok(answer) => match &step.wait {
            Wait::Nothing => {}
            Wait::Operation => wait_for_operation(client, answer).await?,
            Wait::Ready => {}
        },
        Err(error) if already_there(&error, &step.method) => {
            screen.done(title, "already there");
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    if matches!(step.wait, Wait::Ready) {
        wait_until_ready(client, &step.url, step.name, title, screen).await?;
    }
    screen.done(title, &format!("{} ms", began.elapsed().as_millis()));
    Ok(())
}

fn already_there(error: &anyhow::Error, method: &Method) -> bool {
    let refused = error.downcast_ref::<Refused>();
    method == Method::POST && refused.is_some_and(|refused| refused.status == StatusCode::CONFLICT)
}

/// Waits for a Compute operation; what went wrong in it is the error.
async fn wait_for_operation(client: &Client, mut operation: Value) -> anyhow::Result<()> {
    while operation["status"] != "DONE" {
        let link = operation["selfLink"].as_str().context("an operation without a link")?;
        let path = link.split_once("/compute/").context("not a Compute operation")?.1;
        let url = format!("http://compute.googleapis.com/compute/{path}/wait");
        operation = client.call(Method::POST, &url, None).await?;
    }
    match operation["error"]["errors"][0]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => Ok(()),
    }
}

/// Waits for a Cloud Run service, saying what it is doing.
async fn wait_until_ready(
    client: &Client,
    collection: &str,
    name: &str,
    title: &str,
    screen: &Screen,
) -> anyhow::Result<()> {
    let url = format!("{collection}/{name}");
    let deadline = Instant::now() + READY_PATIENCE;
    loop {
        let service = client.get(&url).await?;
        let conditions = service["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
        let message = ready.and_then(|ready| ready["message"].as_str()).unwrap_or_default();
        let current = service["metadata"]["generation"] == service["status"]["observedGeneration"];
        match ready.and_then(|ready| ready["status"].as_str()).filter(|_| current) {
            Some("True") => return Ok(()),
            Some("False") => bail!("{message}"),
            _ if Instant::now() > deadline => bail!("still not ready: {message}"),
            _ => screen.progress(title, message),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
