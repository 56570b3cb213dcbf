//! What `run deploy` says about containers, as it is described and as the containers themselves see it:
//! sidecars with one loopback and an order, volumes they share, secrets, a service account.

use crate::Stage;
use crate::gcloud_run::{check, described};
use anyhow::{Context, Result, ensure};
use e2e::REGION;
use e2e::api::regional;
use e2e::gcloud::Gcloud;
use e2e::http::Connection;
use e2e::probe::{self, PROBE};
use serde_json::{Value, json};
use std::fs;
use std::net::{SocketAddr, TcpStream};

/// What a service answers at its own address.
struct Asked {
    at: SocketAddr,
    host: String,
}

impl Asked {
    fn about(&self, target: &str) -> Result<String> {
        let page = Connection::over(TcpStream::connect(self.at)?).get(&self.host, target)?;
        ensure!(page.status == 200, "{target}: {}: {}", page.status, page.text());
        Ok(page.text())
    }

    fn says(&self, target: &str, expected: &str) -> Result<()> {
        let said = self.about(target)?;
        ensure!(said == expected, "{target}: {said:?} instead of {expected:?}");
        Ok(())
    }
}

#[test]
fn containers_of_an_instance_have_what_the_flags_say() -> Result<()> {
    let Some(stage) = Stage::set("containers by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    probe::load(&stage.server)?;
    let api = stage.server.api()?;
    let project = &api.project;
    let secret = stage.server.data().join("secrets").join(project).join("pass");
    fs::create_dir_all(&secret)?;
    for (version, text) in [("1", "sesame"), ("2", "mellon")] {
        fs::write(secret.join(version), text)?;
    }
    let network = api.link("global/networks/lb-network");
    api.insert(
        "global/networks",
        &json!({ "name": "lb-network", "autoCreateSubnetworks": false }),
    )?;
    let subnet = json!({ "name": "lb-subnet", "network": network, "ipCidrRange": "10.1.2.0/24" });
    api.insert(&regional("subnetworks"), &subnet)?;
    gcloud.run("iam service-accounts create baker-man")?;
    let account = format!("baker-man@{project}.iam.gserviceaccount.com");

    gcloud.run(&format!(
        "run deploy team --region={REGION} --allow-unauthenticated --service-account={account} \
         --network=lb-network --subnet=lb-subnet --network-tags=sends --vpc-egress=all-traffic \
         --add-volume=name=shared,type=in-memory,size-limit=16Mi \
         --container=front --image={PROBE} --port=8080 --depends-on=helper \
         --set-env-vars=NAME=front,JOURNAL=/shared/journal --add-volume-mount=volume=shared,mount-path=/shared \
         --set-secrets=FIRST=pass:1,NEWEST=pass:latest,/secrets/first/pass=pass:1,/secrets/newest/pass=pass:latest \
         --container=helper --image={PROBE} --add-volume-mount=volume=shared,mount-path=/common \
         --set-env-vars=NAME=helper,JOURNAL=/common/journal,LISTEN=9001 \
         --startup-probe=httpGet.path=/ready,httpGet.port=9001,periodSeconds=1,failureThreshold=20"
    ))?;
    let service = described(&gcloud, "team")?;
    let interfaces =
        json!([{ "network": "lb-network", "subnetwork": "lb-subnet", "tags": ["sends"] }]);
    let spec = "/spec/template/spec";
    let annotations = "/spec/template/metadata/annotations/run.googleapis.com~1";
    for (flag, place, expected) in [
        ("--service-account", format!("{spec}/serviceAccountName"), account.as_str()),
        ("--container", format!("{spec}/containers/0/name"), "front"),
        ("--container", format!("{spec}/containers/1/name"), "helper"),
        ("--port", format!("{spec}/containers/0/ports/0/containerPort"), "8080"),
        ("--vpc-egress", format!("{annotations}vpc-access-egress"), "all-traffic"),
        ("--add-volume", format!("{spec}/volumes/0/emptyDir/sizeLimit"), "16Mi"),
        ("--add-volume-mount", format!("{spec}/containers/1/volumeMounts/0/mountPath"), "/common"),
    ] {
        check(&service, &[(flag, &place, expected)])?;
    }
    for (flag, name, expected) in [
        ("--depends-on", "container-dependencies", json!({ "front": ["helper"] })),
        ("--network", "network-interfaces", interfaces),
    ] {
        let told = service.pointer(&format!("{annotations}{name}")).and_then(Value::as_str);
        let told: Value = serde_json::from_str(told.context(flag)?)?;
        ensure!(told == expected, "{flag}: {told}");
    }

    let url = service["status"]["url"].as_str().context("a service has a URL")?;
    let at = stage.server.environment()["TIDEGATE_RUN_APP_HTTP"].parse()?;
    let asked = Asked { at, host: url.trim_start_matches("https://").to_owned() };
    // The one that is depended on was started first, and the other only when its probe was answered.
    asked.says("/file/shared/journal", "helper started\nhelper ready\nfront started\n")?;
    asked.says("/get/localhost:9001/env/NAME", "helper")?;
    ensure!(
        asked.about("/id")? != asked.about("/get/localhost:9001/id")?,
        "one container answered"
    );
    asked.says("/env/PORT", "8080")?;
    asked.says("/get/localhost:9001/env/PORT", "absent")?;
    asked.says("/append/hello/shared/letter", "written")?;
    asked.says("/get/localhost:9001/file/common/letter", "hello\n")?;
    asked.says("/env/FIRST", "sesame")?;
    asked.says("/env/NEWEST", "mellon")?;
    asked.says("/file/secrets/first/pass", "sesame")?;
    asked.says("/file/secrets/newest/pass", "mellon")?;
    asked.says("/get/localhost:9001/env/FIRST", "absent")?;
    let email = "computeMetadata/v1/instance/service-accounts/default/email";
    asked
        .says(&format!("/get/localhost:9001/get/metadata.google.internal:80/{email}"), &account)?;
    updated(&gcloud, &asked, &api)?;
    stage.strike()
}

/// One container is changed and the other is not; then it goes.
fn updated(gcloud: &Gcloud, asked: &Asked, api: &e2e::api::Api) -> Result<()> {
    let url = format!("https://cloudresourcemanager.googleapis.com/v1/projects/{}", api.project);
    let number = api.call("GET", &url, None)?.ok()?["projectNumber"].clone();
    let number = number.as_str().context("a project has a number")?;
    gcloud.run(&format!(
        "run services update team --region={REGION} --container=front --remove-secrets=FIRST \
         --update-secrets=NEWEST=pass:1,REMOTE=projects/{number}/secrets/pass:2,/secrets/remote/pass=projects/{number}/secrets/pass:1 \
         --container=helper --update-env-vars=COLOUR=blue"
    ))?;
    asked.says("/env/FIRST", "absent")?;
    asked.says("/env/NEWEST", "sesame")?;
    asked.says("/env/REMOTE", "mellon")?;
    asked.says("/file/secrets/remote/pass", "sesame")?;
    asked.says("/get/localhost:9001/env/COLOUR", "blue")?;
    asked.says("/file/shared/journal", "helper started\nhelper ready\nfront started\n")
}
