//! Path templates (`pathTemplateMatch`) and what is made of their variables (`pathTemplateRewrite`).
//!
//! A template is literal text with operators: `*` is one or more characters of one segment, `**` is any
//! characters to the end, and `{name}`, `{name=…}` remember what they stood for. At most one operator stands
//! in a segment and nothing but literal text follows `**`, so matching never goes back.
//!
//! Invariant: variables are numbered in the order in which they occur, and a capture is a range of the path.

use smallvec::SmallVec;
use std::fmt::Write;
use std::ops::Range;

/// The most operators of one template.
pub(crate) const OPERATORS_MAX: usize = 5;

/// What variables stood for: ranges of the path, by number.
pub(crate) type Captures = SmallVec<[Range<usize>; OPERATORS_MAX]>;

/// A compiled `pathTemplateMatch`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathTemplate {
    source: String,
    pieces: Vec<Piece>,
    variables: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// Text that must be there.
    Literal(String),
    /// `*`: one or more characters without a slash.
    Segment,
    /// `**`: the rest, possibly nothing.
    Rest,
    /// A variable begins here.
    Open(usize),
    /// A variable ends here.
    Close(usize),
}

impl PathTemplate {
    /// Reads a template; the error is a sentence that says what is wrong with it.
    pub(crate) fn new(source: &str) -> Result<PathTemplate, String> {
        let template = Parser { rest: source, template: PathTemplate::empty(source) }.run()?;
        template.check()?;
        Ok(template)
    }

    fn empty(source: &str) -> PathTemplate {
        PathTemplate { source: source.to_string(), pieces: Vec::new(), variables: Vec::new() }
    }

    fn check(&self) -> Result<(), String> {
        if !self.source.starts_with('/') {
            return Err("The path template must begin with '/'.".into());
        }
        let operators = self.pieces.iter().filter(|p| matches!(p, Piece::Segment | Piece::Rest));
        if operators.count() > OPERATORS_MAX {
            return Err(format!(
                "The path template must not have more than {OPERATORS_MAX} operators."
            ));
        }
        let mut in_segment = false;
        let mut rest_seen = false;
        for piece in &self.pieces {
            match piece {
                Piece::Segment | Piece::Rest if rest_seen => {
                    return Err("'**' must be the last operator of the path template.".into());
                }
                Piece::Segment | Piece::Rest if in_segment => {
                    return Err(
                        "A segment of the path template must not have two operators.".into()
                    );
                }
                Piece::Segment => in_segment = true,
                Piece::Rest => (in_segment, rest_seen) = (true, true),
                Piece::Literal(text) => in_segment = in_segment && !text.contains('/'),
                Piece::Open(_) | Piece::Close(_) => {}
            }
        }
        Ok(())
    }

