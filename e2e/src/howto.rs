//! The how-to as steps over REST, each of which can be taken again after an answer was lost.
//!
//! A [`Ledger`] remembers what the server acknowledged, so that after a kill one can ask for it: what was
//! acknowledged is there with the same identity, what was deleted is gone, and only a change whose
//! answer never came may be either.

use crate::api::{Answer, Api, regional, zonal};
use crate::certificate::Pair;
use crate::http::{Connection, Page, tls};
use crate::namespace::Namespace;
use crate::server::Server;
use crate::{IMAGE, REGION, ZONE, wait};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The domain of the how-to's certificate.
pub const DOMAIN: &str = "test.example.com";

/// What the quickstart image's page says.
pub const HELLO: &str = "running";

/// How long traffic may take to flow after a restart: a container and a client VM are started for it.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(30);

/// The fields that make a resource the one it was.
const IDENTITY: [&str; 6] =
    ["id", "creationTimestamp", "IPAddress", "ipCidrRange", "selfLink", "gatewayAddress"];

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Deploy a Cloud Run service.
    Deploy(&'static str),
    /// Insert into a collection of Compute.
    Insert(String, Value),
    /// Put an endpoint group behind a backend service.
    AddBackend(&'static str, &'static str),
    /// Take the endpoint groups of a backend service away.
    RemoveBackends(&'static str),
    /// Route `example.com` by URL mask.
    AddPathMatcher,
    /// Set the HTTPS proxy's client keepalive.
    KeepAlive(u32),
    /// Ask for a page from inside the client VM.
    Ask(Request),
    /// Delete from Compute.
    Delete(String),
    /// Delete a Cloud Run service.
    DeleteService(&'static str),
}

/// A request from inside the client VM, and whether it goes over TLS.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The forwarding rule that is asked.
    pub rule: &'static str,
    /// The `Host`; none for the address itself.
    pub host: Option<&'static str>,
    /// The path.
    pub target: &'static str,
}

fn insert(collection: String, body: Value) -> Step {
    Step::Insert(collection, body)
}

/// The steps that build the how-to's load balancer, ask it, and extend it by a URL mask.
pub fn build(api: &Api, certificate: &Pair) -> Vec<Step> {
    let link = |path: String| api.link(&path);
    let network = link("global/networks/lb-network".to_owned());
    let subnet = link(regional("subnetworks/lb-subnet"));
    let url_map = link(regional("urlMaps/hello-map"));
    let backend = |name: &str| {
        let body = json!({ "name": name, "protocol": "HTTP", "timeoutSec": 30,
            "loadBalancingScheme": "INTERNAL_MANAGED" });
        insert(regional("backendServices"), body)
    };
    let endpoint_group = |name: &str, cloud_run: Value| {
        let body =
            json!({ "name": name, "networkEndpointType": "SERVERLESS", "cloudRun": cloud_run });
        insert(regional("networkEndpointGroups"), body)
    };
    let rule = |name: &str, target: String, port: &str| {
        let body = json!({ "name": name, "loadBalancingScheme": "INTERNAL_MANAGED", "network": network,
            "subnetwork": subnet, "portRange": port, "target": link(target) });
        insert(regional("forwardingRules"), body)
    };
    let mut steps = vec![Step::Deploy("hello")];
    steps.extend(network_steps(&network));
    steps.extend([
        endpoint_group("hello-neg", json!({ "service": "hello" })),
        backend("hello-bs"),
        Step::AddBackend("hello-bs", "hello-neg"),
        insert(
            regional("urlMaps"),
            json!({ "name": "hello-map", "defaultService": link(regional("backendServices/hello-bs")) }),
        ),
        insert(
            regional("sslCertificates"),
            json!({ "name": "hello-cert", "certificate": certificate.certificate,
                "privateKey": certificate.key }),
        ),
        insert(regional("targetHttpProxies"), json!({ "name": "hello-http-proxy", "urlMap": url_map })),
        insert(
            regional("targetHttpsProxies"),
            json!({ "name": "hello-https-proxy", "urlMap": url_map,
                "sslCertificates": [link(regional("sslCertificates/hello-cert"))] }),
        ),
        rule("hello-http-fr", regional("targetHttpProxies/hello-http-proxy"), "80"),
        rule("hello-https-fr", regional("targetHttpsProxies/hello-https-proxy"), "443"),
        insert(zonal("instances"), client_vm(&network, &subnet)),
        insert(
            "global/firewalls".to_owned(),
            json!({ "name": "fw-allow-ssh", "network": network, "direction": "INGRESS",
                "allowed": [{ "IPProtocol": "tcp", "ports": ["22"] }], "targetTags": ["allow-ssh"] }),
        ),
        Step::Ask(Request { rule: "hello-http-fr", host: None, target: "/" }),
        Step::Ask(Request { rule: "hello-https-fr", host: Some(DOMAIN), target: "/" }),
        Step::Deploy("login"),
        endpoint_group("helloworld-serverless-neg", json!({ "urlMask": "example.com/<service>" })),
        backend("mask-bs"),
        Step::AddBackend("mask-bs", "helloworld-serverless-neg"),
        Step::AddPathMatcher,
        Step::Ask(Request { rule: "hello-http-fr", host: Some("example.com"), target: "/login/web" }),
        Step::KeepAlive(300),
    ]);
    steps
}

fn network_steps(network: &str) -> [Step; 3] {
    let subnet = |body: Value| insert(regional("subnetworks"), body);
    [
        insert(
            "global/networks".to_owned(),
            json!({ "name": "lb-network", "autoCreateSubnetworks": false,
                "routingConfig": { "routingMode": "REGIONAL" } }),
        ),
        subnet(json!({ "name": "lb-subnet", "network": network, "ipCidrRange": "10.1.2.0/24",
            "privateIpGoogleAccess": false })),
        subnet(
            json!({ "name": "proxy-only-subnet", "network": network, "ipCidrRange": "10.129.0.0/23",
            "purpose": "REGIONAL_MANAGED_PROXY", "role": "ACTIVE" }),
        ),
    ]
}

/// The body gcloud sends for the how-to's client VM, and the wish that its host keys can be read.
pub fn client_vm(network: &str, subnet: &str) -> Value {
    json!({
        "name": "vm-client",
        "machineType": format!("zones/{ZONE}/machineTypes/n1-standard-1"),
        "tags": { "items": ["allow-ssh"] },
        "metadata": { "items": [{ "key": "enable-guest-attributes", "value": "TRUE" }] },
        "disks": [{ "autoDelete": true, "boot": true, "mode": "READ_WRITE", "type": "PERSISTENT",
            "initializeParams": { "sourceImage":
                "https://www.googleapis.com/compute/v1/projects/debian-cloud/zones/-/imageFamilyViews/debian-12" } }],
        "networkInterfaces": [{ "network": network, "subnetwork": subnet,
            "accessConfigs": [{ "name": "external-nat", "type": "ONE_TO_ONE_NAT" }] }],
        "scheduling": { "automaticRestart": true },
    })
}

/// The steps that take everything away again, in the how-to's order.
pub fn clean_up() -> Vec<Step> {
    let delete = |path: String| Step::Delete(path);
    let mut steps = vec![Step::RemoveBackends("hello-bs")];
    steps.extend(
        [
            "networkEndpointGroups/hello-neg",
            "forwardingRules/hello-http-fr",
            "forwardingRules/hello-https-fr",
            "targetHttpProxies/hello-http-proxy",
            "targetHttpsProxies/hello-https-proxy",
            "urlMaps/hello-map",
            "backendServices/hello-bs",
            "backendServices/mask-bs",
            "networkEndpointGroups/helloworld-serverless-neg",
            "sslCertificates/hello-cert",
        ]
        .map(|path| delete(regional(path))),
    );
    steps.extend([
        delete(zonal("instances/vm-client")),
        delete("global/firewalls/fw-allow-ssh".to_owned()),
        delete(regional("subnetworks/proxy-only-subnet")),
        delete(regional("subnetworks/lb-subnet")),
        delete("global/networks/lb-network".to_owned()),
        Step::DeleteService("hello"),
        Step::DeleteService("login"),
    ]);
    steps
}

/// What the server has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Resources that must be there, with what is known of their identity.
    present: BTreeMap<String, Value>,
    /// Changes whose answer never came.
    uncertain: BTreeSet<String>,
}

