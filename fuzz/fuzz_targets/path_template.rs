//! A path template, a rewrite and a path, one to a line, as the only rule of a map.

#![no_main]

use libfuzzer_sys::fuzz_target;
use model::url_map::{
    Destination, HeaderAction, HostRule, PathMatcher, RouteAction, RouteMatch, RouteRule, UrlMap,
    UrlRewrite,
};
use model::{Kind, ResourceName};
use plan::decision::{RequestHead, Scheme};
use plan::fleet::{Caller, FleetPlan};
use plan::routing;
use std::sync::Arc;

fuzz_target!(|text: &str| {
    let mut lines = text.lines();
    let (Some(template), Some(rewrite)) = (lines.next(), lines.next()) else { return };
    let path = format!("/{}", lines.next().unwrap_or_default());
    let service = ResourceName::regional("p", "r", Kind::BackendService, "b");
    let to = |route_action| Destination {
        service: Some(service.clone()),
        url_redirect: None,
        route_action,
    };
    let url_rewrite = UrlRewrite { path_template: Some(rewrite.into()), ..UrlRewrite::default() };
    let action = RouteAction { url_rewrite: Some(url_rewrite), ..RouteAction::default() };
    let part = RouteMatch { path_template: Some(template.into()), ..RouteMatch::default() };
    let rule = RouteRule {
        priority: Some(1),
        match_rules: vec![part],
        destination: to(Some(action)),
        header_action: HeaderAction::default(),
    };
    let matcher = PathMatcher {
        name: "m".into(),
        route_rules: vec![rule],
        default: to(None),
        ..PathMatcher::default()
    };
    let plan = routing::offline(Arc::new(UrlMap {
        name: ResourceName::regional("p", "r", Kind::UrlMap, "m"),
        id: 1,
        host_rules: vec![HostRule { hosts: vec!["*".into()], path_matcher: "m".into() }],
        path_matchers: vec![matcher],
        default: to(None),
        header_action: HeaderAction::default(),
        tests: Vec::new(),
        document_bytes: 0,
    }));
    let head = RequestHead {
        method: "GET",
        scheme: Scheme::Https,
        authority: "h",
        path: &path,
        query: None,
        headers: &Vec::new(),
        client: [10, 0, 0, 1].into(),
    };
    plan.explain(&FleetPlan::default(), &head, Caller::Anonymous, 0);
});
