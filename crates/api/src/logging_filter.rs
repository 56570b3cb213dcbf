//! Cloud Logging's filter language, as far as entries here have fields.
//!
//! Pure. `OR` binds tighter than `AND`, as Google's does, and terms side by side are joined by
//! `AND`. Invariant: a filter that cannot be read is refused; nothing of it is ignored.

use regex::{Regex, RegexBuilder};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The longest filter, in bytes.
pub(crate) const FILTER_BYTES_MAX: usize = 20_000;
/// Parentheses and negations within each other.
const DEPTH_MAX: usize = 20;
/// A regular expression, compiled, in bytes.
const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// The severities in their order.
const SEVERITIES: [&str; 9] =
    ["DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY"];

/// A filter, ready to be asked.
#[derive(Clone, Debug)]
pub(crate) enum Filter {
    All(Vec<Filter>),
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Compare {
        field: Vec<String>,
        operator: Operator,
        value: String,
    },
    Match {
        field: Vec<String>,
        pattern: Regex,
    },
    Present(Vec<String>),
    /// Text anywhere in the entry.
    Text(String),
}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The text is in the value.
    Has,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    And,
    Or,
    Not,
    Operator(&'static str),
    Word(String),
    Quoted(String),
}

/// Reads a filter; the error is a sentence for the client.
pub(crate) fn parse(text: &str) -> Result<Filter, String> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(format!("The filter is longer than {FILTER_BYTES_MAX} bytes."));
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let filter = parser.all(0)?;
    match parser.peek() {
        None => Ok(filter),
        Some(token) => Err(format!("The filter has an unexpected {token:?}.")),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    const OPERATORS: [&str; 10] = ["=~", "!~", ">=", "<=", "!=", "=", ">", "<", ":", ","];
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("--") {
            rest = after.split_once('\n').map_or("", |(_, after)| after).trim_start();
            continue;
        }
        let operator = OPERATORS.iter().find(|operator| rest.starts_with(**operator));
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '-' => (Token::Not, 1),
            '"' | '\'' => quoted(rest, first)?,
            _ => match operator {
                Some(operator) => (Token::Operator(operator), operator.len()),
                None => word_with_quotes(rest)?,
            },
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn quoted(rest: &str, quote: char) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                // What a regular expression escapes stays escaped.
                Some((_, escaped)) if escaped != quote && escaped != '\\' => {
                    value.push('\\');
                    value.push(escaped);
                }
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            _ if character == quote => return Ok((Token::Quoted(value), at + 1)),
            _ => value.push(character),
        }
    }
    Err("The filter has a quote that is not closed.".to_owned())
}

/// Stands for a dot within quotes, which does not part the words of a field.
const QUOTED_DOT: char = '\u{e000}';

/// A word that names a field may have parts in quotes: `labels."goog-managed-by"`.
fn word_with_quotes(rest: &str) -> Result<(Token, usize), String> {
    let (mut token, mut length) = word(rest);
    while let Token::Word(name) = &mut token
        && name.ends_with('.')
        && rest[length..].starts_with('"')
    {
        let (part, more) = quoted(&rest[length..], '"')?;
        if let Token::Quoted(part) = part {
            name.push_str(&part.replace('.', &QUOTED_DOT.to_string()));
        }
        length += more;
        // The parts after the quotes, if there are any.
        if rest[length..].starts_with('.')
            && let (Token::Word(after), more) = word(&rest[length..])
        {
            name.push_str(&after);
            length += more;
        }
    }
    Ok((token, length))
}

