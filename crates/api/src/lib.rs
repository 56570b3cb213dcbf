//! Google's dialects: the only room that knows their JSON.
//!
//! A request comes in already authenticated, is answered from one snapshot of the world, and a
//! change is acknowledged after its documents and its operation are on disk together.

pub mod certificate;
pub mod compute;
pub mod door;
pub mod error;
pub mod http;
pub mod jwt;
pub mod oauth;
pub mod observed;
pub mod query;
pub mod surroundings;
pub mod world;

mod convert;

pub use self::http::{Principal, Request, Response};
pub use error::{ApiError, Dialect, Reason};
pub use observed::{InstanceStatus, Observed, Settled};
pub use surroundings::{Machine, Surroundings};
pub use world::World;

use std::sync::Arc;

/// Ids are below this, so that every client reads them into a signed 64-bit integer.
const ID_MASK: u64 = i64::MAX as u64;
/// Ids are at or above this, so that they are as long as Google's.
const ID_MIN: u64 = 1 << 60;

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
}

impl Api {
    /// An API over a world.
    pub fn new(
        world: World,
        observed: Arc<dyn Observed>,
        surroundings: Arc<dyn Surroundings>,
    ) -> Api {
        let completions = compute::operations::Completions::default();
        Api { inner: Arc::new(Inner { world, observed, surroundings, completions }) }
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

    /// A number for a new resource, as JSON has it: unique for ever, by its size.
    pub(crate) fn new_id(&self) -> String {
        ((self.surroundings().random() & ID_MASK) | ID_MIN).to_string()
    }

    /// Makes the project if it is not there, and returns its number.
    pub async fn ensure_project(&self, id: &str, display_name: &str) -> Result<u64, ApiError> {
        compute::projects::ensure(self, id, display_name).await
    }

    /// Answers one request. A fault of the request is an answer too.
    pub async fn handle(&self, request: Request) -> Response {
        match request.service.as_str() {
            "compute" => compute::handle(self, &request).await,
            service => {
                let message = format!("This server does not serve {service}.googleapis.com.");
                ApiError::new(Reason::NotFound, message).response(Dialect::OnePlatform)
            }
        }
    }
}
