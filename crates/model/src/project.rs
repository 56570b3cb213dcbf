//! A project: the id and number under which everything else is named, and the metadata its VMs share.

use crate::name::{Name, ResourceName};

/// One project (Compute `Project`, Resource Manager `Project`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// `projects/ID`.
    pub name: ResourceName,
    /// The project number, which clients may use wherever the id is asked for.
    pub number: u64,
    /// `commonInstanceMetadata.items`, in order; `ssh-keys` among them.
    pub common_instance_metadata: Vec<(Name, String)>,
}

impl Project {
    /// A project names no other resource.
    pub fn references(&self) -> Vec<(String, ResourceName)> {
        Vec::new()
    }
}
