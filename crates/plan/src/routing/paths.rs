//! Which path rule of a path matcher answers: an exact path, or else the longest one that ends in `/*`.
//!
//! Invariant: every pattern in the table occurs once, so the order of declaration means nothing.

use super::prefix_table::PrefixTable;
use rustc_hash::FxHashMap;

/// The longest pattern of a path rule, in characters.
pub(crate) const PATH_CHARS_MAX: usize = 1024;

/// The patterns of a matcher's path rules.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathTable {
    patterns: Vec<PathPattern>,
    exact: FxHashMap<Box<[u8]>, u32>,
    exact_len_max: usize,
    prefixes: PrefixTable,
}

/// One of the `paths` of a path rule.
#[derive(Clone, Debug)]
pub(crate) struct PathPattern {
    /// The pattern as it was written.
    pub(crate) text: Box<str>,
    /// The number of the rule it belongs to.
    pub(crate) rule: u32,
}

impl PathPattern {
    /// The part of a matching path that a rewrite replaces; `None` for an exact path: all of it.
    pub(crate) fn prefix(&self) -> Option<&str> {
        self.text.strip_suffix('*')
    }

    /// Whether the pattern matches, asked by itself.
    pub(crate) fn is_match(&self, path: &str) -> bool {
        match self.prefix() {
            Some(prefix) => path.starts_with(prefix),
            None => *path == *self.text,
        }
    }
}

impl PathTable {
    /// Builds the table from patterns that [`check_pattern`] accepts and that are all different.
    pub(crate) fn new(patterns: Vec<PathPattern>) -> PathTable {
        let mut table = PathTable::default();
        let mut prefixes = Vec::new();
        for (pattern, value) in patterns.iter().zip(0u32..) {
            match pattern.prefix() {
                Some(prefix) => prefixes.push((prefix.as_bytes().to_vec(), value)),
                None => {
                    table.exact_len_max = table.exact_len_max.max(pattern.text.len());
                    table.exact.insert(pattern.text.as_bytes().into(), value);
                }
            }
        }
        table.prefixes = PrefixTable::new(prefixes);
        table.exact.shrink_to_fit();
        table.patterns = patterns;
        table
    }

    /// The pattern that answers for a path.
    pub(crate) fn find(&self, path: &str) -> Option<&PathPattern> {
        let path = path.as_bytes();
        // A path longer than every exact pattern need not be hashed, however long it is.
        let exact = (path.len() <= self.exact_len_max).then(|| self.exact.get(path)).flatten();
        let found = exact.copied().or_else(|| self.prefixes.longest(path))?;
        self.patterns.get(found as usize)
    }

    /// Every pattern, in order of declaration.
    pub(crate) fn patterns(&self) -> &[PathPattern] {
        &self.patterns
    }

    /// The memory it takes, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let texts: usize = self.patterns.iter().map(|pattern| pattern.text.len()).sum();
        texts * 2
            + self.patterns.capacity() * size_of::<PathPattern>()
            + self.exact.capacity() * (size_of::<(Box<[u8]>, u32)>() + 1)
            + self.prefixes.bytes()
    }
}

/// Why a path pattern cannot be used, if it cannot.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), String> {
    let refuse = |why: &str| Err(why.to_string());
    if !pattern.starts_with('/') {
        return refuse("Path must begin with '/'.");
    }
    if pattern.chars().count() > PATH_CHARS_MAX {
        return Err(format!("Path must not be longer than {PATH_CHARS_MAX} characters."));
    }
    if pattern.contains(['?', '#']) {
        return refuse("Path must not contain '?' or '#'.");
    }
    let body = pattern.strip_suffix("/*").unwrap_or(pattern);
    match body.contains('*') {
        true => refuse("'*' is only allowed at the end of the path and must follow a '/'."),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(patterns: &[&str], lines: &str) {
        let entries = |order: &mut dyn Iterator<Item = &&str>| {
            PathTable::new(
                order.map(|text| PathPattern { text: (*text).into(), rule: 0 }).collect(),
            )
        };
        let tables = [entries(&mut patterns.iter()), entries(&mut patterns.iter().rev())];
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let (path, expected) = line.split_once(" -> ").expect("PATH -> PATTERN");
            for table in &tables {
                assert_eq!(
                    table.find(path).map_or("none", |found| &found.text),
                    expected,
                    "{path}"
                );
            }
        }
    }

    #[test]
    fn the_longest_pattern_wins_whatever_the_order() {
        check(
            &["/video/*", "/video/live/*", "/video/live", "/*"],
            "
/video/live/7 -> /video/live/*
/video/live -> /video/live
/video/hd -> /video/*
/video/ -> /video/*
/video -> /*
/videos -> /*
",
        );
    }

    #[test]
    fn a_prefix_ends_a_segment_and_nothing_is_decoded() {
        check(&["/a/*", "/A"], "/a -> none\n/ab -> none\n/A -> /A\n/%61/ -> none\n/a//b -> /a/*");
    }

    #[test]
    fn patterns_that_cannot_be_meant_are_refused() {
        for pattern in ["", "a", "/a*", "/*/a", "/a?b", "/a#b", "/**", "*", "/a*/*"] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
        assert!(check_pattern(&format!("/{}", "a".repeat(PATH_CHARS_MAX))).is_err());
        for pattern in ["/", "/*", "/a", "/a/", "/a/*", "/a b", "/é/*"] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
    }
}
