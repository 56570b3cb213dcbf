//! Both ends of the wire in plain bytes: a client, and a backend that follows a script.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How long a read may take before a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of a connection.
pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    seen: Vec<u8>,
}

impl Conn {
    pub(crate) fn new(stream: TcpStream) -> Conn {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Conn { stream, seen: Vec::new() }
    }

    pub(crate) fn connect(address: SocketAddr) -> Conn {
        Conn::new(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut piece = [0; 16 << 10];
        let count = self.stream.read(&mut piece)?;
        self.seen.extend_from_slice(&piece[..count]);
        Ok(count)
    }

    /// Reads up to and including `end`; `None` when the other side closed before it.
    pub(crate) fn until(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self.seen.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let read: Vec<u8> = self.seen.drain(..at + end.len()).collect();
                return Some(String::from_utf8_lossy(&read).into_owned());
            }
            match self.fill() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("waiting for {end:?} after {:?}: {error}", self.text()),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads one head.
    pub(crate) fn head(&mut self) -> Option<String> {
        self.until("\r\n\r\n")
    }

    /// Reads exactly so many bytes.
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        while self.seen.len() < count {
            let read = self.fill().unwrap();
            assert!(read > 0, "closed after {:?}", self.text());
        }
        self.seen.drain(..count).collect()
    }

    /// Reads a response or request whose head declares a length.
    pub(crate) fn message(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.trim().parse().unwrap());
        let body = self.exactly(length);
        Some((head, body))
    }

    /// Reads until the other side closes.
    pub(crate) fn rest(&mut self) -> String {
        loop {
            match self.fill() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("waiting for the end after {:?}: {error}", self.text()),
            }
        }
        let text = self.text();
        self.seen.clear();
        text
    }

    pub(crate) fn end_sending(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// A server on loopback; every connection runs the script on a thread of its own.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Backend {
    pub(crate) fn start(script: impl Fn(Conn) + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                counted.fetch_add(1, Ordering::SeqCst);
                let script = script.clone();
                std::thread::spawn(move || script(Conn::new(stream)));
            }
        });
        Backend { address, connections }
    }

    /// Answers every request with these bytes, on as many connections as come.
    pub(crate) fn answering(response: &'static str) -> Backend {
        Backend::start(move |mut conn| {
            while conn.message().is_some() {
                conn.send(response);
            }
        })
    }

    /// Connections made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A head with what differs from run to run replaced by fixed words.
pub(crate) fn settled(head: &str) -> String {
    let line = |line: &str| {
        let name = line.split(':').next().unwrap_or("");
        match name {
            "traceparent" | "x-cloud-trace-context" | "date" => format!("{name}: …"),
            _ => line.to_owned(),
        }
    };
    let lines: Vec<String> = head.trim_end_matches("\r\n").split("\r\n").map(line).collect();
    lines.join("\n")
}
