//! A URL map: which backend service answers a URL, and what is done to the request on the way.
//!
//! The types mirror Google's `UrlMap` as it is declared, wrong combinations included: whether a rule
//! names one target or two is for `plan` to say. Only what cannot be expressed here at all, such as an
//! unknown retry condition, is refused by whoever reads the document.

use crate::name::{Name, ResourceName};
use std::time::Duration;

/// The priority limit of a route rule.
pub const PRIORITY_MAX: u32 = 2_147_483_647;

/// One URL map (Compute `UrlMap`) of a regional internal Application Load Balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlMap {
    /// `projects/P/regions/R/urlMaps/M`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `hostRules[]`.
    pub host_rules: Vec<HostRule>,
    /// `pathMatchers[]`.
    pub path_matchers: Vec<PathMatcher>,
    /// `defaultService`, `defaultUrlRedirect`, `defaultRouteAction`.
    pub default: Destination,
    /// `headerAction`.
    pub header_action: HeaderAction,
    /// `tests[]`.
    pub tests: Vec<UrlMapTest>,
    /// The size of the map as JSON, in bytes, which Google bounds.
    pub document_bytes: usize,
}

/// `hostRules[]`: the hosts that one path matcher is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRule {
    /// `hosts[]`: exact, `*`, or `*` followed by `.` or `-`.
    pub hosts: Vec<String>,
    /// `pathMatcher`, by name.
    pub path_matcher: Name,
}

/// `pathMatchers[]`: the rules for the paths of some hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathMatcher {
    /// `name`.
    pub name: Name,
    /// `pathRules[]`. Only one of `path_rules` and `route_rules` may have entries.
    pub path_rules: Vec<PathRule>,
    /// `routeRules[]`.
    pub route_rules: Vec<RouteRule>,
    /// `defaultService`, `defaultUrlRedirect`, `defaultRouteAction`.
    pub default: Destination,
    /// `headerAction`.
    pub header_action: HeaderAction,
}

/// `pathRules[]`: paths that share a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathRule {
    /// `paths[]`: exact, or ending in `/*`.
    pub paths: Vec<String>,
    /// `service`, `urlRedirect`, `routeAction`.
    pub destination: Destination,
}

/// `routeRules[]`: one rule among those asked in order of priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// `priority`; the lower number is asked first.
    pub priority: Option<i32>,
    /// `matchRules[]`: the rule matches when any of them does.
    pub match_rules: Vec<RouteMatch>,
    /// `service`, `urlRedirect`, `routeAction`.
    pub destination: Destination,
    /// `headerAction`.
    pub header_action: HeaderAction,
}

/// `matchRules[]`: conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// `prefixMatch`.
    pub prefix: Option<String>,
    /// `fullPathMatch`.
    pub full_path: Option<String>,
    /// `regexMatch`.
    pub regex: Option<String>,
    /// `pathTemplateMatch`.
    pub path_template: Option<String>,
    /// `ignoreCase`, for `prefixMatch` and `fullPathMatch`.
    pub ignore_case: bool,
    /// `headerMatches[]`.
    pub headers: Vec<HeaderMatch>,
    /// `queryParameterMatches[]`.
    pub query_parameters: Vec<QueryParameterMatch>,
}

/// `headerMatches[]`: a condition on a header field, or on `:authority`, `:method` or `PORT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderMatch {
    /// `headerName`.
    pub name: String,
    /// `exactMatch`.
    pub exact: Option<String>,
    /// `prefixMatch`.
    pub prefix: Option<String>,
    /// `suffixMatch`.
    pub suffix: Option<String>,
    /// `regexMatch`.
    pub regex: Option<String>,
    /// `presentMatch`; false says nothing.
    pub present: bool,
    /// `rangeMatch`: from `rangeStart` up to, and without, `rangeEnd`.
    pub range: Option<(i64, i64)>,
    /// `invertMatch`.
    pub invert: bool,
}

/// `queryParameterMatches[]`: a condition on a parameter of the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryParameterMatch {
    /// `name`.
    pub name: String,
    /// `exactMatch`.
    pub exact: Option<String>,
    /// `regexMatch`.
    pub regex: Option<String>,
    /// `presentMatch`; false says nothing.
    pub present: bool,
}

/// Where a rule or a default sends requests: exactly one of a service, a redirect and weighted services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// `service` or `defaultService`.
    pub service: Option<ResourceName>,
    /// `urlRedirect` or `defaultUrlRedirect`.
    pub url_redirect: Option<UrlRedirect>,
    /// `routeAction` or `defaultRouteAction`.
    pub route_action: Option<RouteAction>,
}

/// `urlRedirect`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlRedirect {
    /// `hostRedirect`.
    pub host: Option<String>,
    /// `pathRedirect`.
    pub path: Option<String>,
    /// `prefixRedirect`.
    pub prefix: Option<String>,
    /// `redirectResponseCode`.
    pub code: RedirectCode,
    /// `httpsRedirect`.
    pub https: bool,
    /// `stripQuery`.
    pub strip_query: bool,
}

