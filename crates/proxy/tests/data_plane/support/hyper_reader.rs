//! hyper as the other reader of a message: what does it make of the same bytes?

use http::HeaderMap;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A message as hyper reads it; the trailers are all there are.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) start: Vec<String>,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: HeaderMap,
}

fn sorted(fields: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> =
        fields.iter().map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec())).collect();
    fields.sort();
    fields
}

fn run<T>(reading: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(reading)
}

/// Room for everything a test sends, so that nobody waits for a reader.
const PIPE_BYTES: usize = 1 << 20;

/// A connection on which these bytes have arrived and nothing more will.
async fn arrived(bytes: &[u8]) -> (DuplexStream, DuplexStream) {
    let (mut far, near) = tokio::io::duplex(PIPE_BYTES);
    far.write_all(bytes).await.unwrap();
    far.shutdown().await.unwrap();
    (far, near)
}

/// The first request hyper's server reads to its end.
pub(crate) fn request(bytes: &[u8]) -> Option<Read> {
    let first: Rc<RefCell<Option<Read>>> = Rc::default();
    let found = first.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let found = found.clone();
        async move {
            let (parts, body) = request.into_parts();
            let target = parts.uri.path_and_query().map_or("/", |t| t.as_str()).to_owned();
            let host = parts.headers.get("host").map(|h| h.to_str().unwrap_or("").to_owned());
            if let Ok(body) = body.collect().await {
                let trailers = body.trailers().cloned().unwrap_or_default();
                found.borrow_mut().get_or_insert(Read {
                    start: vec![parts.method.to_string(), target, host.unwrap_or_default()],
                    fields: sorted(&parts.headers),
                    body: body.to_bytes().to_vec(),
                    trailers,
                });
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    run(async {
        let (_far, near) = arrived(bytes).await;
        let mut server = hyper::server::conn::http1::Builder::new();
        // Only the first request counts, so a later one may be whatever it is.
        let _ = server
            .half_close(true)
            .max_headers(200)
            .serve_connection(TokioIo::new(near), service)
            .await;
    });
    first.take()
}

/// The response hyper's client reads to its end.
pub(crate) fn response(bytes: &[u8], to_head: bool) -> Option<Read> {
    run(async {
        let (mut far, near) = tokio::io::duplex(PIPE_BYTES);
        let mut client = hyper::client::conn::http1::Builder::new();
        let (mut sender, connection) =
            client.max_headers(200).handshake(TokioIo::new(near)).await.unwrap();
        let method = if to_head { "HEAD" } else { "GET" };
        let request =
            Request::builder().method(method).uri("/").body(Empty::<Bytes>::new()).unwrap();
        let exchange = async {
            let (parts, body) = sender.send_request(request).await.ok()?.into_parts();
            let body = body.collect().await.ok()?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            Some(Read {
                start: vec![parts.status.as_u16().to_string()],
                fields: sorted(&parts.headers),
                body: body.to_bytes().to_vec(),
                trailers,
            })
        };
        let answer = async {
            let mut asked = [0; 4096];
            assert!(far.read(&mut asked).await.unwrap() > 0);
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (_, _, read) = tokio::join!(connection, answer, exchange);
        read
    })
}
