//! New paths and URLs: what `urlRewrite` sends to the backend and `urlRedirect` sends to the client.
//!
//! Paths are put together from what the client sent and what was declared, and nothing is decoded or
//! normalised on the way.
//!
//! Invariant: a new path begins with `/`.

use super::action::PathRewrite;
use super::template::PathTemplate;
use crate::decision::{RequestHead, Scheme};
use model::url_map::UrlRedirect;

/// The part of the path that made a rule match, which is what a prefix rewrite replaces.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'p> {
    /// No part: a default, or a rule without a path condition. A prefix is then put in front.
    None,
    /// So many bytes at the beginning.
    Prefix(usize),
    /// All of it.
    Whole,
    /// All of it, by a template.
    Template(&'p PathTemplate),
}

/// The path to send to the backend, if it changes.
pub(crate) fn path(rewrite: &PathRewrite, part: Part<'_>, path: &str) -> Option<String> {
    match (rewrite, part) {
        (PathRewrite::None, _) => None,
        (PathRewrite::Prefix(prefix), part) => Some(replaced(prefix, part, path)),
        (PathRewrite::Template(rewrite), Part::Template(template)) => rewrite.apply(template, path),
        (PathRewrite::Template(_), _) => None,
    }
}

/// The URL a redirect sends the client to.
pub(crate) fn location(redirect: &UrlRedirect, part: Part<'_>, head: &RequestHead<'_>) -> String {
    let scheme = if redirect.https { Scheme::Https } else { head.scheme };
    let authority = redirect.host.as_deref().unwrap_or_else(|| {
        // The port of one scheme means nothing to the other.
        let default_port = if head.scheme == Scheme::Http { ":80" } else { ":443" };
        let moved = scheme != head.scheme;
        moved.then(|| head.authority.strip_suffix(default_port)).flatten().unwrap_or(head.authority)
    });
    let path = match (&redirect.path, &redirect.prefix) {
        (Some(path), _) => path.clone(),
        (None, Some(prefix)) => replaced(prefix, part, head.path),
        (None, None) => head.path.to_string(),
    };
    let mut location = format!("{}://{authority}{path}", scheme.as_str());
    let brought = redirect.path.as_deref().is_some_and(|path| path.contains('?'));
    if let Some(query) = head.query.filter(|_| !redirect.strip_query && !brought) {
        location.push('?');
        location.push_str(query);
    }
    location
}

fn replaced(prefix: &str, part: Part<'_>, path: &str) -> String {
    match part {
        Part::None => {
            let path = path.strip_prefix('/').unwrap_or(path);
            format!("{}/{path}", prefix.strip_suffix('/').unwrap_or(prefix))
        }
        Part::Prefix(length) => format!("{prefix}{}", path.get(length..).unwrap_or_default()),
        Part::Whole | Part::Template(_) => prefix.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_rewrite_replaces_what_matched() {
        for (part, old, new, expected) in [
            (Part::Prefix("/a/".len()), "/a/b", "/", "/b"),
            (Part::Prefix("/a/".len()), "/a/", "/x/", "/x/"),
            (Part::Prefix("/a/".len()), "/a/b", "/x", "/xb"),
            (Part::Prefix("/a".len()), "/ab", "/x", "/xb"),
            (Part::Whole, "/a/b", "/x", "/x"),
            (Part::None, "/a/b", "/x", "/x/a/b"),
            (Part::None, "/a/b", "/x/", "/x/a/b"),
            (Part::None, "/", "/x", "/x/"),
            (Part::None, "/a", "/", "/a"),
        ] {
            let rewrite = PathRewrite::Prefix(new.into());
            assert_eq!(path(&rewrite, part, old).as_deref(), Some(expected), "{old} to {new}");
        }
        assert_eq!(path(&PathRewrite::None, Part::Whole, "/a"), None);
    }

    #[test]
    fn a_redirect_changes_what_it_says_and_keeps_the_rest() {
        let redirect = |edit: &dyn Fn(&mut UrlRedirect)| {
            let mut redirect = UrlRedirect::default();
            edit(&mut redirect);
            redirect
        };
        let some = |text: &str| Some(text.to_string());
        for (authority, redirect, expected) in [
            ("h", redirect(&|r| r.https = true), "https://h/a/b?q=1"),
            ("h:80", redirect(&|r| r.https = true), "https://h/a/b?q=1"),
            ("h:8080", redirect(&|r| r.https = true), "https://h:8080/a/b?q=1"),
            ("h:80", redirect(&|r| r.strip_query = true), "http://h:80/a/b"),
            ("h:80", redirect(&|r| r.host = some("x")), "http://x/a/b?q=1"),
            ("h", redirect(&|r| r.path = some("/new")), "http://h/new?q=1"),
            ("h", redirect(&|r| r.path = some("/new?p=2")), "http://h/new?p=2"),
            ("h", redirect(&|r| r.prefix = some("/new/")), "http://h/new/b?q=1"),
        ] {
            let head = RequestHead {
                method: "GET",
                scheme: Scheme::Http,
                authority,
                path: "/a/b",
                query: Some("q=1"),
                headers: &Vec::new(),
                client: [10, 0, 0, 9].into(),
            };
            assert_eq!(location(&redirect, Part::Prefix("/a/".len()), &head), expected);
        }
    }
}
