//! Destinations of rules and defaults, judged and compiled into actions.

use super::action::{Action, Fault, PathRewrite, To, Weighted, WeightedService};
use super::fault::At;
use super::header_action;
use super::hosts;
use super::predicate::PathPredicate;
use super::routes::RouteMatch;
use super::rules::Compiler;
use super::template::TemplateRewrite;
use crate::decision::{CorsPolicy, RetryPolicy};
use model::url_map::{
    self, Destination, FaultInjection, RouteAction, UrlRedirect, UrlRewrite, WeightedBackendService,
};
use std::time::Duration;

/// The greatest weight of a backend service.
pub(crate) const WEIGHT_MAX: u32 = 1000;
/// The longest path of a rewrite or redirect, in characters.
const PATH_CHARS_MAX: usize = 1024;
/// The longest host of a rewrite or redirect, in characters.
const HOST_CHARS_MAX: usize = 255;
/// The number of retries of a policy that does not say.
const RETRIES_DEFAULT: u32 = 1;

/// How the three fields of a destination are called where it stands.
pub(crate) struct Fields {
    service: &'static str,
    pub(crate) redirect: &'static str,
    pub(crate) action: &'static str,
}

/// In a rule.
pub(crate) const RULE: Fields =
    Fields { service: "service", redirect: "urlRedirect", action: "routeAction" };
/// In a path matcher or the map itself.
pub(crate) const DEFAULT: Fields = Fields {
    service: "defaultService",
    redirect: "defaultUrlRedirect",
    action: "defaultRouteAction",
};

impl<'m> Compiler<'m> {
    /// The action of a path rule, or of a route rule with its matches.
    pub(crate) fn rule_action(
        &mut self,
        at: &At<'_>,
        destination: &'m Destination,
        matches: Option<&[RouteMatch]>,
    ) -> Action {
        self.action(at, destination, &RULE, matches)
    }

    /// The action of the map's or a matcher's default.
    pub(crate) fn default_action(&mut self, at: &At<'_>, destination: &'m Destination) -> Action {
        self.action(at, destination, &DEFAULT, None)
    }

    fn action(
        &mut self,
        at: &At<'_>,
        destination: &'m Destination,
        fields: &Fields,
        matches: Option<&[RouteMatch]>,
    ) -> Action {
        let to = self.to(at, destination, fields);
        let mut action = Action { to, ..Action::default() };
        let Some(route_action) = &destination.route_action else { return action };
        let at = at.field(fields.action);
        self.rewrite(&at.field("urlRewrite"), route_action, matches, &mut action);
        self.clocks(&at, route_action, &mut action);
        if let Some(cors) = &route_action.cors_policy {
            action.cors = self.cors(&at.field("corsPolicy"), cors);
        }
        if let Some(fault) = &route_action.fault_injection {
            action.fault = self.fault(&at.field("faultInjectionPolicy"), fault);
        }
        action
    }

    fn to(&mut self, at: &At<'_>, destination: &'m Destination, fields: &Fields) -> To {
        let Fields { service, redirect, action } = fields;
        let weighted = destination.route_action.as_ref().map(|a| &a.weighted_backend_services[..]);
        let weighted = weighted.filter(|weighted| !weighted.is_empty());
        let action_at = at.field(action);
        match (&destination.service, &destination.url_redirect, weighted) {
            (Some(name), None, None) => To::Service(self.backend(name)),
            (None, None, Some(weighted)) => {
                self.weighted(&action_at, weighted).map_or(To::Nowhere, To::Weighted)
            }
            (None, Some(_), None) if destination.route_action.is_some() => {
                let why = format!("{action} cannot be specified together with {redirect}.");
                self.faults.invalid(&action_at, "", why);
                To::Nowhere
            }
            (None, Some(target), None) => self.redirect(&at.field(redirect), target),
            (None, None, None) => {
                self.faults.required(&at.field(service));
                To::Nowhere
            }
            (given, also, _) => {
                let why = format!(
                    "Exactly one of {service}, {redirect} or {action}.weightedBackendServices must be \
                     specified."
                );
                let extra = if given.is_some() && also.is_some() { redirect } else { action };
                self.faults.invalid(&at.field(extra), "", why);
                To::Nowhere
            }
        }
    }

