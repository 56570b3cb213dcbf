//! One URL map compiled into tables, with everything that is wrong with it.
//!
//! The compiler judges and builds in one pass: what it cannot build it reports, and what it reports is
//! left out or leads nowhere. Backend services are numbers here, so a map is compiled once however often
//! the services it names change.
//!
//! Invariant: every number of a backend service is below the length of `services`.

use super::action::{Action, BackendId};
use super::fault::{At, Faults};
use super::header_action;
use super::hosts::{self, HostTable};
use super::paths::{self, PathPattern, PathTable};
use super::routes::{RouteRule, RouteTable};
use crate::decision::HeaderAction;
use model::url_map::{PathMatcher, PathRule, UrlMap};
use model::{Problem, ResourceName};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

/// The most host rules of a URL map.
pub(crate) const HOST_RULES_MAX: usize = 2000;
/// The most path matchers of a URL map.
pub(crate) const PATH_MATCHERS_MAX: usize = 2000;
/// The most hosts of a host rule.
pub(crate) const HOSTS_MAX: usize = 1000;
/// The most path rules or route rules of a path matcher.
pub(crate) const RULES_MAX: usize = 1000;
/// The most predicates of a path matcher: one for each path, header and parameter condition.
pub(crate) const PREDICATES_MAX: usize = 1000;
/// The most regular expressions of a path matcher.
pub(crate) const PATTERNS_MAX: usize = 5;
/// The most path templates of a path matcher.
pub(crate) const TEMPLATES_MAX: usize = 100;
/// The most different backend services of a URL map.
pub(crate) const BACKEND_SERVICES_MAX: usize = 2500;
/// The most projects whose backend services one URL map names.
pub(crate) const PROJECTS_MAX: usize = 1000;
/// The most bytes of a URL map as JSON.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 128 * 1024;
/// The most tests of a URL map.
pub(crate) const TESTS_MAX: usize = 100;

/// A URL map's tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    pub(crate) hosts: HostTable,
    /// Every pattern of every host rule; the table's numbers are positions here.
    pub(crate) host_patterns: Vec<HostPattern>,
    pub(crate) matchers: Vec<Matcher>,
    pub(crate) default: Action,
    pub(crate) header_action: HeaderAction,
    /// The backend services that actions mean by number.
    pub(crate) services: Vec<ResourceName>,
    pub(crate) redirects_to_https: bool,
}

/// One host of a host rule.
#[derive(Clone, Debug)]
pub(crate) struct HostPattern {
    pub(crate) text: Box<str>,
    /// The number of the path matcher.
    pub(crate) matcher: u32,
}

/// A compiled path matcher.
#[derive(Clone, Debug)]
pub(crate) struct Matcher {
    pub(crate) name: Box<str>,
    pub(crate) table: Table,
    pub(crate) default: Action,
    pub(crate) header_action: HeaderAction,
}

/// The rules of a path matcher, of one kind or the other.
#[derive(Clone, Debug)]
pub(crate) enum Table {
    /// `pathRules[]`, and what each does.
    Paths(PathTable, Vec<Action>),
    /// `routeRules[]`.
    Routes(RouteTable),
}

impl Rules {
    /// Compiles a map. The rules are of use only if there are no problems.
    pub(crate) fn compile(map: &UrlMap) -> (Rules, Vec<Problem>) {
        let mut compiler = Compiler::of(map);
        compiler.check_sizes();
        let matchers: Vec<Matcher> =
            (0..map.path_matchers.len()).map(|m| compiler.matcher(m)).collect();
        let host_patterns = compiler.host_patterns();
        let patterns = host_patterns.iter().map(|pattern| &*pattern.text).zip(0u32..);
        let header_at = At::ROOT.field("headerAction");
        let rules = Rules {
            hosts: HostTable::new(patterns),
            host_patterns,
            matchers,
            default: compiler.default_action(&At::ROOT, &map.default),
            header_action: header_action::compile(
                &map.header_action,
                &header_at,
                &mut compiler.faults,
            ),
            redirects_to_https: compiler.redirects_to_https,
            services: Vec::new(),
        };
        let services = compiler.services.len();
        compiler.faults.at_most(&At::ROOT, services, BACKEND_SERVICES_MAX, "backend services");
        let projects: FxHashSet<&str> =
            compiler.services.iter().map(|service| service.project.as_str()).collect();
        compiler.faults.at_most(&At::ROOT, projects.len(), PROJECTS_MAX, "projects");
        (Rules { services: compiler.services, ..rules }, compiler.faults.into_problems())
    }

