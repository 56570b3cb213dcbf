//! Connections to the metadata server, from whoever reaches one of its sockets.
//!
//! Invariant: dropping the future closes the listener and every connection at once: whoever lent
//! the socket needs its network back.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::answer::{Question, answer};
use super::{Guest, Metadata};

/// Connections at once on one socket; the next one waits to be accepted.
pub const CONNECTIONS_MAX: usize = 32;
/// A question's head, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Fields in a question's head.
const HEADERS_MAX: usize = 64;
/// How long a head may take, from the end of the answer before it.
pub const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// After a failure to accept, as when this process has too many open files.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Answers the connections of a nonblocking listener; `who` tells who is at the other end, and
/// nobody is answered whom it does not know.
pub async fn serve(
    metadata: Metadata,
    listener: StdListener,
    who: impl Fn(SocketAddr) -> Option<Guest> + Send,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "the metadata server does not answer somebody");
            return;
        }
    };
    let mut connections = FuturesUnordered::new();
    loop {
        let may_accept = connections.len() < CONNECTIONS_MAX;
        tokio::select! {
            Some(()) = connections.next() => {}
            accepted = listener.accept(), if may_accept => match accepted {
                Ok((stream, peer)) => {
                    if let Some(guest) = who(peer) {
                        connections.push(converse(metadata.clone(), Arc::new(guest), stream));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the metadata server could not accept a connection");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                }
            },
        }
    }
}

async fn converse(metadata: Metadata, guest: Arc<Guest>, stream: TcpStream) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (metadata, guest) = (metadata.clone(), Arc::clone(&guest));
        async move { Ok::<_, Infallible>(respond(metadata, guest, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the metadata server ended early");
    }
}

async fn respond(
    metadata: Metadata,
    guest: Arc<Guest>,
    request: hyper::Request<Incoming>,
) -> hyper::Response<Full<Bytes>> {
    // A signature takes the time of some hundred other requests.
    let answered = tokio::task::spawn_blocking(move || {
        let question = Question {
            method: request.method(),
            path: request.uri().path(),
            query: request.uri().query().unwrap_or_default(),
            headers: request.headers(),
        };
        answer(&metadata, &guest, &question)
    });
    let mut response = hyper::Response::new(Full::default());
    match answered.await {
        Ok(answer) => {
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            *response.body_mut() = Full::new(answer.body);
        }
        Err(error) => {
            tracing::error!(%error, "an answer of the metadata server broke off");
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    response
}
