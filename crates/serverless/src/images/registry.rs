//! Images from registries that speak the OCI distribution protocol.
//!
//! Registries on the loopback address are spoken to without TLS, as Docker does; all others with
//! TLS and the system's certificates.
//!
//! Invariant: bytes are compared with the digest that named them before anything is done with them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::blobs::{Arrival, BlobSource, LayerArchive, admit, blocking};
use super::credentials::credentials_for;
use super::disk::{Disk, ImageRecord};
use super::limits::{CONNECT_WITHIN, DOCUMENT_BYTES_MAX, LAYER_FETCHED_BYTES_MAX, READ_WITHIN};
use super::manifest::{ACCEPTED, Blob, Configuration, Manifest, Sha256Digest};
use super::unpack::hex;
use super::{ImageError, OnProgress};

/// An index may lead to an index; deeper is a joke.
const INDEX_DEPTH_MAX: usize = 3;
const USER_AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// Speaks to registries.
#[derive(Debug)]
pub(crate) struct Registries {
    credentials: Option<PathBuf>,
}

impl Registries {
    pub(crate) fn new(credentials: Option<PathBuf>) -> Registries {
        Registries { credentials }
    }

    /// Fetches what is missing of an image and records it. With `answer_within` a registry that
    /// does not come up with a manifest by then cannot be reached.
    pub(crate) async fn fetch(
        &self,
        disk: &Arc<Disk>,
        reference: &Reference,
        answer_within: Option<Duration>,
        on_progress: OnProgress<'_>,
    ) -> Result<ImageRecord, ImageError> {
        let registry = reference.resolve_registry().to_owned();
        let auth = credentials_for(reference.registry(), self.credentials.as_deref())
            .map_err(ImageError::disk("read the registry credentials"))?;
        let client = Client::new(ClientConfig {
            protocol: protocol(&registry),
            connect_timeout: Some(CONNECT_WITHIN),
            read_timeout: Some(READ_WITHIN),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        });
        let source = Fetching { client, reference, disk: Arc::clone(disk) };
        let asking = source.image_manifest(&auth);
        let (digest, config, layers) = match answer_within {
            None => asking.await?,
            Some(limit) => match timeout(limit, asking).await {
                Ok(answer) => answer?,
                Err(_) => {
                    let reason = format!("no answer within {} s", limit.as_secs());
                    return Err(ImageError::Unreachable { registry, reason });
                }
            },
        };
        let (here, wanted) = (Arc::clone(disk), digest.clone());
        if let Ok(known) = blocking(move || Ok(here.image(&wanted))).await? {
            return Ok(known);
        }
        let bytes = source.document(&config).await?;
        let configuration =
            Configuration::parse(&bytes).map_err(|reason| source.unusable(reason))?;
        let whole = reference.whole();
        let arrival = Arrival { reference: &whole, digest, configuration, layers };
        admit(disk, &source, &arrival, on_progress).await
    }
}

struct Fetching<'a> {
    client: Client,
    reference: &'a Reference,
    disk: Arc<Disk>,
}

