//! What stands in a URL map: its JSON read into the model, and `validate`.
//!
//! Only what the model cannot express is refused here; whether a map makes sense is judged where it is
//! compiled, by the code that will serve it.
//!
//! Invariant: a problem found here names its field as the compiler would.

mod actions;
mod document;

pub use document::{DocumentError, parse_document};

use super::collection::{Question, typed};
use super::link::{link_to, normalise};
use super::region_url_maps::LINKS;
use crate::error::ApiError;
use actions::Reading;
use model::url_map::{HostRule, PathMatcher, PathRule, RouteRule, UrlMap, UrlMapTest};
use model::{Kind, Name, Problem, Resource, ResourceName};
use plan::routing::{self, TestFailure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use wire::compute;

/// The typed meaning of a kept document.
pub(crate) fn resource(name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
    let map: compute::UrlMap = typed(document)?;
    let (map, problems) = meaning(name, map, document.to_string().len());
    match problems.first() {
        Some(problem) => Err(ApiError::from_problem(problem, &BTreeSet::new())),
        None => Ok(Resource::UrlMap(Arc::new(map))),
    }
}

/// `status`, which clients read and nobody writes: what the map counts for against its quota.
pub(crate) fn status(name: &ResourceName, document: &Value) -> Option<Value> {
    let map: compute::UrlMap = typed(document).ok()?;
    let (map, _) = meaning(name, map, 0);
    Some(json!({ "quotaUsage": { "units": routing::quota_units(&map).to_string() } }))
}

/// Answers `validate`.
pub(crate) fn answer(question: &Question<'_>) -> Result<Value, ApiError> {
    if question.verb != "validate" {
        return Err(super::collection::unserved("regionUrlMaps", question.verb));
    }
    let Some(body) = question.body.get("resource") else {
        return Err(ApiError::required("resource"));
    };
    let mut body = body.clone();
    normalise(&mut body, LINKS, question.base, "resource")?;
    let parsed: compute::UrlMap = typed(&body)?;
    let name = ResourceName {
        project: question.base.project.into(),
        location: question.location.clone(),
        kind: Kind::UrlMap,
        name: parsed.name.as_deref().unwrap_or("url-map").into(),
    };
    let (map, mut problems) = meaning(&name, parsed, body.to_string().len());
    let (found, failures) =
        routing::validate(&Arc::new(map), question.view.state.compiled.inventory());
    problems.extend(found);
    Ok(json!({ "result": result(&problems, &failures) }))
}

/// The result document of `validate`. Tests are run only for a map that loads.
fn result(problems: &[Problem], failures: &[TestFailure]) -> Value {
    if !problems.is_empty() {
        let errors: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return json!({ "loadSucceeded": false, "loadErrors": errors });
    }
    let mut result = json!({ "loadSucceeded": true, "testPassed": failures.is_empty() });
    if !failures.is_empty() {
        result["testFailures"] = failures.iter().map(failure).collect();
    }
    result
}

fn failure(failure: &TestFailure) -> Value {
    let mut value = json!({ "host": failure.host, "path": failure.path });
    let mut set = |field: &str, text: Option<Value>| {
        if let Some(text) = text {
            value[field] = text;
        }
    };
    let link = |name: &Option<ResourceName>| name.as_ref().map(|name| link_to(name).into());
    let text = |text: &Option<String>| text.clone().map(Value::from);
    if failure.expected_service.is_some() {
        set("expectedService", link(&failure.expected_service));
        set("actualService", link(&failure.actual_service));
    }
    if failure.expected_output_url.is_some() {
        set("expectedOutputUrl", text(&failure.expected_output_url));
        set("actualOutputUrl", text(&failure.actual_output_url));
    }
    if failure.expected_redirect_response_code.is_some() {
        set(
            "expectedRedirectResponseCode",
            failure.expected_redirect_response_code.map(Value::from),
        );
        set("actualRedirectResponseCode", failure.actual_redirect_response_code.map(Value::from));
    }
    if !failure.headers.is_empty() {
        let pair = |(name, value): &(String, String)| json!({ "name": name, "value": value });
        set("headers", Some(failure.headers.iter().map(pair).collect()));
    }
    value
}

/// Reads a map whose links are in their kept form, with what cannot be expressed.
pub(crate) fn meaning(
    name: &ResourceName,
    map: compute::UrlMap,
    document_bytes: usize,
) -> (UrlMap, Vec<Problem>) {
    let mut reading = Reading::of(name);
    reading.unsupported(
        "defaultCustomErrorResponsePolicy",
        map.default_custom_error_response_policy.is_some(),
        "Custom error response policies are",
    );
    let matchers = map.path_matchers.unwrap_or_default();
    let map = UrlMap {
        name: name.clone(),
        id: map.id.map(|id| id.0).unwrap_or_default(),
        host_rules: map.host_rules.unwrap_or_default().into_iter().map(host_rule).collect(),
        path_matchers: matchers
            .into_iter()
            .enumerate()
            .map(|(m, matcher)| {
                reading.at(format!("pathMatchers[{m}]"), |r| path_matcher(r, matcher))
            })
            .collect(),
        default: reading.default_destination(
            map.default_service,
            map.default_url_redirect,
            map.default_route_action,
        ),
        header_action: actions::header_action(map.header_action),
        tests: test_list(&mut reading, map.tests.unwrap_or_default()),
        document_bytes,
    };
    (map, reading.into_problems())
}

fn host_rule(rule: compute::HostRule) -> HostRule {
    HostRule {
        hosts: rule.hosts.unwrap_or_default(),
        path_matcher: Name::from(rule.path_matcher.unwrap_or_default()),
    }
}

fn path_matcher(reading: &mut Reading<'_>, matcher: compute::PathMatcher) -> PathMatcher {
    reading.unsupported(
        "defaultCustomErrorResponsePolicy",
        matcher.default_custom_error_response_policy.is_some(),
        "Custom error response policies are",
    );
    let path_rules = matcher.path_rules.unwrap_or_default().into_iter().enumerate();
    let path_rules = path_rules
        .map(|(r, rule)| reading.at(format!("pathRules[{r}]"), |reading| path_rule(reading, rule)))
        .collect();
    let route_rules = matcher.route_rules.unwrap_or_default().into_iter().enumerate();
    let route_rules = route_rules
        .map(|(r, rule)| {
            reading.at(format!("routeRules[{r}]"), |reading| route_rule(reading, rule))
        })
        .collect();
    PathMatcher {
        name: Name::from(matcher.name.unwrap_or_default()),
        path_rules,
        route_rules,
        default: reading.default_destination(
            matcher.default_service,
            matcher.default_url_redirect,
            matcher.default_route_action,
        ),
        header_action: actions::header_action(matcher.header_action),
    }
}

fn path_rule(reading: &mut Reading<'_>, rule: compute::PathRule) -> PathRule {
    reading.unsupported(
        "customErrorResponsePolicy",
        rule.custom_error_response_policy.is_some(),
        "Custom error response policies are",
    );
    PathRule {
        paths: rule.paths.unwrap_or_default(),
        destination: reading.destination(rule.service, rule.url_redirect, rule.route_action),
    }
}

fn route_rule(reading: &mut Reading<'_>, rule: compute::HttpRouteRule) -> RouteRule {
    reading.unsupported(
        "customErrorResponsePolicy",
        rule.custom_error_response_policy.is_some(),
        "Custom error response policies are",
    );
    let matches = rule.match_rules.unwrap_or_default().into_iter().enumerate();
    RouteRule {
        priority: rule.priority,
        match_rules: matches
            .map(|(m, rule)| {
                reading
                    .at(format!("matchRules[{m}]"), |reading| actions::route_match(reading, rule))
            })
            .collect(),
        destination: reading.destination(rule.service, rule.url_redirect, rule.route_action),
        header_action: actions::header_action(rule.header_action),
    }
}

fn test_list(reading: &mut Reading<'_>, tests: Vec<compute::UrlMapTest>) -> Vec<UrlMapTest> {
    let read = |(t, test): (usize, compute::UrlMapTest)| UrlMapTest {
        host: test.host.unwrap_or_default(),
        path: test.path.unwrap_or_default(),
        headers: test
            .headers
            .unwrap_or_default()
            .into_iter()
            .map(|header| (header.name.unwrap_or_default(), header.value.unwrap_or_default()))
            .collect(),
        service: reading
            .at(format!("tests[{t}]"), |reading| reading.reference("service", test.service)),
        expected_output_url: test.expected_output_url.filter(|url| !url.is_empty()),
        expected_redirect_response_code: test
            .expected_redirect_response_code
            .filter(|code| *code != 0),
    };
    tests.into_iter().enumerate().map(read).collect()
}
