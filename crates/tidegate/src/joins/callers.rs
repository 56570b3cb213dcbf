//! Identity tokens for the data plane, read by whoever issued them.

use api::oauth;
use api::{Machine, Surroundings};
use model::run::Member;
use proxy::{Callers, Identity};
use std::sync::Arc;

/// Reads the tokens of this server.
#[derive(Debug)]
pub(crate) struct IssuedTokens(pub(crate) Arc<oauth::Identity>);

/// What the address of every service account ends with.
const SERVICE_ACCOUNT_SUFFIX: &str = ".gserviceaccount.com";

impl Callers for IssuedTokens {
    fn identify(&self, token: &str) -> Identity {
        let Some(said) = self.0.verify_id_token(token, Machine.now()) else {
            return Identity::Invalid;
        };
        let email = said.email.as_str().into();
        let member = match said.email.ends_with(SERVICE_ACCOUNT_SUFFIX) {
            true => Member::ServiceAccount(email),
            false => Member::User(email),
        };
        Identity::Known { member, audience: said.audience }
    }
}
