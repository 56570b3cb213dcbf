//! The image store as its users see it: resolve, load, list, remove, collect.
//!
//! Invariant: an image somebody holds a pin of is never collected, and neither is anything of an
//! image that is just arriving.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use oci_client::Reference;
use tokio::sync::{Mutex as AsyncMutex, RwLock};

use super::blobs::blocking;
use super::disk::{Absence, Disk, ImageRecord, ReferenceRecord};
use super::limits::HELLO_WITHIN;
use super::manifest::Sha256Digest;
use super::registry::Registries;
use super::{ImageError, ImagePin, OnProgress, ResolvedImage, Substitution, archive, hello};

/// What the image store needs to know.
#[derive(Clone, Debug)]
pub struct ImageStoreConfig {
    /// A directory of its own, below the server's data directory.
    pub directory: PathBuf,
    /// Passwords for registries, in the format of Docker's `config.json`.
    pub credentials: Option<PathBuf>,
}

/// Images on this machine.
#[derive(Clone, Debug)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Arc<Disk>,
    registries: Registries,
    pins: Mutex<HashMap<String, Pinned>>,
    /// One arrival of a reference at a time; the second finds everything there.
    arriving: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    /// Held for reading by arrivals, for writing by the collector.
    settled: RwLock<()>,
    hello_silence: hello::Silence,
}

/// An image in use, with its layers: they stay even if what was recorded of them is lost.
struct Pinned {
    pin: Weak<ImagePin>,
    layers: Vec<String>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ImageStore").field("disk", &self.disk).finish_non_exhaustive()
    }
}

/// An image of the store, for lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Digest of its manifest.
    pub digest: String,
    /// Names it has.
    pub references: Vec<String>,
    /// Bytes of its layers as they were fetched.
    pub bytes: u64,
    /// How many layers it has.
    pub layers: usize,
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Images that nobody uses or has loaded.
    pub images: u64,
    /// Layers no image has.
    pub layers: u64,
}

impl ImageStore {
    /// Opens the store and removes what an earlier life left half made.
    pub fn open(config: ImageStoreConfig) -> io::Result<ImageStore> {
        let inner = Inner {
            disk: Arc::new(Disk::open(&config.directory)?),
            registries: Registries::new(config.credentials),
            pins: Mutex::default(),
            arriving: Mutex::default(),
            settled: RwLock::new(()),
            hello_silence: hello::Silence::default(),
        };
        Ok(ImageStore { inner: Arc::new(inner) })
    }

