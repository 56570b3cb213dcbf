//! What the API asks of those who carry the plan out.
//!
//! Invariant: nothing here is declared by anybody; it is seen, and it never enters a document's intent.

use model::ResourceName;
use std::fmt;
use tokio::sync::watch;

/// Answers what has become of the plan. The binary implements it over the appliers; tests have a fake.
pub trait Observed: Send + Sync + fmt::Debug {
    /// The number of the newest plan that every applier carries out. The receiver is notified
    /// whenever anything observed changes, also when the number stays.
    fn progress(&self) -> watch::Receiver<u64>;

    /// Whether the change of `target` that came with this revision has come to rest.
    fn settled(&self, revision: u64, target: &ResourceName) -> Settled;

    /// What an instance is doing, once anything is known of it.
    fn instance_status(&self, instance: &ResourceName) -> Option<InstanceStatus>;

    /// Everything the instance has written to its serial port, as far as it is kept.
    fn serial_output(&self, instance: &ResourceName) -> String;

    /// The instance's SSH host keys: type (`ssh-ed25519`) and base64 of the key.
    fn host_keys(&self, instance: &ResourceName) -> Vec<(String, String)>;
}

/// What has become of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Still being carried out.
    Pending,
    /// Carried out.
    Done,
    /// It came to rest in failure.
    Failed {
        /// The word in `error.errors[].code`, such as `RESOURCE_OPERATION_RATE_EXCEEDED`.
        code: String,
        /// The sentence the user sees.
        message: String,
    },
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceStatus {
    /// Resources are being found for it.
    Provisioning,
    /// It is being made ready.
    Staging,
    /// It runs.
    Running,
    /// It is being stopped.
    Stopping,
    /// It has stopped.
    Terminated,
}

impl InstanceStatus {
    /// The word Google writes.
    pub fn as_str(self) -> &'static str {
        match self {
            InstanceStatus::Provisioning => "PROVISIONING",
            InstanceStatus::Staging => "STAGING",
            InstanceStatus::Running => "RUNNING",
            InstanceStatus::Stopping => "STOPPING",
            InstanceStatus::Terminated => "TERMINATED",
        }
    }
}
