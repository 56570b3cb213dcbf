//! The limits a person may change: a flag of `tidegate up` for each, with its unit and its bounds.
//!
//! Invariant: a flag that is not given leaves the limit as its own crate decided it, and the default that the
//! help and `docs/limits.md` tell is that one.

use clap::Args;
use proxy::Limits;
use serverless::fleet::FleetOptions;
use std::time::Duration;

/// Bounds of the data plane and of the services behind it.
#[derive(Clone, Debug, Args)]
pub(crate) struct LimitFlags {
    #[command(flatten)]
    pub(crate) data_plane: DataPlaneLimits,
    #[command(flatten)]
    pub(crate) services: ServiceLimits,
}

/// Bounds of the data plane.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Limits of the data plane (docs/limits.md tells what happens at each)"
)]
pub(crate) struct DataPlaneLimits {
    /// Bytes of a request's head
    #[arg(long = "limit-head-bytes-max", value_name = "BYTES", default_value_t = 61440,
        value_parser = clap::value_parser!(u64).range(1024..=61440))]
    head_bytes_max: u64,
    /// From the first byte of a head to its last
    #[arg(long = "limit-head-timeout-seconds", value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    head_timeout: u64,
    /// How long a TLS handshake may take
    #[arg(long = "limit-handshake-timeout-seconds", value_name = "SECONDS", default_value_t = 15,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    handshake_timeout: u64,
    /// How long a body may stand still
    #[arg(long = "limit-stream-idle-timeout-seconds", value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    stream_idle_timeout: u64,
    /// From the end of a request to the end of its response, at most
    #[arg(long = "limit-backend-timeout-seconds", value_name = "SECONDS", default_value_t = 3600,
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    backend_timeout: u64,
    /// How long a connection to an instance may take
    #[arg(long = "limit-connect-timeout-seconds", value_name = "SECONDS", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    connect_timeout: u64,
    /// How long an idle connection to an instance is kept
    #[arg(long = "limit-backend-keepalive-seconds", value_name = "SECONDS", default_value_t = 600,
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    backend_keepalive: u64,
    /// Idle connections one worker keeps to one instance
    #[arg(long = "limit-idle-upstreams-max", value_name = "CONNECTIONS", default_value_t = 256,
        value_parser = clap::value_parser!(u64).range(0..=1000000))]
    idle_upstreams_max: u64,
    /// Client connections of one worker
    #[arg(long = "limit-connections-max", value_name = "CONNECTIONS", default_value_t = 32768,
        value_parser = clap::value_parser!(u64).range(1..=10000000))]
    connections_max: u64,
    /// Bytes one worker buffers at once
    #[arg(long = "limit-buffer-bytes-max", value_name = "BYTES", default_value_t = 536870912,
        value_parser = clap::value_parser!(u64).range(1048576..=1099511627776))]
    buffer_bytes_max: u64,
    /// How long a client may go on sending after its last response
    #[arg(long = "limit-linger-seconds", value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(0..=60))]
    linger: u64,
    /// Requests at once on one HTTP/2 connection
    #[arg(long = "limit-http2-streams-max", value_name = "REQUESTS", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=100000))]
    http2_streams_max: u32,
    /// Flow control window of one HTTP/2 request
    #[arg(long = "limit-http2-window-bytes", value_name = "BYTES", default_value_t = 262144,
        value_parser = clap::value_parser!(u32).range(65535..=1073741824))]
    http2_window_bytes: u32,
    /// Flow control window of one HTTP/2 connection
    #[arg(long = "limit-http2-connection-window-bytes", value_name = "BYTES", default_value_t = 1048576,
        value_parser = clap::value_parser!(u32).range(65535..=1073741824))]
    http2_connection_window_bytes: u32,
    /// HTTP/2 frames that carry nothing, at once
    #[arg(long = "limit-http2-idle-frames-max", value_name = "FRAMES", default_value_t = 2000,
        value_parser = clap::value_parser!(u32).range(10..=1000000))]
    http2_idle_frames_max: u32,
    /// HTTP/2 frames that carry nothing, each second
    #[arg(long = "limit-http2-idle-frames-refill", value_name = "FRAMES", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1000000))]
    http2_idle_frames_refill: u32,
    /// Series of metrics one worker counts
    #[arg(long = "limit-series-max", value_name = "SERIES", default_value_t = 20000,
        value_parser = clap::value_parser!(u64).range(1..=10000000))]
    series_max: u64,
    /// Bytes of the access log that wait for the disk
    #[arg(long = "limit-log-bytes-max", value_name = "BYTES", default_value_t = 16777216,
        value_parser = clap::value_parser!(u64).range(65536..=1099511627776))]
    log_bytes_max: u64,
    /// Requests one worker keeps for Cloud Logging each second
    #[arg(long = "limit-stored-requests-per-second-max", value_name = "REQUESTS", default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(0..=1000000))]
    stored_requests_per_second_max: u32,
}

