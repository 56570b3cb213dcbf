//! Load at a fixed rate, whatever the proxy does: latency counts from the moment a request was due.
//!
//! Usage: `bench-load PORT PATH RATE SECONDS CONNECTIONS plain|tls keep|new BODY_BYTES`. A timer of the
//! kernel says when requests are due; one that finds no idle connection waits for one, and its wait counts.
//! Prints one line of JSON with microseconds.

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TIMER: Token = Token(usize::MAX);
/// Requests that may wait for a connection; more are counted as failed.
const WAITING_MAX: usize = 100_000;
/// How long the last responses are waited for.
const GRACE: Duration = Duration::from_secs(2);

struct Plan {
    address: SocketAddr,
    request: Vec<u8>,
    rate: u64,
    seconds: u64,
    connections: usize,
    tls: Option<Arc<ClientConfig>>,
    is_new: bool,
}

/// One connection, and the request on it.
struct Client {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// When the request on it was due.
    due: Option<Instant>,
    unsent: Vec<u8>,
    head: Vec<u8>,
    /// Bytes of the body still to come, once the head is complete.
    left: Option<usize>,
}

/// What came of a look at a connection.
#[derive(PartialEq)]
enum State {
    Busy,
    Answered,
    Broken,
}

#[derive(Default)]
struct Tally {
    latencies: Vec<u32>,
    failed: u64,
}

impl Client {
    fn open(plan: &Plan, poll: &Poll, at: usize) -> io::Result<Client> {
        let mut stream = TcpStream::connect(plan.address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(at), interest)?;
        let tls = match &plan.tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from("app.test").map_err(io::Error::other)?;
                let session = ClientConnection::new(config.clone(), name);
                Some(Box::new(session.map_err(io::Error::other)?))
            }
        };
        let (unsent, head) = (Vec::new(), Vec::new());
        Ok(Client { stream, tls, due: None, unsent, head, left: None })
    }

    fn ask(&mut self, plan: &Plan, due: Instant, hot: &mut [u8]) -> State {
        self.due = Some(due);
        self.head.clear();
        self.left = None;
        match &mut self.tls {
            None => self.unsent.extend_from_slice(&plan.request),
            Some(tls) => {
                if tls.writer().write_all(&plan.request).is_err() {
                    return State::Broken;
                }
            }
        }
        self.go_on(hot)
    }

    /// Sends what can be sent and reads what is there.
    fn go_on(&mut self, hot: &mut [u8]) -> State {
        match self.send().and_then(|()| self.receive(hot)) {
            Ok(()) if self.due.is_some() && self.left == Some(0) => State::Answered,
            Ok(()) => State::Busy,
            Err(_) => State::Broken,
        }
    }

    fn send(&mut self) -> io::Result<()> {
        let sent = match &mut self.tls {
            None => loop {
                if self.unsent.is_empty() {
                    break Ok(());
                }
                match self.stream.write(&self.unsent) {
                    Ok(count) => drop(self.unsent.drain(..count)),
                    Err(error) => break Err(error),
                }
            },
            Some(tls) => loop {
                if !tls.wants_write() {
                    break Ok(());
                }
                if let Err(error) = tls.write_tls(&mut self.stream) {
                    break Err(error);
                }
            },
        };
        match sent {
            // A socket that is still connecting says so in one of these two ways.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn receive(&mut self, hot: &mut [u8]) -> io::Result<()> {
        loop {
            let count = match &mut self.tls {
                None => match self.stream.read(hot) {
                    Ok(0) if self.left == Some(0) => return Ok(()),
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => count,
                    Err(error) => return blocked(error),
                },
                Some(tls) => {
                    match tls.read_tls(&mut self.stream) {
                        Ok(0) if self.left == Some(0) => return Ok(()),
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(_) => {}
                        Err(error) => return blocked(error),
                    }
                    tls.process_new_packets().map_err(io::Error::other)?;
                    let mut all = 0;
                    while let Ok(count @ 1..) = tls.reader().read(&mut hot[all..]) {
                        all += count;
                    }
                    all
                }
            };
            self.take(&hot[..count])?;
            self.send()?;
        }
    }

    fn take(&mut self, mut data: &[u8]) -> io::Result<()> {
        if self.left.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(data);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else {
                return Ok(());
            };
            let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
            if !head.starts_with("http/1.1 200") {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length = length.and_then(|length| length.trim().parse().ok());
            self.left = Some(length.ok_or(io::ErrorKind::InvalidData)?);
            data = &data[(end + 4).saturating_sub(before)..];
        }
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(data.len()).ok_or(io::ErrorKind::InvalidData)?;
        }
        Ok(())
    }
}

fn blocked(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected => Ok(()),
        _ => Err(error),
    }
}

