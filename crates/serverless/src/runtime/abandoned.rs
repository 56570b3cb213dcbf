//! Control groups of servers that are gone for good: killed together with their helpers, and never
//! started again on their data directories.
//!
//! Nothing in a group says whether its server lives. What does is its helpers, which carry its mark,
//! and time: between the making of a group and its helper there are seconds.
//!
//! Invariant: a group is removed only when it is empty, older than that, and nobody alive has its
//! server's mark.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::cgroups::{Cgroups, ROOT_PREFIX, remove_directory};
use super::leftovers::processes;
use super::link::MARK_ARGUMENT;

/// An empty group of a server without helpers that is older has been left: many times longer than a
/// helper may take to appear.
const LEFT_AFTER: Duration = Duration::from_secs(300);

/// Removes what other servers left; answers with how many of their directories went.
pub(crate) fn remove(groups: &Cgroups, now: SystemTime) -> usize {
    let marks = marks_alive();
    let mut removed = 0;
    for own in groups.roots() {
        for root in directories(own.parent().unwrap_or(own)) {
            let mark = mark_of_root(&root).filter(|mark| !marks.contains(*mark));
            if mark.is_none() || root == own {
                continue;
            }
            // The age of the root changes with what is removed from it.
            let is_old = is_left(&root, now);
            for group in directories(&root).iter().filter(|group| is_left(group, now)) {
                remove_directory(group);
            }
            removed += usize::from(is_old && remove_directory(&root));
        }
    }
    removed
}

/// The mark of a server's directory, if this is one.
fn mark_of_root(root: &Path) -> Option<&str> {
    let mark = root.file_name()?.to_str()?.strip_prefix(ROOT_PREFIX)?;
    let is_mark = mark.len() == 12 && mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_mark.then_some(mark)
}

fn is_left(directory: &Path, now: SystemTime) -> bool {
    let changed = fs::metadata(directory).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age >= LEFT_AFTER))
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// The marks of all helpers there are.
fn marks_alive() -> BTreeSet<String> {
    let mut marks = BTreeSet::new();
    for (_, command_line) in processes() {
        let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
        let named = words.windows(2).filter(|pair| pair[0] == MARK_ARGUMENT.as_bytes());
        marks.extend(named.map(|pair| String::from_utf8_lossy(pair[1]).into_owned()));
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_named_after_a_mark_are_a_servers() {
        for (path, mark) in [
            ("/sys/fs/cgroup/pids/tidegate-0123456789ab", Some("0123456789ab")),
            ("/sys/fs/cgroup/tidegate-server", None),
            ("/sys/fs/cgroup/tidegate-0123456789abc", None),
            ("/sys/fs/cgroup/0123456789ab", None),
        ] {
            assert_eq!(mark_of_root(Path::new(path)), mark, "{path}");
        }
    }
}
