//! The IAP tunnel: what `gcloud compute ssh` speaks to a VM's port, over a WebSocket.
//!
//! Every message is a tag and its payload. Bytes are counted in both directions and confirmed, so
//! that a client whose WebSocket breaks can come back under its session id and lose nothing.
//!
//! Invariant: one task owns a session from its first byte to its last; a client that comes back
//! hands its WebSocket to that task. What waits for a slow side is bounded, in both directions.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use model::ResourceName;
use model::name::Kind;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::BoxFuture;
use crate::http::Principal;

/// The WebSocket subprotocol both sides must name.
pub const SUBPROTOCOL: &str = "relay.tunnel.cloudproxy.app";
/// Data in one message, in bytes.
pub const DATA_BYTES_MAX: usize = 16_384;
/// A WebSocket message with its tag and length, in bytes.
pub const MESSAGE_BYTES_MAX: usize = DATA_BYTES_MAX + 64;
/// Sent to the client and not yet confirmed, in bytes; beyond that the VM is not read.
pub const UNCONFIRMED_BYTES_MAX: usize = 1024 * 1024;
/// Received from the client and not yet written to the VM, in bytes; beyond that the client waits.
pub const UNWRITTEN_BYTES_MAX: usize = 64 * 1024;
/// Sessions at once; the next one is refused.
pub const SESSIONS_MAX: usize = 256;
/// How long a session waits for its client to come back.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(60);
/// A session without a byte in either direction ends.
pub const SESSION_IDLE: Duration = Duration::from_secs(3600);
/// How long one message may take to be sent before the WebSocket counts as broken.
pub const SEND_PATIENCE: Duration = Duration::from_secs(60);
/// How long connecting to the VM's port may take.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

const TAG_CONNECTED: u16 = 0x0001;
const TAG_RECONNECTED: u16 = 0x0002;
const TAG_DATA: u16 = 0x0004;
const TAG_ACK: u16 = 0x0007;

const CLOSE_SID_UNKNOWN: u16 = 4001;
const CLOSE_FAILED_TO_CONNECT: u16 = 4003;
const CLOSE_BAD_ACK: u16 = 4005;
const CLOSE_INVALID_OPCODE: u16 = 4007;
const CLOSE_INVALID_TAG: u16 = 4008;
const CLOSE_WRITE_FAILED: u16 = 4009;
const CLOSE_READ_FAILED: u16 = 4010;
const CLOSE_INVALID_DATA: u16 = 4013;
const CLOSE_LOOKUP_FAILED: u16 = 4047;

/// Reaches a port of a VM: the VPC answers.
pub trait InstancePort: Send + Sync + 'static {
    /// Connects; `NotFound` means that there is no such instance.
    fn connect<'a>(
        &'a self,
        instance: &'a ResourceName,
        port: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>>;
}

/// What a tunnel request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A new session to a VM's port.
    Connect {
        /// The VM.
        instance: ResourceName,
        /// Its port.
        port: u16,
    },
    /// A session that exists, from the byte the client has not seen.
    Reconnect {
        /// The session.
        session: String,
        /// Bytes the client has received.
        received: u64,
    },
}

/// Reads the path and query of a tunnel request; the error is a sentence for the client.
pub fn wanted(path: &str, query: &str) -> Result<Wanted, String> {
    let parameters: HashMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| {
            (name.to_owned(), percent_decode_str(value).decode_utf8_lossy().into_owned())
        })
        .collect();
    let given = |name: &str| {
        let value = parameters.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("The query parameter '{name}' is missing."))
    };
    let number = |name: &str| {
        let value = given(name)?;
        value.parse::<u64>().map_err(|_| format!("The query parameter '{name}' is not a number."))
    };
    match path {
        "/v4/connect" => {
            let port = number("port")?;
            let port = u16::try_from(port).ok().filter(|port| *port != 0);
            let instance = ResourceName::zonal(
                given("project")?,
                given("zone")?,
                Kind::Instance,
                given("instance")?,
            );
            let port = port.ok_or("The query parameter 'port' is not a port.")?;
            Ok(Wanted::Connect { instance, port })
        }
        "/v4/reconnect" => {
            Ok(Wanted::Reconnect { session: given("sid")?.clone(), received: number("ack")? })
        }
        _ => Err("The tunnel has no such path.".to_owned()),
    }
}

