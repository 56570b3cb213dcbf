//! A client of the server's own API, for the verbs that talk to a running server.
//!
//! It goes in by the same door as every other client, with the token of the data directory: there is no
//! private way in.

use crate::data_dir::{DataDir, Running};
use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// The most an answer may hold, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How long one answer may take to begin: operations are waited for by the server.
const ANSWER_PATIENCE: Duration = Duration::from_secs(180);

/// Talks to one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    token: String,
}

/// What the server said when it refused.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// Google's message.
    pub(crate) message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} ({})", self.message, self.status.as_u16())
    }
}

impl std::error::Error for Refused {}

impl Client {
    /// A client of the server at `address`.
    pub(crate) fn new(address: SocketAddr, token: String) -> Client {
        Client { address, token }
    }

    /// A client of the server that runs on `dir`.
    pub(crate) fn of(dir: &DataDir) -> anyhow::Result<(Client, Running)> {
        let running = dir.running()?;
        Ok((Client::new(running.api, crate::server::token(dir)?), running))
    }

    /// GET, and the JSON of the answer.
    pub(crate) async fn get(&self, url: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, url, None).await
    }

    /// POST, and the JSON of the answer.
    pub(crate) async fn post(&self, url: &str, body: &Value) -> anyhow::Result<Value> {
        self.call(Method::POST, url, Some(body)).await
    }

    /// One call. `url` is absolute, `http://HOST/PATH`: the host says which API is meant.
    pub(crate) async fn call(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let response = self.send(method, url, body).await?;
        let status = response.status();
        let limited = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = match limited.collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => bail!("the answer of {url} broke off: {error}"),
        };
        let answer = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body)
                .with_context(|| format!("the answer of {url} is not JSON"))?
        };
        if status.is_success() {
            return Ok(answer);
        }
        let message =
            answer["error"]["message"].as_str().unwrap_or("no reason was given").to_owned();
        Err(Refused { status, message }.into())
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<http::Response<Incoming>> {
        let uri: http::Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let host = uri.authority().with_context(|| format!("`{url}` has no host"))?.to_string();
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("the server does not answer at {}", self.address))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, host)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        let bytes = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(value)?)
            }
            None => Bytes::new(),
        };
        let answer = sender.send_request(request.body(Full::new(bytes))?);
        match tokio::time::timeout(ANSWER_PATIENCE, answer).await {
            Ok(answer) => answer.with_context(|| format!("the server broke off at {url}")),
            Err(_) => bail!("no answer to {url} within {} s", ANSWER_PATIENCE.as_secs()),
        }
    }
}