    /// What a reference means now, with its layers on this disk. A tag is looked up at its registry
    /// each time; a digest that is here already, and an image loaded from a file, are not.
    pub async fn resolve(
        &self,
        reference: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<ResolvedImage, ImageError> {
        let parsed = parse(reference)?;
        let arriving = self.inner.arriving(&parsed.whole());
        let _one_at_a_time = arriving.lock().await;
        let _settled = self.inner.settled.read().await;
        let found = self.bring(reference, parsed, on_progress).await;
        found.map_err(|error| error.about(reference, self.inner.disk.root()))
    }

    async fn bring(
        &self,
        reference: &str,
        parsed: Reference,
        on_progress: OnProgress<'_>,
    ) -> Result<ResolvedImage, ImageError> {
        if hello::is_shipped(&parsed) {
            let record = hello::keep(&self.inner.disk, on_progress).await?;
            return Ok(self.inner.resolved(reference, &parsed, &record, None));
        }
        let absence = match self.here(reference, &parsed, true).await? {
            Ok(found) => return Ok(found),
            Err(absence) => absence,
        };
        let stands_in = hello::stands_in_for(parsed.registry(), parsed.repository());
        // Somebody who follows a guide without a network should not wait for time-outs.
        let silence = &self.inner.hello_silence;
        if stands_in && let Some(reason) = silence.reason(parsed.registry(), Instant::now()) {
            return self.stand_in(reference, &parsed, reason, on_progress).await;
        }
        let answer_within = stands_in.then_some(HELLO_WITHIN);
        let fetching =
            self.inner.registries.fetch(&self.inner.disk, &parsed, answer_within, on_progress);
        let error = match fetching.await {
            Ok(record) => {
                self.inner.remember(&parsed, &record, false).await?;
                return Ok(self.inner.resolved(reference, &parsed, &record, None));
            }
            Err(error) if stands_in => {
                let reason = error.to_string();
                if matches!(error, ImageError::Unreachable { .. }) {
                    silence.begin(parsed.registry(), Instant::now(), &reason);
                }
                return self.stand_in(reference, &parsed, reason, on_progress).await;
            }
            Err(error) => error,
        };
        let mut damage = absence;
        if matches!(error, ImageError::Unreachable { .. }) {
            // Better the image it was the last time than none.
            match self.here(reference, &parsed, false).await? {
                Ok(found) => {
                    tracing::warn!(%error, reference, "using the image as it was last seen");
                    return Ok(found);
                }
                Err(absence) => damage = absence,
            }
        }
        match (damage, error) {
            (_, error @ (ImageError::Disk { .. } | ImageError::Reference { .. })) => Err(error),
            (Absence::Unknown, error) => Err(error),
            (Absence::Damaged(damage), error) => Err(ImageError::Damaged {
                reference: reference.to_owned(),
                damage,
                source: Box::new(error),
            }),
        }
    }

    /// The shipped image in place of the hello image that was asked for.
    async fn stand_in(
        &self,
        reference: &str,
        parsed: &Reference,
        reason: String,
        on_progress: OnProgress<'_>,
    ) -> Result<ResolvedImage, ImageError> {
        let substitution = Substitution { asked: parsed.whole(), reason };
        tracing::warn!("{substitution}");
        let record = hello::keep(&self.inner.disk, on_progress).await?;
        Ok(self.inner.resolved(reference, parsed, &record, Some(substitution)))
    }

    /// An image that is on this disk, without asking anybody: by the digest of a `pinned`
    /// reference, or by a name as it was last seen. Blocks while its files are looked at, which is the
    /// first time.
    pub fn local(&self, reference: &str) -> Option<ResolvedImage> {
        self.inner.here(reference, &parse(reference).ok()?, false).ok()
    }

    /// Like [`ImageStore::local`], where nothing may block.
    async fn here(
        &self,
        reference: &str,
        parsed: &Reference,
        loaded_only: bool,
    ) -> Result<Result<ResolvedImage, Absence>, ImageError> {
        let (inner, parsed) = (Arc::clone(&self.inner), parsed.clone());
        let reference = reference.to_owned();
        blocking(move || Ok(inner.here(&reference, &parsed, loaded_only))).await
    }

    /// The image of this digest in the repository of the reference, if it is on this disk.
    pub async fn pinned(&self, reference: &str) -> Option<ResolvedImage> {
        let parsed = parse(reference).ok()?;
        self.here(reference, &parsed, false).await.ok()?.ok()
    }

    /// How the image is damaged whose instances do not start, if it is. What is damaged is out of the
    /// way afterwards: resolving the image again brings it anew.
    pub async fn damage(&self, image: &ResolvedImage) -> Option<String> {
        let disk = Arc::clone(&self.inner.disk);
        let layers = image.layers.clone();
        let looked = blocking(move || {
            let digests = layers.iter().filter_map(|path| {
                let name = path.file_name()?.to_str()?;
                Sha256Digest::parse(&format!("sha256:{name}")).ok()
            });
            let mut damages =
                digests.filter_map(|digest| disk.damage(&digest, disk.next_look(&digest)));
            Ok(damages.next())
        });
        looked.await.ok()?
    }

    /// Brings the images of a `docker save` archive or an OCI layout (packed or not) into the store
    /// and answers with the names they have.
    pub async fn load(
        &self,
        path: &Path,
        on_progress: OnProgress<'_>,
    ) -> Result<Vec<String>, ImageError> {
        let _settled = self.inner.settled.read().await;
        let mut names = Vec::new();
        let about =
            |error: ImageError| error.about(&path.display().to_string(), self.inner.disk.root());
        let loaded = archive::load(&self.inner.disk, path, on_progress).await.map_err(about)?;
        for (reference, record) in loaded {
            self.inner.remember(&reference, &record, true).await.map_err(about)?;
            names.push(reference.whole());
        }
        Ok(names)
    }

    /// The images of the store, by their first name.
    pub fn list(&self) -> Vec<StoredImage> {
        let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for record in self.inner.disk.references() {
            names.entry(record.digest).or_default().push(record.reference);
        }
        let mut images: Vec<StoredImage> = self
            .inner
            .disk
            .images()
            .into_iter()
            .map(|record| {
                let mut references = names.remove(&record.digest).unwrap_or_default();
                references.sort();
                StoredImage {
                    digest: record.digest,
                    references,
                    bytes: record.bytes,
                    layers: record.layers.len(),
                }
            })
            .collect();
        images.sort_by(|a, b| (&a.references, &a.digest).cmp(&(&b.references, &b.digest)));
        images
    }

    /// Forgets a name; `false` when it was not known. What it meant goes with the next collection,
    /// unless another name or a user keeps it.
    pub fn remove(&self, reference: &str) -> Result<bool, ImageError> {
        let parsed = parse(reference)?;
        self.inner
            .disk
            .remove_reference(&parsed.whole())
            .map_err(ImageError::disk("forget a reference"))
    }

    /// Removes images that are neither pinned nor in `keep` (digests) and that nobody loaded from a
    /// file, with the names they were pulled by, and layers that no image has any more.
    pub async fn collect(&self, keep: &[String]) -> Result<Collected, ImageError> {
        let _settled = self.inner.settled.write().await;
        let mut kept: BTreeSet<String> = keep.iter().cloned().collect();
        let mut layers_kept = BTreeSet::new();
        for (digest, layers) in self.inner.pinned() {
            kept.insert(digest);
            layers_kept.extend(layers);
        }
        let (loaded, pulled): (Vec<_>, Vec<_>) =
            self.inner.disk.references().into_iter().partition(|record| record.loaded);
        kept.extend(loaded.into_iter().map(|record| record.digest));
        let disk = Arc::clone(&self.inner.disk);
        blocking(move || {
            for name in pulled.into_iter().filter(|record| !kept.contains(&record.digest)) {
                let forgotten = disk.remove_reference(&name.reference);
                forgotten.map_err(ImageError::disk("forget a reference"))?;
            }
            collect(&disk, &kept, layers_kept).map_err(ImageError::disk("collect what is not used"))
        })
        .await
    }
}

/// `used` are layers that stay whatever is recorded.
fn collect(
    disk: &Disk,
    kept: &BTreeSet<String>,
    mut used: BTreeSet<String>,
) -> io::Result<Collected> {
    let mut collected = Collected::default();
    for record in disk.images() {
        if kept.contains(&record.digest) {
            used.extend(record.layers);
        } else if let Ok(digest) = Sha256Digest::parse(&record.digest) {
            disk.remove_image(&digest)?;
            collected.images += 1;
        }
    }
    for layer in disk.layers() {
        if !used.contains(layer.as_str()) {
            disk.remove_layer(&layer)?;
            collected.layers += 1;
        }
    }
    Ok(collected)
}

impl Inner {
    fn here(
        &self,
        reference: &str,
        parsed: &Reference,
        loaded_only: bool,
    ) -> Result<ResolvedImage, Absence> {
        let digest = match parsed.digest() {
            Some(digest) => digest.to_owned(),
            None => {
                let known = self.disk.reference(&parsed.whole())?;
                if loaded_only && !known.loaded {
                    return Err(Absence::Unknown);
                }
                known.digest
            }
        };
        let digest = Sha256Digest::parse(&digest).map_err(|_| Absence::Unknown)?;
        let record = self.disk.image(&digest)?;
        let substitution = self.substitution(parsed, digest.as_str());
        Ok(self.resolved(reference, parsed, &record, substitution))
    }