fn word(rest: &str) -> (Token, usize) {
    let ends = |c: char| c.is_whitespace() || "()=<>!:,\"".contains(c);
    // Something that is no operator by itself (a lone `!`) is a word of one character.
    let first = rest.chars().next().map_or(0, char::len_utf8);
    let length = rest[first..].find(ends).map_or(rest.len(), |at| at + first);
    let token = match &rest[..length] {
        "AND" => Token::And,
        "OR" => Token::Or,
        "NOT" => Token::Not,
        word => Token::Word(word.to_owned()),
    };
    (token, length)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned()
    }

    fn all(&mut self, depth: usize) -> Result<Filter, String> {
        let mut terms = Vec::new();
        while !matches!(self.peek(), None | Some(Token::Close)) {
            if self.peek() == Some(&Token::And) {
                self.at += 1;
                continue;
            }
            terms.push(self.any(depth)?);
        }
        Ok(Filter::All(terms))
    }

    fn any(&mut self, depth: usize) -> Result<Filter, String> {
        let mut terms = vec![self.not(depth)?];
        while self.peek() == Some(&Token::Or) {
            self.at += 1;
            terms.push(self.not(depth)?);
        }
        match terms.pop() {
            Some(only) if terms.is_empty() => Ok(only),
            last => Ok(Filter::Any(terms.into_iter().chain(last).collect())),
        }
    }

    fn not(&mut self, depth: usize) -> Result<Filter, String> {
        if depth > DEPTH_MAX {
            return Err("The filter is nested too deeply.".to_owned());
        }
        match self.next() {
            Some(Token::Not) => Ok(Filter::Not(Box::new(self.not(depth + 1)?))),
            Some(Token::Open) => {
                let inner = self.all(depth + 1)?;
                self.close()?;
                Ok(inner)
            }
            Some(Token::Word(word) | Token::Quoted(word)) => self.comparison(word),
            Some(token) => Err(format!("The filter has an unexpected {token:?}.")),
            None => Err("The filter ends too early.".to_owned()),
        }
    }

    fn close(&mut self) -> Result<(), String> {
        match self.next() {
            Some(Token::Close) => Ok(()),
            _ => Err("The filter has a parenthesis that is not closed.".to_owned()),
        }
    }

    fn comparison(&mut self, field: String) -> Result<Filter, String> {
        let Some(Token::Operator(operator)) = self.peek() else { return Ok(Filter::Text(field)) };
        let operator = *operator;
        self.at += 1;
        match self.next() {
            Some(Token::Open) => {
                let values = self.values(&field, operator)?;
                Ok(Filter::Any(values))
            }
            // A negative number was read as a negation and a word.
            Some(Token::Not) => match self.next() {
                Some(Token::Word(word)) => compare(&field, operator, format!("-{word}")),
                _ => Err(format!("The filter has no value for {field}.")),
            },
            Some(Token::Word(value)) => {
                let value = self.rest_of_bare_value(value);
                match (operator, value.as_str()) {
                    (":", "*") => Ok(Filter::Present(path(&field)?)),
                    _ => compare(&field, operator, value),
                }
            }
            Some(Token::Quoted(value)) => compare(&field, operator, value),
            _ => Err(format!("The filter has no value for {field}.")),
        }
    }

    /// A bare time of day has colons, which are operators elsewhere.
    fn rest_of_bare_value(&mut self, mut value: String) -> String {
        let is_moment = value.as_bytes().get(4) == Some(&b'-') && value.contains('T');
        while let (true, Some(Token::Operator(":")), Some(Token::Word(more))) =
            (is_moment, self.peek(), self.tokens.get(self.at + 1))
        {
            value = format!("{value}:{more}");
            self.at += 2;
        }
        value
    }

    fn values(&mut self, field: &str, operator: &'static str) -> Result<Vec<Filter>, String> {
        let mut values = Vec::new();
        loop {
            match self.next() {
                Some(Token::Word(value) | Token::Quoted(value)) => {
                    values.push(compare(field, operator, value)?);
                }
                Some(Token::Or) => {}
                Some(Token::Close) => return Ok(values),
                _ => return Err(format!("The values of {field} must be joined by OR.")),
            }
        }
    }
}

