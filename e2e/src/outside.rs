//! Somewhere outside: a network namespace of a test, joined to this host, for what leaves a server; and a
//! listener that tells each connection where it seems to come from.

use crate::namespace::Namespace;
use crate::server::output_within;
use anyhow::{Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long one command about links may take.
const LIMIT: Duration = Duration::from_secs(20);

/// How long a connection may take to say what it wants.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// The pause between two looks for a connection.
const PAUSE: Duration = Duration::from_millis(2);

/// A place that this host reaches by a link of its own, taken away with this value.
#[derive(Debug)]
pub struct Outside {
    name: String,
    link: String,
    /// The host's end.
    pub near: Ipv4Addr,
    /// The other end, inside.
    pub far: Ipv4Addr,
    /// What is there.
    pub inside: Namespace,
}

impl Outside {
    /// Makes a place with public addresses: of a range that answers nowhere else, since those for
    /// documentation and measurements count as private.
    pub fn make() -> Result<Outside> {
        let pid = std::process::id();
        let (name, link) = (format!("outside-{pid}"), format!("out{pid}"));
        // Tests of several checkouts may run side by side: 63 pairs of addresses.
        let first = u8::try_from(pid % 63)? * 4;
        let (near, far) = (Ipv4Addr::new(1, 2, 3, first + 1), Ipv4Addr::new(1, 2, 3, first + 2));
        ip(&format!("netns add {name}"))?;
        let inside =
            Namespace::named(&name).inspect_err(|_| drop(ip(&format!("netns del {name}"))))?;
        let made = Outside { name, link, near, far, inside };
        let Outside { name, link, .. } = &made;
        ip(&format!("link add {link} type veth peer name inner netns {name}"))?;
        ip(&format!("address add {near}/30 dev {link}"))?;
        ip(&format!("link set {link} up"))?;
        ip(&format!("-n {name} address add {far}/30 dev inner"))?;
        ip(&format!("-n {name} link set inner up"))?;
        Ok(made)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The other end goes with it at once; with the namespace it would go some time later.
        let _ = ip(&format!("link del {}", self.link));
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(line: &str) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(line.split_whitespace());
    let output = output_within(command, LIMIT)?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Answers HTTP requests with the address they come from, until this value goes.
#[derive(Debug)]
pub struct Teller {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Teller {
    /// Answers at an address inside a namespace.
    pub fn at(inside: &Namespace, address: SocketAddr) -> Result<Teller> {
        Teller::over(inside.listen(address)?)
    }

    /// Answers at an address of this host.
    pub fn here(address: SocketAddr) -> Result<Teller> {
        Teller::over(TcpListener::bind(address)?)
    }

    fn over(listener: TcpListener) -> Result<Teller> {
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Whoever asked may be gone.
                    Ok((stream, _)) => drop(tell(stream)),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        });
        Ok(Teller { stop, thread: Some(thread) })
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn tell(stream: TcpStream) -> Result<()> {
    let peer = stream.peer_addr()?.ip().to_string();
    stream.set_read_timeout(Some(READ_LIMIT))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = peer.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    Ok(reader.into_inner().write_all(format!("{head}{peer}").as_bytes())?)
}
