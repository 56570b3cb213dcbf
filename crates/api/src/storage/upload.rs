//! The ways an object is written: in one piece, beside its description, or in pieces.

use bytes::Bytes;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RANGE};
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use wire::storage as messages;

use super::signed::Pieces;
use super::{OBJECT_BYTES_MAX, put};
use crate::Api;
use crate::builds;
use crate::error::{ApiError, Reason};
use crate::http::{Request, Response};
use crate::one_platform::{respond, uuid};
use crate::query::Query;

const OCTETS: &str = "application/octet-stream";
/// An upload in pieces that goes on, as Google's clients know it.
const RESUME_INCOMPLETE: u16 = 308;

/// `PUT /BUCKET/OBJECT` with the bytes.
pub(super) async fn whole(
    api: &Api,
    request: &Request,
    bucket: &str,
    object: &str,
) -> Result<Response, ApiError> {
    let kind = content_type(&request.headers).unwrap_or(OCTETS);
    put(api, bucket, object, kind, request.body.clone()).await?;
    Ok(Response { status: StatusCode::OK, ..Response::empty() })
}

/// `/upload/storage/v1/b/BUCKET/o?uploadType=…`.
pub(super) async fn answer(
    api: &Api,
    request: &Request,
    segments: &[&str],
) -> Result<Response, ApiError> {
    let bucket = match segments {
        ["upload", "storage", "v1", "b", bucket, "o"]
        | ["resumable", "upload", "storage", "v1", "b", bucket, "o"] => *bucket,
        _ => return Err(ApiError::new(Reason::NotFound, "Not Found")),
    };
    let query = Query::parse(&request.query);
    let name = query.get("name").unwrap_or_default();
    let kind = content_type(&request.headers).unwrap_or(OCTETS);
    if let Some(id) = query.get("upload_id") {
        return piece(api, request, id).await;
    }
    match (&request.method, query.get("uploadType")) {
        (&Method::POST, Some("media")) => {
            let shown = put(api, bucket, name, kind, request.body.clone()).await;
            Ok(respond(request, shown))
        }
        (&Method::POST, Some("multipart")) => {
            let (description, kind, bytes) = parts(&request.body, kind)?;
            wire::check(&description, <messages::Object as wire::Message>::schema(), "")?;
            let name = description["name"].as_str().filter(|_| name.is_empty()).unwrap_or(name);
            Ok(respond(request, put(api, bucket, name, &kind, bytes).await))
        }
        (&Method::POST, Some("resumable")) => begin(api, request, bucket, name),
        _ => Err(ApiError::new(Reason::Invalid, "The uploadType is not supported.")),
    }
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

/// Opens an upload in pieces and tells where they go.
fn begin(api: &Api, request: &Request, bucket: &str, name: &str) -> Result<Response, ApiError> {
    let description: Value = match request.body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&request.body)
            .map_err(|error| ApiError::new(Reason::BadRequest, error.to_string()))?,
    };
    let name = description["name"].as_str().filter(|_| name.is_empty()).unwrap_or(name);
    let told = request.headers.get(HeaderName::from_static("x-upload-content-type"));
    let told = told.and_then(|value| value.to_str().ok()).unwrap_or(OCTETS);
    let pieces = Pieces {
        bucket: bucket.to_owned(),
        object: name.to_owned(),
        content_type: description["contentType"].as_str().unwrap_or(told).to_owned(),
        bytes: Vec::new(),
        begun: api.surroundings().now(),
    };
    let id = uuid(api);
    builds::of(api)?.sessions.begin(&id, pieces)?;
    let place = format!(
        "https://storage.googleapis.com/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={id}"
    );
    let mut response = Response { status: StatusCode::OK, ..Response::empty() };
    if let Ok(place) = HeaderValue::try_from(place) {
        response.headers.insert(LOCATION, place);
    }
    Ok(response)
}

