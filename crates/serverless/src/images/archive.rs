//! Images from files: `docker save` archives and OCI layouts, packed or as a directory.
//!
//! Invariant: files are opened inside the archive's own directory only, links included.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_client::Reference;
use pathrs::Root;
use pathrs::flags::OpenFlags;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::blobs::{Arrival, BlobSource, LayerArchive, admit, blob_path, blocking};
use super::disk::{Disk, ImageRecord, Staged};
use super::limits::DOCUMENT_BYTES_MAX;
use super::manifest::{
    Blob, Configuration, Manifest, SavedImage, Sha256Digest, parse_layout_index,
};
use super::unpack::{hex, unpack_layer};
use super::{ImageError, OnProgress, is_full};

const INDEX_DEPTH_MAX: usize = 3;

/// Brings the images of a file or directory into the store, with the names they have there.
pub(crate) async fn load(
    disk: &Arc<Disk>,
    path: &Path,
    on_progress: OnProgress<'_>,
) -> Result<Vec<(Reference, ImageRecord)>, ImageError> {
    let (disk_here, path_here) = (Arc::clone(disk), path.to_owned());
    let opened = blocking(move || Opened::open(&disk_here, &path_here)).await?;
    let images = opened.images(path)?;
    let mut loaded = Vec::new();
    for image in images {
        let source = Files { opened: &opened, layers: image.files };
        let name = image.references.first().map_or_else(String::new, Reference::whole);
        let arrival = Arrival {
            reference: &name,
            digest: image.digest,
            configuration: image.configuration,
            layers: image.layers,
        };
        let record = admit(disk, &source, &arrival, on_progress).await?;
        loaded.extend(image.references.into_iter().map(|reference| (reference, record.clone())));
    }
    Ok(loaded)
}

/// A manifest for an image that has none of its own; the same image always gets the same one.
pub(crate) fn image_manifest(config: &Blob, layers: &[Blob]) -> String {
    let layers: Vec<serde_json::Value> = layers
        .iter()
        .map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.digest.as_str(),
                "size": layer.bytes,
            })
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config.digest.as_str(),
            "size": config.bytes,
        },
        "layers": layers,
    })
    .to_string()
}

/// The directory of an archive; unpacked for the time being if it was packed.
struct Opened {
    root: Root,
    /// Names an image that has no name in its archive.
    stem: String,
    path: String,
    _unpacked: Option<Staged>,
}

/// One image of an archive, before its layers are read.
struct Found {
    references: Vec<Reference>,
    digest: Sha256Digest,
    configuration: Configuration,
    layers: Vec<Blob>,
    /// Where each layer's archive is.
    files: BTreeMap<Sha256Digest, PathBuf>,
}