/// A message of the subprotocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The session is there.
    Connected(Bytes),
    /// The session goes on; the total the server has received.
    Reconnected(u64),
    /// Bytes.
    Data(Bytes),
    /// The total that has been received.
    Ack(u64),
}

impl Frame {
    /// The bytes of the message.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let with_length = |out: &mut BytesMut, tag, payload: &Bytes| {
            out.put_u16(tag);
            out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
            out.put_slice(payload);
        };
        match self {
            Frame::Connected(session) => with_length(&mut out, TAG_CONNECTED, session),
            Frame::Data(data) => with_length(&mut out, TAG_DATA, data),
            Frame::Reconnected(total) => {
                out.put_u16(TAG_RECONNECTED);
                out.put_u64(*total);
            }
            Frame::Ack(total) => {
                out.put_u16(TAG_ACK);
                out.put_u64(*total);
            }
        }
        out.freeze()
    }

    /// Reads one message; the error is the code the WebSocket is closed with.
    pub fn decode(mut bytes: Bytes) -> Result<Frame, u16> {
        if bytes.len() < 2 {
            return Err(CLOSE_INVALID_TAG);
        }
        let tag = bytes.get_u16();
        match tag {
            TAG_DATA | TAG_CONNECTED => {
                if bytes.len() < 4 {
                    return Err(CLOSE_INVALID_DATA);
                }
                let length = bytes.get_u32() as usize;
                if length != bytes.len() || length > DATA_BYTES_MAX {
                    return Err(CLOSE_INVALID_DATA);
                }
                Ok(if tag == TAG_DATA { Frame::Data(bytes) } else { Frame::Connected(bytes) })
            }
            TAG_ACK | TAG_RECONNECTED if bytes.len() == 8 => {
                let total = bytes.get_u64();
                Ok(if tag == TAG_ACK { Frame::Ack(total) } else { Frame::Reconnected(total) })
            }
            TAG_ACK | TAG_RECONNECTED => Err(CLOSE_INVALID_DATA),
            _ => Err(CLOSE_INVALID_TAG),
        }
    }
}

/// Bytes that were sent and may have to be sent again.
#[derive(Debug, Default)]
pub struct Unconfirmed {
    confirmed: u64,
    sent: u64,
    chunks: VecDeque<Bytes>,
}

impl Unconfirmed {
    /// Remembers what is about to be sent.
    pub fn push(&mut self, data: Bytes) {
        self.sent += data.len() as u64;
        self.chunks.push_back(data);
    }

    /// Bytes remembered.
    pub fn bytes(&self) -> usize {
        usize::try_from(self.sent - self.confirmed).unwrap_or(usize::MAX)
    }

    /// Forgets what the client has received; false when the total cannot be right.
    pub fn confirm(&mut self, total: u64) -> bool {
        if total < self.confirmed || total > self.sent {
            return false;
        }
        let mut news = total - self.confirmed;
        self.confirmed = total;
        while let Some(chunk) = self.chunks.front_mut() {
            let length = chunk.len() as u64;
            if length > news {
                // The difference is less than the chunk's length, which is a `usize`.
                chunk.advance(usize::try_from(news).unwrap_or(usize::MAX));
                break;
            }
            news -= length;
            self.chunks.pop_front();
        }
        true
    }
}

