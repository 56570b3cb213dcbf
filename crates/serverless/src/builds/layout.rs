//! What a build made, packed as an image: one layer over those of the base, in an OCI layout that
//! the image store reads like any other.
//!
//! Invariant: the layers of the base are named, not copied; the store has them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::contract::{Plan, WORKSPACE};
use super::{BuildError, Order, Work, blocking, files};
use crate::images::{ImageStore, ResolvedImage};

/// An image that is to be kept.
pub(super) struct Description<'a> {
    pub(super) reference: &'a str,
    pub(super) base: Option<&'a ResolvedImage>,
    /// Directories of the build and where they are in the image.
    pub(super) trees: &'a [(&'a str, &'a str)],
    pub(super) command: &'a [String],
    /// Over the base's.
    pub(super) environment: &'a BTreeMap<String, String>,
}

/// Keeps what a plan led to; answers with the digest.
pub(super) async fn export(
    images: &ImageStore,
    base: &ResolvedImage,
    plan: &Plan,
    work: &Work,
    order: &Order,
) -> Result<String, BuildError> {
    let description = Description {
        reference: &order.reference,
        base: Some(base),
        trees: &[("workspace", "workspace"), ("layers", "layers")],
        command: &plan.command,
        environment: &plan.environment,
    };
    Ok(keep(images, work, &description).await?.digest)
}

/// Packs the directories into a layer and brings the image into the store.
pub(super) async fn keep(
    images: &ImageStore,
    work: &Work,
    description: &Description<'_>,
) -> Result<ResolvedImage, BuildError> {
    let directory = work.path("image");
    let trees: Vec<_> = description
        .trees
        .iter()
        .map(|(tree, inside)| (work.path(tree), (*inside).to_owned()))
        .collect();
    let blobs = directory.join("blobs/sha256");
    let layer = blocking(move || {
        let failed = || BuildError::host("packing a layer");
        fs::create_dir_all(&blobs).map_err(failed())?;
        let archive = blobs.join("layer");
        let trees: Vec<(&Path, &str)> =
            trees.iter().map(|(tree, inside)| (tree.as_path(), inside.as_str())).collect();
        files::pack(&trees, &archive).map_err(failed())?;
        let blob = digest_of(&archive).map_err(failed())?;
        fs::rename(&archive, blobs.join(&blob.digits)).map_err(failed())?;
        Ok(blob)
    })
    .await?;
    describe(&directory, &layer, description).map_err(BuildError::host("describing an image"))?;
    images.load(&directory, &|_| {}).await?;
    images.local(description.reference).ok_or_else(|| {
        BuildError::Source(format!("the image '{}' was not kept", description.reference))
    })
}

#[derive(Debug)]
struct BlobFile {
    digits: String,
    bytes: u64,
}

fn digest_of(path: &Path) -> io::Result<BlobFile> {
    let mut digest = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut Digesting(&mut digest))?;
    Ok(BlobFile { digits: digits(&digest.finalize()), bytes })
}

struct Digesting<'a>(&'a mut Sha256);

impl io::Write for Digesting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn digits(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes configuration, manifest and index.
fn describe(directory: &Path, layer: &BlobFile, image: &Description<'_>) -> io::Result<()> {
    let mut layers: Vec<(String, u64)> = Vec::new();
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    if let Some(base) = image.base {
        // The store names the directory of a layer after the digest of its archive.
        let names = base.layers.iter().filter_map(|path| path.file_name()?.to_str());
        layers.extend(names.map(|digits| (digits.to_owned(), 0)));
        let pairs = base.config.environment.iter().filter_map(|pair| pair.split_once('='));
        environment.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    layers.push((layer.digits.clone(), layer.bytes));
    environment.extend(image.environment.clone());
    let pairs: Vec<String> =
        environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let diff_ids: Vec<String> = layers.iter().map(|(d, _)| format!("sha256:{d}")).collect();
    let is_built = image.base.is_some();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Cmd": image.command,
            "Env": pairs,
            "WorkingDir": if is_built { WORKSPACE } else { "/" },
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(directory, &config, "application/vnd.oci.image.config.v1+json")?;
    let described: Vec<serde_json::Value> = layers
        .iter()
        .map(|(digits, bytes)| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{digits}"),
                "size": bytes,
            })
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": described,
    });
    let mut entry = blob(directory, &manifest, "application/vnd.oci.image.manifest.v1+json")?;
    entry["annotations"] = json!({ "io.containerd.image.name": image.reference });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(directory.join("index.json"), index.to_string())?;
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn blob(
    directory: &Path,
    document: &serde_json::Value,
    media_type: &str,
) -> io::Result<serde_json::Value> {
    let text = document.to_string();
    let digits = digits(&Sha256::digest(text.as_bytes()));
    fs::write(directory.join("blobs/sha256").join(&digits), &text)?;
    Ok(json!({
        "mediaType": media_type,
        "digest": format!("sha256:{digits}"),
        "size": text.len(),
    }))
}