impl Opened {
    fn open(disk: &Disk, path: &Path) -> Result<Opened, ImageError> {
        let shown = path.display().to_string();
        let failed = |reason: String| ImageError::Archive { path: shown.clone(), reason };
        let (directory, unpacked) = if path.is_dir() {
            (path.to_owned(), None)
        } else {
            let file = File::open(path).map_err(|error| failed(error.to_string()))?;
            let staged = disk.stage();
            std::fs::create_dir(&staged.path).map_err(ImageError::disk("unpack an archive"))?;
            let unpacked = unpack_layer(io::BufReader::new(file), &staged.path);
            unpacked.map_err(|error| match is_full(&error) {
                true => ImageError::disk("unpack an archive")(error),
                false => failed(format!("not an archive of an image: {error}")),
            })?;
            (staged.path.clone(), Some(staged))
        };
        let root = Root::open(&directory).map_err(|error| failed(error.to_string()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let stem = stem.trim_end_matches(".tar").to_ascii_lowercase();
        Ok(Opened { root, stem, path: shown, _unpacked: unpacked })
    }

    fn images(&self, path: &Path) -> Result<Vec<Found>, ImageError> {
        let failed = |reason: String| self.failed(reason);
        let found = if let Ok(bytes) = self.document(Path::new("manifest.json")) {
            let saved: Vec<SavedImage> = serde_json::from_slice(&bytes)
                .map_err(|error| failed(format!("manifest.json: {error}")))?;
            saved.iter().map(|image| self.saved_image(image)).collect::<Result<Vec<_>, _>>()?
        } else if let Ok(bytes) = self.document(Path::new("index.json")) {
            let entries = parse_layout_index(&bytes).map_err(failed)?;
            entries
                .into_iter()
                .map(|(blob, name)| self.layout_image(blob, name))
                .collect::<Result<Vec<_>, _>>()?
        } else {
            return Err(failed(
                "neither a `docker save` archive (manifest.json) nor an OCI layout (index.json)"
                    .to_owned(),
            ));
        };
        match found.is_empty() {
            true => Err(failed(format!("no image for linux/amd64 in {}", path.display()))),
            false => Ok(found),
        }
    }

    fn saved_image(&self, image: &SavedImage) -> Result<Found, ImageError> {
        let bytes = self.read(Path::new(&image.config))?;
        let configuration = Configuration::parse(&bytes).map_err(|reason| self.failed(reason))?;
        if configuration.layers.len() != image.layers.len() {
            return Err(self.failed("layers are missing".to_owned()));
        }
        let mut layers = Vec::new();
        let mut files = BTreeMap::new();
        for (digest, path) in configuration.layers.iter().zip(&image.layers) {
            let length = self.file(Path::new(path)).and_then(|file| Ok(file.metadata()?.len()));
            let length = length.map_err(|error| self.failed(format!("{path}: {error}")))?;
            layers.push(Blob { digest: digest.clone(), bytes: length });
            files.insert(digest.clone(), PathBuf::from(path));
        }
        let config = Blob { digest: self.digest(&bytes)?, bytes: bytes.len() as u64 };
        let digest = self.digest(image_manifest(&config, &layers).as_bytes())?;
        let names = image.repo_tags.iter().flatten().map(String::as_str);
        let references = self.references(names)?;
        Ok(Found { references, digest, configuration, layers, files })
    }

    fn layout_image(&self, blob: Blob, name: Option<String>) -> Result<Found, ImageError> {
        let mut at = blob;
        for _ in 0..INDEX_DEPTH_MAX {
            let bytes = self.blob(&at)?;
            match Manifest::parse(&bytes).map_err(|reason| self.failed(reason))? {
                Manifest::Elsewhere(next) => at = next,
                Manifest::Image { config, layers } => {
                    let bytes = self.blob(&config)?;
                    let configuration =
                        Configuration::parse(&bytes).map_err(|reason| self.failed(reason))?;
                    let paths = layers.iter().map(|layer| blob_path(&layer.digest));
                    let files =
                        layers.iter().map(|layer| layer.digest.clone()).zip(paths).collect();
                    let references = self.references(name.iter().map(String::as_str))?;
                    return Ok(Found {
                        references,
                        digest: at.digest,
                        configuration,
                        layers,
                        files,
                    });
                }
            }
        }
        Err(self.failed("its indexes lead to nothing but indexes".to_owned()))
    }

    /// The names an image gets; one without any is called after its file.
    fn references<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<Reference>, ImageError> {
        let parse = |name: &str| {
            let reference = name.parse::<Reference>();
            reference.map_err(|error| self.failed(format!("`{name}`: {error}")))
        };
        // A layout often names the tag alone.
        let whole = |name: &str| match name.contains(['/', ':']) {
            true => name.to_owned(),
            false => format!("localhost/{}:{name}", self.stem),
        };
        let mut references =
            names.map(|name| parse(&whole(name))).collect::<Result<Vec<_>, _>>()?;
        if references.is_empty() {
            references.push(parse(&format!("localhost/{}:latest", self.stem))?);
        }
        Ok(references)
    }

    fn blob(&self, blob: &Blob) -> Result<Vec<u8>, ImageError> {
        let bytes = self.read(&blob_path(&blob.digest))?;
        match self.digest(&bytes)? == blob.digest {
            true => Ok(bytes),
            false => Err(ImageError::Corrupt { what: blob.digest.as_str().to_owned() }),
        }
    }

    fn digest(&self, bytes: &[u8]) -> Result<Sha256Digest, ImageError> {
        Sha256Digest::parse(&format!("sha256:{}", hex(&Sha256::digest(bytes))))
            .map_err(|reason| self.failed(reason))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, ImageError> {
        self.document(path).map_err(|error| self.failed(format!("{}: {error}", path.display())))
    }

    fn document(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(path)?.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn file(&self, path: &Path) -> io::Result<File> {
        let flags = OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK;
        self.root
            .open_subpath(Path::new("/").join(path), flags)
            .map_err(|error| io::Error::other(error.to_string()))
    }

    fn failed(&self, reason: String) -> ImageError {
        ImageError::Archive { path: self.path.clone(), reason }
    }
}

struct Files<'a> {
    opened: &'a Opened,
    layers: BTreeMap<Sha256Digest, PathBuf>,
}

impl BlobSource for Files<'_> {
    async fn layer(
        &self,
        blob: &Blob,
        fetched: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<LayerArchive, ImageError> {
        let missing = || self.opened.failed(format!("{} is missing", blob.digest.as_str()));
        let path = self.layers.get(&blob.digest).ok_or_else(missing)?;
        let file = self.opened.file(path);
        let file =
            file.map_err(|error| self.opened.failed(format!("{}: {error}", path.display())))?;
        fetched(blob.bytes);
        // The layer is verified against the configuration when it is unpacked.
        Ok(LayerArchive::Given(file))
    }
}
