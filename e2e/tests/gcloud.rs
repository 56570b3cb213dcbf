//! gcloud beyond the how-to: maps, traffic, lists, batches, logins, as a user would type them.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::balancer::Balancer;
use e2e::certificate::self_signed;
use e2e::gcloud::Gcloud;
use e2e::howto::{self, HELLO};
use e2e::{IMAGE, REGION, ZONE};
use std::fs;

/// A server with the how-to's load balancer, and gcloud pointed at it.
pub(crate) fn stage_with_balancer(what: &str) -> Result<Option<(Stage, Gcloud, Balancer)>> {
    let Some(stage) = Stage::set(what)? else { return Ok(None) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(None) };
    let balancer = Balancer::build(&stage.server)?;
    Ok(Some((stage, gcloud, balancer)))
}

/// The answer for a path from inside the client VM, without gcloud: its status and `Location`.
fn answer(balancer: &Balancer, host: &str, target: &str) -> Result<(u16, String)> {
    let page = balancer.get(host, target)?;
    Ok((page.status, page.header("location").unwrap_or_default().to_owned()))
}

#[test]
fn url_maps_are_exported_edited_imported_and_changed() -> Result<()> {
    let Some((stage, gcloud, balancer)) = stage_with_balancer("url-maps by gcloud")? else {
        return Ok(());
    };
    let map = |verb: &str, rest: &str| {
        format!("compute url-maps {verb} hello-map --region={REGION} {rest}")
    };
    let file = gcloud.folder().join("map.yaml");
    let path = file.display().to_string();
    gcloud.run(&map("export", &format!("--destination={path}")))?;
    let exported = fs::read_to_string(&file)?;
    ensure!(exported.contains("by-mask"), "{exported}");

    // Importing what was exported changes nothing; importing an edit changes what is served.
    gcloud.run(&map("import", &format!("--source={path} --quiet")))?;
    let edited = exported.replace(
        "  name: by-mask\n",
        "  name: by-mask\n  pathRules:\n  - paths:\n    - /old\n    urlRedirect:\n      pathRedirect: /new\n",
    );
    fs::write(&file, edited)?;
    gcloud.run(&map("import", &format!("--source={path} --quiet")))?;
    let (status, location) = answer(&balancer, "example.com", "/old")?;
    ensure!(status == 301 && location.ends_with("/new"), "{status} {location}");

    gcloud.run(&map("add-path-matcher", "--path-matcher-name=second --default-service=hello-bs --new-hosts=two.example.com --path-rules=/a/*=mask-bs"))?;
    gcloud.run(&map("add-host-rule", "--path-matcher-name=second --hosts=three.example.com"))?;
    ensure!(answer(&balancer, "three.example.com", "/")?.0 == 200, "the added host");
    gcloud.run(&map("remove-host-rule", "--host=three.example.com"))?;
    gcloud.run(&map("remove-path-matcher", "--path-matcher-name=second"))?;
    gcloud.run(&map("set-default-service", "--default-service=mask-bs"))?;
    gcloud.run(&map("set-default-service", "--default-service=hello-bs"))?;
    let described = gcloud.run(&map("describe", "--format=json"))?;
    let described: serde_json::Value = serde_json::from_str(&described)?;
    ensure!(
        described["pathMatchers"].as_array().is_some_and(|all| all.len() == 1),
        "{described:#}"
    );
    gcloud.run(&format!("compute url-maps validate --source={path} --region={REGION}"))?;

    let broken = gcloud.folder().join("broken.yaml");
    fs::write(&broken, "name: hello-map\ncolour: blue\n")?;
    let import = map("import", &format!("--source={} --quiet", broken.display()));
    gcloud.refused("'colour' was unexpected", &import)?;

    // A map whose own tests fail is refused, and what served goes on serving.
    let wrong = "tests:\n- description: moved\n  host: example.com\n  path: /old\n  \
                 expectedOutputUrl: http://example.com/elsewhere\n  expectedRedirectResponseCode: 301\n";
    fs::write(&broken, fs::read_to_string(&file)? + wrong)?;
    gcloud.refused("elsewhere", &import)?;
    let (status, location) = answer(&balancer, "example.com", "/old")?;
    ensure!(status == 301 && location.ends_with("/new"), "{status} {location}");
    stage.strike()
}

