//! The maps that are measured, with requests that hit their rules evenly.

use model::backend_service::{Backend, BackendService, LogConfig};
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::run::{
    Access, Ingress, Outcome, Revision, RevisionChoice, RevisionScaling, Service, ServiceScaling,
    TrafficTarget,
};
use model::url_map::{
    Destination, HeaderAction, HeaderMatch, HostRule, PathMatcher, PathRule, RouteMatch, RouteRule,
    UrlMap,
};
use model::{Inventory, Kind, Resource, ResourceName};
use std::sync::Arc;

/// How many different requests are asked.
const REQUESTS: usize = 4_099;

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// A kind of rule and how to make so many of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleKind {
    pub(crate) what: &'static str,
    pub(crate) build: fn(usize) -> (UrlMap, Vec<Asked>),
}

/// Every kind that is measured.
pub(crate) const KINDS: &[RuleKind] = &[
    RuleKind { what: "hosts, exact", build: |n| hosts(n, "") },
    RuleKind { what: "hosts, wildcard", build: |n| hosts(n, "*.") },
    RuleKind { what: "path rules, exact", build: |n| paths(n, "") },
    RuleKind { what: "path rules, `/*`", build: |n| paths(n, "/*") },
    RuleKind { what: "route rules, `fullPathMatch`", build: |n| routes(n, full_path) },
    RuleKind { what: "route rules, `prefixMatch`", build: |n| routes(n, prefix) },
    RuleKind { what: "route rules, `prefixMatch` with `ignoreCase`", build: |n| routes(n, folded) },
    RuleKind { what: "route rules, `pathTemplateMatch`", build: |n| routes(n, template) },
    RuleKind { what: "route rules, one header's exact value", build: |n| routes(n, header) },
];

fn name(kind: Kind, own: &str) -> ResourceName {
    ResourceName::regional("p", "us-west1", kind, own)
}

fn to(service: &str) -> Destination {
    Destination { service: Some(name(Kind::BackendService, service)), ..Destination::default() }
}

fn map(own: &str, host_rules: Vec<HostRule>, path_matchers: Vec<PathMatcher>) -> UrlMap {
    UrlMap {
        name: name(Kind::UrlMap, own),
        id: 1,
        host_rules,
        path_matchers,
        default: to("shared"),
        header_action: HeaderAction::default(),
        tests: Vec::new(),
        document_bytes: 0,
    }
}

fn matcher(own: &str) -> PathMatcher {
    PathMatcher { name: own.into(), default: to("shared"), ..PathMatcher::default() }
}

fn requests(rules: usize, ask: impl Fn(usize) -> Asked) -> Vec<Asked> {
    (0..REQUESTS).map(|turn| ask(turn * 7_907 % rules)).collect()
}

fn hosts(rules: usize, star: &str) -> (UrlMap, Vec<Asked>) {
    let host_rule = |number: usize| HostRule {
        hosts: vec![format!("{star}tenant-{number}.apps.example.com")],
        path_matcher: "m".into(),
    };
    let asked = requests(rules, |number| Asked {
        authority: match star {
            "" => format!("tenant-{number}.apps.example.com"),
            _ => format!("www.tenant-{number}.apps.example.com"),
        },
        path: "/index.html".into(),
        ..Asked::default()
    });
    (map("hosts", (0..rules).map(host_rule).collect(), vec![matcher("m")]), asked)
}

fn any_host() -> Vec<HostRule> {
    vec![HostRule { hosts: vec!["*".into()], path_matcher: "m".into() }]
}

fn paths(rules: usize, ending: &str) -> (UrlMap, Vec<Asked>) {
    let path_rule = |number: usize| PathRule {
        paths: vec![format!("/app/team-{}/service-{number}{ending}", number % 97)],
        destination: to("shared"),
    };
    let asked = requests(rules, |number| {
        let path = format!("/app/team-{}/service-{number}", number % 97);
        let path = if ending.is_empty() { path } else { path + "/a/b.html" };
        Asked { authority: "example.com".into(), path, ..Asked::default() }
    });
    let path_rules = (0..rules).map(path_rule).collect();
    (map("paths", any_host(), vec![PathMatcher { path_rules, ..matcher("m") }]), asked)
}

type Rule = fn(usize) -> (RouteMatch, Asked);

fn routes(rules: usize, rule: Rule) -> (UrlMap, Vec<Asked>) {
    let route_rule = |number: usize| RouteRule {
        priority: i32::try_from(number).ok(),
        match_rules: vec![rule(number).0],
        destination: to("shared"),
        header_action: HeaderAction::default(),
    };
    let route_rules = (0..rules).map(route_rule).collect();
    let asked = requests(rules, |number| rule(number).1);
    (map("routes", any_host(), vec![PathMatcher { route_rules, ..matcher("m") }]), asked)
}

fn at(path: String) -> Asked {
    Asked { authority: "example.com".into(), path, ..Asked::default() }
}

fn full_path(number: usize) -> (RouteMatch, Asked) {
    let path = format!("/app/team-{}/service-{number}/", number % 97);
    (RouteMatch { full_path: Some(path.clone()), ..RouteMatch::default() }, at(path))
}

