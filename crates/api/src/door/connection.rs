//! One connection from its first byte to its last: plain or proxied, and TLS inside when it asks.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, HOST, HeaderName, HeaderValue, ORIGIN, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::json;
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::arriving::{self, Speaks};
use super::guard::{self, Head};
use super::hosts::{self, ApiHost, HTTPS_PORT, Host};
use super::iap::{self, InstancePort, Sessions};
use super::{
    Authority, BODY_BYTES_MAX, BODY_PATIENCE, Behind, FIRST_REQUEST_PATIENCE, HANDSHAKE_PATIENCE,
    HEAD_BYTES_MAX, HEAD_PATIENCE, HEADERS_MAX, HTTP2_STREAMS_MAX, OPEN_BODY_BYTES_MAX,
    OpenRequest, RunAppPort, tunnel,
};
use crate::error::{ApiError, Dialect, Reason};
use crate::grpc::{self, Answer};
use crate::http::{Principal, Request, Response};

type Incomings = hyper::Request<Incoming>;

pub(super) const HTTP2: &[u8] = b"h2";
pub(super) const HTTP1: &[u8] = b"http/1.1";
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What every connection of one door shares.
pub(super) struct Shared {
    pub(super) authority: Authority,
    pub(super) behind: Arc<dyn Behind>,
    pub(super) instances: Arc<dyn InstancePort>,
    pub(super) run_apps: Arc<dyn RunAppPort>,
    pub(super) sessions: Sessions,
    pub(super) bound: IpAddr,
    /// Turns true when the door closes.
    pub(super) closed: watch::Receiver<bool>,
}

/// How a request came in.
#[derive(Clone, Debug)]
enum Via {
    /// On the port itself.
    Port { peer: IpAddr },
    /// Inside TLS, as this host.
    Tls { host: String },
}

/// Serves a connection that was just accepted: TLS when it begins with it, HTTP/2 when it says so.
pub(super) async fn serve(
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: IpAddr,
    closed: watch::Receiver<bool>,
) {
    let via = Via::Port { peer };
    match arriving::speaks(&stream).await {
        Speaks::Http1 => http1(shared, stream, via, closed).await,
        Speaks::Http2 => http2(shared, stream, via, closed).await,
        Speaks::Tls => {
            let Some((host, stream)) = arriving::terminate(&shared, stream).await else { return };
            let via = host.map_or(via, |host| Via::Tls { host });
            match stream.get_ref().1.alpn_protocol() {
                Some(HTTP2) => http2(shared, stream, via, closed).await,
                _ => http1(shared, stream, via, closed).await,
            }
        }
        Speaks::Nothing => {}
    }
}

