//! A router as one would write it from the documentation, asking every rule in turn.
//!
//! It shares no code with the compiled one: it reads the declared map, keeps no tables, and its path templates
//! are matched by trying everything.

use crate::generate::Request;
use model::url_map::{
    Destination, HeaderMatch, PathMatcher, QueryParameterMatch, RouteMatch, UrlMap, UrlRedirect,
    UrlRewrite,
};
use regex::Regex;
use std::cell::RefCell;
use std::collections::HashMap;

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) rule: String,
    pub(crate) matcher: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) path_and_query: Option<String>,
    pub(crate) location: Option<String>,
    pub(crate) status: Option<u16>,
}

/// What part of the path made the rule match.
enum Part {
    None,
    Prefix(usize),
    Whole,
    Template(String),
}

pub(crate) fn decide(map: &UrlMap, request: &Request) -> Outcome {
    let Some(matcher) = matcher_for(map, &request.authority) else {
        return act(&map.default, "UNMATCHED", None, Part::None, request);
    };
    let name = Some(matcher.name.to_string());
    if let Some((text, destination, part)) = path_rule(matcher, &request.path) {
        return act(destination, &text, name, part, request);
    }
    let mut rules: Vec<_> = matcher.route_rules.iter().collect();
    rules.sort_by_key(|rule| rule.priority);
    for rule in rules {
        if let Some(part) = rule.match_rules.iter().find(|part| holds(part, request)) {
            let (text, matched) = described(part);
            return act(&rule.destination, &text, name, matched, request);
        }
    }
    act(&matcher.default, "UNMATCHED", name, Part::None, request)
}

fn matcher_for<'m>(map: &'m UrlMap, authority: &str) -> Option<&'m PathMatcher> {
    let authority = authority.to_lowercase();
    let mut best: Option<(usize, &str)> = None;
    for rule in &map.host_rules {
        for host in &rule.hosts {
            let host = host.to_lowercase();
            let rank = match host.strip_prefix('*') {
                None if host == authority => usize::MAX,
                Some(suffix) if authority.ends_with(suffix) => suffix.len(),
                _ => continue,
            };
            if best.is_none_or(|(known, _)| known < rank) {
                best = Some((rank, &rule.path_matcher));
            }
        }
    }
    let (_, name) = best?;
    map.path_matchers.iter().find(|matcher| matcher.name.as_str() == name)
}

fn path_rule<'m>(matcher: &'m PathMatcher, path: &str) -> Option<(String, &'m Destination, Part)> {
    let mut best: Option<(usize, String, &Destination)> = None;
    for rule in &matcher.path_rules {
        for pattern in &rule.paths {
            if pattern == path {
                return Some((pattern.clone(), &rule.destination, Part::Whole));
            }
            let Some(prefix) = pattern.strip_suffix('*') else { continue };
            let longer = best.as_ref().is_none_or(|(length, ..)| prefix.len() > *length);
            if path.starts_with(prefix) && longer {
                best = Some((prefix.len(), pattern.clone(), &rule.destination));
            }
        }
    }
    best.map(|(length, text, destination)| (text, destination, Part::Prefix(length)))
}

fn holds(part: &RouteMatch, request: &Request) -> bool {
    let path = &request.path;
    let path_holds = match (&part.prefix, &part.full_path, &part.regex, &part.path_template) {
        (Some(prefix), ..) if part.ignore_case => {
            path.to_lowercase().starts_with(&prefix.to_lowercase())
        }
        (Some(prefix), ..) => path.starts_with(prefix.as_str()),
        (_, Some(full), ..) if part.ignore_case => path.to_lowercase() == full.to_lowercase(),
        (_, Some(full), ..) => path == full,
        (_, _, Some(regex), _) => whole(regex, path),
        (.., Some(template)) => captures(template, path).is_some(),
        _ => true,
    };
    path_holds
        && part.headers.iter().all(|header| header_holds(header, request))
        && part.query_parameters.iter().all(|parameter| parameter_holds(parameter, request))
}

fn described(part: &RouteMatch) -> (String, Part) {
    match (&part.prefix, &part.full_path, &part.regex, &part.path_template) {
        (Some(prefix), ..) => (format!("{prefix}*"), Part::Prefix(prefix.len())),
        (_, Some(full), ..) => (full.clone(), Part::Whole),
        (_, _, Some(regex), _) => (regex.clone(), Part::Whole),
        (.., Some(template)) => (template.clone(), Part::Template(template.clone())),
        _ => ("/*".to_string(), Part::None),
    }
}

thread_local! {
    /// The few patterns there are, compiled once: compiling is what takes the time.
    static PATTERNS: RefCell<HashMap<String, Regex>> = RefCell::default();
}

fn whole(pattern: &str, text: &str) -> bool {
    let sound = || Regex::new(&format!("^(?:{pattern})$")).expect("a sound pattern");
    PATTERNS.with_borrow_mut(|patterns| {
        patterns.entry(pattern.to_string()).or_insert_with(sound).is_match(text)
    })
}