fn compare(field: &str, operator: &str, value: String) -> Result<Filter, String> {
    let path = path(field)?;
    let operator = match operator {
        "=~" | "!~" => {
            let pattern = RegexBuilder::new(&value).size_limit(REGEX_BYTES_MAX).build();
            let pattern = pattern.map_err(|_| format!("'{value}' is no regular expression."))?;
            let matches = Filter::Match { field: path, pattern };
            return Ok(match operator {
                "=~" => matches,
                _ => Filter::Not(Box::new(matches)),
            });
        }
        "=" => Operator::Equal,
        "!=" => Operator::NotEqual,
        "<" => Operator::Less,
        "<=" => Operator::LessOrEqual,
        ">" => Operator::Greater,
        ">=" => Operator::GreaterOrEqual,
        ":" => Operator::Has,
        other => return Err(format!("'{other}' is no operator of filters.")),
    };
    Ok(Filter::Compare { field: path, operator, value })
}

/// `resource.labels."a.b"` is read as one word up to the quote; plain dots separate.
fn path(field: &str) -> Result<Vec<String>, String> {
    let part = |part: &str| part.replace(QUOTED_DOT, ".");
    let parts: Vec<String> = field.split('.').map(part).collect();
    match parts.iter().any(String::is_empty) {
        true => Err(format!("'{field}' is no field.")),
        false => Ok(parts),
    }
}

impl Filter {
    /// Whether an entry passes.
    pub(crate) fn passes(&self, entry: &Value) -> bool {
        match self {
            Filter::All(terms) => terms.iter().all(|term| term.passes(entry)),
            Filter::Any(terms) => terms.iter().any(|term| term.passes(entry)),
            Filter::Not(term) => !term.passes(entry),
            Filter::Present(field) => value_at(entry, field).is_some(),
            Filter::Match { field, pattern } => {
                text_at(entry, field).is_some_and(|text| pattern.is_match(&text))
            }
            Filter::Compare { field, operator, value } => compares(entry, field, *operator, value),
            Filter::Text(text) => holds_text(entry, &text.to_ascii_lowercase()),
        }
    }

    /// The value an entry must have at a field for the filter to pass, if there is one such.
    pub(crate) fn required(&self, wanted: &[&str], by: Operator) -> Option<&str> {
        match self {
            Filter::All(terms) => terms.iter().find_map(|term| term.required(wanted, by)),
            Filter::Compare { field, operator, value } => {
                (*operator == by && field == wanted).then_some(value)
            }
            _ => None,
        }
    }
}

fn value_at<'a>(entry: &'a Value, field: &[String]) -> Option<&'a Value> {
    field.iter().try_fold(entry, |value, key| value.get(key))
}

