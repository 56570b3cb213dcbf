//! Target proxies: what terminates the client's HTTP or HTTPS and which URL map is asked.

use crate::name::ResourceName;

/// The least `httpKeepAliveTimeoutSec`, in seconds.
pub const KEEPALIVE_SECONDS_MIN: u32 = 5;
/// The greatest `httpKeepAliveTimeoutSec` of an internal balancer, in seconds.
pub const KEEPALIVE_SECONDS_MAX: u32 = 600;
/// The client keepalive of a proxy that does not set one, in seconds.
pub const KEEPALIVE_SECONDS_DEFAULT: u32 = 610;
/// The most Compute Engine certificates one proxy takes.
pub const SSL_CERTIFICATES_MAX: usize = 15;
/// The most Certificate Manager certificates one proxy takes.
pub const MANAGER_CERTIFICATES_MAX: usize = 100;

/// One target HTTP proxy (Compute `TargetHttpProxy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetHttpProxy {
    /// `projects/P/regions/R/targetHttpProxies/T`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `urlMap`.
    pub url_map: ResourceName,
    /// `httpKeepAliveTimeoutSec`, in seconds, when it was given.
    pub keepalive_seconds: Option<u32>,
}

impl TargetHttpProxy {
    /// The URL map.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        vec![("urlMap".into(), self.url_map.clone())]
    }
}

/// One target HTTPS proxy (Compute `TargetHttpsProxy`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetHttpsProxy {
    /// `projects/P/regions/R/targetHttpsProxies/T`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `urlMap`.
    pub url_map: ResourceName,
    /// `httpKeepAliveTimeoutSec`, in seconds, when it was given.
    pub keepalive_seconds: Option<u32>,
    /// `sslCertificates[]`: Compute Engine or Certificate Manager certificates, the first the default.
    pub certificates: Vec<ResourceName>,
    /// `sslPolicy`.
    pub ssl_policy: Option<ResourceName>,
}

impl TargetHttpsProxy {
    /// The URL map, the certificates and the SSL policy.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let certificates = self.certificates.iter().enumerate();
        let certificates = certificates.map(|(i, c)| (format!("sslCertificates[{i}]"), c.clone()));
        let policy = self.ssl_policy.iter().map(|name| ("sslPolicy".into(), name.clone()));
        let url_map = std::iter::once(("urlMap".into(), self.url_map.clone()));
        url_map.chain(certificates).chain(policy).collect()
    }
}
