//! The store's directory: unpacked layers, one record for each image, one for each reference.
//!
//! ```text
//! layers/<digits>/          an unpacked layer, named after the digest of its uncompressed archive
//! images/<digits>.json      configuration and layers of the image with this manifest digest
//! references/<digits>.json  which image a name means, named after the digest of the name
//! staging/                  what is being made; emptied when the store is opened
//! ```
//!
//! Invariant: everything outside `staging` got there by a rename after it was on disk, layers
//! before images and images before references, so a crash at any moment leaves nothing half.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImageConfig;
use super::manifest::Sha256Digest;
use super::unpack::hex;

/// What is remembered of an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Of the manifest.
    pub(crate) digest: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: String,
    pub(crate) user: String,
    /// Digests of the layers' uncompressed archives, the lowest first.
    pub(crate) layers: Vec<String>,
    /// Compressed, as fetched.
    pub(crate) bytes: u64,
}

impl ImageRecord {
    pub(crate) fn config(&self) -> ImageConfig {
        ImageConfig {
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            environment: self.environment.clone(),
            working_directory: self.working_directory.clone(),
            user: self.user.clone(),
        }
    }
}

/// What is remembered of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReferenceRecord {
    /// Registry, repository and tag or digest.
    pub(crate) reference: String,
    /// Of the manifest it means.
    pub(crate) digest: String,
    /// Loaded from a file: then the registry is not asked.
    pub(crate) loaded: bool,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    staged: AtomicU64,
}

impl Disk {
    /// Opens or makes the directory and throws away what an earlier life was making.
    pub(crate) fn open(root: &Path) -> io::Result<Disk> {
        let staging = root.join("staging");
        if staging.exists() {
            remove_tree(&staging)?;
        }
        for name in ["layers", "images", "references", "staging"] {
            fs::create_dir_all(root.join(name))?;
        }
        // Absolute, since helpers of instances work from another directory.
        Ok(Disk { root: fs::canonicalize(root)?, staged: AtomicU64::new(0) })
    }

    pub(crate) fn layer(&self, digest: &Sha256Digest) -> PathBuf {
        self.root.join("layers").join(digest.hex())
    }

    /// A new empty directory or the name of a new file, removed when dropped.
    pub(crate) fn stage(&self) -> Staged {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        Staged { path: self.root.join("staging").join(number.to_string()) }
    }

    /// Gives a staged layer its name. A layer that is there already is the same one.
    pub(crate) fn keep_layer(&self, staged: Staged, digest: &Sha256Digest) -> io::Result<()> {
        let target = self.layer(digest);
        match fs::rename(&staged.path, &target) {
            Err(_) if target.is_dir() => return Ok(()),
            other => other?,
        }
        sync_directory(&self.root.join("layers"))
    }

    /// Everything written so far is on disk afterwards.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let directory = File::open(&self.root)?;
        // SAFETY: syncfs takes a descriptor, which is open.
        #[allow(unsafe_code)]
        let result = unsafe { nix::libc::syncfs(directory.as_raw_fd()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn image(&self, digest: &Sha256Digest) -> Option<ImageRecord> {
        let record: ImageRecord = self.read(&self.image_path(digest))?;
        let complete = record.layers.iter().all(|layer| {
            Sha256Digest::parse(layer).is_ok_and(|digest| self.layer(&digest).is_dir())
        });
        complete.then_some(record)
    }

    pub(crate) fn keep_image(&self, digest: &Sha256Digest, record: &ImageRecord) -> io::Result<()> {
        self.write(&self.image_path(digest), record)
    }

    pub(crate) fn remove_image(&self, digest: &Sha256Digest) -> io::Result<()> {
        remove_file(&self.image_path(digest))
    }

    pub(crate) fn images(&self) -> Vec<ImageRecord> {
        self.read_all("images")
    }

    pub(crate) fn reference(&self, reference: &str) -> Option<ReferenceRecord> {
        self.read(&self.reference_path(reference))
    }

    pub(crate) fn keep_reference(&self, record: &ReferenceRecord) -> io::Result<()> {
        self.write(&self.reference_path(&record.reference), record)
    }

    /// True when there was one.
    pub(crate) fn remove_reference(&self, reference: &str) -> io::Result<bool> {
        let path = self.reference_path(reference);
        let known = path.exists();
        remove_file(&path)?;
        Ok(known)
    }

    pub(crate) fn references(&self) -> Vec<ReferenceRecord> {
        self.read_all("references")
    }

    /// The layers on disk.
    pub(crate) fn layers(&self) -> Vec<Sha256Digest> {
        let entries = fs::read_dir(self.root.join("layers")).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let name = entry.file_name();
                Sha256Digest::parse(&format!("sha256:{}", name.to_str()?)).ok()
            })
            .collect()
    }

    /// Removes a layer; it is out of sight before its files go.
    pub(crate) fn remove_layer(&self, digest: &Sha256Digest) -> io::Result<()> {
        let staged = self.stage();
        fs::rename(self.layer(digest), &staged.path)?;
        drop(staged);
        Ok(())
    }

    fn image_path(&self, digest: &Sha256Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", digest.hex()))
    }

    fn reference_path(&self, reference: &str) -> PathBuf {
        let name = hex(&Sha256::digest(reference.as_bytes()));
        self.root.join("references").join(format!("{name}.json"))
    }

    /// A record that cannot be read is as good as none: what it described is fetched again.
    fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn read_all<T: DeserializeOwned>(&self, directory: &str) -> Vec<T> {
        let entries = fs::read_dir(self.root.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| self.read(&entry.path())).collect()
    }

    fn write<T: Serialize>(&self, path: &Path, record: &T) -> io::Result<()> {
        let staged = self.stage();
        let mut file = File::create(&staged.path)?;
        serde_json::to_writer(&mut file, record)?;
        file.flush()?;
        file.sync_all()?;
        fs::rename(&staged.path, path)?;
        path.parent().map_or(Ok(()), sync_directory)
    }
}

/// Something in `staging`, removed when dropped unless it got its name by then.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) path: PathBuf,
}

impl Drop for Staged {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the store is opened again.
        let _ = match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => remove_tree(&self.path),
            Ok(_) => fs::remove_file(&self.path),
            Err(_) => Ok(()),
        };
    }
}

/// A tree with directories in it that even their owner may not enter is removed all the same.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
