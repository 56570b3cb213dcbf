//! From a specification to an instance that may take traffic: start order, probes, failures.
//!
//! Invariant: an instance whose launch failed is stopped and gone from the host before the failure
//! is returned; a `LiveInstance` that is dropped stops its instance.

use super::LogLine;

/// Why an instance never became ready, in the words Cloud Run uses.
#[derive(Clone, Debug)]
pub struct StartFailure {
    /// One or two sentences for conditions and error messages.
    pub message: String,
    /// The container that failed, if one did.
    pub container: Option<String>,
    /// The last lines it wrote, oldest first.
    pub log_tail: Vec<LogLine>,
}

/// Why a ready instance is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A container ended by itself.
    Exited(super::Exit),
    /// A liveness probe failed; the message is Cloud Run's.
    Unhealthy(String),
    /// It was stopped because we wanted it to.
    Stopped,
}
