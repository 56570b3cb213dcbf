//! What happens to one request: the question the proxy asks the plan, and the answer it carries out.
//!
//! The head of a request goes in, a [`Decision`] comes out; nothing else about routing exists anywhere.
//! `explain` prints the same decision, made by the same code. Randomness (weights, fault percentages) is
//! an argument, so a decision can be repeated.
//!
//! Invariant: a decision borrows from one plan and is complete; the proxy never looks anything up again.

use crate::fleet::{RevisionPlan, ServicePlan};
use crate::routing::BackendServicePlan;
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use model::url_map::RetryCondition;

/// The scheme a client used towards the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// The parts of a request a decision may depend on. Nothing is decoded or normalised.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// How the client reached the balancer.
    pub scheme: Scheme,
    /// The `Host` header or `:authority`, port included if it was sent.
    pub authority: &'a str,
    /// The path, without query and fragment; begins with `/`.
    pub path: &'a str,
    /// What follows `?`, if there is one.
    pub query: Option<&'a str>,
    /// The header fields; asked only by maps that match on them.
    pub headers: &'a dyn Headers,
    /// The client's address.
    pub client: IpAddr,
}

impl std::fmt::Debug for RequestHead<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}://{}{}", self.method, self.scheme.as_str(), self.authority, self.path)?;
        self.query.map_or(Ok(()), |query| write!(out, "?{query}"))
    }
}

/// Read access to header fields, whoever holds them.
pub trait Headers {
    /// The value of the first field of that name; names compare without case.
    fn first(&self, name: &str) -> Option<&[u8]>;

    /// Every value of the fields of that name, in order.
    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8]));
}

/// Headers held as plain pairs: `explain`, URL map tests and unit tests.
impl Headers for Vec<(String, String)> {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_bytes())
    }

    fn each<'a>(&'a self, name: &str, visit: &mut dyn FnMut(&'a [u8])) {
        for (key, value) in self {
            if key.eq_ignore_ascii_case(name) {
                visit(value.as_bytes());
            }
        }
    }
}

/// The answer: send the request to a revision, or answer it here. Both are held in place, so that a
/// decision which changes nothing allocates nothing.
#[derive(Debug)]
pub enum Decision<'p> {
    /// A revision answers.
    Forward(Forward<'p>),
    /// The balancer answers by itself.
    Respond(Respond<'p>),
}

/// Where in the URL map a decision was made; the names are Google's log labels.
#[derive(Clone, Copy, Debug, Default)]
pub struct Matched<'p> {
    /// `matched_url_path_rule`: the path or route rule's text, or `UNMATCHED` for a default.
    pub rule: &'p str,
    /// The path matcher that was asked, if a host rule matched.
    pub path_matcher: Option<&'p str>,
    /// The backend service that was chosen, also when the balancer answers in its name.
    pub backend_service: Option<&'p Arc<BackendServicePlan>>,
}

/// A request that goes to a revision.
#[derive(Debug)]
pub struct Forward<'p> {
    /// How the URL map came to it.
    pub matched: Matched<'p>,
    /// The backend service in whose name the request is sent: logging, custom headers, timeout.
    pub backend_service: &'p Arc<BackendServicePlan>,
    /// The Cloud Run service the endpoint group, its tag or its mask named.
    pub service: &'p Arc<ServicePlan>,
    /// The revision the service's traffic settings chose.
    pub revision: &'p Arc<RevisionPlan>,
    /// Whether a tag chose the revision, rather than the traffic settings.
    pub is_tagged: bool,
    /// The `Host` to send instead of the client's (`urlRewrite.hostRewrite`).
    pub authority: Option<&'p str>,
    /// The path and query to send instead of the client's, when a rewrite applies. The client's path is
    /// then sent as `x-envoy-original-path`.
    pub path_and_query: Option<String>,
    /// Header edits in the order in which they apply, innermost level first.
    pub header_actions: HeaderActions<'p>,
    /// From the end of the request to the end of the response, retries included.
    pub timeout: Option<Duration>,
    /// When and how often another attempt is made; `None` is the balancer's default policy.
    pub retry: Option<&'p RetryPolicy>,
    /// Wait this long before sending (`faultInjectionPolicy.delay`).
    pub delay: Option<Duration>,
    /// The CORS policy, whose response headers are added to what the backend answers.
    pub cors: Option<&'p CorsPolicy>,
}

