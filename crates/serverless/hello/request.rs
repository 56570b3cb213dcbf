//! One HTTP/1.1 request as it came over the wire, and its JSON form for the echo.
//!
//! Invariant: a request that was read leaves the connection at the start of the next one.

use std::fmt::Write as _;
use std::io::{BufRead, Read, Write};

const HEAD_BYTES_MAX: usize = 256 * 1024;
const BODY_BYTES_KEPT_MAX: usize = 64 * 1024;

pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) protocol: String,
    /// In the order and the case they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) body_bytes: u64,
}

pub(crate) enum ReadError {
    Closed,
    Refused(u16, &'static str),
}

impl From<std::io::Error> for ReadError {
    fn from(_: std::io::Error) -> ReadError {
        ReadError::Closed
    }
}

impl Request {
    pub(crate) fn read(
        reader: &mut impl BufRead,
        writer: &mut impl Write,
    ) -> Result<Request, ReadError> {
        let mut head_bytes = 0;
        let line = read_line(reader, &mut head_bytes)?;
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(protocol), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(ReadError::Refused(400, "that is not a request line"));
        };
        if !protocol.starts_with("HTTP/1.") {
            return Err(ReadError::Refused(400, "only HTTP/1.1 is spoken here"));
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let mut request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            query,
            protocol: protocol.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            body_bytes: 0,
        };
        loop {
            let line = read_line(reader, &mut head_bytes)?;
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else {
                return Err(ReadError::Refused(400, "that is not a header field"));
            };
            request.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        request.read_body(reader, writer)?;
        Ok(request)
    }

    fn read_body(
        &mut self,
        reader: &mut impl BufRead,
        writer: &mut impl Write,
    ) -> Result<(), ReadError> {
        let chunked = self
            .header("transfer-encoding")
            .is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked"));
        let length = match self.header("content-length").map(str::parse::<u64>) {
            None => 0,
            Some(Ok(length)) => length,
            Some(Err(_)) => return Err(ReadError::Refused(400, "content-length is no number")),
        };
        if (chunked || length > 0)
            && self.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        if !chunked {
            return self.keep(reader, length);
        }
        loop {
            let mut line_bytes = 0;
            let line = read_line(reader, &mut line_bytes)?;
            let size = line.split(';').next().unwrap_or("").trim();
            let Ok(size) = u64::from_str_radix(size, 16) else {
                return Err(ReadError::Refused(400, "that is not a chunk size"));
            };
            if size == 0 {
                break;
            }
            self.keep(reader, size)?;
            read_line(reader, &mut line_bytes)?;
        }
        let mut trailer_bytes = 0;
        while !read_line(reader, &mut trailer_bytes)?.is_empty() {}
        Ok(())
    }

    /// Reads `length` bytes of body, keeping the first of them.
    fn keep(&mut self, reader: &mut impl BufRead, length: u64) -> Result<(), ReadError> {
        let room = (BODY_BYTES_KEPT_MAX - self.body.len()) as u64;
        let kept = reader.by_ref().take(length.min(room)).read_to_end(&mut self.body)? as u64;
        let rest = length - kept;
        let dropped = std::io::copy(&mut reader.by_ref().take(rest), &mut std::io::sink())?;
        if dropped < rest {
            return Err(ReadError::Closed);
        }
        self.body_bytes += length;
        Ok(())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(each, _)| each.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn keeps_alive(&self) -> bool {
        let connection = self.header("connection").unwrap_or("").to_ascii_lowercase();
        match self.protocol.as_str() {
            "HTTP/1.0" => connection.contains("keep-alive"),
            _ => !connection.split(',').any(|token| token.trim() == "close"),
        }
    }

    pub(crate) fn wants_json(&self) -> bool {
        let query = self.query.as_deref().unwrap_or("");
        query.split('&').any(|pair| pair == "echo=1")
            || self.header("accept").is_some_and(|accept| accept.starts_with("application/json"))
    }

    pub(crate) fn to_json(&self) -> String {
        let mut out = String::from("{\n");
        let _ = writeln!(out, "  \"method\": \"{}\",", json_escape(&self.method));
        let _ = writeln!(out, "  \"path\": \"{}\",", json_escape(&self.path));
        let query = match &self.query {
            Some(query) => format!("\"{}\"", json_escape(query)),
            None => "null".to_owned(),
        };
        let _ = writeln!(out, "  \"query\": {query},");
        let _ = writeln!(out, "  \"protocol\": \"{}\",", json_escape(&self.protocol));
        let headers = self.headers.iter().map(|(name, value)| {
            format!("    [\"{}\", \"{}\"]", json_escape(name), json_escape(value))
        });
        let _ =
            writeln!(out, "  \"headers\": [\n{}\n  ],", headers.collect::<Vec<_>>().join(",\n"));
        let body = String::from_utf8_lossy(&self.body);
        let _ = writeln!(out, "  \"bodyBytes\": {},", self.body_bytes);
        let _ = writeln!(out, "  \"body\": \"{}\",", json_escape(&body));
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            let shown = name.starts_with("K_") || matches!(&*name, "WHO" | "PORT");
            shown.then(|| format!("    \"{}\": \"{}\"", json_escape(&name), json_escape(&value)))
        });
        let mut environment: Vec<String> = environment.collect();
        environment.sort();
        let _ = writeln!(out, "  \"environment\": {{\n{}\n  }}", environment.join(",\n"));
        out.push_str("}\n");
        out
    }
}

/// One line without its end.
fn read_line(reader: &mut impl BufRead, head_bytes: &mut usize) -> Result<String, ReadError> {
    let room = (HEAD_BYTES_MAX - (*head_bytes).min(HEAD_BYTES_MAX)) as u64;
    let mut line = Vec::new();
    let read = reader.by_ref().take(room).read_until(b'\n', &mut line)?;
    *head_bytes += read;
    if line.pop() != Some(b'\n') {
        return Err(match *head_bytes >= HEAD_BYTES_MAX {
            true => ReadError::Refused(431, "the head of the request is too large"),
            false => ReadError::Closed,
        });
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// The inside of a JSON string.
pub(crate) fn json_escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            other => out.push(other),
        }
    }
    out
}
