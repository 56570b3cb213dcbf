//! A decision with its reasons: what was considered, what matched, what was changed, who answers.
//!
//! The rule and the answer come from the very functions that serve; around them every other rule is asked
//! by itself, to say why it did not answer.
//!
//! Invariant: `answer` is what [`UrlMapPlan::decide`] gives for the same arguments.

mod nearness;
mod text;

use super::UrlMapPlan;
use super::action::{Action, PathRewrite, To, WeightedService};
use super::decide::{Located, Rule, UNMATCHED, mask_host, named};
use super::paths::PathPattern;
use super::predicate::PathPredicate;
use super::routes::{RouteMatch, RouteRule};
use super::rules::{Matcher, Table};
use crate::decision::{Decision, Forward, HeaderEdit, RequestHead, Respond, TemplatePart, Why};
use crate::fleet::{AccessVerdict, Arrival, Caller, FleetPlan};
use serde::Serialize;

/// The most rules of one kind that are listed.
const CONSIDERED_MAX: usize = 20;

/// Why a request is answered the way it is. Everything is text, for people and for JSON alike.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Method and URL.
    pub request: String,
    /// The URL map.
    pub url_map: String,
    /// The host rules that were considered: the one that matched, or the nearest misses.
    pub hosts: Vec<Considered>,
    /// The path matcher that was asked, if a host rule matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_matcher: Option<String>,
    /// The rules of the matcher: the one that matched and those asked before it, or the nearest misses.
    pub rules: Vec<Considered>,
    /// How many more hosts and rules there are than are listed.
    pub more: usize,
    /// The rule as logs name it; `UNMATCHED` for a default.
    pub matched_rule: String,
    /// The backend services that get a share of such requests.
    pub shares: Vec<Share>,
    /// How the request is changed on its way: rewrites and header edits, in order.
    pub changes: Vec<String>,
    /// What the endpoint group does with the URL.
    pub endpoint_group: Option<EndpointGroupExplanation>,
    /// What limits, repeats or disturbs the request.
    pub policies: Vec<String>,
    /// What becomes of it.
    pub answer: Answer,
}

/// A host or rule that was considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Considered {
    /// The rule, as it was declared.
    pub rule: String,
    /// Whether it is the one that answers.
    pub matched: bool,
    /// Why, or why not.
    pub why: String,
}

/// A backend service and its share of the requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The backend service.
    pub backend_service: String,
    /// Its weight, when services are weighted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Its share in percent.
    pub percent: f64,
    /// Whether this request goes there.
    pub chosen: bool,
}

/// What an endpoint group makes of a URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointGroupExplanation {
    /// The group.
    pub name: String,
    /// Its URL mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_mask: Option<String>,
    /// The URL that the mask was held against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The service it named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The tag it named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// What becomes of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The service that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The revision that answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Whether the service lets a request without a token in: `ingress` first, then access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// The status, when the balancer answers by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Where a redirect leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// In a sentence.
    pub summary: String,
}

impl UrlMapPlan {
    /// Explains the decision about a request.
    pub fn explain(
        &self,
        fleet: &FleetPlan,
        head: &RequestHead<'_>,
        caller: Caller<'_>,
        dice: u64,
    ) -> Explanation {
        let located = self.rules.locate(head);
        let weighted = located.action.drawn(dice);
        let decision = self.act(located, weighted, fleet, head, dice);
        let mut explanation = Explanation {
            request: format!("{head:?}"),
            url_map: self.name.to_string(),
            path_matcher: located.matcher.map(|matcher| matcher.name.to_string()),
            matched_rule: located.text().to_string(),
            shares: self.shares(located.action, dice),
            policies: policies(located.action),
            ..Explanation::default()
        };
        self.hosts(&located, head, &mut explanation);
        rules(&located, head, &mut explanation);
        explanation.answer = match &decision {
            Decision::Forward(forward) => {
                changes_of_path(&located, head, &mut explanation.changes);
                self.header_changes(&decision, &mut explanation.changes);
                let own = forward.revision.timeout;
                explanation.policies.push(format!("the revision's own timeout is {own:?}"));
                forwarded(forward, caller)
            }
            Decision::Respond(respond) => {
                if was_to_be_sent(&decision) {
                    changes_of_path(&located, head, &mut explanation.changes);
                }
                self.header_changes(&decision, &mut explanation.changes);
                responded(respond)
            }
        };
        explanation.endpoint_group = self.endpoint_group(&located, weighted, head, &decision);
        if let Some(share) = explanation.shares.iter().find(|share| share.chosen)
            && self.backend(located.action, weighted).is_none()
        {
            explanation.answer.summary =
                format!("goes to {}; what is behind it is not known here", share.backend_service);
            explanation.answer.status = None;
        }
        explanation
    }

