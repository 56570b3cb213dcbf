//! An SSL policy: which TLS versions and cipher suites a target HTTPS proxy negotiates.

use crate::name::{Name, ResourceName};

/// One SSL policy (Compute `SslPolicy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SslPolicy {
    /// `projects/P/regions/R/sslPolicies/S`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `profile`.
    pub profile: Profile,
    /// `minTlsVersion`.
    pub min_tls_version: MinTlsVersion,
    /// `customFeatures[]`, of the CUSTOM profile only.
    pub custom_features: Vec<Name>,
}

/// `profile`: a named set of cipher suites.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// `COMPATIBLE`.
    #[default]
    Compatible,
    /// `MODERN`.
    Modern,
    /// `RESTRICTED`.
    Restricted,
    /// `FIPS_202205`.
    Fips202205,
    /// `CUSTOM`.
    Custom,
}

/// `minTlsVersion`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MinTlsVersion {
    /// `TLS_1_0`.
    #[default]
    Tls1_0,
    /// `TLS_1_1`.
    Tls1_1,
    /// `TLS_1_2`.
    Tls1_2,
    /// `TLS_1_3`.
    Tls1_3,
}

impl SslPolicy {
    /// A policy names no other resource.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}
