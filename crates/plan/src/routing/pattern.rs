//! Regular expressions in RE2's language, which Google's field descriptions promise, on a linear engine.
//!
//! RE2 and the `regex` crate agree on most of their syntax and differ silently on some of it: `\d` is
//! ASCII to RE2, `[a&&b]` has no operator in it, `a**` is refused. So a pattern is read as RE2 reads it,
//! piece by piece, and each piece is written out in a form that means the same to the engine.
//!
//! Invariant: a [`Pattern`] matches whole texts only, and to match costs at most one step for each byte of
//! the text, whatever the pattern.

mod automaton;

use automaton::Automaton;
use std::fmt::Write;
use std::sync::Arc;

/// The longest pattern, in characters.
pub const PATTERN_CHARS_MAX: usize = 250;

/// RE2's bound for `{n,m}`.
const REPEAT_MAX: u32 = 1000;

/// How deep groups may be nested.
const NESTING_MAX: usize = 50;

/// The general categories RE2 knows for `\p`.
const CATEGORIES: &[&str] = &[
    "Any", "C", "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N",
    "Nd", "Nl", "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So",
    "Z", "Zl", "Zp", "Zs",
];

/// A regular expression that is matched against whole texts.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: Box<str>,
    automaton: Arc<Automaton>,
}

impl Pattern {
    /// Compiles a pattern; the error is what RE2 would say about it.
    pub fn new(source: &str) -> Result<Pattern, String> {
        if source.chars().count() > PATTERN_CHARS_MAX {
            return Err(format!("longer than {PATTERN_CHARS_MAX} characters"));
        }
        let automaton = Arc::new(Automaton::new(&translate(source)?)?);
        Ok(Pattern { source: source.into(), automaton })
    }

    /// Whether the whole text matches.
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.automaton.run(text).0
    }

    /// How many steps the answer for a text takes: at most one for each byte.
    pub fn steps(&self, text: &[u8]) -> usize {
        self.automaton.run(text).1
    }

    /// The text that every match begins with.
    pub(crate) fn literal_prefix(&self) -> Vec<u8> {
        self.automaton.literal_prefix()
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.source.len() + self.automaton.bytes()
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

/// Rewrites an RE2 pattern into one of the same meaning for the `regex` crate.
fn translate(source: &str) -> Result<String, String> {
    let mut reader =
        Reader { rest: source, out: String::new(), groups: Vec::new(), names: Vec::new() };
    reader.run()?;
    Ok(reader.out)
}

struct Reader<'s> {
    rest: &'s str,
    out: String,
    /// Open groups: whether text precedes within each is tracked by `Atom` in `run`.
    groups: Vec<()>,
    names: Vec<&'s str>,
}

/// What stands before the reading position, which decides whether a repetition may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing that could be repeated.
    Nothing,
    /// Something that can be repeated.
    Atom,
    /// A repetition, which RE2 does not repeat.
    Repetition,
}

impl<'s> Reader<'s> {
    fn run(&mut self) -> Result<(), String> {
        let mut before = Before::Nothing;
        while let Some(c) = self.peek() {
            before = match c {
                '(' => self.open_group()?,
                ')' => {
                    self.take(1);
                    self.groups.pop().ok_or("unexpected )")?;
                    self.out.push(')');
                    Before::Atom
                }
                '|' => {
                    self.take(1);
                    self.out.push('|');
                    Before::Nothing
                }
                '*' | '+' | '?' => self.repetition(before, 1)?,
                '{' => match counted(self.rest)? {
                    Some(length) => self.repetition(before, length)?,
                    None => self.literal(),
                },
                '[' => self.class()?,
                '\\' => self.escape()?,
                '.' | '^' | '$' => {
                    self.take(1);
                    self.out.push(c);
                    Before::Atom
                }
                _ => self.literal(),
            };
        }
        if self.groups.is_empty() { Ok(()) } else { Err("missing )".into()) }
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    /// Takes the next `bytes` bytes, which the caller knows to end on a character.
    fn take(&mut self, bytes: usize) -> &'s str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        taken
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.take(c.len_utf8());
        Some(c)
    }

