//! URL maps, backend services and URL masks, compiled.

use imbl::OrdMap;
use model::{Inventory, Problem, ResourceName};
use std::sync::Arc;

/// Every compiled URL map and backend service, kept from one compilation to the next.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    url_maps: OrdMap<ResourceName, Arc<UrlMapPlan>>,
}

impl Routing {
    /// The compiled URL map of that name, if the map is sound.
    pub fn url_map(&self, name: &ResourceName) -> Option<&Arc<UrlMapPlan>> {
        self.url_maps.get(name)
    }
}

/// Compiles every backend service and URL map; what did not change since `previous` is shared.
pub fn compile(inventory: &Inventory, previous: &Routing) -> (Routing, Vec<Problem>) {
    let _ = (inventory, previous);
    (Routing::default(), Vec::new())
}

/// A backend service as a request meets it.
#[derive(Debug)]
pub struct BackendServicePlan {}

/// One compiled URL map.
#[derive(Debug)]
pub struct UrlMapPlan {}

impl UrlMapPlan {
    /// Whether any redirect of the map sets `httpsRedirect`, which a target HTTPS proxy refuses.
    pub fn redirects_to_https(&self) -> bool {
        false
    }
}
