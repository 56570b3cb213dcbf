//! Match rules of route rules, judged and compiled.

use super::fault::At;
use super::header_action::is_token;
use super::pattern::Pattern;
use super::predicate::{HeaderPredicate, PathPredicate, Subject, Test};
use super::routes::RouteMatch;
use super::rules::Compiler;
use super::template::PathTemplate;
use model::url_map::{self, HeaderMatch, QueryParameterMatch};

/// The longest path condition, in characters.
const PATH_CHARS_MAX: usize = 1024;

/// The most bytes that the tables of all regular expressions of a URL map take.
pub(crate) const PATTERN_BYTES_MAX: usize = 4 * 1024 * 1024;

impl Compiler<'_> {
    /// Compiles a match rule; one that is unsound matches nothing.
    pub(crate) fn route_match(
        &mut self,
        at: &At<'_>,
        rule: &url_map::RouteMatch,
    ) -> Option<RouteMatch> {
        let path = self.path_predicate(at, rule);
        let headers = rule.headers.iter().enumerate();
        let headers: Vec<_> =
            headers.map(|(i, header)| self.header(&at.item("headerMatches", i), header)).collect();
        let parameters = rule.query_parameters.iter().enumerate();
        let parameters: Vec<_> = parameters
            .map(|(i, parameter)| self.parameter(&at.item("queryParameterMatches", i), parameter))
            .collect();
        self.used.predicates += headers.len()
            + parameters.len()
            + usize::from(!matches!(path, Some(PathPredicate::Any)));
        let conditions: Option<Vec<_>> = headers.into_iter().chain(parameters).collect();
        let (path, conditions) = (path?, conditions?);
        let text = match (&rule.prefix, &rule.full_path, &rule.regex, &rule.path_template) {
            (Some(prefix), ..) => format!("{prefix}*").into(),
            (_, Some(text), ..) | (_, _, Some(text), _) | (.., Some(text)) => text.as_str().into(),
            _ => "/*".into(),
        };
        Some(RouteMatch { path, conditions, text })
    }

    fn path_predicate(&mut self, at: &At<'_>, rule: &url_map::RouteMatch) -> Option<PathPredicate> {
        let given = [
            ("prefixMatch", &rule.prefix),
            ("fullPathMatch", &rule.full_path),
            ("regexMatch", &rule.regex),
            ("pathTemplateMatch", &rule.path_template),
        ];
        let mut given = given.into_iter().filter_map(|(field, text)| Some((field, text.as_ref()?)));
        let Some((field, text)) = given.next() else { return Some(PathPredicate::Any) };
        if let Some((other, other_text)) = given.next() {
            let why = "Only one of prefixMatch, fullPathMatch, regexMatch or pathTemplateMatch can be \
                       specified.";
            self.faults.invalid(&at.field(other), other_text, why);
            return None;
        }
        let indexable = matches!(field, "prefixMatch" | "fullPathMatch");
        if rule.ignore_case && !indexable {
            let why = "ignoreCase can only be used with prefixMatch or fullPathMatch.";
            self.faults.invalid(&at.field("ignoreCase"), "true", why);
        }
        let length = text.chars().count();
        if field != "regexMatch" && !(1..=PATH_CHARS_MAX).contains(&length) {
            let why = format!("The value must be between 1 and {PATH_CHARS_MAX} characters long.");
            self.faults.invalid(&at.field(field), text, why);
            return None;
        }
        if indexable && !text.starts_with('/') {
            self.faults.invalid(&at.field(field), text, "The value must begin with '/'.");
            return None;
        }
        let folded = || text.to_ascii_lowercase().into();
        match (field, rule.ignore_case) {
            ("prefixMatch", false) => Some(PathPredicate::Prefix(text.as_str().into())),
            ("prefixMatch", true) => Some(PathPredicate::PrefixFolded(folded())),
            ("fullPathMatch", false) => Some(PathPredicate::Exact(text.as_str().into())),
            ("fullPathMatch", true) => Some(PathPredicate::ExactFolded(folded())),
            ("regexMatch", _) => self.pattern(&at.field(field), text).map(PathPredicate::Regex),
            _ => {
                self.used.templates += 1;
                let template = PathTemplate::new(text);
                template
                    .map_err(|why| self.faults.invalid(&at.field(field), text, why))
                    .ok()
                    .map(|template| PathPredicate::Template(Box::new(template)))
            }
        }
    }

    fn pattern(&mut self, at: &At<'_>, source: &str) -> Option<Pattern> {
        self.used.patterns += 1;
        if self.pattern_bytes >= PATTERN_BYTES_MAX {
            let why = format!(
                "The regular expressions of a URL map must not need tables of more than \
                 {PATTERN_BYTES_MAX} bytes."
            );
            self.faults.invalid(at, source, why);
            return None;
        }
        match Pattern::new(source) {
            Ok(pattern) => {
                self.pattern_bytes += pattern.bytes();
                Some(pattern)
            }
            Err(why) => {
                // Finding out that a table would be too large costs as much as making the largest.
                self.pattern_bytes += PATTERN_BYTES_MAX / 8;
                self.faults.invalid(at, source, format!("Invalid RE2 regular expression: {why}."));
                None
            }
        }
    }

    fn header(&mut self, at: &At<'_>, header: &HeaderMatch) -> Option<HeaderPredicate> {
        let name = &header.name;
        if name.is_empty() {
            self.faults.required(&at.field("headerName"));
            return None;
        }
        let pseudo = matches!(name.as_str(), ":authority" | ":method");
        if !pseudo && !name.bytes().all(is_token) {
            let why =
                "The header name must be a valid header field name, ':authority' or ':method'.";
            self.faults.invalid(&at.field("headerName"), name, why);
            return None;
        }
        let bytes = |text: &Option<String>| text.as_ref().map(|text| text.as_bytes().into());
        let mut tests: Vec<Test> = [
            bytes(&header.exact).map(Test::Exact),
            bytes(&header.prefix).map(Test::Prefix),
            bytes(&header.suffix).map(Test::Suffix),
            header.present.then_some(Test::Present),
            header.range.map(|(start, end)| Test::Range(start, end)),
        ]
        .into_iter()
        .flatten()
        .collect();
        let count = tests.len() + usize::from(header.regex.is_some());
        if count != 1 {
            let why = "Exactly one of exactMatch, prefixMatch, suffixMatch, regexMatch, rangeMatch or \
                       presentMatch must be specified.";
            self.faults.invalid(at, name, why);
            return None;
        }
        if let Some((start, end)) = header.range
            && start >= end
        {
            let why = "rangeStart must be less than rangeEnd.";
            self.faults.invalid(&at.field("rangeMatch"), format!("[{start}, {end})"), why);
            return None;
        }
        let test = match &header.regex {
            Some(regex) => Test::Regex(self.pattern(&at.field("regexMatch"), regex)?),
            None => tests.pop()?,
        };
        Some(HeaderPredicate { subject: Subject::header(name), test, invert: header.invert })
    }

    fn parameter(
        &mut self,
        at: &At<'_>,
        parameter: &QueryParameterMatch,
    ) -> Option<HeaderPredicate> {
        if parameter.name.is_empty() {
            self.faults.required(&at.field("name"));
            return None;
        }
        let given = [parameter.exact.is_some(), parameter.regex.is_some(), parameter.present];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let why = "Exactly one of exactMatch, regexMatch or presentMatch must be specified.";
            self.faults.invalid(at, &parameter.name, why);
            return None;
        }
        let test = match (&parameter.exact, &parameter.regex) {
            (Some(text), _) => Test::Exact(text.as_bytes().into()),
            (_, Some(regex)) => Test::Regex(self.pattern(&at.field("regexMatch"), regex)?),
            _ => Test::Present,
        };
        let subject = Subject::Parameter(parameter.name.as_str().into());
        Some(HeaderPredicate { subject, test, invert: false })
    }
}