    fn literal(&mut self) -> Before {
        if let Some(c) = self.next() {
            push_literal(&mut self.out, c);
        }
        Before::Atom
    }

    fn repetition(&mut self, before: Before, length: usize) -> Result<Before, String> {
        let text = self.take(length);
        match before {
            Before::Nothing => return Err(format!("no argument for repetition operator: {text}")),
            Before::Repetition => return Err(format!("bad repetition operator: {text}")),
            Before::Atom => self.out.push_str(text),
        }
        if self.rest.starts_with('?') {
            self.take(1);
            self.out.push('?');
        }
        Ok(Before::Repetition)
    }

    fn open_group(&mut self) -> Result<Before, String> {
        if self.groups.len() >= NESTING_MAX {
            return Err("expression nests too deeply".into());
        }
        self.take(1);
        if !self.rest.starts_with('?') {
            self.out.push('(');
            self.groups.push(());
            return Ok(Before::Nothing);
        }
        self.take(1);
        for prefix in ["P<", "<"] {
            if let Some(named) = self.rest.strip_prefix(prefix)
                && !named.starts_with(['=', '!'])
            {
                self.take(prefix.len());
                return self.group_name();
            }
        }
        self.flags()
    }

    fn group_name(&mut self) -> Result<Before, String> {
        let end = self.rest.find('>').ok_or("missing >")?;
        let name = self.take(end);
        self.take(1);
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) || self.names.contains(&name) {
            return Err(format!("invalid named capture: {name}"));
        }
        self.names.push(name);
        // Captures are never read, so the name, which the engine would judge by rules of its own, is left out.
        self.out.push('(');
        self.groups.push(());
        Ok(Before::Nothing)
    }

    /// `(?i)`, `(?i-s:…)`, `(?:…)`.
    fn flags(&mut self) -> Result<Before, String> {
        self.out.push_str("(?");
        let (mut negative, mut some) = (false, true);
        loop {
            match self.next() {
                Some(flag @ ('i' | 'm' | 's' | 'U')) => {
                    self.out.push(flag);
                    some = true;
                }
                Some('-') if !negative => {
                    self.out.push('-');
                    (negative, some) = (true, false);
                }
                Some(':') if some => {
                    self.out.push(':');
                    self.groups.push(());
                    return Ok(Before::Nothing);
                }
                // `(?)` sets nothing; the engine would not have it.
                Some(')') if some => {
                    if self.out.ends_with("(?") {
                        self.out.push(':');
                    }
                    self.out.push(')');
                    return Ok(Before::Nothing);
                }
                Some(c) => return Err(format!("invalid perl operator: (?{c}")),
                None => return Err("missing )".into()),
            }
        }
    }

    fn escape(&mut self) -> Result<Before, String> {
        self.take(1);
        let c = self.peek().ok_or("trailing \\")?;
        if let Some(class) = perl_class(c) {
            self.take(1);
            let _ = write!(self.out, "[{class}]");
            return Ok(Before::Atom);
        }
        match c {
            'A' | 'z' => {
                self.take(1);
                self.out.push('\\');
                self.out.push(c);
            }
            // Word boundaries are ASCII to RE2.
            'b' | 'B' => {
                self.take(1);
                let _ = write!(self.out, r"(?-u:\{c})");
            }
            'C' => {
                self.take(1);
                self.out.push_str("(?s-u:.)");
            }
            'p' | 'P' => {
                let property = self.property()?;
                self.out.push_str(&property);
            }
            'Q' => {
                self.take(1);
                let end = self.rest.find(r"\E").unwrap_or(self.rest.len());
                let quoted = self.take(end);
                self.take(self.rest.len().min(2));
                quoted.chars().for_each(|c| push_literal(&mut self.out, c));
                return Ok(if quoted.is_empty() { Before::Nothing } else { Before::Atom });
            }
            _ => {
                let literal = self.escaped_character()?;
                push_literal(&mut self.out, literal);
            }
        }
        Ok(Before::Atom)
    }

    /// A character written by an escape, in a class or outside; the backslash is taken.
    fn escaped_character(&mut self) -> Result<char, String> {
        let c = self.next().ok_or("trailing \\")?;
        let invalid = || format!("invalid escape sequence: \\{c}");
        Ok(match c {
            'a' => '\x07',
            'f' => '\x0C',
            't' => '\t',
            'n' => '\n',
            'r' => '\r',
            'v' => '\x0B',
            // `\1` alone would be a back reference; with more digits it is an octal code.
            '0'..='7' => {
                let digits = self.rest.bytes().take(2).take_while(|d| (b'0'..=b'7').contains(d));
                let digits = digits.count();
                if c != '0' && digits == 0 {
                    return Err(invalid());
                }
                let code = u32::from_str_radix(self.take(digits), 8).unwrap_or(0)
                    + (u32::from(c) - u32::from('0'))
                        * 8u32.pow(u32::try_from(digits).unwrap_or(0));
                char::from_u32(code).ok_or_else(invalid)?
            }
            'x' => {
                let hex = match self.rest.strip_prefix('{') {
                    Some(braced) => {
                        let end = braced.find('}').ok_or_else(invalid)?;
                        let hex = &braced[..end];
                        self.take(end + 2);
                        hex
                    }
                    None if self.rest.is_char_boundary(2) && self.rest.len() >= 2 => self.take(2),
                    None => return Err(invalid()),
                };
                let digits =
                    (1..=6).contains(&hex.len()) && hex.bytes().all(|d| d.is_ascii_hexdigit());
                let code = u32::from_str_radix(hex, 16).ok().filter(|_| digits);
                code.and_then(char::from_u32).ok_or_else(invalid)?
            }
            c if c.is_ascii_punctuation() || c == ' ' || !c.is_ascii() => c,
            _ => return Err(invalid()),
        })
    }

    /// `\pN`, `\p{Greek}`, `\P{^Lu}`: one of RE2's categories or a script.
    fn property(&mut self) -> Result<String, String> {
        let negated = self.next() == Some('P');
        let name = match self.rest.strip_prefix('{') {
            Some(braced) => {
                let end = braced.find('}').ok_or("invalid character class range: \\p{")?;
                let name = &braced[..end];
                self.take(end + 2);
                name
            }
            None => {
                let length = self.peek().map_or(0, char::len_utf8);
                self.take(length)
            }
        };
        let (negated, name) = match name.strip_prefix('^') {
            Some(name) => (!negated, name),
            None => (negated, name),
        };
        let word = |c: char| c.is_ascii_alphabetic() || c == '_';
        if name.is_empty() || !name.chars().all(word) {
            return Err(format!("invalid character class range: \\p{{{name}}}"));
        }
        let letter = if negated { 'P' } else { 'p' };
        let property = match CATEGORIES.contains(&name) {
            true => format!("\\{letter}{{{name}}}"),
            false => format!("\\{letter}{{Script={name}}}"),
        };
        match regex::bytes::Regex::new(&property) {
            Ok(_) => Ok(property),
            Err(_) => Err(format!("invalid character class range: \\p{{{name}}}")),
        }
    }

    fn class(&mut self) -> Result<Before, String> {
        let whole = self.rest;
        let unclosed = || format!("missing ]: {whole}");
        self.take(1);
        self.out.push('[');
        if self.rest.starts_with('^') {
            self.take(1);
            self.out.push('^');
        }
        let mut first = true;
        loop {
            let c = self.peek().ok_or_else(unclosed)?;
            if c == ']' && !first {
                self.take(1);
                self.out.push(']');
                return Ok(Before::Atom);
            }
            // A hyphen stands for itself at either end only.
            if c == '-' && !first && !self.rest[1..].starts_with(']') {
                return Err(format!("invalid character class range: {whole}"));
            }
            first = false;
            if self.class_set()? {
                continue;
            }
            let low = self.class_character().ok_or_else(unclosed)??;
            let ranged = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            if !ranged {
                push_literal(&mut self.out, low);
                continue;
            }
            self.take(1);
            let high = self.class_character().ok_or_else(unclosed)??;
            if high < low {
                return Err(format!("invalid character class range: {low}-{high}"));
            }
            push_literal(&mut self.out, low);
            self.out.push('-');
            push_literal(&mut self.out, high);
        }
    }

    /// A set within a class: `[:alpha:]`, `\d`, `\pL`. False when there is none here.
    fn class_set(&mut self) -> Result<bool, String> {
        if self.rest.starts_with("[:")
            && let Some(end) = self.rest.find(":]")
        {
            let name = self.take(end + 2);
            let known = name.trim_matches(['[', ']', ':', '^']);
            let known = matches!(
                known,
                "alnum"
                    | "alpha"
                    | "ascii"
                    | "blank"
                    | "cntrl"
                    | "digit"
                    | "graph"
                    | "lower"
                    | "print"
                    | "punct"
                    | "space"
                    | "upper"
                    | "word"
                    | "xdigit"
            );
            if !known {
                return Err(format!("invalid character class range: {name}"));
            }
            self.out.push_str(name);
            return Ok(true);
        }
        let Some(escaped) = self.rest.strip_prefix('\\') else { return Ok(false) };
        let Some(c) = escaped.chars().next() else { return Ok(false) };
        if let Some(class) = perl_class(c) {
            self.take(2);
            // A negated class inside a class needs brackets of its own.
            let _ = write!(self.out, "[{class}]");
            return Ok(true);
        }
        if c == 'p' || c == 'P' {
            self.take(1);
            let property = self.property()?;
            self.out.push_str(&property);
            return Ok(true);
        }
        Ok(false)
    }

    fn class_character(&mut self) -> Option<Result<char, String>> {
        match self.peek()? {
            '\\' => {
                self.take(1);
                Some(self.escaped_character())
            }
            _ => self.next().map(Ok),
        }
    }
}

