//! Trees of files: copied from the host, and packed into the archive of a layer.
//!
//! Invariant: packing follows no link, and two equal trees give equal archives.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Copies a file with its permissions and its time; links are followed.
pub(crate) fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)?;
    let metadata = fs::metadata(from)?;
    // Compiled Python is only believed when it names the time of its source.
    let file = File::options().write(true).open(to);
    let file = match file {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        other => other?,
    };
    file.set_modified(metadata.modified()?)?;
    let mode = metadata.permissions().mode() & 0o777;
    fs::set_permissions(to, fs::Permissions::from_mode(mode | 0o444))
}

/// Copies a directory; `wanted` says which names go along, at every depth.
pub(crate) fn copy_tree(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        if !wanted(text) {
            continue;
        }
        let (from, to) = (entry.path(), to.join(text));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&from, &to, wanted)?;
        } else if kind.is_symlink() && fs::metadata(&from).is_ok_and(|target| target.is_dir()) {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() || from.is_file() {
            copy_file(&from, &to)?;
        }
    }
    Ok(())
}

/// Packs trees into one archive, each under its own path; everything belongs to root.
pub(crate) fn pack(trees: &[(&Path, &str)], archive: &Path) -> io::Result<()> {
    let file = io::BufWriter::with_capacity(256 * 1024, File::create(archive)?);
    let mut builder = tar::Builder::new(file);
    for (tree, inside) in trees {
        append(&mut builder, tree, Path::new(inside))?;
    }
    builder.into_inner()?.into_inner().map_err(|error| error.into_error())?.sync_all()
}

fn append<W: Write>(builder: &mut tar::Builder<W>, from: &Path, inside: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
    header.set_mtime(modified.map_or(0, |since| since.as_secs()));
    let kind = metadata.file_type();
    if kind.is_dir() {
        if inside.components().next().is_some() {
            header.set_entry_type(tar::EntryType::Directory);
            // When a directory was last written to says nothing about what is in it.
            header.set_mtime(0);
            builder.append_data(&mut header, inside, io::empty())?;
        }
        let mut names = fs::read_dir(from)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()?;
        names.sort();
        for name in names {
            append(builder, &from.join(&name), &inside.join(&name))?;
        }
    } else if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mtime(0);
        builder.append_link(&mut header, inside, fs::read_link(from)?)?;
    } else if kind.is_file() {
        header.set_size(metadata.len());
        builder.append_data(&mut header, inside, File::open(from)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_trees_give_equal_archives() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir_all(path("a/deep")).unwrap();
        fs::write(path("a/deep/one.py"), "1").unwrap();
        fs::write(path("a/left-out"), "2").unwrap();
        symlink("deep/one.py", path("a/link")).unwrap();
        copy_tree(&path("a"), &path("b"), &|name| name != "left-out").unwrap();
        copy_tree(&path("b"), &path("c"), &|_| true).unwrap();
        for tree in ["b", "c"] {
            pack(&[(&path(tree), "opt")], &path(&format!("{tree}.tar"))).unwrap();
        }
        assert!(!path("b/left-out").exists());
        assert_eq!(fs::read(path("b.tar")).unwrap(), fs::read(path("c.tar")).unwrap());
        let packed = fs::read(path("b.tar")).unwrap();
        let mut archive = tar::Archive::new(&packed[..]);
        let names = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        assert_eq!(names.collect::<Vec<_>>(), ["opt", "opt/deep", "opt/deep/one.py", "opt/link"]);
    }
}
