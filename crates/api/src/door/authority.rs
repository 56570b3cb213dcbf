//! The private certificate authority, and the certificates it signs for Google's hosts.
//!
//! Made at the first start and kept in the data directory. Its name constraints bind it to the
//! domains of `hosts::DOMAINS` and to this machine, so that a stolen key cannot speak for anybody's bank.
//!
//! Invariant: a certificate is minted only for a host the door answers for itself.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use time::{Duration, OffsetDateTime};

use super::hosts::DOMAINS;
use super::private_file::{self, PrivateFileError};

/// Hosts whose certificates are kept ready; beyond that the one minted first is forgotten.
pub const LEAVES_MAX: usize = 256;
/// How long the authority itself is valid, in days.
pub const AUTHORITY_DAYS: i64 = 3650;
/// How long a minted certificate is valid, in days; clients refuse more than 398.
pub const LEAF_DAYS: i64 = 365;
/// A kept certificate with less than this left is minted again, in days.
pub const LEAF_RENEWAL_DAYS: i64 = 30;

/// Clocks of clients in containers and VMs may lag; certificates start this many days ago.
const BACKDATED_DAYS: i64 = 2;
/// This machine, as clients name it that are given the port itself as their endpoint.
const LOCALHOST: &str = "localhost";
const COMMON_NAME_BYTES_MAX: usize = 64;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// What the files hold is not an authority.
    #[error("the private certificate authority could not be used")]
    Authority(#[from] rcgen::Error),
    /// The certificate and its key do not make a TLS server.
    #[error("the certificate for `{host}` could not be used")]
    Leaf {
        /// The host.
        host: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The certificate on disk is not PEM.
    #[error("the authority's certificate is not PEM")]
    Pem(#[from] rustls::pki_types::pem::Error),
}

/// The authority and what it has signed lately.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    leaf_key: KeyPair,
    leaves: Mutex<Leaves>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Leaves {
    by_host: HashMap<String, Leaf>,
    minted: VecDeque<String>,
}

#[derive(Clone)]
struct Leaf {
    config: Arc<ServerConfig>,
    renew_at: OffsetDateTime,
}

impl Authority {
    /// Opens the authority kept in `folder`, made at `now` if there is none. The key is written
    /// before the certificate that names it, so an interrupted start leaves at most a key.
    pub fn open(folder: &Path, now: OffsetDateTime) -> Result<Authority, AuthorityError> {
        private_file::make_folder(folder)?;
        let key = remembered_key(&folder.join("ca-key.pem"))?;
        let leaf_key = remembered_key(&folder.join("leaf-key.pem"))?;
        let path = folder.join("ca.pem");
        let kept = private_file::remembered(&path, || {
            let made = authority_parameters(now).and_then(|p| p.self_signed(&key));
            made.map(|certificate| certificate.pem().into_bytes()).map_err(io::Error::other)
        })?;
        let certificate_pem = String::from_utf8_lossy(&kept).into_owned();
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let leaves = Mutex::default();
        Ok(Authority { issuer, certificate, certificate_pem, leaf_key, leaves })
    }

    /// The authority's certificate, for the bundle clients trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The TLS server that speaks as `host`, offering these protocols.
    pub fn server(
        &self,
        host: &str,
        protocols: &[&[u8]],
        now: OffsetDateTime,
    ) -> Result<Arc<ServerConfig>, AuthorityError> {
        if let Some(config) = self.kept(host, now) {
            return Ok(config);
        }
        let leaf = self.mint(host, protocols, now)?;
        let config = Arc::clone(&leaf.config);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if leaves.by_host.insert(host.to_owned(), leaf).is_none() {
            leaves.minted.push_back(host.to_owned());
        }
        while leaves.minted.len() > LEAVES_MAX {
            if let Some(oldest) = leaves.minted.pop_front() {
                leaves.by_host.remove(&oldest);
            }
        }
        Ok(config)
    }

    fn kept(&self, host: &str, now: OffsetDateTime) -> Option<Arc<ServerConfig>> {
        let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.by_host.get(host).filter(|leaf| now < leaf.renew_at).map(|leaf| leaf.config.clone())
    }

    /// A certificate for `host` with its key, and when it should be made again.
    pub(super) fn certified(
        &self,
        host: &str,
        now: OffsetDateTime,
    ) -> Result<(Arc<CertifiedKey>, OffsetDateTime), AuthorityError> {
        let certificate = leaf_parameters(host, now)?.signed_by(&self.leaf_key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key =
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialized_der().to_vec()));
        let unusable = |source| AuthorityError::Leaf { host: host.to_owned(), source };
        let key = any_supported_type(&key).map_err(unusable)?;
        let renew_at = now + Duration::days(LEAF_DAYS - BACKDATED_DAYS - LEAF_RENEWAL_DAYS);
        Ok((Arc::new(CertifiedKey::new(chain, key)), renew_at))
    }

    fn mint(
        &self,
        host: &str,
        protocols: &[&[u8]],
        now: OffsetDateTime,
    ) -> Result<Leaf, AuthorityError> {
        let (key, renew_at) = self.certified(host, now)?;
        let unusable = |source| AuthorityError::Leaf { host: host.to_owned(), source };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Ok(Leaf { config: Arc::new(config), renew_at })
    }
}

fn remembered_key(path: &Path) -> Result<KeyPair, AuthorityError> {
    let bytes = private_file::remembered(path, || {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        Ok(key.serialize_pem().into_bytes())
    })?;
    Ok(KeyPair::from_pem(&String::from_utf8_lossy(&bytes))?)
}

fn authority_parameters(now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "Tidegate private CA");
    parameters.distinguished_name.push(DnType::OrganizationName, "Tidegate on this machine");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.name_constraints = Some(NameConstraints {
        permitted_subtrees: DOMAINS
            .iter()
            .chain([&LOCALHOST])
            .map(|domain| GeneralSubtree::DnsName((*domain).to_owned()))
            .chain([GeneralSubtree::IpAddress(CidrSubnet::V4([127, 0, 0, 0], [255, 0, 0, 0]))])
            .collect(),
        excluded_subtrees: Vec::new(),
    });
    parameters.not_before = now - Duration::days(BACKDATED_DAYS);
    parameters.not_after = now + Duration::days(AUTHORITY_DAYS);
    Ok(parameters)
}