/// The sessions that exist.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    by_id: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Clone, Debug)]
struct Entry {
    owner: String,
    returning: mpsc::Sender<(Socket, u64)>,
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Serves one upgraded connection to its end.
pub async fn serve(
    sessions: Sessions,
    instances: Arc<dyn InstancePort>,
    wanted: Wanted,
    principal: Principal,
    upgraded: Upgraded,
) {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    config.max_write_buffer_size = 4 * MESSAGE_BYTES_MAX;
    config.write_buffer_size = 0;
    let io = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    match wanted {
        Wanted::Connect { instance, port } => {
            let connecting = timeout(CONNECT_PATIENCE, instances.connect(&instance, port));
            let refused = match connecting.await {
                Ok(Ok(backend)) => {
                    return start(sessions, principal, socket, backend).await;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                    (CLOSE_LOOKUP_FAILED, "Failed to lookup instance".to_owned())
                }
                Ok(Err(error)) => {
                    tracing::info!(%instance, port, %error, "the tunnel could not reach the port");
                    (CLOSE_FAILED_TO_CONNECT, "failed to connect to backend".to_owned())
                }
                Err(_) => (CLOSE_FAILED_TO_CONNECT, "failed to connect to backend".to_owned()),
            };
            close(&mut socket, refused.0, &refused.1).await;
        }
        Wanted::Reconnect { session, received } => {
            let entry = {
                let by_id = sessions.by_id.lock().unwrap_or_else(PoisonError::into_inner);
                by_id.get(&session).filter(|entry| entry.owner == principal.email).cloned()
            };
            let unclaimed = match entry {
                Some(entry) => entry.returning.send((socket, received)).await.err(),
                None => Some(mpsc::error::SendError((socket, received))),
            };
            if let Some(mpsc::error::SendError((mut socket, _))) = unclaimed {
                close(&mut socket, CLOSE_SID_UNKNOWN, "unknown session").await;
            }
        }
    }
}

async fn start(sessions: Sessions, principal: Principal, mut socket: Socket, backend: TcpStream) {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let (returning, inbox) = mpsc::channel(1);
    let full = {
        let mut by_id = sessions.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        let full = by_id.len() >= SESSIONS_MAX;
        if !full {
            by_id.insert(id.clone(), Entry { owner: principal.email, returning });
        }
        full
    };
    if full {
        return close(&mut socket, CLOSE_FAILED_TO_CONNECT, "too many sessions").await;
    }
    let greeting = Frame::Connected(Bytes::from(id.clone()));
    let relay = Relay {
        backend,
        unwritten: BytesMut::new(),
        received: 0,
        acknowledged: 0,
        unconfirmed: Unconfirmed::default(),
        inbox,
    };
    if send(&mut socket, &greeting).await.is_ok() {
        relay.run(socket).await;
    }
    sessions.by_id.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
}

/// One session: the VM's connection and the counts on both sides.
struct Relay {
    backend: TcpStream,
    unwritten: BytesMut,
    received: u64,
    acknowledged: u64,
    unconfirmed: Unconfirmed,
    inbox: mpsc::Receiver<(Socket, u64)>,
}

/// How one WebSocket ended.
enum Ending {
    /// The session is over; the WebSocket is closed with this code.
    Close(u16, &'static str),
    /// The client closed it.
    ClientClosed,
    /// It broke, and the client may come back.
    Broken,
    /// The client came back before the break was seen.
    Replaced(Box<Socket>, u64),
}

impl Relay {
    async fn run(mut self, mut socket: Socket) {
        loop {
            let next = match self.relay(&mut socket).await {
                Ending::Close(code, reason) => return close(&mut socket, code, reason).await,
                Ending::ClientClosed => return self.finish().await,
                Ending::Broken => match timeout(RECONNECT_GRACE, self.inbox.recv()).await {
                    Ok(Some(next)) => next,
                    Ok(None) | Err(_) => return,
                },
                Ending::Replaced(socket, received) => (*socket, received),
            };
            socket = next.0;
            if let Err(code) = self.resume(&mut socket, next.1).await {
                return close(&mut socket, code, "bad acknowledgement").await;
            }
        }
    }

