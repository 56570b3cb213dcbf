//! Who is who: the tokens this server issues and believes, and Google's token endpoint.
//!
//! Three kinds of bearer are good: the token made at the first start, whose holder owns
//! everything; access tokens issued here, which carry their own holder and expiry under a secret
//! of this server; and tokens a service account has signed itself.
//!
//! Invariant: every secret is in the data directory before the first token that depends on it
//! leaves the server, so a token outlives a restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::{digest, hmac};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use crate::door::{self, FOLDER, OpenRequest, PrivateFileError};
use crate::error::{ApiError, Dialect, Reason};
use crate::http::{Principal, Response};
use crate::jwt::{self, Jwt};

/// The issuer in id tokens, as Google's verifiers expect it.
pub const ISSUER: &str = "https://accounts.google.com";
/// How long an access token is good, in seconds.
pub const ACCESS_TOKEN_SECONDS: i64 = 3600;
/// The longest lifetime an access token may be asked for, in seconds.
pub const ACCESS_TOKEN_SECONDS_MAX: i64 = 43_200;

const TOKEN_FILE: &str = "token";
const SECRET_FILE: &str = "token-secret";
const SIGNER_FILE: &str = "id-token-key";
const ACCESS_TOKEN_PREFIX: &str = "ya29.";
const SECRET_BYTES: usize = 32;
const JWT_GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// What the accounts of the project know: the API answers from its world.
pub trait AccountKeys {
    /// Whether there is such a service account.
    fn is_account(&self, email: &str) -> bool;

    /// The public key (PKCS#1 DER) of an account's key.
    fn public_key(&self, email: &str, key_id: &str) -> Option<Vec<u8>>;
}

/// The secrets of this server.
pub struct Identity {
    folder: PathBuf,
    owner: Principal,
    token: String,
    secret: hmac::Key,
    signer: OnceLock<Signer>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identity").field("owner", &self.owner).finish_non_exhaustive()
    }
}

struct Signer {
    key: KeyPair,
    id: String,
}

/// What an access token says about itself.
#[derive(Serialize, Deserialize)]
struct Grant {
    #[serde(rename = "e")]
    email: String,
    #[serde(rename = "s")]
    is_service_account: bool,
    #[serde(rename = "x")]
    expires: i64,
}

/// What an id token says, once believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdToken {
    /// Whom it is about.
    pub email: String,
    /// For whom it is meant.
    pub audience: String,
}

/// The file that holds the owner's token.
pub fn token_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join(TOKEN_FILE)
}

impl Identity {
    /// Opens the secrets kept in the data directory, made if absent; `owner_email` holds the
    /// default token.
    pub fn open(data_dir: &Path, owner_email: &str) -> Result<Identity, PrivateFileError> {
        let folder = data_dir.join(FOLDER);
        door::make_folder(&folder)?;
        let token = door::remembered(&folder.join(TOKEN_FILE), || {
            Ok(URL_SAFE_NO_PAD.encode(random()?).into_bytes())
        })?;
        let secret = door::remembered(&folder.join(SECRET_FILE), || Ok(random()?.to_vec()))?;
        Ok(Identity {
            folder,
            owner: Principal { email: owner_email.to_owned(), is_service_account: false },
            token: String::from_utf8_lossy(&token).trim().to_owned(),
            secret: hmac::Key::new(hmac::HMAC_SHA256, &secret),
            signer: OnceLock::new(),
        })
    }

    /// The owner's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Who holds the owner's token.
    pub fn owner(&self) -> &Principal {
        &self.owner
    }

    /// Who holds this bearer token, if it is good at `now`.
    pub fn principal(
        &self,
        bearer: &str,
        accounts: &dyn AccountKeys,
        now: OffsetDateTime,
    ) -> Option<Principal> {
        // Digests have one length, so that nothing about the token shows in the time this takes.
        let digest_of = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
        let (given, own) = (digest_of(bearer), digest_of(&self.token));
        if verify_slices_are_equal(given.as_ref(), own.as_ref()).is_ok() {
            return Some(self.owner.clone());
        }
        if let Some(sealed) = bearer.strip_prefix(ACCESS_TOKEN_PREFIX) {
            let grant = self.unseal(sealed)?;
            let holds = now.unix_timestamp() < grant.expires
                && (!grant.is_service_account || accounts.is_account(&grant.email));
            let Grant { email, is_service_account, .. } = grant;
            return holds.then_some(Principal { email, is_service_account });
        }
        let jwt = Jwt::parse(bearer).ok()?;
        let email = jwt.issuer()?.to_owned();
        let key = accounts.public_key(&email, jwt.key_id.as_deref()?)?;
        jwt.verify(&key, now).ok()?;
        Some(Principal { email, is_service_account: true })
    }

