//! One layer out of its archive: files, links, permissions, and what it deletes from below.
//!
//! Every path is resolved inside the layer's own directory, links included, by the kernel where it
//! can and step by step where it cannot, so no archive reaches a file outside. Deletions are
//! written as overlayfs wants them. Device nodes are left out (containers are mounted without
//! devices), and so are extended attributes (file capabilities mean nothing without new privileges).
//!
//! Invariant: an error leaves a directory that is thrown away by the caller, never a layer.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, mkfifoat, symlinkat, unlinkat};
use pathrs::{InodeType, Root};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType, Header};

use super::limits::{LAYER_ENTRIES_MAX, LAYER_UNPACKED_BYTES_MAX};
use super::overlay::cover;

/// In an archive this prefix deletes what follows it from the layers below.
pub(crate) const DELETED_PREFIX: &[u8] = b".wh.";
/// In an archive this name hides everything the layers below have in its directory.
pub(crate) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// As the kernel has it.
const LINKS_FOLLOWED_MAX: usize = 40;
const PERMISSION_BITS: u32 = 0o7777;
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Unpacks a layer into an empty directory; answers with the digest of its uncompressed archive.
pub(crate) fn unpack_layer(archive: impl Read, directory: &Path) -> io::Result<String> {
    let mut counted = Hashing { inner: decompress(archive)?, digest: Sha256::new(), bytes: 0 };
    let root = Root::open(directory).map_err(from_pathrs)?;
    let mut unpacker = Unpacker { root, parent: None, directories: Vec::new() };
    let mut tar = Archive::new(&mut counted);
    for (number, entry) in tar.entries()?.enumerate() {
        if number >= LAYER_ENTRIES_MAX {
            return Err(invalid("a layer with too many files"));
        }
        unpacker.unpack(&mut entry?)?;
    }
    unpacker.finish()?;
    // What follows the end of the archive belongs to its digest, too.
    io::copy(&mut counted, &mut io::sink())?;
    Ok(format!("sha256:{}", hex(&counted.digest.finalize())))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The archive itself, whatever it is compressed with: media types are often wrong, the first
/// bytes are not.
pub(crate) fn decompress<'a>(mut archive: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = [0; 4];
    let mut count = 0;
    while count < start.len() {
        match archive.read(&mut start[count..])? {
            0 => break,
            read => count += read,
        }
    }
    let start = start[..count].to_vec();
    let kind = start.clone();
    let whole = io::Cursor::new(start).chain(archive);
    if kind.starts_with(GZIP_MAGIC) {
        Ok(Box::new(flate2::read::MultiGzDecoder::new(whole)))
    } else if kind == ZSTD_MAGIC {
        Ok(Box::new(zstd::stream::read::Decoder::new(whole)?))
    } else {
        Ok(Box::new(whole))
    }
}

/// Counts and digests what is read through it.
struct Hashing<R> {
    inner: R,
    digest: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.bytes += count as u64;
        if self.bytes > LAYER_UNPACKED_BYTES_MAX {
            return Err(invalid("a layer that is too large"));
        }
        Ok(count)
    }
}

struct Unpacker {
    root: Root,
    /// The directory the last plain file went to, since most files have neighbours.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of directories, set when nothing is put into them any more.
    directories: Vec<(PathBuf, i64)>,
}