fn header_holds(header: &HeaderMatch, request: &Request) -> bool {
    let value = match header.name.as_str() {
        ":method" => Some(request.method.clone()),
        ":authority" => Some(request.authority.clone()),
        name => {
            let values = request.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
            (!values.is_empty()).then(|| values.join(","))
        }
    };
    let met = value.is_some_and(|value| {
        if let Some(exact) = &header.exact {
            value == *exact
        } else if let Some(prefix) = &header.prefix {
            value.starts_with(prefix.as_str())
        } else if let Some(suffix) = &header.suffix {
            value.ends_with(suffix.as_str())
        } else if let Some(regex) = &header.regex {
            whole(regex, &value)
        } else if let Some((start, end)) = header.range {
            value.parse::<i64>().is_ok_and(|number| start <= number && number < end)
        } else {
            header.present
        }
    });
    if header.invert { !met } else { met }
}

fn parameter_holds(parameter: &QueryParameterMatch, request: &Request) -> bool {
    let Some(query) = &request.query else { return false };
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == parameter.name {
            return match (&parameter.exact, &parameter.regex) {
                (Some(exact), _) => value == exact,
                (_, Some(regex)) => whole(regex, value),
                _ => true,
            };
        }
    }
    false
}

/// What the variables of a template stand for, found by trying every length.
fn captures(template: &str, path: &str) -> Option<Vec<(String, String)>> {
    let Some(c) = template.chars().next() else { return path.is_empty().then(Vec::new) };
    if let Some(rest) = template.strip_prefix('{') {
        let (inside, rest) = rest.split_once('}')?;
        let (name, pattern) = inside.split_once('=').unwrap_or((inside, "*"));
        for length in 0..=path.len() {
            if path.is_char_boundary(length)
                && captures(pattern, &path[..length]).is_some()
                && let Some(mut others) = captures(rest, &path[length..])
            {
                others.push((name.to_string(), path[..length].to_string()));
                return Some(others);
            }
        }
        return None;
    }
    if let Some(rest) = template.strip_prefix("**") {
        let lengths = (0..=path.len()).filter(|length| path.is_char_boundary(*length));
        return lengths.into_iter().find_map(|length| captures(rest, &path[length..]));
    }
    if let Some(rest) = template.strip_prefix('*') {
        let end = path.find('/').unwrap_or(path.len());
        let lengths = (1..=end).filter(|length| path.is_char_boundary(*length));
        return lengths.into_iter().find_map(|length| captures(rest, &path[length..]));
    }
    captures(&template[c.len_utf8()..], path.strip_prefix(c)?)
}

fn act(
    destination: &Destination,
    rule: &str,
    matcher: Option<String>,
    part: Part,
    request: &Request,
) -> Outcome {
    let mut outcome = Outcome {
        rule: rule.to_string(),
        matcher,
        service: None,
        authority: None,
        path_and_query: None,
        location: None,
        status: None,
    };
    if let Some(redirect) = &destination.url_redirect {
        outcome.status = Some(redirect.code.status());
        outcome.location = Some(location(redirect, &part, request));
        return outcome;
    }
    outcome.service = destination.service.as_ref().map(|service| service.name.to_string());
    let Some(action) = &destination.route_action else { return outcome };
    if let [only] = &action.weighted_backend_services[..] {
        outcome.service = Some(only.service.name.to_string());
    }
    let Some(rewrite) = &action.url_rewrite else { return outcome };
    outcome.authority = rewrite.host.clone();
    outcome.path_and_query =
        new_path(rewrite, &part, &request.path).map(|path| match &request.query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        });
    outcome
}

fn new_path(rewrite: &UrlRewrite, part: &Part, path: &str) -> Option<String> {
    if let Some(prefix) = &rewrite.path_prefix {
        return Some(replaced(prefix, part, path));
    }
    let (rewrite, Part::Template(template)) = (rewrite.path_template.as_ref()?, part) else {
        return None;
    };
    let mut new = rewrite.clone();
    for (name, value) in captures(template, path)? {
        new = new.replace(&format!("{{{name}}}"), &value);
    }
    Some(new)
}

fn replaced(prefix: &str, part: &Part, path: &str) -> String {
    match part {
        Part::None if prefix.ends_with('/') => format!("{}{path}", &prefix[..prefix.len() - 1]),
        Part::None => format!("{prefix}{path}"),
        Part::Prefix(length) => format!("{prefix}{}", &path[*length..]),
        Part::Whole | Part::Template(_) => prefix.to_string(),
    }
}

fn location(redirect: &UrlRedirect, part: &Part, request: &Request) -> String {
    let scheme = if redirect.https { "https" } else { "http" };
    let mut authority = redirect.host.clone().unwrap_or_else(|| request.authority.clone());
    if redirect.https && redirect.host.is_none() && authority.ends_with(":80") {
        authority.truncate(authority.len() - ":80".len());
    }
    let path = match (&redirect.path, &redirect.prefix) {
        (Some(path), _) => path.clone(),
        (_, Some(prefix)) => replaced(prefix, part, &request.path),
        _ => request.path.clone(),
    };
    match &request.query {
        Some(query) if !redirect.strip_query => format!("{scheme}://{authority}{path}?{query}"),
        _ => format!("{scheme}://{authority}{path}"),
    }
}
