//! What the fleet asks others for before an instance can start: images and secrets.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::images::{ImageError, ImageStore, Progress, ResolvedImage};
use crate::runtime::Pending;

/// The largest secret, as Secret Manager has it.
pub const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Where images come from.
pub trait ImageSource: Send + Sync + fmt::Debug {
    /// Makes the image ready to be run, pulling it if needed. With a digest, exactly that manifest
    /// of the image's repository, whatever its tag says today.
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        digest: Option<&'a str>,
    ) -> Pending<'a, Result<ResolvedImage, ImageFailure>>;

    /// How far the pull of this image is, while there is one.
    fn progress(&self, image: &str) -> Option<Progress>;

    /// How the image is damaged whose instance did not start, if it is. Resolving it again brings it
    /// anew, or says why not.
    fn damage<'a>(&'a self, image: &'a ResolvedImage) -> Pending<'a, Option<String>>;
}

/// Why an image cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageFailure {
    /// What kind of trouble it is.
    pub trouble: ImageTrouble,
    /// A sentence for conditions and errors.
    pub message: String,
}

/// Kinds of trouble with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageTrouble {
    /// There is no such image.
    Missing,
    /// We may not read it.
    Unauthorized,
    /// It cannot run here, or is not an image at all.
    Unusable,
    /// The registry cannot be reached now, or the disk is full.
    Unavailable,
}

impl ImageTrouble {
    /// Cloud Run's word for it in a condition.
    pub fn reason(self) -> &'static str {
        match self {
            ImageTrouble::Missing => "ContainerMissing",
            ImageTrouble::Unauthorized => "ContainerPermissionDenied",
            ImageTrouble::Unusable => "ContainerImageUnusable",
            ImageTrouble::Unavailable => "ContainerImageUnavailable",
        }
    }
}

/// The images of an [`ImageStore`], with the progress of those that are being pulled.
#[derive(Debug)]
pub struct StoreImages {
    store: ImageStore,
    pulls: Mutex<BTreeMap<String, Progress>>,
}

impl StoreImages {
    /// Images from this store.
    pub fn new(store: ImageStore) -> StoreImages {
        StoreImages { store, pulls: Mutex::default() }
    }

    fn pulls(&self) -> MutexGuard<'_, BTreeMap<String, Progress>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn find(&self, image: &str, digest: Option<&str>) -> Result<ResolvedImage, ImageError> {
        let wanted = digest.map_or_else(|| image.to_owned(), |digest| pinned(image, digest));
        if digest.is_some()
            && let Some(here) = self.store.pinned(&wanted).await
        {
            return Ok(here);
        }
        let note = |progress| {
            self.pulls().insert(image.to_owned(), progress);
        };
        self.store.resolve(&wanted, &note).await
    }
}

/// The image by its digest in place of tag or digest.
fn pinned(image: &str, digest: &str) -> String {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let path_at = name.rfind('/').map_or(0, |slash| slash + 1);
    let name_end = name[path_at..].find(':').map_or(name.len(), |colon| path_at + colon);
    format!("{}@{digest}", &name[..name_end])
}

impl ImageSource for StoreImages {
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        digest: Option<&'a str>,
    ) -> Pending<'a, Result<ResolvedImage, ImageFailure>> {
        Box::pin(async move {
            let found = self.find(image, digest).await;
            self.pulls().remove(image);
            found.map_err(ImageFailure::from)
        })
    }

    fn progress(&self, image: &str) -> Option<Progress> {
        self.pulls().get(image).copied()
    }

    fn damage<'a>(&'a self, image: &'a ResolvedImage) -> Pending<'a, Option<String>> {
        Box::pin(self.store.damage(image))
    }
}