impl Unpacker {
    fn unpack<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> io::Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = relative(&entry.path()?)?;
        let Some(name) = path.file_name().map(|name| name.to_owned()) else {
            return self.set_root(entry.header());
        };
        if kind != EntryType::Regular {
            // Links and directories can change where a path leads.
            self.parent = None;
        }
        let parent = self.parent_of(&path)?;
        let name_bytes = name.as_bytes();
        if name_bytes == OPAQUE_NAME {
            return make_opaque(&parent);
        }
        if let Some(deleted) = name_bytes.strip_prefix(DELETED_PREFIX) {
            return delete_below(&parent, deleted);
        }
        let name = Path::new(&name);
        match kind {
            EntryType::Directory => self.directory(&parent, name, &path, entry.header()),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                file(&parent, name, entry)
            }
            EntryType::Link => self.hard_link(&parent, name, &path, entry),
            EntryType::Symlink => symbolic_link(&parent, name, entry),
            EntryType::Fifo => {
                clear(&parent, name)?;
                mkfifoat(&parent, name, Mode::from_bits_truncate(0o600))?;
                own_named(&parent, name, entry.header())?;
                let mode = Mode::from_bits_truncate(permissions(entry.header())?);
                Ok(fchmodat(&parent, name, mode, FchmodatFlags::FollowSymlink)?)
            }
            EntryType::Char | EntryType::Block => Ok(()),
            _ => Err(invalid("a layer with an unknown kind of file")),
        }
    }

    fn parent_of(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let directory = path.parent().unwrap_or(Path::new(""));
        if let Some((known, handle)) = &self.parent
            && known == directory
        {
            return handle.try_clone();
        }
        let wanted = Path::new("/").join(directory);
        let readable = Permissions::from_mode(0o755);
        let handle = match self.root.mkdir_all(&wanted, &readable) {
            Ok(handle) => handle,
            // A link on the way leads to a directory that is not there yet.
            Err(_) => {
                let led_to = self.follow_links(&wanted)?;
                self.root.mkdir_all(led_to, &readable).map_err(from_pathrs)?
            }
        };
        let handle = OwnedFd::from(handle);
        self.parent = Some((directory.to_owned(), handle.try_clone()?));
        Ok(handle)
    }

    /// The path with every link on it followed, inside the layer, whether or not the end exists.
    fn follow_links(&self, path: &Path) -> io::Result<PathBuf> {
        let mut left: Vec<std::ffi::OsString> = names_backwards(path);
        let mut at = PathBuf::from("/");
        let mut followed = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            match self.root.readlink(&next) {
                Ok(target) => {
                    followed += 1;
                    if followed > LINKS_FOLLOWED_MAX {
                        return Err(invalid("links that lead in a circle"));
                    }
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    }
                    left.extend(names_backwards(&target));
                }
                // Not a link, or not there.
                Err(_) => at = next,
            }
        }
        Ok(at)
    }

    fn directory(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        path: &Path,
        header: &Header,
    ) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(permissions(header)?);
        match mkdirat(parent, name, mode) {
            Ok(()) => {}
            Err(Errno::EEXIST) if open_directory(parent, name).is_ok() => {}
            Err(Errno::EEXIST) => {
                clear(parent, name)?;
                mkdirat(parent, name, mode)?;
            }
            Err(error) => return Err(error.into()),
        }
        let directory = open_directory(parent, name)?;
        own(&directory, header)?;
        fchmod(&directory, mode)?;
        self.directories.push((path.to_owned(), modified(header)));
        Ok(())
    }

    fn set_root(&mut self, header: &Header) -> io::Result<()> {
        let root = self.root.resolve("/").map_err(from_pathrs)?;
        let root = root.reopen(pathrs::flags::OpenFlags::O_DIRECTORY).map_err(from_pathrs)?;
        own(&root, header)?;
        Ok(fchmod(&root, Mode::from_bits_truncate(permissions(header)?))?)
    }

    fn hard_link<R: Read>(
        &self,
        parent: &OwnedFd,
        name: &Path,
        path: &Path,
        entry: &Entry<'_, R>,
    ) -> io::Result<()> {
        let target = entry.link_name()?.ok_or_else(|| invalid("a hard link to nothing"))?;
        let target = relative(&target)?;
        if target == path {
            return Ok(());
        }
        clear(parent, name)?;
        let link = InodeType::Hardlink(Path::new("/").join(target));
        self.root.create(Path::new("/").join(path), &link).map_err(from_pathrs)
    }

    fn finish(&self) -> io::Result<()> {
        for (path, time) in self.directories.iter().rev() {
            // A directory that was replaced later in the archive has no time to set.
            if let Ok(handle) = self.root.resolve_nofollow(Path::new("/").join(path)) {
                set_times(
                    Path::new(&format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())),
                    *time,
                );
            }
        }
        Ok(())
    }
}

/// The path of an entry: relative, without steps upwards.
fn relative(path: &Path) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(invalid("a path that leads out of the layer"));
            }
        }
    }
    Ok(plain)
}

/// The names of a path, the last first, with steps upwards and without anything else.
fn names_backwards(path: &Path) -> Vec<std::ffi::OsString> {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    names.collect()
}

