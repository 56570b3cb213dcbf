//! The two filter languages of Compute's lists: AIP-160 comparisons and whole-field regular expressions.
//!
//! Invariant: evaluating a filter cannot fail; what could is refused when the filter is read.

use crate::error::{ApiError, Reason};
use regex::Regex;
use serde_json::Value;

/// The longest filter, in bytes.
pub(crate) const FILTER_BYTES_MAX: usize = 4096;
/// The most comparisons in one filter, which also bounds its nesting.
pub(crate) const COMPARISONS_MAX: usize = 100;
/// The most memory one regular expression may compile to, in bytes.
pub(crate) const REGEX_BYTES_MAX: usize = 256 * 1024;

/// A filter, read.
#[derive(Debug)]
pub(crate) enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Compare { field: Vec<String>, operator: Operator, value: String },
    Matches { field: Vec<String>, pattern: Regex, wanted: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Has,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Open,
    Close,
    Operator(Operator),
    /// A bare word, and one in quotes.
    Word(String),
    Quoted(String),
}

impl Filter {
    /// Reads a filter; a bad one is refused as Google does.
    pub(crate) fn parse(text: &str) -> Result<Filter, ApiError> {
        let refused = || {
            ApiError::new(
                Reason::Invalid,
                format!(
                    "Invalid value for field 'filter': '{text}'. Invalid list filter expression."
                ),
            )
        };
        if text.len() > FILTER_BYTES_MAX {
            return Err(refused());
        }
        let tokens = tokens(text).ok_or_else(refused)?;
        let mut parser = Parser { tokens: &tokens, position: 0, comparisons: 0 };
        let filter = parser.conjunction(0).ok_or_else(refused)?;
        if parser.position == tokens.len() { Ok(filter) } else { Err(refused()) }
    }

    /// Whether an item passes.
    pub(crate) fn accepts(&self, item: &Value) -> bool {
        match self {
            Filter::All(parts) => parts.iter().all(|part| part.accepts(item)),
            Filter::Any(parts) => parts.iter().any(|part| part.accepts(item)),
            Filter::Not(part) => !part.accepts(item),
            Filter::Compare { field, operator, value } => {
                let found = values_at(item, field);
                match operator {
                    // A missing field differs from every value.
                    Operator::NotEqual => {
                        !found.iter().any(|found| compare(found, Operator::Equal, value))
                    }
                    operator => found.iter().any(|found| compare(found, *operator, value)),
                }
            }
            Filter::Matches { field, pattern, wanted } => {
                let found = values_at(item, field);
                found.iter().any(|found| pattern.is_match(&scalar_text(found))) == *wanted
            }
        }
    }
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' | '\'' => {
                let (word, length) = quoted(rest, first)?;
                (Token::Quoted(word), length)
            }
            _ => match operator(rest) {
                Some((operator, length)) => (Token::Operator(operator), length),
                None => {
                    let is_end = |c: char| c.is_whitespace() || "()=!<>:\"'".contains(c);
                    let length = rest.find(is_end).unwrap_or(rest.len());
                    if length == 0 {
                        return None;
                    }
                    (Token::Word(rest[..length].to_string()), length)
                }
            },
        };
        // A link or a time as a bare value holds colons: it goes on to the next space or bracket.
        let (token, length) = match (tokens.last(), token) {
            (Some(Token::Operator(_)), Token::Word(_)) => {
                let is_end = |c: char| c.is_whitespace() || c == '(' || c == ')';
                let length = rest.find(is_end).unwrap_or(rest.len());
                (Token::Word(rest[..length].to_string()), length)
            }
            (_, token) => (token, length),
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    (!tokens.is_empty()).then_some(tokens)
}

fn operator(text: &str) -> Option<(Operator, usize)> {
    let two = [
        ("!=", Operator::NotEqual),
        ("<=", Operator::LessOrEqual),
        (">=", Operator::GreaterOrEqual),
    ];
    let one = [
        ("=", Operator::Equal),
        ("<", Operator::Less),
        (">", Operator::Greater),
        (":", Operator::Has),
    ];
    let all = two.into_iter().chain(one);
    all.into_iter().find(|(sign, _)| text.starts_with(sign)).map(|(sign, op)| (op, sign.len()))
}

