//! What a reference to an image turned out to be: its digest, its configuration, its layers on disk.
//!
//! Invariant: a `ResolvedImage` names layers that were unpacked completely when it was made; the
//! store keeps them for as long as a clone of its `pin` is alive.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// An image as the store found it, ready to be run.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The reference as it was asked for, such as `nginx:1`.
    pub reference: String,
    /// The repository with the digest of the manifest: `docker.io/library/nginx@sha256:…`.
    pub pinned: String,
    /// The digest of the manifest for linux/amd64, `sha256:…`.
    pub digest: String,
    /// What the image says about how it wants to be run.
    pub config: Arc<ImageConfig>,
    /// Directories of the unpacked layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Set when the shipped image answers for one whose registry could not be reached.
    pub substitution: Option<Substitution>,
    /// Keeps the garbage collector away from the layers.
    pub pin: Arc<ImagePin>,
}

/// The part of an image's configuration that matters for running it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub command: Vec<String>,
    /// `ENV`, as `NAME=value`.
    pub environment: Vec<String>,
    /// `WORKDIR`; empty means `/`.
    pub working_directory: String,
    /// `USER`: a name or a number, with an optional `:group`; empty means root.
    pub user: String,
}

/// The shipped image stands in for one that could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Substitution {
    /// The image that was asked for.
    pub asked: String,
    /// Why it could not be had.
    pub reason: String,
}

impl fmt::Display for Substitution {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "the image {} could not be fetched ({}); Tidegate's own hello image answers in its place",
            self.asked, self.reason
        )
    }
}

/// While one of these lives, the image of this digest and its layers are not collected.
#[derive(Debug)]
pub struct ImagePin {
    /// The digest of the manifest that is kept.
    pub digest: String,
}
