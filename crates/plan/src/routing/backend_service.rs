//! Backend services and serverless endpoint groups compiled, with Google's rules about them.
//!
//! Invariant: a backend service with several backends has the first one and a problem.

use super::fault::{At, Faults, link};
use super::header_action;
use super::mask::{Placeholder, UrlMask};
use super::rules::is_resource_name;
use crate::decision::HeaderEdit;
use model::backend_service::{Backend, BackendService, LogConfig, TIMEOUT_SECONDS_DEFAULT};
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::inventory::Collection;
use model::{Kind, Name, Problem, ResourceName};
use std::sync::Arc;
use std::time::Duration;

/// The `loadBalancingScheme` of everything a regional internal Application Load Balancer uses.
pub const SCHEME: &str = "INTERNAL_MANAGED";
/// The protocols a URL map's backend services may have.
pub const PROTOCOLS: &[&str] = &["HTTP", "HTTPS", "HTTP2", "H2C", "GRPC"];
/// The fixed backend timeout of serverless backends.
pub const SERVERLESS_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// A backend service as a request meets it.
#[derive(Debug)]
pub struct BackendServicePlan {
    /// `projects/P/regions/R/backendServices/B`.
    pub name: ResourceName,
    /// Its numeric id: unique for ever, what counters are kept by.
    pub id: u64,
    /// What answers; `None` while the service has no backend.
    pub endpoints: Option<Arc<EndpointGroupPlan>>,
    /// What is logged, and how often.
    pub log: LogConfig,
    /// `customRequestHeaders`, to be applied before the request is sent.
    pub request_headers: HeaderEdit,
    /// `customResponseHeaders`, to be applied before the response is passed on.
    pub response_headers: HeaderEdit,
    /// From the end of the request to the end of the response.
    pub timeout: Duration,
}

/// A serverless network endpoint group: how a request's Cloud Run service is found.
#[derive(Debug)]
pub struct EndpointGroupPlan {
    /// `projects/P/regions/R/networkEndpointGroups/G`.
    pub name: ResourceName,
    /// `cloudRun.service`, as a full name: services are looked for in the group's project and region.
    pub service: Option<ResourceName>,
    /// `cloudRun.tag`.
    pub tag: Option<Name>,
    /// `cloudRun.urlMask`.
    pub mask: Option<UrlMask>,
    /// Whether the request's own host says service and tag: it is one of their `run.app` addresses.
    pub by_address: bool,
}

/// Compiles an endpoint group; `None` when it can lead nowhere.
pub(crate) fn compile_group(group: &EndpointGroup) -> (Option<EndpointGroupPlan>, Vec<Problem>) {
    let mut faults = Faults::of(&group.name);
    let Endpoints::CloudRun { service, tag, url_mask } = &group.endpoints else {
        return (None, Vec::new());
    };
    let at = At::ROOT.field("cloudRun");
    for (field, name) in [("service", service), ("tag", tag)] {
        if let Some(name) = name
            && !is_resource_name(name)
        {
            let why = "Must be a match of regex '[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?'.";
            faults.invalid(&at.field(field), name, why);
        }
    }
    let mask = url_mask.as_deref().map(UrlMask::parse).transpose();
    let mask = mask.unwrap_or_else(|why| {
        faults.invalid(&at.field("urlMask"), url_mask.as_deref().unwrap_or_default(), why);
        None
    });
    let named = service.is_some() || mask.as_ref().is_some_and(|m| m.names(Placeholder::Service));
    if !named && faults.count() == 0 {
        match &mask {
            Some(mask) => {
                let why = "The URL mask must contain <service> when no service is specified.";
                faults.invalid(&at.field("urlMask"), mask, why);
            }
            None => {
                let why = "Cloud Run network endpoint groups must specify a service or a URL mask.";
                faults.invalid(&at, "", why);
            }
        }
    }
    let full_name = |name: &Name| ResourceName {
        project: group.name.project.clone(),
        location: group.name.location.clone(),
        kind: Kind::Service,
        name: name.clone(),
    };
    let plan = EndpointGroupPlan {
        name: group.name.clone(),
        service: service.as_ref().map(full_name),
        tag: tag.clone(),
        mask,
        by_address: false,
    };
    (named.then_some(plan), faults.into_problems())
}

/// Compiles a backend service over the groups it names.
pub(crate) fn compile(
    service: &BackendService,
    groups: &Collection<EndpointGroup>,
    compiled: impl Fn(&ResourceName) -> Option<Arc<EndpointGroupPlan>>,
) -> (BackendServicePlan, Vec<Problem>) {
    let mut faults = Faults::of(&service.name);
    let serverless = check_backends(service, groups, &mut faults);
    if serverless {
        check_serverless(service, &mut faults);
    }
    check_log(&service.log, &mut faults);
    let custom = header_action::compile_custom;
    let plan = BackendServicePlan {
        name: service.name.clone(),
        id: service.id,
        endpoints: service.backends.first().and_then(|backend| compiled(&backend.group)),
        log: service.log.clone(),
        request_headers: custom(
            &service.custom_request_headers,
            "customRequestHeaders",
            &mut faults,
        ),
        response_headers: custom(
            &service.custom_response_headers,
            "customResponseHeaders",
            &mut faults,
        ),
        timeout: match serverless {
            true => SERVERLESS_TIMEOUT,
            false => Duration::from_secs(service.timeout_seconds.into()),
        },
    };
    (plan, faults.into_problems())
}

