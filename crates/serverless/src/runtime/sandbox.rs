//! The mounts and the network an instance's helper makes for its containers.
//!
//! Everything is mounted in the helper's own mount namespace, so nothing appears in the host's
//! mount table and nothing is left when the helper is gone. Writable layers are in memory, bounded
//! and charged to the container that fills them, as on Cloud Run.
//!
//! Invariant: paths inside a container's files are only followed within its root, never through it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use pathrs::Root;
use pathrs::flags::OpenFlags;

use super::bundle::{Identity, identity};
use super::hiding::{hide_control_groups, in_user_namespace};
use super::orders::{ContainerPlan, PlannedGroup, PlannedSource, SandboxPlan};
use super::surroundings::METADATA_ADDRESS;

/// The address an instance is reached at. Not the loopback address: a program that listens on
/// that alone is unreachable on Cloud Run, and has to be so here.
pub(crate) const INSTANCE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 8, 1);
/// Small files of the sandbox itself: specifications, states, secrets.
const SANDBOX_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Accounts of an image are read up to this size.
const ACCOUNTS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// New mount and network namespaces for this process, the network with its loopback up.
pub(crate) fn enter_own_namespaces() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")?;
    forget_pinned_namespaces();
    bring_loopback_up()?;
    // Anybody inside may listen on any port: there is nobody else in this network.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
}

/// The copies this process has of the mounts that pin other networks would keep those networks
/// alive after their owner has let them go.
fn forget_pinned_namespaces() {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for path in pinned_namespaces(&table) {
        // A mount that is locked in a user namespace stays, as it would without us.
        let _ = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

/// Mount points of namespaces in a mount table, the last mounted first.
fn pinned_namespaces(table: &str) -> Vec<&str> {
    let pins = table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("nsfs ").then(|| left.split(' ').nth(4)).flatten()
    });
    let mut pins: Vec<&str> = pins.collect();
    pins.reverse();
    pins
}

/// A control group held open: it can be entered and removed after its mount is gone from view.
#[derive(Debug)]
pub(crate) struct HeldGroup {
    container: String,
    parent: OwnedFd,
    name: String,
    /// Where the parent is, and its name there.
    above: OwnedFd,
    parent_name: String,
}

/// Opens the parent directory of every control group of the plan.
pub(crate) fn hold_groups(plan: &SandboxPlan) -> io::Result<Vec<HeldGroup>> {
    let mut held = Vec::new();
    for group in &plan.groups {
        for directory in &group.directories {
            let parent = parent_of(directory)?;
            let (name, parent_name) = (name_of(directory)?, name_of(parent)?);
            let handle = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
            held.push(HeldGroup {
                container: group.container.clone(),
                parent: handle(parent)?,
                name,
                above: handle(parent_of(parent)?)?,
                parent_name,
            });
        }
    }
    Ok(held)
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("a control group without a parent"))
}

fn name_of(path: &Path) -> io::Result<String> {
    let name = path.file_name().ok_or_else(|| io::Error::other("a control group without a name"));
    Ok(name?.to_string_lossy().into_owned())
}

