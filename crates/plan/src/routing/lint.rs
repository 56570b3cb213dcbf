//! What is allowed in a URL map and hardly meant: rules that never answer, and the like.
//!
//! Everything here is said of the map alone, so it can be run before the map is imported. A finding is
//! advice: none of it makes the map wrong.

use super::action::{Action, To};
use super::backend_service::EndpointGroupPlan;
use super::destination::{DEFAULT, Fields, RULE};
use super::predicate::PathPredicate;
use super::routes::{RouteMatch, RouteRule};
use super::rules::{Rules, Table};
use super::{BackendServicePlan, UrlMapPlan};
use model::Inventory;
use model::url_map::{Destination, UrlMap};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The kind of finding, as a word to search for.
    pub code: Cow<'static, str>,
    /// The field it is about.
    pub field: String,
    /// What is the matter, in a sentence.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} ({})", self.field, self.message, self.code)
    }
}

/// Looks a map over as it would be in a world: whether the URL masks behind it can fit is seen too.
pub fn lint_within(map: &Arc<UrlMap>, inventory: &Inventory) -> Vec<Finding> {
    let mut only = Inventory {
        backend_services: inventory.backend_services.clone(),
        endpoint_groups: inventory.endpoint_groups.clone(),
        ..Inventory::default()
    };
    only.url_maps.insert(map.name.clone(), Arc::clone(map));
    let (routing, _) = super::compile(&only, &super::Routing::default());
    routing.url_map(&map.name).map(|plan| plan.lint()).unwrap_or_default()
}

/// Looks a map over, without a world around it.
pub fn lint(map: &UrlMap) -> Vec<Finding> {
    let (rules, _) = Rules::compile(map);
    let mut findings = Findings::default();
    findings.matchers(map);
    findings.hosts(map);
    for (m, matcher) in rules.matchers.iter().enumerate() {
        if let Table::Routes(routes) = &matcher.table {
            findings.routes(m, routes.rules());
        }
    }
    findings.destinations(map);
    findings.found
}

impl UrlMapPlan {
    /// Looks the map over together with the backend services it names: masks that can never fit.
    pub fn lint(&self) -> Vec<Finding> {
        let mut findings = Findings { found: lint(&self.declared) };
        for pattern in &self.rules.host_patterns {
            let Some(matcher) = self.rules.matchers.get(pattern.matcher as usize) else { continue };
            let actions: Vec<&Action> = match &matcher.table {
                Table::Paths(_, actions) => actions.iter().collect(),
                Table::Routes(routes) => routes.rules().iter().map(|rule| &rule.action).collect(),
            };
            for action in actions.into_iter().chain([&matcher.default]) {
                for service in self.services_of(action) {
                    findings.mask(&pattern.text, action, service);
                }
            }
        }
        findings.found.dedup();
        findings.found
    }

    fn services_of<'p>(&'p self, action: &'p Action) -> Vec<&'p BackendServicePlan> {
        let numbers: Vec<u32> = match &action.to {
            To::Service(backend) => vec![*backend],
            To::Weighted(weighted) => weighted.services.iter().map(|s| s.backend).collect(),
            To::Redirect(_) | To::Nowhere => Vec::new(),
        };
        numbers.iter().filter_map(|n| self.backends.get(*n as usize)?.as_deref()).collect()
    }
}