    /// An access token for `principal`.
    pub fn access_token(&self, principal: &Principal, seconds: i64, now: OffsetDateTime) -> String {
        let expires = now + Duration::seconds(seconds.clamp(1, ACCESS_TOKEN_SECONDS_MAX));
        let grant = json!({
            "e": principal.email,
            "s": principal.is_service_account,
            "x": expires.unix_timestamp(),
        });
        let payload = URL_SAFE_NO_PAD.encode(grant.to_string());
        let seal = hmac::sign(&self.secret, payload.as_bytes());
        format!("{ACCESS_TOKEN_PREFIX}{payload}.{}", URL_SAFE_NO_PAD.encode(seal.as_ref()))
    }

    fn unseal(&self, sealed: &str) -> Option<Grant> {
        let (payload, seal) = sealed.split_once('.')?;
        let seal = URL_SAFE_NO_PAD.decode(seal).ok()?;
        hmac::verify(&self.secret, payload.as_bytes(), &seal).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }

    /// An id token about `email` for `audience`.
    pub fn id_token(
        &self,
        email: &str,
        audience: &str,
        now: OffsetDateTime,
    ) -> Result<String, ApiError> {
        let signer = self.signer()?;
        let mut claims = jwt::claims(ISSUER, &subject_of(email), audience, now);
        claims["azp"] = email.into();
        claims["email"] = email.into();
        claims["email_verified"] = true.into();
        jwt::sign(&signer.key, &signer.id, &claims).ok_or_else(no_signer)
    }

    /// What an id token of this server says, if it is good at `now`.
    pub fn verify_id_token(&self, token: &str, now: OffsetDateTime) -> Option<IdToken> {
        let jwt = Jwt::parse(token).ok()?;
        let signer = self.signer().ok()?;
        let claims = jwt.verify(signer.key.public_key().as_ref(), now).ok()?;
        let text = |claim: &str| claims.get(claim).and_then(Value::as_str).map(str::to_owned);
        Some(IdToken { email: text("email")?, audience: text("aud")? })
    }

    /// The key of id tokens, made when the first is asked for: it takes longer than a start may.
    fn signer(&self) -> Result<&Signer, ApiError> {
        if let Some(signer) = self.signer.get() {
            return Ok(signer);
        }
        let path = self.folder.join(SIGNER_FILE);
        let pkcs8 = door::remembered(&path, || {
            let key = KeyPair::generate(KeySize::Rsa2048).map_err(io::Error::other)?;
            private_der(&key).map_err(io::Error::other)
        });
        let pkcs8 = pkcs8.map_err(|error| {
            tracing::error!(?error, "the key of id tokens could not be kept");
            no_signer()
        })?;
        let key = KeyPair::from_pkcs8(&pkcs8).map_err(|_| no_signer())?;
        let id = key_id(key.public_key().as_ref());
        Ok(self.signer.get_or_init(|| Signer { key, id }))
    }

    /// Whether a request is answered without a token.
    pub fn is_open(service: &str, path: &str) -> bool {
        service == "oauth2" && matches!(path, "/token" | "/oauth2/v3/certs" | "/oauth2/v4/token")
    }

    /// The token endpoint and the public keys.
    pub fn answer_open(
        &self,
        request: OpenRequest<'_>,
        accounts: &dyn AccountKeys,
        now: OffsetDateTime,
    ) -> Response {
        match (request.method, request.path) {
            (&Method::GET, "/oauth2/v3/certs") => match self.signer() {
                Ok(signer) => {
                    let keys = json!({ "keys": [jwt::public_jwk(&signer.key, &signer.id)] });
                    Response::json(StatusCode::OK, &keys)
                }
                Err(error) => error.response(Dialect::OnePlatform),
            },
            (&Method::POST, "/token" | "/oauth2/v4/token") => {
                match self.token_for(request.body, accounts, now) {
                    Ok(value) => Response::json(StatusCode::OK, &value),
                    Err(refusal) => refusal.response(),
                }
            }
            _ => {
                let message = "The token endpoint does not serve this method.";
                ApiError::new(Reason::MethodNotAllowed, message).response(Dialect::OnePlatform)
            }
        }
    }

