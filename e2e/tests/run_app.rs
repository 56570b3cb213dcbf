//! Services under their own `run.app` addresses: as curl and Python meet them, through the proxy and past it.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::gcloud::Gcloud;
use e2e::{IMAGE, REGION, wait};
use serde_json::Value;
use std::time::Duration;

/// How long an entry may take from the data plane to Cloud Logging.
const LOG_LIMIT: Duration = Duration::from_secs(10);

/// The status of a request, as curl sees it.
fn status(gcloud: &Gcloud, arguments: &[&str]) -> Result<String> {
    let mut curl = gcloud.program("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}"]);
    let output = curl.args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "curl {arguments:?}: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

fn told(stage: &Stage) -> Result<Value> {
    let output = stage.server.command(&["status", "--format=json"])?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn a_service_is_reached_by_its_url_and_a_tags_url_as_ingress_and_access_say() -> Result<()> {
    let Some(stage) = Stage::set("run.app addresses")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    gcloud.run(&format!(
        "run deploy own --image={IMAGE} --region={REGION} --allow-unauthenticated --tag=blue"
    ))?;
    let describe = format!("run services describe own --region={REGION}");
    let url = gcloud.run(&format!("{describe} --format=value(status.url)"))?.trim().to_owned();
    let host = url.strip_prefix("https://").context("an https URL")?.to_owned();

    ensure!(status(&gcloud, &[&url])? == "200 2", "the service over HTTP/2");
    ensure!(status(&gcloud, &["--http1.1", &url])? == "200 1.1", "the service over HTTP/1.1");
    ensure!(status(&gcloud, &[&format!("https://blue---{host}/")])? == "200 2", "a tag");
    ensure!(status(&gcloud, &[&format!("https://red---{host}/")])? == "404 2", "no such tag");
    ensure!(status(&gcloud, &[&format!("https://x{host}/")])? == "404 2", "no such service");

    // Past the proxy: `Host` names the service on the one port, and the server name on the other.
    let environment = stage.server.environment();
    let plain = format!("http://{}/", environment["TIDEGATE_RUN_APP_HTTP"]);
    let tls = format!("::{}", environment["TIDEGATE_RUN_APP_HTTPS"]);
    let named = format!("Host: {host}");
    ensure!(status(&gcloud, &["--noproxy", "*", "-H", &named, &plain])? == "200 1.1", "plain");
    ensure!(status(&gcloud, &["--noproxy", "*", "--connect-to", &tls, &url])? == "200 2", "TLS");

    for (setting, expected) in
        [("internal", "404 2"), ("internal-and-cloud-load-balancing", "404 2"), ("all", "200 2")]
    {
        gcloud.run(&format!("run services update own --region={REGION} --ingress={setting}"))?;
        ensure!(status(&gcloud, &[&url])? == expected, "ingress {setting}");
    }
    gcloud.run(&format!(
        "run services remove-iam-policy-binding own --region={REGION} --member=allUsers --role=roles/run.invoker"
    ))?;
    ensure!(status(&gcloud, &[&url])? == "403 2", "without a token");
    ensure!(
        status(&gcloud, &["-H", "Authorization: Bearer x.y.z", &url])? == "401 2",
        "a bad token"
    );

    let explained = stage.server.command(&["explain", &url])?;
    let explained = String::from_utf8(explained.stdout)?;
    ensure!(explained.contains("403: The request was not authenticated."), "{explained}");

    let read =
        "logging read resource.type=cloud_run_revision --format=value(httpRequest.status,severity)";
    wait::until("the requests are in Cloud Logging", LOG_LIMIT, || {
        let entries = gcloud.run(read).ok()?;
        ["200\tINFO", "404\tWARNING", "403\tWARNING", "401\tWARNING"]
            .iter()
            .all(|entry| entries.contains(entry))
            .then_some(())
    })?;
    let told = told(&stage)?;
    let requests = told["runApp"][1]["requests"].as_u64().context("a count of requests")?;
    ensure!(requests >= 9, "{told}");
    stage.strike()
}
