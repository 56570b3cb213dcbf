//! What an instance has on disk, and the files of its `/etc`.
//!
//! ```text
//! instances/ID/
//!   name           the resource, for whoever looks
//!   process        the running instance: process id, its start time, boot
//!   console.log    what was written to the serial port
//!   accounts       the user ids given out so far
//!   roots.pem      the certificates the instance trusts
//!   etc/           the instance's /etc, which it cannot write
//!   home/ root/    what survives a stop
//!   mount/         where the instance's root is put together, in its own mount namespace
//! ```
//!
//! Invariant: the server never follows a path an instance can change. It writes only into `etc/` and beside
//! it, and makes home folders without following links.

use crate::error::VpcError;
use crate::network::METADATA_ADDRESS;
use plan::network::{InstancePlan, SshKey};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user id of the first account made from metadata.
const FIRST_USER_ID: u32 = 1000;
/// The program that makes host keys, and the package it is in.
const KEYGEN: (&str, &str) = ("ssh-keygen", "openssh-client");
/// The types of host keys an instance has.
const HOST_KEY_TYPES: [&str; 2] = ["ed25519", "ecdsa"];

/// Accounts every instance has, as lines of `passwd`.
const SYSTEM_ACCOUNTS: [&str; 4] = [
    "root:x:0:0:root:/root:/bin/bash",
    "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin",
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
    "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin",
];
/// Groups every instance has.
const SYSTEM_GROUPS: [&str; 4] = ["root:x:0:", "daemon:x:1:", "tty:x:5:", "nogroup:x:65534:"];

const SSHD_CONFIG: &str = "\
Port 22
AddressFamily inet
HostKey /etc/ssh/ssh_host_ed25519_key
HostKey /etc/ssh/ssh_host_ecdsa_key
AuthorizedKeysFile /etc/ssh/authorized_keys/%u
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PidFile none
PrintMotd no
AcceptEnv LANG LC_*
MaxStartups 100
Subsystem sftp internal-sftp
";

/// Files that are the same in every instance.
const FIXED_FILES: [(&str, &str); 5] = [
    ("ssh/sshd_config", SSHD_CONFIG),
    ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n"),
    ("resolv.conf", "nameserver 169.254.169.254\n"),
    ("profile", "export PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin\n"),
    ("shells", "/bin/sh\n/bin/bash\n"),
];
/// Files of the host that are copied when they are there; none of them holds a secret.
const COPIED_FILES: [&str; 8] = [
    "ld.so.cache",
    "services",
    "protocols",
    "os-release",
    "debian_version",
    "bash.bashrc",
    "mime.types",
    "ssl/openssl.cnf",
];
/// What a new home begins with.
const SKELETON: &str = "/etc/skel";
/// Folders of the host that are mounted, read-only, when they are there; none of them holds a secret.
pub(super) const MOUNTED_FOLDERS: [&str; 2] = ["alternatives", "ssl/certs"];
/// The file in one of them that programs trust.
pub(super) const TRUSTED: &str = "ssl/certs/ca-certificates.crt";