    fn weighted(
        &mut self,
        at: &At<'_>,
        services: &'m [WeightedBackendService],
    ) -> Option<Weighted> {
        let mut weighted = Vec::new();
        let mut total = 0;
        for (i, service) in services.iter().enumerate() {
            let at = at.item("weightedBackendServices", i);
            if service.weight > WEIGHT_MAX {
                let why = format!("Weight must be between 0 and {WEIGHT_MAX}.");
                self.faults.invalid(&at.field("weight"), service.weight, why);
                return None;
            }
            total += service.weight;
            let header_at = at.field("headerAction");
            weighted.push(WeightedService {
                up_to: total,
                weight: service.weight,
                backend: self.backend(&service.service),
                header_action: header_action::compile(
                    &service.header_action,
                    &header_at,
                    &mut self.faults,
                ),
            });
        }
        if total == 0 {
            let why = "The sum of the weights must be greater than 0.";
            self.faults.invalid(&at.field("weightedBackendServices"), 0, why);
            return None;
        }
        Some(Weighted::new(weighted))
    }

    fn redirect(&mut self, at: &At<'_>, redirect: &UrlRedirect) -> To {
        let before = self.faults.count();
        if redirect.path.is_some() && redirect.prefix.is_some() {
            let why = "Only one of pathRedirect or prefixRedirect can be specified.";
            let value = redirect.prefix.as_deref().unwrap_or_default();
            self.faults.invalid(&at.field("prefixRedirect"), value, why);
        }
        self.host(&at.field("hostRedirect"), redirect.host.as_deref());
        self.path(&at.field("pathRedirect"), redirect.path.as_deref(), true);
        self.path(&at.field("prefixRedirect"), redirect.prefix.as_deref(), false);
        self.redirects_to_https |= redirect.https;
        match before == self.faults.count() {
            true => To::Redirect(Box::new(redirect.clone())),
            false => To::Nowhere,
        }
    }

    fn host(&mut self, at: &At<'_>, host: Option<&str>) {
        let Some(host) = host else { return };
        if !(1..=HOST_CHARS_MAX).contains(&host.chars().count()) {
            let why = format!("The value must be between 1 and {HOST_CHARS_MAX} characters long.");
            self.faults.invalid(at, host, why);
        } else if host.contains('*') || hosts::check_pattern(host).is_err() {
            self.faults.invalid(
                at,
                host,
                "The value must be a valid hostname, with an optional port.",
            );
        }
    }

    /// A path that is put into a URL. Only a whole path may bring a query along.
    fn path(&mut self, at: &At<'_>, path: Option<&str>, may_have_query: bool) {
        let Some(path) = path else { return };
        if !(1..=PATH_CHARS_MAX).contains(&path.chars().count()) {
            let why = format!("The value must be between 1 and {PATH_CHARS_MAX} characters long.");
            self.faults.invalid(at, path, why);
        } else if !path.starts_with('/') {
            self.faults.invalid(at, path, "The value must begin with '/'.");
        } else if let Some(c) = path.chars().find(|c| !is_path_char(*c, may_have_query)) {
            self.faults.invalid(at, path, format!("The value must not contain {c:?}."));
        }
    }

    fn rewrite(
        &mut self,
        at: &At<'_>,
        route_action: &RouteAction,
        matches: Option<&[RouteMatch]>,
        action: &mut Action,
    ) {
        let Some(UrlRewrite { host, path_prefix, path_template }) = &route_action.url_rewrite
        else {
            return;
        };
        self.host(&at.field("hostRewrite"), host.as_deref());
        action.host_rewrite = host.as_deref().map(Into::into);
        self.path(&at.field("pathPrefixRewrite"), path_prefix.as_deref(), false);
        if let Some(prefix) = path_prefix {
            action.path_rewrite = PathRewrite::Prefix(prefix.as_str().into());
        }
        let Some(template) = path_template else { return };
        let at = at.field("pathTemplateRewrite");
        if path_prefix.is_some() {
            let why = "Only one of pathPrefixRewrite or pathTemplateRewrite can be specified.";
            self.faults.invalid(&at, template, why);
            return;
        }
        match self.template_rewrite(template, matches) {
            Ok(rewrite) => action.path_rewrite = PathRewrite::Template(Box::new(rewrite)),
            Err(why) => self.faults.invalid(&at, template, why),
        }
    }

