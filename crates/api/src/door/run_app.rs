//! TLS for the `run.app` addresses of services: certificates of the private CA, chosen by server name.
//!
//! The data plane speaks this TLS itself, so that a service sees HTTP/2 and gRPC as they were sent. One
//! certificate serves all services of a region, as Google's own do.
//!
//! Invariant: a certificate is made for `run.app` names only, and at most [`LEAVES_MAX`] are kept.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;

use super::authority::{Authority, AuthorityError, LEAVES_MAX};
use super::hosts::{self, Host};

/// What services may be spoken to in, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The TLS server of every `run.app` name.
pub type RunAppTls = Arc<ServerConfig>;

/// Makes it, with the authority of this data directory.
pub fn run_app_tls(data_dir: &Path) -> Result<RunAppTls, AuthorityError> {
    let authority = Authority::open(&data_dir.join(super::FOLDER), OffsetDateTime::now_utc())?;
    let certificates = Arc::new(Certificates { authority, kept: Mutex::default() });
    let unusable = |source| AuthorityError::Leaf { host: "*.run.app".to_owned(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Makes certificates as they are asked for.
#[derive(Debug)]
struct Certificates {
    authority: Authority,
    kept: Mutex<HashMap<String, (Arc<CertifiedKey>, OffsetDateTime)>>,
}

impl Certificates {
    fn of(&self, pattern: &str, now: OffsetDateTime) -> Option<Arc<CertifiedKey>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, renew_at)) = kept.get(pattern)
            && now < *renew_at
        {
            return Some(Arc::clone(key));
        }
        match self.authority.certified(pattern, now) {
            Ok((key, renew_at)) => {
                if kept.len() >= LEAVES_MAX {
                    kept.clear();
                }
                kept.insert(pattern.to_owned(), (Arc::clone(&key), renew_at));
                Some(key)
            }
            Err(error) => {
                tracing::warn!(%pattern, ?error, "no certificate for a service");
                None
            }
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pattern = pattern_of(hello.server_name()?)?;
        self.of(&pattern, OffsetDateTime::now_utc())
    }
}

/// The name of the certificate that is good for a service's address: `*.us-west1.run.app`.
fn pattern_of(name: &str) -> Option<String> {
    let Host::RunApp(host) = hosts::host(name) else { return None };
    let (_, domain) = host.split_once('.')?;
    Some(format!("*.{domain}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_one_region_share_a_certificate_and_foreign_names_get_none() {
        for (name, pattern) in [
            ("hello-1.us-west1.run.app", Some("*.us-west1.run.app")),
            ("blue---hello-1.us-west1.run.app", Some("*.us-west1.run.app")),
            ("HELLO-abc-uw.a.run.app", Some("*.a.run.app")),
            ("run.googleapis.com", None),
            ("bank.example", None),
        ] {
            assert_eq!(pattern_of(name).as_deref(), pattern, "{name}");
        }
    }

    #[test]
    fn a_certificate_is_made_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = OffsetDateTime::now_utc();
        let authority = Authority::open(folder.path(), now).expect("opens");
        let certificates = Certificates { authority, kept: Mutex::default() };
        let pattern = "*.us-west1.run.app";
        let first = certificates.of(pattern, now).expect("a certificate");
        let second = certificates.of(pattern, now).expect("a certificate");
        assert!(Arc::ptr_eq(&first, &second));
        let later = now + time::Duration::days(360);
        let third = certificates.of(pattern, later).expect("a certificate");
        assert!(!Arc::ptr_eq(&first, &third), "it is renewed in time");
    }
}
