//! The least a proxy can do: copy bytes between a client and a backend, read nothing, change nothing.
//!
//! Usage: `bench-floor PORT BACKEND_PORT`. Every client connection has a backend connection of its own.

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::net::SocketAddr;

const LISTENER: Token = Token(usize::MAX);

/// One side of a pair; its partner's number differs in the last bit.
#[derive(Debug)]
struct Side {
    stream: TcpStream,
    /// Bytes for this side that it could not take yet.
    waiting: Vec<u8>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("PORT")?.parse()?;
    let backend: SocketAddr =
        ([127, 0, 0, 1], arguments.next().ok_or("BACKEND_PORT")?.parse()?).into();
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut sides: Vec<Option<Side>> = Vec::new();
    let mut events = Events::with_capacity(512);
    let mut hot = vec![0; 64 << 10];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    add_pair(client, TcpStream::connect(backend)?, &poll, &mut sides)?;
                }
                continue;
            }
            let at = event.token().0;
            let alive = (!event.is_writable() || flush(&mut sides, at))
                && (!event.is_readable() || copy(&mut sides, at, &mut hot));
            if !alive {
                sides[at] = None;
                sides[at ^ 1] = None;
            }
        }
    }
}

fn add_pair(
    client: TcpStream,
    backend: TcpStream,
    poll: &Poll,
    sides: &mut Vec<Option<Side>>,
) -> io::Result<()> {
    let free = (0..sides.len()).step_by(2).find(|at| sides[*at].is_none());
    let at = free.unwrap_or_else(|| {
        sides.extend([None, None]);
        sides.len() - 2
    });
    for (at, mut stream) in [(at, client), (at + 1, backend)] {
        let _ = stream.set_nodelay(true);
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(at), interest)?;
        sides[at] = Some(Side { stream, waiting: Vec::new() });
    }
    Ok(())
}

/// Writes what a side could not take before; false when the pair is over.
fn flush(sides: &mut [Option<Side>], at: usize) -> bool {
    let Some(side) = sides[at].as_mut() else { return true };
    while !side.waiting.is_empty() {
        match side.stream.write(&side.waiting) {
            Ok(count) => drop(side.waiting.drain(..count)),
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    true
}

fn copy(sides: &mut [Option<Side>], at: usize, hot: &mut [u8]) -> bool {
    loop {
        let Some(side) = sides[at].as_mut() else { return true };
        let count = match side.stream.read(hot) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        let Some(other) = sides[at ^ 1].as_mut() else { return false };
        let sent = if other.waiting.is_empty() {
            match other.stream.write(&hot[..count]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::NotConnected => 0,
                Err(_) => return false,
            }
        } else {
            0
        };
        other.waiting.extend_from_slice(&hot[sent..count]);
        if count < hot.len() {
            return true;
        }
    }
}