#[test]
fn lists_and_descriptions_show_what_was_declared() -> Result<()> {
    let Some((stage, gcloud, _)) = stage_with_balancer("lists by gcloud")? else {
        return Ok(());
    };
    for (list, name) in [
        ("compute networks list", "lb-network"),
        ("compute networks subnets list", "proxy-only-subnet"),
        ("compute network-endpoint-groups list", "helloworld-serverless-neg"),
        ("compute backend-services list", "hello-bs"),
        ("compute url-maps list", "hello-map"),
        ("compute target-http-proxies list", "hello-http-proxy"),
        ("compute target-https-proxies list", "hello-https-proxy"),
        ("compute ssl-certificates list", "hello-cert"),
        ("compute forwarding-rules list", "hello-https-fr"),
        ("compute instances list", "vm-client"),
        ("compute firewall-rules list", "fw-allow-ssh"),
        ("run services list", "login"),
        ("compute regions list", REGION),
        ("compute zones list", ZONE),
    ] {
        let printed = gcloud.run(list)?;
        ensure!(printed.contains(name), "gcloud {list}\n{printed}");
    }
    for (describe, value) in [
        (
            format!(
                "compute forwarding-rules describe hello-http-fr --region={REGION} --format=value(portRange)"
            ),
            "80-80",
        ),
        (
            format!(
                "compute networks subnets describe lb-subnet --region={REGION} --format=value(gatewayAddress)"
            ),
            "10.1.2.1",
        ),
        (
            format!(
                "compute backend-services describe hello-bs --region={REGION} --format=value(loadBalancingScheme)"
            ),
            "INTERNAL_MANAGED",
        ),
        (
            format!("compute instances describe vm-client --zone={ZONE} --format=value(status)"),
            "RUNNING",
        ),
        (
            format!(
                "run services describe hello --region={REGION} --format=value(status.conditions[0].status)"
            ),
            "True",
        ),
        ("compute project-info describe --format=value(kind)".to_owned(), "compute#project"),
    ] {
        let printed = gcloud.run(&describe)?;
        ensure!(printed.trim() == value, "gcloud {describe}\n{printed}");
    }
    let filtered = gcloud.words(&[
        "compute",
        "networks",
        "subnets",
        "list",
        "--filter=name~proxy.*",
        "--format=value(name)",
    ])?;
    ensure!(filtered.trim() == "proxy-only-subnet", "{filtered}");
    gcloud.refused(
        "was not found",
        &format!("compute url-maps describe nowhere --region={REGION}"),
    )?;
    gcloud.refused(
        "Cannot find service",
        &format!("run services describe nowhere --region={REGION}"),
    )?;
    stage.strike()
}

#[test]
fn revisions_tags_and_traffic_follow_gcloud() -> Result<()> {
    let Some(stage) = Stage::set("traffic by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let deploy = |rest: &str| {
        gcloud.run(&format!(
            "run deploy shop --image={IMAGE} --region={REGION} --allow-unauthenticated {rest}"
        ))
    };
    let value = |format: &str| -> Result<String> {
        let line = format!("run services describe shop --region={REGION} --format=value({format})");
        Ok(gcloud.run(&line)?.trim().to_owned())
    };
    deploy("--set-env-vars=COLOUR=blue")?;
    let first = value("status.latestReadyRevisionName")?;
    deploy("--set-env-vars=COLOUR=green --no-traffic --tag=next")?;
    let second = value("status.latestReadyRevisionName")?;
    ensure!(first != second && !first.is_empty(), "{first} {second}");
    ensure!(value("status.traffic[0].revisionName")? == first, "--no-traffic keeps the first");

    let traffic = |rest: &str| {
        gcloud.run(&format!("run services update-traffic shop --region={REGION} {rest}"))
    };
    traffic(&format!("--to-revisions={first}=25,{second}=75"))?;
    let percents = value("status.traffic.map().extract(percent)").unwrap_or_default();
    ensure!(percents.contains("25") && percents.contains("75"), "{percents}");
    traffic("--to-latest")?;
    traffic(&format!("--set-tags=old={first}"))?;
    let listed = gcloud.run(&format!("run revisions list --service=shop --region={REGION}"))?;
    ensure!(listed.contains(&first) && listed.contains(&second), "{listed}");

    // A service update without an image keeps the image, and makes a revision.
    gcloud.run(&format!("run services update shop --region={REGION} --update-env-vars=SIZE=xl"))?;
    let third = value("status.latestReadyRevisionName")?;
    ensure!(third != second, "the update made no revision");
    traffic("--clear-tags")?;
    gcloud.run(&format!("run revisions delete {second} --region={REGION} --quiet"))?;
    gcloud.run(&format!("run services delete shop --region={REGION} --quiet"))?;
    stage.strike()
}

#[test]
fn a_deployment_that_cannot_start_says_why() -> Result<()> {
    let Some(stage) = Stage::set("failing deployments by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    gcloud.refused(
        "broken",
        &format!("run deploy broken --image=127.0.0.1:9/nothing/here:1 --region={REGION} --allow-unauthenticated"),
    )?;
    gcloud.refused(
        "failed to start and listen on the port",
        &format!("run deploy silent --image={IMAGE} --command=/nothing --region={REGION} --allow-unauthenticated"),
    )?;
    stage.strike()
}

