//! The harness of the end-to-end tests: a server as a child process, and clients that know it from outside only.
//!
//! Invariant: nothing here uses a crate of Tidegate's. What a test can do, a user can do: start the
//! binary, take the environment it prints, speak Google's APIs, send requests from inside a network.

#![allow(
    clippy::print_stdout,
    reason = "a test says aloud what it skipped and what its server said"
)]

pub mod api;
pub mod balancer;
pub mod certificate;
pub mod gcloud;
pub mod host;
pub mod howto;
pub mod http;
pub mod namespace;
pub mod outside;
pub mod probe;
pub mod python;
pub mod registry;
pub mod server;
pub mod wait;

/// The region of everything the tests declare.
pub const REGION: &str = "us-west1";

/// The zone of everything the tests declare.
pub const ZONE: &str = "us-west1-a";

/// The how-to's quickstart image.
pub const IMAGE: &str = "us-docker.pkg.dev/cloudrun/container/hello";

/// Whether the test has to be left out because it is not run by root; says so if it is.
pub fn skipped_without_root(what: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("SKIPPED without root: {what}");
    }
    !is_root
}
