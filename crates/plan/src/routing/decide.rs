//! One request through one URL map: where it goes and what is done to it on the way.
//!
//! The order is Google's: host rule, path matcher, rule, then its action; the endpoint group sees the
//! request as it will be sent, so a URL mask reads the rewritten host and path.
//!
//! Invariant: a decision that rewrites nothing and answers nothing allocates nothing.

use super::action::{Action, To, WeightedService};
use super::backend_service::EndpointGroupPlan;
use super::dice::{self, Draw};
use super::mask::Extracted;
use super::paths::PathPattern;
use super::predicate::{PathPredicate, host_of};
use super::rewrite::{self, Part};
use super::routes::{RouteMatch, RouteRule};
use super::rules::{HostPattern, Matcher, Table};
use super::{BackendServicePlan, Rules, SERVERLESS_TIMEOUT, UrlMapPlan};
use crate::decision::{
    CorsPolicy, Decision, Forward, HeaderAction, HeaderActions, Matched, RequestHead, Respond, Why,
};
use crate::fleet::{AccessVerdict, FleetPlan, RevisionPlan, ServicePlan, Tagged};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// What logs call a request that only a default answered.
pub(crate) const UNMATCHED: &str = "UNMATCHED";

/// The type of the pages of Google's front end.
const HTML: &str = "text/html; charset=UTF-8";

/// Where in the map a request arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Located<'p> {
    pub(crate) host: Option<&'p HostPattern>,
    pub(crate) matcher: Option<&'p Matcher>,
    pub(crate) rule: Rule<'p>,
    pub(crate) action: &'p Action,
    pub(crate) part: Part<'p>,
}

/// The rule that answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule<'p> {
    /// None: the default of the matcher, or of the map.
    Default,
    Path(&'p PathPattern),
    Route(&'p RouteRule, &'p RouteMatch),
}

impl<'p> Located<'p> {
    /// What logs call the rule.
    pub(crate) fn text(&self) -> &'p str {
        match self.rule {
            Rule::Default => UNMATCHED,
            Rule::Path(pattern) => &pattern.text,
            Rule::Route(_, part) => &part.text,
        }
    }
}

impl Rules {
    /// Finds the rule for a request.
    pub(crate) fn locate(&self, head: &RequestHead<'_>) -> Located<'_> {
        let host =
            self.hosts.find(head.authority).and_then(|at| self.host_patterns.get(at as usize));
        let matcher = host.and_then(|host| self.matchers.get(host.matcher as usize));
        let default =
            |action| Located { host, matcher, rule: Rule::Default, action, part: Part::None };
        let Some(matcher) = matcher else { return default(&self.default) };
        let found = match &matcher.table {
            Table::Paths(paths, actions) => paths.find(head.path).and_then(|pattern| {
                let action = actions.get(pattern.rule as usize)?;
                let part =
                    pattern.prefix().map_or(Part::Whole, |prefix| Part::Prefix(prefix.len()));
                Some((Rule::Path(pattern), action, part))
            }),
            Table::Routes(routes) => routes.find(head).map(|(rule, part)| {
                (Rule::Route(rule, part), &rule.action, matched_part(&part.path))
            }),
        };
        match found {
            Some((rule, action, part)) => {
                Located { host, matcher: Some(matcher), rule, action, part }
            }
            None => default(&matcher.default),
        }
    }
}

fn matched_part(path: &PathPredicate) -> Part<'_> {
    match path {
        PathPredicate::Any => Part::None,
        PathPredicate::Prefix(text) | PathPredicate::PrefixFolded(text) => Part::Prefix(text.len()),
        PathPredicate::Template(template) => Part::Template(template),
        PathPredicate::Exact(_) | PathPredicate::ExactFolded(_) | PathPredicate::Regex(_) => {
            Part::Whole
        }
    }
}

