//! Every limit of a URL map: what is just within it is taken, and one more is refused in these words.

use crate::world;
use model::url_map::{
    Destination, HeaderAction, HeaderMatch, HostRule, PathMatcher, PathRule, RouteAction,
    RouteMatch, RouteRule, UrlMap, UrlMapTest, WeightedBackendService,
};
use model::{Kind, ResourceName};
use plan::routing;
use std::sync::Arc;

fn to(service: ResourceName) -> Destination {
    Destination { service: Some(service), ..Destination::default() }
}

fn service(number: usize) -> ResourceName {
    world::name(Kind::BackendService, &format!("b{number}"))
}

fn matcher(number: usize) -> PathMatcher {
    PathMatcher {
        name: format!("m{number}").into(),
        default: to(service(0)),
        ..PathMatcher::default()
    }
}

fn map(host_rules: Vec<HostRule>, path_matchers: Vec<PathMatcher>) -> UrlMap {
    UrlMap {
        name: world::name(Kind::UrlMap, "map"),
        id: 1,
        host_rules,
        path_matchers,
        default: to(service(0)),
        header_action: HeaderAction::default(),
        tests: Vec::new(),
        document_bytes: 0,
    }
}

fn with_paths(path_rules: Vec<PathRule>) -> UrlMap {
    map(Vec::new(), vec![PathMatcher { path_rules, ..matcher(0) }])
}

fn path_rule(paths: Vec<String>) -> PathRule {
    PathRule { paths, destination: to(service(0)) }
}

fn with_routes(rules: Vec<Vec<RouteMatch>>) -> UrlMap {
    let route_rules = rules.into_iter().zip(0..).map(|(match_rules, priority)| RouteRule {
        priority: Some(priority),
        match_rules,
        destination: to(service(0)),
        header_action: HeaderAction::default(),
    });
    map(Vec::new(), vec![PathMatcher { route_rules: route_rules.collect(), ..matcher(0) }])
}

fn prefix(text: String) -> RouteMatch {
    RouteMatch { prefix: Some(text), ..RouteMatch::default() }
}

fn regex(text: String) -> RouteMatch {
    RouteMatch { regex: Some(text), ..RouteMatch::default() }
}

fn template(text: String) -> RouteMatch {
    RouteMatch { path_template: Some(text), ..RouteMatch::default() }
}

fn header(number: usize) -> HeaderMatch {
    HeaderMatch { name: format!("x-{number}"), present: true, ..HeaderMatch::default() }
}

fn hosts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("h{number}.example.com")).collect()
}

fn host_rule(number: usize) -> HostRule {
    HostRule { hosts: vec![format!("h{number}.example.com")], path_matcher: "m0".into() }
}

fn weighted(weight: usize) -> UrlMap {
    let weight = u32::try_from(weight).expect("a weight");
    let header_action = HeaderAction::default();
    let weighted = WeightedBackendService { service: service(0), weight, header_action };
    let action =
        RouteAction { weighted_backend_services: vec![weighted], ..RouteAction::default() };
    UrlMap {
        default: Destination { route_action: Some(action), ..Destination::default() },
        ..map(Vec::new(), Vec::new())
    }
}

/// The name of a limit, the limit, a map that uses so much of it, and the words of the refusal.
type Limit = (&'static str, usize, fn(usize) -> UrlMap, &'static str);