fn open_directory(parent: &OwnedFd, name: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn file<R: Read>(parent: &OwnedFd, name: &Path, entry: &mut Entry<'_, R>) -> io::Result<()> {
    let flags =
        OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let private = Mode::from_bits_truncate(0o600);
    let made = match openat(parent, name, flags, private) {
        Err(Errno::EEXIST) => {
            clear(parent, name)?;
            openat(parent, name, flags, private)
        }
        other => other,
    };
    let mut file = File::from(made?);
    io::copy(entry, &mut file)?;
    own(&file, entry.header())?;
    // After the owner: changing it clears the set-user-id bit.
    fchmod(&file, Mode::from_bits_truncate(permissions(entry.header())?))?;
    let time = TimeSpec::new(modified(entry.header()), 0);
    Ok(nix::sys::stat::futimens(&file, &time, &time)?)
}

fn symbolic_link<R: Read>(parent: &OwnedFd, name: &Path, entry: &Entry<'_, R>) -> io::Result<()> {
    let target = entry.link_name()?.ok_or_else(|| invalid("a link to nothing"))?;
    clear(parent, name)?;
    symlinkat(target.as_ref(), parent, name)?;
    own_named(parent, name, entry.header())
}

/// A character device 0/0 is how overlayfs writes a deletion down.
fn delete_below(parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err(invalid("a deletion of nothing"));
    }
    let name = Path::new(std::ffi::OsStr::from_bytes(name));
    match mknodat(parent, name, SFlag::S_IFCHR, Mode::empty(), 0) {
        // The same layer brings the path anew: then there is nothing below to be seen anyway.
        Err(Errno::EEXIST) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn make_opaque(directory: &OwnedFd) -> io::Result<()> {
    // The handle only names the directory; attributes want a path.
    cover(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())))
}

/// Later entries of an archive replace earlier ones.
fn clear(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn own(file: &impl AsFd, header: &Header) -> io::Result<()> {
    let (user, group) = owner(header)?;
    tolerate(fchown(file.as_fd(), Some(user), Some(group)))
}

fn own_named(parent: &OwnedFd, name: &Path, header: &Header) -> io::Result<()> {
    let (user, group) = owner(header)?;
    tolerate(fchownat(parent, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW))
}

/// Without root, or with few users mapped, files belong to whoever unpacks them.
fn tolerate(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::EPERM | Errno::EINVAL) => Ok(()),
        other => Ok(other?),
    }
}

fn owner(header: &Header) -> io::Result<(Uid, Gid)> {
    // A field that was left blank is root's, as other programs read it.
    let blank = |field: &[u8; 8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
    let number = |value: u64| u32::try_from(value).map_err(|_| invalid("an owner out of range"));
    let old = header.as_old();
    let user = if blank(&old.uid) { 0 } else { number(header.uid()?)? };
    let group = if blank(&old.gid) { 0 } else { number(header.gid()?)? };
    Ok((Uid::from_raw(user), Gid::from_raw(group)))
}

fn permissions(header: &Header) -> io::Result<u32> {
    Ok(header.mode()? & PERMISSION_BITS)
}

fn modified(header: &Header) -> i64 {
    i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0)
}

