//! The front end of `run.app` addresses, told in the same language as a URL map.
//!
//! It is a map with nothing but a default, whose endpoint group reads service and tag from the request's
//! own host. So one function decides for requests that come through a load balancer and for those that
//! come to the service's own address.
//!
//! Invariant: nothing of it is declared by anyone, so it never has a problem.

use super::action::{Action, To};
use super::backend_service::SERVERLESS_TIMEOUT;
use super::rules::Rules;
use super::{BackendServicePlan, EndpointGroupPlan, UrlMapPlan};
use crate::decision::{
    HeaderAction, HeaderAddition, HeaderEdit, HeaderTemplate, Scheme, TemplatePart,
};
use model::backend_service::LogConfig;
use model::url_map::{Destination, UrlMap};
use model::{Kind, Location, Name, ResourceName};
use std::sync::Arc;

/// What the front end is called where a resource would have a name.
const NAME: &str = "run.app";

/// The `server` of every response of Google's front end.
const SERVER: &str = "Google Frontend";

impl UrlMapPlan {
    /// The map of the front end of every service's own address, for requests of one scheme.
    pub fn run_app(scheme: Scheme) -> UrlMapPlan {
        let group = EndpointGroupPlan {
            name: named(Kind::NetworkEndpointGroup),
            service: None,
            tag: None,
            mask: None,
            by_address: true,
        };
        let backend = BackendServicePlan {
            name: named(Kind::BackendService),
            id: 0,
            endpoints: Some(Arc::new(group)),
            log: LogConfig { enable: true, sample_rate: 1.0, ..LogConfig::default() },
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
            timeout: SERVERLESS_TIMEOUT,
        };
        let rules = Rules {
            default: Action { to: To::Service(0), ..Action::default() },
            header_action: front_end_headers(scheme),
            services: vec![backend.name.clone()],
            ..Rules::default()
        };
        UrlMapPlan {
            name: named(Kind::UrlMap),
            rules: Arc::new(rules),
            own_problems: Arc::default(),
            backends: vec![Some(Arc::new(backend))],
            declared: Arc::new(UrlMap {
                name: named(Kind::UrlMap),
                id: 0,
                host_rules: Vec::new(),
                path_matchers: Vec::new(),
                default: Destination::default(),
                header_action: Default::default(),
                tests: Vec::new(),
                document_bytes: 0,
            }),
        }
    }
}

fn named(kind: Kind) -> ResourceName {
    let (project, name) = (Name::default(), Name::from(NAME));
    ResourceName { project, location: Location::Global, kind, name }
}

/// What Google's front end says to a container and to a client, and a load balancer does not; it names
/// itself in `server` and `forwarded`, and not in `via`.
fn front_end_headers(scheme: Scheme) -> HeaderAction {
    let literal = |text: String| TemplatePart::Literal(text);
    let addition = |name: &str, parts: Vec<TemplatePart>| HeaderAddition {
        name: name.to_owned(),
        value: HeaderTemplate(parts),
        replace: true,
    };
    let client = TemplatePart::Variable("client_ip_address".to_owned());
    let proto = format!("\";proto={}", scheme.as_str());
    let forwarded = vec![literal("for=\"".to_owned()), client, literal(proto)];
    let without_via = |addition| HeaderEdit { remove: vec!["via".to_owned()], add: vec![addition] };
    HeaderAction {
        request: without_via(addition("forwarded", forwarded)),
        response: without_via(addition("server", vec![literal(SERVER.to_owned())])),
    }
}
