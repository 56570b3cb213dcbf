//! One request and its answer, free of any transport.
//!
//! The front door, the batch endpoint and the tests all speak to the API through these two
//! values, so what is tested is what is served.
//!
//! Invariant: a `Request` has been authenticated; nobody below asks again who is calling.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;

/// The content type of every JSON answer, as Google writes it.
pub const JSON_CONTENT_TYPE: &str = "application/json; charset=UTF-8";

/// Who is calling, as the token said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The e-mail address shown as `user` in operations and as creator of services.
    pub email: String,
    /// Whether the address names a service account rather than a person.
    pub is_service_account: bool,
}

impl Principal {
    /// The principal as IAM policies write it, such as `user:someone@example.com`.
    pub fn member(&self) -> String {
        let kind = if self.is_service_account { "serviceAccount" } else { "user" };
        format!("{kind}:{}", self.email)
    }
}

/// One API request after authentication.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which API is meant: the first label of the host, without a region prefix (`compute`, `run`).
    pub service: String,
    /// The region that stood before the service in the host (`us-west1` of `us-west1-run`).
    pub host_region: Option<String>,
    /// The HTTP method.
    pub method: Method,
    /// The path as it came, percent-encoded, starting with `/` and without the query.
    pub path: String,
    /// The query as it came, without the `?`; empty when there is none.
    pub query: String,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Who is calling.
    pub principal: Principal,
}

/// The answer to one API request.
#[derive(Clone, Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers, `content-type` included; `content-length` is the transport's affair.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Response {
    /// An answer with a JSON body, indented as Google does unless asked otherwise.
    pub fn json(status: StatusCode, value: &Value) -> Response {
        Response::json_text(status, format!("{value:#}\n"))
    }

    /// An answer whose JSON is already text.
    pub fn json_text(status: StatusCode, text: String) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON_CONTENT_TYPE));
        Response { status, headers, body: Bytes::from(text) }
    }

    /// An answer without a body (204), as deleting an operation gives.
    pub fn empty() -> Response {
        Response { status: StatusCode::NO_CONTENT, headers: HeaderMap::new(), body: Bytes::new() }
    }
}