    fn hosts(&self, located: &Located<'_>, head: &RequestHead<'_>, into: &mut Explanation) {
        let considered = |text: &str, matched, why: &str| Considered {
            rule: text.to_string(),
            matched,
            why: why.to_string(),
        };
        if let Some(host) = located.host {
            let why = match (host.text.as_bytes().first(), &*host.text) {
                (_, "*") => "takes every host that no other host rule takes",
                (Some(b'*'), _) => "the longest wildcard that fits",
                _ => "the very host",
            };
            into.hosts.push(considered(&host.text, true, why));
            return;
        }
        let authority = head.authority.to_ascii_lowercase();
        let mut misses: Vec<_> = self.rules.host_patterns.iter().collect();
        misses.sort_by_key(|host| std::cmp::Reverse(nearness::of_host(&host.text, &authority)));
        into.more += misses.len().saturating_sub(CONSIDERED_MAX);
        let listed = misses.iter().take(CONSIDERED_MAX);
        into.hosts.extend(listed.map(|host| {
            considered(&host.text, false, nearness::host_miss(&host.text, &authority))
        }));
    }

    fn shares(&self, action: &Action, dice: u64) -> Vec<Share> {
        let name = |backend: u32| {
            let name = self.rules.services.get(backend as usize);
            name.map(ToString::to_string).unwrap_or_default()
        };
        match &action.to {
            To::Service(backend) => {
                let backend_service = name(*backend);
                vec![Share { backend_service, weight: None, percent: 100.0, chosen: true }]
            }
            To::Weighted(weighted) => {
                let chosen = weighted.pick(dice).map(|chosen| chosen.up_to);
                let share = |service: &WeightedService| Share {
                    backend_service: name(service.backend),
                    weight: Some(service.weight),
                    percent: 100.0 * f64::from(service.weight) / f64::from(weighted.total.max(1)),
                    chosen: service.weight > 0 && chosen == Some(service.up_to),
                };
                weighted.services.iter().map(share).collect()
            }
            To::Redirect(_) | To::Nowhere => Vec::new(),
        }
    }

    fn header_changes(&self, decision: &Decision<'_>, changes: &mut Vec<String>) {
        let (actions, service) = match decision {
            Decision::Forward(forward) => (&forward.header_actions, Some(forward.backend_service)),
            Decision::Respond(respond) => (&respond.header_actions, None),
        };
        if was_to_be_sent(decision) {
            actions.iter().for_each(|action| edits("request", &action.request, changes));
            service.iter().for_each(|service| edits("request", &service.request_headers, changes));
        }
        actions.iter().for_each(|action| edits("response", &action.response, changes));
        service.iter().for_each(|service| edits("response", &service.response_headers, changes));
    }

    fn endpoint_group(
        &self,
        located: &Located<'_>,
        weighted: Option<&WeightedService>,
        head: &RequestHead<'_>,
        decision: &Decision<'_>,
    ) -> Option<EndpointGroupExplanation> {
        let group = self.backend(located.action, weighted)?.endpoints.as_deref()?;
        let (authority, path) = sent(located, head, decision);
        let host = mask_host(&authority);
        let host = std::str::from_utf8(&host).unwrap_or_default();
        let found = named(group, host, &path);
        Some(EndpointGroupExplanation {
            name: group.name.to_string(),
            url_mask: group.mask.as_ref().map(ToString::to_string),
            url: group.mask.as_ref().map(|_| format!("{host}{path}")),
            service: found.map(|(service, _)| service.to_string()),
            tag: found.and_then(|(_, tag)| tag).map(str::to_string),
        })
    }
}

/// The authority and path that reach the endpoint group.
fn sent(
    located: &Located<'_>,
    head: &RequestHead<'_>,
    decision: &Decision<'_>,
) -> (String, String) {
    let action = located.action;
    let authority = action.host_rewrite.as_deref().unwrap_or(head.authority);
    let path = match decision {
        Decision::Forward(Forward { path_and_query: Some(path), .. }) => {
            path.split('?').next().unwrap_or_default().to_string()
        }
        _ => super::rewrite::path(&action.path_rewrite, located.part, head.path)
            .unwrap_or_else(|| head.path.to_string()),
    };
    (authority.to_string(), path)
}

fn rules(located: &Located<'_>, head: &RequestHead<'_>, into: &mut Explanation) {
    let Some(matcher) = located.matcher else { return };
    match &matcher.table {
        Table::Paths(paths, _) => path_rules(paths.patterns(), located, head, into),
        Table::Routes(routes) => route_rules(routes.rules(), located, head, into),
    }
    if let Rule::Default = located.rule
        && let Matcher { name, .. } = matcher
        && into.rules.is_empty()
    {
        let why = "the path matcher has no rules".to_string();
        into.rules.push(Considered { rule: format!("default of {name}"), matched: true, why });
    }
}