/// `redirectResponseCode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectCode {
    /// `MOVED_PERMANENTLY_DEFAULT`: 301.
    #[default]
    MovedPermanently,
    /// `FOUND`: 302.
    Found,
    /// `SEE_OTHER`: 303.
    SeeOther,
    /// `TEMPORARY_REDIRECT`: 307.
    TemporaryRedirect,
    /// `PERMANENT_REDIRECT`: 308.
    PermanentRedirect,
}

impl RedirectCode {
    /// Every code with Google's word and the status it stands for.
    pub const ALL: [(RedirectCode, &'static str, u16); 5] = [
        (RedirectCode::MovedPermanently, "MOVED_PERMANENTLY_DEFAULT", 301),
        (RedirectCode::Found, "FOUND", 302),
        (RedirectCode::SeeOther, "SEE_OTHER", 303),
        (RedirectCode::TemporaryRedirect, "TEMPORARY_REDIRECT", 307),
        (RedirectCode::PermanentRedirect, "PERMANENT_REDIRECT", 308),
    ];

    /// The status code of the response.
    pub fn status(self) -> u16 {
        RedirectCode::ALL
            .iter()
            .find(|(code, ..)| *code == self)
            .map_or(301, |(.., status)| *status)
    }
}

/// `routeAction`: what happens to the request on its way to the backend service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteAction {
    /// `weightedBackendServices[]`.
    pub weighted_backend_services: Vec<WeightedBackendService>,
    /// `urlRewrite`.
    pub url_rewrite: Option<UrlRewrite>,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `retryPolicy`.
    pub retry_policy: Option<RetryPolicy>,
    /// `requestMirrorPolicy.backendService`.
    pub mirror: Option<ResourceName>,
    /// `corsPolicy`.
    pub cors_policy: Option<CorsPolicy>,
    /// `faultInjectionPolicy`.
    pub fault_injection: Option<FaultInjection>,
}

/// `weightedBackendServices[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedBackendService {
    /// `backendService`.
    pub service: ResourceName,
    /// `weight`: the share is this divided by the sum of all.
    pub weight: u32,
    /// `headerAction`.
    pub header_action: HeaderAction,
}

/// `urlRewrite`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlRewrite {
    /// `hostRewrite`.
    pub host: Option<String>,
    /// `pathPrefixRewrite`.
    pub path_prefix: Option<String>,
    /// `pathTemplateRewrite`.
    pub path_template: Option<String>,
}

/// `retryPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryPolicy {
    /// `numRetries`, when it was given.
    pub retries: Option<u32>,
    /// `perTryTimeout`.
    pub per_try_timeout: Option<Duration>,
    /// `retryConditions[]`.
    pub conditions: Vec<RetryCondition>,
}

/// `retryConditions[]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryCondition {
    /// `5xx`: any such response, and no response at all.
    ServerError,
    /// `gateway-error`: 502, 503, 504.
    GatewayError,
    /// `connect-failure`.
    ConnectFailure,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `refused-stream`: the backend reset the stream with REFUSED_STREAM.
    RefusedStream,
    /// gRPC status `cancelled` in the response header.
    Cancelled,
    /// gRPC status `deadline-exceeded`.
    DeadlineExceeded,
    /// gRPC status `internal`.
    Internal,
    /// gRPC status `resource-exhausted`.
    ResourceExhausted,
    /// gRPC status `unavailable`.
    Unavailable,
}

impl RetryCondition {
    /// Every condition with Google's word for it.
    pub const ALL: [(RetryCondition, &'static str); 10] = [
        (RetryCondition::ServerError, "5xx"),
        (RetryCondition::GatewayError, "gateway-error"),
        (RetryCondition::ConnectFailure, "connect-failure"),
        (RetryCondition::Retriable4xx, "retriable-4xx"),
        (RetryCondition::RefusedStream, "refused-stream"),
        (RetryCondition::Cancelled, "cancelled"),
        (RetryCondition::DeadlineExceeded, "deadline-exceeded"),
        (RetryCondition::Internal, "internal"),
        (RetryCondition::ResourceExhausted, "resource-exhausted"),
        (RetryCondition::Unavailable, "unavailable"),
    ];

    /// Google's word for the condition.
    pub fn word(self) -> &'static str {
        RetryCondition::ALL.iter().find(|(known, _)| *known == self).map_or("", |(_, word)| word)
    }
}

/// `corsPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsPolicy {
    /// `allowOrigins[]`.
    pub allow_origins: Vec<String>,
    /// `allowOriginRegexes[]`.
    pub allow_origin_regexes: Vec<String>,
    /// `allowMethods[]`.
    pub allow_methods: Vec<String>,
    /// `allowHeaders[]`.
    pub allow_headers: Vec<String>,
    /// `exposeHeaders[]`.
    pub expose_headers: Vec<String>,
    /// `maxAge`, in seconds.
    pub max_age_seconds: Option<i32>,
    /// `allowCredentials`.
    pub allow_credentials: bool,
    /// `disabled`: kept, and not in force.
    pub disabled: bool,
}

