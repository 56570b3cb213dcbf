//! The metrics endpoint: `GET /metrics` on a port of its own, in OpenMetrics text.
//!
//! It tells counts and names of resources and needs no token, so it listens on loopback unless told
//! otherwise, and a browser's page of another origin or under a foreign host name gets nothing.

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at once; the next one waits.
const CONNECTIONS_MAX: usize = 16;

/// How long a connection may take to say what it wants.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// The content type of OpenMetrics 1.0.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Renders everything there is to measure.
pub(crate) type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Listens on this address; blocks no longer than that takes.
pub(crate) fn listen(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)
        .with_context(|| format!("could not listen on {address} for metrics"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers until the runtime ends; returns where.
pub(crate) fn serve(listener: std::net::TcpListener, render: Render) -> anyhow::Result<SocketAddr> {
    let bound = listener.local_addr()?;
    tokio::spawn(accept(TcpListener::from_std(listener)?, render));
    Ok(bound)
}

async fn accept(listener: TcpListener, render: Render) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let render = render.clone();
                tokio::spawn(async move {
                    connection(stream, render).await;
                    drop(permit);
                });
            }
            Err(error) => tracing::warn!(%error, "could not accept a connection for metrics"),
        }
    }
}

async fn connection(stream: TcpStream, render: Render) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &render);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a metrics connection broke off");
    }
}

fn answer(request: &Request<Incoming>, render: &Render) -> Response<Full<Bytes>> {
    let say = |status, kind: &str, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        if let Ok(kind) = kind.parse() {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    };
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    if request.headers().contains_key(header::ORIGIN) || !host.is_some_and(is_an_address) {
        return say(
            StatusCode::FORBIDDEN,
            "text/plain",
            "Ask by address, and not from a page.\n".into(),
        );
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => say(StatusCode::OK, CONTENT_TYPE, render()),
        (&Method::GET, "/healthz") => say(StatusCode::OK, "text/plain", "ok\n".into()),
        _ => say(
            StatusCode::NOT_FOUND,
            "text/plain",
            "There is only /metrics and /healthz.\n".into(),
        ),
    }
}

/// A name may have been pointed here by whoever owns it; an address or `localhost` cannot.
fn is_an_address(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost"
        || host.parse::<SocketAddr>().is_ok()
        || name.parse::<std::net::IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_given_to_addresses_and_withheld_from_pages_and_foreign_names() {
        let render: Render = Arc::new(|| "requests_total 1\n# EOF\n".into());
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = serve(listener, render).unwrap();
        for (head, status) in [
            (format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n"), "200"),
            ("GET /metrics HTTP/1.1\r\nHost: localhost:9\r\n\r\n".into(), "200"),
            (format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n"), "200"),
            (format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n"), "404"),
            ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n".into(), "403"),
            (
                format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nOrigin: http://x\r\n\r\n"),
                "403",
            ),
        ] {
            let answer = ask(address, &head).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{answer}");
            assert_eq!(
                answer.contains("requests_total 1"),
                status == "200" && head.contains("/metrics")
            );
        }
    }
}
