//! Connections into instances: sockets made inside their network namespaces.
//!
//! A socket belongs to the namespace of the thread that makes it, so one thread of our own goes
//! into the namespace, makes the socket, and goes back to where it rests. That is the host's
//! network, or without root, where going home is forbidden, an empty network of its own.
//!
//! Invariant: no other thread ever changes its namespace, and this one rests in no instance's, so
//! that a namespace is gone when its instance is.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::oneshot;

use super::sandbox::{INSTANCE_ADDRESS, bring_loopback_up};
use super::surroundings::Sockets;

/// A thread that makes sockets in other network namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    requests: mpsc::Sender<Request>,
}

#[derive(Debug)]
struct Request {
    namespace: Arc<OwnedFd>,
    errand: Errand,
}

/// What is to be done in a namespace.
#[derive(Debug)]
enum Errand {
    Dial { port: u16, answer: oneshot::Sender<io::Result<TcpStream>> },
    Listen { port: u16, answer: oneshot::Sender<io::Result<TcpListener>> },
    BringUp { answer: oneshot::Sender<io::Result<Sockets>> },
}

impl Dialer {
    /// Starts the thread; it ends with the last clone of the dialer.
    pub(crate) fn start() -> io::Result<Dialer> {
        let (requests, inbox) = mpsc::channel::<Request>();
        thread::Builder::new().name("dialer".to_owned()).spawn(move || {
            let rest = resting_place();
            for request in inbox {
                let went = rest.as_ref().map_err(copied);
                let went = went.and_then(|rest| Visit::enter(&request.namespace, rest));
                // Nobody waits any more: a socket is closed by dropping it.
                match request.errand {
                    Errand::Dial { port, answer } => {
                        let _ = answer.send(went.and_then(|_visit| connect(port)));
                    }
                    Errand::Listen { port, answer } => {
                        let _ = answer.send(went.and_then(|_visit| listen(port)));
                    }
                    Errand::BringUp { answer } => {
                        let up = went
                            .and_then(|_visit| bring_loopback_up().and_then(|()| Sockets::make()));
                        let _ = answer.send(up);
                    }
                }
            }
        })?;
        Ok(Dialer { requests })
    }

    /// A nonblocking connection to a port of the instance whose network this is; it may still be
    /// connecting. A port nobody listens on is refused here.
    pub(crate) async fn dial(&self, namespace: Arc<OwnedFd>, port: u16) -> io::Result<TcpStream> {
        let (answer, wait) = oneshot::channel();
        self.send(namespace, Errand::Dial { port, answer })?;
        wait.await.map_err(|_| ended())?
    }

    /// A nonblocking listening socket on the loopback address of the instance whose network this
    /// is.
    pub(crate) async fn listen(
        &self,
        namespace: Arc<OwnedFd>,
        port: u16,
    ) -> io::Result<TcpListener> {
        let (answer, wait) = oneshot::channel();
        self.send(namespace, Errand::Listen { port, answer })?;
        wait.await.map_err(|_| ended())?
    }

    /// Sets the loopback device of a network up that somebody else made, with the address
    /// instances are reached at; answers with the sockets around them.
    pub(crate) async fn bring_up(&self, namespace: Arc<OwnedFd>) -> io::Result<Sockets> {
        let (answer, wait) = oneshot::channel();
        self.send(namespace, Errand::BringUp { answer })?;
        wait.await.map_err(|_| ended())?
    }

    fn send(&self, namespace: Arc<OwnedFd>, errand: Errand) -> io::Result<()> {
        self.requests.send(Request { namespace, errand }).map_err(|_| ended())
    }
}

fn ended() -> io::Error {
    io::Error::other("the dialer has ended")
}

/// A stay in another namespace, ended by dropping it.
struct Visit<'a> {
    rest: &'a OwnedFd,
}

impl Visit<'_> {
    fn enter<'a>(namespace: &OwnedFd, rest: &'a OwnedFd) -> io::Result<Visit<'a>> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(Visit { rest })
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // Going back to where this thread was allowed to go before does not fail; if it did, the
        // next visit would still begin in its own namespace.
        let _ = setns(self.rest, CloneFlags::CLONE_NEWNET);
    }
}

/// The network namespace this thread goes back to.
fn resting_place() -> io::Result<OwnedFd> {
    let here = || File::open("/proc/thread-self/ns/net").map(OwnedFd::from);
    let home = here()?;
    if setns(&home, CloneFlags::CLONE_NEWNET).is_ok() {
        return Ok(home);
    }
    unshare(CloneFlags::CLONE_NEWNET)?;
    here()
}

fn copied(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&SockAddr::from(SocketAddrV4::new(INSTANCE_ADDRESS, port))) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // On one machine the answer to the first packet is there already.
    match socket.take_error()? {
        Some(error) => Err(error),
        None => Ok(socket.into()),
    }
}
