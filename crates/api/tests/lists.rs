//! Lists: every item once, whatever the page, the order and the filter.

mod support;

use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::Server;

const FIREWALLS: &str = "projects/demo-proj/global/firewalls";

async fn with_rules(names: &BTreeSet<String>) -> Server {
    let server = Server::start().await;
    let network = json!({ "name": "n", "autoCreateSubnetworks": false });
    server.accept("POST", "projects/demo-proj/global/networks", network).await;
    for name in names {
        let rule = json!({ "name": name, "network": "global/networks/n", "allowed": [{ "IPProtocol": "tcp" }] });
        server.accept("POST", FIREWALLS, rule).await;
    }
    server
}

/// The names on all pages, page by page.
async fn walk(server: &Server, query: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut token = String::new();
    loop {
        let (status, page) = server.call("GET", &format!("{FIREWALLS}?{query}{token}"), None).await;
        assert_eq!(status, 200, "{page:#}");
        for item in page["items"].as_array().into_iter().flatten() {
            names.push(item["name"].as_str().expect("a name").to_string());
        }
        match page["nextPageToken"].as_str() {
            Some(next) => token = format!("&pageToken={next}"),
            None => return names,
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn walking_the_pages_shows_every_item_once(
        names in proptest::collection::btree_set("[a-c][a-c0-9]{0,3}", 0..9),
        size in 1_usize..5,
    ) {
        block_on(async {
            let server = with_rules(&names).await;
            let sorted: Vec<String> = names.iter().cloned().collect();
            prop_assert_eq!(&walk(&server, &format!("maxResults={size}")).await, &sorted);
            prop_assert_eq!(&walk(&server, "maxResults=0").await, &sorted);

            let newest_first = walk(&server, &format!("maxResults={size}&orderBy=creationTimestamp%20desc")).await;
            let expected: Vec<String> = sorted.iter().rev().cloned().collect();
            prop_assert_eq!(newest_first, expected);

            let filtered = walk(&server, &format!("maxResults={size}&filter=name:a*")).await;
            let expected: Vec<String> = sorted.iter().filter(|n| n.starts_with('a')).cloned().collect();
            prop_assert_eq!(filtered, expected);
            let filtered = walk(&server, &format!("maxResults={size}&filter=name%20ne%20%22a.*%22")).await;
            let expected: Vec<String> = sorted.iter().filter(|n| !n.starts_with('a')).cloned().collect();
            prop_assert_eq!(filtered, expected);
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn an_empty_list_has_no_items_and_says_what_it_is() {
    let server = Server::start().await;
    let (_, list) = server.call("GET", FIREWALLS, None).await;
    assert_eq!(
        list,
        json!({
            "kind": "compute#firewallList",
            "id": FIREWALLS,
            "selfLink": format!("https://www.googleapis.com/compute/v1/{FIREWALLS}"),
        })
    );
}

#[tokio::test]
async fn an_aggregated_list_warns_of_every_empty_scope() {
    let server = Server::start().await;
    let (_, some) = server.call("GET", "projects/demo-proj/aggregated/forwardingRules", None).await;
    assert_eq!(
        some["items"]["regions/us-west1"],
        json!({"warning": {
            "code": "NO_RESULTS_ON_PAGE",
            "message": "There are no results for scope 'regions/us-west1' on this page.",
            "data": [{ "key": "scope", "value": "regions/us-west1" }],
        }})
    );
    assert_eq!(some["items"].get("zones/us-west1-a"), None);
    let query = "includeAllScopes=True&maxResults=500&returnPartialSuccess=True";
    let (_, all) = server
        .call("GET", &format!("projects/demo-proj/aggregated/forwardingRules?{query}"), None)
        .await;
    assert!(all["items"].get("zones/us-west1-a").is_some(), "{all:#}");
    assert_eq!(all["kind"], "compute#forwardingRuleAggregatedList");
}

#[tokio::test]
async fn what_nobody_declares_is_listed_too() {
    let server = Server::start().await;
    for (target, name) in [
        ("projects/demo-proj/regions", "us-west1"),
        ("projects/demo-proj/zones", "us-west1-a"),
        ("projects/demo-proj/zones/us-west1-a/machineTypes", "n1-standard-1"),
        ("projects/debian-cloud/global/images", "debian-12-bookworm-v20261110"),
    ] {
        let (status, list) = server.call("GET", &format!("{target}?fields=items/name"), None).await;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        assert_eq!(status, 200, "{target}");
        assert!(items.contains(&json!({ "name": name })), "{target}: {list:#}");
        let (status, one) = server.call("GET", &format!("{target}/{name}"), None).await;
        assert_eq!((status, &one["name"]), (200, &json!(name)), "{target}");
    }
    let (_, image) =
        server.call("GET", "projects/debian-cloud/global/images/family/debian-12", None).await;
    assert_eq!(image["family"], "debian-12");
    let (_, view) =
        server.call("GET", "projects/debian-cloud/zones/-/imageFamilyViews/debian-12", None).await;
    assert_eq!(view["image"]["family"], "debian-12");
}

#[tokio::test]
async fn numbers_stand_for_names() {
    let server = with_rules(&BTreeSet::from(["a".to_string()])).await;
    let (_, by_name) = server.call("GET", &format!("{FIREWALLS}/a"), None).await;
    let id = by_name["id"].as_str().expect("an id");
    let (_, by_id) = server.call("GET", &format!("{FIREWALLS}/{id}"), None).await;
    assert_eq!(by_id, by_name);
    let (_, project) = server.call("GET", "projects/demo-proj", None).await;
    let number = project["id"].as_str().expect("a number");
    let target = format!("projects/{number}/global/firewalls/a");
    let (_, by_number) = server.call("GET", &target, None).await;
    assert_eq!(by_number, by_name);
}

#[tokio::test]
async fn quotas_count_what_there_is() {
    let server = with_rules(&BTreeSet::from(["a".to_string(), "b".to_string()])).await;
    let (_, project) = server.call("GET", "projects/demo-proj?fields=quotas", None).await;
    let quotas = project["quotas"].as_array().expect("quotas");
    let usage =
        |metric: &str| quotas.iter().find(|q| q["metric"] == metric).map(|q| q["usage"].clone());
    assert_eq!((usage("FIREWALLS"), usage("NETWORKS")), (Some(json!(2)), Some(json!(1))));
    let (_, region) = server.call("GET", "projects/demo-proj/regions/us-west1", None).await;
    assert!(region["quotas"].as_array().expect("quotas").iter().any(|q| q["metric"] == "URL_MAPS"));

    let limit = quotas.iter().find(|q| q["metric"] == "NETWORKS").and_then(|q| q["limit"].as_u64());
    let networks = "projects/demo-proj/global/networks";
    for index in 1..limit.expect("a limit") {
        let network = json!({ "name": format!("n{index}"), "autoCreateSubnetworks": false });
        server.accept("POST", networks, network).await;
    }
    let one_more = json!({ "name": "one-more", "autoCreateSubnetworks": false });
    let (status, answer) = server.call("POST", networks, Some(&one_more)).await;
    assert_eq!(status, 403);
    let error: &Value = &answer["error"];
    assert_eq!(error["errors"][0]["reason"], "quotaExceeded");
    assert_eq!(error["message"], "Quota 'NETWORKS' exceeded. Limit: 100.0 globally.");
}
