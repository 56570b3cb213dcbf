//! Conditions of a route rule on the path, the header fields and the query of a request.
//!
//! A condition is asked by itself, so the matcher that serves and the explanation that is printed ask the
//! very same code.
//!
//! Invariant: field names are in lower case and `…Folded` texts too.

use super::pattern::Pattern;
use super::template::PathTemplate;
use crate::decision::{Headers, RequestHead};
use std::borrow::Cow;
use std::fmt;

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPredicate {
    /// No condition.
    Any,
    /// `fullPathMatch`.
    Exact(Box<str>),
    /// `fullPathMatch` with `ignoreCase`.
    ExactFolded(Box<str>),
    /// `prefixMatch`.
    Prefix(Box<str>),
    /// `prefixMatch` with `ignoreCase`.
    PrefixFolded(Box<str>),
    /// `regexMatch`.
    Regex(Pattern),
    /// `pathTemplateMatch`.
    Template(Box<PathTemplate>),
}

impl PathPredicate {
    pub(crate) fn is_match(&self, path: &str) -> bool {
        match self {
            PathPredicate::Any => true,
            PathPredicate::Exact(text) => *path == **text,
            PathPredicate::ExactFolded(text) => path.eq_ignore_ascii_case(text),
            PathPredicate::Prefix(text) => path.starts_with(&**text),
            PathPredicate::PrefixFolded(text) => {
                let start = path.as_bytes().get(..text.len());
                start.is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
            }
            PathPredicate::Regex(pattern) => pattern.is_match(path.as_bytes()),
            PathPredicate::Template(template) => template.is_match(path),
        }
    }
}

impl fmt::Display for PathPredicate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPredicate::Any => out.write_str("any path"),
            PathPredicate::Exact(text) => write!(out, "fullPathMatch {text}"),
            PathPredicate::ExactFolded(text) => write!(out, "fullPathMatch {text} ignoring case"),
            PathPredicate::Prefix(text) => write!(out, "prefixMatch {text}"),
            PathPredicate::PrefixFolded(text) => write!(out, "prefixMatch {text} ignoring case"),
            PathPredicate::Regex(pattern) => write!(out, "regexMatch {}", pattern.as_str()),
            PathPredicate::Template(template) => {
                write!(out, "pathTemplateMatch {}", template.as_str())
            }
        }
    }
}

/// A condition on a header field or what stands for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderPredicate {
    pub(crate) subject: Subject,
    pub(crate) test: Test,
    pub(crate) invert: bool,
}

/// What of the request a condition is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// The field of that name; the values of several are joined by commas.
    Field(Box<str>),
    /// `:authority`.
    Authority,
    /// `:method`.
    Method,
    /// `PORT`: the port that the authority names, if it names one.
    Port,
    /// The first query parameter of that name.
    Parameter(Box<str>),
}

/// What is asked of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Present,
    Exact(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Regex(Pattern),
    /// An integer from the first up to, and without, the second.
    Range(i64, i64),
}

impl Subject {
    /// The subject a `headerName` stands for.
    pub(crate) fn header(name: &str) -> Subject {
        match name {
            ":authority" => Subject::Authority,
            ":method" => Subject::Method,
            "PORT" => Subject::Port,
            _ => Subject::Field(name.to_ascii_lowercase().into()),
        }
    }

    /// Its value in a request.
    pub(crate) fn value<'h>(&self, head: &RequestHead<'h>) -> Option<Cow<'h, [u8]>> {
        match self {
            Subject::Field(name) => joined(head.headers, name),
            Subject::Authority => Some(Cow::Borrowed(head.authority.as_bytes())),
            Subject::Method => Some(Cow::Borrowed(head.method.as_bytes())),
            Subject::Port => port_of(head.authority).map(|port| Cow::Borrowed(port.as_bytes())),
            Subject::Parameter(name) => {
                parameter(head.query?, name).map(|value| Cow::Borrowed(value.as_bytes()))
            }
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Field(name) => write!(out, "header {name}"),
            Subject::Authority => out.write_str(":authority"),
            Subject::Method => out.write_str(":method"),
            Subject::Port => out.write_str("PORT"),
            Subject::Parameter(name) => write!(out, "parameter {name}"),
        }
    }
}

impl HeaderPredicate {
    pub(crate) fn is_match(&self, head: &RequestHead<'_>) -> bool {
        let holds = self.subject.value(head).is_some_and(|value| self.test.holds(&value));
        holds != self.invert
    }
}

impl fmt::Display for HeaderPredicate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.invert { "not " } else { "" };
        write!(out, "{} {not}{}", self.subject, self.test)
    }
}

