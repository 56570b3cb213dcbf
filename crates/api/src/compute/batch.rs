//! The batch endpoint: several requests in one multipart body, answered in one.
//!
//! Invariant: every part gets an answer in its place, whatever becomes of its neighbours.

use super::body::BODY_BYTES_MAX;
use crate::Api;
use crate::error::{ApiError, Dialect, Reason};
use crate::http::{Request, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use std::time::Duration;

/// The most requests in one batch.
pub(crate) const BATCH_REQUESTS_MAX: usize = 1000;

/// One request of a batch, with the id that its answer repeats.
#[derive(Debug)]
struct Part {
    content_id: Option<String>,
    request: Result<Request, ApiError>,
}

/// Answers a batch.
pub(crate) async fn handle(api: &Api, request: &Request) -> Response {
    let parts = match parts(request) {
        Ok(parts) => parts,
        Err(error) => return error.response(Dialect::Compute),
    };
    let boundary =
        format!("batch_{:016x}{:016x}", api.surroundings().random(), api.surroundings().random());
    let mut body = Vec::new();
    for part in parts {
        let response = match part.request {
            // A batch within a batch is no request of this API.
            Ok(inner) => match inner.path.strip_prefix("/compute/v1/") {
                // The parts follow each other: none waits for what the one before it started.
                Some(path) => super::one(api, &inner, path, Duration::ZERO).await,
                None => unknown_path(&inner.path).response(Dialect::Compute),
            },
            Err(error) => error.response(Dialect::Compute),
        };
        write_part(&mut body, &boundary, part.content_id.as_deref(), &response);
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(&format!("multipart/mixed; boundary={boundary}")) {
        headers.insert(CONTENT_TYPE, value);
    }
    Response { status: StatusCode::OK, headers, body: Bytes::from(body) }
}

fn unknown_path(path: &str) -> ApiError {
    ApiError::new(
        Reason::NotFound,
        format!("The requested URL {path} was not found on this server."),
    )
}

fn write_part(body: &mut Vec<u8>, boundary: &str, content_id: Option<&str>, response: &Response) {
    body.extend_from_slice(
        format!("--{boundary}\r\nContent-Type: application/http\r\n").as_bytes(),
    );
    if let Some(id) = content_id {
        body.extend_from_slice(format!("Content-ID: <response-{id}>\r\n").as_bytes());
    }
    let reason = response.status.canonical_reason().unwrap_or_default();
    let status = response.status.as_u16();
    body.extend_from_slice(format!("\r\nHTTP/1.1 {status} {reason}\r\n").as_bytes());
    for (name, value) in &response.headers {
        body.extend_from_slice(format!("{name}: ").as_bytes());
        body.extend_from_slice(value.as_bytes());
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("content-length: {}\r\n\r\n", response.body.len()).as_bytes());
    body.extend_from_slice(&response.body);
    body.extend_from_slice(b"\r\n");
}

fn parts(request: &Request) -> Result<Vec<Part>, ApiError> {
    if request.body.len() > BODY_BYTES_MAX {
        let message = format!("Request payload size exceeds the limit: {BODY_BYTES_MAX} bytes.");
        return Err(ApiError::new(Reason::TooLarge, message));
    }
    let refused = |why: &str| {
        ApiError::new(Reason::BadRequest, format!("Failed to parse batch request: {why}"))
    };
    let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = content_type
        .and_then(boundary)
        .ok_or_else(|| refused("no boundary in the content type"))?;
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    for piece in pieces(&request.body, delimiter.as_bytes()) {
        if parts.len() == BATCH_REQUESTS_MAX {
            return Err(refused(&format!("more than {BATCH_REQUESTS_MAX} requests")));
        }
        parts.push(part(request, piece));
    }
    if parts.is_empty() { Err(refused("no requests")) } else { Ok(parts) }
}

/// The boundary of a `multipart/mixed` content type, with or without quotes.
fn boundary(content_type: &str) -> Option<String> {
    let mut fields = content_type.split(';');
    if !fields.next()?.trim().eq_ignore_ascii_case("multipart/mixed") {
        return None;
    }
    fields.find_map(|field| {
        let (name, value) = field.trim().split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty())
            .then(|| value.to_string())
    })
}

/// What stands between the delimiter lines.
fn pieces<'a>(body: &'a [u8], delimiter: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut start = None;
    let mut at = 0;
    while at < body.len() {
        let end =
            body[at..].iter().position(|byte| *byte == b'\n').map_or(body.len(), |n| at + n + 1);
        let line = trimmed(&body[at..end]);
        if line.starts_with(delimiter) && matches!(&line[delimiter.len()..], b"" | b"--") {
            if let Some(start) = start {
                pieces.push(&body[start..at]);
            }
            start = (line.len() == delimiter.len()).then_some(end);
        }
        at = end;
    }
    pieces
}