fn set_times(path: &Path, seconds: i64) {
    let time = TimeSpec::new(seconds, 0);
    // Times are a courtesy.
    let _ = utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::FollowSymlink);
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn from_pathrs(error: pathrs::error::Error) -> io::Error {
    io::Error::other(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    enum Item<'a> {
        File(&'a str, &'a str, u32),
        Directory(&'a str, u32),
        Link(&'a str, &'a str),
        HardLink(&'a str, &'a str),
    }
    use Item::{Directory, File as Plain, HardLink, Link};

    fn archive(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for item in items {
            let mut header = Header::new_gnu();
            header.set_size(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_000);
            let (path, kind, mode, data, target) = match item {
                Plain(path, data, mode) => (path, EntryType::Regular, *mode, *data, None),
                Directory(path, mode) => (path, EntryType::Directory, *mode, "", None),
                Link(path, target) => (path, EntryType::Symlink, 0o777, "", Some(target)),
                HardLink(path, target) => (path, EntryType::Link, 0o644, "", Some(target)),
            };
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(data.len() as u64);
            // Written by hand: the library refuses the hostile names these tests are about.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            if let Some(target) = target {
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, data.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(items: &[Item<'_>]) -> (tempfile::TempDir, io::Result<String>) {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        fs::create_dir(&layer).unwrap();
        let result = unpack_layer(&archive(items)[..], &layer);
        (directory, result)
    }

    #[test]
    fn files_links_and_permissions_come_out_as_they_went_in() {
        let (directory, result) = unpacked(&[
            Directory("bin/", 0o755),
            Plain("bin/run", "one", 0o4755),
            Plain("deep/er/file", "two", 0o600),
            Link("bin/again", "run"),
            HardLink("bin/same", "bin/run"),
            Plain("bin/run2", "old", 0o644),
            Plain("bin/run2", "new", 0o644),
        ]);
        result.unwrap();
        let layer = directory.path().join("layer");
        let run = fs::metadata(layer.join("bin/run")).unwrap();
        assert_eq!(run.mode() & 0o7777, 0o4755);
        assert_eq!(run.nlink(), 2);
        assert_eq!(run.mtime(), 1_000);
        assert_eq!(fs::read_to_string(layer.join("bin/again")).unwrap(), "one");
        assert_eq!(fs::read_to_string(layer.join("deep/er/file")).unwrap(), "two");
        assert_eq!(fs::read_to_string(layer.join("bin/run2")).unwrap(), "new");
    }

    #[test]
    fn nothing_is_written_outside_the_layer() {
        let cases: [&[Item<'_>]; 5] = [
            &[Plain("../escaped", "x", 0o644)],
            &[Plain("a/../../escaped", "x", 0o644)],
            &[Link("out", ".."), Plain("out/escaped", "x", 0o644)],
            &[Link("out", "/"), Plain("out/escaped", "x", 0o644)],
            &[HardLink("in", "../outside")],
        ];
        for (number, items) in cases.into_iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let layer = directory.path().join("layer");
            fs::create_dir(&layer).unwrap();
            fs::write(directory.path().join("outside"), "untouched").unwrap();
            // Refused or redirected inside; either is fine as long as it stays inside.
            let _ = unpack_layer(&archive(items)[..], &layer);
            assert!(!directory.path().join("escaped").exists(), "case {number}");
            assert!(!Path::new("/escaped").exists(), "case {number}");
            let outside = fs::metadata(directory.path().join("outside")).unwrap();
            assert_eq!(outside.nlink(), 1, "case {number}");
        }
    }

    #[test]
    fn a_link_that_leads_out_is_followed_inside_the_layer() {
        let (directory, result) =
            unpacked(&[Link("lib", "/usr/lib"), Plain("lib/file", "x", 0o644)]);
        result.unwrap();
        assert!(directory.path().join("layer/usr/lib/file").is_file());
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let (_directory, result) =
            unpacked(&[Link("a", "b/x"), Link("b", "a/y"), Plain("a/file", "x", 0o644)]);
        assert!(result.is_err());
    }

    #[test]
    fn deletions_are_written_as_overlayfs_reads_them() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: making overlay deletions needs root");
            return;
        }
        let (directory, result) = unpacked(&[
            Plain("etc/.wh.gone", "", 0o644),
            Plain("var/.wh..wh..opq", "", 0o644),
            Plain("var/kept", "x", 0o644),
        ]);
        result.unwrap();
        let layer = directory.path().join("layer");
        let gone = fs::metadata(layer.join("etc/gone")).unwrap();
        assert!(gone.file_type().is_char_device());
        assert_eq!(gone.rdev(), 0);
        assert!(!layer.join("var/.wh..wh..opq").exists());
        assert!(layer.join("var/kept").exists());
    }

    #[test]
    fn the_digest_is_that_of_the_uncompressed_archive_however_it_was_compressed() {
        let plain = archive(&[Plain("a", "b", 0o644)]);
        let expected = format!("sha256:{}", hex(&Sha256::digest(&plain)));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &plain).unwrap();
        let zstd = zstd::stream::encode_all(&plain[..], 1).unwrap();
        for compressed in [plain.clone(), gzip.finish().unwrap(), zstd] {
            let directory = tempfile::tempdir().unwrap();
            let digest = unpack_layer(&compressed[..], directory.path()).unwrap();
            assert_eq!(digest, expected);
            assert!(directory.path().join("a").is_file());
        }
    }

    #[test]
    fn an_archive_cut_short_is_an_error() {
        let plain = archive(&[Plain("a", &"b".repeat(2_000), 0o644)]);
        let directory = tempfile::tempdir().unwrap();
        assert!(unpack_layer(&plain[..1_000], directory.path()).is_err());
    }
}
