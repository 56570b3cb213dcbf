//! The shipped image: one layer with one program, compiled by the build script.
//!
//! It answers for the hello image of the guides when that one's registry cannot be reached, and
//! under a name of its own always.
//!
//! Invariant: the same program gives the same digests, so a revision pinned to them finds it again.

use std::fs;
use std::io;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::archive::image_manifest;
use super::blobs::{Arrival, BlobSource, LayerArchive, admit, blocking};
use super::disk::{Disk, ImageRecord};
use super::manifest::{Blob, Configuration, Sha256Digest};
use super::unpack::hex;
use super::{ImageError, OnProgress};

/// The program, a static executable.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// Its own name.
pub(crate) const REFERENCE: &str = "localhost/tidegate/hello:latest";
/// The images it stands in for, with any tag.
const STANDS_IN_FOR: [(&str, &str); 2] =
    [("us-docker.pkg.dev", "cloudrun/container/hello"), ("gcr.io", "cloudrun/hello")];

/// Whether the shipped image may answer for this one.
pub(crate) fn stands_in_for(registry: &str, repository: &str) -> bool {
    STANDS_IN_FOR.contains(&(registry, repository))
}

/// The shipped image's documents, made once.
pub(crate) struct Hello {
    pub(crate) digest: Sha256Digest,
    configuration: Configuration,
    layer: Blob,
    archive: Vec<u8>,
}

/// The shipped image; the first call digests it.
pub(crate) fn hello() -> Result<&'static Hello, ImageError> {
    static MADE: OnceLock<Result<Hello, String>> = OnceLock::new();
    match MADE.get_or_init(make) {
        Ok(hello) => Ok(hello),
        Err(reason) => {
            Err(ImageError::Unusable { reference: REFERENCE.to_owned(), reason: reason.clone() })
        }
    }
}

/// Puts the shipped image into the store unless it is there.
pub(crate) async fn keep(
    disk: &Arc<Disk>,
    on_progress: OnProgress<'_>,
) -> Result<ImageRecord, ImageError> {
    let hello = blocking(hello).await?;
    if let Some(known) = disk.image(&hello.digest) {
        return Ok(known);
    }
    let arrival = Arrival {
        reference: REFERENCE,
        digest: hello.digest.clone(),
        configuration: hello.configuration.clone(),
        layers: vec![hello.layer.clone()],
    };
    admit(disk, &Shipped { hello, disk }, &arrival, on_progress).await
}

struct Shipped<'a> {
    hello: &'a Hello,
    disk: &'a Disk,
}

impl BlobSource for Shipped<'_> {
    async fn layer(
        &self,
        blob: &Blob,
        fetched: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<LayerArchive, ImageError> {
        let staged = self.disk.stage();
        fs::write(&staged.path, &self.hello.archive)
            .map_err(ImageError::disk("write the shipped image"))?;
        fetched(blob.bytes);
        Ok(LayerArchive::Fetched(staged))
    }
}

fn make() -> Result<Hello, String> {
    let archive = archive().map_err(|error| error.to_string())?;
    let digest =
        |bytes: &[u8]| Sha256Digest::parse(&format!("sha256:{}", hex(&Sha256::digest(bytes))));
    let layer = Blob { digest: digest(&archive)?, bytes: archive.len() as u64 };
    let configuration = serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/hello"], "User": "65532:65532", "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [layer.digest.as_str()] },
    });
    let configuration = configuration.to_string().into_bytes();
    let config = Blob { digest: digest(&configuration)?, bytes: configuration.len() as u64 };
    let manifest = image_manifest(&config, std::slice::from_ref(&layer));
    Ok(Hello {
        digest: digest(manifest.as_bytes())?,
        configuration: Configuration::parse(&configuration)?,
        layer,
        archive,
    })
}

fn archive() -> io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(PROGRAM.len() as u64);
    builder.append_data(&mut header, "hello", PROGRAM)?;
    builder.into_inner()
}
