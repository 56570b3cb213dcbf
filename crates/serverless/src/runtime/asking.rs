//! Asking an instance how it is: over TCP, HTTP or gRPC, through its own network.
//!
//! Invariant: a question is over when its time is; what a container answers is read only as far as
//! the answer goes.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Instance, ProbeAction};

const STATUS_LINE_BYTES_MAX: usize = 4 * 1024;
const GRPC_ANSWER_BYTES_MAX: usize = 4 * 1024;
const GRPC_HEALTH_PATH: &str = "http://localhost/grpc.health.v1.Health/Check";
const GRPC_OK: &str = "0";
/// `HealthCheckResponse.status` is field 1, and SERVING is 1.
const GRPC_SERVING: [u8; 2] = [0x08, 0x01];

/// Between two tries to connect: as fast as the timer goes at first, when most programs come up,
/// then slower, so that one which takes minutes costs next to nothing.
fn retry_after(waited: Duration) -> Duration {
    match waited.as_millis() {
        0..250 => Duration::from_millis(1),
        250..2_000 => Duration::from_millis(5),
        2_000..20_000 => Duration::from_millis(25),
        _ => Duration::from_millis(100),
    }
}

/// Asks once; the error says what was wrong, for the log.
pub(crate) async fn ask(
    instance: &dyn Instance,
    action: &ProbeAction,
    patience: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    let answer = async {
        match action {
            ProbeAction::Tcp { port } => connect(instance, *port).await.map(drop),
            ProbeAction::Http { port, path, headers } => {
                let stream = connect(instance, *port).await?;
                ask_http(stream, path, headers).await
            }
            ProbeAction::Grpc { port, service } => {
                let stream = connect(instance, *port).await?;
                ask_grpc(stream, service).await
            }
        }
    };
    match timeout_at(deadline, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", patience.as_secs_f32())),
    }
}

/// A connection as soon as the port is open.
async fn connect(instance: &dyn Instance, port: u16) -> Result<TcpStream, String> {
    let began = Instant::now();
    loop {
        match try_connect(instance, port).await {
            Ok(stream) => return Ok(stream),
            // The container may still be starting; how long to wait is the caller's business.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                sleep(retry_after(began.elapsed())).await;
            }
            Err(error) => return Err(format!("cannot connect to port {port}: {error}")),
        }
    }
}

async fn try_connect(instance: &dyn Instance, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(instance.dial(port).await?)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

async fn ask_http(
    mut stream: TcpStream,
    path: &str,
    headers: &[(String, String)],
) -> Result<(), String> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = format!("GET {path} HTTP/1.1\r\nUser-Agent: GoogleHC/1.0\r\nAccept: */*\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("Connection: close\r\n\r\n");
    let failed = |error: io::Error| error.to_string();
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_BYTES_MAX {
        let mut bytes = [0; 512];
        match stream.read(&mut bytes).await.map_err(failed)? {
            0 => break,
            count => line.extend_from_slice(&bytes[..count]),
        }
    }
    match status_of(&line) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("answered with status {status}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.split(|byte| *byte == b'\n').next()?).ok()?;
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.trim().parse().ok()
}

async fn ask_grpc(stream: TcpStream, service: &str) -> Result<(), String> {
    let failed = |error: h2::Error| error.to_string();
    let (client, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let question = ask_health(client, service);
    // The connection makes progress only while it is polled, and is of no use afterwards.
    tokio::select! {
        answer = question => answer,
        ended = connection => Err(match ended {
            Ok(()) => "the connection was closed".to_owned(),
            Err(error) => error.to_string(),
        }),
    }
}

async fn ask_health(client: h2::client::SendRequest<Bytes>, service: &str) -> Result<(), String> {
    let failed = |error: h2::Error| error.to_string();
    let request = http::Request::post(GRPC_HEALTH_PATH)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .map_err(|error| error.to_string())?;
    let mut client = client.ready().await.map_err(failed)?;
    let (response, mut body) = client.send_request(request, false).map_err(failed)?;
    body.send_data(health_question(service), true).map_err(failed)?;
    let response = response.await.map_err(failed)?;
    let early = response.headers().get("grpc-status").cloned();
    let mut answer = Vec::new();
    let mut stream = response.into_body();
    while let Some(piece) = stream.data().await {
        let piece = piece.map_err(failed)?;
        if answer.len() + piece.len() > GRPC_ANSWER_BYTES_MAX {
            return Err("the answer is too long".to_owned());
        }
        let _ = stream.flow_control().release_capacity(piece.len());
        answer.extend_from_slice(&piece);
    }
    let trailers = stream.trailers().await.map_err(failed)?;
    let status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned()).or(early);
    match status.as_ref().and_then(|status| status.to_str().ok()) {
        Some(GRPC_OK) if answer.get(5..7) == Some(&GRPC_SERVING) => Ok(()),
        Some(GRPC_OK) => Err("the service is not serving".to_owned()),
        Some(status) => Err(format!("answered with gRPC status {status}")),
        None => Err("the answer is not gRPC".to_owned()),
    }
}

/// `HealthCheckRequest { service }`, framed: not compressed, length, field 1 as text.
fn health_question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        // Seven bits to a byte, the lowest first, all but the last with the high bit set.
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length.to_le_bytes()[0] | 0x80);
            length >>= 7;
        }
        message.push(length.to_le_bytes()[0]);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    Bytes::from(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A health service that answers every question with these bytes and this gRPC status.
    async fn health_server(answer: &'static [u8], status: &'static str) -> TcpStream {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let head = http::Response::builder().body(()).unwrap();
                let mut body = respond.send_response(head, false).unwrap();
                body.send_data(Bytes::from_static(answer), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                body.send_trailers(trailers).unwrap();
            }
        });
        TcpStream::connect(address).await.unwrap()
    }

    #[tokio::test]
    async fn only_serving_is_well() {
        let cases: [(&[u8], &str, Result<(), &str>); 4] = [
            (&[0, 0, 0, 0, 2, 8, 1], "0", Ok(())),
            (&[0, 0, 0, 0, 2, 8, 2], "0", Err("the service is not serving")),
            (&[0, 0, 0, 0, 0], "0", Err("the service is not serving")),
            (&[], "5", Err("answered with gRPC status 5")),
        ];
        for (answer, status, expected) in cases {
            let stream = health_server(answer, status).await;
            let found = ask_grpc(stream, "shop").await;
            assert_eq!(found, expected.map_err(str::to_owned), "{answer:?} {status}");
        }
    }

    #[test]
    fn the_status_is_read_from_the_first_line_alone() {
        let cases: [(&[u8], Option<u16>); 5] = [
            (b"HTTP/1.1 200 OK\r\nX: 1\r\n", Some(200)),
            (b"HTTP/1.0 503\r\n", Some(503)),
            (b"HTTP/2 200\r\n", None),
            (b"SSH-2.0-OpenSSH\r\n", None),
            (b"", None),
        ];
        for (line, expected) in cases {
            assert_eq!(status_of(line), expected);
        }
    }

    #[test]
    fn a_health_question_is_framed_as_grpc_wants_it() {
        assert_eq!(&health_question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = health_question(&"x".repeat(200));
        assert_eq!(&long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01]);
    }
}
