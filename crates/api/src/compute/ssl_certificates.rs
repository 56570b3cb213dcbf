//! Regional self-managed SSL certificates.
//!
//! Invariant: a private key goes in and never comes out, not into an answer, an error or a log.

use super::collection::{Collection, Edit, Object, View, typed};
use crate::certificate::{self, Examined};
use crate::error::ApiError;
use crate::surroundings::pacific_timestamp;
use model::certificate::Certificate;
use model::{Kind, Resource, ResourceName};
use serde_json::{Value, json};
use std::sync::Arc;
use time::OffsetDateTime;
use wire::{Message, Schema, compute};

/// The most SSL certificates of a project.
pub(crate) const SSL_CERTIFICATES_MAX: usize = 10_000;

pub(crate) struct SslCertificates;

impl Collection for SslCertificates {
    fn kind(&self) -> Kind {
        Kind::SslCertificate
    }

    fn methods(&self) -> &'static str {
        "regionSslCertificates"
    }

    fn word(&self) -> &'static str {
        "sslCertificate"
    }

    fn schema(&self) -> &'static Schema {
        compute::SslCertificate::schema()
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("SSL_CERTIFICATES", SSL_CERTIFICATES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let kept: compute::SslCertificate = typed(document)?;
        let chain_pem = kept.certificate.unwrap_or_default();
        let Examined { dns_names, expires_at_seconds, .. } = certificate::read_chain(&chain_pem)?;
        Ok(Resource::SslCertificate(Arc::new(Certificate {
            name: name.clone(),
            id: kept.id.map(|id| id.0).unwrap_or_default(),
            chain_pem,
            private_key_pem: kept.private_key.unwrap_or_default(),
            dns_names,
            expires_at_seconds,
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        if edit.text("type") == Some("MANAGED") || edit.object.contains_key("managed") {
            let why = "Regional SSL certificates must be SELF_MANAGED.";
            return Err(ApiError::invalid_field("resource.type", "MANAGED", why));
        }
        // Both places are the client's choice; the top level is where it is kept.
        if let Some(Value::Object(own)) = edit.object.remove("selfManaged") {
            for (field, value) in own {
                edit.default(&field, value);
            }
        }
        edit.require("certificate")?;
        edit.require("privateKey")?;
        let chain = edit.text("certificate").unwrap_or_default();
        let key = edit.text("privateKey").unwrap_or_default();
        let now = edit.api.surroundings().now().unix_timestamp();
        let examined = certificate::examine(chain, key, now)?;
        let expires = OffsetDateTime::from_unix_timestamp(examined.expires_at_seconds)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        edit.set("type", "SELF_MANAGED");
        edit.set("expireTime", pacific_timestamp(expires));
        if !examined.subject_alternative_names.is_empty() {
            edit.set("subjectAlternativeNames", examined.subject_alternative_names);
        }
        Ok(())
    }

    fn present(&self, view: &View<'_>, name: &ResourceName, object: &mut Object) {
        let _ = (view, name);
        object.remove("privateKey");
        let certificate = object.get("certificate").cloned().unwrap_or_default();
        object.insert("selfManaged".into(), json!({ "certificate": certificate }));
    }
}