/// A quoted word and the length of its source. A backslash stands for itself unless a quote follows,
/// since regular expressions are written in quotes.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut word = String::new();
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((index, character)) = characters.next() {
        match character {
            c if c == quote => return Some((word, index + c.len_utf8())),
            '\\' if characters.peek().is_some_and(|(_, next)| *next == quote) => {
                characters.next();
                word.push(quote);
            }
            c => word.push(c),
        }
    }
    None
}

struct Parser<'a> {
    tokens: &'a [Token],
    position: usize,
    comparisons: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.position).cloned();
        self.position += 1;
        token
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_it = matches!(self.tokens.get(self.position), Some(Token::Word(w)) if w == word);
        if is_it {
            self.position += 1;
        }
        is_it
    }

    /// Terms joined by `AND` or by nothing. `OR` binds closer, as AIP-160 has it.
    fn conjunction(&mut self, depth: usize) -> Option<Filter> {
        if depth > COMPARISONS_MAX {
            return None;
        }
        let mut parts = vec![self.disjunction(depth)?];
        while !matches!(self.tokens.get(self.position), None | Some(Token::Close)) {
            self.takes_word("AND");
            parts.push(self.disjunction(depth)?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Filter::All(parts) })
    }

    fn disjunction(&mut self, depth: usize) -> Option<Filter> {
        let mut parts = vec![self.term(depth)?];
        while self.takes_word("OR") {
            parts.push(self.term(depth)?);
        }
        Some(if parts.len() == 1 { parts.remove(0) } else { Filter::Any(parts) })
    }

    fn term(&mut self, depth: usize) -> Option<Filter> {
        if self.takes_word("NOT") {
            return Some(Filter::Not(Box::new(
                self.term(depth + 1).filter(|_| depth < COMPARISONS_MAX)?,
            )));
        }
        match self.next()? {
            Token::Open => {
                let inner = self.conjunction(depth + 1)?;
                (self.next()? == Token::Close).then_some(inner)
            }
            Token::Word(field) => match field.strip_prefix('-') {
                Some(field) => Some(Filter::Not(Box::new(self.comparison(field)?))),
                None => self.comparison(&field),
            },
            _ => None,
        }
    }

    fn comparison(&mut self, field: &str) -> Option<Filter> {
        self.comparisons += 1;
        if self.comparisons > COMPARISONS_MAX || field.is_empty() {
            return None;
        }
        let path: Vec<String> = field.split('.').map(str::to_string).collect();
        let token = self.next()?;
        let value = match self.next()? {
            Token::Word(value) | Token::Quoted(value) => value,
            _ => return None,
        };
        match token {
            Token::Operator(operator) => Some(Filter::Compare { field: path, operator, value }),
            Token::Word(word) if word == "eq" || word == "ne" => {
                let pattern = regex::RegexBuilder::new(&format!("^(?:{value})$"));
                let pattern = { pattern }.size_limit(REGEX_BYTES_MAX).build().ok()?;
                Some(Filter::Matches { field: path, pattern, wanted: word == "eq" })
            }
            _ => None,
        }
    }
}

