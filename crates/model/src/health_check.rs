//! A health check, kept for clients that declare one; serverless backends have none.

use crate::name::ResourceName;

/// One health check (Compute `HealthCheck`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `projects/P/regions/R/healthChecks/H`.
    pub name: ResourceName,
    /// The numeric id: unique for ever.
    pub id: u64,
}

impl HealthCheck {
    /// A health check names no other resource.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}
