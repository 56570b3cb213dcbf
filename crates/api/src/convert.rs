//! From documents to what they mean: the one place that knows which room reads which kind.

use crate::compute;
use crate::error::ApiError;
use model::{Kind, Resource, ResourceName};
use serde_json::Value;

/// What a resource's document means; none for kinds that no one reads.
pub(crate) fn resource(
    name: &ResourceName,
    document: &Value,
) -> Result<Option<Resource>, ApiError> {
    match name.kind {
        Kind::Project => compute::projects::resource(name, document).map(Some),
        _ => compute::resource(name, document),
    }
}