fn leaf_parameters(host: &str, now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.subject_alt_names = vec![match host.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) => SanType::DnsName(Ia5String::try_from(host)?),
    }];
    parameters.distinguished_name = DistinguishedName::new();
    if host.len() <= COMMON_NAME_BYTES_MAX {
        parameters.distinguished_name.push(DnType::CommonName, host);
    }
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.use_authority_key_identifier_extension = true;
    parameters.not_before = now - Duration::days(BACKDATED_DAYS);
    parameters.not_after = now + Duration::days(LEAF_DAYS - BACKDATED_DAYS);
    parameters.serial_number = Some(serial(host, now));
    Ok(parameters)
}

/// Two certificates of one authority must not share a serial; host and moment tell them apart.
fn serial(host: &str, now: OffsetDateTime) -> SerialNumber {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(host.as_bytes());
    context.update(&now.unix_timestamp_nanos().to_be_bytes());
    let mut bytes = context.finish().as_ref()[..16].to_vec();
    // A serial is a positive number: its first bit is clear, and it is not zero.
    bytes[0] = (bytes[0] & 0x7f) | 0x01;
    SerialNumber::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{RootCertStore, SignatureScheme};
    use std::os::unix::fs::PermissionsExt;

    fn verifies(authority: &Authority, host: &str) -> bool {
        let now = OffsetDateTime::now_utc();
        let parameters = leaf_parameters(host, now).expect("parameters");
        let leaf = parameters.signed_by(&authority.leaf_key, &authority.issuer).expect("signed");
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .expect("a verifier");
        assert!(verifier.supported_verify_schemes().contains(&SignatureScheme::ED25519));
        let name = ServerName::try_from(host).expect("a name");
        let moment = UnixTime::now();
        verifier.verify_server_cert(leaf.der(), &[], &name, &[], moment).is_ok()
    }

    #[test]
    fn the_authority_speaks_for_googles_domains_and_for_nobody_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(folder.path(), OffsetDateTime::now_utc()).expect("opens");
        for (host, expected) in [
            ("compute.googleapis.com", true),
            ("us-west1-run.googleapis.com", true),
            ("tunnel.cloudproxy.app", true),
            ("hello-123.us-west1.run.app", true),
            ("localhost", true),
            ("127.0.0.1", true),
            ("192.0.2.1", false),
            ("bank.example", false),
            ("googleapis.com.bank.example", false),
        ] {
            assert_eq!(verifies(&authority, host), expected, "{host}");
        }
    }

    #[test]
    fn the_authority_and_its_keys_survive_a_restart_and_stay_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = OffsetDateTime::now_utc();
        let first = Authority::open(folder.path(), now).expect("opens");
        let again = Authority::open(folder.path(), now + Duration::days(1)).expect("opens again");
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        assert_eq!(first.leaf_key.serialized_der(), again.leaf_key.serialized_der());
        for name in ["ca-key.pem", "leaf-key.pem"] {
            let mode = std::fs::metadata(folder.path().join(name)).expect(name).permissions();
            assert_eq!(mode.mode() & 0o077, 0, "{name}");
        }
    }

    #[test]
    fn no_more_than_a_bounded_number_of_certificates_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = OffsetDateTime::now_utc();
        let authority = Authority::open(folder.path(), now).expect("opens");
        for number in 0..LEAVES_MAX + 5 {
            authority.server(&format!("s{number}.googleapis.com"), &[], now).expect("minted");
        }
        let leaves = authority.leaves.lock().expect("unpoisoned");
        assert_eq!((leaves.by_host.len(), leaves.minted.len()), (LEAVES_MAX, LEAVES_MAX));
        assert!(!leaves.by_host.contains_key("s0.googleapis.com"));
    }
}