    /// The memory the tables take, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let table = |matcher: &Matcher| match &matcher.table {
            Table::Paths(paths, actions) => paths.bytes() + actions.len() * size_of::<Action>(),
            Table::Routes(routes) => routes.bytes(),
        };
        let patterns: usize = self.host_patterns.iter().map(|pattern| pattern.text.len()).sum();
        self.hosts.bytes()
            + patterns
            + self.host_patterns.capacity() * size_of::<HostPattern>()
            + self.matchers.capacity() * size_of::<Matcher>()
            + self.matchers.iter().map(table).sum::<usize>()
            + self.services.capacity() * size_of::<ResourceName>()
    }
}

/// The state of one compilation.
pub(crate) struct Compiler<'m> {
    pub(crate) map: &'m UrlMap,
    pub(crate) faults: Faults<'m>,
    services: Vec<ResourceName>,
    numbers: FxHashMap<&'m ResourceName, BackendId>,
    pub(crate) redirects_to_https: bool,
    /// What the regular expressions compiled so far take.
    pub(crate) pattern_bytes: usize,
    /// What the matcher being compiled has used of its limits.
    pub(crate) used: Used,
}

/// Counts of what is limited for each path matcher.
#[derive(Default)]
pub(crate) struct Used {
    pub(crate) patterns: usize,
    pub(crate) templates: usize,
    pub(crate) predicates: usize,
}

