//! The door over real sockets on loopback: bytes in, bytes out.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use model::ResourceName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::iap::{DATA_BYTES_MAX, Frame};
use super::*;

const TOKEN: &str = "right";

/// An API that says what it was asked.
struct Echo;

impl Behind for Echo {
    fn principal(&self, bearer: &str) -> Option<Principal> {
        let email = "owner@example.com".to_owned();
        (bearer == TOKEN).then_some(Principal { email, is_service_account: false })
    }

    fn is_open(&self, service: &str, path: &str) -> bool {
        service == "oauth2" && path == "/token"
    }

    fn answer_open(&self, request: OpenRequest<'_>) -> Response {
        Response::json(StatusCode::OK, &json!({ "open": request.body.len() }))
    }

    fn answer(&self, request: Request) -> BoxFuture<'_, Response> {
        let said = format!(
            "{} {}{} {}?{} {} bytes from {}",
            request.method,
            request.service,
            request.host_region.map(|region| format!(" in {region}")).unwrap_or_default(),
            request.path,
            request.query,
            request.body.len(),
            request.principal.email,
        );
        Box::pin(async move { Response::json(StatusCode::OK, &json!({ "said": said })) })
    }
}

/// VMs whose every port is one listener, and services that are another.
struct Loopback(SocketAddr);

impl InstancePort for Loopback {
    fn connect<'a>(
        &'a self,
        instance: &'a ResourceName,
        port: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            match (&*instance.name, port) {
                ("vm", 22) => TcpStream::connect(self.0).await,
                ("vm", _) => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        })
    }
}

impl RunAppPort for Loopback {
    fn connect(&self) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(self.0))
    }
}

struct Stage {
    door: Door,
    folder: TempDir,
    echo: SocketAddr,
}

/// A listener that gives back what it gets.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reads, mut writes) = stream.split();
                let _ = tokio::io::copy(&mut reads, &mut writes).await;
                let _ = writes.shutdown().await;
            });
        }
    });
    address
}

fn config(folder: &TempDir, echo: SocketAddr) -> Config {
    Config {
        data_dir: folder.path().to_owned(),
        address: None,
        beyond_loopback: false,
        behind: Arc::new(Echo),
        instances: Arc::new(Loopback(echo)),
        run_apps: Arc::new(Loopback(echo)),
        inherited: None,
    }
}

async fn stage() -> Stage {
    let folder = tempfile::tempdir().expect("a folder");
    let echo = echo_server().await;
    let door = Door::start(config(&folder, echo)).await.expect("opens");
    Stage { door, folder, echo }
}

impl Stage {
    async fn port(&self) -> TcpStream {
        TcpStream::connect(self.door.address()).await.expect("connects")
    }

