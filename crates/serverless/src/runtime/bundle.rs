//! From what was declared to what is executed: command line, environment, and the OCI
//! specification of a container.
//!
//! Pure. Command and arguments follow Cloud Run (and Kubernetes): a command replaces the image's
//! entry point and its default arguments, arguments alone replace only the latter.
//!
//! Invariant: every container gets a `PATH`, no new privileges, a capability set of our choosing,
//! and masked kernel files, whatever its image says.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder, UserBuilder, get_default_maskedpaths,
    get_default_readonly_paths,
};

use super::limits::OPEN_FILES_MAX;
use super::orders::{ContainerPlan, PlannedSource, PlannedVolume};
use super::surroundings::{METADATA_ADDRESS, METADATA_NAMES};
use super::{ContainerSpec, InstanceSpec, StartError, Volume, VolumeSource};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHARED_MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// When the host itself runs out of memory, containers go before the server.
const OOM_SCORE: i32 = 500;

/// What root inside a container may do. Nothing here reaches beyond the container's own files,
/// processes and network.
pub(crate) const CAPABILITIES: [Capability; 10] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Decides everything about a container that does not depend on its files.
pub(crate) fn plan_container(
    instance: &InstanceSpec,
    container: &ContainerSpec,
) -> Result<ContainerPlan, StartError> {
    let arguments = command_line(container);
    if arguments.is_empty() {
        return Err(StartError::Invalid {
            field: "command",
            reason: format!("neither the image nor container `{}` names a program", container.name),
        });
    }
    let image = &container.image.config;
    let working_directory = match container.working_directory.as_deref() {
        Some(directory) if !directory.is_empty() => directory,
        _ => image.working_directory.as_str(),
    };
    Ok(ContainerPlan {
        name: container.name.clone(),
        layers: container.image.layers.clone(),
        arguments,
        environment: environment(instance, container),
        working_directory: absolute(working_directory),
        user: image.user.clone(),
        host_name: instance.host_name.clone(),
        hosts: hosts(instance),
        writable_bytes_max: container.limits.memory_bytes,
        processes_of_user_max: None,
        mounts: container
            .mounts
            .iter()
            .map(|mount| (mount.volume.clone(), mount.path.clone()))
            .collect(),
    })
}

/// The shared directories as the helper is told of them.
pub(crate) fn plan_volume(volume: &Volume) -> PlannedVolume {
    let source = match &volume.source {
        VolumeSource::Memory { bytes_max } => PlannedSource::Memory { bytes_max: *bytes_max },
        VolumeSource::Files(files) => PlannedSource::Files(
            files
                .iter()
                .map(|file| (file.path.clone(), file.contents.to_vec(), file.mode))
                .collect(),
        ),
        VolumeSource::HostDirectory { path, read_only } => {
            PlannedSource::HostDirectory { path: path.clone(), read_only: *read_only }
        }
    };
    PlannedVolume { name: volume.name.clone(), source }
}

fn command_line(container: &ContainerSpec) -> Vec<String> {
    let image = &container.image.config;
    let (program, arguments) = match (container.command.is_empty(), container.arguments.is_empty())
    {
        (false, _) => (&container.command, &container.arguments),
        (true, false) => (&image.entrypoint, &container.arguments),
        (true, true) => (&image.entrypoint, &image.command),
    };
    program.iter().chain(arguments).cloned().collect()
}

/// The image's environment, then the user's, then what the platform promises; the last wins.
fn environment(instance: &InstanceSpec, container: &ContainerSpec) -> Vec<String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.insert("PATH".to_owned(), DEFAULT_PATH.to_owned());
    for pair in &container.image.config.environment {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.insert(name.to_owned(), value.to_owned());
    }
    all.extend(container.environment.iter().cloned());
    if let Some(port) = container.port {
        all.insert("PORT".to_owned(), port.to_string());
    }
    all.insert("K_SERVICE".to_owned(), instance.service.clone());
    all.insert("K_REVISION".to_owned(), instance.revision.clone());
    all.insert("K_CONFIGURATION".to_owned(), instance.configuration.clone());
    all.retain(|name, _| !name.is_empty());
    all.into_iter().map(|(name, value)| format!("{name}={value}").replace('\0', "")).collect()
}

/// Containers of one instance find each other by name, on the loopback address.
fn hosts(instance: &InstanceSpec) -> String {
    let mut names: Vec<&str> = vec!["localhost"];
    names.extend(instance.containers.iter().map(|container| container.name.as_str()));
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(*name));
    let metadata = format!("{METADATA_ADDRESS} {METADATA_NAMES}");
    format!("127.0.0.1 {}\n::1 localhost\n{metadata}\n", names.join(" "))
}

