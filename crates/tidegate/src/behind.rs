//! Who stands behind the door: Google's APIs, and beside them what only Tidegate can tell.

use crate::admin::Admin;
use api::door::{Behind, BoxFuture, OpenRequest};
use api::{Front, Principal, Request, Response};

/// The host label of what only Tidegate can tell.
const OWN_SERVICE: &str = "tidegate";

/// Answers every request that came through the door.
pub(crate) struct Counter {
    pub(crate) front: Front,
    pub(crate) admin: Admin,
}

impl Behind for Counter {
    fn principal(&self, bearer: &str) -> Option<Principal> {
        self.front.principal(bearer)
    }

    fn signer(&self, service: &str, path: &str, query: &str) -> Option<Principal> {
        self.front.signer(service, path, query)
    }

    fn is_open(&self, service: &str, path: &str) -> bool {
        self.front.is_open(service, path)
    }

    fn answer_open(&self, request: OpenRequest<'_>) -> Response {
        self.front.answer_open(request)
    }

    fn answer(&self, request: Request) -> BoxFuture<'_, Response> {
        if request.service == OWN_SERVICE {
            return Box::pin(async move { self.admin.answer(&request).await });
        }
        self.front.answer(request)
    }
}
