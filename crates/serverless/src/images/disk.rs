//! The store's directory: unpacked layers, one record for each image, one for each reference.
//!
//! ```text
//! layers/<digits>/          an unpacked layer, named after the digest of its uncompressed archive
//! listings/<digits>         what it was when it was unpacked
//! images/<digits>.json      configuration and layers of the image with this manifest digest
//! references/<digits>.json  which image a name means, named after the digest of the name
//! staging/                  what is being made; emptied when the store is opened
//! ```
//!
//! Invariant: everything outside `staging` got there by a rename after it was on disk, layers
//! before images and images before references, so a crash at any moment leaves nothing half. What is
//! damaged all the same is taken out of the way when it is noticed, so that it is brought anew.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ImageConfig;
use super::limits::CONTENTS_READ_EVERY;
use super::listing::{Listing, Look};
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

/// Why an image cannot be had from the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// It was never there.
    Unknown,
    /// It was, and is damaged: how, in words.
    Damaged(String),
}

/// What is known of a layer since the store was opened.
#[derive(Debug, Default)]
struct Known {
    /// Its shapes were compared.
    is_looked_at: bool,
    contents_read: Option<Instant>,
    /// It was damaged and is out of the way.
    damage: Option<String>,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    staged: AtomicU64,
    layers: Mutex<HashMap<String, Known>>,
}

/// The folders of the store.
const FOLDERS: [&str; 5] = ["layers", "listings", "images", "references", "staging"];

impl Disk {
    /// Opens or makes the directory and throws away what an earlier life was making.
    pub(crate) fn open(root: &Path) -> io::Result<Disk> {
        let staging = root.join("staging");
        if staging.exists() {
            remove_tree(&staging)?;
        }
        for name in FOLDERS {
            fs::create_dir_all(root.join(name))?;
        }
        // Absolute, since helpers of instances work from another directory.
        let root = fs::canonicalize(root)?;
        Ok(Disk { root, staged: AtomicU64::new(0), layers: Mutex::default() })
    }

    /// The directory, for messages.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes folders that somebody took away.
    pub(crate) fn restore_folders(&self) -> io::Result<()> {
        FOLDERS.iter().try_for_each(|name| fs::create_dir_all(self.root.join(name)))
    }

    pub(crate) fn layer(&self, digest: &Sha256Digest) -> PathBuf {
        self.root.join("layers").join(digest.hex())
    }

    /// A new empty directory or the name of a new file, removed when dropped.
    pub(crate) fn stage(&self) -> Staged {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        Staged { path: self.root.join("staging").join(number.to_string()) }
    }

    /// Writes down what a staged layer is; to be kept with it.
    pub(crate) fn list(&self, layer: &Staged) -> io::Result<Staged> {
        let staged = self.stage();
        Listing::of(&layer.path, Look::Contents)?.write(&mut File::create(&staged.path)?)?;
        Ok(staged)
    }

    /// Gives a staged layer and its listing their names. A layer that is there already is the same
    /// one.
    pub(crate) fn keep_layer(
        &self,
        staged: Staged,
        listing: Staged,
        digest: &Sha256Digest,
    ) -> io::Result<()> {
        let target = self.layer(digest);
        if target.is_dir() {
            return Ok(());
        }
        remove_file(&target)?;
        fs::rename(&listing.path, self.listing(digest))?;
        sync_directory(&self.root.join("listings"))?;
        match fs::rename(&staged.path, &target) {
            Err(_) if target.is_dir() => return Ok(()),
            other => other?,
        }
        self.known()
            .insert(digest.hex().to_owned(), Known { is_looked_at: true, ..Known::default() });
        sync_directory(&self.root.join("layers"))
    }

