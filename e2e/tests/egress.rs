//! What containers send beyond themselves: into a VPC network, as its firewall says and from an address of
//! its subnet, and to the world outside.

use crate::gcloud::stage_with_balancer;
use anyhow::{Context, Result, ensure};
use e2e::balancer::Balancer;
use e2e::gcloud::Gcloud;
use e2e::outside::{Outside, Teller};
use e2e::probe::{self, PROBE};
use e2e::{REGION, ZONE};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};

const PORT: u16 = 8000;

/// A service that is asked to ask others.
struct Sender<'a> {
    gcloud: &'a Gcloud,
    balancer: &'a Balancer,
    vm: Ipv4Addr,
}

impl Sender<'_> {
    /// Deploys a revision with these flags.
    fn deploy(&self, flags: &str) -> Result<()> {
        self.gcloud.run(&format!(
            "run deploy sender --image={PROBE} --region={REGION} --allow-unauthenticated {flags}"
        ))?;
        Ok(())
    }

    /// From where somebody was asked; the error if it could not be.
    fn asks(&self, whom: &str) -> Result<Result<Ipv4Addr, String>> {
        let page = self.balancer.get("example.com", &format!("/sender/get/{whom}:{PORT}/"))?;
        let text = page.text();
        match page.status {
            200 => Ok(Ok(text.parse().with_context(|| text)?)),
            502 => Ok(Err(text)),
            status => anyhow::bail!("{status}: {text}"),
        }
    }

    fn reaches(&self, what: &str, whom: impl ToString) -> Result<Ipv4Addr> {
        let asked = self.asks(&whom.to_string())?;
        asked.map_err(|said| anyhow::anyhow!("{what} does not reach {}: {said}", whom.to_string()))
    }

    fn does_not_reach(&self, what: &str, whom: impl ToString) -> Result<()> {
        let asked = self.asks(&whom.to_string())?;
        ensure!(asked.is_err(), "{what} reaches {} from {asked:?}", whom.to_string());
        Ok(())
    }

    fn reaches_vm_from_subnet(&self, what: &str, whom: impl ToString) -> Result<()> {
        let source = self.reaches(what, whom)?;
        let is_of_subnet = source.octets()[..3] == [10, 1, 2];
        ensure!(is_of_subnet && source != self.vm, "{what}: it comes from {source}");
        Ok(())
    }

    fn rule(&self, line: &str) -> Result<()> {
        self.gcloud.run(&format!("compute firewall-rules {line}")).map(drop)
    }
}

#[test]
fn containers_reach_the_network_and_the_world_as_their_revision_and_the_firewall_say() -> Result<()>
{
    let Some((stage, gcloud, balancer)) = stage_with_balancer("egress")? else { return Ok(()) };
    probe::load(&stage.server)?;
    let vm = balancer.api.get(&e2e::api::zonal("instances/vm-client"))?;
    let vm = vm["networkInterfaces"][0]["networkIP"].as_str().context("an address")?.parse()?;
    let sender = Sender { gcloud: &gcloud, balancer: &balancer, vm };
    sender.deploy("--network=lb-network --subnet=lb-subnet --network-tags=sends --vpc-egress=private-ranges-only")?;
    {
        let _server = Teller::at(&balancer.inside, SocketAddr::from((vm, PORT)))?;
        into_the_network(&sender)?;
        let outside = Outside::make()?;
        let _far = Teller::at(&outside.inside, SocketAddr::from((outside.far, PORT)))?;
        let _near = Teller::here(SocketAddr::from((outside.near, PORT)))?;
        to_the_world(&sender, &outside)?;
    }
    stage.strike()
}

fn into_the_network(sender: &Sender<'_>) -> Result<()> {
    let vm = sender.vm;
    sender.does_not_reach("what no rule allows", vm)?;
    let api = &sender.balancer.api;
    let allowed = json!([{ "IPProtocol": "tcp", "ports": [PORT.to_string()] }]);
    let network = api.link("global/networks/lb-network");
    let rule = json!({ "name": "fw-in", "network": network, "direction": "INGRESS",
        "allowed": allowed, "sourceRanges": ["10.1.2.0/24"] });
    api.insert("global/firewalls", &rule)?;
    sender.reaches_vm_from_subnet("with the private ranges", vm)?;
    let name = format!("vm-client.{ZONE}.c.{}.internal", sender.balancer.api.project);
    sender.reaches_vm_from_subnet("by an internal name", name)?;

    sender.rule(&format!(
        "create fw-out --network=lb-network --direction=EGRESS --action=DENY --rules=tcp:{PORT} \
         --destination-ranges={vm}/32 --target-tags=sends"
    ))?;
    sender.does_not_reach("what an egress rule denies by the tag", vm)?;
    sender.rule("delete fw-out --quiet")?;
    sender.reaches_vm_from_subnet("without that rule", vm)
}

fn to_the_world(sender: &Sender<'_>, outside: &Outside) -> Result<()> {
    let source = sender.reaches("with the private ranges", outside.far)?;
    ensure!(source == outside.near, "it comes from {source}, and not from this host");

    sender.deploy("--vpc-egress=all-traffic")?;
    sender.reaches_vm_from_subnet("with all traffic", sender.vm)?;
    sender.does_not_reach("all traffic, which has no way on", outside.far)?;

    sender.deploy("--clear-network")?;
    sender.does_not_reach("without a network", sender.vm)?;
    sender.reaches("without a network", outside.far)?;
    sender.does_not_reach("an address of this host", outside.near)
}
