//! What a connection speaks, by its first bytes; and TLS on the port itself.
//!
//! Clients that are given an endpoint (`localhost:PORT`) rather than a proxy come with TLS or with
//! HTTP/2 at once. Invariant: no byte is taken before it is known who reads it.

use std::net::IpAddr;

use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection::{HTTP1, HTTP2, Shared};
use super::hosts::{self, Host};
use super::{HANDSHAKE_PATIENCE, HEAD_PATIENCE, guard};

/// The first byte of a TLS record that holds a handshake.
const TLS_HANDSHAKE: u8 = 22;
/// How HTTP/2 begins; no method of HTTP/1.1 does.
const PREFACE: &[u8] = b"PRI ";

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    Tls,
    /// It ended, or said nothing for too long.
    Nothing,
}

/// Looks at the first bytes of a connection and leaves them where they are.
pub(super) async fn speaks(stream: &TcpStream) -> Speaks {
    let mut first = [0; PREFACE.len()];
    match timeout(HEAD_PATIENCE, stream.peek(&mut first)).await {
        Ok(Ok(length)) => told_by(&first[..length]),
        Ok(Err(_)) | Err(_) => Speaks::Nothing,
    }
}

fn told_by(first: &[u8]) -> Speaks {
    match first {
        [] => Speaks::Nothing,
        [TLS_HANDSHAKE, ..] => Speaks::Tls,
        PREFACE => Speaks::Http2,
        _ => Speaks::Http1,
    }
}

/// Speaks TLS as the host the client names: one of ours, or this machine. The host is returned when
/// it is one of ours, as if the client had come through the proxy.
pub(super) async fn terminate(
    shared: &Shared,
    stream: TcpStream,
) -> Option<(Option<String>, TlsStream<TcpStream>)> {
    let accepting = async {
        let hello = LazyConfigAcceptor::new(Default::default(), stream).await.ok()?;
        let named = hello.client_hello().server_name().map(str::to_ascii_lowercase);
        let (host, certified) = match named {
            Some(name) => match hosts::host(&name) {
                Host::Api(_) | Host::AnyApi | Host::IapTunnel => (Some(name.clone()), name),
                Host::RunApp(_) => return None,
                Host::Foreign if guard::is_own_name(&name, shared.bound) => (None, name),
                Host::Foreign => return None,
            },
            // Who connects to an address names none.
            None => (None, named_address(shared.bound)),
        };
        let protocols: &[&[u8]] = &[HTTP2, HTTP1];
        let now = OffsetDateTime::now_utc();
        let config = match shared.authority.server(&certified, protocols, now) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(host = %certified, ?error, "no certificate for a host");
                return None;
            }
        };
        Some((host, hello.into_stream(config).await.ok()?))
    };
    timeout(HANDSHAKE_PATIENCE, accepting).await.ok().flatten()
}

fn named_address(bound: IpAddr) -> String {
    bound.to_canonical().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_is_spoken() {
        for (first, expected) in [
            (&b"\x16\x03\x01\x02"[..], Speaks::Tls),
            (b"PRI ", Speaks::Http2),
            (b"POST", Speaks::Http1),
            (b"CONN", Speaks::Http1),
            (b"G", Speaks::Http1),
            (b"", Speaks::Nothing),
        ] {
            assert_eq!(told_by(first), expected, "{first:?}");
        }
    }
}
