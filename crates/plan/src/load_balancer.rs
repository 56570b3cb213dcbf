//! Forwarding rules, target proxies and certificates compiled into listeners.
//!
//! Invariant: no two listeners of one network share an address and port.

use crate::routing::UrlMapPlan;
use imbl::OrdMap;
use model::ResourceName;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// The client keepalive of a target proxy that does not set one (semantics of `httpKeepAliveTimeoutSec`).
pub const KEEPALIVE_DEFAULT: Duration = Duration::from_secs(610);

/// One forwarding rule, ready to serve.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The forwarding rule.
    pub name: ResourceName,
    /// Its numeric id: unique for ever, the listener's identity across plans.
    pub id: u64,
    /// The network whose namespace the address lives in.
    pub network: ResourceName,
    /// The address.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
    /// The target HTTP(S) proxy.
    pub target: ResourceName,
    /// TLS settings of a target HTTPS proxy; `None` for plain HTTP.
    pub tls: Option<Arc<Tls>>,
    /// How long a client's idle connection is kept.
    pub keepalive: Duration,
    /// Whether clients of other regions are answered.
    pub global_access: bool,
    /// The URL map.
    pub url_map: Arc<UrlMapPlan>,
}

/// What a target HTTPS proxy presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificates in the proxy's order; the first answers when no name matches.
    pub certificates: Vec<Arc<Certificate>>,
    /// The least TLS version (`SslPolicy.minTlsVersion`) the listener accepts.
    pub min_version: TlsVersion,
    /// The cipher suites offered, in Google's names; empty for all of the profile COMPATIBLE.
    pub ciphers: Vec<String>,
}

/// TLS protocol versions the data plane speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2, also what `TLS_1_0` and `TLS_1_1` amount to: older versions are not spoken.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

/// A certificate chain and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate's resource.
    pub name: ResourceName,
    /// The chain in PEM, leaf first.
    pub chain_pem: String,
    /// The private key in PEM. Never printed.
    pub private_key_pem: String,
    /// The DNS names of the leaf (subject alternative names, or else its common name), lower case.
    pub dns_names: Vec<String>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Certificate({})", self.name)
    }
}

/// The compiled listeners, kept from one compilation to the next.
#[derive(Clone, Debug, Default)]
pub struct LoadBalancers {
    /// Every listener by forwarding rule.
    pub listeners: OrdMap<ResourceName, Arc<Listener>>,
}