fn absolute(path: &str) -> String {
    match path {
        "" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    }
}

/// Numbers of the user a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Asked to be somebody other than root, whose number this host may not have for us.
    pub(crate) unprivileged: bool,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) further_groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// Looks up the image's `USER` in its own `/etc/passwd` and `/etc/group`. An unknown name is root,
/// as on Cloud Run; an unknown number is taken as it is.
pub(crate) fn identity(user: &str, passwd: &str, group: &str) -> Identity {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let mut found = Identity::default();
    if name.is_empty() {
        found.home = Some("/root".to_owned());
    }
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [entry_name, _, user, primary, _, home, ..] = fields[..] else { return None };
        let (user, primary) = (user.parse::<u32>().ok()?, primary.parse::<u32>().ok()?);
        (entry_name == name || number == Some(user)).then_some((entry_name, user, primary, home))
    });
    match entry {
        Some((entry_name, user, primary, home)) => {
            found.user = user;
            found.group = primary;
            found.home = Some(home.to_owned()).filter(|home| !home.is_empty());
            found.further_groups = groups(group, |_, members| members.contains(&entry_name));
        }
        None => found.user = number.unwrap_or(0),
    }
    if let Some(wanted) = group_name {
        let by_name = groups(group, |name, _| name == wanted).first().copied();
        found.group = wanted.parse().ok().or(by_name).unwrap_or(found.group);
    }
    found
}

impl Identity {
    /// In a user namespace most numbers belong to nobody. A container whose user is one of those
    /// runs as the namespace's root, which is nobody special outside, without root's powers.
    pub(crate) fn among(mut self, user_map: &str, group_map: &str) -> Identity {
        self.unprivileged = self.user != 0;
        if !is_mapped(user_map, self.user) || !is_mapped(group_map, self.group) {
            self.user = 0;
            self.group = 0;
        }
        self.further_groups.retain(|group| is_mapped(group_map, *group));
        self
    }
}

/// Whether a map of `inside outside count` lines has this number.
fn is_mapped(map: &str, number: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
        let (first, count) = (fields.next().unwrap_or(0), fields.nth(1).unwrap_or(0));
        (first..first + count).contains(&u64::from(number))
    })
}

/// Numbers of the groups that `wanted` says yes to, by name and members.
fn groups(group: &str, wanted: impl Fn(&str, &[&str]) -> bool) -> Vec<u32> {
    let numbers = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        let members: Vec<&str> = fields.next().unwrap_or("").split(',').collect();
        wanted(name, &members).then_some(number)
    });
    numbers.collect()
}

/// Where a container's files are inside its instance's directory.
#[derive(Clone, Debug)]
pub(crate) struct ContainerPaths {
    /// The merged file system.
    pub(crate) root: PathBuf,
    /// The shared volumes, each a directory of its name.
    pub(crate) volumes: PathBuf,
    /// Bound control groups with the name each is shown under.
    pub(crate) groups: Vec<(PathBuf, String)>,
}

/// The OCI specification of a container.
pub(crate) fn oci_spec(
    plan: &ContainerPlan,
    paths: &ContainerPaths,
    identity: &Identity,
) -> Result<Spec, OciSpecError> {
    let mut environment = plan.environment.clone();
    if let Some(home) = identity.home.as_deref().filter(|_| !has_home(&environment)) {
        environment.push(format!("HOME={home}"));
    }
    let user = UserBuilder::default()
        .uid(identity.user)
        .gid(identity.group)
        .additional_gids(identity.further_groups.clone())
        .build()?;
    let mut bounds = vec![bound(PosixRlimitType::RlimitNofile, open_files_max())?];
    if let Some(processes_max) = plan.processes_of_user_max {
        bounds.push(bound(PosixRlimitType::RlimitNproc, processes_max)?);
    }
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(plan.arguments.clone())
        .env(environment)
        .cwd(PathBuf::from(&plan.working_directory))
        .capabilities(capabilities(identity)?)
        .rlimits(bounds)
        .no_new_privileges(true)
        .oom_score_adj(OOM_SCORE)
        .build()?;
    let root = RootBuilder::default().path(paths.root.clone()).readonly(false).build()?;
    let kinds = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
    ];
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(get_default_maskedpaths())
        .readonly_paths(get_default_readonly_paths())
        .build()?;
    // Limits are ours to set: see the control groups.
    linux.set_resources(None);
    SpecBuilder::default()
        .version("1.0.2")
        .root(root)
        .hostname(plan.host_name.clone())
        .mounts(mounts(plan, paths)?)
        .process(process)
        .linux(linux)
        .build()
}

