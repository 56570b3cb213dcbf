//! DONE means serving: the first answer after an operation is done is the declared one.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::api::{Api, regional};
use e2e::balancer::Balancer;
use e2e::certificate::{Pair, self_signed};
use e2e::howto::{self, DOMAIN};
use e2e::http::Connection;
use e2e::namespace::Namespace;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};

/// How often the URL map is changed.
const CHANGES: usize = 200;

/// How often a forwarding rule comes and goes.
const RULES: usize = 20;

#[test]
fn the_first_answer_after_done_is_the_new_one_and_no_request_fails() -> Result<()> {
    let Some(stage) = Stage::set("changes while traffic flows")? else { return Ok(()) };
    let balancer = Balancer::build(&stage.server)?;
    let Balancer { api, inside, address, .. } = &balancer;
    balancer.asked_meanwhile(|| {
        change_the_map(api, inside, *address)?;
        change_the_certificate(api, inside)?;
        come_and_go(api, inside)
    })?;
    stage.strike()
}

fn change_the_map(api: &Api, inside: &Namespace, address: Ipv4Addr) -> Result<()> {
    let path = regional("urlMaps/hello-map");
    let mut kept = Connection::over(inside.connect(SocketAddr::from((address, 80)))?);
    for change in 0..CHANGES {
        let mut map = api.get(&path)?;
        let redirect =
            json!({ "pathRedirect": format!("/generation/{change}"), "stripQuery": false });
        map["pathMatchers"][0]["pathRules"] =
            json!([{ "paths": ["/where"], "urlRedirect": redirect }]);
        api.change("PUT", &path, Some(&map))?;
        let expected = format!("/generation/{change}");
        let on_kept = kept.get("example.com", "/where")?;
        let stream = inside.connect(SocketAddr::from((address, 80)))?;
        let on_fresh = Connection::over(stream).get("example.com", "/where")?;
        for page in [on_kept, on_fresh] {
            let location = page.header("location").unwrap_or_default();
            ensure!(
                location.ends_with(&expected),
                "change {change}: still {} {location}",
                page.status
            );
        }
    }
    Ok(())
}

fn change_the_certificate(api: &Api, inside: &Namespace) -> Result<()> {
    let path = regional("targetHttpsProxies/hello-https-proxy");
    let address = howto::address(api, "hello-https-fr")?;
    for change in 0..3 {
        let pair: Pair = self_signed(DOMAIN, &[])?;
        let name = format!("swap-{change}");
        let body = json!({ "name": name, "certificate": pair.certificate, "privateKey": pair.key });
        api.insert(&regional("sslCertificates"), &body)?;
        let link = api.link(&regional(&format!("sslCertificates/{name}")));
        let certificates = json!({ "sslCertificates": [link] });
        api.change("POST", &format!("{path}/setSslCertificates"), Some(&certificates))?;
        let stream = inside.connect(SocketAddr::from((address, 443)))?;
        // The client accepts this very certificate and no other.
        let stream = e2e::http::tls(stream, DOMAIN, &pair.certificate)?;
        let page = Connection::over(stream).get(DOMAIN, "/")?;
        ensure!(page.status == 200, "certificate {change}: {}", page.status);
    }
    Ok(())
}

fn come_and_go(api: &Api, inside: &Namespace) -> Result<()> {
    let collection = regional("forwardingRules");
    for round in 0..RULES {
        let body = json!({
            "name": "passing", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "8080",
            "network": api.link("global/networks/lb-network"),
            "subnetwork": api.link(&regional("subnetworks/lb-subnet")),
            "target": api.link(&regional("targetHttpProxies/hello-http-proxy")),
        });
        let rule = api.insert(&collection, &body)?;
        let address: Ipv4Addr = rule["IPAddress"].as_str().context("an address")?.parse()?;
        let place = SocketAddr::from((address, 8080));
        let page = Connection::over(inside.connect(place)?).get("other.example.com", "/")?;
        ensure!(page.status == 200, "round {round}: {}", page.status);
        api.change("DELETE", &format!("{collection}/passing"), None)?;
        ensure!(inside.connect(place).is_err(), "round {round}: deleted, and still listening");
    }
    Ok(())
}
