//! A backend service: how requests are sent to its backends, and what is logged about them.

use crate::name::{Name, ResourceName};

/// The `timeoutSec` of a backend service that does not say, in seconds.
pub const TIMEOUT_SECONDS_DEFAULT: u32 = 30;

/// One backend service (Compute `BackendService`).
#[derive(Clone, Debug, PartialEq)]
pub struct BackendService {
    /// `projects/P/regions/R/backendServices/B`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
    /// `loadBalancingScheme`, as written.
    pub load_balancing_scheme: Name,
    /// `protocol`, as written: `HTTP`, `HTTPS`, `HTTP2`, `H2C`, `GRPC`, `TCP`, ….
    pub protocol: Name,
    /// `portName`, when it was given.
    pub port_name: Option<Name>,
    /// `timeoutSec`, in seconds.
    pub timeout_seconds: u32,
    /// `backends[]`.
    pub backends: Vec<Backend>,
    /// `healthChecks[]`.
    pub health_checks: Vec<ResourceName>,
    /// `sessionAffinity`, as written; it has no effect with serverless backends.
    pub session_affinity: Name,
    /// `customRequestHeaders[]`, each `Name:Value`.
    pub custom_request_headers: Vec<String>,
    /// `customResponseHeaders[]`, each `Name:Value`.
    pub custom_response_headers: Vec<String>,
    /// `logConfig`.
    pub log: LogConfig,
    /// `connectionDraining.drainingTimeoutSec`, in seconds.
    pub draining_timeout_seconds: u32,
    /// Whether `outlierDetection` was given, which regional serverless backends refuse.
    pub outlier_detection: bool,
    /// Whether `circuitBreakers` were given.
    pub circuit_breakers: bool,
    /// Whether `consistentHash` was given.
    pub consistent_hash: bool,
    /// `localityLbPolicy`, when it was given.
    pub locality_policy: Option<Name>,
}

/// One entry of `backends[]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// `group`.
    pub group: ResourceName,
    /// `balancingMode`, when it was given.
    pub balancing_mode: Option<Name>,
    /// `capacityScaler`, when it was given.
    pub capacity_scaler: Option<f64>,
}

/// `logConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// `enable`.
    pub enable: bool,
    /// `sampleRate`, 0.0 to 1.0.
    pub sample_rate: f64,
    /// `optionalMode` as written.
    pub optional_mode: Name,
    /// `optionalFields[]`.
    pub optional_fields: Vec<String>,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        let optional_mode = "EXCLUDE_ALL_OPTIONAL".into();
        LogConfig { enable: false, sample_rate: 1.0, optional_mode, optional_fields: Vec::new() }
    }
}

impl BackendService {
    /// The groups and health checks it uses.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        let groups = self.backends.iter().enumerate();
        let groups = groups.map(|(i, b)| (format!("backends[{i}].group"), b.group.clone()));
        let checks = self.health_checks.iter().enumerate();
        let checks = checks.map(|(i, check)| (format!("healthChecks[{i}]"), check.clone()));
        groups.chain(checks).collect()
    }
}
