//! From documents to what they mean: the one place that knows which room reads which kind.

use crate::certificate_manager;
use crate::compute;
use crate::error::ApiError;
use crate::run;
use model::{Kind, Resource, ResourceName};
use serde_json::Value;
use std::sync::Arc;

/// What a resource's document means; none for kinds that no one reads.
pub(crate) fn resource(
    name: &ResourceName,
    document: &Value,
) -> Result<Option<Resource>, ApiError> {
    match name.kind {
        Kind::Certificate => certificate_manager::resource(name, document).map(Some),
        Kind::Project => compute::projects::resource(name, document).map(Some),
        Kind::Service => {
            run::convert::service(name, document).map(|s| Some(Resource::Service(Arc::new(s))))
        }
        Kind::Revision => {
            run::convert::revision(name, document).map(|r| Some(Resource::Revision(Arc::new(r))))
        }
        _ => compute::resource(name, document),
    }
}