/// The files a process of the container writes itself into. In version 1 a single thread moves
/// without the lock over the whole machine that moving a process takes, which is most of the time a
/// container would need to start; the process has one thread when it moves.
pub(crate) fn group_entrances(groups: &[HeldGroup], container: &str) -> io::Result<Vec<OwnedFd>> {
    let mine = groups.iter().filter(|group| group.container == container);
    mine.map(|group| {
        let enter = |file: &str| {
            let path = format!("{}/{file}", group.name);
            openat(&group.parent, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        };
        match enter("tasks") {
            Err(Errno::ENOENT) => Ok(enter("cgroup.procs")?),
            other => Ok(other?),
        }
    })
    .collect()
}

/// Removes the groups, and the directories they were in if they were the last. The server does the
/// same, so one that is gone is no error, and neither is one that others still use.
pub(crate) fn remove_groups(groups: &[HeldGroup]) {
    for group in groups {
        let _ = unlinkat(&group.parent, group.name.as_str(), UnlinkatFlags::RemoveDir);
    }
    for group in groups {
        let _ = unlinkat(&group.above, group.parent_name.as_str(), UnlinkatFlags::RemoveDir);
    }
}

/// Makes the instance's directory a small file system of its own, with its volumes and the views
/// of its control groups, and hides the host's control groups.
pub(crate) fn prepare(plan: &SandboxPlan) -> io::Result<()> {
    mount_memory(&plan.directory, SANDBOX_BYTES_MAX, 0o755)?;
    let volumes = plan.directory.join("volumes");
    fs::create_dir(&volumes)?;
    for volume in &plan.volumes {
        let directory = volumes.join(plain_name(&volume.name)?);
        fs::create_dir(&directory)?;
        match &volume.source {
            PlannedSource::Memory { bytes_max } => mount_memory(&directory, *bytes_max, 0o1777)?,
            PlannedSource::Files(files) => write_files(&directory, files)?,
            PlannedSource::HostDirectory { path, read_only } => {
                bind(path, &directory, *read_only)?;
            }
        }
    }
    for group in &plan.groups {
        for (index, (source, _)) in group.shown.iter().enumerate() {
            let target = bound_group(plan, group, index);
            fs::create_dir_all(&target)?;
            bind(source, &target, true)?;
        }
    }
    hide_control_groups(&plan.directory)
}

/// Where the views of a container's control groups are, and under which name it sees each.
pub(crate) fn bound_groups(plan: &SandboxPlan, group: &PlannedGroup) -> Vec<(PathBuf, String)> {
    let shown = group.shown.iter().enumerate();
    shown.map(|(index, (_, name))| (bound_group(plan, group, index), name.clone())).collect()
}

fn bound_group(plan: &SandboxPlan, group: &PlannedGroup, index: usize) -> PathBuf {
    // Not named after the controller: libcontainer recognises hierarchies by that.
    plan.directory.join("groups").join(&group.container).join(format!("view-{index}"))
}

/// Mounts the merged file system of a container at `root` in its directory.
pub(crate) fn mount_root(directory: &Path, plan: &ContainerPlan) -> io::Result<()> {
    fs::create_dir(directory)?;
    mount_memory(directory, plan.writable_bytes_max, 0o755)?;
    for name in ["upper", "work", "root", "empty", "lower"] {
        fs::create_dir(directory.join(name))?;
    }
    // The kernel takes one page of options: short names instead of long digests.
    let mut lower = Vec::new();
    for (index, layer) in plan.layers.iter().enumerate().rev() {
        let name = format!("lower/{index}");
        symlink(layer, directory.join(&name))?;
        lower.push(name);
    }
    if lower.is_empty() {
        lower.push("empty".to_owned());
    }
    let mut options = format!("lowerdir={},upperdir=upper,workdir=work", lower.join(":"));
    if in_user_namespace() {
        options.push_str(",userxattr");
    }
    std::env::set_current_dir(directory)?;
    let mounted =
        mount_at(Some("overlay"), Path::new("root"), Some("overlay"), MsFlags::MS_NODEV, &options);
    std::env::set_current_dir("/")?;
    mounted
}

/// Writes the files every container gets, makes its working directory, and finds out its user.
pub(crate) fn prepare_files(directory: &Path, plan: &ContainerPlan) -> io::Result<Identity> {
    let root = Root::open(directory).map_err(io::Error::other)?;
    let readable = fs::Permissions::from_mode(0o755);
    root.mkdir_all(&plan.working_directory, &readable).map_err(io::Error::other)?;
    root.mkdir_all("/etc", &readable).map_err(io::Error::other)?;
    write_inside(&root, "/etc/hosts", &plan.hosts);
    write_inside(&root, "/etc/hostname", &format!("{}\n", plan.host_name));
    write_inside(&root, "/etc/resolv.conf", &format!("nameserver {METADATA_ADDRESS}\n"));
    let passwd = read_inside(&root, "/etc/passwd");
    let group = read_inside(&root, "/etc/group");
    let map = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    Ok(identity(&plan.user, &passwd, &group).among(&map("uid_map"), &map("gid_map")))
}

fn read_inside(root: &Root, path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = root.open_subpath(path, OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK) {
        // An image whose accounts cannot be read has none.
        let _ = file.take(ACCOUNTS_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An image may have made the path a link or a directory on purpose; then it keeps what it has.
fn write_inside(root: &Root, path: &str, text: &str) {
    let flags = OpenFlags::O_WRONLY | OpenFlags::O_TRUNC;
    let readable = fs::Permissions::from_mode(0o644);
    if let Ok(mut file) = root.create_file(path, flags, &readable) {
        let _ = file.write_all(text.as_bytes());
    }
}

pub(crate) fn write_files(directory: &Path, files: &[(String, Vec<u8>, u32)]) -> io::Result<()> {
    for (path, contents, mode) in files {
        let path = plain_path(path)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(directory.join(parent))?;
        }
        let target = directory.join(path);
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(&target)?;
        file.write_all(contents)?;
        file.set_permissions(fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

/// A relative path without steps upwards.
fn plain_path(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    match plain && path.components().next().is_some() {
        true => Ok(path),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "a path that leaves its volume")),
    }
}

pub(crate) fn plain_name(name: &str) -> io::Result<&Path> {
    match plain_path(name)? {
        path if path.components().count() == 1 => Ok(path),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "a volume name with a slash")),
    }
}

pub(crate) fn mount_memory(target: &Path, bytes_max: u64, mode: u32) -> io::Result<()> {
    let options = format!("size={bytes_max},mode={mode:o}");
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    mount_at(Some("tidegate"), target, Some("tmpfs"), flags, &options)
}

/// Makes a directory or file appear at another path, with everything mounted below it.
pub(crate) fn bind_tree(source: &Path, target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .map_err(|error| failed(&format!("bind {}", source.display()), error))
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    bind_tree(source, target)?;
    if read_only {
        let flags = MsFlags::MS_BIND
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV;
        mount_at(None, target, None, flags, "")?;
    }
    Ok(())
}

pub(crate) fn mount_at(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    options: &str,
) -> io::Result<()> {
    mount(source, target, kind, flags, Some(options))
        .map_err(|error| failed(&format!("mount {}", target.display()), error))
}

fn failed(step: &str, error: nix::Error) -> io::Error {
    let cause = io::Error::from(error);
    io::Error::new(cause.kind(), format!("{step}: {cause}"))
}

/// Sets the loopback device up and gives it the address the instance is reached at.
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    let control = control_socket()?;
    // SAFETY: an all-zero ifreq is a valid one: names and addresses of zero.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    name_device(&mut request, b"lo");
    request.ifr_ifru.ifru_flags = small(libc::IFF_UP | libc::IFF_RUNNING)?;
    configure(&control, libc::SIOCSIFFLAGS, &request)?;
    add_loopback_address(1, INSTANCE_ADDRESS)
}

/// Gives the loopback device another address; each has a number of its own.
pub(crate) fn add_loopback_address(number: u8, address: Ipv4Addr) -> io::Result<()> {
    let control = control_socket()?;
    // SAFETY: an all-zero ifreq is a valid one: names and addresses of zero.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    name_device(&mut request, format!("lo:{number}").as_bytes());
    let address = libc::sockaddr_in {
        sin_family: small(libc::AF_INET)?,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: sockaddr_in and sockaddr have the same size and both are plain numbers.
    #[allow(unsafe_code)]
    let address = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    request.ifr_ifru.ifru_addr = address;
    configure(&control, libc::SIOCSIFADDR, &request)
}

fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The kernel's structures keep some of its numbers in fewer bits than their constants have.
fn small<T: TryFrom<i32>>(number: i32) -> io::Result<T> {
    T::try_from(number).map_err(|_| io::Error::other("a constant of the kernel does not fit"))
}

fn name_device(request: &mut libc::ifreq, name: &[u8]) {
    request.ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
}

fn configure(control: &OwnedFd, what: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads an ifreq from the pointer, which is valid for the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(control.as_fd().as_raw_fd(), what, request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_found_in_the_mount_table() {
        let table = "\
22 1 254:0 / / rw - ext4 /dev/vda rw
40 22 0:4 net:[4026532001] /data/net/a rw shared:9 - nsfs nsfs rw
41 22 0:40 / /tmp/nsfs rw - tmpfs nsfs rw
42 22 0:4 net:[4026532002] /data/net/b rw - nsfs nsfs rw
";
        assert_eq!(pinned_namespaces(table), ["/data/net/b", "/data/net/a"]);
    }

    #[test]
    fn files_of_a_volume_stay_inside_it() {
        let cases = [
            ("key", true),
            ("deep/key", true),
            ("", false),
            ("/etc/passwd", false),
            ("../key", false),
            ("deep/../../key", false),
        ];
        for (path, fine) in cases {
            assert_eq!(plain_path(path).is_ok(), fine, "{path}");
        }
        assert!(plain_name("a").is_ok());
        assert!(plain_name("a/b").is_err());
    }
}
