//! Destinations, route actions, match rules and header actions read from JSON.

use model::url_map::{
    CorsPolicy, Destination, FaultInjection, HeaderAction, HeaderMatch, HeaderToAdd, Percentage,
    QueryParameterMatch, RedirectCode, RetryCondition, RetryPolicy, RouteAction, RouteMatch,
    UrlRedirect, UrlRewrite, WeightedBackendService,
};
use model::{Problem, ResourceName};
use std::time::Duration;
use wire::compute;

/// The longest duration Google takes, in seconds.
const DURATION_SECONDS_MAX: u64 = 315_576_000_000;

/// A map being read: where in it the reader is, and what could not be expressed.
pub(super) struct Reading<'r> {
    resource: &'r ResourceName,
    path: Vec<String>,
    problems: Vec<Problem>,
}

impl<'r> Reading<'r> {
    pub(super) fn of(resource: &'r ResourceName) -> Reading<'r> {
        Reading { resource, path: Vec::new(), problems: Vec::new() }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Reads something one level deeper.
    pub(super) fn at<T>(&mut self, field: String, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(field);
        let value = read(self);
        self.path.pop();
        value
    }

    fn field(&self, field: &str) -> String {
        let mut path = self.path.clone();
        path.push(field.to_string());
        path.join(".")
    }

    fn invalid(&mut self, field: &str, value: impl std::fmt::Display, why: &str) {
        self.problems.push(Problem::invalid(self.resource, self.field(field), value, why));
    }

    fn required(&mut self, field: &str) {
        self.problems.push(Problem::required(self.resource, self.field(field)));
    }

    /// Refuses a feature that other kinds of load balancers have.
    pub(super) fn unsupported(&mut self, field: &str, given: bool, what: &str) {
        if given {
            let why = format!("{what} not supported for load balancing scheme INTERNAL_MANAGED.");
            self.invalid(field, "", &why);
        }
    }

    /// A link that may be absent or empty.
    pub(super) fn reference(&mut self, field: &str, link: Option<String>) -> Option<ResourceName> {
        let link = link.filter(|link| !link.is_empty())?;
        let name = ResourceName::parse(&link);
        if name.is_none() {
            self.invalid(field, link, "The URL is malformed.");
        }
        name
    }

    pub(super) fn default_destination(
        &mut self,
        service: Option<String>,
        redirect: Option<Box<compute::HttpRedirectAction>>,
        action: Option<Box<compute::HttpRouteAction>>,
    ) -> Destination {
        Destination {
            service: self.reference("defaultService", service),
            url_redirect: redirect.map(|redirect| url_redirect(*redirect)),
            route_action: action
                .map(|action| self.at("defaultRouteAction".into(), |r| route_action(r, *action))),
        }
    }

    pub(super) fn destination(
        &mut self,
        service: Option<String>,
        redirect: Option<Box<compute::HttpRedirectAction>>,
        action: Option<Box<compute::HttpRouteAction>>,
    ) -> Destination {
        Destination {
            service: self.reference("service", service),
            url_redirect: redirect.map(|redirect| url_redirect(*redirect)),
            route_action: action
                .map(|action| self.at("routeAction".into(), |r| route_action(r, *action))),
        }
    }

    fn duration(&mut self, field: &str, given: Option<Box<compute::Duration>>) -> Option<Duration> {
        let given = given?;
        let (seconds, nanos) = (given.seconds.map_or(0, |s| s.0), given.nanos.unwrap_or(0));
        let whole = u64::try_from(seconds).ok().filter(|seconds| *seconds <= DURATION_SECONDS_MAX);
        let part = u32::try_from(nanos).ok().filter(|nanos| *nanos <= 999_999_999);
        match (whole, part) {
            (Some(seconds), Some(nanos)) => Some(Duration::new(seconds, nanos)),
            (None, _) => {
                let why = "Must be between 0 and 315,576,000,000 inclusive.";
                self.at(field.into(), |r| r.invalid("seconds", seconds, why));
                None
            }
            (_, None) => {
                let why = "Must be between 0 and 999,999,999 inclusive.";
                self.at(field.into(), |r| r.invalid("nanos", nanos, why));
                None
            }
        }
    }

    fn percentage(&mut self, given: Option<f64>) -> Percentage {
        let percent = given.unwrap_or(0.0);
        Percentage::from_percent(percent).unwrap_or_else(|| {
            self.invalid("percentage", percent, "Percentage must be between 0.0 and 100.0.");
            Percentage::default()
        })
    }
}

fn url_redirect(redirect: compute::HttpRedirectAction) -> UrlRedirect {
    let code = redirect.redirect_response_code.unwrap_or_default();
    let known = RedirectCode::ALL.into_iter().find(|(_, word, _)| *word == code);
    UrlRedirect {
        host: redirect.host_redirect.filter(|text| !text.is_empty()),
        path: redirect.path_redirect.filter(|text| !text.is_empty()),
        prefix: redirect.prefix_redirect.filter(|text| !text.is_empty()),
        // The wire type has already refused every other word.
        code: known.map_or_else(RedirectCode::default, |(code, ..)| code),
        https: redirect.https_redirect.unwrap_or(false),
        strip_query: redirect.strip_query.unwrap_or(false),
    }
}

fn route_action(reading: &mut Reading<'_>, action: compute::HttpRouteAction) -> RouteAction {
    for (field, given, what) in [
        ("cachePolicy", action.cache_policy.is_some(), "Cache policies are"),
        (
            "dynamicCompressionPolicy",
            action.dynamic_compression_policy.is_some(),
            "Dynamic compression policies are",
        ),
        (
            "imageOptimizationPolicy",
            action.image_optimization_policy.is_some(),
            "Image optimization policies are",
        ),
        ("maxStreamDuration", action.max_stream_duration.is_some(), "Max stream duration is"),
    ] {
        reading.unsupported(field, given, what);
    }
    let weighted = action.weighted_backend_services.unwrap_or_default().into_iter().enumerate();
    RouteAction {
        weighted_backend_services: weighted
            .filter_map(|(i, service)| {
                let at = format!("weightedBackendServices[{i}]");
                reading.at(at, |reading| weighted_service(reading, service))
            })
            .collect(),
        url_rewrite: action
            .url_rewrite
            .map(|rewrite| reading.at("urlRewrite".into(), |r| url_rewrite(r, *rewrite))),
        timeout: reading.duration("timeout", action.timeout),
        retry_policy: action
            .retry_policy
            .map(|policy| reading.at("retryPolicy".into(), |r| retry_policy(r, *policy))),
        mirror: action.request_mirror_policy.and_then(|policy| {
            reading.at("requestMirrorPolicy".into(), |r| {
                r.reference("backendService", policy.backend_service)
            })
        }),
        cors_policy: action.cors_policy.map(|policy| cors_policy(*policy)),
        fault_injection: action.fault_injection_policy.map(|policy| {
            reading.at("faultInjectionPolicy".into(), |r| fault_injection(r, *policy))
        }),
    }
}

fn weighted_service(
    reading: &mut Reading<'_>,
    service: compute::WeightedBackendService,
) -> Option<WeightedBackendService> {
    if service.backend_service.as_deref().is_none_or(str::is_empty) {
        reading.required("backendService");
    }
    Some(WeightedBackendService {
        service: reading.reference("backendService", service.backend_service)?,
        weight: service.weight.unwrap_or(0),
        header_action: header_action(service.header_action),
    })
}

fn url_rewrite(reading: &mut Reading<'_>, rewrite: compute::UrlRewrite) -> UrlRewrite {
    reading.unsupported("regexRewrite", rewrite.regex_rewrite.is_some(), "Regex rewrites are");
    UrlRewrite {
        host: rewrite.host_rewrite.filter(|text| !text.is_empty()),
        path_prefix: rewrite.path_prefix_rewrite.filter(|text| !text.is_empty()),
        path_template: rewrite.path_template_rewrite.filter(|text| !text.is_empty()),
    }
}

fn retry_policy(reading: &mut Reading<'_>, policy: compute::HttpRetryPolicy) -> RetryPolicy {
    let mut conditions = Vec::new();
    for (i, word) in policy.retry_conditions.unwrap_or_default().into_iter().enumerate() {
        match RetryCondition::ALL.into_iter().find(|(_, known)| *known == word) {
            Some((condition, _)) => conditions.push(condition),
            None => {
                let why = "The value is not a retry condition.";
                reading.invalid(&format!("retryConditions[{i}]"), word, why);
            }
        }
    }
    RetryPolicy {
        retries: policy.num_retries,
        per_try_timeout: reading.duration("perTryTimeout", policy.per_try_timeout),
        conditions,
    }
}

fn cors_policy(policy: compute::CorsPolicy) -> CorsPolicy {
    CorsPolicy {
        allow_origins: policy.allow_origins.unwrap_or_default(),
        allow_origin_regexes: policy.allow_origin_regexes.unwrap_or_default(),
        allow_methods: policy.allow_methods.unwrap_or_default(),
        allow_headers: policy.allow_headers.unwrap_or_default(),
        expose_headers: policy.expose_headers.unwrap_or_default(),
        max_age_seconds: policy.max_age,
        allow_credentials: policy.allow_credentials.unwrap_or(false),
        disabled: policy.disabled.unwrap_or(false),
    }
}

fn fault_injection(
    reading: &mut Reading<'_>,
    policy: compute::HttpFaultInjection,
) -> FaultInjection {
    let abort = policy.abort.map(|abort| {
        reading.at("abort".into(), |r| {
            if abort.http_status.is_none() {
                r.required("httpStatus");
            }
            (abort.http_status.unwrap_or(200), r.percentage(abort.percentage))
        })
    });
    let delay = policy.delay.map(|delay| {
        reading.at("delay".into(), |r| {
            if delay.fixed_delay.is_none() {
                r.required("fixedDelay");
            }
            let fixed = r.duration("fixedDelay", delay.fixed_delay);
            (fixed.unwrap_or_default(), r.percentage(delay.percentage))
        })
    });
    FaultInjection { abort, delay }
}

pub(super) fn header_action(action: Option<Box<compute::HttpHeaderAction>>) -> HeaderAction {
    let Some(action) = action else { return HeaderAction::default() };
    let additions = |headers: Option<Vec<compute::HttpHeaderOption>>| {
        let headers = headers.unwrap_or_default().into_iter();
        headers
            .map(|header| HeaderToAdd {
                name: header.header_name.unwrap_or_default(),
                value: header.header_value.unwrap_or_default(),
                replace: header.replace,
            })
            .collect()
    };
    HeaderAction {
        request_remove: action.request_headers_to_remove.unwrap_or_default(),
        request_add: additions(action.request_headers_to_add),
        response_remove: action.response_headers_to_remove.unwrap_or_default(),
        response_add: additions(action.response_headers_to_add),
    }
}

pub(super) fn route_match(
    reading: &mut Reading<'_>,
    rule: compute::HttpRouteRuleMatch,
) -> RouteMatch {
    let filters = rule.metadata_filters.is_some_and(|filters| !filters.is_empty());
    reading.unsupported("metadataFilters", filters, "Metadata filters are");
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    RouteMatch {
        prefix: given(rule.prefix_match),
        full_path: given(rule.full_path_match),
        regex: given(rule.regex_match),
        path_template: given(rule.path_template_match),
        ignore_case: rule.ignore_case.unwrap_or(false),
        headers: rule.header_matches.unwrap_or_default().into_iter().map(header_match).collect(),
        query_parameters: rule
            .query_parameter_matches
            .unwrap_or_default()
            .into_iter()
            .map(|parameter| QueryParameterMatch {
                name: parameter.name.unwrap_or_default(),
                exact: parameter.exact_match,
                regex: given(parameter.regex_match),
                present: parameter.present_match.unwrap_or(false),
            })
            .collect(),
    }
}

fn header_match(header: compute::HttpHeaderMatch) -> HeaderMatch {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let range = header.range_match.map(|range| {
        (range.range_start.map_or(0, |start| start.0), range.range_end.map_or(0, |end| end.0))
    });
    HeaderMatch {
        name: header.header_name.unwrap_or_default(),
        exact: header.exact_match,
        prefix: given(header.prefix_match),
        suffix: given(header.suffix_match),
        regex: given(header.regex_match),
        present: header.present_match.unwrap_or(false),
        range,
        invert: header.invert_match.unwrap_or(false),
    }
}