fn prefix(number: usize) -> (RouteMatch, Asked) {
    let path = format!("/app/team-{}/service-{number}/", number % 97);
    (RouteMatch { prefix: Some(path.clone()), ..RouteMatch::default() }, at(path + "a/b.html"))
}

fn folded(number: usize) -> (RouteMatch, Asked) {
    let (part, asked) = prefix(number);
    (RouteMatch { ignore_case: true, ..part }, at(asked.path.to_ascii_uppercase()))
}

fn template(number: usize) -> (RouteMatch, Asked) {
    let path = format!("/app/service-{number}");
    let template = format!("{path}/{{user}}/files/{{file=**}}");
    let asked = at(format!("{path}/u42/files/a/b.html"));
    (RouteMatch { path_template: Some(template), ..RouteMatch::default() }, asked)
}

fn header(number: usize) -> (RouteMatch, Asked) {
    let value = format!("tenant-{number}");
    let wanted = HeaderMatch {
        name: "x-tenant".into(),
        exact: Some(value.clone()),
        ..HeaderMatch::default()
    };
    let part =
        RouteMatch { prefix: Some("/".into()), headers: vec![wanted], ..RouteMatch::default() };
    let headers = vec![("user-agent".into(), "bench".into()), ("x-tenant".into(), value)];
    (part, Asked { headers, ..at("/index.html".into()) })
}

/// The map of one of many small load balancers: two hosts, ten paths.
pub(crate) fn small_map(number: usize, version: usize) -> UrlMap {
    let path_rule = |path: usize| PathRule {
        paths: vec![format!("/v{version}/part-{path}/*")],
        destination: to("shared"),
    };
    let host_rule = HostRule {
        hosts: vec!["example.com".into(), "*.example.com".into()],
        path_matcher: "m".into(),
    };
    let mut matcher = matcher("m");
    matcher.path_rules = (0..10).map(path_rule).collect();
    if number == 0 {
        matcher.default = to("lone");
    }
    map(&format!("map-{number}"), vec![host_rule], vec![matcher])
}

/// Requests that the small maps answer.
pub(crate) fn asked_of_small_maps() -> Vec<Asked> {
    requests(10, |number| Asked {
        authority: "www.example.com".into(),
        path: format!("/v0/part-{number}/x"),
        ..Asked::default()
    })
}

/// What every map needs: its backend services, their groups, and the Cloud Run service behind them.
pub(crate) fn around() -> Inventory {
    let mut inventory = Inventory::default();
    inventory.insert(Resource::Service(Arc::new(Service {
        name: name(Kind::Service, "run"),
        id: 1,
        ingress: Ingress::All,
        default_url_disabled: false,
        access: Access::default(),
        traffic: vec![TrafficTarget { revision: RevisionChoice::Latest, percent: 100, tag: None }],
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    })));
    inventory.insert(Resource::Revision(Arc::new(revision())));
    for own in ["shared", "lone"] {
        inventory.insert(Resource::NetworkEndpointGroup(Arc::new(EndpointGroup {
            name: name(Kind::NetworkEndpointGroup, own),
            id: 1,
            endpoints: Endpoints::CloudRun {
                service: Some("run".into()),
                tag: None,
                url_mask: None,
            },
        })));
    }
    inventory.insert(shared_service(0));
    inventory.insert(lone_service(0));
    inventory
}

fn revision() -> Revision {
    Revision {
        name: name(Kind::Revision, "run-1"),
        id: 1,
        service: name(Kind::Service, "run"),
        generation: 1,
        containers: Vec::new(),
        volumes: Vec::new(),
        concurrency: 80,
        timeout_seconds: 300,
        scaling: RevisionScaling::default(),
        cpu_idle: true,
        startup_cpu_boost: false,
        session_affinity: false,
        service_account: None,
        execution_environment: None,
        vpc_access: None,
        outcome: Some(Outcome {
            ready: true,
            reason: String::new(),
            message: String::new(),
            image_digests: Vec::new(),
        }),
    }
}

/// The backend service that every map uses, in one of its versions.
pub(crate) fn shared_service(version: usize) -> Resource {
    service("shared", version)
}

/// The backend service that one map uses, in one of its versions.
pub(crate) fn lone_service(version: usize) -> Resource {
    service("lone", version)
}

fn service(own: &str, version: usize) -> Resource {
    let group = name(Kind::NetworkEndpointGroup, own);
    Resource::BackendService(Arc::new(BackendService {
        name: name(Kind::BackendService, own),
        id: version as u64,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        protocol: "HTTP".into(),
        port_name: None,
        timeout_seconds: 30,
        backends: vec![Backend { group, balancing_mode: None, capacity_scaler: None }],
        health_checks: Vec::new(),
        session_affinity: "NONE".into(),
        custom_request_headers: Vec::new(),
        custom_response_headers: Vec::new(),
        log: LogConfig::default(),
        draining_timeout_seconds: 0,
        outlier_detection: false,
        circuit_breakers: false,
        consistent_hash: false,
        locality_policy: None,
    }))
}
