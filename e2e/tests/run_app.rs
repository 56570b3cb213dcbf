//! Services under their own `run.app` addresses: as curl and Python meet them, through the proxy and past it.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::gcloud::Gcloud;
use e2e::{IMAGE, REGION, ZONE, wait};
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

#[test]
fn a_client_vm_reaches_by_its_url_what_only_its_network_may_reach() -> Result<()> {
    let Some(stage) = Stage::set("run.app addresses in a network")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    for line in [
        "compute networks create inner --subnet-mode=custom",
        &format!(
            "compute networks subnets create inner --network=inner --range=10.9.0.0/24 --region={REGION}"
        ),
        "compute firewall-rules create inner-ssh --network=inner --allow=tcp:22",
        &format!(
            "compute instances create vm --zone={ZONE} --network=inner --subnet=inner \
             --image-family=debian-12 --image-project=debian-cloud"
        ),
        &format!(
            "run deploy inner --image={IMAGE} --region={REGION} --ingress=internal --no-allow-unauthenticated"
        ),
    ] {
        gcloud.run(line)?;
    }
    let describe = format!("run services describe inner --region={REGION}");
    let url = gcloud.run(&format!("{describe} --format=value(status.url)"))?.trim().to_owned();
    ensure!(status(&gcloud, &[&url])? == "404 2", "from outside");

    let ask = "curl -sS -o /dev/null -w 'answered %{http_code} %{http_version}'";
    let from_vm = |more: &str| gcloud.ssh("vm", &format!("{ask} {more} {url}"));
    let with_token = "-H \"Authorization: Bearer $(curl -sS -H 'Metadata-Flavor: Google' \
                      'http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/identity";
    let with_token = |audience: &str| format!("{with_token}?audience={audience}')\"");
    ensure!(from_vm("")?.contains("answered 403 2"), "without a token");
    ensure!(from_vm(&with_token(&url))?.contains("answered 403 2"), "without the role");
    let machine = gcloud.run(&format!(
        "compute instances describe vm --zone={ZONE} --format=value(serviceAccounts[0].email)"
    ))?;
    gcloud.run(&format!(
        "run services add-iam-policy-binding inner --region={REGION} --role=roles/run.invoker --member=serviceAccount:{}",
        machine.trim()
    ))?;
    ensure!(from_vm(&with_token(&url))?.contains("answered 200 2"), "with token and role");
    let elsewhere = with_token("https://example.com");
    ensure!(from_vm(&elsewhere)?.contains("answered 401 2"), "a token for somebody else");
    stage.strike()
}
