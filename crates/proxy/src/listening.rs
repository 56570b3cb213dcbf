//! Forwarding rules as one worker serves them: sockets, connections, and the plan of the moment.
//!
//! Invariant: a rule's sockets, its listener and the plan change together, between two requests.

use crate::entries::listener_labels;
use crate::http1;
use crate::http2;
use crate::metrics::Cell64;
use crate::peer::{Peer, TlsFacts};
use crate::tls;
use crate::worker::{Held, Worker};
use plan::decision::{Decision, RequestHead};
use plan::load_balancer::Listener;
use socket2::{SockFilter, SockRef};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// After a socket has become deaf to SYNs, the handshakes that were under way get this long to complete.
pub(crate) const HANDSHAKE_GRACE: Duration = Duration::from_millis(50);

/// How long accepting pauses when the process has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener with what was prepared for it.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Arc<Listener>,
    pub(crate) tls: Option<Arc<rustls::ServerConfig>>,
    /// The part of a log entry that is the same for all its requests.
    pub(crate) log_labels: Vec<u8>,
}

impl Bound {
    pub(crate) fn new(listener: Arc<Listener>, tls: Option<Arc<rustls::ServerConfig>>) -> Bound {
        let log_labels = listener_labels(&listener);
        Bound { listener, tls, log_labels }
    }
}

/// What one request sees of the world.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    held: Rc<Held>,
    bound: Rc<Bound>,
}

impl std::ops::Deref for Serving {
    type Target = Bound;
    fn deref(&self) -> &Bound {
        &self.bound
    }
}

impl Serving {
    /// The plan's answer to a request that is about to be carried out.
    pub(crate) fn decide(&self, head: &RequestHead<'_>, dice: u64) -> Decision<'_> {
        let mut decision =
            self.bound.listener.url_map.decide_in_turn(&self.held.plan.fleet, head, dice);
        if let Decision::Forward(forward) = &mut decision {
            forward.take_turn();
        }
        decision
    }
}

/// Counts of one rule in one worker, for `status`.
#[derive(Debug, Default)]
pub(crate) struct RuleCells {
    pub(crate) connections: Cell64,
    pub(crate) connections_total: Cell64,
    pub(crate) requests: Cell64,
    /// Responses by the first digit of their status; 0 is none at all.
    pub(crate) by_class: [Cell64; 6],
}

/// One forwarding rule in one worker.
#[derive(Debug)]
pub(crate) struct Slot {
    bound: RefCell<Rc<Bound>>,
    pub(crate) cells: Arc<RuleCells>,
    /// The rule was removed: connections end as soon as they can.
    closing: Cell<bool>,
    stop: Notify,
    handles: RefCell<Handles>,
    worker: Rc<Worker>,
}

impl Slot {
    pub(crate) fn new(worker: &Rc<Worker>, bound: Bound, cells: Arc<RuleCells>) -> Rc<Slot> {
        Rc::new(Slot {
            bound: RefCell::new(Rc::new(bound)),
            cells,
            closing: Cell::new(false),
            stop: Notify::new(),
            handles: RefCell::default(),
            worker: worker.clone(),
        })
    }

    /// What a request that begins now is served from.
    pub(crate) fn serving(&self) -> Serving {
        Serving { held: self.worker.plan(), bound: self.bound.borrow().clone() }
    }

    /// Serves a changed listener from now on.
    pub(crate) fn rebind(&self, bound: Bound) {
        *self.bound.borrow_mut() = Rc::new(bound);
    }

    /// How long an idle connection is kept.
    fn keepalive(&self) -> Duration {
        self.bound.borrow().listener.keepalive
    }

    /// Ends the rule: no new connections, and idle ones are closed.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.stop.notify_waiters();
        self.wake_all();
    }

    /// Lets every idle connection look again whether it should end.
    pub(crate) fn wake_all(&self) {
        self.handles.borrow().wake_all();
    }

