//! Foreign bytes: no body, path or query makes the server do anything but answer.

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use support::Server;

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused_unread() {
    let server = Server::start().await;
    let body = vec![b' '; api::compute::body::BODY_BYTES_MAX + 1];
    let response = server.send("POST", "projects/demo-proj/global/networks", body).await;
    assert_eq!(response.status.as_u16(), 413);
    let answer: Value = serde_json::from_slice(&response.body).expect("JSON");
    assert_eq!(answer["error"]["errors"][0]["reason"], "uploadTooLarge");
}

#[tokio::test]
async fn a_body_beyond_the_depth_is_refused() {
    let server = Server::start().await;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = api::compute::body::JSON_DEPTH_MAX + 1;
        let body = format!("{}1{}", open.repeat(depth), close.repeat(depth));
        let response = server.send("POST", "projects/demo-proj/global/networks", body).await;
        assert_eq!(response.status.as_u16(), 400);
    }
    let bottomless = "[".repeat(1_000_000);
    let response = server.send("POST", "projects/demo-proj/global/networks", bottomless).await;
    assert_eq!(response.status.as_u16(), 400);
}

#[tokio::test]
async fn bytes_that_are_no_text_are_refused() {
    let server = Server::start().await;
    for body in
        [&b"\xff\xfe{}"[..], b"{\"name\":\"\xc3\x28\"}", b"\0", b"nul", b"{\"a\":1}{}", b"1e999"]
    {
        let response =
            server.send("POST", "projects/demo-proj/global/networks", body.to_vec()).await;
        assert_eq!(response.status.as_u16(), 400, "{body:?}");
    }
}

#[tokio::test]
async fn an_answer_is_as_compact_as_asked() {
    let server = Server::start().await;
    let indented = server.send("GET", "projects/demo-proj", "").await;
    let compact = server.send("GET", "projects/demo-proj?prettyPrint=false", "").await;
    assert!(indented.body.contains(&b'\n') && !compact.body.contains(&b'\n'));
    assert_eq!(indented.headers["content-type"], "application/json; charset=UTF-8");
}

#[tokio::test]
async fn a_batch_answers_every_part_in_its_place() {
    let server = Server::start().await;
    let part = |id: u32, request: &str, body: &str| {
        format!(
            "--b\r\nContent-Type: application/http\r\nContent-ID: <x+{id}>\r\n\r\n{request} HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}\r\n",
            body.len()
        )
    };
    let network = json!({ "name": "n", "autoCreateSubnetworks": false }).to_string();
    let body = part(0, "POST /compute/v1/projects/demo-proj/global/networks", &network)
        + &part(1, "GET /compute/v1/projects/demo-proj/global/networks/n?fields=name", "")
        + &part(2, "GET /compute/v1/projects/demo-proj/global/networks/nope", "")
        + &part(3, "GET /elsewhere", "")
        + "--b--\r\n";
    let request = api::Request {
        service: "compute".into(),
        host_region: None,
        method: http::Method::POST,
        path: "/batch/compute/v1".into(),
        query: String::new(),
        headers: [(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("multipart/mixed; boundary=\"b\""),
        )]
        .into_iter()
        .collect(),
        body: body.into(),
        principal: api::Principal { email: "a@example.com".into(), is_service_account: false },
    };
    let response = server.api.handle(request).await;
    assert_eq!(response.status.as_u16(), 200);
    let text = String::from_utf8(response.body.to_vec()).expect("text");
    let lines = |start: &str| {
        text.lines().filter(|l| l.starts_with(start)).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        lines("Content-ID"),
        [
            "Content-ID: <response-x+0>",
            "Content-ID: <response-x+1>",
            "Content-ID: <response-x+2>",
            "Content-ID: <response-x+3>"
        ]
    );
    assert_eq!(
        lines("HTTP/1.1"),
        ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found", "HTTP/1.1 404 Not Found"]
    );
    assert!(text.contains("\"name\": \"n\""));
}

