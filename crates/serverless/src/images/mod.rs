//! The image store: container images pulled, verified, unpacked once and shared by every instance.
//!
//! ```text
//! let store = ImageStore::open(ImageStoreConfig { directory, credentials: None })?;
//! let image = store.resolve("nginx:1", &|progress| …).await?;  // pins docker.io/library/nginx@sha256:…
//! let again = store.local(&image.pinned);                      // after a restart, without a network
//! ```
//!
//! Invariant: what the store has a record of was complete: blobs were verified against their
//! digests and layers were on disk before the record was written. What was damaged since is brought
//! anew or refused, and never run when it was noticed.

mod archive;
mod blobs;
mod credentials;
mod disk;
pub(crate) mod export;
mod hello;
mod listing;
mod manifest;
mod overlay;
mod registry;
pub mod resolved;
mod store;
mod unpack;

use std::path::Path;

pub use resolved::{ImageConfig, ImagePin, ResolvedImage, Substitution};
pub use store::{Collected, ImageStore, ImageStoreConfig, StoredImage};

/// How far a pull has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Layers of the image.
    pub layers_total: usize,
    /// Layers that are on disk, those that were there before included.
    pub layers_done: usize,
    /// Compressed bytes of the layers that have to be fetched.
    pub bytes_total: u64,
    /// Compressed bytes fetched so far.
    pub bytes_done: u64,
}

/// Told about the progress of a pull, often; it must not block.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference is not one.
    #[error("`{reference}` is not an image reference: {reason}")]
    Reference {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry does not have it.
    #[error("Image '{reference}' not found.")]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// The registry does not let us have it.
    #[error("the registry {registry} refuses access to image '{reference}'")]
    Forbidden {
        /// What was asked for.
        reference: String,
        /// Who refused.
        registry: String,
    },
    /// The registry cannot be reached or does not answer as one.
    #[error("the registry {registry} cannot be reached: {reason}")]
    Unreachable {
        /// Which registry.
        registry: String,
        /// What happened.
        reason: String,
    },
    /// What came is not what its digest says.
    #[error("{what} does not match its digest")]
    Corrupt {
        /// The blob or layer.
        what: String,
    },
    /// The image cannot be run here or is not well formed.
    #[error("image '{reference}': {reason}")]
    Unusable {
        /// What was asked for.
        reference: String,
        /// Why.
        reason: String,
    },
    /// A file holds no image.
    #[error("{path}: {reason}")]
    Archive {
        /// The file or directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store's disk has no room for it.
    #[error("image '{reference}': the disk of {directory} is full, the image store cannot {step}")]
    DiskFull {
        /// What was asked for.
        reference: String,
        /// The directory of the store.
        directory: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// What the store has of it is not what it was, and it could not be brought anew.
    #[error("image '{reference}' is damaged on this disk ({damage}) and cannot be had again")]
    Damaged {
        /// What was asked for.
        reference: String,
        /// What is wrong with it.
        damage: String,
        /// Why it could not be brought.
        source: Box<ImageError>,
    },
    /// The store's own disk.
    #[error("the image store cannot {step}")]
    Disk {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl ImageError {
    fn disk(step: &'static str) -> impl FnOnce(std::io::Error) -> ImageError {
        move |source| ImageError::Disk { step, source }
    }

    /// Whose image it was, and that a disk was full rather than anything else.
    fn about(self, reference: &str, directory: &Path) -> ImageError {
        match self {
            ImageError::Disk { step, source } if is_full(&source) => ImageError::DiskFull {
                reference: reference.to_owned(),
                directory: directory.display().to_string(),
                step,
                source,
            },
            other => other,
        }
    }
}

/// Whether the disk had no room, however often that was wrapped.
fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<std::io::Error>());
    matches!(error.kind(), StorageFull | QuotaExceeded) || inner.is_some_and(is_full)
}

/// The named limits of this room.
pub mod limits {
    use std::time::Duration;

    /// Layers of an image, as overlayfs and Docker have it.
    pub const LAYERS_MAX: usize = 127;
    /// Files of a layer.
    pub const LAYER_ENTRIES_MAX: usize = 1_000_000;
    /// Bytes of a layer when unpacked.
    pub const LAYER_UNPACKED_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
    /// Bytes of a layer as it is fetched.
    pub const LAYER_FETCHED_BYTES_MAX: u64 = 10 * 1024 * 1024 * 1024;
    /// Bytes of a manifest or a configuration.
    pub const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
    /// Layers fetched at once.
    pub const LAYERS_AT_ONCE_MAX: usize = 3;
    /// The contents of a layer whose instances do not start are not read again before.
    pub const CONTENTS_READ_EVERY: Duration = Duration::from_secs(600);
    /// To connect to a registry.
    pub const CONNECT_WITHIN: Duration = Duration::from_secs(10);
    /// Between two pieces of a blob.
    pub const READ_WITHIN: Duration = Duration::from_secs(60);
    /// To learn whether the hello image's registry answers at all, before the shipped one does.
    pub const HELLO_WITHIN: Duration = Duration::from_secs(5);
    /// How long a registry of the hello image that did not answer is not asked again.
    pub const HELLO_SILENT_FOR: Duration = Duration::from_secs(60);
}
