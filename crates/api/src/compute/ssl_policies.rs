//! Regional SSL policies.

use super::collection::{Collection, Edit, Object, Question, View, typed};
use crate::error::ApiError;
use model::ssl_policy::{MinTlsVersion, Profile, SslPolicy};
use model::{Kind, Name, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most SSL policies of a project.
pub(crate) const SSL_POLICIES_MAX: usize = 1_000;

/// Every feature a custom policy may name, with the profiles that have it: compatible, modern,
/// restricted, FIPS.
const FEATURES: &[(&str, [bool; 4])] = &[
    ("TLS_AES_128_GCM_SHA256", [true, true, true, true]),
    ("TLS_AES_256_GCM_SHA384", [true, true, true, true]),
    ("TLS_CHACHA20_POLY1305_SHA256", [true, true, true, false]),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", [true, true, false, false]),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", [true, true, true, true]),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", [true, true, false, false]),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", [true, true, true, true]),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", [true, true, true, false]),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", [true, true, false, false]),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", [true, true, true, true]),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", [true, true, false, false]),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", [true, true, true, true]),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", [true, true, true, false]),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", [true, false, false, false]),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", [true, false, false, false]),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", [true, false, false, false]),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", [true, false, false, false]),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", [true, false, false, false]),
];

pub(crate) struct SslPolicies;

impl Collection for SslPolicies {
    fn kind(&self) -> Kind {
        Kind::SslPolicy
    }

    fn methods(&self) -> &'static str {
        "regionSslPolicies"
    }

    fn word(&self) -> &'static str {
        "sslPolicy"
    }

    fn schema(&self) -> &'static Schema {
        compute::SslPolicy::schema()
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("SSL_POLICIES", SSL_POLICIES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let policy: compute::SslPolicy = typed(document)?;
        let features = policy.custom_features.unwrap_or_default();
        Ok(Resource::SslPolicy(Arc::new(SslPolicy {
            name: name.clone(),
            id: policy.id.map(|id| id.0).unwrap_or_default(),
            profile: profile(policy.profile.as_deref()),
            min_tls_version: match policy.min_tls_version.as_deref() {
                Some("TLS_1_1") => MinTlsVersion::Tls1_1,
                Some("TLS_1_2") => MinTlsVersion::Tls1_2,
                Some("TLS_1_3") => MinTlsVersion::Tls1_3,
                _ => MinTlsVersion::Tls1_0,
            },
            custom_features: features.into_iter().map(Name::from).collect(),
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.default("profile", "COMPATIBLE");
        edit.default("minTlsVersion", "TLS_1_0");
        check(edit)
    }

    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        // Leaving CUSTOM leaves its features behind, as Google's clients expect.
        let was_custom = before.get("profile").and_then(Value::as_str) == Some("CUSTOM");
        if was_custom && edit.text("profile") != Some("CUSTOM") {
            edit.object.remove("customFeatures");
        }
        check(edit)
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        let _ = question;
        Ok(available_features())
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let _ = (view, name);
        let enabled: Value = match profile(object.get("profile").and_then(Value::as_str)) {
            Profile::Custom => object.get("customFeatures").cloned().unwrap_or_else(|| json!([])),
            Profile::Compatible => features_of(0),
            Profile::Modern => features_of(1),
            Profile::Restricted => features_of(2),
            Profile::Fips202205 => features_of(3),
        };
        object.insert("enabledFeatures".into(), enabled);
    }
}

fn profile(word: Option<&str>) -> Profile {
    match word {
        Some("MODERN") => Profile::Modern,
        Some("RESTRICTED") => Profile::Restricted,
        Some("FIPS_202205") => Profile::Fips202205,
        Some("CUSTOM") => Profile::Custom,
        _ => Profile::Compatible,
    }
}

fn features_of(profile: usize) -> Value {
    FEATURES.iter().filter(|(_, of)| of[profile]).map(|(name, _)| Value::from(*name)).collect()
}

/// The answer of `listAvailableFeatures`.
pub(crate) fn available_features() -> Value {
    json!({ "features": FEATURES.iter().map(|(name, _)| *name).collect::<Vec<_>>() })
}

/// The rules by which profile, version and features go together.
fn check(edit: &Edit<'_>) -> Result<(), ApiError> {
    let profile_word = edit.text("profile").unwrap_or_default();
    let version = edit.text("minTlsVersion").unwrap_or_default();
    let features: Vec<&str> = edit
        .object
        .get("customFeatures")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let profile = profile(Some(profile_word));
    let refuse = |field: &str, value: &str, why: &str| {
        Err(ApiError::invalid_field(&format!("resource.{field}"), value, why))
    };
    if version == "TLS_1_3" && profile != Profile::Restricted {
        return refuse("minTlsVersion", version, "TLS_1_3 requires the RESTRICTED profile.");
    }
    if profile == Profile::Fips202205 && version != "TLS_1_2" {
        return refuse("minTlsVersion", version, "The FIPS_202205 profile requires TLS_1_2.");
    }
    if profile == Profile::Custom && features.is_empty() {
        return refuse("customFeatures", "", "The CUSTOM profile requires at least one feature.");
    }
    if profile != Profile::Custom && !features.is_empty() {
        let why = "Custom features can only be specified with the CUSTOM profile.";
        return refuse("customFeatures", features[0], why);
    }
    match features.iter().find(|given| !FEATURES.iter().any(|(name, _)| name == *given)) {
        Some(unknown) => refuse("customFeatures", unknown, "The feature is not available."),
        None => Ok(()),
    }
}
