//! The shipped image: one layer with one program, compiled by the build script.
//!
//! It answers for the hello image of the guides when that one's registry cannot be reached, and
//! under a name of its own always.
//!
//! Invariant: the same program gives the same digests, so a revision pinned to them finds it again.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use oci_client::Reference;
use sha2::{Digest, Sha256};

use super::archive::image_manifest;
use super::blobs::{Arrival, BlobSource, LayerArchive, admit, blocking};
use super::disk::{Disk, ImageRecord};
use super::limits::HELLO_SILENT_FOR;
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

/// Whether this is the shipped image under its own name, by its tag or its digest.
pub(crate) fn is_shipped(reference: &Reference) -> bool {
    let whole = reference.whole();
    let by_digest = whole.strip_prefix("localhost/tidegate/hello@");
    whole == REFERENCE
        || by_digest.is_some_and(|digest| hello().is_ok_and(|own| own.digest.as_str() == digest))
}

/// Whether the shipped image may answer for this one.
pub(crate) fn stands_in_for(registry: &str, repository: &str) -> bool {
    STANDS_IN_FOR.contains(&(registry, repository))
}

/// The registry of a hello image that did not answer, so that one deployment after the other need not
/// wait for it where there is no way to it.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Option<Silent>>);

#[derive(Debug)]
struct Silent {
    registry: String,
    since: Instant,
    reason: String,
}

impl Silence {
    /// Why this registry need not be asked at this time.
    pub(crate) fn reason(&self, registry: &str, now: Instant) -> Option<String> {
        let silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = silent.as_ref().filter(|silent| silent.registry == registry)?;
        let still = now.duration_since(silent.since) < HELLO_SILENT_FOR;
        still.then(|| silent.reason.clone())
    }

    /// Remembers that it did not answer.
    pub(crate) fn begin(&self, registry: &str, now: Instant, reason: &str) {
        let silent =
            Silent { registry: registry.to_owned(), since: now, reason: reason.to_owned() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(silent);
    }
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
    let here = Arc::clone(disk);
    if let Ok(known) = blocking(move || Ok(here.image(&hello.digest))).await? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_registry_that_was_silent_is_asked_again_after_a_minute() {
        let silence = Silence::default();
        let began = Instant::now();
        assert_eq!(silence.reason("gcr.io", began), None);
        silence.begin("gcr.io", began, "no route");
        let last = began + HELLO_SILENT_FOR - Duration::from_millis(1);
        assert_eq!(silence.reason("gcr.io", last).as_deref(), Some("no route"));
        assert_eq!(silence.reason("us-docker.pkg.dev", last), None);
        assert_eq!(silence.reason("gcr.io", began + HELLO_SILENT_FOR), None);
    }
}