impl Fetching<'_> {
    /// The manifest for our platform: its digest, its configuration and its layers.
    async fn image_manifest(
        &self,
        auth: &oci_client::secrets::RegistryAuth,
    ) -> Result<(Sha256Digest, Blob, Vec<Blob>), ImageError> {
        let mut wanted = self.reference.clone();
        for _ in 0..INDEX_DEPTH_MAX {
            let (bytes, _) = self
                .client
                .pull_manifest_raw(&wanted, auth, ACCEPTED)
                .await
                .map_err(|error| self.explain(error))?;
            let digest = self.digest_of(&bytes)?;
            if let Some(asked) = wanted.digest()
                && asked != digest.as_str()
            {
                return Err(ImageError::Corrupt { what: format!("manifest {asked}") });
            }
            match Manifest::parse(&bytes).map_err(|reason| self.unusable(reason))? {
                Manifest::Image { config, layers } => return Ok((digest, config, layers)),
                Manifest::Elsewhere(blob) => {
                    wanted = self.reference.clone_with_digest(blob.digest.as_str().to_owned());
                }
            }
        }
        Err(self.unusable("its indexes lead to nothing but indexes".to_owned()))
    }

    fn digest_of(&self, bytes: &[u8]) -> Result<Sha256Digest, ImageError> {
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(self.unusable("its manifest is too large".to_owned()));
        }
        Sha256Digest::parse(&format!("sha256:{}", hex(&Sha256::digest(bytes))))
            .map_err(|reason| self.unusable(reason))
    }

    /// A small blob, verified.
    async fn document(&self, blob: &Blob) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let mut pieces = self
            .client
            .pull_blob_stream(self.reference, &descriptor(blob))
            .await
            .map_err(|error| self.explain(error))?;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.interrupted(&error))?;
            if bytes.len() as u64 + piece.len() as u64 > DOCUMENT_BYTES_MAX {
                return Err(self.unusable("its configuration is too large".to_owned()));
            }
            bytes.extend_from_slice(&piece);
        }
        match self.digest_of(&bytes)? == blob.digest {
            true => Ok(bytes),
            false => Err(ImageError::Corrupt { what: blob.digest.as_str().to_owned() }),
        }
    }

    fn explain(&self, error: OciDistributionError) -> ImageError {
        let reference = self.reference.whole();
        let registry = self.reference.registry().to_owned();
        match &error {
            OciDistributionError::ImageManifestNotFoundError(_)
            | OciDistributionError::ServerError { code: 404, .. } => {
                ImageError::NotFound { reference }
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let missing = envelope.errors.iter().any(|each| {
                    matches!(
                        each.code,
                        OciErrorCode::ManifestUnknown
                            | OciErrorCode::NameUnknown
                            | OciErrorCode::NotFound
                            | OciErrorCode::BlobUnknown
                    )
                });
                match missing {
                    true => ImageError::NotFound { reference },
                    false => ImageError::Forbidden { reference, registry },
                }
            }
            OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::ServerError { code: 401 | 403, .. } => {
                ImageError::Forbidden { reference, registry }
            }
            _ => ImageError::Unreachable { registry, reason: causes(&error) },
        }
    }

    fn interrupted(&self, error: &std::io::Error) -> ImageError {
        // The library compares digests, too, and says so in the form of a read error.
        let reason = causes(error);
        if reason.contains("igest") {
            return ImageError::Corrupt { what: format!("a blob of {}", self.reference.whole()) };
        }
        ImageError::Unreachable { registry: self.reference.registry().to_owned(), reason }
    }

    fn unusable(&self, reason: String) -> ImageError {
        ImageError::Unusable { reference: self.reference.whole(), reason }
    }
}

impl BlobSource for Fetching<'_> {
    async fn layer(
        &self,
        blob: &Blob,
        fetched: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<LayerArchive, ImageError> {
        let staged = self.disk.stage();
        let keep = ImageError::disk("keep what is fetched");
        let mut file = tokio::fs::File::create(&staged.path).await.map_err(keep)?;
        let mut digest = Sha256::new();
        let mut bytes = 0;
        let mut pieces = self
            .client
            .pull_blob_stream(self.reference, &descriptor(blob))
            .await
            .map_err(|error| self.explain(error))?;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.interrupted(&error))?;
            bytes += piece.len() as u64;
            if bytes > LAYER_FETCHED_BYTES_MAX {
                return Err(self.unusable("a layer is too large".to_owned()));
            }
            digest.update(&piece);
            file.write_all(&piece).await.map_err(ImageError::disk("keep what is fetched"))?;
            fetched(piece.len() as u64);
        }
        file.flush().await.map_err(ImageError::disk("keep what is fetched"))?;
        match format!("sha256:{}", hex(&digest.finalize())) == blob.digest.as_str() {
            true => Ok(LayerArchive::Fetched(staged)),
            false => Err(ImageError::Corrupt { what: blob.digest.as_str().to_owned() }),
        }
    }
}

fn descriptor(blob: &Blob) -> OciDescriptor {
    OciDescriptor { digest: blob.digest.as_str().to_owned(), ..OciDescriptor::default() }
}

fn protocol(registry: &str) -> ClientProtocol {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback =
        host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    if loopback { ClientProtocol::Http } else { ClientProtocol::Https }
}

/// An error with its causes, each said once.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_registries_go_without_tls() {
        let cases = [
            ("127.0.0.1:5000", true),
            ("127.8.9.10", true),
            ("localhost:5000", true),
            ("[::1]:5000", true),
            ("docker.io", false),
            ("localhost.example:5000", false),
            ("10.0.0.1:5000", false),
        ];
        for (registry, plain) in cases {
            let found = matches!(protocol(registry), ClientProtocol::Http);
            assert_eq!(found, plain, "{registry}");
        }
    }
}
