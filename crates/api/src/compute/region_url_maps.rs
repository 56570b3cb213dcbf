//! Regional URL maps as a collection; what stands in them is read in `url_maps`.

use super::collection::{Collection, Edit, Object, Question, View};
use super::link::Link;
use super::url_maps;
use crate::error::ApiError;
use model::{Kind, Resource, ResourceName};
use serde_json::Value;
use wire::{Message, Schema, compute};

/// The most URL maps of a project.
pub(crate) const URL_MAPS_MAX: usize = 10_000;

const BACKENDS: &[Kind] = &[Kind::BackendService];

pub(crate) struct UrlMaps;

/// The fields of a URL map that name backend services, at any depth.
pub(crate) const LINKS: &[Link] = &[
    Link { key: "defaultService", kinds: BACKENDS },
    Link { key: "service", kinds: BACKENDS },
    Link { key: "backendService", kinds: BACKENDS },
];

impl Collection for UrlMaps {
    fn kind(&self) -> Kind {
        Kind::UrlMap
    }

    fn methods(&self) -> &'static str {
        "regionUrlMaps"
    }

    fn word(&self) -> &'static str {
        "urlMap"
    }

    fn schema(&self) -> &'static Schema {
        compute::UrlMap::schema()
    }

    fn links(&self) -> &'static [Link] {
        LINKS
    }

    fn has_fingerprint(&self) -> bool {
        true
    }

    fn quota(&self) -> Option<(&'static str, usize)> {
        Some(("URL_MAPS", URL_MAPS_MAX))
    }

    fn model(&self, name: &ResourceName, document: &Value) -> Result<Resource, ApiError> {
        url_maps::resource(name, document)
    }

    fn complete(&self, edit: &mut Edit<'_>) -> Result<(), ApiError> {
        let _ = edit;
        Ok(())
    }

    fn present(&self, _view: &View<'_>, name: &ResourceName, object: &mut Object) {
        if let Some(status) = url_maps::status(name, &Value::Object(object.clone())) {
            object.insert("status".into(), status);
        }
    }

    fn answer(&self, question: &Question<'_>) -> Result<Value, ApiError> {
        url_maps::answer(question)
    }
}
