//! What the API needs besides its world to be a platform: identities, logs and builds.

use std::sync::Arc;

use crate::Api;
use crate::builds::Builds;
use crate::error::{ApiError, Reason};
use crate::http::Principal;
use crate::logging::Logs;
use crate::oauth::Identity;

/// Identities and logs. Clones share them.
#[derive(Clone, Debug)]
pub struct Platform {
    /// The tokens of this server.
    pub identity: Arc<Identity>,
    /// What services wrote and which requests they answered.
    pub logs: Arc<dyn Logs>,
    /// What is built from sources; without, images are deployed only.
    pub builds: Option<Arc<Builds>>,
}

/// Whom an API without identities takes for the owner.
const OWNER_WITHOUT_IDENTITY: &str = "owner@localhost";

impl Api {
    /// Whoever holds the token of this server.
    pub(crate) fn owner(&self) -> Principal {
        match self.platform() {
            Some(platform) => platform.identity.owner().clone(),
            None => {
                let email = OWNER_WITHOUT_IDENTITY.to_owned();
                Principal { email, is_service_account: false }
            }
        }
    }

    /// The tokens of this server.
    pub(crate) fn identity(&self) -> Result<&Identity, ApiError> {
        let unavailable = || ApiError::new(Reason::Unavailable, "No identities are issued here.");
        self.platform().map(|platform| &*platform.identity).ok_or_else(unavailable)
    }
}
