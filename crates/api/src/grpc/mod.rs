//! gRPC on the API's door: each method is the REST method of the same name, in protobuf.
//!
//! Invariant: nothing is decided here. A message becomes the JSON request a REST client would send,
//! goes the same way, and its answer or refusal is written back as gRPC writes them.

mod frames;
mod methods;
mod status;
mod tail;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::watch;

use self::methods::{Method, Rest};
use self::status::Status;
use crate::door::Behind;
use crate::error::{ApiError, Reason};
use crate::http::{Principal, Request, Response};

/// What is sent back, body and trailers.
pub(crate) type Answer = hyper::Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Who asks, and whom.
#[derive(Clone)]
struct Caller {
    behind: Arc<dyn Behind>,
    principal: Principal,
    headers: HeaderMap,
}

impl Caller {
    /// Asks the API as a REST client would; a refusal comes back as gRPC tells it.
    async fn ask(&self, service: &str, rest: Rest) -> Result<Value, Status> {
        let request = Request {
            service: service.to_owned(),
            host_region: None,
            method: rest.verb,
            path: rest.path,
            query: rest.query,
            headers: self.headers.clone(),
            body: rest.body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string())),
            principal: self.principal.clone(),
        };
        let response: Response = self.behind.answer(request).await;
        if !response.status.is_success() {
            return Err(Status::of_response(&response));
        }
        match response.body.is_empty() {
            true => Ok(Value::Object(serde_json::Map::new())),
            false => serde_json::from_slice(&response.body).map_err(|error| {
                Status::of_error(&ApiError::new(Reason::Internal, error.to_string()))
            }),
        }
    }
}

/// Whether a request is gRPC's.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// Answers one call of a caller who is known.
pub(crate) async fn answer(
    behind: Arc<dyn Behind>,
    principal: Principal,
    closed: watch::Receiver<bool>,
    request: hyper::Request<Incoming>,
) -> Answer {
    let (parts, body) = request.into_parts();
    let caller = Caller { behind, principal, headers: parts.headers };
    let path = parts.uri.path();
    let answered = match (path, methods::method(path)) {
        (tail::PATH, _) => tail::answer(caller, body, closed).await,
        (_, Some(method)) => unary(&caller, method, body).await,
        (_, None) => Err(Status::unserved(path)),
    };
    answered.unwrap_or_else(|status| ended(&status))
}

/// Refuses a call before it is read.
pub(crate) fn refusal(error: &ApiError) -> Answer {
    ended(&Status::of_error(error))
}

async fn unary(caller: &Caller, method: &Method, body: Incoming) -> Result<Answer, Status> {
    let of_error = |error: ApiError| Status::of_error(&error);
    let bytes = frames::only_message(body).await.map_err(of_error)?;
    let message = decoded(method.input, &bytes)?;
    let rest = method.rest(message).map_err(of_error)?;
    let answer = caller.ask(method.service, rest).await?;
    let framed = frames::framed(&encoded(method.output, &answer)?);
    let trailers = Status::OK.trailers();
    let body = Full::new(framed)
        .with_trailers(async move { Some(Ok(trailers)) })
        .map_err(|never: Infallible| match never {});
    Ok(started(BodyExt::boxed_unsync(body)))
}

fn decoded(message: &str, bytes: &[u8]) -> Result<Value, Status> {
    wire::grpc::decode(message, bytes)
        .map_err(|error| Status::of_error(&ApiError::new(Reason::BadRequest, error.to_string())))
}

fn encoded(message: &str, value: &Value) -> Result<Vec<u8>, Status> {
    wire::grpc::encode(message, value)
        .map_err(|error| Status::of_error(&ApiError::new(Reason::Internal, error.to_string())))
}

/// An answer whose status comes in its trailers.
fn started(body: UnsyncBoxBody<Bytes, hyper::Error>) -> Answer {
    let mut answer = hyper::Response::new(body);
    *answer.status_mut() = StatusCode::OK;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

/// An answer without a message: its status stands in its head.
fn ended(status: &Status) -> Answer {
    let body = Empty::new().map_err(|never: Infallible| match never {});
    let mut answer = started(BodyExt::boxed_unsync(body));
    answer.headers_mut().extend(status.trailers());
    answer
}