impl From<ImageError> for ImageFailure {
    fn from(error: ImageError) -> ImageFailure {
        let trouble = match &error {
            ImageError::NotFound { .. } => ImageTrouble::Missing,
            ImageError::Forbidden { .. } => ImageTrouble::Unauthorized,
            ImageError::Reference { .. }
            | ImageError::Unusable { .. }
            | ImageError::Archive { .. } => ImageTrouble::Unusable,
            ImageError::Unreachable { .. }
            | ImageError::Corrupt { .. }
            | ImageError::Damaged { .. }
            | ImageError::DiskFull { .. }
            | ImageError::Disk { .. } => ImageTrouble::Unavailable,
        };
        let mut message = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            message = format!("{message}: {inner}");
            cause = inner.source();
        }
        ImageFailure { trouble, message }
    }
}

/// Where secrets come from.
pub trait SecretSource: Send + Sync + fmt::Debug {
    /// The contents of a version of a project's secret, or why they cannot be had.
    fn read(&self, project: &str, secret: &str, version: &str) -> Result<Arc<[u8]>, String>;
}

/// Secrets as files: `DIRECTORY/PROJECT/SECRET/VERSION`, where `latest` is the highest number.
#[derive(Clone, Debug)]
pub struct SecretFiles {
    directory: PathBuf,
}

impl SecretFiles {
    /// The secrets below this directory, which need not exist.
    pub fn new(directory: PathBuf) -> SecretFiles {
        SecretFiles { directory }
    }

    fn path(&self, project: &str, secret: &str, version: &str) -> Option<PathBuf> {
        let relative = Path::new(project).join(secret).join(version);
        let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
        (plain && relative.components().count() == 3).then(|| self.directory.join(relative))
    }

    fn latest(&self, project: &str, secret: &str) -> Option<String> {
        let path = self.path(project, secret, "latest")?;
        if path.exists() {
            return Some("latest".to_owned());
        }
        let names = std::fs::read_dir(path.parent()?).ok()?.flatten();
        let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
        numbers.max().map(|number| number.to_string())
    }
}

impl SecretSource for SecretFiles {
    fn read(&self, project: &str, secret: &str, version: &str) -> Result<Arc<[u8]>, String> {
        let missing = || {
            format!("Secret projects/{project}/secrets/{secret}/versions/{version} was not found")
        };
        let version = match version {
            "latest" => self.latest(project, secret).ok_or_else(missing)?,
            named => named.to_owned(),
        };
        let path = self.path(project, secret, &version).ok_or_else(missing)?;
        let length = std::fs::metadata(&path).map_err(|_| missing())?.len();
        if length > SECRET_BYTES_MAX {
            return Err(format!("Secret {secret} has more than {SECRET_BYTES_MAX} bytes"));
        }
        std::fs::read(&path).map(Arc::from).map_err(|error| format!("{}: {error}", missing()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_takes_the_place_of_tag_or_digest() {
        for (image, expected) in [
            ("nginx", "nginx@sha256:1"),
            ("nginx:1.27", "nginx@sha256:1"),
            ("localhost:5000/team/app", "localhost:5000/team/app@sha256:1"),
            ("localhost:5000/team/app:v2", "localhost:5000/team/app@sha256:1"),
            ("registry.example/app:v2@sha256:0", "registry.example/app@sha256:1"),
        ] {
            assert_eq!(pinned(image, "sha256:1"), expected);
        }
    }

    #[test]
    fn secrets_are_files_and_nothing_outside_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("p/key");
        std::fs::create_dir_all(&secret).unwrap();
        for (version, text) in [("1", "old"), ("2", "newer"), ("10", "newest")] {
            std::fs::write(secret.join(version), text).unwrap();
        }
        std::fs::write(directory.path().join("outside"), "no").unwrap();
        let files = SecretFiles::new(directory.path().to_owned());
        let read = |secret, version| {
            files.read("p", secret, version).ok().map(|b| String::from_utf8(b.to_vec()).unwrap())
        };
        assert_eq!(read("key", "1").as_deref(), Some("old"));
        assert_eq!(read("key", "latest").as_deref(), Some("newest"));
        for (secret, version) in
            [("key", "3"), ("none", "1"), ("..", "outside"), ("key", "../../outside")]
        {
            assert_eq!(read(secret, version), None, "{secret}/{version}");
        }
    }
}
