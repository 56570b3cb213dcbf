//! The tests a URL map carries: what each URL must lead to, judged by the rules that will serve.
//!
//! A test asks for a backend service, a URL and a redirect code. With weights, a service is expected if
//! it gets any share. Whether the service then finds a revision is no part of a map's test.

use super::action::To;
use super::decide::Located;
use super::fault::{At, Faults, link};
use super::rewrite;
use super::rules::Rules;
use crate::decision::{RequestHead, Scheme};
use model::url_map::{UrlMap, UrlMapTest};
use model::{Problem, ResourceName};
use std::net::{IpAddr, Ipv4Addr};

/// The field that failed tests are reported at.
pub(crate) const FIELD: &str = "tests";

/// A test that does not hold, with what was found instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestFailure {
    /// `host`.
    pub host: String,
    /// `path`.
    pub path: String,
    /// `headers[]`.
    pub headers: Vec<(String, String)>,
    /// `expectedService`.
    pub expected_service: Option<ResourceName>,
    /// `actualService`.
    pub actual_service: Option<ResourceName>,
    /// `expectedOutputUrl`.
    pub expected_output_url: Option<String>,
    /// `actualOutputUrl`.
    pub actual_output_url: Option<String>,
    /// `expectedRedirectResponseCode`.
    pub expected_redirect_response_code: Option<i32>,
    /// `actualRedirectResponseCode`.
    pub actual_redirect_response_code: Option<i32>,
}

/// Runs all tests of a map.
pub fn evaluate(map: &UrlMap) -> Vec<TestFailure> {
    let (rules, _) = Rules::compile(map);
    map.tests.iter().filter_map(|test| failure(test, &rules)).collect()
}

/// The problems of a map whose rules are sound: tests that are malformed, and tests that fail.
pub(crate) fn problems(map: &UrlMap, rules: &Rules) -> Vec<Problem> {
    let mut faults = Faults::of(&map.name);
    for (t, test) in map.tests.iter().enumerate() {
        let at = At::ROOT.item(FIELD, t);
        if test.host.is_empty() {
            faults.required(&at.field("host"));
        } else if !test.path.starts_with('/') {
            let why = "Path must begin with '/'.";
            faults.invalid(&at.field("path"), &test.path, why);
        } else if test.service.is_some() && test.expected_redirect_response_code.is_some() {
            let code = test.expected_redirect_response_code.unwrap_or_default();
            let why = "expectedRedirectResponseCode cannot be specified together with service.";
            faults.invalid(&at.field("expectedRedirectResponseCode"), code, why);
        } else if test.service.is_none()
            && test.expected_output_url.is_none()
            && test.expected_redirect_response_code.is_none()
        {
            faults.required(&at.field("service"));
        } else if let Some(failure) = failure(test, rules) {
            faults.invalid(&At::ROOT.field(FIELD), "", failure.to_string());
        }
    }
    faults.into_problems()
}

impl std::fmt::Display for TestFailure {
    /// Google's sentence for a failed test.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let url = format!("{}{}", self.host, self.path);
        let service = |name: &Option<ResourceName>| name.as_ref().map(link).unwrap_or_default();
        if self.expected_service.is_some() && self.expected_service != self.actual_service {
            return write!(
                out,
                "Test failure: Expect URL '{url}' to map to service '{}', but actually mapped to '{}'.",
                service(&self.expected_service),
                service(&self.actual_service),
            );
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let code = self.expected_redirect_response_code;
        if code.is_none() || code == self.actual_redirect_response_code {
            return write!(
                out,
                "Test failure: Expect URL '{url}' to have output URL '{}', but actually has '{}'.",
                text(&self.expected_output_url),
                text(&self.actual_output_url),
            );
        }
        write!(
            out,
            "Test failure: Expect URL '{url}' to redirect with response code '{}', but actually got \
             '{}'.",
            self.expected_redirect_response_code.unwrap_or_default(),
            self.actual_redirect_response_code.map(|code| code.to_string()).unwrap_or_default(),
        )
    }
}

fn failure(test: &UrlMapTest, rules: &Rules) -> Option<TestFailure> {
    let path_and_query = test.path.split('#').next().unwrap_or_default();
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let head = RequestHead {
        method: "GET",
        scheme: Scheme::Http,
        authority: &test.host,
        path,
        query,
        headers: &test.headers,
        client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let located = rules.locate(&head);
    let services = services(&located, rules);
    let expected_service = test.service.clone();
    let actual_service = match &expected_service {
        Some(expected) if services.contains(&expected) => expected_service.clone(),
        _ => services.first().map(|name| (*name).clone()),
    };
    let (url, code) = output(&located, &head);
    let found = TestFailure {
        host: test.host.clone(),
        path: test.path.clone(),
        headers: test.headers.clone(),
        actual_service,
        actual_output_url: Some(url),
        actual_redirect_response_code: code,
        expected_service,
        expected_output_url: test.expected_output_url.clone(),
        expected_redirect_response_code: test.expected_redirect_response_code,
    };
    (!found.holds()).then_some(found)
}

impl TestFailure {
    fn holds(&self) -> bool {
        // Beside a service, the scheme of the URL says nothing: the balancer alone knows it.
        let without_scheme = |url: &str| match (&self.expected_service, url.split_once("://")) {
            (Some(_), Some((_, rest))) => rest.to_string(),
            _ => url.to_string(),
        };
        let service =
            self.expected_service.is_none() || self.expected_service == self.actual_service;
        let url = self.expected_output_url.as_deref().is_none_or(|expected| {
            let actual = self.actual_output_url.as_deref().unwrap_or_default();
            without_scheme(expected) == without_scheme(actual)
        });
        let expected = self.expected_redirect_response_code;
        let code = expected.is_none() || expected == self.actual_redirect_response_code;
        service && url && code
    }
}

/// The services that get a share of the request.
fn services<'r>(located: &Located<'_>, rules: &'r Rules) -> Vec<&'r ResourceName> {
    let name = |backend: u32| rules.services.get(backend as usize);
    match &located.action.to {
        To::Service(backend) => name(*backend).into_iter().collect(),
        To::Weighted(weighted) => {
            let served = weighted.services.iter().filter(|service| service.weight > 0);
            served.filter_map(|service| name(service.backend)).collect()
        }
        To::Redirect(_) | To::Nowhere => Vec::new(),
    }
}

/// The URL the backend is sent, or the client is redirected to with a code.
fn output(located: &Located<'_>, head: &RequestHead<'_>) -> (String, Option<i32>) {
    let action = located.action;
    if let To::Redirect(redirect) = &action.to {
        let location = rewrite::location(redirect, located.part, head);
        return (location, Some(redirect.code.status().into()));
    }
    let host = action.host_rewrite.as_deref().unwrap_or(head.authority);
    let path = rewrite::path(&action.path_rewrite, located.part, head.path);
    let path = path.unwrap_or_else(|| head.path.to_string());
    let query = head.query.map(|query| format!("?{query}")).unwrap_or_default();
    (format!("{}://{host}{path}{query}", head.scheme.as_str()), None)
}
