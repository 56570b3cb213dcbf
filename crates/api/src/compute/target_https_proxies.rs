//! Regional target HTTPS proxies.

use super::collection::{Collection, Edit, typed, unserved};
use super::link::{Link, kept, optional, required};
use crate::error::{ApiError, Reason};
use model::target_proxy::TargetHttpsProxy;
use model::{Kind, Resource, ResourceName};
use serde_json::Value;
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most target HTTPS proxies of a project.
pub(crate) const TARGET_HTTPS_PROXIES_MAX: usize = 10_000;

/// Fields that a regional proxy does not have, with the reason.
const MISPLACED: &[(&str, &str)] = &[
    ("certificateMap", "Certificate maps are not supported for regional target HTTPS proxies."),
    ("serverTlsPolicy", "This server has no server TLS policies."),
];

pub(crate) struct TargetHttpsProxies;

impl Collection for TargetHttpsProxies {
    fn kind(&self) -> Kind {
        Kind::TargetHttpsProxy
    }

    fn methods(&self) -> &'static str {
        "regionTargetHttpsProxies"
    }

    fn word(&self) -> &'static str {
        "targetHttpsProxy"
    }

    fn schema(&self) -> &'static Schema {
        compute::TargetHttpsProxy::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[
            Link { key: "urlMap", kinds: &[Kind::UrlMap] },
            Link { key: "sslCertificates", kinds: &[Kind::SslCertificate, Kind::Certificate] },
            Link { key: "sslPolicy", kinds: &[Kind::SslPolicy] },
        ]
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("TARGET_HTTPS_PROXIES", TARGET_HTTPS_PROXIES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let proxy: compute::TargetHttpsProxy = typed(document)?;
        let certificates = proxy.ssl_certificates.unwrap_or_default();
        Ok(Resource::TargetHttpsProxy(Arc::new(TargetHttpsProxy {
            name: name.clone(),
            id: proxy.id.map(|id| id.0).unwrap_or_default(),
            url_map: required(proxy.url_map.as_ref(), "resource.urlMap")?,
            keepalive_seconds: keepalive(proxy.http_keep_alive_timeout_sec)?,
            certificates: certificates
                .iter()
                .enumerate()
                .map(|(index, link)| kept(link, &format!("resource.sslCertificates[{index}]")))
                .collect::<Result<_, _>>()?,
            ssl_policy: optional(proxy.ssl_policy.as_ref(), "resource.sslPolicy")?,
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        check(edit)?;
        edit.default("quicOverride", "NONE");
        edit.default("tlsEarlyData", "DISABLED");
        Ok(())
    }

    fn changed(&self, edit: &mut Edit<'_>, before: &Value) -> Result<(), ApiError> {
        let _ = before;
        check(edit)
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        match verb {
            "setUrlMap" => set_url_map(edit, body),
            "setSslCertificates" => {
                let certificates = body.get("sslCertificates").cloned().unwrap_or_default();
                edit.set("sslCertificates", certificates);
                Ok(())
            }
            _ => Err(unserved(self.methods(), verb)),
        }
    }
}

fn check(edit: &Edit<'_>) -> Result<(), ApiError> {
    edit.require("urlMap")?;
    for (field, why) in MISPLACED {
        if let Some(value) = edit.text(field) {
            return Err(ApiError::invalid_field(&format!("resource.{field}"), value, why));
        }
    }
    Ok(())
}

/// `httpKeepAliveTimeoutSec` as it was given; zero means that it was not. Its bounds are the plan's.
pub(crate) fn keepalive(given: Option<i32>) -> Result<Option<u32>, ApiError> {
    match given {
        None | Some(0) => Ok(None),
        Some(given) => u32::try_from(given).map(Some).map_err(|_| {
            let why = "Must be greater than or equal to 5";
            ApiError::invalid_field("resource.httpKeepAliveTimeoutSec", &given.to_string(), why)
        }),
    }
}

pub(crate) fn set_url_map(edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
    match body.get("urlMap").and_then(Value::as_str) {
        Some(link) if !link.is_empty() => {
            edit.set("urlMap", link);
            Ok(())
        }
        _ => Err(ApiError::new(Reason::Required, "Required field 'urlMap' not specified")),
    }
}