    fn token_for(
        &self,
        form: &[u8],
        accounts: &dyn AccountKeys,
        now: OffsetDateTime,
    ) -> Result<Value, TokenRefusal> {
        let invalid = |message: String| TokenRefusal { word: "invalid_grant", message };
        let grant_type = form_field(form, "grant_type").unwrap_or_default();
        if grant_type != JWT_GRANT {
            let message = format!("Invalid grant_type: {grant_type}");
            return Err(TokenRefusal { word: "unsupported_grant_type", message });
        }
        let assertion = form_field(form, "assertion").unwrap_or_default();
        let jwt = Jwt::parse(&assertion).map_err(|error| invalid(error.to_string()))?;
        let email = jwt.issuer().unwrap_or_default().to_owned();
        let key = jwt.key_id.as_deref().and_then(|id| accounts.public_key(&email, id));
        let Some(key) = key else {
            return Err(match accounts.is_account(&email) {
                true => invalid("Invalid JWT Signature.".to_owned()),
                false => invalid("Invalid grant: account not found".to_owned()),
            });
        };
        let claims = jwt.verify(&key, now).map_err(|error| invalid(error.to_string()))?;
        let claim = |name: &str| claims.get(name).and_then(Value::as_str);
        if !claim("aud").is_some_and(|audience| audience.ends_with("/token")) {
            return Err(invalid("Invalid JWT: Failed audience check".to_owned()));
        }
        if let Some(audience) = claim("target_audience") {
            let token = self.id_token(&email, audience, now);
            let token = token.map_err(|error| invalid(error.message))?;
            return Ok(json!({ "id_token": token }));
        }
        if claim("scope").is_none() {
            let message = "Empty or missing scope not allowed.".to_owned();
            return Err(TokenRefusal { word: "invalid_scope", message });
        }
        let principal = Principal { email, is_service_account: true };
        let token = self.access_token(&principal, ACCESS_TOKEN_SECONDS, now);
        // Clients take the margin for the way off themselves; Google grants one second less.
        let seconds = ACCESS_TOKEN_SECONDS - 1;
        Ok(json!({ "access_token": token, "expires_in": seconds, "token_type": "Bearer" }))
    }
}

/// A refusal of the token endpoint, which has OAuth's envelope and not Google's.
struct TokenRefusal {
    word: &'static str,
    message: String,
}

impl TokenRefusal {
    fn response(&self) -> Response {
        let body = json!({ "error": self.word, "error_description": self.message });
        Response::json(Reason::BadRequest.status(), &body)
    }
}

/// A key's private half in PKCS#8.
pub(crate) fn private_der(key: &KeyPair) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
    let der: Pkcs8V1Der<'_> = key.as_der()?;
    Ok(der.as_ref().to_vec())
}

/// The id of a key: the beginning of the digest of its public half, in hexadecimal.
pub(crate) fn key_id(public_key: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, public_key);
    digest.as_ref()[..20].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A stable 21-digit subject for an address, as Google's `sub` and `uniqueId` are.
pub(crate) fn subject_of(email: &str) -> String {
    let digest = digest::digest(&digest::SHA256, email.as_bytes());
    let number = digest.as_ref()[..8].iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    format!("1{number:020}")
}

fn random() -> io::Result<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn no_signer() -> ApiError {
    ApiError::new(Reason::Internal, "The key that signs id tokens cannot be used.")
}

