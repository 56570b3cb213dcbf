//! What a request hears that gets no instance: Cloud Run's answers, in one place.

/// An answer to a request no instance takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The body, plain text.
    pub body: &'static str,
    /// Why, for the log.
    pub reason: &'static str,
}

/// Cloud Run's line in the request log, whatever the status.
const NO_INSTANCE: &str = "The request was aborted because there was no available instance.";

impl Refusal {
    /// Every instance there may be is busy, and stayed busy while the request waited.
    pub const AT_MAXIMUM: Refusal =
        Refusal { status: 429, body: "Rate exceeded.", reason: NO_INSTANCE };
    /// An instance was being started, and was not ready in time.
    pub const TOO_SLOW: Refusal =
        Refusal { status: 500, body: "Internal Server Error", reason: NO_INSTANCE };
    /// The instances of the revision fail.
    pub const FAILING: Refusal =
        Refusal { status: 503, body: "Service Unavailable", reason: NO_INSTANCE };
    /// The service is scaled to zero by hand.
    pub const SCALED_TO_ZERO: Refusal = Refusal {
        status: 503,
        body: "Service Unavailable",
        reason: "The service is disabled: its manual instance count is 0.",
    };
    /// The server is about to end.
    pub const STOPPING: Refusal =
        Refusal { status: 503, body: "Service Unavailable", reason: "The server is stopping." };
}
