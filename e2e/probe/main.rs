//! The program of the test image: tells what a container sees, and asks others on request.
//!
//! It listens on `LISTEN`, or else on `PORT`. `/id` names this run of it, `/env/NAME` and
//! `/file/PATH` show what it was given, `/append/TEXT/PATH` writes, `/get/HOST:PORT/TARGET` asks
//! somebody else and shows the answer, `/hold/NAME` answers once somebody asked for
//! `/release/NAME`. With `JOURNAL` it writes there that it started, and that it is ready: when
//! `/ready` was asked for the third time.
//!
//! Invariant: one request for each connection, and a wait of its own always ends.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use std::{env, thread};

/// How long somebody else may take to take the connection, and to answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long a request is held at most.
const HOLD_LIMIT: Duration = Duration::from_secs(60);
/// Which look at `/ready` is the first to be answered well.
const READY_AT: usize = 3;

static LOOKS: AtomicUsize = AtomicUsize::new(0);
static RELEASED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static RELEASE: Condvar = Condvar::new();

fn main() -> io::Result<()> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    let id = id.trim().to_owned();
    let port = env::var("LISTEN").or_else(|_| env::var("PORT")).unwrap_or("8080".to_owned());
    note("started")?;
    let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
    println!("listening on {port}");
    for stream in listener.incoming().flatten() {
        let id = id.clone();
        thread::spawn(move || serve(stream, &id));
    }
    Ok(())
}

fn serve(stream: TcpStream, id: &str) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    let (status, body) = match answer(&target, id) {
        Ok(answer) => answer,
        Err(error) => (500, error.to_string()),
    };
    let length = body.len();
    let mut stream = reader.into_inner();
    write!(
        stream,
        "HTTP/1.1 {status} Said\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

fn answer(target: &str, id: &str) -> io::Result<(u16, String)> {
    let path = target.trim_start_matches('/');
    // A URL mask finds a service by the first segment, and leaves it in the path.
    let service = env::var("K_SERVICE").unwrap_or_default();
    let below = path.strip_prefix(&service).and_then(|below| below.strip_prefix('/'));
    let path = below.unwrap_or(path);
    let (what, rest) = path.split_once('/').unwrap_or((path, ""));
    match what {
        "env" => Ok((200, env::var(rest).unwrap_or("absent".to_owned()))),
        "file" => Ok((200, fs::read_to_string(format!("/{rest}"))?)),
        "append" => {
            let (text, path) = rest.split_once('/').unwrap_or((rest, "tmp/text"));
            append(&format!("/{path}"), text)?;
            Ok((200, "written".to_owned()))
        }
        "get" => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            match get(authority, path) {
                Ok(said) => Ok((200, said)),
                Err(error) => Ok((502, format!("{authority}: {error}"))),
            }
        }
        "hold" => Ok((200, hold(rest, id))),
        "release" => {
            RELEASED.lock().unwrap_or_else(PoisonError::into_inner).insert(rest.to_owned());
            RELEASE.notify_all();
            Ok((200, id.to_owned()))
        }
        "ready" => {
            let looks = LOOKS.fetch_add(1, Ordering::SeqCst) + 1;
            if looks == READY_AT {
                note("ready")?;
            }
            Ok((if looks < READY_AT { 503 } else { 200 }, looks.to_string()))
        }
        _ => Ok((200, id.to_owned())),
    }
}

/// Holds a request until it is released.
fn hold(name: &str, id: &str) -> String {
    let released = RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
    let waiting = RELEASE.wait_timeout_while(released, HOLD_LIMIT, |all| !all.contains(name));
    drop(waiting);
    id.to_owned()
}

fn note(what: &str) -> io::Result<()> {
    let (Ok(journal), Ok(name)) = (env::var("JOURNAL"), env::var("NAME")) else { return Ok(()) };
    append(&journal, &format!("{name} {what}"))
}

fn append(path: &str, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{text}\n").as_bytes())
}

/// The body of an answer; an error for everything but a success.
fn get(authority: &str, path: &str) -> io::Result<String> {
    let address = resolved(authority)?;
    let mut stream = TcpStream::connect_timeout(&address, ASK_LIMIT)?;
    stream.set_read_timeout(Some(ASK_LIMIT))?;
    let host = authority.split(':').next().unwrap_or(authority);
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nMetadata-Flavor: Google\r\nConnection: close\r\n\r\n"
    )?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let (head, body) = said.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(io::Error::other(said)),
    }
}

fn resolved(authority: &str) -> io::Result<SocketAddr> {
    let found = authority.to_socket_addrs()?.find(SocketAddr::is_ipv4);
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}
