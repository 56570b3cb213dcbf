//! The one port through which clients reach this server.
//!
//! To a client it is a forward proxy: what is asked of Google's hosts is answered here, over TLS
//! with a certificate of the private CA; what is asked of any other host passes untouched. The
//! same port answers plain HTTP for clients that override their endpoints.
//!
//! Invariant: nothing reaches an API without a token this server issued, and nothing at all is
//! read from a browser's page of another origin or under a foreign host name.

mod arriving;
pub mod authority;
mod connection;
pub mod guard;
pub mod hosts;
pub mod iap;
pub mod pointing;
mod private_file;
mod run_app;
mod tunnel;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::authority::{Authority, AuthorityError};
pub use self::iap::InstancePort;
pub use self::pointing::{Pointing, Shell};
pub use self::private_file::PrivateFileError;
pub(crate) use self::private_file::{make_folder, remembered};
pub use self::run_app::{RunAppTls, run_app_tls};

use crate::http::{Principal, Request, Response};

/// A future behind a `dyn` seam.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Connections at once, tunnels included; the next one waits to be accepted.
pub const CONNECTIONS_MAX: usize = 1024;
/// A request's head, in bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields in a request's head.
pub const HEADERS_MAX: usize = 100;
/// An API request's body, in bytes.
pub const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A body sent without a token (a token request), in bytes.
pub const OPEN_BODY_BYTES_MAX: usize = 64 * 1024;
/// Requests at once on one HTTP/2 connection.
pub const HTTP2_STREAMS_MAX: u32 = 100;
/// How long a head may take, from the end of the request before it.
pub const HEAD_PATIENCE: Duration = Duration::from_secs(90);
/// How long the first request of a connection may take once the door is closing.
pub const FIRST_REQUEST_PATIENCE: Duration = Duration::from_millis(500);
/// How long a body may take.
pub const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(15);
/// How long connecting to a host that is not ours may take.
pub const DIAL_PATIENCE: Duration = Duration::from_secs(20);
/// A tunnel without a byte in either direction is closed.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(3600);
/// How long connections may finish what they are doing when the door closes.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// The folder of the door's files inside the data directory.
pub const FOLDER: &str = "door";

/// Who stands behind the door: the API.
pub trait Behind: Send + Sync + 'static {
    /// Who holds this bearer token, if this server issued it and it is still good.
    fn principal(&self, bearer: &str) -> Option<Principal>;

    /// In whose name a signature in the address lets this be written, without a token.
    fn signer(&self, _service: &str, _path: &str, _query: &str) -> Option<Principal> {
        None
    }

    /// Whether a request needs no token: it asks for one, or for the public keys.
    fn is_open(&self, service: &str, path: &str) -> bool;

    /// The answer to such a request.
    fn answer_open(&self, request: OpenRequest<'_>) -> Response;

    /// The answer to a request whose caller is known.
    fn answer(&self, request: Request) -> BoxFuture<'_, Response>;
}

/// A request nobody has signed.
#[derive(Clone, Copy, Debug)]
pub struct OpenRequest<'a> {
    /// The API.
    pub service: &'a str,
    /// The method.
    pub method: &'a http::Method,
    /// The path.
    pub path: &'a str,
    /// The whole body.
    pub body: &'a [u8],
}

/// Reaches Cloud Run services under their own addresses: the data plane answers.
pub trait RunAppPort: Send + Sync + 'static {
    /// A connection that begins with a TLS handshake for any `run.app` name ([`run_app_tls`]).
    fn connect(&self) -> BoxFuture<'_, io::Result<TcpStream>>;
}

/// Where the door is, and who stands behind it.
#[derive(Clone)]
pub struct Config {
    /// The data directory; the door keeps its files in a folder of it.
    pub data_dir: PathBuf,
    /// The address to listen on; `None` for the loopback port remembered from the last time.
    pub address: Option<SocketAddr>,
    /// Whether an address that other machines can reach is meant.
    pub beyond_loopback: bool,
    /// The API.
    pub behind: Arc<dyn Behind>,
    /// The ports of VMs.
    pub instances: Arc<dyn InstancePort>,
    /// The addresses of services.
    pub run_apps: Arc<dyn RunAppPort>,
    /// The listener of the server before, to be used instead of the address.
    pub inherited: Option<Arc<std::net::TcpListener>>,
}

impl fmt::Debug for Config {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Config")
            .field("data_dir", &self.data_dir)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Why the door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Other machines could connect, and nobody said that they should.
    #[error("{address} can be reached from other machines; say so if that is meant")]
    BeyondLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The private CA could not be opened.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A file could not be kept.
    #[error(transparent)]
    File(#[from] PrivateFileError),
}

/// The open door. Dropping it leaves the listener running; [`Door::close`] ends it.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    closing: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    connections: Arc<Semaphore>,
    /// The listener once more, for another process to take over.
    listener: std::net::TcpListener,
}

