//! What was uploaded, unpacked: a zip, as gcloud makes one, or a tar, packed by gzip or not.
//!
//! Invariant: nothing is written outside the directory, and no more than the limits allow.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::BuildError;
use super::limits::{SOURCE_BYTES_MAX, SOURCE_ENTRIES_MAX};

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZIP: [u8; 2] = *b"PK";

/// Unpacks an archive into an empty directory.
pub(crate) fn unpack(archive: &Path, into: &Path) -> Result<(), BuildError> {
    let failed = |error: io::Error| BuildError::Source(error.to_string());
    let mut file = BufReader::new(File::open(archive).map_err(failed)?);
    let mut head = [0; 2];
    file.read_exact(&mut head).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let unpacked = match head {
        ZIP => from_zip(file, into),
        GZIP => from_tar(MultiGzDecoder::new(file), into),
        _ => from_tar(file, into),
    };
    unpacked.map_err(failed)
}

/// Counts what was unpacked and refuses what is too much.
#[derive(Default)]
struct Room {
    entries: usize,
    bytes: u64,
}

impl Room {
    fn enter(&mut self) -> io::Result<()> {
        self.entries += 1;
        match self.entries > SOURCE_ENTRIES_MAX {
            true => Err(invalid(format!("it has more than {SOURCE_ENTRIES_MAX} files"))),
            false => Ok(()),
        }
    }

    fn write(&mut self, from: impl Read, path: &Path, executable: bool) -> io::Result<()> {
        let mode = if executable { 0o755 } else { 0o644 };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(path)?;
        let left = SOURCE_BYTES_MAX - self.bytes;
        // What an archive says about the size of a file is not believed.
        let copied = io::copy(&mut from.take(left + 1), &mut file)?;
        if copied > left {
            return Err(invalid(format!("it has more than {SOURCE_BYTES_MAX} bytes")));
        }
        self.bytes += copied;
        file.set_permissions(fs::Permissions::from_mode(mode))
    }
}

fn from_zip(file: BufReader<File>, into: &Path) -> io::Result<()> {
    let mut archive = zip::ZipArchive::new(file).map_err(|error| invalid(error.to_string()))?;
    let mut room = Room::default();
    for index in 0..archive.len() {
        room.enter()?;
        let entry = archive.by_index(index).map_err(|error| invalid(error.to_string()))?;
        let name = entry.name().map_err(|error| invalid(error.to_string()))?.into_owned();
        let path = inside(into, Path::new(&name))?;
        if entry.is_dir() {
            fs::create_dir_all(&path)?;
        } else if entry.is_symlink() {
            return Err(invalid(format!("`{name}` is a link, which a source cannot have")));
        } else {
            let executable = entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
            room.write(entry, &path, executable)?;
        }
    }
    Ok(())
}

fn from_tar(reader: impl Read, into: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    let mut room = Room::default();
    for entry in archive.entries()? {
        room.enter()?;
        let entry = entry?;
        let name = entry.path()?.into_owned();
        let path = inside(into, &name)?;
        let header = entry.header();
        let executable = header.mode().is_ok_and(|mode| mode & 0o100 != 0);
        match header.entry_type() {
            tar::EntryType::Directory => fs::create_dir_all(&path)?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                room.write(entry, &path, executable)?;
            }
            tar::EntryType::XGlobalHeader => {}
            _ => {
                let name = name.display();
                return Err(invalid(format!("`{name}` is a link, which a source cannot have")));
            }
        }
    }
    Ok(())
}

/// The path of an entry, which must stay inside.
fn inside(directory: &Path, name: &Path) -> io::Result<PathBuf> {
    let mut path = directory.to_owned();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            _ => return Err(invalid(format!("`{}` leads out of it", name.display()))),
        }
    }
    Ok(path)
}

fn invalid(sentence: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn zipped(names: &[&str]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for name in names {
            let options = zip::write::SimpleFileOptions::default();
            writer.start_file(*name, options).unwrap();
            writer.write_all(name.as_bytes()).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn tarred(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(name.len() as u64);
            header.set_mode(0o644);
            // The crate itself refuses to write such names.
            let bytes = name.as_bytes();
            header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
            header.set_cksum();
            builder.append(&header, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(archive: &[u8]) -> String {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("source");
        fs::write(&file, archive).unwrap();
        let into = directory.path().join("into");
        fs::create_dir(&into).unwrap();
        match unpack(&file, &into) {
            Ok(()) => fs::read_to_string(into.join("lib/a.js")).unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn zips_and_tars_are_unpacked_and_stay_inside() {
        for archive in [zipped(&["main.js", "lib/a.js"]), tarred(&["./main.js", "lib/a.js"])] {
            assert_eq!(unpacked(&archive), "lib/a.js");
        }
        for name in ["../a.js", "/etc/a.js", "lib/../../a.js"] {
            for archive in [zipped(&[name]), tarred(&[name])] {
                let told = unpacked(&archive);
                assert!(told.contains("leads out of it"), "{name}: {told}");
            }
        }
        assert!(unpacked(b"PK is not a zip").contains("cannot be used"));
    }
}
