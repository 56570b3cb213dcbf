//! Golden files: each one is read by a test, and pairs are whole.

use crate::tree::File;
use std::collections::BTreeSet;

/// Files under a `tests` folder that no Rust source of the same crate reads, and halves of pairs.
///
/// A golden file is read when its own name or the name of a folder above it (below `tests`) stands in a
/// Rust file of its crate. Of a pair `NAME.in.EXT`, `NAME.out.EXT` both halves exist.
pub fn complaints(files: &[File]) -> Vec<String> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let mut complaints = Vec::new();
    for file in files {
        let Some((package, inside)) = split_at_tests(&file.path) else { continue };
        if file.path.ends_with(".rs") {
            continue;
        }
        let mut names = inside.split('/');
        let is_read = names.any(|name| is_named_in_source(files, package, name));
        if !is_read {
            complaints.push(format!("{}: no test reads it", file.path));
        }
        if let Some(twin) = twin(&file.path)
            && !has_prefix(&paths, &twin)
        {
            complaints.push(format!("{}: its other half is missing", file.path));
        }
    }
    complaints
}

fn split_at_tests(path: &str) -> Option<(&str, &str)> {
    let at = path.find("/tests/")?;
    Some((&path[..at], &path[at + "/tests/".len()..]))
}

fn is_named_in_source(files: &[File], package: &str, name: &str) -> bool {
    files.iter().any(|file| {
        file.path.starts_with(package) && file.path.ends_with(".rs") && file.text.contains(name)
    })
}

/// The other half of a pair, without its extension.
fn twin(path: &str) -> Option<String> {
    let (folder, name) = path.rsplit_once('/')?;
    let (stem, half) = match (name.find(".in."), name.find(".out.")) {
        (Some(at), _) => (&name[..at], ".out."),
        (None, Some(at)) => (&name[..at], ".in."),
        (None, None) => return None,
    };
    Some(format!("{folder}/{stem}{half}"))
}

fn has_prefix(paths: &BTreeSet<&str>, prefix: &str) -> bool {
    paths.range(prefix..).next().is_some_and(|path| path.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_folder_that_a_test_walks_covers_its_files() {
        let files = [
            file("crates/api/tests/worlds.rs", "read_dir(\"worlds\")"),
            file("crates/api/tests/worlds/mask.in.json", ""),
            file("crates/api/tests/worlds/mask.out.txt", ""),
        ];
        assert_eq!(complaints(&files), Vec::<String>::new());
    }

    #[test]
    fn a_file_nobody_reads_and_a_lonely_half_are_named() {
        let files = [
            file("crates/api/tests/worlds.rs", "read_dir(\"worlds\")"),
            file("crates/api/tests/old/answer.json", ""),
            file("crates/api/tests/worlds/mask.out.txt", ""),
        ];
        assert_eq!(
            complaints(&files),
            [
                "crates/api/tests/old/answer.json: no test reads it",
                "crates/api/tests/worlds/mask.out.txt: its other half is missing",
            ],
        );
    }
}