fn read_plan() -> Result<Plan, Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, path, rate, seconds, connections, transport, life, body] = &arguments[..] else {
        return Err("PORT PATH RATE SECONDS CONNECTIONS plain|tls keep|new BODY_BYTES".into());
    };
    let (is_new, body) = (life == "new", body.parse::<usize>()?);
    let method = if body > 0 { "POST" } else { "GET" };
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: app.test\r\n");
    if body > 0 {
        request += &format!("Content-Length: {body}\r\n");
    }
    if is_new {
        request += "Connection: close\r\n";
    }
    request += "\r\n";
    request += &"x".repeat(body);
    Ok(Plan {
        address: ([127, 0, 0, 1], port.parse()?).into(),
        request: request.into_bytes(),
        rate: rate.parse()?,
        seconds: seconds.parse()?,
        connections: connections.parse()?,
        tls: (transport == "tls").then(tls_config).transpose()?,
        is_new,
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let plan = read_plan()?;
    let mut poll = Poll::new()?;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    let nanos = 1_000_000_000 / i64::try_from(plan.rate)?;
    let period = Timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut idle: Vec<usize> = Vec::new();
    if !plan.is_new {
        for at in 0..plan.connections {
            clients.push(Some(Client::open(&plan, &poll, at)?));
        }
        idle.extend(0..plan.connections);
    }
    let raw_timer = timer.as_raw_fd();
    poll.registry().register(&mut SourceFd(&raw_timer), TIMER, Interest::READABLE)?;
    let every = Itimerspec { it_interval: period, it_value: period };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
    let started = Instant::now();
    let step = Duration::from_nanos(u64::try_from(nanos)?);
    let total = plan.rate * plan.seconds;
    let (mut issued, mut tally) = (0, Tally::default());
    let mut waiting: VecDeque<Instant> = VecDeque::new();
    let mut events = Events::with_capacity(1024);
    let mut hot = vec![0; 256 << 10];
    let end = started + Duration::from_secs(plan.seconds) + GRACE;
    while tally.latencies.len() as u64 + tally.failed < total && Instant::now() < end {
        match poll.poll(&mut events, Some(Duration::from_millis(100))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            let at = event.token().0;
            if event.token() == TIMER {
                let mut times = [0; 8];
                let _ = rustix::io::read(&timer, &mut times);
                for _ in 0..u64::from_ne_bytes(times).min(total - issued) {
                    issued += 1;
                    waiting.push_back(started + step * u32::try_from(issued)?);
                }
                continue;
            }
            let Some(client) = clients.get_mut(at).and_then(Option::as_mut) else { continue };
            let state = client.go_on(&mut hot);
            settle(&plan, &poll, &mut clients, &mut idle, at, state, &mut tally)?;
        }
        while let Some(due) = waiting.pop_front() {
            if plan.is_new && idle.is_empty() && clients.len() < WAITING_MAX {
                clients.push(None);
                idle.push(clients.len() - 1);
            }
            let Some(at) = idle.pop() else {
                waiting.push_front(due);
                break;
            };
            if clients[at].is_none() {
                clients[at] = Some(Client::open(&plan, &poll, at)?);
            }
            let Some(client) = &mut clients[at] else { continue };
            let state = client.ask(&plan, due, &mut hot);
            settle(&plan, &poll, &mut clients, &mut idle, at, state, &mut tally)?;
        }
        while waiting.len() > WAITING_MAX {
            waiting.pop_front();
            tally.failed += 1;
        }
    }
    tally.failed = total - tally.latencies.len() as u64;
    report(tally, started.elapsed().min(Duration::from_secs(plan.seconds)))
}

/// Makes a connection that has answered, or broken, ready for its next request.
fn settle(
    plan: &Plan,
    poll: &Poll,
    clients: &mut [Option<Client>],
    idle: &mut Vec<usize>,
    at: usize,
    state: State,
    tally: &mut Tally,
) -> io::Result<()> {
    let Some(client) = &mut clients[at] else { return Ok(()) };
    match state {
        State::Busy => return Ok(()),
        State::Answered => {
            if let Some(due) = client.due.take() {
                let micros = u32::try_from(due.elapsed().as_micros()).unwrap_or(u32::MAX);
                tally.latencies.push(micros);
                idle.push(at);
            }
        }
        State::Broken => {
            if client.due.take().is_some() {
                tally.failed += 1;
                idle.push(at);
            }
        }
    }
    if plan.is_new {
        clients[at] = None;
    } else if state == State::Broken {
        clients[at] = Some(Client::open(plan, poll, at)?);
    }
    Ok(())
}

fn report(mut tally: Tally, time: Duration) -> Result<(), Box<dyn std::error::Error>> {
    tally.latencies.sort_unstable();
    let count = tally.latencies.len();
    let at = |thousandths: usize| {
        tally.latencies.get((count * thousandths / 1000).min(count.saturating_sub(1))).copied()
    };
    let mut out = io::stdout();
    writeln!(
        out,
        "{{\"requests\":{count},\"failed\":{},\"rate\":{:.0},\"p50\":{},\"p99\":{},\"p999\":{}}}",
        tally.failed,
        count as f64 / time.as_secs_f64(),
        at(500).unwrap_or(0),
        at(990).unwrap_or(0),
        at(999).unwrap_or(0),
    )?;
    Ok(())
}

/// Takes any certificate: what is measured is a connection on loopback to a certificate made for the run.
#[derive(Debug)]
struct AnyCertificate(rustls::crypto::CryptoProvider);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn tls_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    // Every new connection is a full handshake.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
