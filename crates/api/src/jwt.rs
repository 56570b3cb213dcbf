//! JSON Web Tokens as Google uses them: RS256 only, three parts, bounded.
//!
//! Pure but for the signature's own randomness. Invariant: claims leave [`Jwt::verify`] only after
//! the signature fits the key and the moment lies between issue and expiry.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{
    KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

/// A token's text, in bytes.
pub const JWT_BYTES_MAX: usize = 16 * 1024;
/// How far clocks may differ, in seconds.
pub const SKEW_SECONDS_MAX: i64 = 600;
/// From issue to expiry, in seconds, as Google bounds it.
pub const LIFETIME_SECONDS_MAX: i64 = 3600;

/// A token taken apart and not yet believed.
#[derive(Clone, Debug)]
pub struct Jwt<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    /// `kid` of the header: which key signed it.
    pub key_id: Option<String>,
    claims: Value,
}

/// Why a token is not believed, in the words of Google's token endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The text is no RS256 token.
    #[error("Bad Request: the assertion is not an RS256 JSON Web Token.")]
    Malformed,
    /// The signature does not fit the key.
    #[error("Invalid JWT Signature.")]
    Signature,
    /// Expired, not yet valid, or valid for too long.
    #[error(
        "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."
    )]
    Timeframe,
}

impl<'a> Jwt<'a> {
    /// Takes a token apart.
    pub fn parse(text: &'a str) -> Result<Jwt<'a>, JwtError> {
        if text.len() > JWT_BYTES_MAX {
            return Err(JwtError::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
        let header = decoded(header)?;
        if header.get("alg").and_then(Value::as_str) != Some("RS256") {
            return Err(JwtError::Malformed);
        }
        let claims = decoded(claims)?;
        if !claims.is_object() {
            return Err(JwtError::Malformed);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwtError::Malformed)?;
        let key_id = header.get("kid").and_then(Value::as_str).map(str::to_owned);
        Ok(Jwt { signed, signature, key_id, claims })
    }

    /// Who says to have signed it; not to be believed before [`Jwt::verify`].
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// The claims, if this key (PKCS#1 DER) signed them and they hold at `now`.
    pub fn verify(&self, public_key: &[u8], now: OffsetDateTime) -> Result<&Value, JwtError> {
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key)
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| JwtError::Signature)?;
        let seconds = |claim: &str| self.claims.get(claim).and_then(Value::as_f64);
        let (Some(issued), Some(expires)) = (seconds("iat"), seconds("exp")) else {
            return Err(JwtError::Timeframe);
        };
        // Claims are JSON numbers; a double holds seconds of this era exactly.
        #[allow(clippy::cast_precision_loss, reason = "seconds fit a double")]
        let (now, skew, lifetime) = (
            now.unix_timestamp() as f64,
            SKEW_SECONDS_MAX as f64,
            (LIFETIME_SECONDS_MAX + SKEW_SECONDS_MAX) as f64,
        );
        let holds = expires > now && issued <= now + skew && expires - issued <= lifetime;
        if holds { Ok(&self.claims) } else { Err(JwtError::Timeframe) }
    }
}

fn decoded(part: &str) -> Result<Value, JwtError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

/// Signs claims; `None` when the key cannot.
pub fn sign(key: &KeyPair, key_id: &str, claims: &Value) -> Option<String> {
    let header = json!({ "alg": "RS256", "kid": key_id, "typ": "JWT" });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(claims));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).ok()?;
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The standard claims of a token issued now.
pub fn claims(issuer: &str, subject: &str, audience: &str, now: OffsetDateTime) -> Value {
    let expires = now + Duration::seconds(LIFETIME_SECONDS_MAX);
    json!({
        "iss": issuer,
        "sub": subject,
        "aud": audience,
        "iat": now.unix_timestamp(),
        "exp": expires.unix_timestamp(),
    })
}

/// The public half of a key as a JSON Web Key.
pub fn public_jwk(key: &KeyPair, key_id: &str) -> Value {
    let public = key.public_key();
    json!({
        "kty": "RSA",
        "alg": "RS256",
        "use": "sig",
        "kid": key_id,
        "n": URL_SAFE_NO_PAD.encode(public.modulus().big_endian_without_leading_zero()),
        "e": URL_SAFE_NO_PAD.encode(public.exponent().big_endian_without_leading_zero()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::KeySize;
    use proptest::prelude::*;

    #[test]
    fn only_a_signature_of_the_key_within_its_time_is_believed() {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let other = KeyPair::generate(KeySize::Rsa2048).expect("another key");
        let now = OffsetDateTime::now_utc();
        let token = sign(&key, "k", &claims("me", "me", "you", now)).expect("signed");
        let later = |seconds| now + Duration::seconds(seconds);
        let mut forged = token.clone();
        forged.replace_range(forged.len() - 2.., "AA");
        for (what, text, key, moment, expected) in [
            ("fresh", &token, &key, now, Ok(())),
            ("at its end", &token, &key, later(3599), Ok(())),
            ("expired", &token, &key, later(3600), Err(JwtError::Timeframe)),
            ("from the future", &token, &key, later(-700), Err(JwtError::Timeframe)),
            ("another's key", &token, &other, now, Err(JwtError::Signature)),
            ("forged", &forged, &key, now, Err(JwtError::Signature)),
        ] {
            let jwt = Jwt::parse(text).expect("three parts");
            let seen = jwt.verify(key.public_key().as_ref(), moment).map(|_| ());
            assert_eq!(seen, expected, "{what}");
        }
        let long = json!({ "iat": now.unix_timestamp(), "exp": now.unix_timestamp() + 90_000 });
        let long = sign(&key, "k", &long).expect("signed");
        let seen = Jwt::parse(&long).expect("parts").verify(key.public_key().as_ref(), now).err();
        assert_eq!(seen, Some(JwtError::Timeframe));
    }

    #[test]
    fn an_unsigned_token_is_no_token() {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        for header in [json!({ "alg": "none" }), json!({ "alg": "HS256" }), json!({})] {
            let text = format!("{}.{}.", part(header), part(json!({ "iss": "me" })));
            assert_eq!(Jwt::parse(&text).err(), Some(JwtError::Malformed));
        }
    }

    proptest! {
        #[test]
        fn taking_apart_what_is_no_token_never_panics(text in "[A-Za-z0-9._=-]{0,80}") {
            let _ = Jwt::parse(&text);
        }
    }
}
