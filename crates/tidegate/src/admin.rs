//! `tidegate.googleapis.com`: what only Tidegate can tell, through the same door and token as every API.
//!
//! It reads and answers; what it tells is what the other crates report, put into JSON.

mod explain;
mod images;
mod status;

use crate::applier::Applier;
use crate::data_dir::RunAppAddresses;
use api::{Api, ApiError, Dialect, Reason, Request, Response};
use http::{Method, StatusCode};
use serde_json::Value;
use serverless::images::ImageStore;
use std::sync::Arc;

/// The API in front of which this stands, and everyone who can be asked.
pub(crate) struct Admin {
    api: Api,
    applier: Arc<Applier>,
    images: ImageStore,
    run_app: RunAppAddresses,
}

impl Admin {
    pub(crate) fn new(
        api: Api,
        applier: Arc<Applier>,
        images: ImageStore,
        run_app: RunAppAddresses,
    ) -> Admin {
        Admin { api, applier, images, run_app }
    }

    /// The answer to one request.
    pub(crate) async fn answer(&self, request: &Request) -> Response {
        let path = request.path.trim_end_matches('/');
        let answer = match (&request.method, path) {
            (&Method::GET, "/v1/status") => Ok(status::collect(self).await),
            (&Method::POST, "/v1/explain") => explain::answer(self, &request.body),
            (&Method::POST, "/v1/lint") => explain::lint(self, &request.body),
            (&Method::GET, "/v1/images") => {
                Ok(images::list(&self.images, &self.api.world().state().compiled.plan))
            }
            (&Method::POST, "/v1/images:load") => images::load(&self.images, &request.body).await,
            (&Method::POST, "/v1/images:remove") => images::remove(&self.images, &request.body),
            (_, path) => {
                let message = format!("There is no `{} {path}` here.", request.method);
                Err(ApiError::new(Reason::NotFound, message))
            }
        };
        match answer {
            Ok(value) => Response::json(StatusCode::OK, &value),
            Err(error) => error.response(Dialect::OnePlatform),
        }
    }
}

/// The JSON of a body.
fn read_body(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::new(Reason::Invalid, format!("The body is not JSON: {error}")))
}

/// A text field that must be there.
fn required<'v>(body: &'v Value, field: &str) -> Result<&'v str, ApiError> {
    body[field].as_str().ok_or_else(|| {
        ApiError::new(Reason::Required, format!("Required field '{field}' not specified"))
    })
}