impl Forward<'_> {
    /// Takes the revision whose turn it is, unless a tag chose it. A decision alone draws lots, so
    /// that it can be repeated; a request that is really sent takes a turn, which makes the shares of
    /// the revisions exact.
    pub fn take_turn(&mut self) {
        if !self.is_tagged
            && let Some(revision) = self.service.pick(self.service.next_turn())
        {
            self.revision = revision;
        }
    }
}

/// The header actions of one decision: at most four levels.
pub type HeaderActions<'p> = smallvec::SmallVec<[&'p HeaderAction; 4]>;

/// A request the balancer answers by itself.
#[derive(Debug)]
pub struct Respond<'p> {
    /// How the URL map came to it.
    pub matched: Matched<'p>,
    /// The status code.
    pub status: u16,
    /// Fields of the response besides those every response of the balancer has.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for redirects.
    pub body: Cow<'static, str>,
    /// Wait this long before answering (`faultInjectionPolicy.delay` before an abort).
    pub delay: Option<Duration>,
    /// Why, for the access log's `proxyStatus` and for `explain`.
    pub why: Why,
    /// Header edits in the order in which they apply; only their response half matters here.
    pub header_actions: HeaderActions<'p>,
}

/// Why the balancer answered by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// `urlRedirect`.
    Redirect,
    /// A CORS preflight that the policy answers.
    CorsPreflight,
    /// `faultInjectionPolicy.abort`.
    FaultAbort,
    /// The URL map names nothing for this request.
    NoRoute,
    /// The backend service has no backend.
    NoBackend,
    /// The endpoint group's mask does not fit the URL.
    MaskMismatch,
    /// The endpoint group names a service that does not exist (here, in this region).
    ServiceNotFound {
        /// The name asked for.
        service: String,
    },
    /// The service exists and has no such tag.
    TagNotFound {
        /// The service.
        service: String,
        /// The tag asked for.
        tag: String,
    },
    /// The service exists and none of its revisions is ready.
    NoReadyRevision {
        /// The service.
        service: String,
    },
}

/// `headerAction` of one level, compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderAction {
    /// Edits of the request before it is sent.
    pub request: HeaderEdit,
    /// Edits of the response before it is passed on.
    pub response: HeaderEdit,
}

/// Removals first, then additions, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Field names to remove, in lower case.
    pub remove: Vec<String>,
    /// Fields to add.
    pub add: Vec<HeaderAddition>,
}

impl HeaderAction {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

impl HeaderEdit {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// One field to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderAddition {
    /// The field name, in lower case.
    pub name: String,
    /// Its value, variables included.
    pub value: HeaderTemplate,
    /// Whether fields of that name are removed first.
    pub replace: bool,
}

/// A header value with Google's `{variable}` placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTemplate(pub Vec<TemplatePart>);

impl HeaderTemplate {
    /// Whether any part depends on the request.
    pub fn has_variables(&self) -> bool {
        self.0.iter().any(|part| matches!(part, TemplatePart::Variable(_)))
    }
}

/// A piece of a [`HeaderTemplate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePart {
    /// Text that stands for itself.
    Literal(String),
    /// A variable such as `client_ip_address`; one whose value is unknown is the empty string.
    Variable(String),
}

/// `retryPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How many attempts may follow the first; at least 1.
    pub retries: u32,
    /// The bound of one attempt.
    pub per_try_timeout: Option<Duration>,
    /// When another attempt is made.
    pub conditions: Vec<RetryCondition>,
}

/// `corsPolicy`, the part that decorates responses; preflights are answered by the decision itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorsPolicy {
    /// `allowOrigins`, exact.
    pub allow_origins: Vec<String>,
    /// `allowMethods`, joined for the header.
    pub allow_methods: String,
    /// `allowHeaders`, joined for the header.
    pub allow_headers: String,
    /// `exposeHeaders`, joined for the header.
    pub expose_headers: String,
    /// `maxAge` in seconds.
    pub max_age: Option<i32>,
    /// `allowCredentials`.
    pub allow_credentials: bool,
}

impl CorsPolicy {
    /// Whether the policy lets pages of `origin` read the response.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.allow_origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    }
}
