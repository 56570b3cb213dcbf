//! Network namespaces: making, pinning, entering and leaving them.
//!
//! A namespace is entered by a thread that does its work there and ends; a thread that comes back to a
//! pool never changes its namespace. A pin is a file under the data directory onto which the namespace
//! is bind-mounted, so that it outlives the server.

use crate::error::VpcError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// The namespace of the thread that looks.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace; it exists at least as long as this value.
#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    file: Arc<File>,
    path: PathBuf,
}

impl Namespace {
    /// Makes a namespace that exists as long as something holds it. `label` is for errors.
    pub(crate) fn make(label: &Path) -> Result<Namespace, VpcError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN)
        };
        let file = on_own_thread(make).and_then(|made| made).map_err(failed("make", label))?;
        Ok(Namespace { file: Arc::new(file), path: label.to_owned() })
    }

    /// The namespace pinned at `pin`; made and pinned when there is none. True if it was made.
    pub(crate) fn pinned(pin: &Path) -> Result<(Namespace, bool), VpcError> {
        if is_pinned(pin) {
            let file = File::open(pin).map_err(failed("open", pin))?;
            return Ok((Namespace { file: Arc::new(file), path: pin.to_owned() }, false));
        }
        File::create(pin).map_err(failed("make a pin for", pin))?;
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some(OWN), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            File::open(OWN)
        };
        let made = on_own_thread(make).and_then(|made| made).map_err(failed("make", pin));
        if made.is_err() {
            let _ = unpin(pin);
        }
        Ok((Namespace { file: Arc::new(made?), path: pin.to_owned() }, true))
    }

    /// The namespace itself, to be handed to a child or to the kernel.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread that is inside the namespace, and waits for it.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, VpcError> {
        let enter = || {
            setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        on_own_thread(enter)
            .and_then(|done: io::Result<T>| done)
            .map_err(failed("enter", &self.path))
    }
}

/// Adds to an error what was done to which namespace.
fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VpcError {
    let path = path.to_owned();
    move |source| VpcError::Namespace { what, path, source }
}

/// Runs `work` on a thread of its own.
fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        worker.join().map_err(|_| io::Error::other("the thread inside the namespace panicked"))
    })
}

/// Whether a namespace is mounted on the file. After a reboot the file is there and the mount is not.
fn is_pinned(pin: &Path) -> bool {
    statfs(pin).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Takes a pin away; one that is gone already is no error. The namespace goes with its last user.
pub(crate) fn unpin(pin: &Path) -> Result<(), VpcError> {
    while is_pinned(pin) {
        umount2(pin, MntFlags::MNT_DETACH)
            .map_err(io::Error::from)
            .map_err(failed("unpin", pin))?;
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(VpcError::file("remove", pin)(error))
        }
        _ => Ok(()),
    }
}

/// Writes kernel settings of the namespace of the calling thread.
pub(crate) fn set_kernel_options(options: &[(&str, &str)]) -> Result<(), VpcError> {
    for (option, value) in options {
        let path = Path::new("/proc/sys/net").join(option);
        match fs::write(&path, value) {
            // A kernel without IPv6 has nothing to switch off.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            written => written.map_err(VpcError::file("write", &path))?,
        }
    }
    Ok(())
}