fn form_field(form: &[u8], name: &str) -> Option<String> {
    let text = std::str::from_utf8(form).ok()?;
    let value = text.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::{claims, sign};

    const EMAIL: &str = "robot@p.iam.gserviceaccount.com";

    struct OneAccount(KeyPair);

    impl AccountKeys for OneAccount {
        fn is_account(&self, email: &str) -> bool {
            email == EMAIL
        }

        fn public_key(&self, email: &str, key_id: &str) -> Option<Vec<u8>> {
            (email == EMAIL && key_id == "k").then(|| self.0.public_key().as_ref().to_vec())
        }
    }

    struct Stage {
        folder: tempfile::TempDir,
        identity: Identity,
        accounts: OneAccount,
        now: OffsetDateTime,
    }

    fn stage() -> Stage {
        let folder = tempfile::tempdir().expect("a folder");
        let identity = Identity::open(folder.path(), "owner@example.com").expect("opens");
        let accounts = OneAccount(KeyPair::generate(KeySize::Rsa2048).expect("a key"));
        Stage { folder, identity, accounts, now: OffsetDateTime::now_utc() }
    }

    impl Stage {
        fn holder(&self, bearer: &str, now: OffsetDateTime) -> String {
            match self.identity.principal(bearer, &self.accounts, now) {
                Some(principal) => principal.member(),
                None => "nobody".to_owned(),
            }
        }

        fn ask(&self, claims: &Value) -> (u16, Value) {
            let assertion = sign(&self.accounts.0, "k", claims).expect("signed");
            let body = format!(
                "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}"
            );
            let request = OpenRequest {
                service: "oauth2",
                method: &Method::POST,
                path: "/token",
                body: body.as_bytes(),
            };
            let response = self.identity.answer_open(request, &self.accounts, self.now);
            let value = serde_json::from_slice(&response.body).expect("JSON");
            (response.status.as_u16(), value)
        }
    }

    #[test]
    fn three_kinds_of_bearers_are_good_and_no_other() {
        let stage = stage();
        let later = |seconds| stage.now + Duration::seconds(seconds);
        let robot = Principal { email: EMAIL.to_owned(), is_service_account: true };
        let gone = Principal { email: "gone@p".to_owned(), is_service_account: true };
        let issued = stage.identity.access_token(&robot, 3600, stage.now);
        let for_gone = stage.identity.access_token(&gone, 3600, stage.now);
        let own = claims(EMAIL, EMAIL, "https://compute.googleapis.com/", stage.now);
        let own = sign(&stage.accounts.0, "k", &own).expect("signed");
        let others = claims("evil@p", "evil@p", "https://compute.googleapis.com/", stage.now);
        let others = sign(&stage.accounts.0, "k", &others).expect("signed");
        let token = stage.identity.token().to_owned();
        let forged = format!("{issued}x");
        let member = "serviceAccount:robot@p.iam.gserviceaccount.com";
        for (what, bearer, now, expected) in [
            ("the owner's", token.as_str(), stage.now, "user:owner@example.com"),
            ("the owner's cut short", &token[1..], stage.now, "nobody"),
            ("none", "", stage.now, "nobody"),
            ("issued", &issued, stage.now, member),
            ("issued, at its end", &issued, later(3600), "nobody"),
            ("issued, altered", &forged, stage.now, "nobody"),
            ("of an account that is gone", &for_gone, stage.now, "nobody"),
            ("signed by the account", &own, stage.now, member),
            ("signed by the account, old", &own, later(4000), "nobody"),
            ("signed by nobody we know", &others, stage.now, "nobody"),
        ] {
            assert_eq!(stage.holder(bearer, now), expected, "{what}");
        }
    }

    #[test]
    fn tokens_and_keys_outlive_a_restart() {
        let stage = stage();
        let robot = Principal { email: EMAIL.to_owned(), is_service_account: true };
        let issued = stage.identity.access_token(&robot, 3600, stage.now);
        let id_token = stage.identity.id_token(EMAIL, "https://a", stage.now).expect("signed");
        let again = Identity::open(stage.folder.path(), "owner@example.com").expect("opens");
        assert_eq!(again.token(), stage.identity.token());
        assert_eq!(again.principal(&issued, &stage.accounts, stage.now), Some(robot));
        let said = IdToken { email: EMAIL.to_owned(), audience: "https://a".to_owned() };
        assert_eq!(again.verify_id_token(&id_token, stage.now), Some(said));
    }

    #[test]
    fn a_signed_assertion_buys_an_access_token_or_an_id_token() {
        let stage = stage();
        let mut wanted = claims(EMAIL, EMAIL, "https://oauth2.googleapis.com/token", stage.now);
        assert_eq!(stage.ask(&wanted).1["error"], "invalid_scope");
        wanted["scope"] = "https://www.googleapis.com/auth/cloud-platform".into();
        let (status, answer) = stage.ask(&wanted);
        assert_eq!((status, &answer["token_type"]), (200, &json!("Bearer")));
        let bearer = answer["access_token"].as_str().expect("a token");
        assert_eq!(stage.holder(bearer, stage.now), format!("serviceAccount:{EMAIL}"));
        wanted["target_audience"] = "https://hello.run.app".into();
        let token = stage.ask(&wanted).1["id_token"].as_str().expect("a token").to_owned();
        let said = stage.identity.verify_id_token(&token, stage.now).expect("ours");
        assert_eq!(said.audience, "https://hello.run.app");
        wanted["aud"] = "https://elsewhere.example".into();
        assert_eq!(
            stage.ask(&wanted),
            (
                400,
                json!({
                    "error": "invalid_grant",
                    "error_description": "Invalid JWT: Failed audience check",
                })
            )
        );
        wanted["iss"] = "evil@p".into();
        assert_eq!(stage.ask(&wanted).1["error"], "invalid_grant");
    }
}
