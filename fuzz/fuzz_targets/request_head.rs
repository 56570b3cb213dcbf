//! A request head of any content against a map with every kind of rule.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plan::decision::{Decision, RequestHead, Scheme};
use plan::fleet::{Caller, FleetPlan};
use plan::routing::{self, UrlMapPlan};
use std::sync::{Arc, LazyLock};

static PLAN: LazyLock<UrlMapPlan> = LazyLock::new(|| {
    let text = include_str!("every_kind_of_rule.yaml");
    let (map, problems) = api::compute::url_maps::parse_document(text).expect("a URL map");
    assert!(problems.is_empty());
    let plan = routing::offline(Arc::new(map));
    assert!(plan.problems().is_empty(), "{:?}", plan.problems());
    plan
});

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let method = lines.next().unwrap_or_default();
    let authority = lines.next().unwrap_or_default();
    let path = format!("/{}", lines.next().unwrap_or_default());
    let query = lines.next();
    let pairs = lines.filter_map(|line| line.split_once(':'));
    let headers: Vec<(String, String)> =
        pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let head = RequestHead {
        method,
        scheme: Scheme::Http,
        authority,
        path: &path,
        query,
        headers: &headers,
        client: [10, 0, 0, 1].into(),
    };
    let fleet = FleetPlan::default();
    let decision = PLAN.decide(&fleet, &head, 3);
    // What the client did not send cannot come back: the data plane refuses these bytes before it asks for a decision.
    let parts = [authority, &path, query.unwrap_or_default()];
    let sent = parts.iter().any(|part| part.contains(['\r', '\n']));
    if let Decision::Respond(respond) = &decision {
        for (_, value) in &respond.headers {
            assert!(sent || !value.contains(['\r', '\n']));
        }
    }
    PLAN.explain(&fleet, &head, Caller::Anonymous, 3);
});
