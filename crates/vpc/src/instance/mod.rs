//! Client VMs: namespaces over the host's own `/usr`, a real sshd, a home that stays.
//!
//! This is a container, not a virtual machine: it shares the host's kernel. What it may do is bounded by
//! its namespaces, a read-only system and the capabilities it keeps; see [`helper_main`] for how it is made.

mod console;
mod folder;
mod helper;
mod keeper;
mod process;

pub(crate) use folder::Folder;
pub use helper::helper_main;
#[cfg(test)]
pub(crate) use keeper::attach;
pub(crate) use keeper::{Keeper, Order, Wanted};

/// Reads what the instance of a folder wrote to its serial port.
pub(crate) fn serial_output(folder: &Folder) -> String {
    console::read(&folder.console())
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStatus {
    /// It is being looked for, or its host keys are being made.
    Provisioning,
    /// Its network and root are being made.
    Staging,
    /// It runs and takes connections on port 22.
    Running,
    /// It is being stopped.
    Stopping,
    /// It has stopped.
    Terminated,
}

/// What is seen of an instance at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What it is doing; nothing once it is deleted and gone.
    pub status: Option<InstanceStatus>,
    /// The boot that runs, or was last tried.
    pub boot: u64,
    /// Why it does not run although it should, of the last try.
    pub failure: Option<String>,
}