    /// Tells a client that came back where both sides stand, and sends again what it has not seen.
    async fn resume(&mut self, socket: &mut Socket, received: u64) -> Result<(), u16> {
        if !self.unconfirmed.confirm(received) {
            return Err(CLOSE_BAD_ACK);
        }
        self.acknowledged = self.received;
        // A WebSocket that breaks here is seen by the next read.
        let _ = send(socket, &Frame::Reconnected(self.received)).await;
        for chunk in &self.unconfirmed.chunks {
            let _ = send(socket, &Frame::Data(chunk.clone())).await;
        }
        Ok(())
    }

    async fn relay(&mut self, socket: &mut Socket) -> Ending {
        let mut buffer = vec![0; DATA_BYTES_MAX];
        let (mut from_vm, mut to_vm) = self.backend.split();
        loop {
            let client_may_send = self.unwritten.len() < UNWRITTEN_BYTES_MAX;
            let vm_may_send = self.unconfirmed.bytes() < UNCONFIRMED_BYTES_MAX;
            tokio::select! {
                Some((socket, received)) = self.inbox.recv() => {
                    return Ending::Replaced(Box::new(socket), received);
                }
                message = socket.next(), if client_may_send => {
                    let frame = match message {
                        Some(Ok(Message::Binary(bytes))) => Frame::decode(bytes),
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Close(_))) => return Ending::ClientClosed,
                        Some(Ok(_)) => Err(CLOSE_INVALID_OPCODE),
                        Some(Err(_)) | None => return Ending::Broken,
                    };
                    match frame {
                        Ok(Frame::Data(data)) => {
                            self.received += data.len() as u64;
                            self.unwritten.put_slice(&data);
                        }
                        Ok(Frame::Ack(total)) if self.unconfirmed.confirm(total) => {}
                        Ok(Frame::Ack(_)) => return Ending::Close(CLOSE_BAD_ACK, "bad ack"),
                        Ok(_) => return Ending::Close(CLOSE_INVALID_TAG, "unexpected tag"),
                        Err(code) => return Ending::Close(code, "malformed message"),
                    }
                }
                written = to_vm.write(&self.unwritten), if !self.unwritten.is_empty() => {
                    match written {
                        Ok(count) if count > 0 => self.unwritten.advance(count),
                        _ => return Ending::Close(CLOSE_WRITE_FAILED, "could not write"),
                    }
                    if self.unwritten.is_empty() && self.acknowledged < self.received {
                        self.acknowledged = self.received;
                        if send(socket, &Frame::Ack(self.received)).await.is_err() {
                            return Ending::Broken;
                        }
                    }
                }
                read = from_vm.read(&mut buffer), if vm_may_send => match read {
                    Ok(0) => return Ending::Close(CloseCode::Normal.into(), ""),
                    Ok(count) => {
                        let data = Bytes::copy_from_slice(&buffer[..count]);
                        self.unconfirmed.push(data.clone());
                        if send(socket, &Frame::Data(data)).await.is_err() {
                            return Ending::Broken;
                        }
                    }
                    Err(_) => return Ending::Close(CLOSE_READ_FAILED, "could not read"),
                },
                () = tokio::time::sleep(SESSION_IDLE) => {
                    return Ending::Close(CloseCode::Normal.into(), "idle");
                }
            }
        }
    }

    /// The client has said all it had to say: the VM gets the rest of it.
    async fn finish(mut self) {
        let rest = async {
            self.backend.write_all(&self.unwritten).await?;
            self.backend.shutdown().await
        };
        let _ = timeout(SEND_PATIENCE, rest).await;
    }
}

async fn send(socket: &mut Socket, frame: &Frame) -> Result<(), ()> {
    let sending = socket.send(Message::Binary(frame.encode()));
    match timeout(SEND_PATIENCE, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(()),
    }
}