impl Ledger {
    /// Asks the server for everything it acknowledged.
    pub fn verify(&self, api: &Api) -> Result<()> {
        for (path, known) in &self.present {
            let answer = read(api, path)?;
            if answer.status == 404 && self.uncertain.contains(path) {
                continue;
            }
            let now = answer.ok().with_context(|| format!("acknowledged and lost: {path}"))?;
            let now = identity(&now);
            for (field, value) in known.as_object().into_iter().flatten() {
                ensure!(now[field] == *value, "{path}: {field} was {value} and is {}", now[field]);
            }
        }
        Ok(())
    }

    /// Whether a resource was acknowledged.
    pub fn has(&self, path: &str) -> bool {
        self.present.contains_key(path)
    }

    fn begin(&mut self, path: &str) {
        self.uncertain.insert(path.to_owned());
    }

    fn acknowledge(&mut self, path: &str, known: Value) {
        self.uncertain.remove(path);
        self.present.insert(path.to_owned(), known);
    }

    fn acknowledge_gone(&mut self, path: &str) {
        self.uncertain.remove(path);
        self.present.remove(path);
    }
}

fn is_service(path: &str) -> bool {
    path.starts_with("services/")
}

fn read(api: &Api, path: &str) -> Result<Answer> {
    match path.strip_prefix("services/") {
        Some(service) => api.call("GET", &api.run_url(service), None),
        None => api.compute("GET", path, None),
    }
}

