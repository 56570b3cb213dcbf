//! URL maps, backend services and URL masks, compiled.

/// Every compiled URL map and backend service, kept from one compilation to the next.
#[derive(Clone, Debug, Default)]
pub struct Routing {}

/// A backend service as a request meets it.
#[derive(Debug)]
pub struct BackendServicePlan {}

/// One compiled URL map.
#[derive(Debug)]
pub struct UrlMapPlan {}
