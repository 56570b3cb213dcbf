//! Calls between services: who may call is known by the identity token a container or a client VM got
//! from its own metadata server, and whom it is for.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::balancer::{BY_PATH, Balancer};
use e2e::gcloud::Gcloud;
use e2e::namespace::Namespace;
use e2e::probe::{self, PROBE};
use e2e::server::Server;
use e2e::{REGION, ZONE, howto};
use std::net::SocketAddr;

const CUSTOM: &str = "https://orders.example.com";
const IDENTITY: &str = "computeMetadata/v1/instance/service-accounts/default/identity?audience=";
const EMAIL: &str = "computeMetadata/v1/instance/service-accounts/default/email";

/// A service that only some may call, and everybody's ways to it.
struct Guarded {
    gcloud: Gcloud,
    balancer: Balancer,
    caller: String,
    url: String,
}

impl Guarded {
    /// What the container of the calling service gets from its own metadata server.
    fn told_container(&self, path: &str) -> Result<String> {
        let target = format!("{}/get/metadata.google.internal:80/{path}", self.caller);
        let mut curl = self.gcloud.program("curl");
        let output = curl.args(["-sS", "--fail-with-body", &target]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{target}: {said}");
        Ok(said)
    }

    /// What a client VM gets from its own metadata server.
    fn told_vm(vm: &Namespace, path: &str) -> Result<String> {
        let stream = vm.connect(SocketAddr::from(([169, 254, 169, 254], 80)))?;
        let page = e2e::http::Connection::over(stream).request(&format!(
            "GET /{path} HTTP/1.1\r\nHost: metadata.google.internal\r\nMetadata-Flavor: Google\r\n\r\n"
        ))?;
        ensure!(page.status == 200, "{}: {}", page.status, page.text());
        Ok(page.text())
    }

    /// The statuses of a call with this token at the service's own address and behind the balancer.
    fn called(&self, token: Option<&str>) -> Result<[String; 2]> {
        let field = token.map(|token| format!("Authorization: Bearer {}", token.trim()));
        let mut curl = self.gcloud.program("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", &self.url]);
        let output = curl.args(field.iter().flat_map(|field| ["-H", field])).output()?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
        let field = field.map_or_else(String::new, |field| format!("{field}\r\n"));
        let page = self
            .balancer
            .open()?
            .request(&format!("GET /orders/id HTTP/1.1\r\nHost: {BY_PATH}\r\n{field}\r\n"))?;
        Ok([String::from_utf8(output.stdout)?, page.status.to_string()])
    }

    fn expect(&self, what: &str, token: Option<&str>, status: &str) -> Result<()> {
        let called = self.called(token)?;
        ensure!(called == [status, status], "{what}: {called:?} instead of {status}");
        Ok(())
    }

    fn binding(&self, verb: &str, member: &str) -> Result<()> {
        self.gcloud.run(&format!(
            "run services {verb}-iam-policy-binding orders --region={REGION} --role=roles/run.invoker \
             --member=serviceAccount:{member}"
        ))?;
        Ok(())
    }
}

#[test]
fn a_service_is_called_with_the_identity_of_a_container_and_of_a_vm() -> Result<()> {
    let Some(stage) = Stage::set("identity tokens")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    probe::load(&stage.server)?;
    let balancer = Balancer::build(&stage.server)?;
    gcloud.run("iam service-accounts create shopper")?;
    let project = &balancer.api.project;
    let shop = format!("shopper@{project}.iam.gserviceaccount.com");
    let deploy =
        |rest: &str| gcloud.run(&format!("run deploy {rest} --image={PROBE} --region={REGION}"));
    deploy(&format!("caller --allow-unauthenticated --service-account={shop}"))?;
    deploy(&format!("orders --no-allow-unauthenticated --add-custom-audiences={CUSTOM}"))?;
    let url = |service: &str| -> Result<String> {
        let service = balancer.api.ready(service)?;
        Ok(service["status"]["url"].as_str().context("a service has a URL")?.to_owned())
    };
    let (caller, url) = (url("caller")?, url("orders")?);
    let guarded = Guarded { gcloud, balancer, caller, url };
    of_a_container(&guarded, &shop)?;
    of_a_vm(&guarded, &stage.server)?;
    stage.strike()
}

fn of_a_container(guarded: &Guarded, shop: &str) -> Result<()> {
    let email = guarded.told_container(EMAIL)?;
    ensure!(email == shop, "--service-account: the metadata server says {email}");
    let token = |audience: &str| guarded.told_container(&format!("{IDENTITY}{audience}"));
    let (for_url, for_custom) = (token(&guarded.url)?, token(CUSTOM)?);
    let for_another = token(&guarded.caller)?;

    guarded.expect("no token", None, "403")?;
    guarded.expect("a token without the binding", Some(&for_url), "403")?;
    guarded.binding("add", shop)?;
    guarded.expect("a token for the URL", Some(&for_url), "200")?;
    guarded.expect("a token for a custom audience", Some(&for_custom), "200")?;
    guarded.expect("a token for another service", Some(&for_another), "401")?;
    guarded.expect("no token, with the binding", None, "403")?;
    // The signature is the last part; the first of its bytes tells another one.
    let (signed, signature) = for_url.rsplit_once('.').context("a token has three parts")?;
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{other}{}", &signature[1..]);
    guarded.expect("a token somebody else signed", Some(&forged), "401")?;
    guarded.binding("remove", shop)?;
    guarded.expect("the binding is gone", Some(&for_url), "403")
}

fn of_a_vm(guarded: &Guarded, server: &Server) -> Result<()> {
    guarded.gcloud.run(&format!(
        "compute instances create vm-caller --zone={ZONE} --network=lb-network --subnet=lb-subnet"
    ))?;
    let vm = howto::inside(server, &guarded.balancer.api, "vm-caller")?;
    let email = Guarded::told_vm(&vm, EMAIL)?;
    let token = Guarded::told_vm(&vm, &format!("{IDENTITY}{}", guarded.url))?;
    guarded.expect("a VM's token without the binding", Some(&token), "403")?;
    guarded.binding("add", &email)?;
    guarded.expect("a VM's token", Some(&token), "200")
}