    fn arriving(&self, reference: &str) -> Arc<AsyncMutex<()>> {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        arriving.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(arriving.entry(reference.to_owned()).or_default())
    }

    fn resolved(
        &self,
        reference: &str,
        parsed: &Reference,
        record: &ImageRecord,
        substitution: Option<Substitution>,
    ) -> ResolvedImage {
        let layers = record.layers.iter().filter_map(|layer| Sha256Digest::parse(layer).ok());
        ResolvedImage {
            reference: reference.to_owned(),
            pinned: format!("{}/{}@{}", parsed.registry(), parsed.repository(), record.digest),
            digest: record.digest.clone(),
            config: Arc::new(record.config()),
            layers: layers.map(|digest| self.disk.layer(&digest)).collect(),
            substitution,
            pin: self.pin(record),
        }
    }

    fn pin(&self, record: &ImageRecord) -> Arc<ImagePin> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.retain(|_, pinned| pinned.pin.strong_count() > 0);
        if let Some(pin) = pins.get(&record.digest).and_then(|pinned| pinned.pin.upgrade()) {
            return pin;
        }
        let pin = Arc::new(ImagePin { digest: record.digest.clone() });
        let pinned = Pinned { pin: Arc::downgrade(&pin), layers: record.layers.clone() };
        pins.insert(record.digest.clone(), pinned);
        pin
    }

    /// The digests of images in use, with their layers.
    fn pinned(&self) -> Vec<(String, Vec<String>)> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let held = pins.iter().filter(|(_, pinned)| pinned.pin.strong_count() > 0);
        held.map(|(digest, pinned)| (digest.clone(), pinned.layers.clone())).collect()
    }

    /// A pinned hello image with our digest was a substitution when it was pinned.
    fn substitution(&self, parsed: &Reference, digest: &str) -> Option<Substitution> {
        if !hello::stands_in_for(parsed.registry(), parsed.repository()) {
            return None;
        }
        let ours = hello::hello().is_ok_and(|hello| hello.digest.as_str() == digest);
        ours.then(|| Substitution {
            asked: format!("{}/{}", parsed.registry(), parsed.repository()),
            reason: "its registry could not be reached when it was deployed".to_owned(),
        })
    }

    async fn remember(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        loaded: bool,
    ) -> Result<(), ImageError> {
        if reference.digest().is_some() {
            return Ok(());
        }
        let known =
            ReferenceRecord { reference: reference.whole(), digest: record.digest.clone(), loaded };
        let disk = Arc::clone(&self.disk);
        blocking(move || {
            if disk.reference(&known.reference).as_ref() == Ok(&known) {
                return Ok(());
            }
            disk.keep_reference(&known).map_err(ImageError::disk("record a reference"))
        })
        .await
    }
}

fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(|error: oci_client::ParseError| ImageError::Reference {
        reference: reference.to_owned(),
        reason: error.to_string(),
    })
}