impl Door {
    /// Opens the door: makes what the data directory lacks, listens, and answers from then on.
    pub async fn start(config: Config) -> Result<Door, DoorError> {
        let folder = config.data_dir.join(FOLDER);
        let authority = Authority::open(&folder, OffsetDateTime::now_utc())?;
        let roots = pointing::bundle(&system_roots(&folder), authority.certificate_pem());
        private_file::publish(&bundle_file(&config.data_dir), roots.as_bytes())?;
        let unusable = |source| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            DoorError::Listen { address, source }
        };
        let listener = match &config.inherited {
            Some(inherited) => inherited.try_clone().and_then(TcpListener::from_std),
            None => Ok(listen(&config).await?),
        };
        let listener = listener.map_err(unusable)?;
        let kept = listener.as_fd().try_clone_to_owned().map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        private_file::publish(&address_file(&config.data_dir), address.to_string().as_bytes())?;
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let (closing, closed) = watch::channel(false);
        let shared = Arc::new(connection::Shared {
            authority,
            behind: config.behind,
            instances: config.instances,
            run_apps: config.run_apps,
            sessions: iap::Sessions::default(),
            bound: address.ip(),
            closed: closed.clone(),
        });
        let accepting = tokio::spawn(accept(listener, shared, Arc::clone(&connections), closed));
        Ok(Door { address, closing, accepting, connections, listener: kept.into() })
    }

    /// Where the door listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more, lets requests that are under way end for at most `within`, and gives the
    /// listener away: who connects from now on waits in its queue for whoever takes it over.
    pub async fn let_go(&self, within: Duration) -> io::Result<std::net::TcpListener> {
        let _ = self.closing.send(true);
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        // Tunnels may last; they are nobody's requests.
        let _ = timeout(within, self.connections.acquire_many(all)).await;
        self.listener.try_clone()
    }

    /// Accepts nothing more and waits, for a bounded time, until what is under way is answered.
    pub async fn close(self) {
        let _ = self.closing.send(true);
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let _ = self.accepting.await;
        let _ = timeout(DRAIN_PATIENCE, self.connections.acquire_many(all)).await;
    }
}

/// The file with the roots clients must trust: the system's and the private CA.
pub fn bundle_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join("roots.pem")
}

/// The file that remembers where the door listens.
pub fn address_file(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER).join("address")
}

/// Where the door of this data directory listens or last listened.
pub fn remembered_address(data_dir: &Path) -> Option<SocketAddr> {
    let bytes = private_file::read(&address_file(data_dir)).ok()??;
    std::str::from_utf8(&bytes).ok()?.trim().parse().ok()
}

async fn listen(config: &Config) -> Result<TcpListener, DoorError> {
    let bind = |address: SocketAddr| async move {
        TcpListener::bind(address).await.map_err(|source| DoorError::Listen { address, source })
    };
    if let Some(address) = config.address {
        if !address.ip().is_loopback() && !config.beyond_loopback {
            return Err(DoorError::BeyondLoopback { address });
        }
        return bind(address).await;
    }
    // Shells were pointed at the remembered port; another one is only taken when it is occupied.
    let remembered = remembered_address(&config.data_dir).filter(|a| a.ip().is_loopback());
    if let Some(address) = remembered {
        match bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) => {
                tracing::warn!(%address, ?error, "the remembered port is taken; choosing another");
            }
        }
    }
    bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await
}

async fn accept(
    listener: TcpListener,
    shared: Arc<connection::Shared>,
    connections: Arc<Semaphore>,
    mut closed: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            _ = closed.changed() => return,
            accepted = async {
                let permit = Arc::clone(&connections).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        let (Ok(permit), accepted) = accepted else { return };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                let serving =
                    connection::serve(Arc::clone(&shared), stream, peer.ip(), closed.clone());
                tokio::spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            // A connection that was reset while queued, or no descriptor left: neither is the
            // listener's end, and the second passes when a connection ends.
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Files in which systems keep the roots they trust, most likely first.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What the system trusts, or what its user said is to be trusted instead.
fn system_roots(folder: &Path) -> String {
    let chosen = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    // A server started from a shell that already points at one would take its own bundle.
    let chosen = chosen.filter(|path| !path.starts_with(folder) && !is_a_bundle_of_ours(path));
    let well_known = SYSTEM_ROOTS.iter().map(PathBuf::from);
    for path in chosen.into_iter().chain(well_known) {
        if let Ok(Some(bytes)) = private_file::read(&path)
            && let Ok(text) = String::from_utf8(bytes)
        {
            return text;
        }
    }
    tracing::warn!("found no file with the system's trusted roots; tunnelled hosts may not verify");
    String::new()
}

fn is_a_bundle_of_ours(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.join("ca-key.pem").exists())
}

/// Whether a peer is on this machine.
pub(crate) fn is_local(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests;
