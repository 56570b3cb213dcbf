//! Every bound of the data plane, with its default and what happens when it is reached.
//!
//! Invariant: whatever a client or a backend sends, a worker holds at most `buffer_bytes_max` bytes of
//! it outside the kernel (HTTP/2 keeps its own bound per connection, see [`Limits::http2_window_bytes`]).

use std::time::Duration;

/// Fields of one head or trailer section; more are refused with 431, or 502 from a backend.
pub const FIELDS_MAX: usize = 128;

/// Bytes of a trailer section; more are refused with 431, or end the response from a backend.
pub const TRAILER_BYTES_MAX: usize = 8 << 10;

/// Bytes of one I/O buffer: larger than any head, so a head always fits in one, and than a head with the
/// 64 KiB that a loopback or a large receive can bring at once.
pub const BUFFER_BYTES: usize = 128 << 10;

/// A head that is still incomplete waits in a buffer of this size, so that many slow clients cost little.
pub const SMALL_BUFFER_BYTES: usize = 4 << 10;

/// A request body up to this size that came with the head is kept until the response, so that it can be
/// sent again to another instance.
pub const REPLAY_BYTES_MAX: usize = 16 << 10;

/// How often our name may stand in a request's `Via` before the request is taken to run in circles
/// and answered with 502. Services that call each other through a balancer add one each time.
pub const VIA_HOPS_MAX: usize = 8;

/// The bounds of one data plane. The defaults are those of the real load balancer where it names one.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a request's head, the request line included. More: 414 when the line alone is longer,
    /// else 431, and the connection is closed.
    pub head_bytes_max: usize,
    /// From the first byte of a head to its last. Longer: 408 and the connection is closed.
    pub head_timeout: Duration,
    /// How long a TLS handshake may take. Longer: the connection is closed.
    pub handshake_timeout: Duration,
    /// How long a message body may stand still. Longer: 408 from a client, 504 (or a cut response)
    /// from a backend.
    pub stream_idle_timeout: Duration,
    /// From the end of a request to the end of its response. Longer: 504, or a cut response.
    pub backend_timeout: Duration,
    /// How long a connection to an instance may take. Longer counts as a connect failure.
    pub connect_timeout: Duration,
    /// How long an idle connection to an instance is kept.
    pub backend_keepalive: Duration,
    /// Idle connections one worker keeps to one instance; more are closed.
    pub idle_upstreams_max: usize,
    /// Client connections of one worker; while there are more, new ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of I/O buffers of one worker in use at once; a connection that needs one more is closed.
    pub buffer_bytes_max: usize,
    /// How long a connection is kept readable after its last response, for a client still sending.
    pub linger: Duration,
    /// Requests in flight on one HTTP/2 connection of a client.
    pub http2_streams_max: u32,
    /// Flow control window of one HTTP/2 stream, and what one stream can make us hold.
    pub http2_window_bytes: u32,
    /// Flow control window of one HTTP/2 connection.
    pub http2_connection_window_bytes: u32,
    /// HTTP/2 frames that carry nothing (PING, SETTINGS, RST_STREAM, PRIORITY, empty DATA, CONTINUATION,
    /// WINDOW_UPDATE) a client may send at once. More: the connection is closed.
    pub http2_idle_frames_max: u32,
    /// How many such frames each second adds to the allowance, besides what responses add.
    pub http2_idle_frames_refill: u32,
    /// Distinct series (rule, backend, revision, protocol, code) one worker counts; more are counted
    /// under the empty labels.
    pub series_max: usize,
    /// Access log bytes that may wait for the disk; lines beyond are dropped and counted.
    pub log_bytes_max: usize,
    /// Requests one worker keeps for Cloud Logging in one second; those beyond are counted and not kept.
    pub stored_requests_per_second_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_bytes_max: 60 << 10,
            head_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(15),
            stream_idle_timeout: Duration::from_secs(300),
            backend_timeout: Duration::from_secs(3600),
            connect_timeout: Duration::from_secs(5),
            backend_keepalive: Duration::from_secs(600),
            idle_upstreams_max: 256,
            connections_max: 32_768,
            buffer_bytes_max: 512 << 20,
            linger: Duration::from_secs(2),
            http2_streams_max: 100,
            http2_window_bytes: 256 << 10,
            http2_connection_window_bytes: 1 << 20,
            http2_idle_frames_max: 2_000,
            http2_idle_frames_refill: 100,
            series_max: 20_000,
            log_bytes_max: 16 << 20,
            stored_requests_per_second_max: 200,
        }
    }
}
