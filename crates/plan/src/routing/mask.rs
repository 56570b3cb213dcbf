//! URL masks: which service and tag a URL names, read off a template such as `<tag>.example.com/<service>`.
//!
//! The host part is anchored at its right end and the path part at its left end; what stands further left
//! in the host or further right in the path is ignored, because a mask may leave out host components
//! before its first placeholder and path components after its last. Nothing is decoded.
//!
//! Invariant: each placeholder occurs at most once and no two stand side by side, so what a URL gives is
//! never ambiguous.

use std::fmt;

/// The longest mask, in bytes.
pub const MASK_BYTES_MAX: usize = 1024;

/// A template for URLs with the placeholders `<service>` and `<tag>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UrlMask {
    text: String,
    /// The host's labels from the left; empty when the mask has no host part.
    labels: Vec<Component>,
    /// The path's segments from the left; empty when the mask has no path part.
    segments: Vec<Component>,
}

/// One label of the host or segment of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Component {
    /// Text that must be there.
    Literal(String),
    /// Text around one placeholder.
    One { before: String, placeholder: Placeholder, after: String },
    /// Text around two placeholders.
    Two { before: String, first: Placeholder, between: String, second: Placeholder, after: String },
}

/// What a mask can read from a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `<service>`
    Service,
    /// `<tag>`
    Tag,
}

impl Placeholder {
    const ALL: [(Placeholder, &'static str); 2] =
        [(Placeholder::Service, "<service>"), (Placeholder::Tag, "<tag>")];
}

/// What a mask read from a URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted<'u> {
    /// What stood at `<service>`.
    pub service: Option<&'u str>,
    /// What stood at `<tag>`.
    pub tag: Option<&'u str>,
}

impl UrlMask {
    /// Reads a mask; the error is a sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<UrlMask, String> {
        if text.len() > MASK_BYTES_MAX {
            return Err(format!(
                "The URL mask must not be longer than {MASK_BYTES_MAX} characters."
            ));
        }
        if text.contains("://") {
            return Err("The URL mask must not contain a scheme.".into());
        }
        let foreign = |c: char| !c.is_ascii_graphic() || matches!(c, '?' | '#' | '\\' | '{' | '}');
        if let Some(found) = text.chars().find(|c| foreign(*c)) {
            return Err(format!("The URL mask must not contain {found:?}."));
        }
        let (host, path) = match text.find('/') {
            Some(slash) => (&text[..slash], Some(&text[slash + 1..])),
            None => (text, None),
        };
        if host.contains(':') {
            return Err("The URL mask must not contain a port.".into());
        }
        let components = |part: &str, separator| -> Result<Vec<Component>, String> {
            part.split(separator).map(Component::parse).collect()
        };
        let labels = match host {
            "" => Vec::new(),
            host => components(&host.to_ascii_lowercase(), '.')?,
        };
        // A slash at the end says no more than that something may follow.
        let segments = match path.map(|path| path.strip_suffix('/').unwrap_or(path)) {
            None | Some("") => Vec::new(),
            Some(path) => components(path, '/')?,
        };
        let empty = |component: &Component| *component == Component::Literal(String::new());
        if labels.iter().any(empty) || segments.iter().any(empty) {
            return Err("The URL mask must not contain an empty component.".into());
        }
        let mask = UrlMask { text: text.to_string(), labels, segments };
        match [Placeholder::Service, Placeholder::Tag].map(|p| mask.occurrences(p)) {
            [0, 0] => Err("The URL mask must contain <service> or <tag>.".into()),
            [0 | 1, 0 | 1] => Ok(mask),
            _ => Err("A placeholder must not occur more than once in a URL mask.".into()),
        }
    }

    fn occurrences(&self, wanted: Placeholder) -> usize {
        let all = self.labels.iter().chain(&self.segments);
        all.flat_map(Component::placeholders).filter(|found| *found == wanted).count()
    }

    /// Whether the mask reads this from a URL.
    pub fn names(&self, wanted: Placeholder) -> bool {
        self.occurrences(wanted) > 0
    }

