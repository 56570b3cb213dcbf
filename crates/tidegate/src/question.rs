//! A request somebody asks about: a URL, a method and headers, taken apart as a client would send them.

use anyhow::{Context, bail};
use http::Uri;
use plan::decision::{RequestHead, Scheme};
use std::net::{IpAddr, Ipv4Addr};

/// The request, owned; [`Question::head`] lends it to a decision.
#[derive(Debug)]
pub(crate) struct Question {
    method: String,
    scheme: Scheme,
    authority: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
}

impl Question {
    /// Reads a URL and `Name: value` headers; a `Host` header stands in for the URL's authority.
    pub(crate) fn new(url: &str, method: &str, headers: &[String]) -> anyhow::Result<Question> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => bail!("`{url}` does not begin with http:// or https://"),
        };
        let mut authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut fields = Vec::new();
        for header in headers {
            let (name, value) = header
                .split_once(':')
                .with_context(|| format!("`{header}` is not a header, `Name: value`"))?;
            let value = value.trim().to_owned();
            if name.eq_ignore_ascii_case("host") {
                authority = value;
            } else {
                fields.push((name.to_owned(), value));
            }
        }
        let path = if uri.path().is_empty() { "/" } else { uri.path() };
        Ok(Question {
            method: method.to_owned(),
            scheme,
            authority,
            path: path.to_owned(),
            query: uri.query().map(str::to_owned),
            headers: fields,
        })
    }

    /// The request as a decision reads it.
    pub(crate) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            scheme: self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            client: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }

    /// The address a client would connect to, when the URL names one.
    pub(crate) fn literal_address(&self) -> Option<Ipv4Addr> {
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host);
        host.parse().ok()
    }

    /// Whether the URL is the own address of a Cloud Run service.
    pub(crate) fn is_for_run_app(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or(&*self.authority, |(host, _)| host);
        host.to_ascii_lowercase().ends_with(".run.app")
    }

    /// The port a client would connect to.
    pub(crate) fn port(&self) -> u16 {
        let given = self.authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        given.unwrap_or(match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart_as_a_client_sends_it() {
        let headers = ["X-User: 7".to_owned(), "Host: example.com".to_owned()];
        let question = Question::new("https://10.1.2.3/a/b?c=d", "GET", &headers).unwrap();
        let head = question.head();
        assert_eq!((head.authority, head.path, head.query), ("example.com", "/a/b", Some("c=d")));
        assert_eq!(head.headers.first("x-user"), Some(&b"7"[..]));
        assert_eq!(question.port(), 443);
    }

    #[test]
    fn an_address_in_the_url_is_where_the_client_connects() {
        let question = Question::new("http://10.1.2.3:8080", "GET", &[]).unwrap();
        assert_eq!(question.literal_address(), Some(Ipv4Addr::new(10, 1, 2, 3)));
        assert_eq!((question.port(), question.head().path), (8080, "/"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for (url, header) in [("example.com/a", "A: b"), ("ftp://x/", "A: b"), ("http://x/", "A b")]
        {
            assert!(Question::new(url, "GET", &[header.to_owned()]).is_err(), "{url} {header}");
        }
    }
}