/// The folder of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at a path, which need not be there yet.
    pub(crate) fn at(path: PathBuf) -> Folder {
        Folder { path }
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that names the running process.
    pub(crate) fn process(&self) -> PathBuf {
        self.path.join("process")
    }

    /// What was written to the serial port.
    pub(crate) fn console(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The instance's `/etc`.
    pub(crate) fn etc(&self) -> PathBuf {
        self.path.join("etc")
    }

    /// Where the instance's root is put together.
    pub(crate) fn mount(&self) -> PathBuf {
        self.path.join("mount")
    }

    /// One of the folders that survive a stop: `home` or `root`.
    pub(crate) fn kept(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes everything the declaration says into the folder. Keys and names are in force at once,
    /// in a running instance too.
    pub(crate) fn write(
        &self,
        plan: &InstancePlan,
        hosts: &BTreeMap<String, Ipv4Addr>,
    ) -> Result<(), VpcError> {
        make_folder(&self.path, 0o755)?;
        for (name, mode) in [("etc", 0o755), ("home", 0o755), ("root", 0o700), ("mount", 0o755)] {
            make_folder(&self.path.join(name), mode)?;
        }
        for name in ["ssh/authorized_keys"].iter().chain(&MOUNTED_FOLDERS) {
            make_folder(&self.etc().join(name), 0o755)?;
        }
        put(&self.path.join("name"), format!("{}\n", plan.name), 0o644)?;
        for (name, text) in FIXED_FILES {
            put(&self.etc().join(name), text, 0o644)?;
        }
        let name = plan.hostname.split('.').next().unwrap_or("instance");
        put(&self.etc().join("hostname"), format!("{name}\n"), 0o644)?;
        put(&self.etc().join("hosts"), hosts_file(plan, hosts), 0o644)?;
        self.write_accounts(&plan.keys)
    }

    /// Keeps a copy of the certificates that the instance trusts; none where there is no such file.
    pub(crate) fn trust(&self, roots: &Path) -> Result<(), VpcError> {
        match fs::read(roots) {
            Ok(bundle) => put(&self.roots(), bundle, 0o644),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(VpcError::file("read", roots)(error)),
        }
    }

    /// The certificates that the instance trusts, if they are not the host's.
    pub(crate) fn roots(&self) -> PathBuf {
        self.path.join("roots.pem")
    }

    /// Copies what the host's `/etc` contributes, and makes the host keys the first time.
    pub(crate) fn prepare_start(&self) -> Result<(), VpcError> {
        for name in COPIED_FILES {
            if let Ok(content) = fs::read(Path::new("/etc").join(name)) {
                put(&self.etc().join(name), content, 0o644)?;
            }
        }
        for kind in HOST_KEY_TYPES {
            let path = self.etc().join(format!("ssh/ssh_host_{kind}_key"));
            if path.with_extension("pub").exists() {
                continue;
            }
            // The public half is moved into place last, so a pair is there as a whole or not at all.
            let fresh = self.path.join(format!("fresh_{kind}_key"));
            let public = fresh.with_extension("pub");
            let _ = fs::remove_file(&fresh);
            let keygen = Command::new(KEYGEN.0)
                .args(["-q", "-t", kind, "-N", "", "-C", "", "-f"])
                .arg(&fresh)
                .output()
                .map_err(|source| VpcError::Missing {
                    program: KEYGEN.0,
                    package: KEYGEN.1,
                    source,
                })?;
            if !keygen.status.success() {
                let says = String::from_utf8_lossy(&keygen.stderr).trim().to_owned();
                return Err(VpcError::Program { program: KEYGEN.0, says });
            }
            fs::rename(&fresh, &path).map_err(VpcError::file("write", &path))?;
            let place = path.with_extension("pub");
            fs::rename(&public, &place).map_err(VpcError::file("write", &place))?;
        }
        Ok(())
    }

    /// The public host keys: type and base64.
    pub(crate) fn host_keys(&self) -> Vec<(String, String)> {
        let read = |kind: &&str| {
            let path = self.etc().join(format!("ssh/ssh_host_{kind}_key.pub"));
            let text = fs::read_to_string(path).ok()?;
            let mut words = text.split_ascii_whitespace().map(str::to_owned);
            words.next().zip(words.next())
        };
        HOST_KEY_TYPES.iter().filter_map(read).collect()
    }

    /// Removes the folder with everything in it.
    pub(crate) fn remove(&self) -> Result<(), VpcError> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(VpcError::file("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Accounts and keys. An account once made stays, as it does on Google's images; its keys go.
    fn write_accounts(&self, keys: &[SshKey]) -> Result<(), VpcError> {
        let path = self.path.join("accounts");
        let mut accounts = read_accounts(&path)?;
        let is_system =
            |user: &str| SYSTEM_ACCOUNTS.iter().any(|line| line.split(':').next() == Some(user));
        let before = accounts.len();
        for user in keys.iter().map(|key| key.user.as_str()).filter(|user| !is_system(user)) {
            let next = accounts.values().max().map_or(FIRST_USER_ID, |last| last + 1);
            accounts.entry(user.to_owned()).or_insert(next);
        }
        if accounts.len() != before {
            let lines: String =
                accounts.iter().map(|(user, id)| format!("{user} {id}\n")).collect();
            put(&path, &lines, 0o644)?;
        }
        for (user, id) in &accounts {
            self.make_home(user, *id)?;
        }
        let etc = self.etc();
        let (passwd, group, shadow) = account_files(&accounts);
        put(&etc.join("group"), &group, 0o644)?;
        put(&etc.join("shadow"), &shadow, 0o600)?;
        put(&etc.join("passwd"), &passwd, 0o644)?;
        let mut with_keys: BTreeMap<&str, String> = BTreeMap::new();
        for key in keys.iter().filter(|key| key.user.as_str() == "root" || !is_system(&key.user)) {
            let lines = with_keys.entry(&key.user).or_default();
            let _ = writeln!(lines, "{}", key.line);
        }
        self.write_keys(&with_keys)
    }

    fn write_keys(&self, keys: &BTreeMap<&str, String>) -> Result<(), VpcError> {
        let folder = self.etc().join("ssh/authorized_keys");
        for (user, lines) in keys {
            put(&folder.join(user), lines, 0o644)?;
        }
        let listed = fs::read_dir(&folder).map_err(VpcError::file("list", &folder))?;
        let present: BTreeSet<String> =
            listed.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        for user in present.iter().filter(|user| !keys.contains_key(user.as_str())) {
            let path = folder.join(user);
            fs::remove_file(&path).map_err(VpcError::file("remove", &path))?;
        }
        Ok(())
    }

    fn make_home(&self, user: &str, id: u32) -> Result<(), VpcError> {
        let home = self.kept("home").join(user);
        if fs::symlink_metadata(&home).is_ok() {
            return Ok(());
        }
        // Put together where nobody in the instance sees it, and moved into place as a whole.
        let fresh = self.path.join("fresh_home");
        let make = || {
            if fresh.exists() {
                fs::remove_dir_all(&fresh)?;
            }
            DirBuilder::new().mode(0o755).create(&fresh)?;
            for file in fs::read_dir(SKELETON).into_iter().flatten().flatten() {
                let copy = fresh.join(file.file_name());
                if file.file_type()?.is_file() {
                    fs::copy(file.path(), &copy)?;
                    lchown(&copy, Some(id), Some(id))?;
                }
            }
            lchown(&fresh, Some(id), Some(id))?;
            fs::rename(&fresh, &home)
        };
        make().map_err(VpcError::file("make", &home))
    }
}

/// `/etc/passwd`, `/etc/group`, `/etc/shadow`. The `*` locks the password and leaves keys in force.
fn account_files(accounts: &BTreeMap<String, u32>) -> (String, String, String) {
    let mut passwd = SYSTEM_ACCOUNTS.map(|line| format!("{line}\n")).concat();
    let mut group = SYSTEM_GROUPS.map(|line| format!("{line}\n")).concat();
    let system = SYSTEM_ACCOUNTS.iter().filter_map(|line| line.split(':').next());
    let mut shadow: String = system.map(|user| format!("{user}:*:19000:0:99999:7:::\n")).collect();
    for (user, id) in accounts {
        let _ = writeln!(passwd, "{user}:x:{id}:{id}::/home/{user}:/bin/bash");
        let _ = writeln!(group, "{user}:x:{id}:");
        let _ = writeln!(shadow, "{user}:*:19000:0:99999:7:::");
    }
    (passwd, group, shadow)
}

fn read_accounts(path: &Path) -> Result<BTreeMap<String, u32>, VpcError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(VpcError::file("read", path))?,
    };
    let account = |line: &str| {
        let (user, id) = line.split_once(' ')?;
        Some((user.to_owned(), id.parse().ok()?))
    };
    Ok(text.lines().filter_map(account).collect())
}

fn hosts_file(plan: &InstancePlan, hosts: &BTreeMap<String, Ipv4Addr>) -> String {
    let short = plan.hostname.split('.').next().unwrap_or("instance");
    let mut text = format!("127.0.0.1 localhost\n{} {} {short}\n", plan.address, plan.hostname);
    let _ = writeln!(text, "{METADATA_ADDRESS} metadata.google.internal metadata");
    for (name, address) in hosts {
        let _ = writeln!(text, "{address} {name}");
    }
    text
}

fn make_folder(path: &Path, mode: u32) -> Result<(), VpcError> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(VpcError::file("make", path))
}

/// Replaces a file as a whole, unless it says the same already.
pub(super) fn put(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<(), VpcError> {
    let content = content.as_ref();
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".fresh");
    let fresh = path.with_file_name(name);
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        fs::rename(&fresh, path)
    };
    write().map_err(VpcError::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Kind, ResourceName};
    use plan::network::InstanceFirewall;

    fn plan(keys: &[(&str, &str)]) -> InstancePlan {
        let key =
            |(user, line): &(&str, &str)| SshKey { user: (*user).into(), line: (*line).into() };
        InstancePlan {
            name: ResourceName::zonal("p", "us-west1-a", Kind::Instance, "vm"),
            id: 7,
            running: true,
            boot: 0,
            address: Ipv4Addr::new(10, 1, 2, 2),
            gateway: Ipv4Addr::new(10, 1, 2, 1),
            hostname: "vm.us-west1-a.c.p.internal".into(),
            can_ip_forward: false,
            external: false,
            keys: keys.iter().map(key).collect(),
            firewall: InstanceFirewall::default(),
        }
    }

    fn read(folder: &Folder, path: &str) -> String {
        fs::read_to_string(folder.path().join(path)).unwrap_or_default()
    }

    #[test]
    fn an_account_keeps_its_id_and_loses_its_keys() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: giving a home folder to its owner needs root");
            return;
        }
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::at(temporary.path().join("vm"));
        let hosts = BTreeMap::from([("db.internal".to_owned(), Ipv4Addr::new(10, 1, 2, 3))]);
        let write = |keys: &[(&str, &str)]| folder.write(&plan(keys), &hosts).expect("written");
        write(&[("zoe", "ssh-rsa Z"), ("root", "ssh-rsa R")]);
        write(&[("amy", "ssh-rsa A"), ("amy", "ssh-rsa B"), ("daemon", "ssh-rsa D")]);
        assert_eq!(read(&folder, "accounts"), "amy 1001\nzoe 1000\n");
        assert_eq!(read(&folder, "etc/ssh/authorized_keys/amy"), "ssh-rsa A\nssh-rsa B\n");
        for gone in ["zoe", "root", "daemon"] {
            assert!(!folder.etc().join("ssh/authorized_keys").join(gone).exists(), "{gone}");
        }
        assert!(read(&folder, "etc/passwd").contains("zoe:x:1000:1000::/home/zoe:/bin/bash\n"));
        assert!(folder.kept("home").join("zoe").is_dir());
        assert_eq!(
            read(&folder, "etc/hosts"),
            "127.0.0.1 localhost\n10.1.2.2 vm.us-west1-a.c.p.internal vm\n\
             169.254.169.254 metadata.google.internal metadata\n10.1.2.3 db.internal\n"
        );
    }
}