/// Bounds of Cloud Run services.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits of services")]
pub(crate) struct ServiceLimits {
    /// How long the last instance of a revision is kept without a request
    #[arg(long = "limit-idle-before-zero-seconds", value_name = "SECONDS", default_value_t = 900,
        value_parser = clap::value_parser!(u64).range(0..=86400))]
    idle_before_zero: u64,
    /// Instances that are being started at a time
    #[arg(long = "limit-launches-at-once-max", value_name = "INSTANCES", default_value_t = 16,
        value_parser = clap::value_parser!(u64).range(1..=1000))]
    launches_at_once_max: u64,
}

/// A bound as this machine counts; what it cannot count to is no bound.
fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl DataPlaneLimits {
    /// The bounds as the data plane takes them.
    pub(crate) fn limits(&self) -> Limits {
        let seconds = Duration::from_secs;
        Limits {
            head_bytes_max: count(self.head_bytes_max),
            head_timeout: seconds(self.head_timeout),
            handshake_timeout: seconds(self.handshake_timeout),
            stream_idle_timeout: seconds(self.stream_idle_timeout),
            backend_timeout: seconds(self.backend_timeout),
            connect_timeout: seconds(self.connect_timeout),
            backend_keepalive: seconds(self.backend_keepalive),
            idle_upstreams_max: count(self.idle_upstreams_max),
            connections_max: count(self.connections_max),
            buffer_bytes_max: count(self.buffer_bytes_max),
            linger: seconds(self.linger),
            http2_streams_max: self.http2_streams_max,
            http2_window_bytes: self.http2_window_bytes,
            http2_connection_window_bytes: self.http2_connection_window_bytes,
            http2_idle_frames_max: self.http2_idle_frames_max,
            http2_idle_frames_refill: self.http2_idle_frames_refill,
            series_max: count(self.series_max),
            log_bytes_max: count(self.log_bytes_max),
            stored_requests_per_second_max: self.stored_requests_per_second_max,
        }
    }
}

impl ServiceLimits {
    /// Puts the bounds into what services are started with.
    pub(crate) fn bound(&self, options: FleetOptions) -> FleetOptions {
        FleetOptions {
            idle_before_zero: Duration::from_secs(self.idle_before_zero),
            launches_at_once_max: count(self.launches_at_once_max),
            ..options
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    fn command() -> Command {
        LimitFlags::augment_args(Command::new("up"))
    }

    fn given(arguments: &[&str]) -> Result<LimitFlags, clap::Error> {
        let arguments = [&["up"], arguments].concat();
        let matches = command().try_get_matches_from(arguments)?;
        LimitFlags::from_arg_matches(&matches)
    }

    #[test]
    fn without_a_flag_every_limit_is_what_its_crate_decided() {
        let flags = given(&[]).unwrap();
        assert_eq!(format!("{:?}", flags.data_plane.limits()), format!("{:?}", Limits::default()));
        let idle = serverless::autoscaler::IDLE_BEFORE_ZERO.as_secs();
        assert_eq!(flags.services.idle_before_zero, idle);
        let launches = serverless::fleet::LAUNCHES_AT_ONCE_MAX;
        assert_eq!(count(flags.services.launches_at_once_max), launches);
    }

    #[test]
    fn a_flag_changes_its_limit_and_nonsense_is_refused() {
        let flags =
            given(&["--limit-head-timeout-seconds=7", "--limit-connections-max=10"]).unwrap();
        let limits = flags.data_plane.limits();
        assert_eq!((limits.head_timeout.as_secs(), limits.connections_max), (7, 10));
        for nonsense in [
            "--limit-head-timeout-seconds=0",
            "--limit-head-bytes-max=70000",
            "--limit-linger-seconds=x",
        ] {
            assert!(given(&[nonsense]).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn the_guide_lists_every_flag_with_its_unit_and_default() {
        let guide = include_str!("../../../docs/limits.md");
        let flags = command();
        let rows: Vec<String> = flags
            .get_arguments()
            .map(|flag| {
                let name = flag.get_long().unwrap();
                let unit = flag.get_value_names().unwrap()[0].to_lowercase();
                let default = flag.get_default_values()[0].to_string_lossy();
                let help = flag.get_help().unwrap();
                format!("| `--{name}` | {default} {unit} | {help} |")
            })
            .collect();
        let table = rows.join("\n");
        assert!(guide.contains(&table), "docs/limits.md lacks this table:\n{table}");
    }
}