    /// Sends these bytes and reads until the server closes.
    async fn exchange(&self, bytes: &str) -> String {
        let mut stream = self.port().await;
        stream.write_all(bytes.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn connect_to(&self, authority: &str) -> TcpStream {
        let mut stream = self.port().await;
        let ask = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.expect("written");
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    async fn tls_to(&self, host: &str, protocol: &[u8]) -> TlsStream<TcpStream> {
        let stream = self.connect_to(&format!("{host}:443")).await;
        let mut roots = RootCertStore::empty();
        let pem = std::fs::read(self.folder.path().join("door/ca.pem")).expect("a CA");
        roots.add(CertificateDer::from_pem_slice(&pem).expect("PEM")).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = ServerName::try_from(host.to_owned()).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
    }

    async fn ask_as(&self, host: &str, bytes: &str) -> String {
        let mut stream = self.tls_to(host, b"http/1.1").await;
        stream.write_all(bytes.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn tunnel(&self, path: &str) -> WebSocketStream<TlsStream<TcpStream>> {
        let stream = self.tls_to(hosts::IAP_TUNNEL_HOST, b"http/1.1").await;
        let url = format!("wss://{}{path}", hosts::IAP_TUNNEL_HOST);
        let mut request = url.into_client_request().expect("a request");
        for (name, value) in [
            ("authorization", "Bearer right"),
            ("origin", guard::IAP_TUNNELER_ORIGIN),
            ("sec-websocket-protocol", iap::SUBPROTOCOL),
        ] {
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        let (socket, _) =
            tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
        socket
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// The status and what the API said, or the door's own message.
fn essence(answer: &str) -> String {
    let status = answer.split(' ').nth(1).unwrap_or("nothing");
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let said = body["said"].as_str().or(body["error"]["message"].as_str()).unwrap_or_default();
    let first_sentence = said.split(". ").next().unwrap_or_default();
    format!("{status} {first_sentence}").trim().to_owned()
}

const AUTHORIZED: &str = "Authorization: Bearer right\r\nConnection: close\r\n";

#[tokio::test]
async fn a_request_is_answered_by_the_api_its_host_or_its_path_names() {
    let stage = stage().await;
    for (line, host, expected) in [
        (
            "GET /compute/v1/projects/p?alt=json",
            "127.0.0.1",
            "200 GET compute /compute/v1/projects/p?alt=json 0 bytes from owner@example.com",
        ),
        (
            "GET /v1/x",
            "us-west1-run.googleapis.com",
            "200 GET run in us-west1 /v1/x? 0 bytes from owner@example.com",
        ),
        (
            "GET http://run.googleapis.com/v1/x",
            "run.googleapis.com",
            "200 GET run /v1/x? 0 bytes from owner@example.com",
        ),
        (
            "GET /apis/serving.knative.dev/v1/y",
            "us-west1-run.localhost:80",
            "200 GET run in us-west1 /apis/serving.knative.dev/v1/y? 0 bytes from owner@example.com",
        ),
        ("GET /run/v1/z", "localhost", "200 GET run /v1/z? 0 bytes from owner@example.com"),
        ("GET /nothing", "localhost", "404 No API is served at this path."),
    ] {
        let bytes = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{AUTHORIZED}\r\n");
        assert_eq!(essence(&stage.exchange(&bytes).await), expected, "{line}");
    }
}

#[tokio::test]
async fn without_a_token_of_this_server_there_is_no_answer() {
    let stage = stage().await;
    let missing = "401 Request is missing required authentication credential";
    let wrong = "401 Request had invalid authentication credentials";
    for (header, expected) in [
        ("", missing),
        ("Authorization: Basic right\r\n", missing),
        ("Authorization: Bearer wrong\r\n", wrong),
        ("Authorization: Bearer \r\n", missing),
        (
            "Authorization: bearer right\r\n",
            "200 GET compute /compute/v1/x? 0 bytes from owner@example.com",
        ),
    ] {
        let bytes = format!(
            "GET /compute/v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n"
        );
        let answer = stage.exchange(&bytes).await;
        assert_eq!(essence(&answer), expected, "{header}");
        assert_eq!(answer.contains("www-authenticate: Bearer"), expected.starts_with("401"));
    }
    let form = "POST /token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\na=b";
    assert!(stage.exchange(form).await.contains(r#""open": 3"#));
}

#[tokio::test]
async fn pages_of_other_origins_and_rebound_names_are_refused_even_with_a_token() {
    let stage = stage().await;
    for (host, header) in [
        ("localhost", "Origin: https://evil.example"),
        ("localhost", "Origin: null"),
        ("localhost", "Sec-Fetch-Site: cross-site"),
        ("evil.example", "Accept: */*"),
    ] {
        let bytes =
            format!("GET /compute/v1/x HTTP/1.1\r\nHost: {host}\r\n{header}\r\n{AUTHORIZED}\r\n");
        let answer = stage.exchange(&bytes).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{host} {header}: {answer}");
        assert!(answer.contains("PERMISSION_DENIED"), "{answer}");
    }
}

#[tokio::test]
async fn a_proxied_api_is_spoken_to_over_tls_as_itself_and_as_nobody_else() {
    let stage = stage().await;
    let ask = |host: &str| format!("GET /v1/x HTTP/1.1\r\nHost: {host}\r\n{AUTHORIZED}\r\n");
    let host = "us-west1-run.googleapis.com";
    assert_eq!(
        essence(&stage.ask_as(host, &ask(host)).await),
        "200 GET run in us-west1 /v1/x? 0 bytes from owner@example.com"
    );
    let mixed = stage.ask_as(host, &ask("compute.googleapis.com")).await;
    assert!(mixed.starts_with("HTTP/1.1 421 "), "{mixed}");
}

#[tokio::test]
async fn http2_clients_are_answered_and_grpc_clients_told_to_use_rest() {
    let stage = stage().await;
    let stream = stage.tls_to("run.googleapis.com", b"h2").await;
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, io).await.expect("a handshake");
    tokio::spawn(connection);
    let request = |kind: &str| {
        http::Request::builder()
            .method(Method::GET)
            .uri("https://run.googleapis.com/v2/x")
            .header("authorization", "Bearer right")
            .header("content-type", kind)
            .body(http_body_util::Empty::<Bytes>::new())
            .expect("a request")
    };
    let answer = sender.send_request(request("application/json")).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = sender.send_request(request("application/grpc")).await.expect("an answer");
    assert_eq!(answer.headers()["grpc-status"], "12");
}

#[tokio::test]
async fn a_host_that_is_not_googles_is_tunnelled_untouched() {
    let stage = stage().await;
    let mut stream = stage.connect_to(&stage.echo.to_string()).await;
    stream.write_all(b"\x16\x03\x01 not http at all").await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.expect("read");
    assert_eq!(back, b"\x16\x03\x01 not http at all");
}

#[tokio::test]
async fn a_plain_request_for_a_foreign_host_is_forwarded_without_its_connections_fields() {
    let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = foreign.local_addr().expect("an address");
    // Every name that resolves without a network is the door's own, so forwarding is driven itself.
    let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let front_address = front.local_addr().expect("an address");
    tokio::spawn(async move {
        let (stream, _) = front.accept().await.expect("a client");
        let service = hyper::service::service_fn(move |request| async move {
            let backend = TcpStream::connect(address).await.expect("connects");
            tunnel::forward(backend, request).await
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    });
    let seen = tokio::spawn(async move {
        let (mut stream, _) = foreign.accept().await.expect("a client");
        let head = read_head(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: x\r\n\r\nhi";
        stream.write_all(answer).await.expect("written");
        head
    });
    let mut stream = TcpStream::connect(front_address).await.expect("connects");
    let ask = format!(
        "GET http://{address}/a?b HTTP/1.1\r\nHost: x\r\nProxy-Authorization: p\r\n\
         Connection: close, X-Hop\r\nX-Hop: 1\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    assert!(answer.ends_with("\r\n\r\nhi") && !answer.contains("keep-alive"), "{answer}");
    let head = seen.await.expect("served").to_ascii_lowercase();
    assert_eq!(head, format!("get /a?b http/1.1\r\nhost: {address}\r\n\r\n"));
}

#[tokio::test]
async fn a_foreign_host_that_cannot_be_reached_is_a_bad_gateway() {
    let stage = stage().await;
    let answer = stage
        .exchange("GET http://nowhere.invalid/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = answer.await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn a_service_is_reached_under_its_own_address() {
    let stage = stage().await;
    let mut stream = stage.connect_to("hello-1.us-west1.run.app:443").await;
    stream.write_all(b"to the data plane").await.expect("written");
    let mut back = [0; 17];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"to the data plane");
    let plain =
        "GET http://hello-1.us-west1.run.app/a?b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = stage.exchange(plain).await;
    assert!(answer.starts_with("HTTP/1.1 302 "), "{answer}");
    assert!(answer.contains("location: https://hello-1.us-west1.run.app/a?b\r\n"), "{answer}");
}

#[tokio::test]
async fn what_is_too_large_is_refused_with_a_name_for_it() {
    let stage = stage().await;
    let declared = format!(
        "POST /compute/v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{AUTHORIZED}\r\n",
        BODY_BYTES_MAX + 1
    );
    assert_eq!(
        essence(&stage.exchange(&declared).await),
        format!("413 Request payload size exceeds the limit: {BODY_BYTES_MAX} bytes.")
    );
    let long = format!(
        "GET /compute/v1/x HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n{AUTHORIZED}\r\n",
        "x".repeat(HEAD_BYTES_MAX)
    );
    let answer = stage.exchange(&long).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let many = "X: 1\r\n".repeat(HEADERS_MAX + 1);
    let many = format!("GET /compute/v1/x HTTP/1.1\r\nHost: localhost\r\n{many}{AUTHORIZED}\r\n");
    assert!(stage.exchange(&many).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn who_connected_before_the_door_closes_is_answered() {
    const CLIENTS: usize = 20;
    let stage = stage().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(stage.port().await);
    }
    while stage.door.connections.available_permits() > CONNECTIONS_MAX - CLIENTS {
        tokio::task::yield_now().await;
    }
    let mut closing = stage.door.closing.subscribe();
    let ask = async {
        closing.wait_for(|closing| *closing).await.expect("it closes");
        let mut answers = Vec::new();
        for mut client in clients {
            let request = b"GET /x HTTP/1.1\r\nHost: compute.googleapis.com\r\n\r\n";
            client.write_all(request).await.expect("written");
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer).await;
            answers.push(answer);
        }
        answers
    };
    let (listener, answers) = tokio::join!(stage.door.let_go(Duration::from_secs(10)), ask);
    listener.expect("the listener");
    for answer in answers {
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer:?}");
    }
}

#[tokio::test]
async fn the_port_is_remembered_and_only_loopback_unless_told_otherwise() {
    let stage = stage().await;
    let Stage { door, folder, echo } = stage;
    let address = door.address();
    assert!(address.ip().is_loopback());
    assert_eq!(remembered_address(folder.path()), Some(address));
    door.close().await;
    let again = Door::start(config(&folder, echo)).await.expect("opens again");
    assert_eq!(again.address(), address);
    let elsewhere = Door::start(config(&folder, echo)).await.expect("another port");
    assert_ne!(elsewhere.address(), address);
    let anyone = Some(SocketAddr::from((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)));
    let refused = Door::start(Config { address: anyone, ..config(&folder, echo) }).await;
    assert!(matches!(refused, Err(DoorError::BeyondLoopback { .. })));
}

async fn next_frame<S>(socket: &mut WebSocketStream<S>) -> Result<Frame, u16>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        match socket.next().await.expect("a message").expect("whole") {
            Message::Binary(bytes) => return Ok(Frame::decode(bytes).expect("a frame")),
            Message::Close(frame) => return Err(frame.expect("a code").code.into()),
            _ => {}
        }
    }
}

async fn connected(stage: &Stage) -> (WebSocketStream<TlsStream<TcpStream>>, String) {
    let mut socket = stage
        .tunnel(
            "/v4/connect?project=p&port=22&newWebsocket=True&zone=z-1-a&instance=vm&interface=nic0",
        )
        .await;
    let Ok(Frame::Connected(session)) = next_frame(&mut socket).await else {
        panic!("the first message is the session");
    };
    (socket, String::from_utf8_lossy(&session).into_owned())
}

#[tokio::test]
async fn a_tunnel_carries_bytes_to_the_vm_and_back_and_confirms_them() {
    let stage = stage().await;
    let (mut socket, _) = connected(&stage).await;
    let sent: Vec<u8> = (0..=255).cycle().take(DATA_BYTES_MAX * 3).collect();
    for chunk in sent.chunks(DATA_BYTES_MAX) {
        let frame = Frame::Data(Bytes::copy_from_slice(chunk));
        socket.send(Message::Binary(frame.encode())).await.expect("sent");
    }
    let (mut back, mut confirmed) = (Vec::new(), 0);
    while back.len() < sent.len() || confirmed < sent.len() as u64 {
        match next_frame(&mut socket).await {
            Ok(Frame::Data(data)) => back.extend_from_slice(&data),
            Ok(Frame::Ack(total)) => confirmed = total,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(back, sent);
    let ack = Frame::Ack(back.len() as u64).encode();
    socket.send(Message::Binary(ack)).await.expect("sent");
    socket.close(None).await.expect("closed");
}

#[tokio::test]
async fn a_client_that_comes_back_loses_nothing() {
    let stage = stage().await;
    let (mut socket, session) = connected(&stage).await;
    let hello = Frame::Data(Bytes::from_static(b"hello world")).encode();
    socket.send(Message::Binary(hello)).await.expect("sent");
    let mut back = 0;
    while back < 11 {
        if let Ok(Frame::Data(data)) = next_frame(&mut socket).await {
            back += data.len();
        }
    }
    // The WebSocket breaks when six of the eleven bytes have reached the client's user.
    drop(socket);
    let mut socket =
        stage.tunnel(&format!("/v4/reconnect?sid={session}&ack=6&newWebsocket=True&zone=z")).await;
    assert_eq!(next_frame(&mut socket).await, Ok(Frame::Reconnected(11)));
    assert_eq!(next_frame(&mut socket).await, Ok(Frame::Data(Bytes::from_static(b"world"))));
    let more = Frame::Data(Bytes::from_static(b"!")).encode();
    socket.send(Message::Binary(more)).await.expect("sent");
    loop {
        match next_frame(&mut socket).await {
            Ok(Frame::Data(data)) => {
                assert_eq!(&data[..], b"!");
                break;
            }
            Ok(Frame::Ack(total)) => assert_eq!(total, 12),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_tunnel_that_cannot_be_ends_with_its_reason() {
    let stage = stage().await;
    for (path, code) in [
        ("/v4/connect?project=p&port=23&zone=z-1-a&instance=vm", 4003),
        ("/v4/connect?project=p&port=22&zone=z-1-a&instance=gone", 4047),
        ("/v4/reconnect?sid=unknown&ack=0&zone=z", 4001),
    ] {
        let mut socket = stage.tunnel(path).await;
        assert_eq!(next_frame(&mut socket).await, Err(code), "{path}");
    }
    let (mut socket, _) = connected(&stage).await;
    socket.send(Message::Binary(Frame::Ack(7).encode())).await.expect("sent");
    assert_eq!(next_frame(&mut socket).await, Err(4005), "more was confirmed than sent");
    let (mut socket, _) = connected(&stage).await;
    socket.send(Message::Text("hello".into())).await.expect("sent");
    assert_eq!(next_frame(&mut socket).await, Err(4007));
}