/// One piece: `Content-Range: bytes 0-99/200`, or `bytes */200` to ask how far it is.
async fn piece(api: &Api, request: &Request, id: &str) -> Result<Response, ApiError> {
    let sessions = &builds::of(api)?.sessions;
    let mut pieces = sessions.take(id).ok_or_else(|| {
        ApiError::new(Reason::NotFound, "The upload is not open, or was open for too long.")
    })?;
    let range = request.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let (first, total) = match range {
        Some(range) => read_range(range).ok_or_else(|| {
            ApiError::new(Reason::Invalid, format!("The range '{range}' is not one."))
        })?,
        None => (Some(0), Some(request.body.len())),
    };
    if let Some(first) = first {
        if first != pieces.bytes.len() {
            let message = format!("The upload goes on at byte {}.", pieces.bytes.len());
            sessions.put_back(id, pieces);
            return Err(ApiError::new(Reason::Invalid, message));
        }
        if pieces.bytes.len() + request.body.len() > OBJECT_BYTES_MAX {
            let message = format!("An object has at most {OBJECT_BYTES_MAX} bytes here.");
            return Err(ApiError::new(Reason::TooLarge, message));
        }
        pieces.bytes.extend_from_slice(&request.body);
    }
    if total == Some(pieces.bytes.len()) {
        let Pieces { bucket, object, content_type, bytes, .. } = pieces;
        let shown = put(api, &bucket, &object, &content_type, bytes.into()).await;
        return Ok(respond(request, shown));
    }
    let status = StatusCode::from_u16(RESUME_INCOMPLETE).unwrap_or(StatusCode::OK);
    let mut response = Response { status, ..Response::empty() };
    if let Some(last) = pieces.bytes.len().checked_sub(1)
        && let Ok(value) = HeaderValue::try_from(format!("bytes=0-{last}"))
    {
        response.headers.insert(RANGE, value);
    }
    sessions.put_back(id, pieces);
    Ok(response)
}

/// First byte and total; either may be unknown.
fn read_range(range: &str) -> Option<(Option<usize>, Option<usize>)> {
    let (bytes, total) = range.strip_prefix("bytes ")?.split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let first = match bytes.split_once('-') {
        Some((first, _)) => Some(first.parse().ok()?),
        None if bytes == "*" => None,
        None => return None,
    };
    Some((first, total))
}

/// The description and the bytes of a `multipart/related` body.
fn parts(body: &Bytes, content_type: &str) -> Result<(Value, String, Bytes), ApiError> {
    let invalid = |why: &str| ApiError::new(Reason::Invalid, format!("The upload {why}."));
    let boundary = content_type.split(';').find_map(|word| word.trim().strip_prefix("boundary="));
    let boundary = boundary.ok_or_else(|| invalid("names no boundary"))?.trim_matches(['"', '\'']);
    let mark = format!("--{boundary}");
    let places = places(body, mark.as_bytes());
    let [first, second, end] = places[..] else {
        return Err(invalid("has not two parts"));
    };
    let (head, description) = split(body.slice(first + mark.len()..second))
        .ok_or_else(|| invalid("has a part without a head"))?;
    let (media_head, media) = split(body.slice(second + mark.len()..end))
        .ok_or_else(|| invalid("has a part without a head"))?;
    drop(head);
    let description = serde_json::from_slice(&description)
        .map_err(|error| invalid(&format!("is described by what is not JSON: {error}")))?;
    let kind = media_head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-type").then(|| value.trim().to_owned())
    });
    Ok((description, kind.unwrap_or_else(|| OCTETS.to_owned()), media))
}

/// Where a line begins with the mark.
fn places(body: &[u8], mark: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let finder = memchr::memmem::Finder::new(mark);
    for at in finder.find_iter(body) {
        if at == 0 || body[at - 1] == b'\n' {
            found.push(at);
        }
    }
    found
}

/// Head and body of a part; the line end before the next mark is not the body's.
fn split(part: Bytes) -> Option<(String, Bytes)> {
    let (at, gap) = match (find(&part, b"\r\n\r\n"), find(&part, b"\n\n")) {
        (Some(crlf), Some(lf)) if lf < crlf => (lf, 2),
        (Some(crlf), _) => (crlf, 4),
        (None, Some(lf)) => (lf, 2),
        (None, None) => return None,
    };
    let head = String::from_utf8_lossy(&part[..at]).into_owned();
    let body = part.slice(at + gap..);
    let end =
        body.strip_suffix(b"\r\n").or(body.strip_suffix(b"\n")).map_or(body.len(), <[u8]>::len);
    Some((head, body.slice(..end)))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_and_bytes_are_taken_apart() {
        for end in ["\n", "\r\n"] {
            let lines = [
                "--=x==",
                "Content-Type: application/json",
                "",
                r#"{"name":"a.zip"}"#,
                "--=x==",
                "Content-Type: application/zip",
                "Content-Transfer-Encoding: binary",
                "",
                "PK\n\nbytes",
                "--=x==--",
            ];
            let body = Bytes::from(lines.join(end));
            let kind = "multipart/related; boundary='=x=='";
            let (description, kind, bytes) = parts(&body, kind).unwrap();
            assert_eq!(description["name"], "a.zip");
            assert_eq!(kind, "application/zip");
            assert_eq!(&bytes[..], b"PK\n\nbytes");
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(read_range("bytes 0-99/200"), Some((Some(0), Some(200))));
        assert_eq!(read_range("bytes 100-199/*"), Some((Some(100), None)));
        assert_eq!(read_range("bytes */200"), Some((None, Some(200))));
        assert_eq!(read_range("0-99"), None);
    }
}
