//! Images out of the store again, in the form of `docker save`.
//!
//! Another runtime on this machine gets an image from us rather than from its registry: it is the
//! one that was pinned, and it may never have been in a registry.
//!
//! Invariant: what is written is what was unpacked, deletions included, in an order of its own, so
//! digests of layers differ from the registry's.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use super::overlay::covers;
use super::unpack::{DELETED_PREFIX, OPAQUE_NAME, hex};

/// Writes an archive with one image, called `name`, into `target`; `scratch` is an empty directory.
pub(crate) fn docker_archive(
    layers: &[PathBuf],
    name: &str,
    scratch: &Path,
    target: File,
) -> io::Result<()> {
    let mut archive = Builder::new(io::BufWriter::new(target));
    let (mut digests, mut paths) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let path = format!("{number}/layer.tar");
        let mut file =
            File::options().create_new(true).read(true).write(true).open(scratch.join("layer"))?;
        digests.push(write_layer(layer, &mut file)?);
        fs::remove_file(scratch.join("layer"))?;
        file.rewind()?;
        let mut header = plain_header(file.metadata()?.len());
        archive.append_data(&mut header, &path, &mut file)?;
        paths.push(path);
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": digests },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": paths }]);
    for (path, document) in [("config.json", config), ("manifest.json", manifest)] {
        let bytes = document.to_string().into_bytes();
        archive.append_data(&mut plain_header(bytes.len() as u64), path, &bytes[..])?;
    }
    archive.into_inner()?.flush()
}

fn plain_header(size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

/// One layer as an archive; answers with its digest.
fn write_layer(layer: &Path, target: &mut File) -> io::Result<String> {
    let mut digesting = Digesting { inner: io::BufWriter::new(target), digest: Sha256::new() };
    let mut writer = Layer { archive: Builder::new(&mut digesting), linked: HashMap::new() };
    writer.directory(layer, Path::new(""))?;
    writer.archive.finish()?;
    drop(writer);
    digesting.flush()?;
    Ok(format!("sha256:{}", hex(&digesting.digest.finalize())))
}

struct Digesting<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digest.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Layer<W: Write> {
    archive: Builder<W>,
    /// First path of every file that has several.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Layer<W> {
    fn directory(&mut self, directory: &Path, path: &Path) -> io::Result<()> {
        if covers(directory) {
            let name = std::ffi::OsStr::from_bytes(OPAQUE_NAME);
            self.archive.append_data(&mut plain_header(0), path.join(name), io::empty())?;
        }
        let mut entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let inside = path.join(entry.file_name());
            let metadata = fs::symlink_metadata(entry.path())?;
            self.entry(&entry.path(), &inside, &metadata)?;
            if metadata.is_dir() {
                self.directory(&entry.path(), &inside)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, file: &Path, path: &Path, metadata: &Metadata) -> io::Result<()> {
        let kind = metadata.file_type();
        if kind.is_char_device() {
            let mut name = DELETED_PREFIX.to_vec();
            name.extend_from_slice(path.file_name().unwrap_or_default().as_bytes());
            let path = path.with_file_name(std::ffi::OsStr::from_bytes(&name));
            return self.archive.append_data(&mut plain_header(0), path, io::empty());
        }
        let mut header = Header::new_gnu();
        header.set_metadata(metadata);
        if kind.is_symlink() {
            header.set_size(0);
            return self.archive.append_link(&mut header, path, fs::read_link(file)?);
        }
        if !kind.is_file() {
            header.set_size(0);
            return self.archive.append_data(&mut header, path, io::empty());
        }
        let identity = (metadata.dev(), metadata.ino());
        if let Some(first) = self.linked.get(&identity) {
            header.set_entry_type(EntryType::Link);
            header.set_size(0);
            let first = first.clone();
            return self.archive.append_link(&mut header, path, first);
        }
        if metadata.nlink() > 1 {
            self.linked.insert(identity, path.to_owned());
        }
        self.archive.append_data(&mut header, path, File::open(file)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::unpack::unpack_layer;

    #[test]
    fn a_layer_comes_back_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        fs::create_dir_all(first.join("a/b")).unwrap();
        fs::create_dir(&second).unwrap();
        fs::write(first.join("a/one"), "1").unwrap();
        fs::hard_link(first.join("a/one"), first.join("a/b/same")).unwrap();
        std::os::unix::fs::symlink("one", first.join("a/link")).unwrap();
        let hidden = nix::unistd::geteuid().is_root();
        if hidden {
            super::super::overlay::cover(&first.join("a/b")).unwrap();
            nix::sys::stat::mknod(
                &first.join("a/gone"),
                nix::sys::stat::SFlag::S_IFCHR,
                nix::sys::stat::Mode::empty(),
                0,
            )
            .unwrap();
        } else {
            eprintln!("SKIPPED in part: making overlay deletions needs root");
        }
        let path = directory.path().join("layer.tar");
        let mut file = File::options().create(true).truncate(true).write(true).open(&path).unwrap();
        let digest = write_layer(&first, &mut file).unwrap();
        let found = unpack_layer(File::open(&path).unwrap(), &second).unwrap();
        assert_eq!(found, digest);
        assert_eq!(fs::read_to_string(second.join("a/link")).unwrap(), "1");
        assert_eq!(fs::metadata(second.join("a/b/same")).unwrap().nlink(), 2);
        assert_eq!(covers(&second.join("a/b")), hidden);
        assert_eq!(second.join("a/gone").symlink_metadata().is_ok(), hidden);
    }
}