#[test]
fn several_at_once_go_as_one_batch() -> Result<()> {
    let Some(stage) = Stage::set("batches by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    gcloud.run("compute networks create n1 --subnet-mode=custom")?;
    gcloud.run(&format!(
        "compute networks subnets create s1 --network=n1 --range=10.3.0.0/24 --region={REGION}"
    ))?;
    gcloud.run(&format!("compute addresses create a1 a2 a3 --region={REGION} --subnet=s1"))?;
    let listed = gcloud.words(&["compute", "addresses", "list", "--format=value(name)"])?;
    ensure!(listed.split_whitespace().count() == 3, "{listed}");
    // One of them is taken: it is refused, and says so.
    gcloud.refused(
        "already exists",
        &format!("compute addresses create a1 a4 --region={REGION} --subnet=s1"),
    )?;
    gcloud.run(&format!("compute addresses delete a1 a2 a3 a4 --region={REGION} --quiet"))?;
    gcloud.run(&format!("compute networks subnets delete s1 --region={REGION} --quiet"))?;
    gcloud.run("compute networks delete n1 --quiet")?;
    stage.strike()
}

#[test]
fn a_login_keeps_its_host_key_and_copies_files() -> Result<()> {
    let Some((mut stage, mut gcloud, _)) = stage_with_balancer("compute ssh and scp")? else {
        return Ok(());
    };
    let api = stage.server.api()?;
    let address = howto::address(&api, "hello-http-fr")?;
    let page = gcloud.ssh("vm-client", &format!("curl -sS http://{address}"))?;
    ensure!(page.contains(HELLO), "{page}");
    ensure!(gcloud.ssh("vm-client", "hostname")?.trim() == "vm-client", "its name");
    // The first contact is remembered: another host key would be refused from here on.
    stage.server.kill()?;
    stage.server.start_again()?;
    gcloud.point_again(&stage.server);
    ensure!(gcloud.ssh("vm-client", "echo again")?.trim() == "again", "after a restart");
    let note = gcloud.folder().join("note.txt");
    fs::write(&note, "carried\n")?;
    let note = note.to_str().context("a path in UTF-8")?.to_owned();
    gcloud.words(&[
        "compute",
        "scp",
        &note,
        "vm-client:note.txt",
        &format!("--zone={ZONE}"),
        "--quiet",
    ])?;
    ensure!(gcloud.ssh("vm-client", "cat note.txt")?.trim() == "carried", "the copied file");
    let outcome = gcloud.try_words(&[
        "compute",
        "ssh",
        "vm-client",
        &format!("--zone={ZONE}"),
        "--quiet",
        "--command=exit 7",
    ])?;
    ensure!(outcome.status.code() == Some(7), "{:?}", outcome.status);
    stage.strike()
}

#[test]
fn certificates_policies_and_firewalls_are_changed_in_place() -> Result<()> {
    let Some((stage, gcloud, _)) = stage_with_balancer("updates by gcloud")? else {
        return Ok(());
    };
    let pair = self_signed("new.example.com", &[])?;
    fs::write(gcloud.folder().join("new.pem"), &pair.certificate)?;
    fs::write(gcloud.folder().join("new-key.pem"), &pair.key)?;
    gcloud.run(&format!("compute ssl-certificates create new-cert --certificate=new.pem --private-key=new-key.pem --region={REGION}"))?;
    let expires = gcloud.run(&format!(
        "compute ssl-certificates describe new-cert --region={REGION} --format=value(expireTime)"
    ))?;
    ensure!(!expires.trim().is_empty(), "no expireTime");
    gcloud.run(&format!("compute target-https-proxies update hello-https-proxy --ssl-certificates=new-cert,hello-cert --region={REGION}"))?;
    gcloud.refused(
        "already being used by",
        &format!("compute ssl-certificates delete new-cert --region={REGION} --quiet"),
    )?;
    gcloud.run(
        "compute firewall-rules update fw-allow-ssh --source-ranges=10.0.0.0/8,35.235.240.0/20",
    )?;
    let ranges =
        gcloud.run("compute firewall-rules describe fw-allow-ssh --format=value(sourceRanges)")?;
    ensure!(ranges.contains("35.235.240.0/20"), "{ranges}");
    gcloud.run(&format!("compute networks subnets expand-ip-range lb-subnet --prefix-length=23 --region={REGION} --quiet"))
        .or_else(|error| if error.to_string().contains("10.1.2.0/23") { Ok(String::new()) } else { Err(error) })?;
    gcloud.run(&format!("run services add-iam-policy-binding hello --region={REGION} --member=user:someone@example.com --role=roles/run.invoker"))?;
    let policy = gcloud.run(&format!("run services get-iam-policy hello --region={REGION}"))?;
    ensure!(policy.contains("someone@example.com"), "{policy}");
    gcloud.run(&format!(
        "compute instances add-metadata vm-client --zone={ZONE} --metadata=colour=blue"
    ))?;
    gcloud.run(&format!("compute instances stop vm-client --zone={ZONE} --quiet"))?;
    gcloud.run(&format!("compute instances start vm-client --zone={ZONE} --quiet"))?;
    stage.strike()
}
