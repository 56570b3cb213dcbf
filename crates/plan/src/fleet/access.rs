//! Who may call a service, and from where: the two questions asked of every request, in this order.
//!
//! The answers a refused caller gets are Google's, word for word.

use super::ServicePlan;
use model::run::{Access, Ingress, Member};
use std::fmt::Write;

/// How a request reached the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// Through an internal load balancer.
    InternalLoadBalancer,
    /// At the `run.app` address, from within a VPC network of the project.
    Vpc,
    /// At the `run.app` address, from anywhere else.
    Outside,
}

/// What a request says about its sender, after its token was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// There is no token.
    Anonymous,
    /// There is a token, and it is malformed, expired or not signed by an issuer we trust.
    Invalid,
    /// There is a good token.
    Identified {
        /// Whose it is: a user or a service account.
        member: &'a Member,
        /// Its `aud`.
        audience: &'a str,
    },
}

/// What becomes of a request to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessVerdict {
    /// It goes on.
    Admitted,
    /// The ingress setting does not let it in.
    WrongIngress,
    /// It carries no token and the service is not public.
    Unauthenticated,
    /// Its token is bad or for somebody else.
    InvalidToken,
    /// Its sender may not invoke the service.
    NotAllowed,
}

/// An answer to a request that was not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status code.
    pub status: u16,
    /// The value of `WWW-Authenticate`, if there is one.
    pub authenticate: Option<&'static str>,
    /// The body, `text/html; charset=UTF-8`.
    pub body: String,
    /// The line in the service's request log.
    pub log: &'static str,
}

impl ServicePlan {
    /// Whether a request that arrived this way, from this caller, may go on to a revision.
    pub fn admits(&self, arrival: Arrival, caller: Caller<'_>) -> AccessVerdict {
        if !ingress_admits(self.declared.ingress, arrival) || self.address_is_off(arrival) {
            return AccessVerdict::WrongIngress;
        }
        let access = &self.declared.access;
        if access.invoker_check_disabled || access.invokers.contains(&Member::AllUsers) {
            return AccessVerdict::Admitted;
        }
        match caller {
            Caller::Anonymous => AccessVerdict::Unauthenticated,
            Caller::Invalid => AccessVerdict::InvalidToken,
            Caller::Identified { audience, .. } if !self.is_audience(audience) => {
                AccessVerdict::InvalidToken
            }
            Caller::Identified { member, .. } if holds_invoker(access, member) => {
                AccessVerdict::Admitted
            }
            Caller::Identified { .. } => AccessVerdict::NotAllowed,
        }
    }

    /// Whether anybody may call it, so that no token needs to be looked at.
    pub fn is_public(&self) -> bool {
        let access = &self.declared.access;
        access.invoker_check_disabled || access.invokers.contains(&Member::AllUsers)
    }

    fn address_is_off(&self, arrival: Arrival) -> bool {
        self.declared.default_url_disabled && arrival != Arrival::InternalLoadBalancer
    }

    /// An audience is a custom one, or the URL of the service with or without a path below it.
    fn is_audience(&self, audience: &str) -> bool {
        let access = &self.declared.access;
        if access.custom_audiences.iter().any(|custom| custom.as_str() == audience) {
            return true;
        }
        let Some(rest) = audience.strip_prefix("https://") else { return false };
        let host = rest.split_once('/').map_or(rest, |(host, _)| host);
        let host = host.split_once("---").map_or(host, |(_, host)| host);
        self.hosts.iter().any(|own| own == host)
    }
}

fn ingress_admits(ingress: Ingress, arrival: Arrival) -> bool {
    match ingress {
        Ingress::All => true,
        Ingress::Internal | Ingress::InternalAndCloudLoadBalancing => arrival != Arrival::Outside,
        Ingress::None => false,
    }
}

fn holds_invoker(access: &Access, member: &Member) -> bool {
    let email = match member {
        Member::User(email) | Member::ServiceAccount(email) => email,
        _ => return false,
    };
    let domain = email.rsplit_once('@').map(|(_, domain)| domain);
    access.invokers.iter().any(|invoker| match invoker {
        Member::AllUsers | Member::AllAuthenticatedUsers => true,
        Member::Domain(allowed) => domain == Some(allowed.as_str()),
        // Nobody knows here who is in a group.
        Member::Group(_) => false,
        Member::User(_) | Member::ServiceAccount(_) => invoker == member,
    })
}

impl AccessVerdict {
    /// The answer to a request for `path`, unless it was admitted.
    pub fn refusal(self, path: &str) -> Option<Refusal> {
        // Written only for who is refused: this question is asked of every request.
        let no_permission = || {
            format!(
                "Your client does not have permission to get URL <code>{}</code> from this server.",
                html_escaped(path)
            )
        };
        let refusal = match self {
            AccessVerdict::Admitted => return None,
            AccessVerdict::WrongIngress => Refusal {
                status: 404,
                authenticate: None,
                body: page(
                    "404 Page not found",
                    "Page not found",
                    "The requested URL was not found on this server.",
                ),
                log: "The request was not allowed by the ingress settings of the service.",
            },
            AccessVerdict::Unauthenticated => Refusal {
                status: 403,
                authenticate: None,
                body: page("403 Forbidden", "Forbidden", &no_permission()),
                log: "The request was not authenticated. Either allow unauthenticated invocations \
                      or set the proper Authorization header.",
            },
            AccessVerdict::InvalidToken => Refusal {
                status: 401,
                authenticate: Some(
                    "Bearer error=\"invalid_token\" \
                     error_description=\"The access token could not be verified\"",
                ),
                body: page("401 Unauthorized", "Unauthorized", &no_permission()),
                log: "The request was not authenticated. Either allow unauthenticated invocations \
                      or set the proper Authorization header.",
            },
            AccessVerdict::NotAllowed => Refusal {
                status: 403,
                authenticate: None,
                body: page("403 Forbidden", "Forbidden", &no_permission()),
                log: "The request was not authorized to invoke this service.",
            },
        };
        Some(refusal)
    }
}

fn page(title: &str, heading: &str, sentence: &str) -> String {
    format!(
        "\n<html><head>\n<meta http-equiv=\"content-type\" content=\"text/html;charset=utf-8\">\n\
         <title>{title}</title>\n</head>\n<body text=#000000 bgcolor=#ffffff>\n\
         <h1>Error: {heading}</h1>\n<h2>{sentence}</h2>\n<h2></h2>\n</body></html>\n"
    )
}

fn html_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' | '>' | '&' | '"' | '\'' => {
                let _ = write!(escaped, "&#{};", u32::from(character));
            }
            plain => escaped.push(plain),
        }
    }
    escaped
}
