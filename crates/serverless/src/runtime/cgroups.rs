//! Control groups: how much processor time, memory and how many processes a container may have.
//!
//! Each controller is looked for on its own, in a version 1 hierarchy first and then in the unified
//! one, so that hosts with version 1, version 2 or a mixture of both work alike. Where a
//! controller cannot be written to, the container runs without that limit and the reason is told
//! once, at start.
//!
//! Invariant: every group this file makes lies in a directory named after our mark, and is removed
//! with the container it was made for; the directory goes with the last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Allowance, Limits, Usage};
use crate::runtime::limits::PROCESSES_MAX;

/// The scheduler hands out processor time in slices of this many microseconds.
const PERIOD_MICROSECONDS: u64 = 100_000;
/// The least quota the kernel takes.
const QUOTA_MICROSECONDS_MIN: u64 = 1_000;
/// How often another helper may take the root away while a group is made in it.
const ROOT_ATTEMPTS_MAX: usize = 16;
/// What the directory of a server is called, before its mark.
pub(crate) const ROOT_PREFIX: &str = "tidegate-";
const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// What a control group can limit or count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Controller {
    Processor,
    ProcessorAccounting,
    Memory,
    Processes,
}

impl Controller {
    const ALL: [Controller; 4] = [
        Controller::Processor,
        Controller::ProcessorAccounting,
        Controller::Memory,
        Controller::Processes,
    ];

    fn name_v1(self) -> &'static str {
        match self {
            Controller::Processor => "cpu",
            Controller::ProcessorAccounting => "cpuacct",
            Controller::Memory => "memory",
            Controller::Processes => "pids",
        }
    }

    fn name_v2(self) -> &'static str {
        match self {
            // The unified hierarchy counts processor time with the same controller.
            Controller::Processor | Controller::ProcessorAccounting => "cpu",
            Controller::Memory => "memory",
            Controller::Processes => "pids",
        }
    }

    fn limits(self) -> &'static str {
        match self {
            Controller::Processor => "processor limits",
            Controller::ProcessorAccounting => "processor accounting",
            Controller::Memory => "memory limits",
            Controller::Processes => "process limits",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Unified,
}

/// Where a controller's hierarchy is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
}

/// The control groups of one server.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    /// The directory of our mark in each controller's hierarchy.
    roots: BTreeMap<Controller, (Version, PathBuf)>,
}

impl Cgroups {
    /// Finds the hierarchies of this host and tries whether our directory can be made in each; what
    /// cannot be had is told in words. Directories are there only while a container is.
    pub(crate) fn open(mark: &str) -> (Cgroups, Vec<String>) {
        let table = fs::read_to_string(MOUNT_TABLE).unwrap_or_default();
        let mut roots = BTreeMap::new();
        let mut problems = Vec::new();
        for controller in Controller::ALL {
            let Some(hierarchy) = find_hierarchy(&table, controller, &controllers_of) else {
                problems.push(format!(
                    "{} are off: this host has no `{}` controller mounted",
                    controller.limits(),
                    controller.name_v1()
                ));
                continue;
            };
            let root = hierarchy.mount.join(format!("{ROOT_PREFIX}{mark}"));
            match prepare_root(&hierarchy, &root, controller) {
                Ok(()) => drop(roots.insert(controller, (hierarchy.version, root))),
                Err(error) => problems.push(format!(
                    "{} are off: {} cannot be used: {error}",
                    controller.limits(),
                    root.display()
                )),
            }
        }
        let groups = Cgroups { roots };
        groups.remove_roots();
        (groups, problems)
    }

    /// Our directory in each hierarchy that is used.
    pub(crate) fn roots(&self) -> BTreeSet<&Path> {
        self.roots.values().map(|(_, root)| root.as_path()).collect()
    }

    /// Whether the number of processes can be limited for each container.
    pub(crate) fn count_processes(&self) -> bool {
        self.roots.contains_key(&Controller::Processes)
    }

    /// Makes the group of one container and sets its limits.
    pub(crate) fn create(
        &self,
        instance: &str,
        container: &str,
        limits: Limits,
    ) -> io::Result<ContainerGroup> {
        let mut group = ContainerGroup { limits, directories: BTreeMap::new() };
        for (controller, (version, root)) in &self.roots {
            let directory = root.join(format!("{instance}.{container}"));
            if let Err(error) = make_group(*version, root, &directory, *controller) {
                group.remove();
                return Err(error);
            }
            group.directories.insert(*controller, (*version, directory));
        }
        if let Err(error) = group.apply(limits) {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }

    /// The groups of instances that exist now, whoever made them: `(instance, directory)`.
    pub(crate) fn existing(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        for (_, root) in self.roots.values() {
            let Ok(entries) = fs::read_dir(root) else { continue };
            for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let instance = name.split('.').next().unwrap_or(&name).to_owned();
                found.push((instance, entry.path()));
            }
        }
        found
    }

