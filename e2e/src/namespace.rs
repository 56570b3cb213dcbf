//! The network namespaces a server made, looked at from outside, and sockets inside them.
//!
//! A client VM's namespace is found by what Linux itself says: the one where its address is local.

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a connection inside a network may take to open.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long one answer may take to begin or go on.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// The namespace of the server with this data directory and process in which `address` is local.
    pub fn with_address(data: &Path, server: Option<u32>, address: Ipv4Addr) -> Result<Namespace> {
        for path in candidates(data, server) {
            let Ok(file) = File::open(&path) else { continue };
            let namespace = Namespace { file };
            if namespace.has(address).unwrap_or(false) {
                return Ok(namespace);
            }
        }
        bail!("no namespace of {} has the address {address}", data.display())
    }

    /// The namespace a process is in.
    pub fn of_process(pid: u32) -> Result<Namespace> {
        let path = format!("/proc/{pid}/ns/net");
        Ok(Namespace { file: File::open(&path).with_context(|| path)? })
    }

    /// A namespace by the name `ip netns` gave it.
    pub fn named(name: &str) -> Result<Namespace> {
        let path = format!("/run/netns/{name}");
        Ok(Namespace { file: File::open(&path).with_context(|| path)? })
    }

    fn has(&self, address: Ipv4Addr) -> Result<bool> {
        let table = self.inside(|| fs::read_to_string("/proc/thread-self/net/fib_trie"))??;
        Ok(is_local_in(&table, address))
    }

    /// Opens a connection from inside the namespace.
    pub fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        let stream = self
            .inside(|| TcpStream::connect_timeout(&address, CONNECT_LIMIT))?
            .with_context(|| format!("connecting to {address} from inside the network"))?;
        stream.set_read_timeout(Some(READ_LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Listens at an address inside the namespace.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let listener = self.inside(|| TcpListener::bind(address))?;
        listener.with_context(|| format!("listening at {address} inside the network"))
    }

    /// Runs something on a throwaway thread that is inside the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| bail!("the thread inside the namespace died"))
        })
    }
}

/// Whether the kernel's table of routes lists the address as local.
fn is_local_in(fib_trie: &str, address: Ipv4Addr) -> bool {
    let entry = format!("|-- {address}");
    let mut lines = fib_trie.lines();
    while let Some(line) = lines.next() {
        if line.trim() == entry
            && lines.clone().next().is_some_and(|next| next.contains("host LOCAL"))
        {
            return true;
        }
    }
    false
}

/// Namespaces pinned below the data directory, and those of the server's descendants.
fn candidates(data: &Path, server: Option<u32>) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = data.display().to_string();
    let pinned = mounts.lines().filter_map(|line| {
        let place = line.split(' ').nth(4)?;
        (line.contains(" - nsfs ") && place.starts_with(&below)).then(|| PathBuf::from(place))
    });
    let mut found: Vec<PathBuf> = pinned.collect();
    let processes = server.map(descendants).unwrap_or_default();
    found.extend(processes.into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))));
    found.extend(
        crate::host::processes_of(data)
            .into_iter()
            .map(|it| format!("/proc/{}/ns/net", it.pid).into()),
    );
    found
}

/// Every process that descends from `ancestor`.
pub fn descendants(ancestor: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32)> = crate::host::pids()
        .into_iter()
        .filter_map(|pid| Some((pid, crate::host::stat(pid)?.parent)))
        .collect();
    let mut found = BTreeSet::from([ancestor]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| found.contains(parent) && !found.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            found.remove(&ancestor);
            return found;
        }
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_local_only_where_linux_says_so() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.2\n        /32 host LOCAL\n     |-- 10.1.2.3\n        /32 link UNICAST\n";
        assert!(is_local_in(table, Ipv4Addr::new(10, 1, 2, 2)));
        assert!(!is_local_in(table, Ipv4Addr::new(10, 1, 2, 3)));
    }
}
