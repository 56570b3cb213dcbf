//! Who may speak to the port at all, before any token is looked at.
//!
//! A web page in somebody's browser can send requests to loopback ports, from its own origin or,
//! by rebinding a name it owns, as if it were the port itself. Both betray themselves in the head.
//!
//! Invariant: a request whose head names a foreign origin or a foreign host goes no further.

use std::net::IpAddr;

use super::hosts::{self, Host};

/// The only `Origin` that is not a web page's: gcloud's SSH tunnel sends it.
pub const IAP_TUNNELER_ORIGIN: &str = "bot:iap-tunneler";

/// The parts of a head the guard reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// `Host`, or the authority of the request line.
    pub host: Option<&'a str>,
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<&'a str>,
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A browser sends it for a page of another origin.
    CrossOrigin,
    /// The host is neither ours nor Google's.
    ForeignHost,
}

impl Refusal {
    /// The sentence in the answer.
    pub fn message(self) -> &'static str {
        match self {
            Refusal::CrossOrigin => "Requests from web pages of another origin are refused.",
            Refusal::ForeignHost => "The Host header names a host this server does not answer for.",
        }
    }
}

/// Whether the request may be looked at further; `bound` is the address the port is bound to.
pub fn admit(head: Head<'_>, bound: IpAddr) -> Result<(), Refusal> {
    if let Some(site) = head.fetch_site
        && !matches!(site, "same-origin" | "none")
    {
        return Err(Refusal::CrossOrigin);
    }
    let host = head.host.ok_or(Refusal::ForeignHost)?;
    if let Some(origin) = head.origin
        && origin != IAP_TUNNELER_ORIGIN
        && !is_same_origin(origin, host)
    {
        return Err(Refusal::CrossOrigin);
    }
    let (name, _) = hosts::split_authority(host).ok_or(Refusal::ForeignHost)?;
    if is_own_name(name, bound) || hosts::host(name) != Host::Foreign {
        return Ok(());
    }
    Err(Refusal::ForeignHost)
}

/// Whether a page of this origin is one this very host served.
fn is_same_origin(origin: &str, host: &str) -> bool {
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
}

/// Whether the name can only mean this machine: no resolver is asked, so none can be fooled.
pub fn is_own_name(name: &str, bound: IpAddr) -> bool {
    let name = name.to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return true;
    }
    name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address == bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(host: &str, origin: &str, site: &str) -> &'static str {
        fn given(text: &str) -> Option<&str> {
            (!text.is_empty()).then_some(text)
        }
        let head = Head { host: given(host), origin: given(origin), fetch_site: given(site) };
        match admit(head, IpAddr::from([192, 0, 2, 7])) {
            Ok(()) => "admitted",
            Err(Refusal::CrossOrigin) => "cross origin",
            Err(Refusal::ForeignHost) => "foreign host",
        }
    }

    #[test]
    fn pages_of_other_origins_and_foreign_hosts_are_turned_away() {
        for (host, origin, site, expected) in [
            ("127.0.0.1:80", "", "", "admitted"),
            ("localhost:80", "", "", "admitted"),
            ("us-west1-run.localhost:80", "", "", "admitted"),
            ("[::1]:80", "", "", "admitted"),
            ("192.0.2.7", "", "", "admitted"),
            ("compute.googleapis.com", "", "", "admitted"),
            ("tunnel.cloudproxy.app", "bot:iap-tunneler", "", "admitted"),
            ("127.0.0.1:80", "http://127.0.0.1:80", "same-origin", "admitted"),
            ("127.0.0.1:80", "", "none", "admitted"),
            ("127.0.0.1:80", "http://127.0.0.1:81", "", "cross origin"),
            ("127.0.0.1:80", "null", "", "cross origin"),
            ("127.0.0.1:80", "https://evil.example", "", "cross origin"),
            ("127.0.0.1:80", "", "cross-site", "cross origin"),
            ("127.0.0.1:80", "", "same-site", "cross origin"),
            ("192.0.2.8", "", "", "foreign host"),
            ("evil.example", "", "", "foreign host"),
            ("evil.example", "http://evil.example", "same-origin", "foreign host"),
            ("127.0.0.1.evil.example:80", "", "", "foreign host"),
            ("localhost.evil.example", "", "", "foreign host"),
            ("", "", "", "foreign host"),
        ] {
            assert_eq!(verdict(host, origin, site), expected, "{host} {origin} {site}");
        }
    }
}