impl UrlMapPlan {
    /// Decides about a request. `dice` is any random number; the same number decides the same again.
    pub fn decide<'p>(
        &'p self,
        fleet: &'p FleetPlan,
        head: &RequestHead<'_>,
        dice: u64,
    ) -> Decision<'p> {
        let located = self.rules.locate(head);
        let weighted = located.action.drawn(dice);
        self.act(located, weighted, fleet, head, dice)
    }

    /// Decides about a request that is then carried out: a weighted backend service takes its turn,
    /// so that shares are exact. Whoever only asks must not do so.
    pub fn decide_in_turn<'p>(
        &'p self,
        fleet: &'p FleetPlan,
        head: &RequestHead<'_>,
        dice: u64,
    ) -> Decision<'p> {
        let located = self.rules.locate(head);
        let weighted = match &located.action.to {
            To::Weighted(weighted) => weighted.take_turn(),
            _ => None,
        };
        self.act(located, weighted, fleet, head, dice)
    }

    /// Carries a request from its rule to a revision, or to an answer.
    pub(crate) fn act<'p>(
        &'p self,
        located: Located<'p>,
        weighted: Option<&'p WeightedService>,
        fleet: &'p FleetPlan,
        head: &RequestHead<'_>,
        dice: u64,
    ) -> Decision<'p> {
        let action = located.action;
        let backend = self.backend(action, weighted);
        let weighted = weighted.map(|weighted| &weighted.header_action);
        let matched = Matched {
            rule: located.text(),
            path_matcher: located.matcher.map(|matcher| &*matcher.name),
            backend_service: backend,
        };
        let header_actions = self.header_actions(&located, weighted);
        let answer = Answer { matched, header_actions };
        if let To::Redirect(redirect) = &action.to {
            let location = rewrite::location(redirect, located.part, head);
            return answer.redirect(redirect.code.status(), location);
        }
        if let To::Nowhere = &action.to {
            return answer.plain(404, Cow::Borrowed(""), Why::NoRoute);
        }
        if let Some(origin) = action.cors.as_deref().and_then(|cors| preflight(cors, head)) {
            return answer.preflight(action.cors.as_deref(), origin);
        }
        let delay = action.fault.as_ref().and_then(|fault| fault.delay(dice));
        if let Some(status) = action.fault.as_ref().and_then(|fault| fault.abort(dice)) {
            return answer.abort(status, delay);
        }
        let Some(backend_service) = backend else { return answer.no_backend() };
        let Some(group) = backend_service.endpoints.as_deref() else { return answer.no_backend() };

        let authority = action.host_rewrite.as_deref();
        let path = rewrite::path(&action.path_rewrite, located.part, head.path);
        let sent_host = authority.unwrap_or(head.authority);
        let sent_path = path.as_deref().unwrap_or(head.path);
        match resolve(group, fleet, sent_host, sent_path, dice) {
            Ok((service, revision, is_tagged)) => Decision::Forward(Forward {
                matched: answer.matched,
                backend_service,
                service,
                revision,
                is_tagged,
                authority,
                path_and_query: path.map(|path| with_query(path, head.query)),
                header_actions: answer.header_actions,
                timeout: Some(timeout(action, backend_service)),
                retry: action.retry.as_deref(),
                delay,
                cors: action.cors.as_deref(),
            }),
            Err(why) if group.by_address && !matches!(why, Why::NoReadyRevision { .. }) => {
                answer.not_found(why)
            }
            Err(why) => {
                let (status, body) = explain_unserved(group, sent_host, sent_path, &why);
                answer.plain(status, body.into(), why)
            }
        }
    }

    /// The backend service of an action, of several the one that was chosen.
    pub(crate) fn backend(
        &self,
        action: &Action,
        weighted: Option<&WeightedService>,
    ) -> Option<&Arc<BackendServicePlan>> {
        match &action.to {
            To::Service(backend) => self.linked(*backend),
            To::Weighted(_) => self.linked(weighted?.backend),
            To::Redirect(_) | To::Nowhere => None,
        }
    }

    fn linked(&self, backend: u32) -> Option<&Arc<BackendServicePlan>> {
        self.backends.get(backend as usize)?.as_ref()
    }

    /// Header actions from the inside out: weighted service, rule, matcher, map.
    fn header_actions<'p>(
        &'p self,
        located: &Located<'p>,
        weighted: Option<&'p HeaderAction>,
    ) -> HeaderActions<'p> {
        let rule = match located.rule {
            Rule::Route(rule, _) => Some(&rule.header_action),
            Rule::Default | Rule::Path(_) => None,
        };
        let matcher = located.matcher.map(|matcher| &matcher.header_action);
        let levels = [weighted, rule, matcher, Some(&self.rules.header_action)];
        levels.into_iter().flatten().filter(|level| !level.is_empty()).collect()
    }
}

