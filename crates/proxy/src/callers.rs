//! Who calls: the question the proxy asks about a token, answered by whoever issues tokens.

use model::run::Member;
use std::fmt;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It is malformed, expired or not signed by an issuer we trust.
    Invalid,
    /// It is good.
    Known {
        /// Whose it is: a user or a service account.
        member: Member,
        /// Its `aud`.
        audience: String,
    },
}

/// Verifies tokens. Asked only for services that are not public; must not block.
pub trait Callers: Send + Sync + 'static {
    /// Reads a bearer token.
    fn identify(&self, token: &str) -> Identity;
}

impl fmt::Debug for dyn Callers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Callers")
    }
}
