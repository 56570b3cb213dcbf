//! The shipped hello image: a page that says it is running, and an echo of the request it received.
//!
//! Plain HTTP/1.1 over `std`, a thread for each connection. Paths that help to look at a load
//! balancer: `/echo` (or `?echo=1`, or `Accept: application/json`) answers with the request as
//! JSON, `/status/503`, `/sleep/2`, `/stream` (server-sent events), `/bytes/1000`, `/log/text`,
//! `/exit/3` and `/ws` (a WebSocket that sends back what it gets).
//!
//! Invariant: what a client sends is bounded before it is kept: head, headers, body.

mod page;
mod request;
mod websocket;

use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use request::{ReadError, Request};

const DEFAULT_PORT: u16 = 8080;
const IDLE_TIMEOUT: Duration = Duration::from_secs(620);
const THREAD_STACK_BYTES: usize = 128 * 1024;
const STREAM_EVENTS_DEFAULT: u32 = 5;
const BYTES_MAX: usize = 64 * 1024 * 1024;
const SLEEP_SECONDS_MAX: f64 = 3600.0;

fn main() -> ExitCode {
    let port = match std::env::var("PORT").map(|text| text.parse()) {
        Ok(Ok(port)) => port,
        Ok(Err(_)) => {
            eprintln!("hello: PORT is not a port number");
            return ExitCode::from(2);
        }
        Err(_) => DEFAULT_PORT,
    };
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("hello: cannot listen on port {port}: {error}");
            return ExitCode::from(1);
        }
    };
    println!("hello: listening on port {port}");
    for stream in listener.incoming().flatten() {
        // Without a thread the connection is closed, and the client is told by that.
        let _ = thread::Builder::new()
            .stack_size(THREAD_STACK_BYTES)
            .spawn(move || serve_connection(stream));
    }
    ExitCode::SUCCESS
}

fn serve_connection(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(IDLE_TIMEOUT));
    let Ok(read_half) = stream.try_clone() else { return };
    let mut reader = BufReader::new(read_half);
    let mut writer = stream;
    loop {
        let request = match Request::read(&mut reader, &mut writer) {
            Ok(request) => request,
            Err(ReadError::Closed) => return,
            Err(ReadError::Refused(status, why)) => {
                let _ = Answer::text(status, why).send(&mut writer, false, false);
                return;
            }
        };
        let keep = request.keeps_alive();
        match serve(&request, &mut reader, &mut writer) {
            Ok(true) if keep => {}
            _ => return,
        }
    }
}

/// Answers one request; `false` when the connection was used up by the answer.
fn serve(
    request: &Request,
    reader: &mut BufReader<TcpStream>,
    writer: &mut TcpStream,
) -> io::Result<bool> {
    let keep = request.keeps_alive();
    let head = request.method == "HEAD";
    let mut parts = request.path.trim_start_matches('/').splitn(2, '/');
    let (first, rest) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let answer = match first {
        "echo" => Answer::json(request.to_json()),
        "healthz" => Answer::text(200, "ok"),
        "status" => match rest.parse() {
            Ok(status @ 200..=599) => Answer::text(status, reason(status)),
            _ => Answer::text(400, "a status is a number from 200 to 599"),
        },
        "sleep" => match rest.parse() {
            Ok(seconds) if (0.0..=SLEEP_SECONDS_MAX).contains(&seconds) => {
                thread::sleep(Duration::from_secs_f64(seconds));
                Answer::text(200, "slept well")
            }
            _ => Answer::text(400, "a time to sleep is a number of seconds up to 3600"),
        },
        "bytes" => match rest.parse() {
            Ok(count) if count <= BYTES_MAX => {
                Answer { status: 200, kind: "application/octet-stream", body: vec![b'x'; count] }
            }
            _ => Answer::text(400, "a number of bytes goes up to 64 MiB"),
        },
        "log" => {
            println!(
                "{{\"severity\":\"INFO\",\"message\":\"{}\"}}",
                request::json_escape(if rest.is_empty() { "hello" } else { rest })
            );
            Answer::text(200, "logged")
        }
        "exit" => {
            let code = rest.parse().unwrap_or(0);
            let _ = Answer::text(200, "exiting").send(writer, false, head);
            std::process::exit(code);
        }
        "stream" => {
            stream_events(writer, rest.parse().unwrap_or(STREAM_EVENTS_DEFAULT))?;
            return Ok(false);
        }
        "ws" => {
            websocket::serve(request, reader, writer)?;
            return Ok(false);
        }
        _ if request.wants_json() => Answer::json(request.to_json()),
        _ => Answer { status: 200, kind: "text/html; charset=utf-8", body: page::html().into() },
    };
    answer.send(writer, keep, head)?;
    Ok(true)
}

/// Server-sent events, one each 200 ms, in chunks so that a proxy which buffers is seen.
fn stream_events(writer: &mut TcpStream, events: u32) -> io::Result<()> {
    writer.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
          transfer-encoding: chunked\r\nconnection: close\r\n\r\n",
    )?;
    for number in 1..=events {
        let event = format!("id: {number}\ndata: event {number} of {events}\n\n");
        write!(writer, "{:x}\r\n{event}\r\n", event.len())?;
        if number < events {
            thread::sleep(Duration::from_millis(200));
        }
    }
    writer.write_all(b"0\r\n\r\n")
}

struct Answer {
    status: u16,
    kind: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn text(status: u16, body: &str) -> Answer {
        let body = format!("{body}\n").into_bytes();
        Answer { status, kind: "text/plain; charset=utf-8", body }
    }

    fn json(body: String) -> Answer {
        Answer { status: 200, kind: "application/json", body: body.into_bytes() }
    }

    fn send(&self, writer: &mut TcpStream, keep: bool, head_only: bool) -> io::Result<()> {
        let mut out = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status)).into_bytes();
        if self.status != 204 && self.status != 304 {
            write!(out, "content-type: {}\r\ncontent-length: {}\r\n", self.kind, self.body.len())?;
        }
        if !keep {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if !head_only && self.status != 204 && self.status != 304 {
            out.extend_from_slice(&self.body);
        }
        writer.write_all(&out)
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        413 => "Content Too Large",
        418 => "I'm a teapot",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}
