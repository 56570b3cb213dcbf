//! What patterns match, mean and are refused for.

use super::automaton::TABLE_BYTES_MAX;
use super::*;
use proptest::prelude::*;

#[track_caller]
fn check(pattern: &str, matching: &[&str], others: &[&str]) {
    let compiled = Pattern::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
    for text in matching {
        assert!(compiled.is_match(text.as_bytes()), "{pattern} should match {text}");
    }
    for text in others {
        assert!(!compiled.is_match(text.as_bytes()), "{pattern} should not match {text}");
    }
}

#[test]
fn a_pattern_matches_whole_texts_only() {
    check("/a|/b", &["/a", "/b"], &["/ab", "x/a", "/a/b", ""]);
    check("/user/[0-9]+", &["/user/42"], &["/user/42/", "/user/x"]);
    check("", &[""], &["/"]);
}

#[test]
fn classes_are_ascii_as_in_re2() {
    check(r"\d+", &["42"], &["٤٢"]);
    check(r"\w", &["a", "_"], &["é", "-"]);
    check(r"[\W]", &["é", "-"], &["a"]);
    check(r"[[:alpha:]\-.]+", &["a-b."], &["1"]);
    check(r"\bfoo\b", &["foo"], &["food"]);
    check(r"\s\S", &[" a"], &["ab"]);
}

#[test]
fn operators_of_other_languages_are_plain_text_here() {
    check("[a&&b]+", &["a&b"], &["c"]);
    check("[a~~b-]", &["~", "-"], &["c"]);
    check("[[a]", &["[", "a"], &["]"]);
    check("a{,3}", &["a{,3}"], &["aaa"]);
    check("a{", &["a{"], &["a"]);
    check("x#y z", &["x#y z"], &["x"]);
}

#[test]
fn what_re2_has_and_the_engine_lacks_is_translated() {
    check(r"\Qa.b*\E+", &["a.b*", "a.b**"], &["axb"]);
    check(r"\101\x41\x{41}\07", &["AAA\x07"], &[]);
    check(r"(?P<name>a)(?<other>b)", &["ab"], &[]);
    check(r"(?i)abc", &["ABC"], &["abd"]);
    check(r"(?i:a)b", &["Ab"], &["AB"]);
    check(r"\pN\p{Greek}\P{Lu}\p{^Lu}", &["1αaa"], &["1αAa"]);
    check(r"a\Cb", &["a.b"], &["ab"]);
    check("[]a]", &["]", "a"], &["b"]);
    check("[^]a]", &["b"], &["]", "a"]);
    check("[a-]", &["a", "-"], &["b"]);
    check("^a$", &["a"], &["b"]);
}

