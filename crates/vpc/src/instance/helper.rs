//! How an instance comes to be: the two small programs the server's own binary becomes for it.
//!
//! ```text
//! server ── spawns ──▶ launch ── unshare, spawns ──▶ init (process 1 of the instance) ── exec ──▶ sshd
//!                        │ records init's process id, lets it go on, waits until it became sshd
//!                        ▼ ends
//! ```
//!
//! `launch` has one thread, so it may change namespaces. Whenever the server is killed, no instance is left
//! that nobody knows of and none is started twice: `launch` is killed with the server, and `init` does
//! nothing before it is told that the record is on disk, and ends when `launch` ends without a word. What
//! it becomes is the child of nobody, so it outlives the server.
//!
//! Invariant: when sshd starts, the instance sees its own root, processes, host name and network, the
//! host's `/usr` read-only, nothing else of the host, and can no longer get a capability beyond [`KEPT`].

use super::console;
use super::folder::{Folder, MOUNTED_FOLDERS, TRUSTED};
use super::process::Record;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pivot_root, sethostname};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The first argument that makes the binary the launcher of an instance.
pub(super) const LAUNCH: &str = "vpc-instance-launch";
/// The first argument that makes the binary the first process of an instance.
const INIT: &str = "vpc-instance-init";
/// The binary itself, whatever has become of its file.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";
/// The SSH server, at the only path it agrees to be started by.
const SSHD: &str = "/usr/sbin/sshd";

/// Capabilities an instance keeps: what its own root needs for files, users, ports and pings, and sshd
/// to write the audit record of a terminal session, without which it refuses one.
const KEPT: CapabilitySet = CapabilitySet::AUDIT_WRITE
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT);

/// Folders that are links into `/usr` on a merged system, and mounted where they are real.
const MERGED: [&str; 5] = ["bin", "sbin", "lib", "lib64", "lib32"];
/// Who logged in, and when.
const LOGIN_RECORDS: [&str; 4] = ["run/utmp", "var/log/wtmp", "var/log/btmp", "var/log/lastlog"];
/// Device files an instance has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Read-only is about the file, not the device: what is written to it goes through, but nobody in an
/// instance can change the mode of a file the host uses too.
const DEVICE_MOUNT: MsFlags =
    MsFlags::MS_RDONLY.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);
/// Parts of `/proc` nobody in an instance may write.
const READ_ONLY: [&str; 5] = ["sys", "bus", "fs", "irq", "sysrq-trigger"];
/// Parts of `/proc` that show the host and are covered.
const COVERED: [&str; 4] = ["kcore", "keys", "kmsg", "timer_list"];

/// Lets the binary be an instance's helper when it was started as one. The program calls this before
/// anything else, threads in particular, and ends with the code it is given.
pub fn helper_main() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let role = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let done = match role.to_str()? {
        LAUNCH => launch(&arguments),
        INIT => init(&arguments),
        _ => return None,
    };
    match done {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            // The one who waits reads the reason from this pipe.
            let _ = write!(io::stdout(), "{error}");
            Some(ExitCode::FAILURE)
        }
    }
}

/// Adds to an error what was being done.
fn at<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> io::Error {
    let what = what.into();
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("could not {what}: {error}"))
    }
}

/// `launch FOLDER HOSTNAME BOOT SERVER`, with the network namespace as standard input.
fn launch(arguments: &[OsString]) -> io::Result<()> {
    let [folder, hostname, boot, server] = arguments else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
    let boot = number(boot).ok_or(io::ErrorKind::InvalidInput)?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(at("die with the server"))?;
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs().into());
    if parent != number(server) {
        return Err(io::Error::other("the server is gone"));
    }
    let place = Folder::at(PathBuf::from(folder));
    close_inherited()?;
    nix::unistd::setsid().map_err(at("leave the terminal"))?;
    setns(io::stdin().as_fd(), CloneFlags::CLONE_NEWNET).map_err(at("enter the network"))?;
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    unshare(own).map_err(at("make namespaces"))?;

    let console = console::open(&place.console()).map_err(at("open the console"))?;
    let mut init = Command::new(OWN_PROGRAM)
        .arg(INIT)
        .args([folder, hostname])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(console)
        .spawn()
        .map_err(at("start the first process"))?;
    let record = Record::of(init.id(), boot).and_then(|record| record.write(&place));
    record.map_err(|error| io::Error::other(error.to_string()))?;
    if let Some(mut go) = init.stdin.take() {
        go.write_all(b"go").map_err(at("let the first process go on"))?;
    }
    let mut refusal = String::new();
    if let Some(mut output) = init.stdout.take() {
        output.read_to_string(&mut refusal).map_err(at("hear from the first process"))?;
    }
    match refusal.is_empty() {
        true => Ok(()),
        false => {
            let _ = init.wait();
            Err(io::Error::other(refusal))
        }
    }
}

