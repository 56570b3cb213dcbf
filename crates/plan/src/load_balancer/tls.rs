//! What a target HTTPS proxy presents: its certificates in order, and what its SSL policy allows.

use model::ssl_policy::{MinTlsVersion, Profile, SslPolicy};
use model::target_proxy::{MANAGER_CERTIFICATES_MAX, SSL_CERTIFICATES_MAX, TargetHttpsProxy};
use model::{Inventory, Kind, Name, Problem};
use std::sync::Arc;

pub use model::certificate::Certificate;

/// What a target HTTPS proxy presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificates in the proxy's order; the first answers when no name matches.
    pub certificates: Vec<Arc<Certificate>>,
    /// The least TLS version (`SslPolicy.minTlsVersion`) the listener accepts.
    pub min_version: TlsVersion,
    /// The cipher suites of TLS 1.2 that may be negotiated, in IANA's names, in order of preference.
    pub ciphers: Vec<Name>,
}

/// TLS protocol versions the data plane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2, also what `TLS_1_0` and `TLS_1_1` amount to: older versions are not spoken.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// The suites of TLS 1.2 the data plane can negotiate. Those with CBC or without an ephemeral key
/// exchange, which COMPATIBLE and MODERN also name, are never spoken.
const CIPHERS: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// The TLS settings of a proxy, shared with `kept` when they are the same; `None` without a certificate.
pub(super) fn compile(
    inventory: &Inventory,
    proxy: &TargetHttpsProxy,
    kept: Option<&Arc<Tls>>,
) -> (Option<Arc<Tls>>, Vec<Problem>) {
    let mut problems = check_certificates(proxy);
    let certificates: Vec<_> = proxy
        .certificates
        .iter()
        .filter_map(|name| match name.kind {
            Kind::Certificate => inventory.certificates.get(name).cloned(),
            _ => inventory.ssl_certificates.get(name).cloned(),
        })
        .collect();
    let policy = proxy.ssl_policy.as_ref().and_then(|name| inventory.ssl_policies.get(name));
    if let Some(name) = &proxy.ssl_policy
        && name.location != proxy.name.location
    {
        let why = "The SSL policy must be in the same region as the target proxy.";
        problems.push(Problem::invalid(&proxy.name, "sslPolicy", name, why));
    }
    if certificates.is_empty() {
        return (None, problems);
    }
    let (min_version, ciphers) = negotiated(policy.map(|policy| &**policy));
    let tls = Tls { certificates, min_version, ciphers };
    let shared = kept.filter(|kept| ***kept == tls).cloned().unwrap_or_else(|| Arc::new(tls));
    (Some(shared), problems)
}

fn check_certificates(proxy: &TargetHttpsProxy) -> Vec<Problem> {
    let mut problems = Vec::new();
    let names = &proxy.certificates;
    if names.is_empty() {
        problems.push(Problem::refused(
            &proxy.name,
            "sslCertificates",
            "Invalid value for field 'resource.sslCertificates': ''. At least 1 SSL certificate must be \
             specified for setting SSL certificates.",
        ));
    }
    let managed = names.iter().filter(|name| name.kind == Kind::Certificate).count();
    let mut refuse = |index: usize, why: &str| {
        let field = format!("sslCertificates[{index}]");
        problems.push(Problem::invalid(&proxy.name, field, &names[index], why));
    };
    if managed > 0 && managed < names.len() {
        refuse(0, "Compute Engine and Certificate Manager certificates cannot be mixed.");
    }
    let max = if managed > 0 { MANAGER_CERTIFICATES_MAX } else { SSL_CERTIFICATES_MAX };
    if names.len() > max {
        refuse(max, &format!("At most {max} SSL certificates may be specified."));
    }
    for (index, name) in names.iter().enumerate() {
        if !matches!(name.kind, Kind::SslCertificate | Kind::Certificate) {
            refuse(index, "The value is not an SSL certificate.");
        } else if name.location != proxy.name.location {
            refuse(index, "The SSL certificate must be in the same region as the target proxy.");
        }
    }
    problems
}

fn negotiated(policy: Option<&SslPolicy>) -> (TlsVersion, Vec<Name>) {
    let all = || CIPHERS.iter().map(|&cipher| Name::from(cipher));
    let Some(policy) = policy else { return (TlsVersion::V1_2, all().collect()) };
    let min_version = match policy.min_tls_version {
        MinTlsVersion::Tls1_3 => TlsVersion::V1_3,
        _ => TlsVersion::V1_2,
    };
    let ciphers = match policy.profile {
        Profile::Compatible | Profile::Modern | Profile::Restricted => all().collect(),
        Profile::Fips202205 => all().filter(|cipher| cipher.contains("_GCM_")).collect(),
        Profile::Custom => all().filter(|cipher| policy.custom_features.contains(cipher)).collect(),
    };
    (min_version, ciphers)
}
