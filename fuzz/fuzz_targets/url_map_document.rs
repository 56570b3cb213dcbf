//! A URL map document of any content: it is read or refused, and whatever is read can be compiled,
//! looked over, tested and asked.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plan::decision::{RequestHead, Scheme};
use plan::fleet::{Caller, FleetPlan};
use plan::routing;
use std::sync::Arc;

fuzz_target!(|text: &str| {
    let Ok((map, _)) = api::compute::url_maps::parse_document(text) else { return };
    let map = Arc::new(map);
    routing::lint(&map);
    routing::evaluate(&map);
    let plan = routing::offline(Arc::clone(&map));
    let fleet = FleetPlan::default();
    let hosts = map.host_rules.iter().flat_map(|rule| &rule.hosts).map(String::as_str);
    for authority in hosts.chain(["example.com:80", ""]).take(8) {
        for path in ["/", "/a/b/c", "/a"] {
            let head = RequestHead {
                method: "OPTIONS",
                scheme: Scheme::Http,
                authority,
                path,
                query: Some("a=1&b"),
                headers: &vec![("origin".to_string(), "https://a".to_string())],
                client: [10, 0, 0, 1].into(),
            };
            plan.decide(&fleet, &head, 1);
            let _ = plan.explain(&fleet, &head, Caller::Anonymous, 1).to_string();
        }
    }
});
