//! TLS as a target HTTPS proxy declares it: certificates by server name, versions, ALPN.
//!
//! A configuration is built once for a listener's TLS settings and shared by all workers; a change makes
//! a new one for new connections, and connections that exist keep theirs.

use crate::peer::TlsFacts;
use model::Name;
use plan::load_balancer::{Certificate, Tls, TlsVersion};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use std::sync::Arc;

/// Why TLS settings cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A chain or key is not what it should be.
    #[error("certificate `{name}` cannot be used")]
    Certificate {
        /// The certificate.
        name: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The listener has no certificate at all.
    #[error("the target proxy has no certificate")]
    NoCertificate,
    /// The settings contradict each other.
    #[error("the TLS settings cannot be served")]
    Settings(#[from] rustls::Error),
}

/// Builds what connections are accepted with.
pub(crate) fn server_config(tls: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider(&tls.ciphers));
    let resolver = Resolver::new(tls, &provider)?;
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.min_version {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are resumed by tickets, which cost the server no memory.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// The cipher suites of a policy, in Google's names; all when none is named.
fn provider(ciphers: &[Name]) -> rustls::crypto::CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    if !ciphers.is_empty() {
        provider.cipher_suites.retain(|suite| {
            // TLS 1.3 suites are not configurable; the names of the older ones differ in a prefix.
            suite.version() == &rustls::version::TLS13 || {
                let name = format!("{:?}", suite.suite());
                ciphers.iter().any(|cipher| cipher.as_str() == name)
            }
        });
    }
    provider
}

/// Chooses a certificate by server name.
#[derive(Debug)]
struct Resolver {
    keys: Vec<(Vec<String>, Arc<CertifiedKey>)>,
}

impl Resolver {
    fn new(tls: &Tls, provider: &rustls::crypto::CryptoProvider) -> Result<Resolver, TlsError> {
        let keys: Result<Vec<_>, TlsError> = tls
            .certificates
            .iter()
            .map(|certificate| {
                let key = certified_key(certificate, provider).map_err(|source| {
                    TlsError::Certificate { name: certificate.name.to_string(), source }
                })?;
                Ok((certificate.dns_names.clone(), Arc::new(key)))
            })
            .collect();
        let keys = keys?;
        if keys.is_empty() { Err(TlsError::NoCertificate) } else { Ok(Resolver { keys }) }
    }

    /// An exact name beats a wildcard, a wildcard beats the first certificate; among equals the first
    /// that the client can verify answers.
    fn choose(
        &self,
        name: Option<&str>,
        usable: impl Fn(&CertifiedKey) -> bool,
    ) -> &Arc<CertifiedKey> {
        let named = |wanted: &str| {
            let mut fitting =
                self.keys.iter().filter(|(names, _)| names.iter().any(|name| name == wanted));
            let first = fitting.clone().next();
            fitting.find(|(_, key)| usable(key)).or(first)
        };
        let wildcard = || {
            let (_, parent) = name?.split_once('.')?;
            named(&format!("*.{parent}"))
        };
        let chosen = name.and_then(named).or_else(wildcard).unwrap_or(&self.keys[0]);
        &chosen.1
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let schemes = hello.signature_schemes();
        let usable = |key: &CertifiedKey| key.key.choose_scheme(schemes).is_some();
        Some(self.choose(name.as_deref(), usable).clone())
    }
}

fn certified_key(
    certificate: &Certificate,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<CertifiedKey, Box<dyn std::error::Error + Send + Sync>> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(certificate.private_key_pem.as_bytes())?;
    Ok(CertifiedKey::from_der(chain?, key, provider)?)
}

/// What a handshake agreed on, and whether the client speaks HTTP/2.
pub(crate) fn facts(connection: &ServerConnection) -> (TlsFacts, bool) {
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "",
    };
    let suite = connection.negotiated_cipher_suite();
    let facts = TlsFacts {
        version,
        cipher: suite.map_or_else(String::new, |s| format!("{:04x}", u16::from(s.suite()))),
        server_name: connection.server_name().map(str::to_owned),
    };
    (facts, connection.alpn_protocol() == Some(b"h2"))
}