const LIMITS: &[Limit] = &[
    (
        "host rules",
        2000,
        |n| map((0..n).map(host_rule).collect(), vec![matcher(0)]),
        "There must be at most 2000 host rules.",
    ),
    (
        "path matchers",
        2000,
        |n| map(Vec::new(), (0..n).map(matcher).collect()),
        "There must be at most 2000 path matchers.",
    ),
    (
        "hosts of a host rule",
        1000,
        |n| {
            let rule = HostRule { hosts: hosts(n), path_matcher: "m0".into() };
            map(vec![rule], vec![matcher(0)])
        },
        "There must be at most 1000 hosts in a host rule.",
    ),
    (
        "path rules of a matcher",
        1000,
        |n| with_paths((0..n).map(|i| path_rule(vec![format!("/{i}")])).collect()),
        "There must be at most 1000 rules in a path matcher.",
    ),
    (
        "paths of a matcher",
        1000,
        |n| with_paths(vec![path_rule((0..n).map(|i| format!("/{i}")).collect())]),
        "There must be at most 1000 paths in a path matcher.",
    ),
    (
        "route rules of a matcher",
        1000,
        |n| with_routes((0..n).map(|_| vec![RouteMatch::default()]).collect()),
        "There must be at most 1000 rules in a path matcher.",
    ),
    (
        "predicates of a matcher",
        1000,
        |n| {
            let part = RouteMatch { headers: (1..n).map(header).collect(), ..prefix("/".into()) };
            with_routes(vec![vec![part]])
        },
        "There must be at most 1000 predicates in a path matcher.",
    ),
    (
        "regular expressions of a matcher",
        5,
        |n| with_routes((0..n).map(|i| vec![regex(format!("/{i}.*"))]).collect()),
        "There must be at most 5 regular expressions in a path matcher.",
    ),
    (
        "characters of a regular expression",
        250,
        |n| with_routes(vec![vec![regex("a".repeat(n))]]),
        "longer than 250 characters",
    ),
    (
        "path templates of a matcher",
        100,
        |n| with_routes((0..n).map(|i| vec![template(format!("/{i}/*"))]).collect()),
        "There must be at most 100 path templates in a path matcher.",
    ),
    (
        "operators of a path template",
        5,
        |n| with_routes(vec![vec![template("/*".repeat(n))]]),
        "must not have more than 5 operators",
    ),
    (
        "characters of a prefix",
        1024,
        |n| with_routes(vec![vec![prefix(format!("/{}", "a".repeat(n - 1)))]]),
        "The value must be between 1 and 1024 characters long.",
    ),
    (
        "characters of a path",
        1024,
        |n| with_paths(vec![path_rule(vec![format!("/{}", "a".repeat(n - 1))])]),
        "Path must not be longer than 1024 characters.",
    ),
    (
        "backend services",
        2500,
        |n| {
            let rule = |i| PathRule { paths: vec![format!("/{i}")], destination: to(service(i)) };
            let chunk = |m: usize| PathMatcher {
                path_rules: (m * 1000..n.min(m * 1000 + 1000)).map(rule).collect(),
                ..matcher(m)
            };
            map(Vec::new(), (0..n.div_ceil(1000)).map(chunk).collect())
        },
        "There must be at most 2500 backend services.",
    ),
    (
        "projects",
        1000,
        |n| {
            let foreign = |i: usize| {
                ResourceName::regional(&format!("p{i}"), "us-west1", Kind::BackendService, "b")
            };
            let rule = |i| PathRule { paths: vec![format!("/{i}")], destination: to(foreign(i)) };
            // The project of the map's own default is one of them.
            with_paths((1..n).map(rule).collect())
        },
        "There must be at most 1000 projects.",
    ),
    (
        "bytes of the document",
        128 * 1024,
        |n| UrlMap { document_bytes: n, ..map(Vec::new(), Vec::new()) },
        "There must be at most 131072 bytes in a URL map.",
    ),
    (
        "tests",
        100,
        |n| {
            let test = UrlMapTest {
                host: "example.com".into(),
                path: "/".into(),
                service: Some(service(0)),
                ..UrlMapTest::default()
            };
            UrlMap { tests: vec![test; n], ..map(Vec::new(), Vec::new()) }
        },
        "There must be at most 100 tests.",
    ),
    ("a weight", 1000, weighted, "Weight must be between 0 and 1000."),
];

fn refusals(map: UrlMap) -> Vec<String> {
    let plan = routing::offline(Arc::new(map));
    plan.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn every_limit_is_reached_and_not_passed() {
    for (what, most, map, words) in LIMITS {
        assert_eq!(refusals(map(*most)), [""; 0], "{most} {what}");
        let found = refusals(map(most + 1));
        assert!(found.iter().any(|problem| problem.contains(words)), "{what}: {found:?}");
    }
}

#[test]
fn tables_of_regular_expressions_are_bounded_over_the_whole_map() {
    let large = |m: usize| {
        let route_rules = (0..5).map(|priority| RouteRule {
            priority: Some(priority),
            match_rules: vec![regex(format!(r"/{m}{priority}\p{{Greek}}.{{100}}"))],
            destination: to(service(0)),
            header_action: HeaderAction::default(),
        });
        PathMatcher { route_rules: route_rules.collect(), ..matcher(m) }
    };
    assert_eq!(refusals(map(Vec::new(), vec![large(0)])), [""; 0]);
    let found = refusals(map(Vec::new(), (0..3).map(large).collect()));
    assert!(found.iter().all(|problem| problem.contains("must not need tables of more than")));
    assert!(!found.is_empty());
}

#[test]
fn a_quota_unit_is_a_host_a_path_or_a_condition() {
    let route = RouteMatch { headers: vec![header(1), header(2)], ..prefix("/".into()) };
    let mut both = with_routes(vec![vec![route, RouteMatch::default()]]);
    let paths = path_rule(vec!["/a".into(), "/b/*".into()]);
    both.path_matchers.push(PathMatcher { path_rules: vec![paths], ..matcher(1) });
    both.host_rules = vec![HostRule { hosts: hosts(3), path_matcher: "m0".into() }];
    assert_eq!(routing::quota_units(&both), 3 + 2 + 3 + 1);
}