    /// The template as it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.source
    }

    /// The names of its variables, in order.
    pub(crate) fn variables(&self) -> &[String] {
        &self.variables
    }

    /// How many operators it has, variables included.
    #[cfg(test)]
    pub(crate) fn operators(&self) -> usize {
        self.pieces.iter().filter(|p| matches!(p, Piece::Segment | Piece::Rest)).count()
    }

    /// The literal text it begins with, by which templates are indexed.
    pub(crate) fn literal_prefix(&self) -> String {
        let mut prefix = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => prefix.push_str(text),
                Piece::Open(_) | Piece::Close(_) => {}
                Piece::Segment | Piece::Rest => break,
            }
        }
        prefix
    }

    /// Whether the path fits.
    pub(crate) fn is_match(&self, path: &str) -> bool {
        self.captures(path).is_some()
    }

    /// What the variables stand for, if the path fits.
    pub(crate) fn captures(&self, path: &str) -> Option<Captures> {
        let mut captures: Captures = self.variables.iter().map(|_| 0..0).collect();
        let mut at = 0;
        for (i, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(text) => {
                    at += path[at..].strip_prefix(text.as_str()).map(|_| text.len())?;
                }
                Piece::Segment => {
                    let segment = &path[at..];
                    let segment = &segment[..segment.find('/').unwrap_or(segment.len())];
                    // Literal text after the operator, up to the next slash, ends the segment.
                    let length = segment.len().checked_sub(self.segment_tail(i))?;
                    if length == 0 || !path.is_char_boundary(at + length) {
                        return None;
                    }
                    at += length;
                }
                Piece::Rest => {
                    let length = path.len().checked_sub(at + self.tail(i))?;
                    if !path.is_char_boundary(at + length) {
                        return None;
                    }
                    at += length;
                }
                Piece::Open(variable) => captures[*variable].start = at,
                Piece::Close(variable) => captures[*variable].end = at,
            }
        }
        (at == path.len()).then_some(captures)
    }

    /// The length of the literal text after piece `i` that still belongs to its segment.
    fn segment_tail(&self, i: usize) -> usize {
        let mut length = 0;
        for piece in &self.pieces[i + 1..] {
            if let Piece::Literal(text) = piece {
                length += text.find('/').unwrap_or(text.len());
                if text.contains('/') {
                    break;
                }
            }
        }
        length
    }

    /// The length of all literal text after piece `i`.
    fn tail(&self, i: usize) -> usize {
        let literal = |piece: &Piece| match piece {
            Piece::Literal(text) => text.len(),
            _ => 0,
        };
        self.pieces[i + 1..].iter().map(literal).sum()
    }
}

struct Parser<'s> {
    rest: &'s str,
    template: PathTemplate,
}

impl Parser<'_> {
    fn run(mut self) -> Result<PathTemplate, String> {
        let mut inside = None;
        while let Some(c) = self.rest.chars().next() {
            match c {
                '*' => self.star(),
                '{' if inside.is_none() => inside = self.open()?,
                '}' if inside.is_some() => {
                    self.rest = &self.rest[1..];
                    self.template.pieces.extend(inside.take().map(Piece::Close));
                }
                '{' | '}' => return Err("The path template has unbalanced braces.".into()),
                _ => self.literal(c)?,
            }
        }
        match inside {
            Some(_) => Err("The path template has unbalanced braces.".into()),
            None => Ok(self.template),
        }
    }

    fn star(&mut self) {
        let rest = self.rest.strip_prefix("**");
        self.template.pieces.push(if rest.is_some() { Piece::Rest } else { Piece::Segment });
        self.rest = rest.unwrap_or(&self.rest[1..]);
    }

    /// `{name}` or `{name=`; the number of the variable when its pattern follows.
    fn open(&mut self) -> Result<Option<usize>, String> {
        let end = self.rest.find(['=', '}']).ok_or("The path template has unbalanced braces.")?;
        let name = &self.rest[1..end];
        check_variable(name)?;
        if self.template.variables.iter().any(|known| known == name) {
            return Err(format!(
                "The variable '{name}' occurs more than once in the path template."
            ));
        }
        let variable = self.template.variables.len();
        self.template.variables.push(name.to_string());
        self.template.pieces.push(Piece::Open(variable));
        let pattern_follows = self.rest[end..].starts_with('=');
        self.rest = &self.rest[end + 1..];
        if pattern_follows {
            if self.rest.starts_with('}') {
                return Err(format!("The variable '{name}' has an empty pattern."));
            }
            return Ok(Some(variable));
        }
        self.template.pieces.extend([Piece::Segment, Piece::Close(variable)]);
        Ok(None)
    }

    fn literal(&mut self, c: char) -> Result<(), String> {
        if !c.is_ascii_graphic()
            || matches!(c, '?' | '#' | '<' | '>' | '\\' | '^' | '`' | '|' | '"')
        {
            return Err(format!("The path template must not contain {c:?}."));
        }
        match self.template.pieces.last_mut() {
            Some(Piece::Literal(text)) => text.push(c),
            _ => self.template.pieces.push(Piece::Literal(c.to_string())),
        }
        self.rest = &self.rest[1..];
        Ok(())
    }
}