fn trimmed(line: &[u8]) -> &[u8] {
    line.trim_ascii_end()
}

/// Splits a head from what follows its empty line.
fn head_and_body(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let mut at = 0;
    while at < bytes.len() {
        let end =
            bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| at + n + 1);
        if trimmed(&bytes[at..end]).is_empty() {
            return Some((std::str::from_utf8(&bytes[..at]).ok()?, &bytes[end..]));
        }
        at = end;
    }
    Some((std::str::from_utf8(bytes).ok()?, &[]))
}

fn part(outer: &Request, piece: &[u8]) -> Part {
    let unreadable = || {
        ApiError::new(
            Reason::BadRequest,
            "Failed to parse batch request: a part is no HTTP request",
        )
    };
    let Some((head, inner)) = head_and_body(piece) else {
        return Part { content_id: None, request: Err(unreadable()) };
    };
    let header = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().to_string())
        })
    };
    let content_id = header("content-id").map(|id| id.trim_matches(['<', '>']).to_string());
    Part { content_id, request: inner_request(outer, inner).ok_or_else(unreadable) }
}

fn inner_request(outer: &Request, bytes: &[u8]) -> Option<Request> {
    let (head, body) = head_and_body(bytes)?;
    let mut lines = head.lines();
    let mut words = lines.next()?.split_ascii_whitespace();
    let (method, target) = (words.next()?, words.next()?);
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    // Some clients write the whole URL, as a proxy would be asked.
    let target = match target.split_once("://") {
        Some((_, rest)) => &rest[rest.find('/')?..],
        None => target,
    };
    if !target.starts_with('/') {
        return None;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_str(value.trim()).ok()?);
    }
    let length =
        headers.get("content-length").and_then(|length| length.to_str().ok()?.parse().ok());
    let body = match length {
        Some(length) => body.get(..length)?,
        None => body.trim_ascii_end(),
    };
    Some(Request {
        service: outer.service.clone(),
        host_region: outer.host_region.clone(),
        method,
        path: path.to_string(),
        query: query.to_string(),
        headers,
        body: Bytes::copy_from_slice(body),
        principal: outer.principal.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(content_type: &str, body: &[u8]) -> Request {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).expect("a content type"));
        Request {
            service: "compute".into(),
            host_region: None,
            method: Method::POST,
            path: "/batch/compute/v1".into(),
            query: String::new(),
            headers,
            body: Bytes::copy_from_slice(body),
            principal: crate::http::Principal {
                email: "a@example.com".into(),
                is_service_account: false,
            },
        }
    }

    const GCLOUD: &str = "--===============8196390980432465429==\nContent-Type: application/http\nMIME-Version: 1.0\nContent-Transfer-Encoding: binary\nContent-ID: <41365477-4beb+0>\n\nPOST /compute/v1/projects/p/regions/r/addresses?alt=json HTTP/1.1\nContent-Type: application/json\ncontent-length: 13\nHost: compute.googleapis.com\n\n{\"name\":\"a1\"}\n--===============8196390980432465429==\nContent-Type: application/http\nContent-ID: <41365477-4beb+1>\n\nGET /compute/v1/projects/p HTTP/1.1\n\n\n--===============8196390980432465429==--\n";

    #[test]
    fn the_parts_of_gclouds_batch_are_requests_with_their_ids() {
        let outer = request(
            "multipart/mixed; boundary=\"===============8196390980432465429==\"",
            GCLOUD.as_bytes(),
        );
        let parts = parts(&outer).expect("a batch");
        let shown: Vec<String> = parts
            .iter()
            .map(|part| {
                let request = part.request.as_ref().expect("a request");
                let body = String::from_utf8_lossy(&request.body);
                format!(
                    "{} {} {} {:?} {body}",
                    request.method, request.path, request.query, part.content_id
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                "POST /compute/v1/projects/p/regions/r/addresses alt=json Some(\"41365477-4beb+0\") {\"name\":\"a1\"}",
                "GET /compute/v1/projects/p  Some(\"41365477-4beb+1\") ",
            ]
        );
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        for (content_type, body) in [
            ("application/json", "{}"),
            ("multipart/mixed", "--a\n\n"),
            ("multipart/mixed; boundary=a", "nothing"),
            ("multipart/mixed; boundary=\"\"", "--\n--\n"),
        ] {
            assert!(parts(&request(content_type, body.as_bytes())).is_err(), "{content_type}");
        }
        let broken = parts(&request("multipart/mixed; boundary=a", b"--a\nx\n\nnot http\n--a--"))
            .expect("parts");
        assert!(broken[0].request.is_err());
    }

    proptest! {
        #[test]
        fn no_batch_panics(body in proptest::collection::vec(proptest::sample::select(b"-a\r\n: /HTP1.0x{}<>5".to_vec()), 0..120)) {
            let _ = parts(&request("multipart/mixed; boundary=a", &body));
        }
    }
}
