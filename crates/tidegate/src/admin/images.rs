//! The image store, seen and fed from outside.

use super::{read_body, required};
use crate::collector::digests_in_use;
use api::{ApiError, Reason};
use plan::Plan;
use serde_json::{Value, json};
use serverless::images::{ImageError, ImageStore};
use std::path::Path;

/// Every image by its names.
pub(super) fn list(images: &ImageStore, plan: &Plan) -> Value {
    let used = digests_in_use(plan);
    let images = images.list().into_iter().flat_map(|image| {
        let in_use = used.contains(&image.digest);
        let row = move |reference: &String| {
            json!({
                "inUse": in_use,
                "reference": reference,
                "digest": image.digest,
                "sizeBytes": image.bytes,
            })
        };
        image.references.clone().iter().map(row).collect::<Vec<_>>()
    });
    json!({ "images": images.collect::<Vec<_>>() })
}

/// Loads a file or directory of this host.
pub(super) async fn load(images: &ImageStore, body: &[u8]) -> Result<Value, ApiError> {
    let body = read_body(body)?;
    let path = required(&body, "path")?;
    let references = images.load(Path::new(path), &|_| {}).await.map_err(refused)?;
    Ok(json!({ "references": references }))
}

/// Forgets a name.
pub(super) fn remove(images: &ImageStore, body: &[u8]) -> Result<Value, ApiError> {
    let body = read_body(body)?;
    let reference = required(&body, "reference")?;
    if images.remove(reference).map_err(refused)? {
        return Ok(json!({}));
    }
    let message = format!("The image '{reference}' was not found");
    Err(ApiError::new(Reason::NotFound, message))
}

fn refused(error: ImageError) -> ApiError {
    let reason = match error {
        ImageError::NotFound { .. } => Reason::NotFound,
        ImageError::Disk { .. } | ImageError::DiskFull { .. } => Reason::Internal,
        _ => Reason::Invalid,
    };
    ApiError::new(reason, crate::applier::chain(&error))
}
