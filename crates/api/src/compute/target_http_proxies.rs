//! Regional target HTTP proxies.
//!
//! The discovery document gives them no `patch`; this server takes one, because the client keepalive
//! timeout of a proxy could otherwise not be changed at all.

use super::collection::{Collection, Edit, typed, unserved};
use super::link::{Link, required};
use super::target_https_proxies::{keepalive, set_url_map};
use crate::error::ApiError;
use model::target_proxy::TargetHttpProxy;
use model::{Kind, Resource, ResourceName};
use serde_json::Value;
use std::sync::Arc;
use wire::{Message, Schema, compute};

/// The most target HTTP proxies of a project.
pub(crate) const TARGET_HTTP_PROXIES_MAX: usize = 10_000;

pub(crate) struct TargetHttpProxies;

impl Collection for TargetHttpProxies {
    fn kind(&self) -> Kind {
        Kind::TargetHttpProxy
    }

    fn methods(&self) -> &'static str {
        "regionTargetHttpProxies"
    }

    fn word(&self) -> &'static str {
        "targetHttpProxy"
    }

    fn schema(&self) -> &'static Schema {
        compute::TargetHttpProxy::schema()
    }

    fn links(&self) -> &'static [Link] {
        &[Link { key: "urlMap", kinds: &[Kind::UrlMap] }]
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("TARGET_HTTP_PROXIES", TARGET_HTTP_PROXIES_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        let proxy: compute::TargetHttpProxy = typed(document)?;
        Ok(Resource::TargetHttpProxy(Arc::new(TargetHttpProxy {
            name: name.clone(),
            id: proxy.id.map(|id| id.0).unwrap_or_default(),
            url_map: required(proxy.url_map.as_ref(), "resource.urlMap")?,
            keepalive_seconds: keepalive(proxy.http_keep_alive_timeout_sec)?,
        })))
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        edit.require("urlMap")
    }

    fn verb(&self, verb: &str, edit: &mut Edit<'_>, body: &Value) -> Result<(), ApiError> {
        match verb {
            "setUrlMap" => set_url_map(edit, body),
            _ => Err(unserved(self.methods(), verb)),
        }
    }
}