/// The bound of a request: its route's, within what the backend service allows.
pub(crate) fn timeout(action: &Action, backend_service: &BackendServicePlan) -> Duration {
    action.timeout.map_or(backend_service.timeout, |timeout| timeout.min(SERVERLESS_TIMEOUT))
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// The origin whose preflight the policy answers, if the request is one.
fn preflight<'h>(cors: &CorsPolicy, head: &RequestHead<'h>) -> Option<&'h str> {
    if head.method != "OPTIONS" {
        return None;
    }
    let asked = head.headers.first("access-control-request-method")?;
    let origin = std::str::from_utf8(head.headers.first("origin")?).ok()?;
    (!asked.is_empty() && cors.allows_origin(origin)).then_some(origin)
}

/// What an endpoint group reads from a request: the service's and the tag's name.
pub(crate) fn named<'u>(
    group: &'u EndpointGroupPlan,
    host: &'u str,
    path: &'u str,
) -> Option<(&'u str, Option<&'u str>)> {
    let extracted = match &group.mask {
        Some(mask) => mask.extract(host, path)?,
        None => Extracted::default(),
    };
    // What is declared outright wins over what a mask reads beside it.
    let service = group.service.as_ref().map(|service| service.name.as_str());
    let tag = group.tag.as_deref().or(extracted.tag);
    Some((service.or(extracted.service)?, tag))
}

/// The host as masks see it: without port, in lower case.
pub(crate) fn mask_host(authority: &str) -> SmallVec<[u8; 256]> {
    let mut host = SmallVec::from_slice(host_of(authority).as_bytes());
    host.make_ascii_lowercase();
    host
}

/// The service and revision that answer for an endpoint group, and whether a tag chose the revision.
pub(crate) fn resolve<'p>(
    group: &EndpointGroupPlan,
    fleet: &'p FleetPlan,
    authority: &str,
    path: &str,
    dice: u64,
) -> Result<(&'p Arc<ServicePlan>, &'p Arc<RevisionPlan>, bool), Why> {
    let host = mask_host(authority);
    // Lower-casing ASCII keeps UTF-8 what it was.
    let host = std::str::from_utf8(&host).unwrap_or_default();
    let (name, tag, service) = match group.by_address {
        true => match fleet.by_host(host) {
            Some(found) => (&*found.service.name().name, found.tag, Some(found.service)),
            None => (host, None, None),
        },
        false => {
            let (name, tag) = named(group, host, path).ok_or(Why::MaskMismatch)?;
            let region = group.name.region().unwrap_or_default();
            let services = fleet.services_in(&group.name.project, region);
            (name, tag, services.and_then(|services| services.get(name)))
        }
    };
    let Some(service) = service else {
        return Err(Why::ServiceNotFound { service: name.to_string() });
    };
    let no_revision = || Why::NoReadyRevision { service: name.to_string() };
    let revision = match tag.map(|tag| (tag, service.tagged(tag))) {
        None => service.pick(dice::draw(dice, Draw::Revision)).ok_or_else(no_revision)?,
        Some((_, Tagged::Revision(revision))) => revision,
        Some((_, Tagged::NotReady)) => return Err(no_revision()),
        Some((tag, Tagged::NoSuchTag)) => {
            let (service, tag) = (name.to_string(), tag.to_string());
            return Err(Why::TagNotFound { service, tag });
        }
    };
    Ok((service, revision, tag.is_some()))
}

