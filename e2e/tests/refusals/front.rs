//! Refused forwarding rules, proxies, maps and certificates; deletions of what is used; hostile bodies.

use super::{IN_USE, INVALID, NOT_FOUND, Row, post, row};
use anyhow::Result;
use e2e::api::{Api, regional};
use e2e::certificate::{Pair, expired, self_signed};
use e2e::howto::DOMAIN;
use serde_json::{Value, json};

pub(super) fn front(api: &Api) -> Vec<Row> {
    let rules = || post(regional("forwardingRules"));
    let maps = || post(regional("urlMaps"));
    let https = || post(regional("targetHttpsProxies"));
    let backend = api.link(&regional("backendServices/hello-bs"));
    let map = api.link(&regional("urlMaps/hello-map"));
    let certificate = api.link(&regional("sslCertificates/hello-cert"));
    let rule = |extra: Value| {
        let mut body = json!({ "name": "bad-fr", "loadBalancingScheme": "INTERNAL_MANAGED", "portRange": "80",
            "network": api.link("global/networks/lb-network"),
            "subnetwork": api.link(&regional("subnetworks/lb-subnet")),
            "target": api.link(&regional("targetHttpProxies/hello-http-proxy")) });
        for (field, value) in extra.as_object().into_iter().flatten() {
            body[field] = value.clone();
        }
        body
    };
    let keep_alive = |seconds: u32| {
        json!({ "name": "bad-proxy", "urlMap": map, "sslCertificates": [certificate],
            "httpKeepAliveTimeoutSec": seconds })
    };
    let elsewhere = backend.replace("us-west1", "europe-west1");
    vec![
        row(
            "no proxy-only subnet",
            rules(),
            rule(json!({ "network": api.link("global/networks/bare"),
                "subnetwork": api.link(&regional("subnetworks/bare-subnet")) })),
            INVALID,
            "An active proxy-only subnetwork is required in the same region and VPC as the forwarding rule.",
        ),
        row(
            "an address that is not in the subnet",
            rules(),
            rule(json!({ "IPAddress": "10.50.0.1" })),
            INVALID,
            "IPAddress",
        ),
        row(
            "an address that is reserved",
            rules(),
            rule(json!({ "IPAddress": "10.1.2.1" })),
            INVALID,
            "IPAddress",
        ),
        row("two ports", rules(), rule(json!({ "portRange": "80-90" })), INVALID, "portRange"),
        row(
            "a port past the last",
            rules(),
            rule(json!({ "portRange": "70000" })),
            INVALID,
            "portRange",
        ),
        row(
            "a missing target",
            rules(),
            rule(json!({ "target": api.link(&regional("targetHttpProxies/nowhere")) })),
            NOT_FOUND,
            "targetHttpProxies/nowhere' was not found",
        ),
        row(
            "a rule in the proxy-only subnet",
            rules(),
            rule(json!({ "subnetwork": api.link(&regional("subnetworks/proxy-only-subnet")) })),
            INVALID,
            "",
        ),
        row("a keepalive of 4", https(), keep_alive(4), INVALID, "httpKeepAliveTimeoutSec"),
        row("a keepalive of 601", https(), keep_alive(601), INVALID, "httpKeepAliveTimeoutSec"),
        row(
            "no certificate",
            https(),
            json!({ "name": "bad-proxy", "urlMap": map }),
            INVALID,
            "At least 1 SSL certificate must be specified",
        ),
        row(
            "a missing certificate",
            https(),
            json!({ "name": "bad-proxy", "urlMap": map, "sslCertificates": [api.link(&regional("sslCertificates/nowhere"))] }),
            NOT_FOUND,
            "sslCertificates/nowhere' was not found",
        ),
        row(
            "a map of another region's service",
            maps(),
            json!({ "name": "bad-map", "defaultService": elsewhere }),
            INVALID,
            "The backend service must be in the region of the URL map",
        ),
        row("a map without a default", maps(), json!({ "name": "bad-map" }), (400, "required"), ""),
        row(
            "a map with a missing matcher",
            maps(),
            json!({ "name": "bad-map", "defaultService": backend,
                "hostRules": [{ "hosts": ["a.example.com"], "pathMatcher": "nowhere" }] }),
            INVALID,
            "hostRules",
        ),
        row(
            "a path without a slash",
            maps(),
            json!({ "name": "bad-map", "defaultService": backend,
                "hostRules": [{ "hosts": ["a.example.com"], "pathMatcher": "m" }],
                "pathMatchers": [{ "name": "m", "defaultService": backend,
                    "pathRules": [{ "paths": ["login"], "service": backend }] }] }),
            INVALID,
            "pathRules[0].paths",
        ),
        row(
            "a stale fingerprint of a map",
            ("PUT", regional("urlMaps/hello-map")),
            json!({ "name": "hello-map", "defaultService": backend, "fingerprint": "AAAAAAAAAAA=" }),
            (412, "conditionNotMet"),
            "ingerprint",
        ),
    ]
}

