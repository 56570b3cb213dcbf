//! The data directory: where everything of one server is kept, and how others find the server through it.
//!
//! Invariant: at most one server holds a data directory, by a lock that the kernel lets go of when the
//! process ends, however it ends.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The layout a server writes; one that is greater is refused.
const FORMAT: u32 = 1;

/// A data directory, whether or not a server runs on it.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
}

/// What a running server tells about itself in `server.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// The layout of this file.
    pub(crate) format: u32,
    /// The server's version.
    pub(crate) version: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Where the API listens.
    pub(crate) api: SocketAddr,
    /// Where the metrics are.
    pub(crate) metrics: SocketAddr,
    /// Where the `run.app` addresses of services are answered.
    #[serde(default)]
    pub(crate) run_app: Option<RunAppAddresses>,
    /// The project of the first start.
    pub(crate) project: String,
}

/// Where every service is answered whose `run.app` name a client gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunAppAddresses {
    /// Without TLS, by the `Host` field.
    pub(crate) http: SocketAddrV4,
    /// With TLS, by the server name and the `Host` field.
    pub(crate) https: SocketAddrV4,
}

/// The right to run a server on the directory; given up when dropped, and when nobody it was shared with
/// has it any more.
#[derive(Debug)]
pub(crate) struct Held {
    lock: File,
}

impl Held {
    /// The right of another process, which stays held by whoever is left of the two.
    pub(crate) fn inherited(lock: File) -> anyhow::Result<Held> {
        let mut held = Held { lock };
        held.sign()?;
        Ok(held)
    }

    /// The right, to be shared with another process.
    pub(crate) fn share(&self) -> std::io::Result<File> {
        self.lock.try_clone()
    }

    /// Writes into the lock whose it is.
    fn sign(&mut self) -> std::io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        writeln!(self.lock, "{}", std::process::id())
    }
}

impl DataDir {
    /// The directory that was asked for, or the default of this user.
    pub(crate) fn of(chosen: Option<&Path>) -> anyhow::Result<DataDir> {
        let root = match chosen {
            Some(path) => path.to_owned(),
            None => default_root()?,
        };
        let root = std::path::absolute(&root)
            .with_context(|| format!("`{}` is not a directory name", root.display()))?;
        Ok(DataDir { root })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A file or directory inside.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the directory if it is absent (readable by its owner only) and takes its lock.
    pub(crate) fn hold(&self) -> anyhow::Result<Held> {
        let shown = self.root.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .with_context(|| format!("could not make the data directory `{shown}`"))?;
        let mode = fs::metadata(&self.root)?.mode();
        if mode & 0o022 != 0 {
            bail!(
                "others may write to the data directory `{shown}`: run `chmod go-w {shown}` first"
            );
        }
        let path = self.join("lock");
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("could not open `{}`", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                lock.read_to_string(&mut pid)?;
                bail!(
                    "a server already runs on `{shown}` (process {}): stop it with `tidegate down`, or \
                     choose another --data-dir",
                    pid.trim()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("could not lock `{}`", path.display()));
            }
        }
        let mut held = Held { lock };
        held.sign()?;
        Ok(held)
    }

    /// Whether some process holds the directory.
    pub(crate) fn is_held(&self) -> bool {
        let Ok(lock) = File::options().read(true).write(true).open(self.join("lock")) else {
            return false;
        };
        matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Writes what others need to find this server, in one step.
    pub(crate) fn announce(&self, running: &Running) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(running)?;
        let (unfinished, path) = (self.join("server.json.new"), self.join("server.json"));
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, &path))
            .with_context(|| format!("could not write `{}`", path.display()))
    }

    /// The server's last word about itself, whether or not it still runs: its port is tried again at
    /// the next start, so that shells that were pointed at it stay pointed at it.
    pub(crate) fn last_announced(&self) -> anyhow::Result<Option<Running>> {
        let path = self.join("server.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("could not read `{}`", path.display()));
            }
        };
        // A file cut off by a full disk tells nothing, and nothing depends on it.
        let Ok(running) = serde_json::from_slice::<Running>(&text) else { return Ok(None) };
        if running.format > FORMAT {
            bail!(
                "`{}` was written by Tidegate {}, which is newer than this one",
                path.display(),
                running.version
            );
        }
        Ok(Some(running))
    }

    /// The server that runs on this directory now.
    pub(crate) fn running(&self) -> anyhow::Result<Running> {
        let shown = self.root.display();
        if !self.is_held() {
            bail!("no server runs on `{shown}`: start one with `tidegate up --data-dir {shown}`");
        }
        self.last_announced()?
            .with_context(|| format!("the server on `{shown}` is still starting: try again"))
    }
}

impl Running {
    /// What this process announces.
    pub(crate) fn this(
        api: SocketAddr,
        metrics: SocketAddr,
        run_app: Option<RunAppAddresses>,
        project: &str,
    ) -> Running {
        Running {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            api,
            metrics,
            run_app,
            project: project.into(),
        }
    }
}

fn default_root() -> anyhow::Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/tidegate"));
    }
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").filter(|value| !value.is_empty()) {
        return Ok(PathBuf::from(data).join("tidegate"));
    }
    let home = std::env::home_dir().context("there is no home directory: give --data-dir")?;
    Ok(home.join(".local/share/tidegate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, DataDir) {
        let parent = tempfile::tempdir().unwrap();
        let dir = DataDir::of(Some(&parent.path().join("data"))).unwrap();
        (parent, dir)
    }

    #[test]
    fn a_directory_is_held_by_one_server_at_a_time() {
        let (_parent, dir) = fresh();
        assert!(!dir.is_held());
        let held = dir.hold().unwrap();
        assert!(dir.is_held());
        let refusal = dir.hold().unwrap_err().to_string();
        assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
        drop(held);
        assert!(!dir.is_held());
        dir.hold().unwrap();
    }

    #[test]
    fn a_server_is_found_through_its_directory_and_remembered_after_it_has_gone() {
        let (_parent, dir) = fresh();
        assert!(dir.running().unwrap_err().to_string().contains("no server runs"));
        let held = dir.hold().unwrap();
        assert!(dir.running().unwrap_err().to_string().contains("still starting"));
        let address = "127.0.0.1:1".parse().unwrap();
        let running = Running::this(address, address, None, "p");
        dir.announce(&running).unwrap();
        assert_eq!(dir.running().unwrap(), running);
        drop(held);
        assert!(dir.running().is_err());
        assert_eq!(dir.last_announced().unwrap(), Some(running));
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (_parent, dir) = fresh();
        drop(dir.hold().unwrap());
        fs::set_permissions(dir.root(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(dir.hold().unwrap_err().to_string().contains("chmod go-w"));
    }

    #[test]
    fn what_a_newer_server_wrote_is_refused() {
        let (_parent, dir) = fresh();
        let _held = dir.hold().unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let newer = Running { format: FORMAT + 1, ..Running::this(address, address, None, "p") };
        dir.announce(&newer).unwrap();
        assert!(dir.running().unwrap_err().to_string().contains("newer"));
    }
}