async fn close(socket: &mut Socket, code: u16, reason: &str) {
    let frame = CloseFrame { code: CloseCode::from(code), reason: reason.to_owned().into() };
    let closing = async {
        socket.close(Some(frame)).await?;
        // The client's own close frame ends the handshake; its data in between has no reader.
        while let Some(message) = socket.next().await {
            message?;
        }
        Ok::<(), tokio_tungstenite::tungstenite::Error>(())
    };
    let _ = timeout(SEND_PATIENCE, closing).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_tunnel_request_names_a_vm_or_a_session() {
        let connect =
            "project=p&port=22&newWebsocket=True&zone=us-west1-a&instance=vm&interface=nic0";
        for (path, query, expected) in [
            ("/v4/connect", connect, "projects/p/zones/us-west1-a/instances/vm port 22"),
            ("/v4/reconnect", "sid=abc&ack=12&zone=z", "session abc from 12"),
            (
                "/v4/connect",
                "project=p&zone=z&instance=i",
                "The query parameter 'port' is missing.",
            ),
            (
                "/v4/connect",
                "project=p&zone=z&instance=i&port=0",
                "The query parameter 'port' is not a port.",
            ),
            (
                "/v4/connect",
                "project=p&zone=z&instance=i&port=x",
                "The query parameter 'port' is not a number.",
            ),
            ("/v4/connect", "port=22", "The query parameter 'project' is missing."),
            ("/v5/connect", connect, "The tunnel has no such path."),
        ] {
            let seen = match wanted(path, query) {
                Ok(Wanted::Connect { instance, port }) => format!("{instance} port {port}"),
                Ok(Wanted::Reconnect { session, received }) => {
                    format!("session {session} from {received}")
                }
                Err(sentence) => sentence,
            };
            assert_eq!(seen, expected, "{path}?{query}");
        }
    }

    #[test]
    fn messages_that_are_not_the_protocols_are_refused_with_its_codes() {
        for (bytes, code) in [
            (&b""[..], CLOSE_INVALID_TAG),
            (b"\x00\x09", CLOSE_INVALID_TAG),
            (b"\x00\x04\x00", CLOSE_INVALID_DATA),
            (b"\x00\x04\x00\x00\x00\x02a", CLOSE_INVALID_DATA),
            (b"\x00\x04\x00\x00\x00\x00a", CLOSE_INVALID_DATA),
            (b"\x00\x07\x00", CLOSE_INVALID_DATA),
        ] {
            assert_eq!(Frame::decode(Bytes::from_static(bytes)), Err(code), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn every_message_is_read_back(data in proptest::collection::vec(any::<u8>(), 0..200), total: u64) {
            let data = Bytes::from(data);
            for frame in [
                Frame::Connected(data.clone()),
                Frame::Data(data.clone()),
                Frame::Ack(total),
                Frame::Reconnected(total),
            ] {
                prop_assert_eq!(Frame::decode(frame.encode()), Ok(frame));
            }
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(Bytes::from(bytes));
        }

        #[test]
        fn what_is_not_confirmed_is_exactly_the_rest(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..10),
            totals in proptest::collection::vec(0u64..200, 0..8),
        ) {
            let whole: Vec<u8> = chunks.concat();
            let mut unconfirmed = Unconfirmed::default();
            for chunk in &chunks {
                unconfirmed.push(Bytes::from(chunk.clone()));
            }
            let mut confirmed = 0;
            for total in totals {
                let possible = total >= confirmed && total <= whole.len() as u64;
                prop_assert_eq!(unconfirmed.confirm(total), possible);
                confirmed = if possible { total } else { confirmed };
                let rest: Vec<u8> = unconfirmed.chunks.iter().flatten().copied().collect();
                prop_assert_eq!(&rest[..], &whole[usize::try_from(confirmed).expect("small")..]);
                prop_assert_eq!(unconfirmed.bytes(), rest.len());
            }
        }
    }
}