/// The status and body for a request that no revision can answer.
fn explain_unserved(
    group: &EndpointGroupPlan,
    authority: &str,
    path: &str,
    why: &Why,
) -> (u16, String) {
    let group_name = &group.name.name;
    let region = group.name.region().unwrap_or_default();
    match why {
        Why::MaskMismatch => {
            let mask = group.mask.as_ref().map_or("", |mask| mask.as_str());
            let text = format!(
                "The URL mask {mask} of endpoint group {group_name} does not fit {}{path}.\n",
                host_of(authority)
            );
            (404, text)
        }
        Why::ServiceNotFound { service } => {
            let text = format!(
                "There is no Cloud Run service {service} in region {region}, which endpoint group \
                 {group_name} leads to.\n"
            );
            (404, text)
        }
        Why::TagNotFound { service, tag } => {
            let text = format!(
                "The Cloud Run service {service} has no tag {tag}, which endpoint group {group_name} \
                 leads to.\n"
            );
            (404, text)
        }
        Why::NoReadyRevision { service } => {
            (503, format!("No revision of the Cloud Run service {service} is ready.\n"))
        }
        _ => (503, String::new()),
    }
}

/// A response in the making.
struct Answer<'p> {
    matched: Matched<'p>,
    header_actions: HeaderActions<'p>,
}

impl<'p> Answer<'p> {
    fn respond(self, status: u16, body: Cow<'static, str>, why: Why) -> Respond<'p> {
        let Answer { matched, header_actions } = self;
        Respond { matched, status, headers: Vec::new(), body, delay: None, why, header_actions }
    }

    fn plain(self, status: u16, body: Cow<'static, str>, why: Why) -> Decision<'p> {
        let mut respond = self.respond(status, body, why);
        if !respond.body.is_empty() {
            respond.headers.push(("content-type", "text/plain".to_string()));
        }
        Decision::Respond(respond)
    }

    /// Google's page for an address nobody has.
    fn not_found(self, why: Why) -> Decision<'p> {
        let page = AccessVerdict::WrongIngress.refusal("");
        let (status, body) = page.map_or((404, String::new()), |page| (page.status, page.body));
        let mut respond = self.respond(status, Cow::Owned(body), why);
        respond.headers.push(("content-type", HTML.to_string()));
        Decision::Respond(respond)
    }

    fn no_backend(self) -> Decision<'p> {
        self.plain(503, Cow::Borrowed("no healthy upstream"), Why::NoBackend)
    }

    fn abort(self, status: u16, delay: Option<Duration>) -> Decision<'p> {
        let decision = self.plain(status, Cow::Borrowed("fault filter abort"), Why::FaultAbort);
        match decision {
            Decision::Respond(respond) => Decision::Respond(Respond { delay, ..respond }),
            forward => forward,
        }
    }

    fn redirect(self, status: u16, location: String) -> Decision<'p> {
        let mut respond = self.respond(status, Cow::Borrowed(""), Why::Redirect);
        respond.headers.push(("location", location));
        Decision::Respond(respond)
    }

    fn preflight(self, cors: Option<&CorsPolicy>, origin: &str) -> Decision<'p> {
        let mut respond = self.respond(200, Cow::Borrowed(""), Why::CorsPreflight);
        if let Some(cors) = cors {
            let mut add = |name, value: &str| {
                if !value.is_empty() {
                    respond.headers.push((name, value.to_string()));
                }
            };
            add("access-control-allow-origin", origin);
            add(
                "access-control-allow-credentials",
                if cors.allow_credentials { "true" } else { "" },
            );
            add("access-control-allow-methods", &cors.allow_methods);
            add("access-control-allow-headers", &cors.allow_headers);
            add("access-control-max-age", &cors.max_age.map(|s| s.to_string()).unwrap_or_default());
        }
        Decision::Respond(respond)
    }
}
