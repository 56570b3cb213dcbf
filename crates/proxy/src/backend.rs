//! What the data plane reads of a backend service besides its decisions.

use model::ResourceName;
use plan::decision::HeaderEdit;
use plan::routing::{BackendServicePlan, UrlMapPlan};

/// The number that stands for the backend service for ever.
pub(crate) fn id(backend: &BackendServicePlan) -> u64 {
    backend.id
}

/// The backend service's name.
pub(crate) fn name(backend: &BackendServicePlan) -> &ResourceName {
    &backend.name
}

/// Whether this request is one of those the backend service wants logged.
pub(crate) fn logs(backend: &BackendServicePlan, random: impl FnOnce() -> u64) -> bool {
    let rate = if backend.log.enable { backend.log.sample_rate } else { 0.0 };
    match rate {
        none if none <= 0.0 => false,
        all if all >= 1.0 => true,
        // The upper 53 bits are exactly representable.
        some => ((random() >> 11) as f64) < some * (1u64 << 53) as f64,
    }
}

/// `customRequestHeaders`.
pub(crate) fn request_edit(backend: &BackendServicePlan) -> &HeaderEdit {
    &backend.request_headers
}

/// `customResponseHeaders`.
pub(crate) fn response_edit(backend: &BackendServicePlan) -> &HeaderEdit {
    &backend.response_headers
}

/// The URL map's own name.
pub(crate) fn url_map_name(url_map: &UrlMapPlan) -> &str {
    &url_map.name.name
}