fn path_rules(
    patterns: &[PathPattern],
    located: &Located<'_>,
    head: &RequestHead<'_>,
    into: &mut Explanation,
) {
    let chosen = match located.rule {
        Rule::Path(pattern) => Some(pattern),
        _ => None,
    };
    let others =
        patterns.iter().filter(|pattern| chosen.is_none_or(|c| !std::ptr::eq(c, *pattern)));
    let mut others: Vec<_> = others.collect();
    others.sort_by_key(|pattern| {
        let near = nearness::of_path(&pattern.text, head.path);
        std::cmp::Reverse((pattern.is_match(head.path), near))
    });
    if let Some(pattern) = chosen {
        let exact = pattern.prefix().is_none();
        let why = if exact { "the very path" } else { "the longest pattern that fits" };
        into.rules.push(Considered {
            rule: pattern.text.to_string(),
            matched: true,
            why: why.to_string(),
        });
    }
    into.more += others.len().saturating_sub(CONSIDERED_MAX);
    for pattern in others.into_iter().take(CONSIDERED_MAX) {
        let why = match pattern.is_match(head.path) {
            true => "fits, and is shorter".to_string(),
            false => nearness::path_miss(&pattern.text, head.path),
        };
        into.rules.push(Considered { rule: pattern.text.to_string(), matched: false, why });
    }
}

fn route_rules(
    rules: &[RouteRule],
    located: &Located<'_>,
    head: &RequestHead<'_>,
    into: &mut Explanation,
) {
    let chosen = match located.rule {
        Rule::Route(rule, _) => Some(rule.priority),
        _ => None,
    };
    let asked = rules.iter().filter(|rule| chosen.is_none_or(|chosen| rule.priority <= chosen));
    let mut asked: Vec<(&RouteRule, usize, String)> = asked
        .map(|rule| {
            let (failed, why) = route_miss(rule, head);
            (rule, failed, why)
        })
        .collect();
    if chosen.is_none() {
        // The fewer conditions failed, the nearer the miss.
        asked.sort_by_key(|(_, failed, _)| *failed);
    } else {
        asked.reverse();
    }
    into.more += asked.len().saturating_sub(CONSIDERED_MAX);
    for (rule, _, why) in asked.into_iter().take(CONSIDERED_MAX) {
        let matched = chosen == Some(rule.priority);
        let why = match located.rule {
            Rule::Route(_, part) if matched => format!("all of it holds: {}", conditions(part)),
            _ => why,
        };
        let rule = format!("routeRules[{}], priority {}", rule.position, rule.priority);
        into.rules.push(Considered { rule, matched, why });
    }
}

fn conditions(part: &RouteMatch) -> String {
    let mut text = part.path.to_string();
    for condition in &part.conditions {
        text.push_str(&format!(", {condition}"));
    }
    text
}

/// How many conditions of a rule's nearest match fail, and which.
fn route_miss(rule: &RouteRule, head: &RequestHead<'_>) -> (usize, String) {
    let misses = rule.matches.iter().map(|part| {
        let mut failed = Vec::new();
        if !part.path.is_match(head.path) {
            failed.push(path_condition_miss(&part.path, head.path));
        }
        for condition in part.conditions.iter().filter(|condition| !condition.is_match(head)) {
            let found = condition.subject.value(head);
            let found = match &found {
                Some(value) => format!("is \"{}\"", String::from_utf8_lossy(value)),
                None => "is absent".to_string(),
            };
            failed.push(format!("{condition} fails: it {found}"));
        }
        (failed.len(), failed.join("; "))
    });
    misses.min_by_key(|(failed, _)| *failed).unwrap_or((usize::MAX, "it has no match rules".into()))
}

fn path_condition_miss(path: &PathPredicate, actual: &str) -> String {
    match path {
        PathPredicate::Prefix(text) => match nearness::case_only(text, actual) {
            true => format!("{path} fails only by the case of letters"),
            false => format!("{path} fails"),
        },
        _ => format!("{path} fails"),
    }
}

/// Whether the request goes on, or would if its backend could be found: rewrites and header actions
/// apply before that.
fn was_to_be_sent(decision: &Decision<'_>) -> bool {
    match decision {
        Decision::Forward(_) => true,
        Decision::Respond(respond) => !matches!(
            respond.why,
            Why::Redirect | Why::CorsPreflight | Why::FaultAbort | Why::NoRoute
        ),
    }
}