    /// Starts accepting on a socket of this rule.
    pub(crate) fn listen(self: &Rc<Slot>, socket: std::net::TcpListener) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        // Connections inherit this, which spares each a system call.
        SockRef::from(&socket).set_tcp_nodelay(true)?;
        let SocketAddr::V4(address) = socket.local_addr()? else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        let socket = Listening { socket: TcpListener::from_std(socket)?, address };
        let slot = self.clone();
        tokio::task::spawn_local(async move { slot.accept_all(socket).await });
        Ok(())
    }

    async fn accept_all(self: Rc<Slot>, socket: Listening) {
        let mut ends = pin!(async {
            tokio::select! {
                () = self.stop.notified() => {}
                () = self.worker.stop.notified() => {}
            }
        });
        loop {
            let accepted = poll_fn(|cx| {
                if ends.as_mut().poll(cx).is_ready() || self.is_closing() {
                    return Poll::Ready(Ok(()));
                }
                self.poll_accept(&socket, cx).map(Err)
            });
            match accepted.await {
                Ok(()) => break,
                // Descriptors have run out, which does not end the rule.
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // A socket that another process serves on stays open there, and its queue with it.
        if !self.worker.handed_over.get() {
            self.accept_the_rest(&socket).await;
        }
    }

    /// Serves every connection that is queued, as long as there is room; ready when that fails.
    fn poll_accept(self: &Rc<Slot>, socket: &Listening, cx: &mut Context<'_>) -> Poll<io::Error> {
        while self.worker.connections.get() < self.worker.limits.connections_max {
            match ready!(socket.socket.poll_accept(cx)) {
                Ok((stream, client)) => self.serve(stream, client, socket.address),
                // The client gave up before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Poll::Ready(error),
            }
        }
        self.worker.waiting_for_room.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    }

    /// Serves every connection whose `connect` has returned, then lets the socket go. See
    /// [`crate::sockets`] for why this loses none.
    async fn accept_the_rest(self: &Rc<Slot>, socket: &Listening) {
        if let Err(error) = SockRef::from(&socket.socket).attach_filter(&refuse_syn()) {
            tracing::warn!(%error, "could not stop new connections before closing a socket");
        }
        let accept_queued = || {
            let mut noop = Context::from_waker(Waker::noop());
            while let Poll::Ready(Ok((stream, client))) = socket.socket.poll_accept(&mut noop) {
                self.serve(stream, client, socket.address);
            }
        };
        accept_queued();
        tokio::time::sleep(HANDSHAKE_GRACE).await;
        accept_queued();
    }

    fn is_closing(&self) -> bool {
        self.closing.get() || self.worker.draining.get()
    }

    fn serve(self: &Rc<Slot>, stream: TcpStream, client: SocketAddr, listening: SocketAddrV4) {
        let SocketAddr::V4(client) = client else { return };
        let server = if listening.ip().is_unspecified() {
            let Ok(SocketAddr::V4(server)) = stream.local_addr() else { return };
            server
        } else {
            listening
        };
        let slot = self.clone();
        match self.bound.borrow().tls.clone() {
            None => {
                let connection = Connection::new(&slot, client, server, None);
                let buffer = crate::buffer::Buffer::new(&self.worker.buffers);
                tokio::task::spawn_local(http1::client::serve(
                    RefCell::new(stream),
                    connection,
                    buffer,
                ));
            }
            Some(config) => {
                tokio::task::spawn_local(serve_tls(slot, stream, client, server, config));
            }
        }
    }
}

async fn serve_tls(
    slot: Rc<Slot>,
    stream: TcpStream,
    client: SocketAddrV4,
    server: SocketAddrV4,
    config: Arc<rustls::ServerConfig>,
) {
    let limit = slot.worker.limits.handshake_timeout;
    // Counted as a connection from its first byte on, not only once the handshake is done.
    let early = Connection::new(&slot, client, server, None);
    let accepting = tokio_rustls::TlsAcceptor::from(config).accept(stream);
    let Ok(Ok(stream)) = Box::pin(tokio::time::timeout(limit, accepting)).await else { return };
    let (facts, http2) = tls::facts(stream.get_ref().1);
    drop(early);
    let connection = Connection::new(&slot, client, server, Some(facts));
    // The future of the handshake is gone by the time the connection is idle.
    if http2 {
        tokio::task::spawn_local(http2::client::serve(stream, connection));
    } else {
        let buffer = crate::buffer::Buffer::new(&slot.worker.buffers);
        tokio::task::spawn_local(http1::client::serve(RefCell::new(stream), connection, buffer));
    }
}

/// A classic BPF program for a listening socket: segments that only ask for a new connection are dropped
/// (bit SYN without bit ACK in byte 13 of the TCP header), everything else passes.
fn refuse_syn() -> [SockFilter; 5] {
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// A listening socket and where it listens.
#[derive(Debug)]
struct Listening {
    socket: TcpListener,
    address: SocketAddrV4,
}

/// The connections of a rule, to wake them all.
#[derive(Debug, Default)]
struct Handles {
    entries: Vec<Option<Rc<Handle>>>,
    free: Vec<usize>,
}

impl Handles {
    /// Adds a connection and says under which number.
    fn add(&mut self, handle: &Rc<Handle>) -> usize {
        let entry = Some(handle.clone());
        match self.free.pop() {
            Some(key) => {
                self.entries[key] = entry;
                key
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        }
    }

    fn remove(&mut self, key: usize) {
        self.entries[key] = None;
        self.free.push(key);
    }

    fn wake_all(&self) {
        for handle in self.entries.iter().flatten() {
            handle.wake();
        }
    }
}

/// The way to wake an idle connection.
#[derive(Debug, Default)]
pub(crate) struct Handle {
    waker: RefCell<Option<Waker>>,
}

impl Handle {
    /// Remembers the connection's task, once.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// One client connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) slot: Rc<Slot>,
    pub(crate) peer: Peer,
    pub(crate) handle: Rc<Handle>,
    key: usize,
    used: Cell<bool>,
}

impl Connection {
    fn new(
        slot: &Rc<Slot>,
        client: SocketAddrV4,
        server: SocketAddrV4,
        tls: Option<TlsFacts>,
    ) -> Rc<Connection> {
        let worker = &slot.worker;
        worker.connections.set(worker.connections.get() + 1);
        slot.cells.connections.add(1);
        slot.cells.connections_total.add(1);
        let handle = Rc::new(Handle::default());
        let key = slot.handles.borrow_mut().add(&handle);
        let names_itself = !slot.bound.borrow().listener.is_run_app();
        Rc::new(Connection {
            worker: worker.clone(),
            slot: slot.clone(),
            peer: Peer::new(client, server, tls, names_itself),
            handle,
            key,
            used: Cell::new(false),
        })
    }

    /// Whether the connection should end as soon as nothing is under way on it.
    pub(crate) fn is_closing(&self) -> bool {
        self.slot.is_closing()
    }

    /// A request has been read from it.
    pub(crate) fn mark_used(&self) {
        self.used.set(true);
    }

    /// How long it may be idle. One that is to end goes at once, unless its first request may still be on
    /// its way: then the client connected in good faith and is served.
    pub(crate) fn patience(&self) -> Duration {
        match (self.is_closing(), self.used.get()) {
            (false, _) => self.slot.keepalive(),
            (true, false) => self.worker.limits.linger,
            // Nobody is in a hurry where another process serves on: who has just asked may ask again, and
            // is told with the answer that the connection ends.
            (true, true) if self.worker.handed_over.get() => self.worker.limits.linger,
            (true, true) => Duration::ZERO,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let worker = &self.worker;
        worker.connections.set(worker.connections.get() - 1);
        if worker.draining.get() {
            worker.room.notify_one();
        }
        for accepting in worker.waiting_for_room.borrow_mut().drain(..) {
            accepting.wake();
        }
        self.slot.cells.connections.subtract(1);
        self.slot.handles.borrow_mut().remove(self.key);
        if std::thread::panicking() {
            worker.registry.panics.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}