    /// The mask as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The labels of the host part that must be there, from the right, up to the first with a placeholder;
    /// and whether the part ends there.
    pub(crate) fn literal_host_suffix(&self) -> (Vec<&str>, bool) {
        let literal = |component: &'_ Component| matches!(component, Component::Literal(_));
        let labels = self.labels.iter().rev().take_while(|label| literal(label));
        let labels: Vec<&str> = labels
            .filter_map(|label| match label {
                Component::Literal(text) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        let whole = labels.len() == self.labels.len();
        (labels, whole)
    }

    /// Reads a URL. `host` is in lower case and has no port; `path` begins with `/`.
    pub fn extract<'u>(&self, host: &'u str, path: &'u str) -> Option<Extracted<'u>> {
        let mut found = Extracted::default();
        if !self.labels.is_empty() {
            let mut labels = host.rsplit('.');
            for component in self.labels.iter().rev() {
                component.read(labels.next()?, &mut found)?;
            }
            // A mask that begins with text before a placeholder says where the host begins.
            let open = !matches!(self.labels[0], Component::Literal(_))
                || self.labels.iter().all(|label| matches!(label, Component::Literal(_)));
            if !open && labels.next().is_some() {
                return None;
            }
        }
        if !self.segments.is_empty() {
            let mut segments = path.strip_prefix('/')?.split('/');
            for component in &self.segments {
                component.read(segments.next()?, &mut found)?;
            }
        }
        Some(found)
    }
}

impl fmt::Display for UrlMask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl Component {
    fn parse(text: &str) -> Result<Component, String> {
        let Some((before, first, rest)) = split_at_placeholder(text)? else {
            return Ok(Component::Literal(text.to_string()));
        };
        let Some((between, second, after)) = split_at_placeholder(rest)? else {
            let (before, after) = (before.to_string(), rest.to_string());
            return Ok(Component::One { before, placeholder: first, after });
        };
        if between.is_empty() {
            return Err("Placeholders of a URL mask must be separated by text.".into());
        }
        if split_at_placeholder(after)?.is_some() {
            return Err("A placeholder must not occur more than once in a URL mask.".into());
        }
        let [before, between, after] = [before, between, after].map(String::from);
        Ok(Component::Two { before, first, between, second, after })
    }

    fn placeholders(&self) -> impl Iterator<Item = Placeholder> {
        let (first, second) = match self {
            Component::Literal(_) => (None, None),
            Component::One { placeholder, .. } => (Some(*placeholder), None),
            Component::Two { first, second, .. } => (Some(*first), Some(*second)),
        };
        first.into_iter().chain(second)
    }

    fn read<'u>(&self, text: &'u str, found: &mut Extracted<'u>) -> Option<()> {
        match self {
            Component::Literal(literal) => (text == literal).then_some(()),
            Component::One { before, placeholder, after } => {
                let value = text.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                found.keep(*placeholder, value)
            }
            Component::Two { before, first, between, second, after } => {
                let values = text.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                // The first placeholder takes as little as it can, and at least one character.
                let rest = values.char_indices().nth(1).map(|(at, _)| at)?;
                let split = rest + values[rest..].find(between.as_str())?;
                found.keep(*first, &values[..split])?;
                found.keep(*second, &values[split + between.len()..])
            }
        }
    }
}

/// Text up to the first placeholder, the placeholder, and what follows it.
fn split_at_placeholder(text: &str) -> Result<Option<(&str, Placeholder, &str)>, String> {
    let Some(open) = text.find('<') else {
        return match text.contains('>') {
            true => Err("The URL mask contains a '>' without a '<'.".into()),
            false => Ok(None),
        };
    };
    let known = Placeholder::ALL.into_iter().find(|(_, word)| text[open..].starts_with(word));
    let Some((placeholder, word)) = known else {
        return Err("The only placeholders of a URL mask are <service> and <tag>.".into());
    };
    if text[..open].contains('>') {
        return Err("The URL mask contains a '>' without a '<'.".into());
    }
    Ok(Some((&text[..open], placeholder, &text[open + word.len()..])))
}

impl<'u> Extracted<'u> {
    /// Keeps a value if it could be the name of a service or a tag at all.
    fn keep(&mut self, placeholder: Placeholder, value: &'u str) -> Option<()> {
        let name = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if value.is_empty() || !value.bytes().all(name) {
            return None;
        }
        match placeholder {
            Placeholder::Service => self.service = Some(value),
            Placeholder::Tag => self.tag = Some(value),
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Each line: a mask, then URLs with what they give.
    #[track_caller]
    fn check(mask: &str, lines: &str) {
        let mask = UrlMask::parse(mask).expect("a sound mask");
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let (url, expected) = line.split_once(" -> ").expect("URL -> service [@tag]");
            let slash = url.find('/').unwrap_or(url.len());
            let path = if slash == url.len() { "/" } else { &url[slash..] };
            let found = match mask.extract(&url[..slash], path) {
                None => "nothing".to_string(),
                Some(Extracted { service, tag }) => {
                    let tag = tag.map(|tag| format!(" @{tag}")).unwrap_or_default();
                    format!("{}{tag}", service.unwrap_or("(fixed)"))
                }
            };
            assert_eq!(found, expected, "{mask} on {url}");
        }
    }

    #[test]
    fn the_rows_of_the_how_to() {
        check("<service>-home.example.com", "login-home.example.com/web -> login");
        check("example.com/<service>", "example.com/login/web -> login");
        check("/<service>", "example.com/login/web -> login");
        check("<tag>.<service>.example.com", "test.login.example.com/web -> login @test");
        check("example.com/home/<service>/<tag>", "example.com/home/login/test -> login @test");
        check("/home/<service>/<tag>", "example.com/home/login/test -> login @test");
        check("<tag>.example.com/home/<service>", "test.example.com/home/login/web -> login @test");
        check("<tag>.domain.com/<service>", "foo1.domain.com/bar1 -> bar1 @foo1");
    }

    #[test]
    fn components_before_the_first_placeholder_of_the_host_may_be_left_out() {
        check("<service>.example.com", "a.b.login.example.com -> login");
        check("<service>-home.example.com", "www.login-home.example.com -> login");
        check("example.com/<service>", "www.example.com/login -> login");
        check("www.<service>.example.com", "x.www.login.example.com -> nothing");
    }

    #[test]
    fn components_after_the_last_placeholder_of_the_path_are_ignored() {
        check(
            "/home/<service>",
            "
h/home/login -> login
h/home/login/ -> login
h/home/login/a/b -> login
h/home -> nothing
h/home/ -> nothing
h/office/login -> nothing
",
        );
        check("/<service>/", "h/login -> login\nh/login/x -> login");
        check(
            "/<service>/web",
            "h/login/web/x -> login\nh/login -> nothing\nh/login/app -> nothing",
        );
    }

    #[test]
    fn a_placeholder_may_be_part_of_a_component() {
        check(
            "<service>-home.example.com",
            "my-home-home.example.com -> my-home\n-home.example.com -> nothing",
        );
        check(
            "<tag>-<service>.example.com",
            "a-b-c.example.com -> b-c @a\nab.example.com -> nothing",
        );
        check("/app-<service>.v1/x", "h/app-login.v1/x -> login\nh/app-.v1/x -> nothing");
        check("/<tag>--<service>", "h/a---b -> -b @a\nh/--b -> nothing");
    }

    #[test]
    fn only_what_can_be_a_name_is_captured() {
        check(
            "/<service>",
            "
h/Login -> nothing
h/log%69n -> nothing
h/log_in -> nothing
h/login;v=1 -> nothing
h//login -> nothing
h/ -> nothing
h/login -> login
",
        );
    }

    #[test]
    fn labels_are_compared_whole() {
        check(
            "example.com/<service>",
            "evil-example.com/login -> nothing\nexample.org/x -> nothing",
        );
        check("<service>.example.com", "example.com -> nothing\nlogin.example.comx -> nothing");
    }

    #[test]
    fn a_mask_for_the_tag_alone_goes_with_a_fixed_service() {
        check("<tag>.example.com", "test.example.com -> (fixed) @test");
    }

    #[test]
    fn masks_that_cannot_be_meant_are_refused() {
        for (mask, why) in [
            ("", "must contain <service> or <tag>"),
            ("/", "must contain <service> or <tag>"),
            ("/static", "must contain <service> or <tag>"),
            ("example.com", "must contain <service> or <tag>"),
            ("<foo>", "only placeholders"),
            ("/<Service>", "only placeholders"),
            ("http://example.com/<service>", "scheme"),
            ("example.com:8080/<service>", "port"),
            ("/<service>/<service>", "more than once"),
            ("<service>.example.com/<service>", "more than once"),
            ("/<tag>-<tag>-<service>", "more than once"),
            ("/<tag><service>", "separated by text"),
            ("/<service", "only placeholders"),
            ("/service>", "without a '<'"),
            ("/>x<service>", "without a '<'"),
            ("/<service>?a=b", "must not contain '?'"),
            ("/<service>#a", "must not contain '#'"),
            ("/a b/<service>", "must not contain ' '"),
            ("/é/<service>", "must not contain 'é'"),
            ("a..b/<service>", "empty component"),
            ("//<service>", "empty component"),
        ] {
            let error = UrlMask::parse(mask).expect_err(mask);
            assert!(error.contains(why), "{mask}: {error}");
        }
        assert!(UrlMask::parse(&format!("/{}<service>", "a".repeat(MASK_BYTES_MAX))).is_err());
    }

    proptest! {
        #[test]
        fn no_mask_and_no_url_panics(mask in "[a-z<>/.:-]{0,20}|.{0,10}", host in ".{0,20}", path in ".{0,20}") {
            for mask in [&mask, &format!("/{mask}<service>"), &format!("<tag>-<service>{mask}")] {
                if let Ok(mask) = UrlMask::parse(mask) {
                    mask.extract(&host, &path);
                    mask.extract(&host, &format!("/{path}"));
                }
            }
        }

        #[test]
        fn what_is_filled_in_is_read_back(service in "[a-z]([a-z0-9]{0,8}[a-z0-9])?", tag in "[a-z][a-z0-9]{0,5}") {
            for (mask, url) in [
                ("<service>-home.example.com", format!("{service}-home.example.com")),
                ("<tag>.<service>.example.com/x", format!("{tag}.{service}.example.com/x")),
                ("/home/<service>/<tag>", format!("h/home/{service}/{tag}/rest")),
                ("<tag>-<service>.example.com", format!("{tag}-{service}.example.com")),
            ] {
                let slash = url.find('/').unwrap_or(url.len());
                let path = if slash == url.len() { "/" } else { &url[slash..] };
                let parsed = UrlMask::parse(mask).expect("sound");
                let found = parsed.extract(&url[..slash], path).expect("it fits");
                prop_assert_eq!(found.service, Some(service.as_str()));
                if mask.contains("<tag>") {
                    prop_assert_eq!(found.tag, Some(tag.as_str()));
                }
            }
        }
    }
}
