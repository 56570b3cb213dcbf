//! Secrets on disk: made once, whole or not at all, readable by their owner only.
//!
//! Invariant: a name in the folder is either absent or holds a complete secret, because the bytes
//! are on disk under another name before the name exists.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The largest file the door reads back, in bytes.
pub(super) const PRIVATE_FILE_BYTES_MAX: u64 = 1024 * 1024;

const OWNER_ONLY: u32 = 0o600;
const EVERYBODY_READS: u32 = 0o644;

/// A secret that could not be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("could not keep `{path}`")]
pub struct PrivateFileError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the folder if it is absent, for its owner only.
pub(crate) fn make_folder(folder: &Path) -> Result<(), PrivateFileError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| PrivateFileError { path: folder.to_owned(), source })
}

/// The secret of that name, made by `make` when there is none yet.
pub(crate) fn remembered(
    path: &Path,
    make: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Vec<u8>, PrivateFileError> {
    let read_or_make = || match read(path)? {
        Some(bytes) => Ok(bytes),
        None => {
            let bytes = make()?;
            replace(path, &bytes, OWNER_ONLY)?;
            Ok(bytes)
        }
    };
    read_or_make().map_err(|source| PrivateFileError { path: path.to_owned(), source })
}

/// Writes a file that anyone on the machine may read, such as a certificate.
pub(super) fn publish(path: &Path, bytes: &[u8]) -> Result<(), PrivateFileError> {
    let unchanged = || Ok(read(path)?.is_some_and(|present| present == bytes));
    unchanged()
        .and_then(|unchanged: bool| match unchanged {
            true => Ok(()),
            false => replace(path, bytes, EVERYBODY_READS),
        })
        .map_err(|source| PrivateFileError { path: path.to_owned(), source })
}

/// The file's bytes; `None` when it does not exist.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(PRIVATE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > PRIVATE_FILE_BYTES_MAX {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is too large")),
        false => Ok(Some(bytes)),
    }
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".making");
    let making = folder.join(name);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&making)?;
    // A file left by an interrupted start keeps its old mode when it is opened again.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&making, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("deep");
        make_folder(&path).expect("made");
        let path = path.join("secret");
        let first = remembered(&path, || Ok(b"one".to_vec())).expect("made");
        let second = remembered(&path, || Ok(b"two".to_vec())).expect("read");
        assert_eq!((first.as_slice(), second.as_slice()), (&b"one"[..], &b"one"[..]));
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
    }
}