    /// Removes our own directories, if nothing is in them any more.
    pub(crate) fn remove_roots(&self) {
        for (_, root) in self.roots.values() {
            // Not empty means that another container still runs; gone means done before.
            let _ = fs::remove_dir(root);
        }
    }
}

/// Makes a directory below our root, and the root with it: whoever removes the last group takes it
/// along, so that nothing is left when the server is killed.
fn make_group(
    version: Version,
    root: &Path,
    directory: &Path,
    controller: Controller,
) -> io::Result<()> {
    let mount = root.parent().unwrap_or(root).to_owned();
    let hierarchy = Hierarchy { version, mount };
    for _ in 0..ROOT_ATTEMPTS_MAX {
        match prepare_root(&hierarchy, root, controller).and_then(|()| fs::create_dir(directory)) {
            // It went after it was made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => return Ok(()),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The groups somebody else put a process into, for reading and changing; they are not ours to
/// remove.
pub(crate) fn groups_of_process(process: i32, limits: Limits) -> ContainerGroup {
    let table = fs::read_to_string(MOUNT_TABLE).unwrap_or_default();
    let member = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let mut directories = BTreeMap::new();
    for controller in Controller::ALL {
        let Some(hierarchy) = find_hierarchy(&table, controller, &controllers_of) else { continue };
        if let Some(path) = path_in(&member, controller, hierarchy.version) {
            let directory = hierarchy.mount.join(path.trim_start_matches('/'));
            directories.insert(controller, (hierarchy.version, directory));
        }
    }
    ContainerGroup { limits, directories }
}

/// Where a process is in the hierarchy of a controller, by its `/proc/…/cgroup`.
fn path_in(member: &str, controller: Controller, version: Version) -> Option<String> {
    member.lines().find_map(|line| {
        // 4:memory:/path, and 0::/path for the unified hierarchy
        let mut fields = line.splitn(3, ':');
        let controllers = fields.nth(1)?;
        let path = fields.next()?;
        let mine = match version {
            Version::One => controllers.split(',').any(|name| name == controller.name_v1()),
            Version::Unified => controllers.is_empty(),
        };
        mine.then(|| path.to_owned())
    })
}

/// The control group of one container, in every hierarchy that could be had.
#[derive(Clone, Debug)]
pub(crate) struct ContainerGroup {
    limits: Limits,
    directories: BTreeMap<Controller, (Version, PathBuf)>,
}

impl ContainerGroup {
    /// The directories a process must be put into, each once.
    pub(crate) fn directories(&self) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> =
            self.directories.values().map(|(_, path)| path.clone()).collect();
        all.dedup();
        all
    }

    /// What the container sees under `/sys/fs/cgroup`, and as what: the limits that language
    /// runtimes size themselves by.
    pub(crate) fn shown_as(&self) -> Vec<(PathBuf, String)> {
        let mut all: Vec<(PathBuf, String)> = Vec::new();
        let sized_by = [Controller::Processor, Controller::Memory];
        for (controller, (version, path)) in &self.directories {
            if !sized_by.contains(controller) {
                continue;
            }
            let name = match version {
                Version::One => controller.name_v1().to_owned(),
                Version::Unified => String::new(),
            };
            if !all.iter().any(|(known, _)| known == path) {
                all.push((path.clone(), name));
            }
        }
        // A mixture: the container is shown the version 1 controllers, as tools look there first.
        if all.iter().any(|(_, name)| !name.is_empty()) {
            all.retain(|(_, name)| !name.is_empty());
        }
        all
    }

    fn apply(&self, limits: Limits) -> io::Result<()> {
        self.set_processor(Allowance::Full)?;
        if let Some((version, path)) = self.directories.get(&Controller::Memory) {
            set_memory(*version, path, limits.memory_bytes)?;
        }
        if let Some((_, path)) = self.directories.get(&Controller::Processes) {
            fs::write(path.join("pids.max"), PROCESSES_MAX.to_string())?;
        }
        Ok(())
    }

    /// Sets how much processor time there is from now on.
    pub(crate) fn set_processor(&self, allowance: Allowance) -> io::Result<()> {
        let Some((version, path)) = self.directories.get(&Controller::Processor) else {
            return Ok(());
        };
        let quota = quota_microseconds(self.limits.processor_millis, allowance);
        match version {
            Version::One => {
                fs::write(path.join("cpu.cfs_period_us"), PERIOD_MICROSECONDS.to_string())?;
                fs::write(path.join("cpu.cfs_quota_us"), quota.to_string())
            }
            Version::Unified => {
                fs::write(path.join("cpu.max"), format!("{quota} {PERIOD_MICROSECONDS}"))
            }
        }
    }

    /// What was used so far; what is not accounted for is zero.
    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        match self.directories.get(&Controller::ProcessorAccounting) {
            Some((Version::One, path)) => {
                let nanoseconds = read_number(&path.join("cpuacct.usage")).unwrap_or(0);
                usage.processor = Duration::from_nanos(nanoseconds);
            }
            Some((Version::Unified, path)) => {
                let microseconds = read_field(&path.join("cpu.stat"), "usage_usec").unwrap_or(0);
                usage.processor = Duration::from_micros(microseconds);
            }
            None => {}
        }
        if let Some((version, path)) = self.directories.get(&Controller::Memory) {
            let file = match version {
                Version::One => "memory.usage_in_bytes",
                Version::Unified => "memory.current",
            };
            usage.memory_bytes = read_number(&path.join(file)).unwrap_or(0);
        }
        usage
    }

    /// How often the kernel killed a process of this container for want of memory.
    pub(crate) fn out_of_memory_kills(&self) -> u64 {
        let found = match self.directories.get(&Controller::Memory) {
            Some((Version::One, path)) => read_field(&path.join("memory.oom_control"), "oom_kill"),
            Some((Version::Unified, path)) => read_field(&path.join("memory.events"), "oom_kill"),
            None => None,
        };
        found.unwrap_or(0)
    }

    /// Removes the group; fails while a process is still in it.
    pub(crate) fn remove(&self) -> bool {
        let mut gone = true;
        for (_, path) in self.directories.values() {
            gone &= remove_directory(path);
        }
        gone
    }

    /// Kills whatever is still in the group.
    pub(crate) fn kill(&self) {
        for (_, path) in self.directories.values() {
            kill_members(path);
        }
    }
}

/// Kills every process in the group of this directory; true when there was none.
pub(crate) fn kill_members(directory: &Path) -> bool {
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut none = true;
    for process in members.lines().filter_map(|line| line.trim().parse::<i32>().ok()) {
        // Zero is a process of another process namespace: not ours to signal by number.
        if process > 0 {
            none = false;
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(process),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    none
}

/// Removes a group's directory; true when it is gone.
pub(crate) fn remove_directory(directory: &Path) -> bool {
    match fs::remove_dir(directory) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Microseconds of processor time in each period.
fn quota_microseconds(processor_millis: u32, allowance: Allowance) -> u64 {
    let full = u64::from(processor_millis) * PERIOD_MICROSECONDS / 1_000;
    let quota = match allowance {
        Allowance::Full => full,
        Allowance::Boosted if processor_millis <= 1_000 => full * 2,
        Allowance::Boosted => full + PERIOD_MICROSECONDS,
        Allowance::Throttled => QUOTA_MICROSECONDS_MIN,
    };
    quota.max(QUOTA_MICROSECONDS_MIN)
}

fn set_memory(version: Version, path: &Path, bytes: u64) -> io::Result<()> {
    match version {
        Version::One => {
            fs::write(path.join("memory.limit_in_bytes"), bytes.to_string())?;
            // Without swap accounting the file does not exist, and there is nothing to forbid.
            let _ = fs::write(path.join("memory.memsw.limit_in_bytes"), bytes.to_string());
        }
        Version::Unified => {
            fs::write(path.join("memory.max"), bytes.to_string())?;
            let _ = fs::write(path.join("memory.swap.max"), "0");
            // An instance that lost one of its processes is not worth keeping.
            let _ = fs::write(path.join("memory.oom.group"), "1");
        }
    }
    Ok(())
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number after `name` in a file of `name number` lines.
fn read_field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// The controllers a unified hierarchy offers at its mount point.
fn controllers_of(mount: &Path) -> Vec<String> {
    let text = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Looks a controller up in the mount table: version 1 first, since a controller that is mounted
/// there is not available in the unified hierarchy.
fn find_hierarchy(
    table: &str,
    controller: Controller,
    unified_controllers: &dyn Fn(&Path) -> Vec<String>,
) -> Option<Hierarchy> {
    let mut unified = None;
    for line in table.lines() {
        // 36 35 98:0 /root /mount/point options optional-fields - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let mount = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
        match kind {
            "cgroup" if options.split(',').any(|option| option == controller.name_v1()) => {
                return Some(Hierarchy { version: Version::One, mount });
            }
            "cgroup2" if unified.is_none() => unified = Some(mount),
            _ => {}
        }
    }
    let mount = unified?;
    let offered = unified_controllers(&mount);
    offered
        .iter()
        .any(|name| name == controller.name_v2())
        .then_some(Hierarchy { version: Version::Unified, mount })
}

fn prepare_root(hierarchy: &Hierarchy, root: &Path, controller: Controller) -> io::Result<()> {
    match fs::create_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if hierarchy.version == Version::Unified {
        enable(&hierarchy.mount, controller)?;
        enable(root, controller)?;
    }
    Ok(())
}

/// Hands a controller of the unified hierarchy down to the groups below `directory`.
fn enable(directory: &Path, controller: Controller) -> io::Result<()> {
    let control = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    if enabled.split_whitespace().any(|name| name == controller.name_v2()) {
        return Ok(());
    }
    let wish = format!("+{}", controller.name_v2());
    match fs::write(&control, &wish) {
        // A group that is not the host's own root may not hold processes and hand controllers down
        // at once: inside a container, this process has to step into a leaf first.
        Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
            let leaf = directory.join("tidegate-server");
            if !leaf.is_dir() {
                fs::create_dir(&leaf)?;
            }
            fs::write(leaf.join("cgroup.procs"), "0")?;
            fs::write(&control, &wish)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
29 28 0:25 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
32 29 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "25 24 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn found(table: &str, offered: &[&str], controller: Controller) -> String {
        let offered: Vec<String> = offered.iter().map(|name| (*name).to_owned()).collect();
        match find_hierarchy(table, controller, &|_| offered.clone()) {
            Some(found) => format!("{:?} {}", found.version, found.mount.display()),
            None => "none".to_owned(),
        }
    }

    #[test]
    fn each_controller_is_looked_for_on_its_own() {
        let cases = [
            (HYBRID, &["pids"][..], Controller::Memory, "One /sys/fs/cgroup/memory"),
            (HYBRID, &["pids"][..], Controller::Processor, "One /sys/fs/cgroup/cpu,cpuacct"),
            (HYBRID, &["pids"][..], Controller::Processes, "Unified /sys/fs/cgroup/unified"),
            (HYBRID, &[][..], Controller::Processes, "none"),
            (UNIFIED, &["cpu", "memory"][..], Controller::Memory, "Unified /sys/fs/cgroup"),
            (UNIFIED, &["cpu"][..], Controller::ProcessorAccounting, "Unified /sys/fs/cgroup"),
            (UNIFIED, &["cpu"][..], Controller::Memory, "none"),
            ("", &[][..], Controller::Memory, "none"),
        ];
        for (table, offered, controller, expected) in cases {
            assert_eq!(found(table, offered, controller), expected, "{controller:?}");
        }
    }

    #[test]
    fn a_process_is_found_in_each_hierarchy() {
        let member = "4:memory:/a\n3:cpu,cpuacct:/b/c\n0::/d\n";
        let cases = [
            (Controller::Memory, Version::One, Some("/a")),
            (Controller::ProcessorAccounting, Version::One, Some("/b/c")),
            (Controller::Processes, Version::One, None),
            (Controller::Processes, Version::Unified, Some("/d")),
        ];
        for (controller, version, expected) in cases {
            assert_eq!(path_in(member, controller, version).as_deref(), expected);
        }
    }

    #[test]
    fn the_processor_quota_follows_the_allowance() {
        let cases = [
            (1_000, Allowance::Full, 100_000),
            (500, Allowance::Full, 50_000),
            (80, Allowance::Full, 8_000),
            (500, Allowance::Boosted, 100_000),
            (1_000, Allowance::Boosted, 200_000),
            (2_000, Allowance::Boosted, 300_000),
            (4_000, Allowance::Throttled, 1_000),
            (0, Allowance::Full, 1_000),
        ];
        for (millis, allowance, expected) in cases {
            assert_eq!(quota_microseconds(millis, allowance), expected, "{millis} {allowance:?}");
        }
    }
}
