//! Certificates and keys as clients hand them in: read, and refused when they cannot serve.
//!
//! Invariant: a chain that is accepted has one to five certificates, its leaf is valid today, and its
//! key is the one given.

use crate::error::{ApiError, Reason};
use model::certificate::CHAIN_CERTIFICATES_MAX;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;

/// RSA keys that are accepted, by their size in bits.
const RSA_BITS: [usize; 3] = [2048, 3072, 4096];
/// The curves that are accepted, by the size of a coordinate in bits.
const CURVE_BITS: [usize; 2] = [256, 384];

/// What a chain says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// The DNS names of the leaf, lower case: its alternative names, or else its common name.
    pub dns_names: Vec<String>,
    /// The leaf's subject alternative names as they are written.
    pub subject_alternative_names: Vec<String>,
    /// When the leaf expires, in seconds since the Unix epoch.
    pub expires_at_seconds: i64,
    /// From when on the leaf is valid, in seconds since the Unix epoch.
    pub valid_from_seconds: i64,
}

/// Judges a chain with its key at a moment, in seconds since the Unix epoch.
pub fn examine(
    chain_pem: &str,
    private_key_pem: &str,
    now_seconds: i64,
) -> Result<Examined, ApiError> {
    let examined = read_chain(chain_pem)?;
    if examined.expires_at_seconds <= now_seconds {
        return Err(refused("The SSL certificate has expired."));
    }
    if examined.valid_from_seconds > now_seconds {
        return Err(refused("The SSL certificate is not yet valid."));
    }
    let chain = certificates(chain_pem)?;
    check_public_key(&chain[0])?;
    let key = PrivateKeyDer::from_pem_slice(private_key_pem.as_bytes())
        .map_err(|_| refused("The SSL key could not be parsed."))?;
    let key = any_supported_type(&key).map_err(|_| refused("The SSL key could not be parsed."))?;
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) => Ok(examined),
        Err(_) => Err(refused("The SSL certificate and the SSL key do not match.")),
    }
}

/// Reads a chain without asking whether it is any good today.
pub fn read_chain(chain_pem: &str) -> Result<Examined, ApiError> {
    let chain = certificates(chain_pem)?;
    for certificate in &chain[1..] {
        parsed(certificate)?;
    }
    let leaf = parsed(&chain[0])?;
    let names = alternative_names(&leaf);
    let common_name = leaf.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let dns_names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    Ok(Examined {
        dns_names: if dns_names.is_empty() {
            common_name.map(str::to_ascii_lowercase).into_iter().collect()
        } else {
            dns_names
        },
        subject_alternative_names: names,
        expires_at_seconds: leaf.validity().not_after.timestamp(),
        valid_from_seconds: leaf.validity().not_before.timestamp(),
    })
}

fn certificates(chain_pem: &str) -> Result<Vec<CertificateDer<'static>>, ApiError> {
    let unreadable = || refused("The SSL certificate could not be parsed.");
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| unreadable())?;
    match chain.len() {
        0 => Err(unreadable()),
        count if count > CHAIN_CERTIFICATES_MAX => Err(refused(&format!(
            "The SSL certificate chain has {count} certificates; at most {CHAIN_CERTIFICATES_MAX} are allowed."
        ))),
        _ => Ok(chain),
    }
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, ApiError> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(refused("The SSL certificate could not be parsed.")),
    }
}

fn alternative_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_string()),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(dns).collect()
}

fn check_public_key(leaf: &CertificateDer<'_>) -> Result<(), ApiError> {
    let leaf = parsed(leaf)?;
    let strong = match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => RSA_BITS.contains(&key.key_size()),
        Ok(PublicKey::EC(point)) => CURVE_BITS.contains(&point.key_size()),
        _ => false,
    };
    if strong {
        return Ok(());
    }
    Err(refused(
        "The SSL certificate's key is not supported. Use RSA with 2048, 3072 or 4096 bits or ECDSA with the curve P-256 or P-384.",
    ))
}

fn refused(message: &str) -> ApiError {
    ApiError::new(Reason::Invalid, message)
}
