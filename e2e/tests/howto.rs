//! The how-to in our own rendition: over REST always, and word for word by gcloud where it is installed.

use crate::Stage;
use anyhow::Result;
use e2e::certificate::self_signed;
use e2e::gcloud::Gcloud;
use e2e::howto::{self, DOMAIN, HELLO, Ledger};
use e2e::{IMAGE, REGION, ZONE};

#[test]
fn the_how_to_runs_over_rest_and_leaves_nothing_behind() -> Result<()> {
    let Some(stage) = Stage::set("the how-to over REST")? else { return Ok(()) };
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    let before = api.everything()?;
    let mut ledger = Ledger::default();
    let steps = howto::build(&api, &pair).into_iter().chain(howto::clean_up());
    for step in steps {
        howto::take(&step, &stage.server, &api, &pair, &mut ledger)?;
        ledger.verify(&api)?;
    }
    assert_eq!(api.everything()?, before, "the clean-up gives the project back as it was");
    stage.strike()
}

#[test]
fn the_how_to_runs_by_gcloud() -> Result<()> {
    let Some(stage) = Stage::set("the how-to by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    deploy_and_build(&gcloud)?;
    let http = forwarding_address(&gcloud, "hello-http-fr")?;
    let https = forwarding_address(&gcloud, "hello-https-fr")?;
    create_client(&gcloud)?;

    let ask = "curl -sS -H Metadata-Flavor:Google";
    let at = "http://metadata.google.internal/computeMetadata/v1/instance/name";
    let name = gcloud.ssh("vm-client", &format!("{ask} {at}"))?;
    assert!(name.lines().any(|line| line == "vm-client"), "{name}");
    let page = gcloud.ssh("vm-client", &format!("curl -sS http://{http}"))?;
    assert!(page.contains(HELLO), "{page}");
    let curl = format!("curl -k -s https://{DOMAIN}:443 --connect-to {DOMAIN}:443:{https}:443");
    let page = gcloud.ssh("vm-client", &curl)?;
    assert!(page.contains(HELLO), "{page}");

    extend_by_mask(&gcloud)?;
    let page = gcloud
        .ssh("vm-client", &format!("curl -sS -H Host:example.com http://{http}/login/web"))?;
    assert!(page.contains(HELLO), "{page}");

    change_and_refuse(&gcloud)?;
    clean_up(&gcloud)?;
    stage.strike()
}

fn deploy_and_build(gcloud: &Gcloud) -> Result<()> {
    let folder = gcloud.folder();
    let pair = self_signed(DOMAIN, &[])?;
    std::fs::write(folder.join("crt.pem"), &pair.certificate)?;
    std::fs::write(folder.join("key.pem"), &pair.key)?;
    let in_network =
        "--load-balancing-scheme=INTERNAL_MANAGED --network=lb-network --subnet=lb-subnet";
    for line in [
        format!(
            "run deploy hello --platform=managed --allow-unauthenticated --ingress=internal --region={REGION} --image={IMAGE}"
        ),
        "compute networks create lb-network --subnet-mode=custom".to_owned(),
        format!(
            "compute networks subnets create lb-subnet --network=lb-network --range=10.1.2.0/24 --region={REGION}"
        ),
        format!(
            "compute networks subnets create proxy-only-subnet --purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE --region={REGION} --network=lb-network --range=10.129.0.0/23"
        ),
        format!(
            "compute network-endpoint-groups create hello-neg --region={REGION} --network-endpoint-type=serverless --cloud-run-service=hello"
        ),
        format!(
            "compute backend-services create hello-bs --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP --region={REGION}"
        ),
        format!(
            "compute backend-services add-backend hello-bs --region={REGION} --network-endpoint-group=hello-neg --network-endpoint-group-region={REGION}"
        ),
        format!("compute url-maps create hello-map --default-service=hello-bs --region={REGION}"),
        format!(
            "compute ssl-certificates create hello-cert --certificate crt.pem --private-key key.pem --region={REGION}"
        ),
        format!(
            "compute target-http-proxies create hello-http-proxy --url-map=hello-map --region={REGION}"
        ),
        format!(
            "compute target-https-proxies create hello-https-proxy --ssl-certificates=hello-cert --url-map=hello-map --region={REGION}"
        ),
        format!(
            "compute forwarding-rules create hello-http-fr {in_network} --target-http-proxy=hello-http-proxy --target-http-proxy-region={REGION} --region={REGION} --ports=80"
        ),
        format!(
            "compute forwarding-rules create hello-https-fr {in_network} --target-https-proxy=hello-https-proxy --target-https-proxy-region={REGION} --region={REGION} --ports=443"
        ),
    ] {
        gcloud.run(&line)?;
    }
    Ok(())
}

fn forwarding_address(gcloud: &Gcloud, rule: &str) -> Result<String> {
    let line = format!(
        "compute forwarding-rules describe {rule} --region={REGION} --format=get(IPAddress)"
    );
    Ok(gcloud.run(&line)?.trim().to_owned())
}

fn create_client(gcloud: &Gcloud) -> Result<()> {
    gcloud.run(&format!(
        "compute instances create vm-client --image-family=debian-12 --image-project=debian-cloud --tags=allow-ssh --network=lb-network --subnet=lb-subnet --zone={ZONE}"
    ))?;
    gcloud.run(
        "compute firewall-rules create fw-allow-ssh --network=lb-network --action=allow --direction=ingress --target-tags=allow-ssh --rules=tcp:22",
    )?;
    Ok(())
}

fn extend_by_mask(gcloud: &Gcloud) -> Result<()> {
    for line in [
        format!(
            "run deploy login --platform=managed --allow-unauthenticated --ingress=internal --region={REGION} --image={IMAGE} --set-env-vars=WHO=login"
        ),
        format!(
            "compute network-endpoint-groups create mask-neg --region={REGION} --network-endpoint-type=serverless --cloud-run-url-mask=example.com/<service>"
        ),
        format!(
            "compute backend-services create mask-bs --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP --region={REGION}"
        ),
        format!(
            "compute backend-services add-backend mask-bs --region={REGION} --network-endpoint-group=mask-neg --network-endpoint-group-region={REGION}"
        ),
        format!(
            "compute url-maps add-path-matcher hello-map --region={REGION} --path-matcher-name=by-mask --default-service=mask-bs --new-hosts=example.com"
        ),
    ] {
        gcloud.run(&line)?;
    }
    Ok(())
}

fn change_and_refuse(gcloud: &Gcloud) -> Result<()> {
    let keep_alive = |seconds: u32| {
        format!(
            "compute target-https-proxies update hello-https-proxy --http-keep-alive-timeout-sec={seconds} --region {REGION}"
        )
    };
    gcloud.run(&keep_alive(300))?;
    gcloud.refused("httpKeepAliveTimeoutSec", &keep_alive(601))?;
    let delete =
        format!("compute network-endpoint-groups delete hello-neg --region={REGION} --quiet");
    gcloud.refused("already being used by", &delete)?;
    gcloud.run(&format!(
        "compute backend-services remove-backend hello-bs --network-endpoint-group=hello-neg --network-endpoint-group-region={REGION} --region={REGION}"
    ))?;
    gcloud.run(&delete)?;
    Ok(())
}

fn clean_up(gcloud: &Gcloud) -> Result<()> {
    for line in [
        format!("compute forwarding-rules delete hello-http-fr hello-https-fr --region={REGION}"),
        format!("compute target-http-proxies delete hello-http-proxy --region={REGION}"),
        format!("compute target-https-proxies delete hello-https-proxy --region={REGION}"),
        format!("compute url-maps delete hello-map --region={REGION}"),
        format!("compute backend-services delete hello-bs mask-bs --region={REGION}"),
        format!("compute network-endpoint-groups delete mask-neg --region={REGION}"),
        format!("compute ssl-certificates delete hello-cert --region={REGION}"),
        format!("compute instances delete vm-client --zone={ZONE}"),
        "compute firewall-rules delete fw-allow-ssh".to_owned(),
        format!("compute networks subnets delete proxy-only-subnet lb-subnet --region={REGION}"),
        "compute networks delete lb-network".to_owned(),
        format!("run services delete hello --region={REGION}"),
        format!("run services delete login --region={REGION}"),
    ] {
        gcloud.run(&format!("{line} --quiet"))?;
    }
    Ok(())
}