fn changes_of_path(located: &Located<'_>, head: &RequestHead<'_>, changes: &mut Vec<String>) {
    if let Some(host) = &located.action.host_rewrite {
        changes.push(format!("host {} becomes {host}", head.authority));
    }
    let rewritten = super::rewrite::path(&located.action.path_rewrite, located.part, head.path);
    let Some(path) = rewritten else { return };
    let path = head.query.map_or(path.clone(), |query| format!("{path}?{query}"));
    let how = match &located.action.path_rewrite {
        PathRewrite::Template(rewrite) => format!("pathTemplateRewrite {}", rewrite.as_str()),
        PathRewrite::Prefix(prefix) => format!("pathPrefixRewrite {prefix}"),
        PathRewrite::None => String::new(),
    };
    changes.push(format!("path {} becomes {path} by {how}", head.path));
    changes.push(format!("request header x-envoy-original-path: {}", head.path));
}

fn edits(side: &str, edit: &HeaderEdit, changes: &mut Vec<String>) {
    changes.extend(edit.remove.iter().map(|name| format!("{side} header {name} is removed")));
    changes.extend(edit.add.iter().map(|addition| {
        let value: String = addition
            .value
            .0
            .iter()
            .map(|part| match part {
                TemplatePart::Literal(text) => text.clone(),
                TemplatePart::Variable(name) => format!("{{{name}}}"),
            })
            .collect();
        let how = if addition.replace { "is set to" } else { "is appended" };
        format!("{side} header {} {how} {value:?}", addition.name)
    }));
}

fn policies(action: &Action) -> Vec<String> {
    let mut policies = Vec::new();
    if let To::Redirect(_) | To::Nowhere = action.to {
        return policies;
    }
    let declared = action.timeout.map(|timeout| format!("{timeout:?} by the route"));
    let declared = declared.unwrap_or_else(|| "3600s, fixed for serverless backends".into());
    policies.push(format!("timeout {declared}"));
    policies.push(match &action.retry {
        None => {
            "one retry of requests without a body that got 502, 503 or 504 (the default)".into()
        }
        Some(retry) => {
            let words: Vec<&str> = retry.conditions.iter().map(|c| c.word()).collect();
            let each =
                retry.per_try_timeout.map(|each| format!(", {each:?} each")).unwrap_or_default();
            format!("up to {} retries on {}{each}", retry.retries, words.join(", "))
        }
    });
    if let Some(fault) = &action.fault {
        policies
            .extend(fault.delay.map(|(delay, share)| format!("delay of {delay:?} for {share}")));
        policies
            .extend(fault.abort.map(|(status, share)| format!("abort with {status} for {share}")));
    }
    if let Some(cors) = &action.cors {
        policies.push(format!("CORS for {}", cors.allow_origins.join(", ")));
    }
    policies
}

fn forwarded(forward: &Forward<'_>, caller: Caller<'_>) -> Answer {
    let verdict = forward.service.admits(Arrival::InternalLoadBalancer, caller);
    let access = match verdict {
        AccessVerdict::Admitted => "admitted",
        AccessVerdict::WrongIngress => "refused: the ingress setting does not let it in",
        AccessVerdict::Unauthenticated => {
            "refused: there is no token and the service is not public"
        }
        AccessVerdict::InvalidToken => "refused: the token is bad or for another audience",
        AccessVerdict::NotAllowed => "refused: the caller may not invoke the service",
    };
    let revision = forward.revision.name.name.to_string();
    let summary = match verdict {
        AccessVerdict::Admitted => format!("revision {revision} answers"),
        _ => format!("service {} {access}", forward.service.name().name),
    };
    Answer {
        service: Some(forward.service.name().to_string()),
        revision: Some(revision),
        access: Some(access.to_string()),
        summary,
        ..Answer::default()
    }
}

fn responded(respond: &Respond<'_>) -> Answer {
    let location = respond.headers.iter().find(|(name, _)| *name == "location");
    let location = location.map(|(_, value)| value.clone());
    let why = match &respond.why {
        Why::Redirect => format!("redirect to {}", location.as_deref().unwrap_or_default()),
        Why::CorsPreflight => "the CORS policy answers the preflight".to_string(),
        Why::FaultAbort => "fault injection aborts it".to_string(),
        Why::NoRoute => format!("the URL map has nothing for it ({UNMATCHED})"),
        Why::NoBackend => "the backend service has no backend".to_string(),
        Why::MaskMismatch => "the URL mask does not fit".to_string(),
        Why::ServiceNotFound { service } => format!("there is no service {service}"),
        Why::TagNotFound { service, tag } => format!("service {service} has no tag {tag}"),
        Why::NoReadyRevision { service } => format!("service {service} has no ready revision"),
    };
    let summary = format!("the balancer answers {}: {why}", respond.status);
    Answer { status: Some(respond.status), location, summary, ..Answer::default() }
}
