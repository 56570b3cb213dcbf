//! One question to the metadata server and its answer, in the words of Google's.
//!
//! Invariant: whoever lacks `Metadata-Flavor: Google`, or was sent on by a proxy, reads nothing.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

use super::tree::{Node, tree_of};
use super::{Guest, Metadata};
use crate::http::Response;
use crate::query::{Query, decoded_segment};

const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
const FLAVOR_VALUE: &str = "Google";
const FORWARDED: HeaderName = HeaderName::from_static("x-forwarded-for");
const ROOT: &str = "computeMetadata/";
const VERSION: &str = "/computeMetadata/v1";
const TEXT: &str = "application/text";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=UTF-8";

/// A question as it came.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
}

/// Answers a guest. Blocks as long as a signature takes.
pub(super) fn answer(metadata: &Metadata, guest: &Guest, question: &Question<'_>) -> Response {
    let mut response = decide(metadata, guest, question);
    let fixed = [
        (FLAVOR, FLAVOR_VALUE),
        (http::header::SERVER, "Metadata Server"),
        (http::header::X_XSS_PROTECTION, "0"),
        (http::header::X_FRAME_OPTIONS, "SAMEORIGIN"),
    ];
    for (name, value) in fixed {
        response.headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn decide(metadata: &Metadata, guest: &Guest, question: &Question<'_>) -> Response {
    let path = question.path;
    if question.method != Method::GET && question.method != Method::HEAD {
        return page(StatusCode::METHOD_NOT_ALLOWED, "The request method is inappropriate.");
    }
    if matches!(path, "/" | "") {
        return text(ROOT.to_owned() + "\n");
    }
    let has_flavor = question.headers.get(FLAVOR).is_some_and(|value| value == FLAVOR_VALUE);
    if !has_flavor || question.headers.contains_key(FORWARDED) {
        let why = match has_flavor {
            true => "Forwarded requests are not allowed.",
            false => "Missing Metadata-Flavor:Google header.",
        };
        let shown = escaped(path);
        return page(
            StatusCode::FORBIDDEN,
            &format!(
                "Your client does not have permission to get URL <code>{shown}</code> from this \
                 server. {why}"
            ),
        );
    }
    match path {
        "/computeMetadata" => return moved(path, question.query),
        "/computeMetadata/" => return text("v1/\n".to_owned()),
        _ => {}
    }
    let Some(below) = path.strip_prefix(VERSION).filter(|rest| is_below(rest)) else {
        return not_found(path);
    };
    let segments = below.split('/').filter(|segment| !segment.is_empty());
    let segments: Vec<String> = segments.map(decoded_segment).collect();
    let tree = tree_of(guest);
    match tree.at(&segments) {
        Some(node) if node.is_directory() => shown_directory(node, question),
        Some(_) if path.ends_with('/') => not_found(path),
        Some(node) => shown_value(metadata, node, question),
        None => not_found(path),
    }
}

fn is_below(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with('/')
}

fn shown_directory(node: &Node, question: &Question<'_>) -> Response {
    let query = Query::parse(question.query);
    let wanted = query.get("alt");
    if query.flag("recursive") {
        return match wanted {
            Some("text") => text(node.flat()),
            _ => json(&node.json().unwrap_or_default()),
        };
    }
    if !question.path.ends_with('/') {
        return moved(question.path, question.query);
    }
    match wanted {
        Some("json") => json(&node.listing().lines().collect()),
        _ => text(node.listing()),
    }
}

fn shown_value(metadata: &Metadata, node: &Node, question: &Question<'_>) -> Response {
    let query = Query::parse(question.query);
    match node {
        Node::AccessToken(email) if metadata.is_account(email) => {
            json(&metadata.access_token(email))
        }
        Node::IdentityToken(email) if metadata.is_account(email) => {
            identity(metadata, email, &query)
        }
        Node::AccessToken(_) | Node::IdentityToken(_) => not_found(question.path),
        _ if query.get("alt") == Some("json") => json(&node.json().unwrap_or_default()),
        _ => text(node.text().unwrap_or_default()),
    }
}

fn identity(metadata: &Metadata, email: &str, query: &Query) -> Response {
    let audience = query.get("audience").unwrap_or_default();
    if audience.is_empty() {
        return bad("non-empty audience parameter required");
    }
    if !matches!(query.get("format"), None | Some("full" | "standard")) {
        return bad("invalid format parameter");
    }
    match metadata.identity_token(email, audience) {
        Ok(token) => text(token),
        Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, &escaped(&error.message)),
    }
}

fn bad(why: &str) -> Response {
    let mut response = text(format!("{why}\n"));
    response.status = StatusCode::BAD_REQUEST;
    response
}

fn moved(path: &str, query: &str) -> Response {
    let mark = if query.is_empty() { "" } else { "?" };
    let to = format!("{path}/{mark}{query}");
    let shown = escaped(&to);
    let mut response = page(
        StatusCode::MOVED_PERMANENTLY,
        &format!("The document has moved <a href=\"{shown}\">here</a>."),
    );
    if let Ok(to) = HeaderValue::from_str(&to) {
        response.headers.insert(LOCATION, to);
    }
    response
}

fn not_found(path: &str) -> Response {
    let shown = escaped(path);
    let sentence = format!("The requested URL <code>{shown}</code> was not found on this server.");
    page(StatusCode::NOT_FOUND, &sentence)
}

fn text(body: String) -> Response {
    with_type(StatusCode::OK, TEXT, body)
}

fn json(value: &Value) -> Response {
    with_type(StatusCode::OK, JSON, value.to_string())
}

/// Google's page for everything that is not an answer.
fn page(status: StatusCode, sentence: &str) -> Response {
    let (number, reason) = (status.as_u16(), status.canonical_reason().unwrap_or_default());
    let body = format!(
        "<!DOCTYPE html>\n<html lang=en>\n  <meta charset=utf-8>\n  <title>Error {number} \
         ({reason})!!1</title>\n  <p><b>{number}.</b> <ins>That’s an error.</ins>\n  \
         <p>{sentence}  <ins>That’s all we know.</ins>\n"
    );
    with_type(status, HTML, body)
}

fn with_type(status: StatusCode, kind: &'static str, body: String) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Response { status, headers, body: Bytes::from(body) }
}

/// What came from a client may not become markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
