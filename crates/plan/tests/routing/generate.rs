//! Sound URL maps and requests from small alphabets, all from one number.

use crate::world;
use model::Kind;
use model::url_map::{
    Destination, HeaderAction, HeaderMatch, HostRule, PathMatcher, PathRule, QueryParameterMatch,
    RedirectCode, RouteAction, RouteMatch, RouteRule, UrlMap, UrlRedirect, UrlRewrite,
    WeightedBackendService,
};
use plan::decision::{RequestHead, Scheme};
use std::collections::BTreeSet;

/// A small random number generator (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn from(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

const HOSTS: &[&str] = &[
    "*", "a.b", "b", "A.b", "*.b", "*-a.b", "*.a.b", "a.b:80", "*.b:80", "x-a.b", "x.a.b", "c",
    "*.c",
];
const AUTHORITIES: &[&str] = &[
    "a.b", "b", "A.B", "x.b", "x-a.b", "y.a.b", "x.a.b", "a.b:80", "q.b:80", "c", "z.c", "d", "",
    "b:81",
];
const PATH_PATTERNS: &[&str] = &[
    "/", "/*", "/a", "/a/", "/a/*", "/a/b", "/a/b/*", "/A", "/b/*", "/b", "/a/b/c", "/a//*", "/ab",
    "/ab/*",
];
const PATHS: &[&str] = &[
    "/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/A", "/ab", "/ab/c", "/b", "/b/a", "/c", "/a//b",
    "/A/B", "/a/b/c/d", "/aa", "/a.x", "/a/b.x", "/\u{e9}",
];
const PREFIXES: &[&str] = &["/", "/a", "/a/", "/a/b", "/A", "/b", "/ab", "/*"];
const PATTERNS: &[&str] = &["/a.*", "/[ab]", "/a/(b|c)", ".*/b", "/.{2}", "(?i)/a"];
const TEMPLATES: &[&str] = &[
    "/*",
    "/**",
    "/a/*",
    "/a/**",
    "/{v}",
    "/a/{v}",
    "/{v}/b",
    "/{v=a/*}",
    "/{v}/{w=**}",
    "/*.x",
    "/a/**.x",
    "/a/{v=**}",
    "/{v=a/b}/*",
    "/*/b/*",
];
const REWRITES: &[(&str, &[&str])] = &[
    ("/{v}", &["v"]),
    ("/n/{v}/m", &["v"]),
    ("/{w}-{v}", &["v", "w"]),
    ("/{v}{v}", &["v"]),
    ("/fixed", &[]),
];
const NEW_PATHS: &[&str] = &["/", "/n", "/n/", "/n/m"];

pub(crate) fn url_map(random: &mut Random) -> UrlMap {
    let matchers = 1 + random.below(3);
    let path_matchers: Vec<PathMatcher> = (0..matchers).map(|m| path_matcher(random, m)).collect();
    let mut hosts: BTreeSet<String> = BTreeSet::new();
    let mut host_rules = Vec::new();
    for _ in 0..random.below(5) {
        let mut own = Vec::new();
        for _ in 0..1 + random.below(3) {
            let host = random.pick(HOSTS).to_string();
            if hosts.insert(host.to_lowercase()) {
                own.push(host);
            }
        }
        if !own.is_empty() {
            let path_matcher = format!("m{}", random.below(matchers)).into();
            host_rules.push(HostRule { hosts: own, path_matcher });
        }
    }
    UrlMap {
        name: world::name(Kind::UrlMap, "map"),
        id: 1,
        host_rules,
        path_matchers,
        default: destination(random, None),
        header_action: HeaderAction::default(),
        tests: Vec::new(),
        document_bytes: 0,
    }
}

fn path_matcher(random: &mut Random, number: usize) -> PathMatcher {
    let mut matcher = PathMatcher {
        name: format!("m{number}").into(),
        default: destination(random, None),
        ..PathMatcher::default()
    };
    if random.one_in(2) {
        let mut seen = BTreeSet::new();
        for _ in 0..random.below(8) {
            let own = (0..1 + random.below(2)).map(|_| random.pick(PATH_PATTERNS).to_string());
            let own: Vec<String> = own.filter(|path| seen.insert(path.clone())).collect();
            if !own.is_empty() {
                let destination = destination(random, None);
                matcher.path_rules.push(PathRule { paths: own, destination });
            }
        }
        return matcher;
    }
    let mut priorities = BTreeSet::new();
    let mut patterns = 5;
    // Sometimes enough rules that share a path to be worth an index of their own.
    for _ in 0..if random.one_in(4) { 24 } else { random.below(8) } {
        let priority = i32::try_from(random.below(40)).expect("small");
        if !priorities.insert(priority) {
            continue;
        }
        let parts = 1 + random.below(2);
        let match_rules: Vec<RouteMatch> =
            (0..parts).map(|_| route_match(random, &mut patterns)).collect();
        let destination = destination(random, Some(&match_rules));
        let header_action = HeaderAction::default();
        let priority = Some(priority);
        matcher.route_rules.push(RouteRule { priority, match_rules, destination, header_action });
    }
    matcher
}