impl<'m> Compiler<'m> {
    fn of(map: &'m UrlMap) -> Compiler<'m> {
        Compiler {
            map,
            faults: Faults::of(&map.name),
            services: Vec::new(),
            numbers: FxHashMap::default(),
            redirects_to_https: false,
            pattern_bytes: 0,
            used: Used::default(),
        }
    }

    fn check_sizes(&mut self) {
        let map = self.map;
        let bytes = map.document_bytes;
        self.faults.at_most(&At::ROOT, bytes, DOCUMENT_BYTES_MAX, "bytes in a URL map");
        for (field, count, max, what) in [
            ("hostRules", map.host_rules.len(), HOST_RULES_MAX, "host rules"),
            ("pathMatchers", map.path_matchers.len(), PATH_MATCHERS_MAX, "path matchers"),
            ("tests", map.tests.len(), TESTS_MAX, "tests"),
        ] {
            self.faults.at_most(&At::ROOT.field(field), count, max, what);
        }
    }

    /// The number of a backend service.
    pub(crate) fn backend(&mut self, name: &'m ResourceName) -> BackendId {
        *self.numbers.entry(name).or_insert_with(|| {
            self.services.push(name.clone());
            BackendId::try_from(self.services.len() - 1).unwrap_or(BackendId::MAX)
        })
    }

    fn host_patterns(&mut self) -> Vec<HostPattern> {
        let map = self.map;
        let numbers: FxHashMap<&str, u32> =
            map.path_matchers.iter().map(|matcher| matcher.name.as_str()).zip(0u32..).collect();
        let mut seen: FxHashSet<String> = FxHashSet::default();
        let mut patterns = Vec::new();
        for (r, rule) in map.host_rules.iter().enumerate() {
            let at = At::ROOT.item("hostRules", r);
            let matcher = numbers.get(rule.path_matcher.as_str()).copied();
            match (rule.path_matcher.is_empty(), matcher) {
                (true, _) => self.faults.required(&at.field("pathMatcher")),
                (false, None) => {
                    let why = "Bad path matcher name specified in host rule, invalid.";
                    self.faults.invalid(&at.field("pathMatcher"), &rule.path_matcher, why);
                }
                _ => {}
            }
            if rule.hosts.is_empty() {
                self.faults.required(&at.field("hosts"));
            }
            self.faults.at_most(
                &at.field("hosts"),
                rule.hosts.len(),
                HOSTS_MAX,
                "hosts in a host rule",
            );
            for (h, host) in rule.hosts.iter().enumerate() {
                if let Err(why) = hosts::check_pattern(host) {
                    self.faults.invalid(&at.item("hosts", h), host, why);
                } else if !seen.insert(host.to_ascii_lowercase()) {
                    let why = "A host must not be in more than one host rule.";
                    self.faults.invalid(&at.item("hosts", h), host, why);
                } else if let Some(matcher) = matcher {
                    patterns.push(HostPattern { text: host.as_str().into(), matcher });
                }
            }
        }
        patterns
    }

    fn matcher(&mut self, number: usize) -> Matcher {
        let map = self.map;
        let matcher = &map.path_matchers[number];
        let at = At::ROOT.item("pathMatchers", number);
        self.used = Used::default();
        self.check_matcher(&at, matcher, &map.path_matchers[..number]);
        let table = match matcher.route_rules.is_empty() {
            true => self.path_rules(&at, &matcher.path_rules),
            false => Table::Routes(self.route_rules(&at, matcher)),
        };
        let header_at = at.field("headerAction");
        Matcher {
            name: matcher.name.as_str().into(),
            table,
            default: self.default_action(&at, &matcher.default),
            header_action: header_action::compile(
                &matcher.header_action,
                &header_at,
                &mut self.faults,
            ),
        }
    }

    fn check_matcher(&mut self, at: &At<'_>, matcher: &PathMatcher, before: &[PathMatcher]) {
        let name = at.field("name");
        if matcher.name.is_empty() {
            self.faults.required(&name);
        } else if !is_resource_name(&matcher.name) {
            let why = "Must be a match of regex '[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?'.";
            self.faults.invalid(&name, &matcher.name, why);
        } else if before.iter().any(|other| other.name == matcher.name) {
            let why = "Path matcher names must be unique within a URL map.";
            self.faults.invalid(&name, &matcher.name, why);
        }
        if !matcher.path_rules.is_empty() && !matcher.route_rules.is_empty() {
            let why = "Only one of pathRules or routeRules can be specified in a path matcher.";
            self.faults.invalid(&at.field("routeRules"), "", why);
        }
        for (field, count) in
            [("pathRules", matcher.path_rules.len()), ("routeRules", matcher.route_rules.len())]
        {
            self.faults.at_most(&at.field(field), count, RULES_MAX, "rules in a path matcher");
        }
    }

    fn path_rules(&mut self, at: &At<'_>, rules: &'m [PathRule]) -> Table {
        let mut seen: FxHashSet<&str> = FxHashSet::default();
        let mut patterns = Vec::new();
        let mut actions = Vec::new();
        for ((r, rule), number) in rules.iter().enumerate().zip(0u32..) {
            let at = at.item("pathRules", r);
            if rule.paths.is_empty() {
                self.faults.required(&at.field("paths"));
            }
            for (p, path) in rule.paths.iter().enumerate() {
                let at = at.item("paths", p);
                if let Err(why) = paths::check_pattern(path) {
                    self.faults.invalid(&at, path, why);
                } else if !seen.insert(path) {
                    let why = "A path must not occur more than once in a path matcher.";
                    self.faults.invalid(&at, path, why);
                } else {
                    patterns.push(PathPattern { text: path.as_str().into(), rule: number });
                }
            }
            actions.push(self.rule_action(&at, &rule.destination, None));
        }
        let predicates = patterns.len();
        self.faults.at_most(
            &at.field("pathRules"),
            predicates,
            PREDICATES_MAX,
            "paths in a path matcher",
        );
        Table::Paths(PathTable::new(patterns), actions)
    }

    fn route_rules(&mut self, at: &At<'_>, matcher: &'m PathMatcher) -> RouteTable {
        let mut seen: FxHashSet<i32> = FxHashSet::default();
        let mut rules = Vec::new();
        for (r, rule) in matcher.route_rules.iter().enumerate() {
            let at = at.item("routeRules", r);
            let priority = at.field("priority");
            match rule.priority {
                None => self.faults.required(&priority),
                Some(value) if value < 0 => {
                    let why = "Priority must be between 0 and 2147483647.";
                    self.faults.invalid(&priority, value, why);
                }
                Some(value) if !seen.insert(value) => {
                    let why = "Priorities must be unique within a path matcher.";
                    self.faults.invalid(&priority, value, why);
                }
                _ => {}
            }
            if rule.match_rules.is_empty() {
                self.faults.required(&at.field("matchRules"));
            }
            let matches: SmallVec<[_; 1]> = rule
                .match_rules
                .iter()
                .enumerate()
                .filter_map(|(m, rule)| self.route_match(&at.item("matchRules", m), rule))
                .collect();
            let action = self.rule_action(&at, &rule.destination, Some(&matches));
            let header_at = at.field("headerAction");
            let header_action =
                header_action::compile(&rule.header_action, &header_at, &mut self.faults);
            let priority = rule.priority.unwrap_or(i32::MAX);
            rules.push(RouteRule { priority, position: r, matches, action, header_action });
        }
        let at = at.field("routeRules");
        let Used { patterns, templates, predicates } = self.used;
        for (count, max, what) in [
            (patterns, PATTERNS_MAX, "regular expressions in a path matcher"),
            (templates, TEMPLATES_MAX, "path templates in a path matcher"),
            (predicates, PREDICATES_MAX, "predicates in a path matcher"),
        ] {
            self.faults.at_most(&at, count, max, what);
        }
        RouteTable::new(rules)
    }
}

/// Whether a name follows the rule for all names of Compute resources.
pub(crate) fn is_resource_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !name.ends_with('-')
}