impl Test {
    fn holds(&self, value: &[u8]) -> bool {
        match self {
            Test::Present => true,
            Test::Exact(text) => *value == **text,
            Test::Prefix(text) => value.starts_with(text),
            Test::Suffix(text) => value.ends_with(text),
            Test::Regex(pattern) => pattern.is_match(value),
            Test::Range(start, end) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.is_some_and(|number: i64| (*start..*end).contains(&number))
            }
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self {
            Test::Present => out.write_str("present"),
            Test::Exact(value) => write!(out, "= {}", text(value)),
            Test::Prefix(value) => write!(out, "begins with {}", text(value)),
            Test::Suffix(value) => write!(out, "ends with {}", text(value)),
            Test::Regex(pattern) => write!(out, "matches {}", pattern.as_str()),
            Test::Range(start, end) => write!(out, "in [{start}, {end})"),
        }
    }
}

/// The values of all fields of a name, joined as RFC 9110 joins them.
fn joined<'h>(headers: &'h dyn Headers, name: &str) -> Option<Cow<'h, [u8]>> {
    let mut value: Option<Cow<'h, [u8]>> = None;
    headers.each(name, &mut |next| {
        value = Some(match value.take() {
            None => Cow::Borrowed(next),
            Some(before) => {
                let mut all = before.into_owned();
                all.push(b',');
                all.extend_from_slice(next);
                Cow::Owned(all)
            }
        });
    });
    value
}

/// The host of an authority, without its port; an IPv6 address keeps its brackets.
pub(crate) fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    }
}

/// The port an authority names.
pub(crate) fn port_of(authority: &str) -> Option<&str> {
    let host = host_of(authority);
    (host.len() < authority.len()).then(|| &authority[host.len() + 1..])
}

/// The value of the first parameter of that name; nothing is decoded.
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Scheme;

    fn holds(predicate: &HeaderPredicate, headers: &[(&str, &str)], query: Option<&str>) -> bool {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        predicate.is_match(&RequestHead {
            method: "GET",
            scheme: Scheme::Http,
            authority: "example.com:8080",
            path: "/",
            query,
            headers: &headers,
            client: [10, 0, 0, 9].into(),
        })
    }

    fn header(name: &str, test: Test) -> HeaderPredicate {
        HeaderPredicate { subject: Subject::header(name), test, invert: false }
    }

    #[test]
    fn several_fields_of_a_name_are_one_value() {
        let both = header("X-A", Test::Exact((*b"1,2").into()));
        assert!(holds(&both, &[("x-a", "1"), ("X-A", "2")], None));
        assert!(!holds(&both, &[("x-a", "2"), ("x-a", "1")], None));
    }

    #[test]
    fn a_range_takes_whole_integers_without_its_end() {
        let range = header("x-n", Test::Range(-5, 0));
        for (value, expected) in
            [("-5", true), ("-3", true), ("0", false), ("0.25", false), ("-3x", false), ("", false)]
        {
            assert_eq!(holds(&range, &[("x-n", value)], None), expected, "{value}");
        }
        assert!(!holds(&range, &[], None));
    }

    #[test]
    fn an_absent_field_meets_no_criterion_so_the_inverted_one_matches() {
        let mut absent = header("x-a", Test::Exact((*b"1").into()));
        assert!(!holds(&absent, &[], None));
        absent.invert = true;
        assert!(holds(&absent, &[], None));
        let not_present = HeaderPredicate { test: Test::Present, ..absent };
        assert!(holds(&not_present, &[], None));
        assert!(!holds(&not_present, &[("x-a", "")], None));
    }

    #[test]
    fn the_method_the_authority_and_its_port_can_be_asked() {
        assert!(holds(&header(":method", Test::Exact((*b"GET").into())), &[], None));
        assert!(holds(&header(":authority", Test::Prefix((*b"example").into())), &[], None));
        let port = Pattern::new("80[0-9]+").expect("sound");
        assert!(holds(&header("PORT", Test::Regex(port)), &[], None));
        for (authority, port) in [
            ("a", None),
            ("a:1", Some("1")),
            ("[::1]", None),
            ("[::1]:80", Some("80")),
            ("a:", Some("")),
        ] {
            assert_eq!(port_of(authority), port, "{authority}");
        }
    }

    #[test]
    fn the_first_parameter_of_a_name_counts_as_it_is_written() {
        let query = "a=1&b&a=2&c=%20";
        for (name, value) in [("a", Some("1")), ("b", Some("")), ("c", Some("%20")), ("d", None)] {
            assert_eq!(parameter(query, name), value, "{name}");
        }
        let present = HeaderPredicate {
            subject: Subject::Parameter("b".into()),
            test: Test::Present,
            invert: false,
        };
        assert!(holds(&present, &[], Some(query)));
        assert!(!holds(&present, &[], None));
    }
}
