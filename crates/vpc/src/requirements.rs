//! What this crate needs from the host's packages, for `doctor`.

use crate::nft;
use std::env;
use std::path::{Path, PathBuf};

/// A program that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The program.
    pub program: &'static str,
    /// The Debian package it is in.
    pub package: &'static str,
    /// What it is for, as the end of "needed for …".
    pub purpose: &'static str,
    /// Where it is; nothing when it is missing.
    pub found: Option<PathBuf>,
}

/// Every program the VPC runs, found or not.
pub fn requirements() -> Vec<Requirement> {
    [
        (nft::PROGRAM, nft::PACKAGE, "the firewall of VPC networks"),
        ("sshd", "openssh-server", "logging in to client VMs"),
        ("ssh-keygen", "openssh-client", "the host keys of client VMs"),
    ]
    .map(|(program, package, purpose)| Requirement {
        program,
        package,
        purpose,
        found: find(program),
    })
    .into()
}

/// Looks where the shell would, and where administrators' programs are, which a user's PATH may lack.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = env::split_paths(&path).chain(administrators);
    folders.map(|folder| folder.join(program)).find(|place| Path::is_file(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_or_said_to_be_missing() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-anywhere"), None);
        assert!(requirements().iter().any(|requirement| requirement.package == "nftables"));
    }
}
