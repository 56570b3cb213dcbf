//! What a server has on the host: mounts, processes, cgroups, namespaces, firewall tables.
//!
//! Other programs come and go while a test runs, so what counts as a server's is what carries its data
//! directory: in a mount, in a process's own list of mounts or command line, in the name of a pin. What
//! carries no such mark (tables and links in the host's own namespace) is compared with before.

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long the kernel may take to let go of what a server removed.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);

/// The folders of a data directory that containers run from: services, after a replacement, and builds.
const FOLDERS_WITH_CONTAINERS: [&str; 3] = ["runtime", "runtime.2", "builds/runtime"];

/// A process of a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command line, or its name in brackets.
    pub command: String,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    /// The parent's id.
    pub parent: u32,
}

/// Every process id.
pub fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The state and parent of a process; `None` once it is gone.
pub fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses; what follows the last one does not.
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    Some(Stat { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

/// Processes that carry the data directory in their mounts or on their command line.
///
/// The tests themselves do not count: a test names the directory in its own arguments nowhere, and its
/// mounts are the host's.
pub fn processes_of(data: &Path) -> Vec<Process> {
    let mark = data.display().to_string();
    let host_namespace = fs::read_link("/proc/self/ns/mnt").ok();
    pids()
        .into_iter()
        .filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let has_own_mounts =
                fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() != host_namespace;
            let is_marked = command.contains(&mark)
                || has_own_mounts
                    && fs::read_to_string(format!("/proc/{pid}/mountinfo"))
                        .is_ok_and(|mounts| mounts.contains(&mark));
            let is_alive = stat(pid).is_some_and(|stat| stat.state != 'Z');
            (is_marked && is_alive).then_some(Process { pid, command })
        })
        .collect()
}

/// The host before a server was started.
#[derive(Clone, Debug)]
pub struct Before {
    unmarked: BTreeSet<String>,
}

impl Before {
    /// Looks at the host.
    pub fn now() -> Before {
        Before { unmarked: unmarked() }
    }

    /// Everything on the host that the server with this data directory has left, one line each.
    pub fn left_by(&self, data: &Path) -> Vec<String> {
        let mut left = mounts_of(data);
        left.extend(
            processes_of(data)
                .iter()
                .map(|process| format!("process {} {}", process.pid, process.command)),
        );
        left.extend(cgroups_of(data));
        left.extend(unmarked().difference(&self.unmarked).cloned());
        left
    }

    /// Asserts that nothing is left, giving the kernel time to let go.
    pub fn expect_nothing_left_by(&self, data: &Path) -> Result<()> {
        let settled = crate::wait::until("nothing is left on the host", SETTLE_LIMIT, || {
            self.left_by(data).is_empty().then_some(())
        });
        match settled {
            Ok(()) => Ok(()),
            Err(error) => bail!("{error}\n{}", self.left_by(data).join("\n")),
        }
    }
}

/// What is mounted in the host's own namespace by the server with this data directory, a line each.
pub fn mounts_of(data: &Path) -> Vec<String> {
    let mark = data.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter(|line| line.contains(&mark));
    mounts.map(|line| format!("mount {line}")).collect()
}

/// The cgroups of the server with this data directory, a line each.
pub fn cgroups_of(data: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for folder in FOLDERS_WITH_CONTAINERS {
        let name = cgroup_of(&data.join(folder));
        cgroups(Path::new("/sys/fs/cgroup"), &name, &mut found);
    }
    found
}

/// The cgroup below which a server keeps the containers of this folder: it is named after the folder,
/// so that whoever finds one can tell whose it is.
fn cgroup_of(folder: &Path) -> String {
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    let mark: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("tidegate-{mark}")
}

/// Things that carry no data directory: tables and links in the host's own namespace, named namespaces.
fn unmarked() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut ask = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            // The index of a link and its state are no identity.
            let line = line.split_once(": ").map_or(line, |(_, rest)| rest);
            let name = line.split_once(": ").map_or(line, |(name, _)| name);
            found.insert(format!("{program} {name}"));
        }
    };
    ask("nft", &["list", "tables"]);
    ask("ip", &["-o", "link", "show"]);
    ask("ip", &["netns", "list"]);
    found
}

fn cgroups(folder: &Path, name: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if path.to_string_lossy().contains(name) {
                found.push(format!("cgroup {}", path.display()));
            }
            cgroups(&path, name, found);
        }
    }
}
