//! Hides the host's control groups from a helper.
//!
//! libcontainer has its own opinion about control groups; with none in sight it leaves them to
//! us. With root the mounts are simply undone in the helper's own namespace. Inside a user namespace
//! the kernel forbids that, so the helper moves into a tree that has everything but `/sys`.
//!
//! Invariant: every other path of the host stays where it is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::pivot_root;

use super::sandbox::{bind_tree, mount_at, mount_memory};

const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
const TREE_BYTES_MAX: u64 = 1024 * 1024;
/// One process's view of the world in which user numbers mean what they say.
const WHOLE_USER_RANGE: &str = "4294967295";

/// Whether this process is root only in a user namespace.
pub(crate) fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().nth(2) != Some(WHOLE_USER_RANGE)
}

/// Takes the control groups out of sight; `scratch` is an own, mounted directory.
pub(crate) fn hide_control_groups(scratch: &Path) -> io::Result<()> {
    if in_user_namespace() {
        move_into_tree_without_them(&scratch.join("tree"))?;
    } else {
        // A host without control groups has nothing mounted there.
        let _ = umount2(CONTROL_GROUPS, MntFlags::MNT_DETACH);
    }
    mount_memory(Path::new(CONTROL_GROUPS), TREE_BYTES_MAX, 0o755)
}

fn move_into_tree_without_them(tree: &Path) -> io::Result<()> {
    fs::create_dir(tree)?;
    mount_memory(tree, TREE_BYTES_MAX, 0o755)?;
    // The tree lies somewhere inside what is bound into it, and must not be bound with it.
    mount_at(None, tree, None, MsFlags::MS_UNBINDABLE, "")?;
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let (source, target) = (entry.path(), tree.join(entry.file_name()));
        let kind = entry.file_type()?;
        if entry.file_name() == "sys" {
            fs::create_dir(&target)?;
            mount_at(Some("sysfs"), &target, Some("sysfs"), MsFlags::MS_NOSUID, "")?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_dir() {
            fs::create_dir(&target)?;
            bind_tree(&source, &target)?;
        } else {
            File::create(&target)?;
            bind_tree(&source, &target)?;
        }
    }
    std::env::set_current_dir(tree)?;
    // The old root is stacked under the new one and then taken away.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}
