//! The command line: every verb, its flags and its help, and nothing of what it does.

use crate::limit_flags::LimitFlags;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A regional internal Application Load Balancer in front of serverless containers, spoken to with
/// Google Cloud's own APIs.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Start here:
  tidegate demo                    build the load balancer of Google's how-to, and keep it up
  tidegate up                      run the server
  eval \"$(tidegate env)\"           point this shell's gcloud, SDKs and Terraform at it")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Which server is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct Place {
    /// Where everything of one server is kept; servers with different directories do not meet
    #[arg(long, global = true, env = "TIDEGATE_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the server until Ctrl-C, which leaves the host as it was found
    #[command(after_help = "Example:
  tidegate up --data-dir /var/lib/tidegate")]
    Up(Up),
    /// Stop the server of a data directory and wait until it has gone
    #[command(after_help = "Example:
  tidegate down --data-dir /var/lib/tidegate")]
    Down,
    /// Print what points a shell's Google Cloud clients at the server
    #[command(after_help = "Examples:
  eval \"$(tidegate env)\"
  tidegate env --shell fish | source
  tidegate env --shell powershell | Out-String | Invoke-Expression
  tidegate env --format json")]
    Env(Env),
    /// Run gcloud against the server, without changing this shell
    #[command(after_help = "Example:
  tidegate gcloud compute forwarding-rules list")]
    Gcloud(Gcloud),
    /// Start the server, build the load balancer of Google's how-to, fetch its page, and stay up
    #[command(after_help = "Example:
  tidegate demo")]
    Demo(Up),
    /// Say what the host lacks, what it is for, and which command installs it
    #[command(after_help = "Examples:
  tidegate doctor
  tidegate doctor --install")]
    Doctor(Doctor),
    /// Show forwarding rules with address, target, health and request counts, and what runs
    #[command(after_help = "Examples:
  tidegate status
  tidegate status --format json")]
    Status(Formatted),
    /// Tell the whole decision for one request: rule, backend, mask, service, revision, verdicts
    #[command(after_help = "Examples:
  tidegate explain http://example.com/login/web --network lb-network --address 10.1.2.2
  tidegate explain https://hello-123456789012.us-west1.run.app/
  tidegate explain http://example.com/login --map exported-map.yaml")]
    Explain(Explain),
    /// Name what can never match or never be reached in an exported URL map
    ///
    /// A server that runs in the data directory is asked about the URL masks behind the map; without one
    /// the map is looked over by itself.
    #[command(after_help = "Example:
  tidegate lint exported-map.yaml")]
    Lint(Lint),
    /// Print what the containers of a Cloud Run service wrote
    #[command(after_help = "Examples:
  tidegate logs hello
  tidegate logs hello --region us-west1 --follow")]
    Logs(Logs),
    /// Load, list and remove container images
    #[command(subcommand)]
    Image(Image),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// The address and port of the API; otherwise a free loopback port is taken and remembered
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Allow an address that other machines can reach; the API still wants its token
    #[arg(long)]
    pub(crate) listen_beyond_loopback: bool,
    /// The address and port of the metrics in OpenMetrics form
    #[arg(
        long,
        env = "TIDEGATE_METRICS",
        default_value = "127.0.0.1:0",
        value_name = "ADDRESS:PORT"
    )]
    pub(crate) metrics: SocketAddr,
    /// The project that exists from the first start
    #[arg(long, env = "TIDEGATE_PROJECT", default_value = "tidegate", value_name = "ID")]
    pub(crate) project: String,
    /// How many threads serve traffic; all cores unless told otherwise
    #[arg(long, env = "TIDEGATE_WORKERS", value_name = "N")]
    pub(crate) workers: Option<usize>,
    /// Where the access log goes: `none`, `-` for standard output, or a file
    #[arg(long, env = "TIDEGATE_ACCESS_LOG", default_value = "none", value_name = "FILE")]
    pub(crate) access_log: String,
    /// A docker config.json with credentials of private registries
    #[arg(long, env = "TIDEGATE_REGISTRY_CONFIG", value_name = "FILE")]
    pub(crate) registry_config: Option<PathBuf>,
    /// Where base images for sources come from, such as `registry.example/runtimes`; without it
    /// they are put together from what this machine has
    #[arg(long, env = "TIDEGATE_BASE_IMAGES", value_name = "PREFIX")]
    pub(crate) base_images: Option<String>,
    /// The socket of Docker Engine, which builds sources that have a Dockerfile
    #[arg(
        long,
        env = "TIDEGATE_DOCKER_SOCKET",
        default_value = "/var/run/docker.sock",
        value_name = "FILE"
    )]
    pub(crate) docker_socket: PathBuf,
    /// Take the place of the server that runs on the data directory, without refusing a connection
    #[arg(long)]
    pub(crate) replace: bool,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Env {
    /// The shell to write for
    #[arg(long, default_value = "bash")]
    pub(crate) shell: Shell,
    /// `json` for programs; shells otherwise
    #[arg(long)]
    pub(crate) format: Option<Format>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shell {
    /// bash, zsh and other POSIX shells
    #[value(alias = "zsh", alias = "sh")]
    Bash,
    /// fish
    Fish,
    /// PowerShell
    #[value(alias = "pwsh")]
    Powershell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Gcloud {
    /// What gcloud is given, unchanged
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Doctor {
    /// Install what is missing with apt-get (needs root)
    #[arg(long)]
    pub(crate) install: bool,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Formatted {
    /// How to print
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Explain {
    /// The URL a client would ask for
    pub(crate) url: String,
    /// The VPC network of the client
    #[arg(long, value_name = "NAME")]
    pub(crate) network: Option<String>,
    /// The address the client connects to, when it is not the URL's host
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<std::net::Ipv4Addr>,
    /// The project, when it is not the server's first one
    #[arg(long, value_name = "ID")]
    pub(crate) project: Option<String>,
    /// The method
    #[arg(long, short = 'X', default_value = "GET")]
    pub(crate) method: String,
    /// A request header, `Name: value`; may be given again
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    pub(crate) headers: Vec<String>,
    /// Decide by an exported URL map (YAML or JSON) instead of asking a server
    #[arg(long, value_name = "FILE", conflicts_with_all = ["network", "address"])]
    pub(crate) map: Option<PathBuf>,
    /// How to print
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Lint {
    /// The exported URL map, YAML or JSON
    pub(crate) map: PathBuf,
    /// How to print
    #[arg(long, default_value = "text")]
    pub(crate) format: Format,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Logs {
    /// The Cloud Run service
    pub(crate) service: String,
    /// Its region, when the service exists in more than one
    #[arg(long)]
    pub(crate) region: Option<String>,
    /// The project, when it is not the server's first one
    #[arg(long, value_name = "ID")]
    pub(crate) project: Option<String>,
    /// How many lines at most
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) limit: usize,
    /// Go on printing what comes
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Image {
    /// Load images from a `docker save` archive, an OCI layout directory or its tar
    #[command(after_help = "Example:
  docker save my-app:1 -o my-app.tar && tidegate image load my-app.tar")]
    Load {
        /// The archive or directory
        path: PathBuf,
    },
    /// List the images the server has
    #[command(after_help = "Example:
  tidegate image list")]
    List(Formatted),
    /// Remove an image by reference or digest
    #[command(after_help = "Example:
  tidegate image remove my-app:1")]
    Remove {
        /// The reference or digest
        reference: String,
    },
}