fn route_match(random: &mut Random, patterns: &mut usize) -> RouteMatch {
    let mut part = RouteMatch::default();
    match random.below(6) {
        0 | 1 => {
            part.prefix = Some(random.pick(PREFIXES).to_string());
            part.ignore_case = random.one_in(3);
        }
        2 => {
            part.full_path = Some(random.pick(PATHS).to_string());
            part.ignore_case = random.one_in(3);
        }
        3 if *patterns > 0 => {
            *patterns -= 1;
            part.regex = Some(random.pick(PATTERNS).to_string());
        }
        4 => part.path_template = Some(random.pick(TEMPLATES).to_string()),
        _ => {}
    }
    for _ in 0..[0, 0, 1, 1, 2][random.below(5)] {
        part.headers.push(header_match(random, patterns));
    }
    if random.one_in(4) {
        part.query_parameters.push(parameter_match(random, patterns));
    }
    part
}

fn header_match(random: &mut Random, patterns: &mut usize) -> HeaderMatch {
    let name = random.pick(&["x-a", "X-B", "x-b", ":method", ":authority"]).to_string();
    let mut header = HeaderMatch { name, invert: random.one_in(4), ..HeaderMatch::default() };
    let value = random.pick(&["1", "2", "12", "GET", "a.b"]).to_string();
    match random.below(6) {
        0 | 1 => header.exact = Some(value),
        2 => header.prefix = Some(value),
        3 => header.suffix = Some(value),
        4 if *patterns > 0 => {
            *patterns -= 1;
            header.regex = Some("[0-9]+|P.*".to_string());
        }
        5 => header.range = Some((1, 12)),
        _ => header.present = true,
    }
    header
}

fn parameter_match(random: &mut Random, patterns: &mut usize) -> QueryParameterMatch {
    let name = random.pick(&["p", "q"]).to_string();
    let mut parameter = QueryParameterMatch { name, ..QueryParameterMatch::default() };
    match random.below(3) {
        0 => parameter.exact = Some(random.pick(&["1", "2", ""]).to_string()),
        1 if *patterns > 0 => {
            *patterns -= 1;
            parameter.regex = Some("[12]?".to_string());
        }
        _ => parameter.present = true,
    }
    parameter
}

fn destination(random: &mut Random, matches: Option<&[RouteMatch]>) -> Destination {
    if random.one_in(5) {
        return Destination { url_redirect: Some(redirect(random)), ..Destination::default() };
    }
    let service = world::name(Kind::BackendService, &format!("s{}", random.below(world::SERVICES)));
    let mut action = RouteAction::default();
    if random.one_in(3) {
        action.url_rewrite = Some(rewrite(random, matches));
    }
    if random.one_in(6) {
        let (weight, header_action) = (1, HeaderAction::default());
        action.weighted_backend_services =
            vec![WeightedBackendService { service, weight, header_action }];
        return Destination { route_action: Some(action), ..Destination::default() };
    }
    Destination { service: Some(service), url_redirect: None, route_action: Some(action) }
}

fn rewrite(random: &mut Random, matches: Option<&[RouteMatch]>) -> UrlRewrite {
    let mut rewrite = UrlRewrite::default();
    if random.one_in(2) {
        rewrite.host = Some(random.pick(&["n", "n.m", "n:81"]).to_string());
    }
    let templates: Option<Vec<&str>> = matches
        .map(|all| all.iter().map(|part| part.path_template.as_deref().unwrap_or("")).collect());
    let (new, variables) = *random.pick(REWRITES);
    let fits = templates.is_some_and(|templates| {
        let has = |template: &&str, name: &str| {
            template.contains(&format!("{{{name}}}")) || template.contains(&format!("{{{name}="))
        };
        templates.iter().all(|t| t.contains('{') && variables.iter().all(|name| has(t, name)))
    });
    if fits {
        rewrite.path_template = Some(new.to_string());
    } else if random.one_in(2) {
        rewrite.path_prefix = Some(random.pick(NEW_PATHS).to_string());
    }
    rewrite
}

fn redirect(random: &mut Random) -> UrlRedirect {
    let mut redirect = UrlRedirect {
        https: random.one_in(3),
        strip_query: random.one_in(3),
        code: RedirectCode::ALL[random.below(RedirectCode::ALL.len())].0,
        ..UrlRedirect::default()
    };
    if random.one_in(2) {
        redirect.host = Some("n.m".to_string());
    }
    match random.below(3) {
        0 => redirect.path = Some(random.pick(NEW_PATHS).to_string()),
        1 => redirect.prefix = Some(random.pick(NEW_PATHS).to_string()),
        _ => {}
    }
    redirect
}

/// A request, owned.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Request {
    pub(crate) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            scheme: Scheme::Http,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            client: [10, 0, 0, 2].into(),
        }
    }
}

pub(crate) fn request(random: &mut Random) -> Request {
    let mut headers = Vec::new();
    for _ in 0..random.below(4) {
        let name = random.pick(&["x-a", "X-A", "x-b", "x-c"]).to_string();
        headers.push((name, random.pick(&["1", "2", "12", "", "-3", "x"]).to_string()));
    }
    let query = random.pick(&["", "p", "p=1", "q=2&p=2", "p=&q", "p=1&p=2"]).to_string();
    Request {
        method: random.pick(&["GET", "POST"]).to_string(),
        authority: random.pick(AUTHORITIES).to_string(),
        path: random.pick(PATHS).to_string(),
        query: (!random.one_in(3)).then_some(query),
        headers,
    }
}