/// The inside of the ASCII class that `\c` stands for.
fn perl_class(c: char) -> Option<&'static str> {
    Some(match c {
        'd' => "0-9",
        'D' => "^0-9",
        's' => r"\t\n\x0C\r\x20",
        'S' => r"^\t\n\x0C\r\x20",
        'w' => "0-9A-Za-z_",
        'W' => "^0-9A-Za-z_",
        _ => return None,
    })
}

/// The length of a counted repetition at the start of `text`; `None` when the brace stands for itself.
fn counted(text: &str) -> Result<Option<usize>, String> {
    let Some(end) = text.find('}') else { return Ok(None) };
    let (low, high) = match text[1..end].split_once(',') {
        Some((low, "")) => (low, low),
        Some((low, high)) => (low, high),
        None => (&text[1..end], &text[1..end]),
    };
    let digits = |number: &str| !number.is_empty() && number.bytes().all(|d| d.is_ascii_digit());
    if !digits(low) || !digits(high) {
        return Ok(None);
    }
    let bound = |number: &str| number.parse::<u32>().ok().filter(|bound| *bound <= REPEAT_MAX);
    match (bound(low), bound(high)) {
        (Some(low), Some(high)) if low <= high => Ok(Some(end + 1)),
        _ => Err(format!("invalid repetition size: {}", &text[..=end])),
    }
}

/// Writes a character so that it stands for itself everywhere.
fn push_literal(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || c == '/' || c == '_' {
        out.push(c);
    } else {
        let _ = write!(out, r"\x{{{:X}}}", u32::from(c));
    }
}

#[cfg(test)]
mod tests;