fn check_variable(name: &str) -> Result<(), String> {
    let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    match letter && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        true => Ok(()),
        false => Err(format!("'{name}' is not the name of a variable of a path template.")),
    }
}

/// A compiled `pathTemplateRewrite`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateRewrite {
    source: String,
    pieces: Vec<RewritePiece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RewritePiece {
    Literal(String),
    /// By name: each match rule of a route rule may number its variables differently.
    Variable(String),
}

impl TemplateRewrite {
    /// Reads a rewrite; the error is a sentence that says what is wrong with it.
    pub(crate) fn new(source: &str) -> Result<TemplateRewrite, String> {
        if !source.starts_with('/') {
            return Err("The path template rewrite must begin with '/'.".into());
        }
        let mut pieces = Vec::new();
        let mut rest = source;
        while !rest.is_empty() {
            let open = rest.find(['{', '}']).unwrap_or(rest.len());
            if let Some(c) =
                rest[..open].chars().find(|c| !c.is_ascii_graphic() || "?#*".contains(*c))
            {
                return Err(format!("The path template rewrite must not contain {c:?}."));
            }
            if open > 0 {
                pieces.push(RewritePiece::Literal(rest[..open].to_string()));
            }
            rest = &rest[open..];
            if rest.is_empty() {
                break;
            }
            let close = rest.find('}').filter(|_| rest.starts_with('{'));
            let close = close.ok_or("The path template rewrite has unbalanced braces.")?;
            check_variable(&rest[1..close])?;
            pieces.push(RewritePiece::Variable(rest[1..close].to_string()));
            rest = &rest[close + 1..];
        }
        Ok(TemplateRewrite { source: source.to_string(), pieces })
    }