fn identity(resource: &Value) -> Value {
    let mut known = serde_json::Map::new();
    for field in IDENTITY {
        if !resource[field].is_null() {
            known.insert(field.to_owned(), resource[field].clone());
        }
    }
    for (name, pointer) in [
        ("uid", "/metadata/uid"),
        ("networkIP", "/networkInterfaces/0/networkIP"),
        ("created", "/metadata/creationTimestamp"),
    ] {
        if let Some(value) = resource.pointer(pointer) {
            known.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(known)
}

/// Takes one step; an error leaves the ledger saying what is still uncertain.
pub fn take(
    step: &Step,
    server: &Server,
    api: &Api,
    pair: &Pair,
    ledger: &mut Ledger,
) -> Result<()> {
    let outcome = match step {
        Step::Deploy(service) => deploy(api, service, ledger),
        Step::Insert(collection, body) => create(api, collection, body, ledger),
        Step::AddBackend(service, group) => {
            let group = api.link(&regional(&format!("networkEndpointGroups/{group}")));
            let wanted = json!([{ "group": group }]);
            put_backends(api, service, wanted)
        }
        Step::RemoveBackends(service) => put_backends(api, service, json!([])),
        Step::AddPathMatcher => add_path_matcher(api),
        Step::KeepAlive(seconds) => keep_alive(api, *seconds),
        Step::Ask(page) => ask(server, api, pair, *page).map(drop),
        Step::Delete(path) => delete(api, path, ledger),
        Step::DeleteService(service) => {
            let path = format!("services/{service}");
            ledger.begin(&path);
            match api.call("GET", &api.run_url(service), None)?.status {
                404 => Ok(()),
                _ => api.delete_service(service),
            }
            .inspect(|()| ledger.acknowledge_gone(&path))
        }
    };
    outcome.with_context(|| format!("step {step:?}"))
}

fn deploy(api: &Api, service: &str, ledger: &mut Ledger) -> Result<()> {
    let path = format!("services/{service}");
    if !ledger.has(&path) {
        ledger.begin(&path);
    }
    let body = api.service(service, IMAGE, &[("WHO", service)]).to_string();
    let answer = api.call("POST", &api.run_url(""), Some(&body))?;
    if answer.status != 409 {
        let made = answer.ok()?;
        ledger.acknowledge(&path, identity(&made));
    }
    api.allow_unauthenticated(service)?;
    let ready = api.ready(service)?;
    ledger.acknowledge(&path, identity(&ready));
    Ok(())
}

fn create(api: &Api, collection: &str, body: &Value, ledger: &mut Ledger) -> Result<()> {
    let name = body["name"].as_str().context("a resource has a name")?;
    let path = format!("{collection}/{name}");
    if !ledger.has(&path) {
        ledger.begin(&path);
    }
    let answer = api.compute("POST", collection, Some(body))?;
    if answer.status != 409 {
        let operation = answer.ok()?;
        ledger.acknowledge(&path, json!({ "id": operation["targetId"] }));
        api.done(operation)?;
    }
    // After a lost answer the operation is not known; the resource says itself when it is there.
    let made = api.get(&path)?;
    ledger.acknowledge(&path, identity(&made));
    Ok(())
}

fn put_backends(api: &Api, service: &str, wanted: Value) -> Result<()> {
    let path = regional(&format!("backendServices/{service}"));
    let mut body = match api.compute("GET", &path, None)? {
        answer if answer.status == 404 && wanted == json!([]) => return Ok(()),
        answer => answer.ok()?,
    };
    let groups = |value: &Value| -> Vec<String> {
        let backends = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let links = backends.iter().filter_map(|backend| backend["group"].as_str());
        links.map(|link| link[link.find("/projects/").unwrap_or(0)..].to_owned()).collect()
    };
    if groups(&body["backends"]) != groups(&wanted) {
        body["backends"] = wanted;
        api.change("PUT", &path, Some(&body))?;
    }
    Ok(())
}

fn add_path_matcher(api: &Api) -> Result<()> {
    let path = regional("urlMaps/hello-map");
    let mut map = api.get(&path)?;
    if map["pathMatchers"].is_null() {
        let service = api.link(&regional("backendServices/mask-bs"));
        map["hostRules"] = json!([{ "hosts": ["example.com"], "pathMatcher": "by-mask" }]);
        map["pathMatchers"] = json!([{ "name": "by-mask", "defaultService": service }]);
        api.change("PUT", &path, Some(&map))?;
    }
    Ok(())
}

fn keep_alive(api: &Api, seconds: u32) -> Result<()> {
    let path = regional("targetHttpsProxies/hello-https-proxy");
    let mut proxy = api.get(&path)?;
    if proxy["httpKeepAliveTimeoutSec"] != seconds {
        proxy["httpKeepAliveTimeoutSec"] = seconds.into();
        api.change("PATCH", &path, Some(&proxy))?;
    }
    Ok(())
}

fn delete(api: &Api, path: &str, ledger: &mut Ledger) -> Result<()> {
    debug_assert!(!is_service(path));
    ledger.begin(path);
    let answer = api.compute("DELETE", path, None)?;
    if answer.status != 404 {
        let operation = answer.ok()?;
        ledger.acknowledge_gone(path);
        api.done(operation)?;
    }
    ledger.acknowledge_gone(path);
    Ok(())
}

/// The address of a forwarding rule.
pub fn address(api: &Api, rule: &str) -> Result<Ipv4Addr> {
    let rule = api.get(&regional(&format!("forwardingRules/{rule}")))?;
    Ok(rule["IPAddress"].as_str().context("a forwarding rule has an address")?.parse()?)
}

/// The network namespace of a client VM.
pub fn inside(server: &Server, api: &Api, instance: &str) -> Result<Namespace> {
    let vm = api.get(&zonal(&format!("instances/{instance}")))?;
    let address =
        vm["networkInterfaces"][0]["networkIP"].as_str().context("a VM has an address")?;
    let address = address.parse()?;
    wait::until_ok("the client VM is up", TRAFFIC_LIMIT, || {
        Namespace::with_address(server.data(), server.pid(), address)
    })
}

/// Asks for a page from inside the client VM until the hello page answers.
pub fn ask(server: &Server, api: &Api, pair: &Pair, page: Request) -> Result<Page> {
    let address = address(api, page.rule)?;
    let inside = inside(server, api, "vm-client")?;
    let host = page.host.map_or_else(|| address.to_string(), str::to_owned);
    wait::until_ok("the hello page answers", TRAFFIC_LIMIT, || {
        let answer = if page.rule.contains("https") {
            let stream = inside.connect(SocketAddr::from((address, 443)))?;
            Connection::over(tls(stream, &host, &pair.certificate)?).get(&host, page.target)?
        } else {
            let stream = inside.connect(SocketAddr::from((address, 80)))?;
            Connection::over(stream).get(&host, page.target)?
        };
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        ensure!(answer.text().contains(HELLO), "not the hello page: {}", answer.text());
        Ok(answer)
    })
}

/// The location part of Cloud Run's resource paths.
pub fn location(api: &Api) -> String {
    format!("projects/{}/locations/{REGION}", api.project)
}