fn any_json() -> impl Strategy<Value = Value> {
    let keys = proptest::sample::select(vec![
        "name",
        "network",
        "subnetwork",
        "ipCidrRange",
        "purpose",
        "role",
        "target",
        "urlMap",
        "portRange",
        "IPAddress",
        "backends",
        "group",
        "hostRules",
        "hosts",
        "pathMatchers",
        "defaultService",
        "pathMatcher",
        "certificate",
        "privateKey",
        "selfManaged",
        "cloudRun",
        "service",
        "urlMask",
        "networkEndpointType",
        "allowed",
        "IPProtocol",
        "ports",
        "sourceRanges",
        "metadata",
        "items",
        "key",
        "value",
        "tags",
        "disks",
        "networkInterfaces",
        "networkIP",
        "machineType",
        "labels",
        "labelFingerprint",
        "fingerprint",
        "autoCreateSubnetworks",
        "routingConfig",
        "mtu",
        "profile",
        "type",
        "addressType",
        "address",
        "destRange",
        "httpKeepAliveTimeoutSec",
        "sslCertificates",
        "loadBalancingScheme",
        "protocol",
        "timeoutSec",
        "resource",
    ]);
    let words = proptest::sample::select(vec![
        "a",
        "n",
        "global/networks/n",
        "regions/us-west1/subnetworks/s",
        "regions/us-west1/urlMaps/m",
        "10.0.0.0/24",
        "10.0.0.5",
        "0.0.0.0/0",
        "INTERNAL_MANAGED",
        "INTERNAL",
        "SERVERLESS",
        "HTTP",
        "ACTIVE",
        "REGIONAL_MANAGED_PROXY",
        "CUSTOM",
        "80",
        "80-80",
        "tcp",
        "<service>.x",
        "projects//x",
        "",
        "é",
        "AAAAAAAAAAA=",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        ".{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(keys.clone().prop_map(String::from), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_target() -> impl Strategy<Value = (&'static str, &'static str)> {
    proptest::sample::select(vec![
        ("POST", "projects/demo-proj/global/networks"),
        ("PATCH", "projects/demo-proj/global/networks/n"),
        ("POST", "projects/demo-proj/regions/us-west1/subnetworks"),
        ("PATCH", "projects/demo-proj/regions/us-west1/subnetworks/s"),
        ("POST", "projects/demo-proj/regions/us-west1/subnetworks/s/expandIpCidrRange"),
        ("POST", "projects/demo-proj/regions/us-west1/addresses"),
        ("POST", "projects/demo-proj/regions/us-west1/networkEndpointGroups"),
        ("POST", "projects/demo-proj/regions/us-west1/backendServices"),
        ("POST", "projects/demo-proj/regions/us-west1/urlMaps"),
        ("POST", "projects/demo-proj/regions/us-west1/urlMaps/m/validate"),
        ("POST", "projects/demo-proj/regions/us-west1/targetHttpProxies"),
        ("POST", "projects/demo-proj/regions/us-west1/targetHttpsProxies"),
        ("POST", "projects/demo-proj/regions/us-west1/sslCertificates"),
        ("POST", "projects/demo-proj/regions/us-west1/sslPolicies"),
        ("POST", "projects/demo-proj/regions/us-west1/healthChecks"),
        ("POST", "projects/demo-proj/regions/us-west1/forwardingRules"),
        ("POST", "projects/demo-proj/global/firewalls"),
        ("POST", "projects/demo-proj/global/routes"),
        ("POST", "projects/demo-proj/zones/us-west1-a/instances"),
        ("POST", "projects/demo-proj/setCommonInstanceMetadata"),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_body_does_anything_but_get_an_answer(requests in proptest::collection::vec((any_target(), any_json()), 12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let server = Server::start().await;
            let network = json!({ "name": "n", "autoCreateSubnetworks": false });
            server.accept("POST", "projects/demo-proj/global/networks", network).await;
            let subnet = json!({ "name": "s", "network": "global/networks/n", "ipCidrRange": "10.0.0.0/24" });
            server.accept("POST", "projects/demo-proj/regions/us-west1/subnetworks", subnet).await;
            for ((method, target), mut body) in requests {
                if let Value::Object(object) = &mut body {
                    object.entry("name").or_insert_with(|| "a".into());
                }
                let before = server.api.world().state().revision;
                let (status, answer) = server.call(method, target, Some(&body)).await;
                prop_assert!([200, 400, 403, 404, 409, 412, 413, 501].contains(&status), "{} {}", status, answer);
                let after = server.api.world().state().revision;
                prop_assert!(status == 200 || before == after, "a refusal changed something");
            }
            Ok(())
        })?;
    }

    #[test]
    fn no_path_or_query_does_anything_but_get_an_answer(
        path in "[a-z0-9/%.:{}-]{0,60}",
        query in "[a-zA-Z0-9=&%+()\"!<>*.-]{0,40}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let server = Server::start().await;
            for target in [format!("{path}?{query}"), format!("projects/demo-proj/global/networks?{query}"), format!("/{path}")] {
                let response = server.send("GET", &target, "").await;
                prop_assert!(response.status.as_u16() < 500, "{}", target);
            }
            Ok(())
        })?;
    }
}
