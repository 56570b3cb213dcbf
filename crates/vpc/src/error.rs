//! What can go wrong on the host, each with what was being done and the cause in the chain.

use model::ResourceName;
use std::io;
use std::path::{Path, PathBuf};

/// One thing the host refused to do.
#[derive(Debug, thiserror::Error)]
pub enum VpcError {
    /// The network is not part of the plan that was last applied.
    #[error("network `{network}` does not exist on this host")]
    NoNetwork {
        /// The network.
        network: ResourceName,
    },
    /// Every address of a subnet has somebody.
    #[error("subnet `{subnet}` has no free address")]
    SubnetFull {
        /// The subnet.
        subnet: ResourceName,
    },
    /// A network namespace could not be made, entered or pinned.
    #[error("could not {what} the network namespace `{}`{}", path.display(), hint(source))]
    Namespace {
        /// The verb.
        what: &'static str,
        /// Where the namespace is pinned, or what it belongs to.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A link, address or route could not be listed, made or removed.
    #[error("could not {what}")]
    Link {
        /// What was being done.
        what: String,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// A file or folder could not be read or written.
    #[error("could not {what} `{}`", path.display())]
    File {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("could not run `{program}` (package {package}){}", hint(source))]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package it is in.
        package: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A program or helper ran and failed.
    #[error("`{program}` failed: {says}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it wrote about it.
        says: String,
    },
    /// A started instance does not answer.
    #[error("instance `{instance}` {what}")]
    Instance {
        /// The instance.
        instance: ResourceName,
        /// What it does instead.
        what: String,
    },
    /// A process could not be watched or signalled.
    #[error("could not {what} process {pid}")]
    Process {
        /// The verb.
        what: &'static str,
        /// The process.
        pid: u32,
        /// The cause.
        source: io::Error,
    },
    /// A socket could not be made or connected inside a network.
    #[error("could not {what}")]
    Socket {
        /// What was being done.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

/// What a person can do about a missing permission or program.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; this needs root",
        io::ErrorKind::NotFound => "; is it installed?",
        _ => "",
    }
}

impl VpcError {
    /// Adds to an error of the file system what was done to which file.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VpcError {
        let path = path.to_owned();
        move |source| VpcError::File { what, path, source }
    }

    /// Adds to an error of netlink what was being done.
    pub(crate) fn link(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> VpcError {
        let what = what.into();
        move |source| VpcError::Link { what, source }
    }
}

/// A part of the plan that could not be carried out.
#[derive(Debug, thiserror::Error)]
#[error("`{resource}` could not be carried out")]
pub struct Failure {
    /// The resource.
    pub resource: ResourceName,
    /// Why.
    pub source: VpcError,
}