async fn http1<S>(shared: Arc<Shared>, stream: S, via: Via, mut closed: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let inner = closed.clone();
    let (first, mut asked) = watch::channel(false);
    let service = service_fn(move |request| {
        first.send_replace(true);
        let (shared, via, closed) = (Arc::clone(&shared), via.clone(), inner.clone());
        async move { Ok::<_, Infallible>(answer(shared, via, closed, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    // Who has connected only now has a request on its way, which is answered before the end.
    let over = async {
        let _ = closed.changed().await;
        let _ = timeout(FIRST_REQUEST_PATIENCE, asked.wait_for(|asked| *asked)).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = over => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn http2<S>(shared: Arc<Shared>, stream: S, via: Via, mut closed: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let inner = closed.clone();
    let service = service_fn(move |request| {
        let (shared, via, closed) = (Arc::clone(&shared), via.clone(), inner.clone());
        async move { Ok::<_, Infallible>(answer(shared, via, closed, request).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(HEAD_PATIENCE)
        .keep_alive_timeout(HANDSHAKE_PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = closed.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP/2 connection ended early");
    }
}

async fn answer(
    shared: Arc<Shared>,
    via: Via,
    closed: watch::Receiver<bool>,
    request: Incomings,
) -> Answer {
    match via {
        Via::Port { peer } if request.method() == Method::CONNECT => {
            connect(shared, peer, closed, request)
        }
        Via::Port { peer } if request.uri().authority().is_some() => {
            absolute(shared, peer, request).await
        }
        Via::Port { .. } => direct(shared, request).await,
        Via::Tls { host } => {
            // A client that mixes up its connections must not be answered as the wrong host.
            let named = named_host(&request).map(str::to_ascii_lowercase);
            match named.as_deref().and_then(hosts::split_authority) {
                Some((name, _)) if name == host => to_host(shared, &host, request).await,
                _ => refusal(StatusCode::MISDIRECTED_REQUEST, "The connection is to another host."),
            }
        }
    }
}

/// `CONNECT host:port`: TLS as that host when it is ours, a blind tunnel when it is not.
fn connect(
    shared: Arc<Shared>,
    peer: IpAddr,
    closed: watch::Receiver<bool>,
    request: Incomings,
) -> Answer {
    let target = request.uri().authority().and_then(|authority| {
        let (host, port) = hosts::split_authority(authority.as_str())?;
        Some((host.to_ascii_lowercase(), port?))
    });
    let Some((host, port)) = target else {
        return refusal(StatusCode::BAD_REQUEST, "CONNECT needs a host and a port.");
    };
    let is_ours = port == HTTPS_PORT && hosts::host(&host) != Host::Foreign;
    if !is_ours && !super::is_local(peer) {
        return refusal(StatusCode::FORBIDDEN, "This server is a proxy for its own machine only.");
    }
    if is_ours {
        tokio::spawn(async move {
            let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
            if let Host::RunApp(_) = hosts::host(&host) {
                // The data plane speaks TLS itself, in whatever protocol the client chose.
                match shared.run_apps.connect().await {
                    Ok(stream) => tunnel::relay(TokioIo::new(upgraded), stream).await,
                    Err(error) => tracing::warn!(%host, %error, "could not reach the data plane"),
                }
            } else {
                terminate(shared, host, TokioIo::new(upgraded), closed).await;
            }
        });
        return empty(StatusCode::OK);
    }
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            match tunnel::dial(&host, port).await {
                Ok(stream) => tunnel::relay(TokioIo::new(upgraded), stream).await,
                Err(error) => tracing::info!(%host, port, %error, "could not reach a foreign host"),
            }
        }
    });
    empty(StatusCode::OK)
}

/// Speaks TLS as `host` and serves what is inside.
async fn terminate<S>(shared: Arc<Shared>, host: String, stream: S, closed: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // WebSockets are spoken to in HTTP/1.1.
    let protocols: &[&[u8]] = match hosts::host(&host) {
        Host::Api(_) | Host::AnyApi => &[HTTP2, HTTP1],
        Host::IapTunnel | Host::RunApp(_) | Host::Foreign => &[HTTP1],
    };
    let config = match shared.authority.server(&host, protocols, OffsetDateTime::now_utc()) {
        Ok(config) => config,
        Err(error) => return tracing::warn!(%host, ?error, "no certificate for a host"),
    };
    let accepting = timeout(HANDSHAKE_PATIENCE, TlsAcceptor::from(config).accept(stream));
    let stream = match accepting.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%host, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%host, "a TLS handshake took too long"),
    };
    let via = Via::Tls { host };
    match stream.get_ref().1.alpn_protocol() {
        Some(HTTP2) => http2(shared, stream, via, closed).await,
        _ => http1(shared, stream, via, closed).await,
    }
}

/// `GET http://host/path`: a plain request to a proxy.
async fn absolute(shared: Arc<Shared>, peer: IpAddr, request: Incomings) -> Answer {
    let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let Some((host, port)) = hosts::split_authority(&authority) else {
        return refusal(StatusCode::BAD_REQUEST, "The request line names no host.");
    };
    let kind = hosts::host(host);
    if kind == Host::Foreign && guard::is_own_name(host, shared.bound) {
        return direct(shared, request).await;
    }
    if !matches!(kind, Host::Foreign | Host::RunApp(_)) {
        return to_host(shared, host, request).await;
    }
    if !super::is_local(peer) {
        return refusal(StatusCode::FORBIDDEN, "This server is a proxy for its own machine only.");
    }
    if request.uri().scheme_str() != Some("http") || request.version() == Version::HTTP_2 {
        return refusal(StatusCode::BAD_REQUEST, "Only http:// can be asked of a proxy this way.");
    }
    if let Host::RunApp(name) = kind {
        return to_https(&name, request.uri());
    }
    let forwarded = match tunnel::dial(host, port.unwrap_or(80)).await {
        Ok(stream) => tunnel::forward(stream, request).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    forwarded.unwrap_or_else(|error| {
        let message = format!("The host {authority} could not be reached: {error}.");
        refusal(StatusCode::BAD_GATEWAY, &message)
    })
}

/// Services are spoken to over TLS; who comes without is sent there, as Google's front end does.
fn to_https(host: &str, uri: &http::Uri) -> Answer {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut answer = empty(StatusCode::FOUND);
    if let Ok(location) = HeaderValue::try_from(format!("https://{host}{path}")) {
        answer.headers_mut().insert(http::header::LOCATION, location);
    }
    answer
}

/// A request to the port itself: its host or its path says which API it is for.
async fn direct(shared: Arc<Shared>, request: Incomings) -> Answer {
    if let Err(refused) = guard::admit(head(&request), shared.bound) {
        return refusal(StatusCode::FORBIDDEN, refused.message());
    }
    let named = named_host(&request).and_then(hosts::split_authority).map(|(name, _)| name);
    match named.map(hosts::host) {
        Some(Host::Api(_) | Host::AnyApi | Host::IapTunnel) => {
            let host = named.unwrap_or_default().to_ascii_lowercase();
            to_host(shared, &host, request).await
        }
        Some(Host::RunApp(_) | Host::Foreign) | None if grpc::is_grpc(request.headers()) => {
            remote_call(shared, request).await
        }
        Some(Host::RunApp(_) | Host::Foreign) | None => {
            let region = named.and_then(region_of_localhost);
            by_path(shared, region, request).await
        }
    }
}

/// `us-west1-localhost` is where gcloud looks for Cloud Run when its endpoint is overridden.
fn region_of_localhost(name: &str) -> Option<String> {
    let host = format!("{}.googleapis.com", name.strip_suffix(".localhost")?);
    match hosts::host(&host) {
        Host::Api(ApiHost { region, .. }) => region,
        _ => None,
    }
}

/// A request for a host of Google's, wherever it came in.
async fn to_host(shared: Arc<Shared>, host: &str, request: Incomings) -> Answer {
    if let Err(refused) = guard::admit(head(&request), shared.bound) {
        return refusal(StatusCode::FORBIDDEN, refused.message());
    }
    match hosts::host(host) {
        Host::Api(_) | Host::AnyApi if grpc::is_grpc(request.headers()) => {
            remote_call(shared, request).await
        }
        Host::Api(ApiHost { service, region }) => api(shared, service, region, None, request).await,
        Host::AnyApi => by_path(shared, None, request).await,
        Host::IapTunnel => open_tunnel(shared, request),
        Host::RunApp(_) | Host::Foreign => {
            refusal(StatusCode::MISDIRECTED_REQUEST, "This host is not answered here.")
        }
    }
}

async fn by_path(shared: Arc<Shared>, region: Option<String>, request: Incomings) -> Answer {
    let Some((service, path)) = hosts::api_of_path(request.uri().path()) else {
        return refusal(StatusCode::NOT_FOUND, "No API is served at this path.");
    };
    let (service, path) = (service.to_owned(), path.to_owned());
    api(shared, service, region, Some(path), request).await
}

/// One API request: who is calling, the whole body, the answer.
async fn api(
    shared: Arc<Shared>,
    service: String,
    host_region: Option<String>,
    path: Option<String>,
    request: Incomings,
) -> Answer {
    let path = path.unwrap_or_else(|| request.uri().path().to_owned());
    let dialect = if service == "compute" { Dialect::Compute } else { Dialect::OnePlatform };
    let (parts, body) = request.into_parts();
    if shared.behind.is_open(&service, &path) {
        return match whole(body, OPEN_BODY_BYTES_MAX).await {
            Ok(body) => {
                let open = OpenRequest {
                    service: &service,
                    method: &parts.method,
                    path: &path,
                    body: &body,
                };
                from_response(shared.behind.answer_open(open))
            }
            Err(error) => from_response(error.response(dialect)),
        };
    }
    let signer = || shared.behind.signer(&service, &path, parts.uri.query().unwrap_or_default());
    let principal = match bearer(&parts.headers).map(|token| shared.behind.principal(token)) {
        Some(Some(principal)) => principal,
        given => match signer() {
            Some(principal) => principal,
            None => return unauthenticated(given.is_some(), dialect),
        },
    };
    let body = match whole(body, bytes_max(&service)).await {
        Ok(body) => body,
        Err(error) => return from_response(error.response(dialect)),
    };
    let request = Request {
        service,
        host_region,
        method: parts.method,
        path,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
        principal,
    };
    from_response(shared.behind.answer(request).await)
}

/// One gRPC call: who is calling, and the answer.
async fn remote_call(shared: Arc<Shared>, request: Incomings) -> Answer {
    match bearer(request.headers()).map(|token| shared.behind.principal(token)) {
        Some(Some(principal)) => {
            let (behind, closed) = (Arc::clone(&shared.behind), shared.closed.clone());
            grpc::answer(behind, principal, closed, request).await
        }
        given => grpc::refusal(&not_authenticated(given.is_some())),
    }
}

/// The longest body an API takes: objects of storage are longer than anybody's words.
fn bytes_max(service: &str) -> usize {
    match service {
        "storage" => crate::storage::OBJECT_BYTES_MAX,
        _ => BODY_BYTES_MAX,
    }
}

async fn whole(body: Incoming, bytes_max: usize) -> Result<Bytes, ApiError> {
    let too_large = || {
        let message = format!("Request payload size exceeds the limit: {bytes_max} bytes.");
        Err(ApiError::new(Reason::TooLarge, message))
    };
    // A declared length is believed at once; nothing of such a body is read.
    if body.size_hint().lower() > bytes_max as u64 {
        return too_large();
    }
    match timeout(BODY_PATIENCE, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => too_large(),
        Ok(Err(_)) => Err(ApiError::new(Reason::BadRequest, "The request body ended early.")),
        Err(_) => Err(ApiError::new(Reason::BadRequest, "The request body took too long.")),
    }
}

/// The IAP tunnel's handshake; the relay goes on in a task of its own.
fn open_tunnel(shared: Arc<Shared>, mut request: Incomings) -> Answer {
    let principal = match bearer(request.headers()).map(|token| shared.behind.principal(token)) {
        Some(Some(principal)) => principal,
        given => return unauthenticated(given.is_some(), Dialect::OnePlatform),
    };
    let wanted = match iap::wanted(request.uri().path(), request.uri().query().unwrap_or("")) {
        Ok(wanted) => wanted,
        Err(sentence) => return refusal(StatusCode::BAD_REQUEST, &sentence),
    };
    let Some(accept) = websocket_accept(request.headers()) else {
        return refusal(StatusCode::BAD_REQUEST, "The tunnel is a WebSocket of its subprotocol.");
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let Shared { sessions, instances, .. } = &*shared;
    let (sessions, instances) = (sessions.clone(), Arc::clone(instances));
    tokio::spawn(serve_tunnel(upgrading, sessions, instances, wanted, principal));
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(iap::SUBPROTOCOL));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

async fn serve_tunnel(
    upgrading: hyper::upgrade::OnUpgrade,
    sessions: Sessions,
    instances: Arc<dyn InstancePort>,
    wanted: iap::Wanted,
    principal: Principal,
) {
    match upgrading.await {
        Ok(upgraded) => iap::serve(sessions, instances, wanted, principal, upgraded).await,
        Err(error) => tracing::debug!(%error, "a tunnel was not opened"),
    }
}

/// The value of `Sec-WebSocket-Accept`, when the head asks for a WebSocket of our subprotocol.
fn websocket_accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let lists = |name: HeaderName, word: &str| {
        let values = headers.get_all(name);
        let mut words =
            values.iter().filter_map(|value| value.to_str().ok()).flat_map(|v| v.split(','));
        words.any(|listed| listed.trim().eq_ignore_ascii_case(word))
    };
    let is_ours = lists(UPGRADE, "websocket")
        && lists(CONNECTION, "upgrade")
        && lists(SEC_WEBSOCKET_VERSION, "13")
        && lists(SEC_WEBSOCKET_PROTOCOL, iap::SUBPROTOCOL);
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_ours)?;
    HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()
}

fn head(request: &Incomings) -> Head<'_> {
    let text = |name: HeaderName| request.headers().get(name)?.to_str().ok();
    // A value that is not text is no name of ours; it must not pass for one that was left out.
    let given = |name: HeaderName| {
        request.headers().contains_key(&name).then(|| text(name).unwrap_or("unreadable"))
    };
    Head { host: named_host(request), origin: given(ORIGIN), fetch_site: given(FETCH_SITE) }
}

/// The host a request names: in its line when it is absolute or HTTP/2, else in its field.
fn named_host(request: &Incomings) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => {
            let mut hosts = request.headers().get_all(HOST).iter();
            let host = hosts.next()?.to_str().ok()?;
            hosts.next().is_none().then_some(host)
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn unauthenticated(given: bool, dialect: Dialect) -> Answer {
    let mut answer = from_response(not_authenticated(given).response(dialect));
    let challenge = match given {
        true => r#"Bearer realm="https://accounts.google.com/", error="invalid_token""#,
        false => r#"Bearer realm="https://accounts.google.com/""#,
    };
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    answer
}

fn not_authenticated(given: bool) -> ApiError {
    let (message, reason) = if given {
        ("Request had invalid authentication credentials.", "ACCESS_TOKEN_TYPE_UNSUPPORTED")
    } else {
        ("Request is missing required authentication credential.", "CREDENTIALS_MISSING")
    };
    let mut error = ApiError::new(
        Reason::Unauthenticated,
        format!(
            "{message} Expected OAuth 2 access token, login cookie or other valid authentication \
             credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
        ),
    );
    error.details.push(json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
    }));
    error
}

/// A refusal of the door itself, in the envelope every client reads.
fn refusal(status: StatusCode, message: &str) -> Answer {
    let reason = match status {
        StatusCode::FORBIDDEN => Reason::Forbidden,
        StatusCode::NOT_FOUND => Reason::NotFound,
        StatusCode::BAD_GATEWAY => Reason::Unavailable,
        _ => Reason::BadRequest,
    };
    let mut response = ApiError::new(reason, message).response(Dialect::OnePlatform);
    response.status = status;
    from_response(response)
}

fn empty(status: StatusCode) -> Answer {
    from_response(Response { status, ..Response::empty() })
}

fn from_response(response: Response) -> Answer {
    let body = Full::new(response.body).map_err(|never: Infallible| match never {});
    let mut answer = hyper::Response::new(BodyExt::boxed_unsync(body));
    *answer.status_mut() = response.status;
    *answer.headers_mut() = response.headers;
    answer
}
