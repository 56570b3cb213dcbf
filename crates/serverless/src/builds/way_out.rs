//! The way out of a build's container: a forward proxy on its own loopback address.
//!
//! The container has no other network. What it asks for is dialled from here, when it is a public
//! address or one of the registries this host is set up for; the server's own ports, the host's
//! network and metadata addresses are neither.
//!
//! Invariant: an address is judged after its name was looked up, and that address is dialled.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// The port inside the container.
pub(crate) const PORT: u16 = 3128;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEAD_WITHIN: Duration = Duration::from_secs(30);
const DIAL_WITHIN: Duration = Duration::from_secs(15);
const CONNECTIONS_MAX: usize = 256;

/// Serves a build until dropped.
#[derive(Debug)]
pub(crate) struct WayOut {
    serving: AbortHandle,
}

impl WayOut {
    /// Answers on a listener inside the container; `named` are registries as `host:port`.
    pub(crate) fn open(listener: std::net::TcpListener, named: Vec<String>) -> io::Result<WayOut> {
        let listener = TcpListener::from_std(listener)?;
        let serving = tokio::spawn(serve(listener, named)).abort_handle();
        Ok(WayOut { serving })
    }
}

impl Drop for WayOut {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, named: Vec<String>) {
    // Aborting this task drops the set, which ends every connection with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let named = named.clone();
        connections.spawn(async move {
            if let Err(error) = pass(stream, &named).await {
                tracing::debug!(%error, "a build's connection ended");
            }
        });
    }
}

async fn pass(mut client: TcpStream, named: &[String]) -> io::Result<()> {
    let (head, rest) = timeout(HEAD_WITHIN, read_head(&mut client)).await??;
    let Some(Asked { target, opening }) = asked(&head) else {
        return client.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    };
    let mut upstream = match dial(&target, named).await {
        Ok(stream) => stream,
        Err(error) => {
            let text = format!("{target} cannot be reached from a build: {error}\n");
            let head = "HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-length: ";
            let answer = format!("{head}{}\r\n\r\n{text}", text.len());
            return client.write_all(answer.as_bytes()).await;
        }
    };
    match opening {
        Some(opening) => upstream.write_all(opening.as_bytes()).await?,
        None => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
    }
    upstream.write_all(&rest).await?;
    copy_bidirectional(&mut client, &mut upstream).await.map(|_| ())
}

/// The head of a request, and what came after it.
async fn read_head(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            let head = String::from_utf8(bytes).map_err(io::Error::other)?;
            return Ok((head, rest));
        }
        if bytes.len() > HEAD_BYTES_MAX || client.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// What a head asks of a proxy.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// `host:port`.
    target: String,
    /// What to say to the target; nothing when the client speaks to it itself.
    opening: Option<String>,
}

fn asked(head: &str) -> Option<Asked> {
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    if method == "CONNECT" {
        return Some(Asked { target: target.to_ascii_lowercase(), opening: None });
    }
    let address = super::registries::address(target)?;
    let path_at = target.strip_prefix("http://")?.find('/');
    let path = path_at.map_or("/", |at| &target["http://".len() + at..]);
    let hop = ["connection:", "proxy-connection:", "proxy-authorization:", "keep-alive:"];
    let fields = lines.filter(|line| {
        let lower = line.to_ascii_lowercase();
        !line.is_empty() && !hop.iter().any(|name| lower.starts_with(name))
    });
    // One request, one connection: what follows would be for another host.
    let mut opening = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for field in fields {
        opening.push_str(field);
        opening.push_str("\r\n");
    }
    opening.push_str("\r\n");
    Some(Asked { target: address, opening: Some(opening) })
}

async fn dial(target: &str, named: &[String]) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = timeout(DIAL_WITHIN, lookup_host(target)).await??.collect();
    let is_named = named.iter().any(|known| known == target);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses {
        if !is_named && !is_public(address.ip()) {
            last = io::Error::new(io::ErrorKind::PermissionDenied, "it is a private address");
            continue;
        }
        match timeout(DIAL_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// Whether an address is out in the internet: not this host, not its network.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let is_shared = a == 100 && (64..128).contains(&b);
            let is_special = ip.is_private() || ip.is_loopback() || ip.is_link_local();
            !(is_special
                || is_shared
                || ip.is_unspecified()
                || ip.is_multicast()
                || a == 0
                || a >= 240)
        }
        IpAddr::V6(ip) => {
            let is_local = ip.is_unique_local() || ip.is_unicast_link_local();
            !(ip.is_loopback() || is_local || ip.is_unspecified() || ip.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_asks_is_read_from_the_head() {
        let connect = asked("CONNECT Registry.npmjs.org:443 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert_eq!(connect, Asked { target: "registry.npmjs.org:443".to_owned(), opening: None });
        let plain = "GET http://pypi.example/simple/a?b HTTP/1.1\r\nHost: pypi.example\r\n\
                     Proxy-Connection: keep-alive\r\n\r\n";
        let plain = asked(plain).unwrap();
        assert_eq!(plain.target, "pypi.example:80");
        assert_eq!(
            plain.opening.unwrap(),
            "GET /simple/a?b HTTP/1.1\r\nconnection: close\r\nHost: pypi.example\r\n\r\n"
        );
        assert_eq!(asked("GET /metrics HTTP/1.1\r\n\r\n"), None);
    }

    #[test]
    fn only_public_addresses_are_reached_without_being_named() {
        for (address, public) in [
            ("151.101.0.223", true),
            ("2606:4700::6810:1", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }
}
