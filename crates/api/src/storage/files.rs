//! The files with the bytes of objects.
//!
//! Invariant: a file has its name only when all of it is on disk.

use std::fs::{self, DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::error::{ApiError, Reason};

/// Writes a file; its name.
pub(super) async fn write(
    directory: PathBuf,
    bucket: &str,
    object: &str,
    generation: &str,
    bytes: Bytes,
) -> Result<String, ApiError> {
    let digest = Sha256::digest(format!("{bucket}/{object}#{generation}").as_bytes());
    let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(&name);
    let written = tokio::task::spawn_blocking(move || {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let staged = path.with_extension("new");
        let mut file = File::create(&staged)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&staged, &path)
    });
    match written.await {
        Ok(Ok(())) => Ok(name),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    ApiError::new(Reason::Internal, format!("The object could not be written: {error}."))
}

/// Removes a file; one that is gone is no error.
pub(super) async fn remove(directory: PathBuf, name: String) {
    let removed = tokio::task::spawn_blocking(move || fs::remove_file(directory.join(name))).await;
    if let Ok(Err(error)) = removed {
        tracing::debug!(%error, "an object's file was not there to be removed");
    }
}
