//! Google's dialects: the only room that knows their JSON.
//!
//! A request comes in already authenticated, is answered from one snapshot of the world, and a
//! change is acknowledged after its documents and its operation are on disk together.

pub mod builds;
pub mod certificate;
pub mod compute;
pub mod door;
pub mod error;
pub mod http;
pub mod jwt;
pub mod logging;
pub mod metadata;
pub mod oauth;
pub mod observed;
pub mod platform;
pub mod query;
pub mod run;
pub mod storage;
pub mod surroundings;
pub mod world;

mod artifact_registry;
mod authorization;
mod certificate_manager;
mod convert;
mod front;
mod functions;
mod grpc;
mod iam;
mod iam_credentials;
mod iam_policy;
mod ids;
mod logging_filter;
mod one_platform;
mod resource_manager;
mod roles;
mod service_usage;

pub use self::http::{Principal, Request, Response};
pub use error::{ApiError, Dialect, Reason};
pub use front::Front;
pub use observed::{InstanceStatus, Observed, Settled};
pub use platform::Platform;
pub use surroundings::{Machine, Surroundings};
pub use world::World;

use std::sync::Arc;

/// Everything a request needs: the world, what is seen of it, time and chance. Clones share it.
#[derive(Clone, Debug)]
pub struct Api {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    world: World,
    observed: Arc<dyn Observed>,
    surroundings: Arc<dyn Surroundings>,
    completions: compute::operations::Completions,
    ids: ids::Ids,
    platform: Option<Platform>,
}

impl Api {
    /// An API over a world.
    pub fn new(
        world: World,
        observed: Arc<dyn Observed>,
        surroundings: Arc<dyn Surroundings>,
    ) -> Api {
        Api::assembled(world, observed, surroundings, None)
    }

    /// An API over a world that also issues identities and reads logs.
    pub fn on_platform(
        world: World,
        observed: Arc<dyn Observed>,
        surroundings: Arc<dyn Surroundings>,
        platform: Platform,
    ) -> Api {
        Api::assembled(world, observed, surroundings, Some(platform))
    }

    fn assembled(
        world: World,
        observed: Arc<dyn Observed>,
        surroundings: Arc<dyn Surroundings>,
        platform: Option<Platform>,
    ) -> Api {
        let completions = compute::operations::Completions::default();
        let ids = ids::Ids::above(&world.state());
        let inner = Inner { world, observed, surroundings, completions, ids, platform };
        Api { inner: Arc::new(inner) }
    }

    pub(crate) fn platform(&self) -> Option<&Platform> {
        self.inner.platform.as_ref()
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.inner.world
    }

    /// What is seen of the plan being carried out.
    pub fn observed(&self) -> &dyn Observed {
        &*self.inner.observed
    }

    /// Time and chance.
    pub fn surroundings(&self) -> &dyn Surroundings {
        &*self.inner.surroundings
    }

    pub(crate) fn completions(&self) -> &compute::operations::Completions {
        &self.inner.completions
    }

    /// A number for a new resource, as JSON has it: unique for ever, and larger than all before it.
    pub(crate) fn new_id(&self) -> String {
        self.inner.ids.next(self.surroundings()).to_string()
    }

    /// Makes the project if it is not there, and returns its number.
    pub async fn ensure_project(&self, id: &str, display_name: &str) -> Result<u64, ApiError> {
        compute::projects::ensure(self, id, display_name).await
    }

    /// Answers one request. A fault of the request is an answer too.
    pub async fn handle(&self, request: Request) -> Response {
        if let Err(error) = authorization::check(self, &request) {
            return error.response(Dialect::OnePlatform);
        }
        match request.service.as_str() {
            "artifactregistry" => artifact_registry::handle(self, &request).await,
            "cloudbuild" => builds::cloud_build::handle(self, &request).await,
            "cloudfunctions" => functions::handle(self, &request).await,
            "compute" => compute::handle(self, &request).await,
            "certificatemanager" => certificate_manager::handle(self, &request).await,
            "cloudresourcemanager" => resource_manager::handle(self, &request).await,
            "iam" => iam::handle(self, &request).await,
            "iamcredentials" => iam_credentials::handle(self, &request),
            "logging" => logging::handle(self, &request),
            "run" => run::handle(self, &request).await,
            "serviceusage" => service_usage::handle(self, &request).await,
            "storage" => storage::handle(self, &request).await,
            service => {
                let message = format!("This server does not serve {service}.googleapis.com.");
                ApiError::new(Reason::NotFound, message).response(Dialect::OnePlatform)
            }
        }
    }
}