fn bound(kind: PosixRlimitType, most: u64) -> Result<PosixRlimit, OciSpecError> {
    PosixRlimitBuilder::default().typ(kind).soft(most).hard(most).build()
}

fn has_home(environment: &[String]) -> bool {
    environment.iter().any(|pair| pair.starts_with("HOME="))
}

/// Cloud Run's bound, or this process's own hard limit where that is lower and cannot be raised.
pub(crate) fn open_files_max() -> u64 {
    match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) => hard.min(OPEN_FILES_MAX),
        Err(_) => OPEN_FILES_MAX,
    }
}

/// Root gets the capabilities of our choosing; anybody else starts with none and could only gain
/// them through a set-user-id program, which `no_new_privileges` forbids.
fn capabilities(identity: &Identity) -> Result<oci_spec::runtime::LinuxCapabilities, OciSpecError> {
    let all: HashSet<Capability> = CAPABILITIES.into_iter().collect();
    let effective = if identity.unprivileged { HashSet::new() } else { all.clone() };
    LinuxCapabilitiesBuilder::default()
        .bounding(all)
        .effective(effective.clone())
        .permitted(effective)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

fn mounts(plan: &ContainerPlan, paths: &ContainerPaths) -> Result<Vec<Mount>, OciSpecError> {
    let shared_memory = format!("size={SHARED_MEMORY_BYTES_MAX}");
    let mut all = vec![
        mount("proc", "/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount("tmpfs", "/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "devpts",
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        )?,
        mount(
            "shm",
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", &shared_memory],
        )?,
        mount("sysfs", "/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"])?,
    ];
    // Version 1 has a directory for each controller, and something has to hold them.
    if paths.groups.iter().any(|(_, name)| !name.is_empty()) {
        let options = ["nosuid", "noexec", "nodev", "mode=755", "size=64k"];
        all.push(mount("tmpfs", "/sys/fs/cgroup", "tmpfs", &options)?);
    }
    for (directory, name) in &paths.groups {
        let inside = Path::new("/sys/fs/cgroup").join(name);
        all.push(bind(directory, &inside, &["rbind", "ro", "nosuid", "noexec", "nodev"])?);
    }
    for (volume, inside) in &plan.mounts {
        all.push(bind(&paths.volumes.join(volume), Path::new(inside), &["rbind", "nosuid"])?);
    }
    Ok(all)
}

fn mount(source: &str, inside: &str, kind: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .source(source)
        .destination(inside)
        .typ(kind)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

fn bind(source: &Path, inside: &Path, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .source(source)
        .destination(inside)
        .typ("bind")
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:50::/home/bob:/bin/sh\nbad\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:\nwheel:x:10:alice,bob\nvideo:x:44:bob\n";

    #[test]
    fn a_number_that_is_not_mapped_becomes_a_root_without_powers() {
        let (whole, single) = ("0 0 4294967295\n", "0 1000 1\n");
        let cases = [
            ("bob", whole, "1000:50 [10, 44] unprivileged"),
            ("bob", single, "0:0 [] unprivileged"),
            ("", single, "0:0 [] root"),
            ("0:50", single, "0:0 [] root"),
        ];
        for (user, map, expected) in cases {
            let found = identity(user, PASSWD, GROUP).among(map, map);
            let power = if found.unprivileged { "unprivileged" } else { "root" };
            let text = format!("{}:{} {:?} {power}", found.user, found.group, found.further_groups);
            assert_eq!(text, expected, "{user} in {map}");
        }
    }

    #[test]
    fn a_user_is_looked_up_in_the_images_own_files() {
        let cases = [
            ("", "0:0 [] /root"),
            ("bob", "1000:50 [10, 44] /home/bob"),
            ("1000", "1000:50 [10, 44] /home/bob"),
            ("bob:video", "1000:44 [10, 44] /home/bob"),
            ("bob:7", "1000:7 [10, 44] /home/bob"),
            ("4242", "4242:0 [] none"),
            ("4242:4243", "4242:4243 [] none"),
            ("nobody-here", "0:0 [] none"),
            ("root", "0:0 [] /root"),
        ];
        for (user, expected) in cases {
            let found = identity(user, PASSWD, GROUP);
            let home = found.home.as_deref().unwrap_or("none");
            let text = format!("{}:{} {:?} {home}", found.user, found.group, found.further_groups);
            assert_eq!(text, expected, "{user}");
        }
    }
}