fn text_at(entry: &Value, field: &[String]) -> Option<String> {
    match value_at(entry, field)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn compares(entry: &Value, field: &[String], operator: Operator, value: &str) -> bool {
    let text = match (text_at(entry, field), field) {
        (Some(text), _) => text,
        (None, [only]) if only == "severity" => SEVERITIES[0].to_owned(),
        // Inside an object every field may have the text.
        (None, _) if operator == Operator::Has => {
            let value = value.to_ascii_lowercase();
            return value_at(entry, field).is_some_and(|inner| holds_text(inner, &value));
        }
        (None, _) => return false,
    };
    let ordering = order(field, &text, value);
    match operator {
        Operator::Equal => ordering.is_eq(),
        Operator::NotEqual => ordering.is_ne(),
        Operator::Less => ordering.is_lt(),
        Operator::LessOrEqual => ordering.is_le(),
        Operator::Greater => ordering.is_gt(),
        Operator::GreaterOrEqual => ordering.is_ge(),
        Operator::Has => text.to_ascii_lowercase().contains(&value.to_ascii_lowercase()),
    }
}

/// Severities by rank, moments by time, numbers by size, and other texts by their letters.
fn order(field: &[String], one: &str, other: &str) -> std::cmp::Ordering {
    if field.last().is_some_and(|last| last == "severity") {
        let rank = |word: &str| SEVERITIES.iter().position(|s| s.eq_ignore_ascii_case(word));
        return rank(one).cmp(&rank(other));
    }
    let moment = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    if let (Some(one), Some(other)) = (moment(one), moment(other)) {
        return one.cmp(&other);
    }
    if let (Ok(one), Ok(other)) = (one.parse::<f64>(), other.parse::<f64>()) {
        return one.total_cmp(&other);
    }
    one.to_ascii_lowercase().cmp(&other.to_ascii_lowercase())
}

fn holds_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(inner) => inner.to_ascii_lowercase().contains(text),
        Value::Number(number) => number.to_string().contains(text),
        Value::Array(items) => items.iter().any(|item| holds_text(item, text)),
        Value::Object(object) => object.values().any(|inner| holds_text(inner, text)),
        Value::Null | Value::Bool(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_filter_lets_through_what_google_would() {
        let entry = json!({
            "severity": "WARNING",
            "timestamp": "2026-01-02T03:04:05.5Z",
            "textPayload": "Hello World",
            "resource": {
                "type": "cloud_run_revision",
                "labels": { "service_name": "hello", "location": "us-west1" },
            },
            "httpRequest": { "status": 503 },
            "labels": { "goog-managed-by": "cloudfunctions", "a.example/b": { "c": "d" } },
        });
        for (text, expected) in [
            ("", true),
            (
                "resource.type = cloud_run_revision \n AND resource.labels.service_name = hello \n AND severity >= DEFAULT",
                true,
            ),
            ("resource.type=\"cloud_run_revision\" resource.labels.service_name=other", false),
            ("severity>=ERROR", false),
            ("severity=(INFO OR WARNING)", true),
            ("timestamp>=\"2026-01-02T03:04:05Z\"", true),
            ("timestamp>2026-01-02T03:04:05.5Z", false),
            ("timestamp<\"2026-01-02T04:04:06+01:00\"", true),
            ("httpRequest.status>=500", true),
            ("httpRequest.status=200", false),
            ("httpRequest:*", true),
            ("jsonPayload:*", false),
            ("textPayload:world", true),
            ("textPayload=~\"^Hello\\s\"", true),
            ("textPayload!~\"^hello\"", true),
            ("\"hello world\"", true),
            ("NOT textPayload:world", false),
            ("-severity=ERROR", true),
            ("severity=ERROR OR severity=WARNING AND textPayload:world", true),
            ("severity=ERROR OR severity=WARNING AND textPayload:nothing", false),
            ("severity=WARNING OR severity=ERROR AND textPayload:nothing", false),
            ("(severity=WARNING) (textPayload:hello)", true),
            ("severity=WARNING -- a remark\nAND textPayload:hello", true),
            ("jsonPayload.a != b", false),
            ("labels.\"goog-managed-by\"=\"cloudfunctions\" severity=WARNING", true),
            ("labels.\"goog-managed-by\"=other", false),
            ("labels.\"a.example/b\".c=d", true),
        ] {
            let filter = parse(text).expect(text);
            assert_eq!(filter.passes(&entry), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["(", "a=", "a=\"b", ")", "a=(b c", "NOT", "a=~\"(\"", "a..b=c", "a OR"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"(".repeat(1000)).is_err());
        assert!(parse(&"- ".repeat(1000)).is_err());
    }

    #[test]
    fn what_a_filter_requires_is_found_among_its_terms() {
        let filter = parse("a.b = c AND timestamp >= \"t\" AND (x=1 OR a.b=d)").expect("read");
        assert_eq!(filter.required(&["a", "b"], Operator::Equal), Some("c"));
        assert_eq!(filter.required(&["timestamp"], Operator::GreaterOrEqual), Some("t"));
        assert_eq!(filter.required(&["x"], Operator::Equal), None);
    }

    proptest! {
        #[test]
        fn reading_a_filter_never_panics(text in "[a-z .=<>!~:()\"'\\\\,*-]{0,60}|\\PC{0,40}") {
            let _ = parse(&text).map(|filter| filter.passes(&json!({ "a": "b" })));
        }
    }
}
