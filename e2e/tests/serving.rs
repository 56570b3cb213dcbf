//! DONE means serving: the first answer after an operation is done is the declared one.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::api::{Api, regional};
use e2e::certificate::{Pair, self_signed};
use e2e::howto::{self, DOMAIN, HELLO, Ledger};
use e2e::http::Connection;
use e2e::namespace::Namespace;
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// How often the URL map is changed.
const CHANGES: usize = 200;

/// The pause between two requests of the load, which is light: the machine has other things to do.
const PAUSE: Duration = Duration::from_millis(2);

/// How often a forwarding rule comes and goes.
const RULES: usize = 20;

#[test]
fn the_first_answer_after_done_is_the_new_one_and_no_request_fails() -> Result<()> {
    let Some(stage) = Stage::set("changes while traffic flows")? else { return Ok(()) };
    let api = stage.server.api()?;
    let pair = self_signed(DOMAIN, &[])?;
    let mut ledger = Ledger::default();
    for step in howto::build(&api, &pair) {
        howto::take(&step, &stage.server, &api, &pair, &mut ledger)?;
    }
    let inside = howto::inside(&stage.server, &api, "vm-client")?;
    let address = howto::address(&api, "hello-http-fr")?;

    let stop = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| -> Result<()> {
        let load: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| keep_asking(&inside, address, &stop, &answered)))
            .collect();
        let changed = change_the_map(&api, &inside, address)
            .and_then(|()| change_the_certificate(&api, &inside))
            .and_then(|()| come_and_go(&api, &inside));
        stop.store(true, Ordering::Relaxed);
        for thread in load {
            thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        }
        changed
    })?;
    println!("{} requests answered meanwhile, none failed", answered.load(Ordering::Relaxed));
    assert!(answered.load(Ordering::Relaxed) > 0);
    stage.strike()
}

/// Light load on the default route, which no change touches: each answer is the hello page.
fn keep_asking(
    inside: &Namespace,
    address: Ipv4Addr,
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> Result<()> {
    let mut connection = Connection::over(inside.connect(SocketAddr::from((address, 80)))?);
    while !stop.load(Ordering::Relaxed) {
        let page = connection.get("other.example.com", "/")?;
        ensure!(
            page.status == 200 && page.text().contains(HELLO),
            "{}: {}",
            page.status,
            page.text()
        );
        answered.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    Ok(())
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
