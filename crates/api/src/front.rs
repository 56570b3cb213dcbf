//! The API as the door sees it: whose token it is, what needs none, and the answer.

use std::sync::Arc;

use crate::Api;
use crate::door::{Behind, BoxFuture, OpenRequest};
use crate::http::{Principal, Request, Response};
use crate::oauth::Identity;
use crate::query::Query;

/// An API and the identities it believes. Clones share both.
#[derive(Clone, Debug)]
pub struct Front {
    api: Api,
    identity: Arc<Identity>,
}

impl Front {
    /// Puts an API behind the door.
    pub fn new(api: Api, identity: Arc<Identity>) -> Front {
        Front { api, identity }
    }
}

impl Behind for Front {
    fn principal(&self, bearer: &str) -> Option<Principal> {
        let now = self.api.surroundings().now();
        self.identity.principal(bearer, &*self.api.world().state(), now)
    }

    fn signer(&self, service: &str, path: &str, query: &str) -> Option<Principal> {
        let query = Query::parse(query);
        let signature = query.get("X-Goog-Signature").filter(|_| service == "storage")?;
        let builds = self.api.platform()?.builds.as_ref()?;
        builds.sessions.signer(signature, path, self.api.surroundings().now())
    }

    fn is_open(&self, service: &str, path: &str) -> bool {
        Identity::is_open(service, path)
    }

    fn answer_open(&self, request: OpenRequest<'_>) -> Response {
        let now = self.api.surroundings().now();
        self.identity.answer_open(request, &*self.api.world().state(), now)
    }

    fn answer(&self, request: Request) -> BoxFuture<'_, Response> {
        Box::pin(self.api.handle(request))
    }
}
