//! The server behind every proxy of the race: as cheap as it can be, one thread, answers by path.
//!
//! Usage: `bench-backend PORT`. `/s64k`, `/s10m` and `/s1k` are bodies of that size, everything else is
//! `Hello, world!`. Request bodies are read and dropped.

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io::{self, Read, Write};

const LISTENER: Token = Token(usize::MAX);

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    /// Bytes of a request body still to come.
    skip: usize,
    /// Responses to send: which one, and how much of it is gone.
    output: VecDeque<(usize, usize)>,
    close: bool,
}

fn response(size: usize) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 200 OK\r\nServer: b\r\nDate: Mon, 23 Nov 2026 22:00:00 GMT\r\n\
         Content-Type: text/plain\r\nContent-Length: {size}\r\n\r\n"
    )
    .into_bytes();
    if size == 13 {
        bytes.extend_from_slice(b"Hello, world!");
    } else {
        bytes.resize(bytes.len() + size, b'x');
    }
    bytes
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("PORT")?.parse()?;
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], port).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let responses = [response(13), response(64 << 10), response(10 << 20), response(1 << 10)];
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut events = Events::with_capacity(512);
    let mut hot = vec![0; 256 << 10];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut clients)?;
                continue;
            }
            let slot = &mut clients[event.token().0];
            if slot.as_mut().is_some_and(|client| !serve(client, event, &responses, &mut hot)) {
                *slot = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    clients: &mut Vec<Option<Client>>,
) -> io::Result<()> {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.set_nodelay(true);
        let at = clients.iter().position(Option::is_none).unwrap_or_else(|| {
            clients.push(None);
            clients.len() - 1
        });
        poll.registry().register(
            &mut stream,
            Token(at),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        let (input, output) = (Vec::new(), VecDeque::new());
        clients[at] = Some(Client { stream, input, skip: 0, output, close: false });
    }
    Ok(())
}

/// Reads, answers and writes; false when the connection is over.
fn serve(client: &mut Client, event: &Event, responses: &[Vec<u8>; 4], hot: &mut [u8]) -> bool {
    if event.is_writable() && !client.output.is_empty() && !write(client, responses) {
        return false;
    }
    if !event.is_readable() {
        return true;
    }
    loop {
        match client.stream.read(hot) {
            Ok(0) => return false,
            Ok(count) => {
                client.input.extend_from_slice(&hot[..count]);
                answer(client);
                if !write(client, responses) {
                    return false;
                }
                // Less than there was room for: the socket is empty, and says so when it no longer is.
                if count < hot.len() {
                    return true;
                }
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

fn answer(client: &mut Client) {
    let mut at = 0;
    loop {
        let rest = &client.input[at..];
        let skipped = client.skip.min(rest.len());
        client.skip -= skipped;
        at += skipped;
        let rest = &rest[skipped..];
        let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else { break };
        let head = &rest[..end];
        let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or(b"/");
        let which = match path {
            path if path.starts_with(b"/s64k") => 1,
            path if path.starts_with(b"/s10m") => 2,
            path if path.starts_with(b"/s1k") => 3,
            _ => 0,
        };
        let lower = String::from_utf8_lossy(head).to_ascii_lowercase();
        client.skip = lower
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|length| length.trim().parse().ok())
            .unwrap_or(0);
        client.close |= lower.lines().any(|line| line == "connection: close");
        client.output.push_back((which, 0));
        at += end + 4;
    }
    client.input.drain(..at);
}

fn write(client: &mut Client, responses: &[Vec<u8>; 4]) -> bool {
    while let Some((which, sent)) = client.output.front_mut() {
        match client.stream.write(&responses[*which][*sent..]) {
            Ok(count) => *sent += count,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        if *sent == responses[*which].len() {
            client.output.pop_front();
        }
    }
    !client.close
}