/// Everything a dotted path leads to; lists are looked through.
fn values_at<'a>(item: &'a Value, path: &[String]) -> Vec<&'a Value> {
    match (item, path) {
        (Value::Array(items), path) => {
            items.iter().flat_map(|item| values_at(item, path)).collect()
        }
        (item, []) => vec![item],
        (Value::Object(object), [first, rest @ ..]) => {
            object.get(first).map(|inner| values_at(inner, rest)).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn scalar_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn compare(found: &Value, operator: Operator, wanted: &str) -> bool {
    let text = scalar_text(found);
    if operator == Operator::Has {
        return wanted == "*" || has(found, &text, wanted);
    }
    let order = match (text.parse::<f64>(), wanted.parse::<f64>()) {
        (Ok(found), Ok(wanted)) => found.partial_cmp(&wanted),
        _ if found.is_boolean() => Some(text.as_str().cmp(wanted.to_ascii_lowercase().as_str())),
        _ => Some(text.as_str().cmp(wanted)),
    };
    let Some(order) = order else { return false };
    match operator {
        Operator::Equal => order.is_eq(),
        Operator::NotEqual => order.is_ne(),
        Operator::Less => order.is_lt(),
        Operator::LessOrEqual => order.is_le(),
        Operator::Greater => order.is_gt(),
        Operator::GreaterOrEqual => order.is_ge(),
        Operator::Has => false,
    }
}

/// `:` finds a key of a map, a word within a text, or a prefix when it ends in a star.
fn has(found: &Value, text: &str, wanted: &str) -> bool {
    if let Value::Object(object) = found {
        return object.contains_key(wanted);
    }
    let (text, wanted) = (text.to_lowercase(), wanted.to_lowercase());
    match wanted.strip_suffix('*') {
        Some(prefix) => text.starts_with(prefix),
        None => text.contains(&wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn passing(filter: &str) -> Vec<&'static str> {
        let filter = Filter::parse(filter).expect(filter);
        let items = [
            json!({"name": "a", "id": "10", "labels": {"env": "prod"}, "routingConfig": {"routingMode": "REGIONAL"}}),
            json!({"name": "b", "id": "9", "tags": ["x", "y"], "enabled": true}),
            json!({"name": "lb-subnet", "id": "100", "region": "https://www.googleapis.com/compute/v1/projects/p/regions/us-west1"}),
        ];
        let names = ["a", "b", "lb-subnet"];
        names
            .into_iter()
            .zip(&items)
            .filter(|(_, item)| filter.accepts(item))
            .map(|(n, _)| n)
            .collect()
    }

    #[test]
    fn both_languages_choose_the_items_they_describe() {
        for (filter, expected) in [
            ("name=a", &["a"][..]),
            ("name = \"a\"", &["a"]),
            ("name!=a", &["b", "lb-subnet"]),
            ("name:*", &["a", "b", "lb-subnet"]),
            ("labels.env:*", &["a"]),
            ("labels:env", &["a"]),
            ("routingConfig.routingMode=REGIONAL", &["a"]),
            ("id > 9", &["a", "lb-subnet"]),
            ("id>=10 AND name!=a", &["lb-subnet"]),
            ("name=a OR name=b", &["a", "b"]),
            ("(name=a) (id=10)", &["a"]),
            ("(name=a OR name=b) AND id<10", &["b"]),
            ("name=a OR name=b id<10", &["b"]),
            ("NOT name=a", &["b", "lb-subnet"]),
            ("-name=a", &["b", "lb-subnet"]),
            ("tags=y", &["b"]),
            ("enabled=true", &["b"]),
            ("name eq .*b.*", &["b", "lb-subnet"]),
            ("name ne a", &["b", "lb-subnet"]),
            (r#"region eq ".*\bus\-west1\b.*""#, &["lb-subnet"]),
            (r#"(region ne ".*\bx\b.*")(name eq ".*\blb\-subnet\b.*")"#, &["lb-subnet"]),
            (
                "region=https://www.googleapis.com/compute/v1/projects/p/regions/us-west1",
                &["lb-subnet"],
            ),
            ("name:lb*", &["lb-subnet"]),
        ] {
            assert_eq!(passing(filter), expected, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for filter in [
            "",
            "name",
            "name=",
            "=a",
            "(name=a",
            "name=a)",
            "name eq (",
            "name eq '['",
            "name ~ a",
            "\"a",
            "a=b AND",
        ] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
        assert!(Filter::parse(&"(".repeat(FILTER_BYTES_MAX)).is_err());
        assert!(Filter::parse(&"NOT ".repeat(1000)).is_err());
    }

    proptest! {
        #[test]
        fn no_filter_panics(text in "[-()=!<>:.\"'\\\\a-cA-Z |*]{0,40}") {
            if let Ok(filter) = Filter::parse(&text) {
                filter.accepts(&json!({"a": {"b": [1, "c"]}, "b": null}));
            }
        }
    }
}