    /// How a layer is damaged, if it is. One that is goes out of the way, where those that are mounted
    /// keep it until the store is opened again. Blocks for as long as the files take to be looked at.
    pub(crate) fn damage(&self, digest: &Sha256Digest, look: Look) -> Option<String> {
        if !self.layer(digest).is_dir() {
            let known = self.known().get(digest.hex()).and_then(|known| known.damage.clone());
            return Some(known.unwrap_or_else(|| format!("layer {} is missing", digest.as_str())));
        }
        // A layer without a listing that can be read cannot be compared with anything.
        let before = Listing::read(&self.listing(digest))?;
        let now = match Listing::of(&self.layer(digest), look) {
            Ok(now) => now,
            Err(error) => return self.set_aside(digest, &format!("cannot be read: {error}")),
        };
        match before.difference(&now) {
            Some(path) => self.set_aside(digest, &format!("`/{path}` is not as it was unpacked")),
            None => {
                let mut known = self.known();
                let known = known.entry(digest.hex().to_owned()).or_default();
                known.is_looked_at = true;
                if look == Look::Contents {
                    known.contents_read = Some(Instant::now());
                }
                None
            }
        }
    }

    fn set_aside(&self, digest: &Sha256Digest, how: &str) -> Option<String> {
        let damage = format!("layer {}: {how}", digest.as_str());
        tracing::warn!(damage, "a layer of the image store is damaged");
        let staged = self.stage();
        if let Err(error) = fs::rename(self.layer(digest), &staged.path) {
            tracing::warn!(%error, "a damaged layer stays where it is");
        }
        // Instances that run have it mounted.
        std::mem::forget(staged);
        let known = Known { damage: Some(damage.clone()), ..Known::default() };
        self.known().insert(digest.hex().to_owned(), known);
        Some(damage)
    }

    /// How closely to look at a layer whose instance did not start: its contents are not read again
    /// for a while.
    pub(crate) fn next_look(&self, digest: &Sha256Digest) -> Look {
        let read = self.known().get(digest.hex()).and_then(|known| known.contents_read);
        match read.is_some_and(|at| at.elapsed() < CONTENTS_READ_EVERY) {
            true => Look::Shapes,
            false => Look::Contents,
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listing(&self, digest: &Sha256Digest) -> PathBuf {
        self.root.join("listings").join(digest.hex())
    }

    /// Everything written so far is on disk afterwards.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let directory = File::open(&self.root)?;
        // SAFETY: syncfs takes a descriptor, which is open.
        #[allow(unsafe_code)]
        let result = unsafe { nix::libc::syncfs(directory.as_raw_fd()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// An image all of whose layers are there. The first time after the store was opened they are
    /// looked at, which blocks.
    pub(crate) fn image(&self, digest: &Sha256Digest) -> Result<ImageRecord, Absence> {
        let path = self.image_path(digest);
        let Some(record) = self.read::<ImageRecord>(&path) else {
            return Err(absence(&path, "what was recorded of it cannot be read"));
        };
        for layer in &record.layers {
            let Ok(layer) = Sha256Digest::parse(layer) else {
                return Err(Absence::Damaged("what was recorded of it cannot be read".to_owned()));
            };
            let is_looked_at =
                self.known().get(layer.hex()).is_some_and(|known| known.is_looked_at);
            if is_looked_at && self.layer(&layer).is_dir() {
                continue;
            }
            if let Some(damage) = self.damage(&layer, Look::Shapes) {
                return Err(Absence::Damaged(damage));
            }
        }
        Ok(record)
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

    pub(crate) fn reference(&self, reference: &str) -> Result<ReferenceRecord, Absence> {
        let path = self.reference_path(reference);
        self.read(&path).ok_or_else(|| absence(&path, "what its name means cannot be read"))
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
        self.known().remove(digest.hex());
        remove_file(&self.listing(digest))
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

/// Why a record could not be read.
fn absence(path: &Path, damage: &str) -> Absence {
    match path.exists() {
        true => Absence::Damaged(damage.to_owned()),
        false => Absence::Unknown,
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