/// Closes what the server was started with and passed on unknowingly: an instance that outlives it must
/// not keep anybody's pipe or lock.
fn close_inherited() -> io::Result<()> {
    let listed = fs::read_dir("/proc/self/fd").map_err(at("list open files"))?;
    let numbers = listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inherited: Vec<i32> = numbers.filter(|number| *number > 2).collect();
    for number in inherited {
        // The listing's own descriptor is among them, and closed already.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}

/// `init FOLDER HOSTNAME`: the first process of the instance, until it becomes sshd.
fn init(arguments: &[OsString]) -> io::Result<()> {
    let [folder, hostname] = arguments else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut word = [0; 2];
    io::stdin().read_exact(&mut word).map_err(at("hear from the launcher"))?;
    sethostname(hostname).map_err(at("set the host name"))?;
    let console = io::stderr().as_fd().try_clone_to_owned()?;
    build_root(&Folder::at(PathBuf::from(folder)))?;
    drop_capabilities()?;
    let refused = Command::new(SSHD)
        .args(["-D", "-e", "-f", "/etc/ssh/sshd_config"])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(File::from(console))
        .exec();
    Err(at(format!("run `{SSHD}` (package openssh-server)"))(refused))
}

/// Puts the instance's root together and moves into it.
fn build_root(folder: &Folder) -> io::Result<()> {
    let root = folder.mount();
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .map_err(at("keep mounts apart from the host's"))?;
    temporary(&root, "mode=755,size=16m")?;
    for (name, mode) in [("tmp", 0o1777), ("run", 0o755), ("var", 0o755)] {
        folder_in(&root, name, mode)?;
    }
    for (name, options) in [("tmp", "mode=1777,size=256m"), ("run", "mode=755,size=64m")] {
        temporary(&root.join(name), options)?;
    }
    for (name, mode) in [("run/sshd", 0o755), ("var/tmp", 0o1777), ("var/log", 0o755)] {
        folder_in(&root, name, mode)?;
    }
    // sshd adds to the records of logins and makes none of them.
    for name in LOGIN_RECORDS {
        File::create(root.join(name)).map_err(at(format!("make /{name}")))?;
    }
    read_only_copy(Path::new("/usr"), &folder_in(&root, "usr", 0o755)?)?;
    merged_folders(&root)?;
    let etc = folder_in(&root, "etc", 0o755)?;
    read_only_copy(&folder.etc(), &etc)?;
    for name in MOUNTED_FOLDERS {
        let host = Path::new("/etc").join(name);
        if host.is_dir() {
            read_only_copy(&host, &etc.join(name))?;
        }
    }
    if folder.roots().is_file() && etc.join(TRUSTED).is_file() {
        read_only_copy(&folder.roots(), &etc.join(TRUSTED))?;
    }
    for (name, mode) in [("home", 0o755), ("root", 0o700)] {
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        copy(&folder.kept(name), &folder_in(&root, name, mode)?, safe)?;
    }
    devices(&root)?;
    processes(&root)?;
    // The old root is mounted over the new one, and taken away from there.
    chdir(&root).map_err(at("enter the new root"))?;
    pivot_root(".", ".").map_err(at("change to the new root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("leave the host's root"))?;
    chdir("/").map_err(at("enter the new root"))
}

fn folder_in(root: &Path, name: &str, mode: u32) -> io::Result<PathBuf> {
    let path = root.join(name);
    fs::create_dir_all(&path).map_err(at(format!("make /{name}")))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        .map_err(at(format!("make /{name}")))?;
    Ok(path)
}

fn temporary(place: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some(options))
        .map_err(at(format!("mount {}", place.display())))
}

/// Shows `from` at `to` too.
fn copy(from: &Path, to: &Path, flags: MsFlags) -> io::Result<()> {
    let what = format!("mount {} on {}", from.display(), to.display());
    let nothing = None::<&str>;
    mount(Some(from), to, nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)
        .map_err(at(what.clone()))?;
    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(nothing, to, nothing, again | flags, nothing).map_err(at(what))
}

fn read_only_copy(from: &Path, to: &Path) -> io::Result<()> {
    copy(from, to, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}

/// `/bin` and its like, as the host has them: links into `/usr`, or folders of their own.
fn merged_folders(root: &Path) -> io::Result<()> {
    for name in MERGED {
        let host = Path::new("/").join(name);
        match fs::read_link(&host) {
            Ok(target) => symlink(target, root.join(name)).map_err(at(format!("make /{name}")))?,
            Err(_) if host.is_dir() => read_only_copy(&host, &folder_in(root, name, 0o755)?)?,
            Err(_) => {}
        }
    }
    Ok(())
}

fn devices(root: &Path) -> io::Result<()> {
    let dev = folder_in(root, "dev", 0o755)?;
    for name in DEVICES {
        let path = dev.join(name);
        File::create(&path).map_err(at(format!("make /dev/{name}")))?;
        copy(&Path::new("/dev").join(name), &path, DEVICE_MOUNT)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=620,gid=5");
    mount(Some("devpts"), &folder_in(&dev, "pts", 0o755)?, Some("devpts"), flags, options)
        .map_err(at("mount /dev/pts"))?;
    temporary(&folder_in(&dev, "shm", 0o1777)?, "mode=1777,size=64m")?;
    let links = [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in links {
        symlink(target, dev.join(name)).map_err(at(format!("make /dev/{name}")))?;
    }
    Ok(())
}

fn processes(root: &Path) -> io::Result<()> {
    let proc = folder_in(root, "proc", 0o555)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), &proc, Some("proc"), flags, None::<&str>).map_err(at("mount /proc"))?;
    for path in READ_ONLY.map(|name| proc.join(name)).iter().filter(|path| path.exists()) {
        copy(path, path, MsFlags::MS_RDONLY | flags)?;
    }
    for path in COVERED.map(|name| proc.join(name)).iter().filter(|path| path.exists()) {
        copy(Path::new("/dev/null"), path, DEVICE_MOUNT)?;
    }
    Ok(())
}

/// Gives up every capability but [`KEPT`], for good.
fn drop_capabilities() -> io::Result<()> {
    for capability in CapabilitySet::all().iter().filter(|one| !KEPT.contains(*one)) {
        match remove_capability_from_bounding_set(capability) {
            // A kernel older than the capability has nothing to remove.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(at("give up a capability")(io::Error::from(error))),
        }
    }
    let kept =
        CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    set_capabilities(None, kept).map_err(io::Error::from).map_err(at("give up capabilities"))?;
    set_no_new_privs(true).map_err(io::Error::from).map_err(at("refuse new privileges"))
}
