//! From blobs to an image in the store, wherever the blobs come from.
//!
//! A registry and an archive differ in how bytes are had; verifying, unpacking and recording them
//! is the same and stands here.
//!
//! Invariant: an image is recorded after all of its layers are on disk.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::disk::{Disk, ImageRecord, Staged};
use super::limits::LAYERS_AT_ONCE_MAX;
use super::manifest::{Blob, Configuration, Sha256Digest};
use super::unpack::unpack_layer;
use super::{ImageError, OnProgress, Progress};

/// Where blobs come from.
pub(crate) trait BlobSource: Sync {
    /// A verified copy of the layer's archive on this disk; `fetched` is told about bytes as they
    /// come.
    fn layer(
        &self,
        blob: &Blob,
        fetched: &(dyn Fn(u64) + Send + Sync),
    ) -> impl Future<Output = Result<LayerArchive, ImageError>> + Send;
}

/// The archive of a layer.
pub(crate) enum LayerArchive {
    /// A file that is thrown away afterwards.
    Fetched(Staged),
    /// A file of somebody else's.
    Given(File),
}

impl LayerArchive {
    fn open(self) -> io::Result<(File, Option<Staged>)> {
        match self {
            LayerArchive::Fetched(staged) => Ok((File::open(&staged.path)?, Some(staged))),
            LayerArchive::Given(file) => Ok((file, None)),
        }
    }
}

/// What is to become an image of the store.
pub(crate) struct Arrival<'a> {
    /// For errors.
    pub(crate) reference: &'a str,
    /// Of the manifest.
    pub(crate) digest: Sha256Digest,
    pub(crate) configuration: Configuration,
    /// Of the layers' archives, in the order of the configuration's layers.
    pub(crate) layers: Vec<Blob>,
}

/// Brings the layers that are missing and records the image.
pub(crate) async fn admit(
    disk: &Arc<Disk>,
    source: &impl BlobSource,
    arrival: &Arrival<'_>,
    on_progress: OnProgress<'_>,
) -> Result<ImageRecord, ImageError> {
    disk.restore_folders().map_err(ImageError::disk("make its folders"))?;
    let configuration = &arrival.configuration;
    if configuration.layers.len() != arrival.layers.len() {
        return Err(ImageError::Unusable {
            reference: arrival.reference.to_owned(),
            reason: "manifest and configuration name different numbers of layers".to_owned(),
        });
    }
    let pairs = configuration.layers.iter().zip(&arrival.layers);
    let missing: Vec<(&Sha256Digest, &Blob)> =
        pairs.filter(|(digest, _)| !disk.layer(digest).is_dir()).collect();
    let bytes_total = missing.iter().map(|(_, blob)| blob.bytes).sum();
    let layers_total = arrival.layers.len();
    let layers_done = AtomicUsize::new(layers_total - missing.len());
    let bytes_done = AtomicU64::new(0);
    let tell = || {
        on_progress(Progress {
            layers_total,
            layers_done: layers_done.load(Ordering::Relaxed),
            bytes_total,
            bytes_done: bytes_done.load(Ordering::Relaxed),
        });
    };
    tell();
    let fetched = |bytes: u64| {
        bytes_done.fetch_add(bytes, Ordering::Relaxed);
        tell();
    };
    let work = missing.into_iter().map(|(digest, blob)| {
        let (fetched, layers_done, tell) = (&fetched, &layers_done, &tell);
        async move {
            let archive = source.layer(blob, fetched).await?;
            let unpacked = unpack(disk, archive, digest.clone()).await?;
            layers_done.fetch_add(1, Ordering::Relaxed);
            tell();
            Ok::<_, ImageError>(unpacked)
        }
    });
    // A list rather than a lazy iterator, which would keep the whole future from being `Send`.
    let work: Vec<_> = work.collect();
    let unpacked: Vec<Unpacked> =
        stream::iter(work).buffer_unordered(LAYERS_AT_ONCE_MAX).try_collect().await?;
    record(disk, arrival, unpacked).await
}

/// A layer that is verified and has no name yet.
struct Unpacked {
    digest: Sha256Digest,
    layer: Staged,
    listing: Staged,
}

async fn unpack(
    disk: &Arc<Disk>,
    archive: LayerArchive,
    digest: Sha256Digest,
) -> Result<Unpacked, ImageError> {
    let (disk, staged) = (Arc::clone(disk), disk.stage());
    blocking(move || {
        fs::create_dir(&staged.path).map_err(ImageError::disk("make a layer"))?;
        let (file, _kept) = archive.open().map_err(ImageError::disk("read a layer"))?;
        let found = unpack_layer(io::BufReader::with_capacity(256 * 1024, file), &staged.path)
            .map_err(ImageError::disk("unpack a layer"))?;
        if found != digest.as_str() {
            return Err(ImageError::Corrupt { what: format!("layer {}", digest.as_str()) });
        }
        let listing = disk.list(&staged).map_err(ImageError::disk("list a layer"))?;
        Ok(Unpacked { digest, layer: staged, listing })
    })
    .await
}

async fn record(
    disk: &Arc<Disk>,
    arrival: &Arrival<'_>,
    unpacked: Vec<Unpacked>,
) -> Result<ImageRecord, ImageError> {
    let config = &arrival.configuration.config;
    let record = ImageRecord {
        digest: arrival.digest.as_str().to_owned(),
        entrypoint: config.entrypoint.clone(),
        command: config.command.clone(),
        environment: config.environment.clone(),
        working_directory: config.working_directory.clone(),
        user: config.user.clone(),
        layers: arrival
            .configuration
            .layers
            .iter()
            .map(|digest| digest.as_str().to_owned())
            .collect(),
        bytes: arrival.layers.iter().map(|blob| blob.bytes).sum(),
    };
    let (disk, digest) = (Arc::clone(disk), arrival.digest.clone());
    blocking(move || {
        if !unpacked.is_empty() {
            disk.sync().map_err(ImageError::disk("write layers"))?;
        }
        for Unpacked { digest, layer, listing } in unpacked {
            let kept = disk.keep_layer(layer, listing, &digest);
            kept.map_err(ImageError::disk("keep a layer"))?;
        }
        disk.keep_image(&digest, &record).map_err(ImageError::disk("record an image"))?;
        Ok(record)
    })
    .await
}

/// Runs work that blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::Disk {
            step: "finish its work",
            source: io::Error::other(error.to_string()),
        }),
    }
}

/// The file of a blob in somebody else's directory.
pub(crate) fn blob_path(digest: &Sha256Digest) -> PathBuf {
    PathBuf::from("blobs/sha256").join(digest.hex())
}
