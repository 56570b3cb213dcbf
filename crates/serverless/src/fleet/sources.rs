//! What the fleet asks others for before an instance can start: images and secrets.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::images::ResolvedImage;
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