/// `faultInjectionPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultInjection {
    /// `abort`: the status to answer with, and how often.
    pub abort: Option<(u32, Percentage)>,
    /// `delay`: how long to wait before sending, and how often.
    pub delay: Option<(Duration, Percentage)>,
}

/// A share of requests, kept in millionths so that shares compare exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percentage {
    /// The share in millionths: 1,000,000 is all.
    pub millionths: u32,
}

impl Percentage {
    /// All requests.
    pub const ALL: Percentage = Percentage { millionths: 1_000_000 };

    /// Reads a percentage from 0 to 100; `None` outside of it.
    pub fn from_percent(percent: f64) -> Option<Percentage> {
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 1,000,000 by the check above"
        )]
        let millionths = (percent * 10_000.0).round() as u32;
        Some(Percentage { millionths })
    }
}

impl std::fmt::Display for Percentage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}%", f64::from(self.millionths) / 10_000.0)
    }
}

/// `headerAction`, of a weighted backend service, a route rule, a path matcher or the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderAction {
    /// `requestHeadersToRemove[]`.
    pub request_remove: Vec<String>,
    /// `requestHeadersToAdd[]`.
    pub request_add: Vec<HeaderToAdd>,
    /// `responseHeadersToRemove[]`.
    pub response_remove: Vec<String>,
    /// `responseHeadersToAdd[]`.
    pub response_add: Vec<HeaderToAdd>,
}

/// `requestHeadersToAdd[]`, `responseHeadersToAdd[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderToAdd {
    /// `headerName`.
    pub name: String,
    /// `headerValue`.
    pub value: String,
    /// `replace`, when it was given.
    pub replace: Option<bool>,
}

/// `tests[]`: what a URL must lead to, or the map is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlMapTest {
    /// `host`.
    pub host: String,
    /// `path`, query included.
    pub path: String,
    /// `headers[]`: name and value.
    pub headers: Vec<(String, String)>,
    /// `service`.
    pub service: Option<ResourceName>,
    /// `expectedOutputUrl`.
    pub expected_output_url: Option<String>,
    /// `expectedRedirectResponseCode`.
    pub expected_redirect_response_code: Option<i32>,
}

impl Destination {
    /// The backend services named here, each with its field below `level`.
    fn backend_services(&self, field: &str, action: &str, found: &mut Vec<(String, ResourceName)>) {
        found.extend(self.service.iter().map(|name| (field.to_string(), name.clone())));
        let Some(route_action) = &self.route_action else { return };
        for (i, weighted) in route_action.weighted_backend_services.iter().enumerate() {
            let field = format!("{action}.weightedBackendServices[{i}].backendService");
            found.push((field, weighted.service.clone()));
        }
        if let Some(mirror) = &route_action.mirror {
            found.push((format!("{action}.requestMirrorPolicy.backendService"), mirror.clone()));
        }
    }
}

impl UrlMap {
    /// Where requests can go: by rules and by defaults.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let of_matchers = self.path_matchers.iter().flat_map(|matcher| {
            let paths = matcher.path_rules.iter().map(|rule| &rule.destination);
            let routes = matcher.route_rules.iter().map(|rule| &rule.destination);
            std::iter::once(&matcher.default).chain(paths).chain(routes)
        });
        std::iter::once(&self.default).chain(of_matchers)
    }

    /// The backend services that [`UrlMap::references`] finds, each once and in order.
    pub fn backend_services(&self) -> Vec<&ResourceName> {
        let mut found: Vec<&ResourceName> = Vec::new();
        for destination in self.destinations() {
            found.extend(&destination.service);
            let action = destination.route_action.iter();
            for action in action {
                found.extend(action.weighted_backend_services.iter().map(|w| &w.service));
                found.extend(&action.mirror);
            }
        }
        found.extend(self.tests.iter().filter_map(|test| test.service.as_ref()));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Every backend service the map names, those that its tests expect included.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let mut found = Vec::new();
        self.default.backend_services("defaultService", "defaultRouteAction", &mut found);
        for (m, matcher) in self.path_matchers.iter().enumerate() {
            let at = format!("pathMatchers[{m}]");
            matcher.default.backend_services(
                &format!("{at}.defaultService"),
                &format!("{at}.defaultRouteAction"),
                &mut found,
            );
            for (r, rule) in matcher.path_rules.iter().enumerate() {
                let at = format!("{at}.pathRules[{r}]");
                let (service, action) = (format!("{at}.service"), format!("{at}.routeAction"));
                rule.destination.backend_services(&service, &action, &mut found);
            }
            for (r, rule) in matcher.route_rules.iter().enumerate() {
                let at = format!("{at}.routeRules[{r}]");
                let (service, action) = (format!("{at}.service"), format!("{at}.routeAction"));
                rule.destination.backend_services(&service, &action, &mut found);
            }
        }
        for (t, test) in self.tests.iter().enumerate() {
            found.extend(test.service.iter().map(|s| (format!("tests[{t}].service"), s.clone())));
        }
        found
    }
}
