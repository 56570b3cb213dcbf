//! What passes through untouched: tunnels and plain requests to hosts that are not ours.
//!
//! Invariant: only clients on this machine are served so; to others the port is no proxy.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::{DIAL_PATIENCE, HEAD_BYTES_MAX, TUNNEL_IDLE};

/// Bytes in flight in each direction of a tunnel.
pub(super) const TUNNEL_BUFFER_BYTES: usize = 32 * 1024;

/// Connects to a host by name.
pub(super) async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    match timeout(DIAL_PATIENCE, TcpStream::connect((host, port))).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Copies both ways until both sides have ended, or neither has sent anything for a long time.
pub(super) async fn relay<A, B>(one: A, other: B)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (one_reads, one_writes) = tokio::io::split(one);
    let (other_reads, other_writes) = tokio::io::split(other);
    let there = copy(one_reads, other_writes, TUNNEL_IDLE);
    let back = copy(other_reads, one_writes, TUNNEL_IDLE);
    let _ = tokio::try_join!(there, back);
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    idle: Duration,
) -> io::Result<()> {
    let mut buffer = vec![0; TUNNEL_BUFFER_BYTES];
    loop {
        let deadline = sleep_until(Instant::now() + idle);
        let count = tokio::select! {
            count = from.read(&mut buffer) => count?,
            () = deadline => return Err(io::ErrorKind::TimedOut.into()),
        };
        if count == 0 {
            return to.shutdown().await;
        }
        match timeout(idle, to.write_all(&buffer[..count])).await {
            Ok(written) => written?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Forwards one plain-http request over this connection and streams the answer back.
pub(super) async fn forward(
    stream: TcpStream,
    mut request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, hyper::Error>>, hyper::Error> {
    let authority = request.uri().authority().map(ToString::to_string);
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    remove_hop_by_hop(request.headers_mut());
    // The request line decides, as RFC 9112 says, whatever the header field held.
    if let Some(host) = authority.and_then(|text| HeaderValue::try_from(text).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a forwarded connection ended early");
        }
    });
    let mut response = sender.send_request(request).await?;
    remove_hop_by_hop(response.headers_mut());
    Ok(response.map(|body| body.boxed_unsync()))
}

/// Takes out the fields that are about one connection, those `Connection` names among them.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .collect();
    let always = [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE];
    let old = [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];
    for name in named.iter().chain(&always).chain(&old) {
        headers.remove(name);
    }
}