#[derive(Default)]
struct Findings {
    found: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, code: &'static str, field: String, message: String) {
        self.found.push(Finding { code: code.into(), field, message });
    }

    fn matchers(&mut self, map: &UrlMap) {
        for (m, matcher) in map.path_matchers.iter().enumerate() {
            if !map.host_rules.iter().any(|rule| rule.path_matcher == matcher.name) {
                let message = format!("no host rule leads to path matcher {}", matcher.name);
                self.add("unreachable-matcher", format!("pathMatchers[{m}]"), message);
            }
        }
    }

    /// Hosts that another rule's wildcard covers too: which one answers is easily misjudged.
    fn hosts(&mut self, map: &UrlMap) {
        let hosts = map.host_rules.iter().enumerate().flat_map(|(r, rule)| {
            rule.hosts.iter().enumerate().map(move |(h, host)| (r, h, host, &rule.path_matcher))
        });
        let hosts: Vec<_> = hosts.collect();
        for (r, h, host, matcher) in &hosts {
            let covers = hosts.iter().filter(|(.., wildcard, other)| {
                let suffix = wildcard.strip_prefix('*').filter(|suffix| !suffix.is_empty());
                other != matcher
                    && wildcard != host
                    && suffix.is_some_and(|suffix| host.to_ascii_lowercase().ends_with(suffix))
            });
            if let Some((.., wildcard, _)) = covers.max_by_key(|(.., wildcard, _)| wildcard.len()) {
                let message =
                    format!("{host} is also covered by {wildcard}; the more exact of them answers");
                self.add("overlapping-hosts", format!("hostRules[{r}].hosts[{h}]"), message);
            }
        }
    }

    /// Route rules that an earlier rule always answers for.
    fn routes(&mut self, matcher: usize, rules: &[RouteRule]) {
        for (i, rule) in rules.iter().enumerate() {
            let earlier = rules[..i].iter().find(|earlier| {
                let shadowed = |part| earlier.matches.iter().any(|wider| covers(wider, part));
                !rule.matches.is_empty() && rule.matches.iter().all(shadowed)
            });
            if let Some(earlier) = earlier {
                let field = format!("pathMatchers[{matcher}].routeRules[{}]", rule.position);
                let message = format!(
                    "never answers: the rule of priority {} matches everything it does",
                    earlier.priority
                );
                self.add("shadowed-rule", field, message);
            }
        }
    }

    fn destinations(&mut self, map: &UrlMap) {
        self.destination("", &DEFAULT, &map.default);
        for (m, matcher) in map.path_matchers.iter().enumerate() {
            let at = format!("pathMatchers[{m}]");
            self.destination(&format!("{at}."), &DEFAULT, &matcher.default);
            for (r, rule) in matcher.path_rules.iter().enumerate() {
                self.destination(&format!("{at}.pathRules[{r}]."), &RULE, &rule.destination);
                self.prefix_slashes(
                    &format!("{at}.pathRules[{r}]"),
                    &rule.paths,
                    &rule.destination,
                );
            }
            for (r, rule) in matcher.route_rules.iter().enumerate() {
                self.destination(&format!("{at}.routeRules[{r}]."), &RULE, &rule.destination);
            }
        }
    }

    fn destination(&mut self, at: &str, fields: &Fields, destination: &Destination) {
        let action = destination.route_action.as_ref();
        for (i, service) in action.iter().flat_map(|a| &a.weighted_backend_services).enumerate() {
            if service.weight == 0 {
                let message = format!("{} has weight 0 and gets no request", service.service.name);
                self.add(
                    "weight-zero",
                    format!("{at}{}.weightedBackendServices[{i}]", fields.action),
                    message,
                );
            }
        }
        if let Some(redirect) = &destination.url_redirect
            && redirect.host.is_none()
            && redirect.path.is_none()
            && redirect.prefix.is_none()
            && !redirect.https
        {
            let message = "the redirect leads back to the URL that was asked for".to_string();
            self.add("redirect-loop", format!("{at}{}", fields.redirect), message);
        }
    }

    /// `/a/*` rewritten to `/b` makes `/bx` of `/a/x`.
    fn prefix_slashes(&mut self, at: &str, paths: &[String], destination: &Destination) {
        let rewrite = destination.route_action.as_ref().and_then(|a| a.url_rewrite.as_ref());
        let Some(prefix) = rewrite.and_then(|rewrite| rewrite.path_prefix.as_ref()) else { return };
        if paths.iter().any(|path| path.ends_with("/*")) && !prefix.ends_with('/') {
            let message = format!(
                "pathPrefixRewrite {prefix} has no slash at the end, and the slash before the * is \
                 replaced too"
            );
            self.add("missing-slash", format!("{at}.routeAction.urlRewrite"), message);
        }
    }

    fn mask(&mut self, host: &str, action: &Action, service: &BackendServicePlan) {
        let Some(EndpointGroupPlan { mask: Some(mask), name, .. }) = service.endpoints.as_deref()
        else {
            return;
        };
        if action.host_rewrite.is_some() {
            return;
        }
        let host = super::predicate::host_of(host).to_ascii_lowercase();
        let (labels, whole) = mask.literal_host_suffix();
        // Of `*-x.example.net` the first label is known in part only.
        let known = match host.strip_prefix("*-") {
            Some(rest) => rest.split_once('.').map_or("", |(_, known)| known),
            None => host.trim_start_matches('*'),
        };
        let mut actual = known.rsplit('.').filter(|label| !label.is_empty());
        let open = host.starts_with('*');
        let differs = labels.iter().any(|label| match actual.next() {
            Some(own) => own != *label,
            None => !open,
        });
        // A placeholder needs a label to stand for.
        let missing = !whole && !open && actual.next().is_none();
        if differs || missing {
            let message = format!(
                "the URL mask {mask} of endpoint group {} can never fit the host {host}",
                name.name
            );
            self.add("mask-never-fits", format!("host {host}"), message);
        }
    }
}

/// Whether everything that one match takes is also taken by a wider one.
fn covers(wider: &RouteMatch, part: &RouteMatch) -> bool {
    let path = match (&wider.path, &part.path) {
        (PathPredicate::Any, _) => true,
        (PathPredicate::Prefix(prefix), _) if &**prefix == "/" => true,
        (wide, PathPredicate::Exact(text)) => wide.is_match(text),
        (PathPredicate::Prefix(wide), PathPredicate::Prefix(text)) => text.starts_with(&**wide),
        (PathPredicate::Prefix(wide), PathPredicate::Template(template)) => {
            template.literal_prefix().starts_with(&**wide)
        }
        (
            PathPredicate::PrefixFolded(wide),
            PathPredicate::Prefix(text) | PathPredicate::PrefixFolded(text),
        ) => text.to_ascii_lowercase().starts_with(&**wide),
        (wide, narrow) => wide == narrow,
    };
    path && wider.conditions.iter().all(|condition| part.conditions.contains(condition))
}