/// Judges the backends; true if any of them is serverless.
fn check_backends(
    service: &BackendService,
    groups: &Collection<EndpointGroup>,
    faults: &mut Faults<'_>,
) -> bool {
    let kinds: Vec<Option<&Arc<EndpointGroup>>> =
        service.backends.iter().map(|backend| groups.get(&backend.group)).collect();
    let serverless = kinds.iter().flatten().count();
    for (i, backend) in service.backends.iter().enumerate() {
        let at = At::ROOT.item("backends", i);
        check_backend(service, backend, kinds[i].map(|group| &group.endpoints), &at, faults);
    }
    if serverless > 1 {
        let second = kinds.iter().enumerate().filter(|(_, kind)| kind.is_some()).nth(1);
        let i = second.map_or(0, |(i, _)| i);
        let at = At::ROOT.item("backends", i);
        let why =
            "A regional backend service can have at most one Serverless network endpoint group.";
        faults.invalid(&at.field("group"), link(&service.backends[i].group), why);
    }
    if serverless > 0 && serverless < service.backends.len() {
        let why =
            "Serverless network endpoint groups cannot be mixed with other kinds of backends.";
        faults.invalid(&At::ROOT.field("backends"), "", why);
    }
    serverless > 0
}

fn check_backend(
    service: &BackendService,
    backend: &Backend,
    endpoints: Option<&Endpoints>,
    at: &At<'_>,
    faults: &mut Faults<'_>,
) {
    let group = link(&backend.group);
    if backend.group.kind != Kind::NetworkEndpointGroup {
        faults.invalid(&at.field("group"), group, "The value is not a network endpoint group.");
        return;
    }
    if backend.group.location != service.name.location {
        let why = "The network endpoint group must be in the same region as the backend service.";
        faults.invalid(&at.field("group"), group, why);
        return;
    }
    let Some(endpoints) = endpoints else { return };
    if backend.group.project != service.name.project {
        let why = "Serverless network endpoint groups must be in the same project as the backend \
                   service.";
        faults.invalid(&at.field("group"), &group, why);
    }
    if !matches!(endpoints, Endpoints::CloudRun { .. }) {
        let why = "Only Cloud Run network endpoint groups are supported for a regional backend service \
                   with load balancing scheme INTERNAL_MANAGED.";
        faults.invalid(&at.field("group"), group, why);
    }
    if let Some(mode) =
        backend.balancing_mode.as_ref().filter(|mode| mode.as_str() != "UTILIZATION")
    {
        let why = "Balancing mode is not supported for Serverless network endpoint groups.";
        faults.invalid(&at.field("balancingMode"), mode, why);
    }
    if let Some(scaler) = backend.capacity_scaler.filter(|scaler| *scaler != 1.0) {
        let why = "Capacity scaler is not supported for Serverless network endpoint groups.";
        faults.invalid(&at.field("capacityScaler"), scaler, why);
    }
}

/// What a backend service may not say once its backend is serverless.
fn check_serverless(service: &BackendService, faults: &mut Faults<'_>) {
    let why = |what: &str| {
        format!(
            "{what} is not supported for a backend service with Serverless network endpoint groups."
        )
    };
    if service.load_balancing_scheme.as_str() != SCHEME {
        let message = "Invalid load balancing scheme for regional backend service with Serverless \
                       network endpoint group.";
        faults.refused(&At::ROOT.field("loadBalancingScheme"), message);
    }
    if service.timeout_seconds != TIMEOUT_SECONDS_DEFAULT {
        let at = At::ROOT.field("timeoutSec");
        faults.invalid(&at, service.timeout_seconds, why("Timeout sec"));
    }
    if let Some(port) = service.port_name.as_ref().filter(|port| port.as_str() != "http") {
        faults.invalid(&At::ROOT.field("portName"), port, why("Port name"));
    }
    if let Some(check) = service.health_checks.first() {
        faults.invalid(&At::ROOT.item("healthChecks", 0), link(check), why("Health check"));
    }
    for (field, given, what) in [
        ("outlierDetection", service.outlier_detection, "Outlier detection"),
        ("circuitBreakers", service.circuit_breakers, "Circuit breaking"),
        ("consistentHash", service.consistent_hash, "Consistent hashing"),
    ] {
        if given {
            faults.invalid(&At::ROOT.field(field), "", why(what));
        }
    }
    let locality = service.locality_policy.as_ref();
    if let Some(policy) = locality.filter(|policy| policy.as_str() != "ROUND_ROBIN") {
        let at = At::ROOT.field("localityLbPolicy");
        faults.invalid(&at, policy, why("Locality load balancing policy"));
    }
}

fn check_log(log: &LogConfig, faults: &mut Faults<'_>) {
    let at = At::ROOT.field("logConfig");
    if !(0.0..=1.0).contains(&log.sample_rate) {
        let why = "Sample rate must be between 0.0 and 1.0.";
        faults.invalid(&at.field("sampleRate"), log.sample_rate, why);
    }
    if !log.optional_fields.is_empty() && log.optional_mode.as_str() != "CUSTOM" {
        let why = "Optional fields can only be specified when optional mode is CUSTOM.";
        faults.invalid(&at.field("optionalFields"), log.optional_fields.join(","), why);
    }
}

/// Why a URL map may not name this backend service, if it may not.
pub(crate) fn unfit(service: &BackendService) -> Option<String> {
    if service.load_balancing_scheme.as_str() != SCHEME {
        return Some(format!(
            "The load balancing scheme of the backend service must be {SCHEME}, and is '{}'.",
            service.load_balancing_scheme
        ));
    }
    if !PROTOCOLS.contains(&service.protocol.as_str()) {
        return Some(format!(
            "The protocol of the backend service must be HTTP, HTTPS, HTTP2, H2C or GRPC, and is '{}'.",
            service.protocol
        ));
    }
    None
}