    fn template_rewrite(
        &self,
        source: &str,
        matches: Option<&[RouteMatch]>,
    ) -> Result<TemplateRewrite, String> {
        let Some(matches) = matches else {
            return Err(
                "pathTemplateRewrite is exclusively allowed at the Route Rule level.".into()
            );
        };
        if source.chars().count() > PATH_CHARS_MAX {
            return Err(format!("The value must be at most {PATH_CHARS_MAX} characters long."));
        }
        let rewrite = TemplateRewrite::new(source)?;
        for rule in matches {
            let PathPredicate::Template(template) = &rule.path else {
                return Err("pathTemplateRewrite requires every match rule to have a \
                            pathTemplateMatch."
                    .into());
            };
            if template.variables().is_empty() {
                return Err("pathTemplateRewrite requires a pathTemplateMatch with at least one \
                            variable."
                    .into());
            }
            let known = |name: &str| template.variables().iter().any(|known| known == name);
            if let Some(unknown) = rewrite.variables().find(|name| !known(name)) {
                return Err(format!("The variable '{unknown}' is not in the pathTemplateMatch."));
            }
        }
        Ok(rewrite)
    }

    fn clocks(&mut self, at: &At<'_>, route_action: &RouteAction, action: &mut Action) {
        action.timeout = route_action.timeout;
        self.positive(&at.field("timeout"), route_action.timeout);
        let Some(policy) = &route_action.retry_policy else { return };
        let at = at.field("retryPolicy");
        self.positive(&at.field("perTryTimeout"), policy.per_try_timeout);
        let retries = policy.retries.unwrap_or(RETRIES_DEFAULT);
        if retries == 0 {
            let why = "numRetries must be greater than 0.";
            self.faults.invalid(&at.field("numRetries"), retries, why);
        }
        let conditions = policy.conditions.clone();
        let per_try_timeout = policy.per_try_timeout;
        action.retry = Some(Box::new(RetryPolicy { retries, per_try_timeout, conditions }));
    }

    fn positive(&mut self, at: &At<'_>, duration: Option<Duration>) {
        if duration == Some(Duration::ZERO) {
            self.faults.invalid(at, "0s", "The duration must be greater than 0.");
        }
    }

    fn cors(&mut self, at: &At<'_>, policy: &url_map::CorsPolicy) -> Option<Box<CorsPolicy>> {
        if let Some(first) = policy.allow_origin_regexes.first() {
            let why = "Regular expressions for origins are not supported for load balancing scheme \
                       INTERNAL_MANAGED.";
            self.faults.invalid(&at.item("allowOriginRegexes", 0), first, why);
        }
        let lists = [
            ("allowOrigins", &policy.allow_origins),
            ("allowMethods", &policy.allow_methods),
            ("allowHeaders", &policy.allow_headers),
            ("exposeHeaders", &policy.expose_headers),
        ];
        for (field, values) in lists {
            for (i, value) in values.iter().enumerate() {
                // Each becomes a part of a header of the balancer's own.
                if value.is_empty() || !value.bytes().all(|c| c.is_ascii_graphic() && c != b',') {
                    let why = "The value must be a non-empty printable text without commas.";
                    self.faults.invalid(&at.item(field, i), value, why);
                }
            }
        }
        (!policy.disabled).then(|| {
            Box::new(CorsPolicy {
                allow_origins: policy.allow_origins.clone(),
                allow_methods: policy.allow_methods.join(","),
                allow_headers: policy.allow_headers.join(","),
                expose_headers: policy.expose_headers.join(","),
                max_age: policy.max_age_seconds,
                allow_credentials: policy.allow_credentials,
            })
        })
    }

    fn fault(&mut self, at: &At<'_>, fault: &FaultInjection) -> Option<Box<Fault>> {
        let mut abort = None;
        if let Some((status, share)) = fault.abort {
            match u16::try_from(status).ok().filter(|status| (200..=599).contains(status)) {
                Some(status) => abort = Some((status, share)),
                None => {
                    let at = at.field("abort");
                    let why = "HTTP status must be between 200 and 599.";
                    self.faults.invalid(&at.field("httpStatus"), status, why);
                }
            }
        }
        Some(Box::new(Fault { abort, delay: fault.delay }))
    }
}

/// Whether a character may stand in a path as it is (RFC 3986, with a query when that is allowed).
fn is_path_char(c: char, may_have_query: bool) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@/%".contains(c) || (may_have_query && c == '?')
}