#[test]
fn what_re2_refuses_is_refused() {
    for (pattern, why) in [
        ("(", "missing )"),
        (")", "unexpected )"),
        ("[a", "missing ]"),
        ("*a", "no argument for repetition operator: *"),
        ("a|*", "no argument for repetition operator: *"),
        ("(+)", "no argument for repetition operator: +"),
        ("a**", "bad repetition operator: *"),
        ("a{2}{3}", "bad repetition operator: {3}"),
        ("a{1001}", "invalid repetition size: {1001}"),
        ("a{3,2}", "invalid repetition size: {3,2}"),
        (r"a\", "trailing"),
        (r"(a)\1", r"invalid escape sequence: \1"),
        (r"\Z", r"invalid escape sequence: \Z"),
        (r"\y", r"invalid escape sequence: \y"),
        (r"\u0041", r"invalid escape sequence: \u"),
        ("(?=a)", "invalid perl operator: (?="),
        ("(?<=a)", "invalid perl operator: (?<"),
        ("(?<!a)", "invalid perl operator: (?<"),
        ("(?x)a", "invalid perl operator: (?x"),
        ("(?P<n>a)(?P<n>b)", "invalid named capture: n"),
        ("(?P<>a)", "invalid named capture: "),
        (r"\p{Alphabetic}", "invalid character class range"),
        ("[b-a]", "invalid character class range: b-a"),
        ("[[:foo:]]", "invalid character class range: [:foo:]"),
        ("((a{100}){100}){100}", "pattern too large"),
    ] {
        let error = Pattern::new(pattern).expect_err(pattern);
        assert!(error.contains(why), "{pattern}: {error}");
    }
    assert!(Pattern::new(&"a".repeat(PATTERN_CHARS_MAX)).is_ok());
    assert!(Pattern::new(&"a".repeat(PATTERN_CHARS_MAX + 1)).is_err());
    assert!(Pattern::new(&"(".repeat(100)).is_err());
}

proptest! {
    #[test]
    fn no_pattern_panics(pattern in r"[a-c\[\](){}|*+?.^$\\:&~,0-9xpQEdD<>P=!-]{0,24}|.{0,12}", text in ".{0,8}") {
        if let Ok(compiled) = Pattern::new(&pattern) {
            prop_assert!(compiled.steps(text.as_bytes()) <= text.len());
        }
    }

    #[test]
    fn a_quoted_text_matches_itself(text in ".{0,40}") {
        prop_assume!(!text.contains(r"\E"));
        let compiled = Pattern::new(&format!(r"\Q{text}\E")).expect("sound");
        prop_assert!(compiled.is_match(text.as_bytes()));
    }
}

/// Longer than any text a request can bring along.
const TEXT_BYTES: usize = 64 * 1024;

#[test]
fn matching_takes_one_step_a_byte_whatever_the_pattern() {
    let texts = ["a", "x", "a/b-1.", "\u{e9}", "=", "ab "];
    let texts = texts.map(|text| text.repeat(TEXT_BYTES / text.len()));
    for pattern in [
        "(x+x+)+y",
        "(a?){100}a{100}",
        "(.*a){20}",
        ".*.*.*.*.*.*=.*",
        "(a|a|aa)*b",
        "(.{1,8}){1,8}",
        r"(\w+\s?)+[!]",
        r".*\bfoo\b.*\bbar\b.*",
        r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){1,5}",
    ] {
        let compiled = Pattern::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        assert!(compiled.bytes() <= TABLE_BYTES_MAX + PATTERN_CHARS_MAX, "{pattern}");
        for text in &texts {
            assert!(compiled.steps(text.as_bytes()) <= text.len(), "{pattern}");
        }
    }
}

#[test]
fn what_would_need_too_large_a_table_is_refused() {
    for pattern in [".*a.{12}", r"(\pL|\pN){1,250}", "(.*a.{12}b)+", r"(?i)\pL{50}"] {
        let error = Pattern::new(pattern).expect_err(pattern);
        assert_eq!(error, "pattern too large - compile failed", "{pattern}");
    }
}

#[test]
fn patterns_of_everyday_fit() {
    for pattern in [
        r"/user/[0-9]+(/.*)?",
        r".*\.(png|jpg|jpeg|gif|svg|webp|ico|css|js|woff2?)",
        r"/v[0-9]+/[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(/.*)?",
        r"/(?i)(en|de|fr|es|it|pt|nl|pl|sv|da|fi|no)(-[a-z]{2})?/.*",
        r"\p{L}+",
        ".{0,250}",
        r"/[^/]{1,63}/[^/]{1,63}/.*",
        r"[a-z0-9.-]+@[a-z0-9.-]+\.[a-z]{2,24}",
    ] {
        assert!(Pattern::new(pattern).is_ok(), "{pattern}");
    }
}

#[test]
fn the_text_every_match_begins_with_is_known() {
    for (pattern, prefix) in [
        ("/user/[0-9]+", "/user/"),
        ("/a(b|bc)", "/ab"),
        ("/a", "/a"),
        ("/a?", "/"),
        ("a?", ""),
        ("(?i)/a.*", "/"),
        ("/a|/b", "/"),
        (".*", ""),
        ("(/x+)+y", "/x"),
    ] {
        let found = Pattern::new(pattern).expect(pattern).literal_prefix();
        assert_eq!(found, prefix.as_bytes(), "{pattern}");
    }
}
