//! Certificates with their keys: Compute Engine's and Certificate Manager's, which serve alike.
//!
//! Invariant: the private key is never printed; `Debug` leaves it out.

use crate::name::ResourceName;
use std::fmt;

/// The most certificates in one chain.
pub const CHAIN_CERTIFICATES_MAX: usize = 5;

/// One certificate (Compute `SslCertificate`, Certificate Manager `Certificate`).
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// `projects/P/regions/R/sslCertificates/C` or `projects/P/locations/R/certificates/C`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// The chain in PEM, leaf first, at most [`CHAIN_CERTIFICATES_MAX`].
    pub chain_pem: String,
    /// The private key in PEM.
    pub private_key_pem: String,
    /// The DNS names of the leaf: its subject alternative names, or else its common name; lower case.
    pub dns_names: Vec<String>,
    /// When the leaf expires, in seconds since the Unix epoch.
    pub expires_at_seconds: i64,
}

impl Certificate {
    /// A certificate names no other resource.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Certificate")
            .field("name", &self.name)
            .field("dns_names", &self.dns_names)
            .field("expires_at_seconds", &self.expires_at_seconds)
            .finish_non_exhaustive()
    }
}