pub(super) fn certificates(pair: &Pair) -> Result<Vec<Row>> {
    let other = self_signed(DOMAIN, &[])?;
    let weak = self_signed(DOMAIN, &["-newkey", "rsa:1024", "-days", "30"])?;
    let old = expired(DOMAIN)?;
    let body = |certificate: &str, key: &str| json!({ "name": "bad-cert", "certificate": certificate, "privateKey": key });
    let at = || post(regional("sslCertificates"));
    Ok(vec![
        row(
            "a certificate that is none",
            at(),
            body("not a certificate", &pair.key),
            INVALID,
            "certificate",
        ),
        row("a key that is none", at(), body(&pair.certificate, "not a key"), INVALID, "key"),
        row(
            "a key of another certificate",
            at(),
            body(&pair.certificate, &other.key),
            INVALID,
            "key",
        ),
        row("a key of 1024 bits", at(), body(&weak.certificate, &weak.key), INVALID, ""),
        row(
            "a certificate whose time is over",
            at(),
            body(&old.certificate, &old.key),
            INVALID,
            "expired",
        ),
    ])
}

pub(super) fn deletions() -> Vec<Row> {
    let delete = |path: &str| ("DELETE", regional(path));
    let used = "is already being used by";
    vec![
        row(
            "a group behind a service",
            delete("networkEndpointGroups/hello-neg"),
            Value::Null,
            IN_USE,
            "regions/us-west1/networkEndpointGroups/hello-neg' is already being used by",
        ),
        row(
            "a service behind a map",
            delete("backendServices/hello-bs"),
            Value::Null,
            IN_USE,
            used,
        ),
        row("a map behind a proxy", delete("urlMaps/hello-map"), Value::Null, IN_USE, used),
        row(
            "a proxy behind a rule",
            delete("targetHttpProxies/hello-http-proxy"),
            Value::Null,
            IN_USE,
            used,
        ),
        row(
            "a certificate of a proxy",
            delete("sslCertificates/hello-cert"),
            Value::Null,
            IN_USE,
            used,
        ),
        row("a subnet with addresses", delete("subnetworks/lb-subnet"), Value::Null, IN_USE, used),
        row(
            "a network with subnets",
            ("DELETE", "global/networks/lb-network".to_owned()),
            Value::Null,
            IN_USE,
            used,
        ),
        row(
            "what is not there",
            delete("urlMaps/nowhere"),
            Value::Null,
            NOT_FOUND,
            "urlMaps/nowhere' was not found",
        ),
    ]
}

pub(super) fn bodies(api: &Api) -> Result<Vec<Row>> {
    let raw = |title, path: &str, body: String, status, reason, says| Row {
        title,
        method: "POST",
        path: path.to_owned(),
        body,
        status,
        reason,
        says,
    };
    let networks = "global/networks";
    let unknown = json!({ "name": "n", "autoCreateSubnetworks": false, "colour": "blue" });
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let run = api.run_url("");
    let nameless = json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Service" }).to_string();
    let capital = api.service("Hello", e2e::IMAGE, &[]).to_string();
    let mut unknown_run = api.service("odd", e2e::IMAGE, &[]);
    unknown_run["spec"]["colour"] = "blue".into();
    Ok(vec![
        raw(
            "an unknown field",
            networks,
            unknown.to_string(),
            400,
            "badRequest",
            "Unknown name \"colour\"",
        ),
        raw(
            "a number where text belongs",
            networks,
            json!({ "name": 7 }).to_string(),
            400,
            "badRequest",
            "name",
        ),
        raw("no JSON", networks, "name=n".to_owned(), 400, "badRequest", ""),
        raw("half a body", networks, "{\"name\":\"n\"".to_owned(), 400, "badRequest", ""),
        raw("a list for a message", networks, "[]".to_owned(), 400, "badRequest", ""),
        raw("nesting without end", networks, deep, 400, "badRequest", ""),
        raw("a service without a name", &run, nameless, 400, "", ""),
        raw("a service in capitals", &run, capital, 400, "", ""),
        raw("an unknown field of a service", &run, unknown_run.to_string(), 400, "", "colour"),
        raw("an unknown collection", "global/cats", "{}".to_owned(), 404, "", ""),
    ])
}