    /// The rewrite as it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.source
    }

    /// The variables it uses.
    pub(crate) fn variables(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            RewritePiece::Variable(name) => Some(name.as_str()),
            RewritePiece::Literal(_) => None,
        })
    }

    /// The new path for one that fits `template`.
    pub(crate) fn apply(&self, template: &PathTemplate, path: &str) -> Option<String> {
        let captures = template.captures(path)?;
        let mut out = String::with_capacity(path.len() + self.source.len());
        for piece in &self.pieces {
            match piece {
                RewritePiece::Literal(text) => out.push_str(text),
                RewritePiece::Variable(name) => {
                    let variable = template.variables.iter().position(|known| known == name);
                    let range = variable.and_then(|variable| captures.get(variable));
                    let _ = out.write_str(range.map_or("", |range| &path[range.clone()]));
                }
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each line: a path and what the variables stand for, or `no`.
    #[track_caller]
    fn check(template: &str, lines: &str) {
        let template = PathTemplate::new(template).expect("a sound template");
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let (path, expected) = line.split_once(" -> ").expect("PATH -> CAPTURES");
            let found = match template.captures(path) {
                None => "no".to_string(),
                Some(captures) => {
                    let pairs = template.variables().iter().zip(&captures);
                    let pairs: Vec<String> = pairs
                        .map(|(name, range)| format!("{name}={}", &path[range.clone()]))
                        .collect();
                    if pairs.is_empty() { "yes".into() } else { pairs.join(" ") }
                }
            };
            assert_eq!(found, expected, "{} on {path}", template.as_str());
        }
    }

    #[test]
    fn a_star_is_one_segment_and_two_are_the_rest() {
        check("/*", "/a -> yes\n/ -> no\n/a/ -> no\n/a/b -> no");
        check("/a/**", "/a/ -> yes\n/a/b/c -> yes\n/a -> no");
        check("/*/videos/*", "/en/videos/7 -> yes\n/en/videos/ -> no\n/en/films/7 -> no");
        check("/a", "/a -> yes\n/a/ -> no");
    }

    #[test]
    fn text_may_follow_an_operator_in_its_segment() {
        check("/videos/*.m4s", "/videos/a.m4s -> yes\n/videos/.m4s -> no\n/videos/a.m4s/b -> no");
        check("/**.mpd", "/a/b/c.mpd -> yes\n/a.mpdx -> no");
        check("/**/manifest", "/a/b/manifest -> yes\n/manifest -> no\n//manifest -> yes");
        check("/v*/x", "/v1/x -> yes\n/v/x -> no");
    }

    #[test]
    fn variables_remember_what_they_stood_for() {
        check("/users/{user}/carts/{cart}", "/users/u1/carts/c2 -> user=u1 cart=c2");
        check("/{rest=**}", "/a/b -> rest=a/b\n/ -> rest=");
        check("/x/{story=news/*}/y", "/x/news/7/y -> story=news/7\n/x/old/7/y -> no");
        check("/{a=*}-x/b", "/q-x/b -> a=q");
        check("/a%2Fb/{v}", "/a%2Fb/c%2Fd -> v=c%2Fd\n/a/b/c -> no");
    }

    #[test]
    fn templates_that_cannot_be_meant_are_refused() {
        for (template, why) in [
            ("", "begin with '/'"),
            ("a", "begin with '/'"),
            ("/*/*/*/*/*/*", "more than 5 operators"),
            ("/**/*", "last operator"),
            ("/**/**", "last operator"),
            ("/***", "last operator"),
            ("/*a*", "two operators"),
            ("/{a}{b}", "two operators"),
            ("/{a", "unbalanced"),
            ("/a}", "unbalanced"),
            ("/{a={b}}", "unbalanced"),
            ("/{a}/{a}", "more than once"),
            ("/{1a}", "not the name"),
            ("/{}", "not the name"),
            ("/{a-b}", "not the name"),
            ("/{a=}", "empty pattern"),
            ("/a?b", "must not contain '?'"),
            ("/é", "must not contain 'é'"),
        ] {
            let error = PathTemplate::new(template).expect_err(template);
            assert!(error.contains(why), "{template}: {error}");
        }
        assert_eq!(PathTemplate::new("/*/*/*/*/*").map(|template| template.operators()), Ok(5));
    }

    #[test]
    fn a_rewrite_puts_variables_where_it_likes() {
        let template = PathTemplate::new("/users/{user}/carts/{cart}/{rest=**}").expect("sound");
        for (rewrite, expected) in [
            ("/{cart}/{user}", "/c/u"),
            ("/x/{rest}/{cart}.json", "/x/a/b/c.json"),
            ("/{user}{cart}", "/uc"),
            ("/fixed", "/fixed"),
        ] {
            let rewrite = TemplateRewrite::new(rewrite).expect("a sound rewrite");
            let new = rewrite.apply(&template, "/users/u/carts/c/a/b");
            assert_eq!(new.as_deref(), Some(expected), "{}", rewrite.as_str());
        }
        for rewrite in ["", "x", "/{a", "/a}", "/{1}", "/a?b", "/*"] {
            assert!(TemplateRewrite::new(rewrite).is_err(), "{rewrite}");
        }
    }

    proptest! {
        #[test]
        fn no_template_and_no_path_panics(template in r"[a/*{}=.]{0,16}|.{0,8}", path in "[a/.é]{0,12}") {
            for template in [&template, &format!("/{template}")] {
                if let Ok(template) = PathTemplate::new(template) {
                    let path = format!("/{path}");
                    if let Some(captures) = template.captures(&path) {
                        prop_assert!(path.starts_with(&template.literal_prefix()));
                        for range in &captures {
                            let _ = &path[range.clone()];
                        }
                    }
                }
            }
        }

        #[test]
        fn what_is_filled_in_is_captured(a in "[a-z0-9.]{1,6}", b in "[a-z0-9/]{0,8}") {
            let template = PathTemplate::new("/x/{a}/y/{b=**}").expect("sound");
            let path = format!("/x/{a}/y/{b}");
            let captures = template.captures(&path).expect("it fits");
            prop_assert_eq!(&path[captures[0].clone()], a.as_str());
            prop_assert_eq!(&path[captures[1].clone()], b.as_str());
        }
    }
}
