//! What a layer was when it was unpacked, so that damage done to it later is noticed.
//!
//! A line for each file: its path, its shape (kind, permissions, size, time or target) and the digest
//! of its contents. Shapes are compared often, since that reads no file; contents when an instance
//! did not start.
//!
//! Invariant: two listings of one untouched directory are equal.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::overlay::covers;
use super::unpack::hex;

const READ_BYTES: usize = 64 * 1024;
/// Stands for contents that were not looked at.
const NOT_READ: &str = "-";

/// How closely a layer is compared with its listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Which files there are, with their sizes and times.
    Shapes,
    /// What is in them, too.
    Contents,
}

/// The files of a directory, by their paths.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    files: BTreeMap<String, (String, String)>,
}

impl Listing {
    /// Looks at a directory.
    pub(crate) fn of(directory: &Path, look: Look) -> io::Result<Listing> {
        let mut files = BTreeMap::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(below) = todo.pop() {
            for entry in fs::read_dir(directory.join(&below))? {
                let name = below.join(entry?.file_name());
                let path = directory.join(&name);
                let metadata = fs::symlink_metadata(&path)?;
                let contents = match look {
                    Look::Contents if metadata.is_file() => contents(&path)?,
                    _ => NOT_READ.to_owned(),
                };
                let key = name.as_os_str().as_bytes().escape_ascii().to_string();
                files.insert(key, (shape(&path, &metadata)?, contents));
                if metadata.is_dir() {
                    todo.push(name);
                }
            }
        }
        Ok(Listing { files })
    }

    /// The first path at which a later listing differs.
    pub(crate) fn difference<'a>(&'a self, later: &'a Listing) -> Option<&'a str> {
        let differs = |path: &&String| {
            let (before, after) = (self.files.get(*path), later.files.get(*path));
            let same = before.zip(after).is_some_and(|(before, after)| {
                let was_read = before.1 != NOT_READ && after.1 != NOT_READ;
                before.0 == after.0 && (!was_read || before.1 == after.1)
            });
            !same
        };
        let mut paths = self.files.keys().chain(later.files.keys());
        paths.find(differs).map(String::as_str)
    }

    pub(crate) fn write(&self, target: &mut File) -> io::Result<()> {
        let mut target = io::BufWriter::new(target);
        for (path, (shape, contents)) in &self.files {
            writeln!(target, "{path}\t{shape}\t{contents}")?;
        }
        // Without its end it was cut.
        writeln!(target, "{}", self.files.len())?;
        target.flush()
    }

    /// What `write` wrote; none when that cannot be read any more.
    pub(crate) fn read(path: &Path) -> Option<Listing> {
        let text = fs::read_to_string(path).ok()?;
        let (lines, end) = text.strip_suffix('\n')?.rsplit_once('\n').unwrap_or(("", text.trim()));
        let mut files = BTreeMap::new();
        for line in lines.lines() {
            let mut fields = line.split('\t').map(str::to_owned);
            let (path, shape, contents) = (fields.next()?, fields.next()?, fields.next()?);
            files.insert(path, (shape, contents));
        }
        (end.parse() == Ok(files.len())).then_some(Listing { files })
    }
}

fn shape(path: &Path, metadata: &Metadata) -> io::Result<String> {
    let kind = metadata.file_type();
    let mode = metadata.permissions().mode() & 0o7777;
    Ok(if kind.is_symlink() {
        format!("link {}", fs::read_link(path)?.as_os_str().as_bytes().escape_ascii())
    } else if kind.is_dir() {
        format!("directory {mode:o} {}", if covers(path) { "covers" } else { "" })
    } else if kind.is_file() {
        format!("file {mode:o} {} {}", metadata.len(), metadata.mtime())
    } else if kind.is_char_device() {
        format!("device {}", metadata.rdev())
    } else {
        format!("other {mode:o}")
    })
}

fn contents(path: &Path) -> io::Result<String> {
    let mut file = match File::open(path) {
        // Somebody else's in a user namespace, and then still there for those who may read it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(NOT_READ.to_owned());
        }
        other => other?,
    };
    let mut digest = Sha256::new();
    let mut bytes = [0; READ_BYTES];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hex(&digest.finalize())),
            count => digest.update(&bytes[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// What differs after `change` was done to a layer.
    fn check(look: Look, change: impl FnOnce(&Path), expected: Option<&str>) {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        fs::create_dir_all(layer.join("bin")).unwrap();
        fs::write(layer.join("bin/run"), "program").unwrap();
        fs::write(layer.join("bin/a\tb\n"), "").unwrap();
        symlink("run", layer.join("bin/again")).unwrap();
        let list = directory.path().join("list");
        let before = Listing::of(&layer, Look::Contents).unwrap();
        before.write(&mut File::create(&list).unwrap()).unwrap();
        assert_eq!(Listing::read(&list), Some(before));
        change(&layer);
        let before = Listing::read(&list).unwrap();
        let after = Listing::of(&layer, look).unwrap();
        assert_eq!(before.difference(&after), expected);
    }

    fn keep_time(path: &Path, text: &str) {
        let time = fs::metadata(path).unwrap().modified().unwrap();
        fs::write(path, text).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn what_is_cut_missing_or_foreign_is_found_by_its_shape() {
        check(Look::Shapes, |_| {}, None);
        check(Look::Shapes, |layer| keep_time(&layer.join("bin/run"), "pro"), Some("bin/run"));
        check(
            Look::Shapes,
            |layer| fs::remove_file(layer.join("bin/run")).unwrap(),
            Some("bin/run"),
        );
        check(Look::Shapes, |layer| fs::write(layer.join("new"), "").unwrap(), Some("new"));
        let cut = |layer: &Path| fs::remove_dir_all(layer.join("bin")).unwrap();
        check(Look::Shapes, cut, Some("bin"));
    }

    #[test]
    fn garbage_of_the_same_size_and_time_is_found_by_its_contents() {
        let garbage = |layer: &Path| keep_time(&layer.join("bin/run"), "garbage");
        check(Look::Shapes, garbage, None);
        check(Look::Contents, garbage, Some("bin/run"));
    }

    #[test]
    fn a_listing_that_was_cut_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        for text in ["", "a\tfile\t-\n", "a\tfile\t-\n2\n", "a\t1\n"] {
            fs::write(&path, text).unwrap();
            assert_eq!(Listing::read(&path), None, "{text:?}");
        }
        fs::write(&path, "0\n").unwrap();
        assert!(Listing::read(&path).is_some());
    }
}
