//! The repository's own text files, as a sorted list of paths and contents.
//!
//! Invariant: paths are relative to the repository's root, with `/` between segments, and in order.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold no source of ours.
const SKIPPED: [&str; 6] = [".git", "target", "node_modules", "corpus", "artifacts", "out"];

/// The largest file that is read as source; larger ones are data.
const SOURCE_BYTES_MAX: u64 = 2 << 20;

/// One text file.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it is, from the root.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// The root of the repository this crate is in.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").components().collect()
}

/// Every text file below `root`, in order of path.
pub fn files(root: &Path) -> Vec<File> {
    let mut found = Vec::new();
    walk(root, "", &mut found);
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<File>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{prefix}{name}");
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                walk(&entry.path(), &format!("{path}/"), found);
            }
        } else if kind.is_file()
            && entry.metadata().is_ok_and(|meta| meta.len() <= SOURCE_BYTES_MAX)
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            found.push(File { path, text });
        }
    }
}
