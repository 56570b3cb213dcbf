//! The world around a map: backend services with their groups and one Cloud Run service behind them all.

use crate::generate::{self, Random};
use model::backend_service::{Backend, BackendService, LogConfig};
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::run::{
    Access, Ingress, Outcome, Revision, RevisionChoice, RevisionScaling, Service, ServiceScaling,
    TrafficTarget,
};
use model::{Inventory, Kind, Resource, ResourceName};
use std::sync::Arc;

/// How many backend services there are.
pub(crate) const SERVICES: usize = 6;

pub(crate) fn name(kind: Kind, own: &str) -> ResourceName {
    ResourceName::regional("p", "us-west1", kind, own)
}

/// Every backend service, each with a group that leads to the one Cloud Run service.
pub(crate) fn of_services() -> Inventory {
    let mut inventory = Inventory::default();
    inventory.insert(Resource::Service(Arc::new(Service {
        name: name(Kind::Service, "run"),
        id: 1,
        ingress: Ingress::All,
        default_url_disabled: false,
        access: Access::default(),
        traffic: vec![TrafficTarget { revision: RevisionChoice::Latest, percent: 100, tag: None }],
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    })));
    inventory.insert(Resource::Revision(Arc::new(revision())));
    for number in 0..SERVICES {
        inventory.insert(group(number, Some("run"), None));
        inventory.insert(backend_service(number, true, "HTTP"));
    }
    inventory
}

fn revision() -> Revision {
    Revision {
        name: name(Kind::Revision, "run-1"),
        id: 1,
        service: name(Kind::Service, "run"),
        generation: 1,
        containers: Vec::new(),
        volumes: Vec::new(),
        concurrency: 80,
        timeout_seconds: 300,
        scaling: RevisionScaling::default(),
        cpu_idle: true,
        startup_cpu_boost: false,
        session_affinity: false,
        service_account: None,
        execution_environment: None,
        vpc_access: None,
        outcome: Some(Outcome {
            ready: true,
            reason: String::new(),
            message: String::new(),
            image_digests: Vec::new(),
        }),
    }
}

fn group(number: usize, service: Option<&str>, mask: Option<&str>) -> Resource {
    Resource::NetworkEndpointGroup(Arc::new(EndpointGroup {
        name: name(Kind::NetworkEndpointGroup, &format!("g{number}")),
        id: 1,
        endpoints: Endpoints::CloudRun {
            service: service.map(Into::into),
            tag: None,
            url_mask: mask.map(Into::into),
        },
    }))
}

fn backend_service(number: usize, with_group: bool, protocol: &str) -> Resource {
    let group = name(Kind::NetworkEndpointGroup, &format!("g{number}"));
    let backend = Backend { group, balancing_mode: None, capacity_scaler: None };
    Resource::BackendService(Arc::new(BackendService {
        name: name(Kind::BackendService, &format!("s{number}")),
        id: 1,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        protocol: protocol.into(),
        port_name: None,
        timeout_seconds: 30,
        backends: if with_group { vec![backend] } else { Vec::new() },
        health_checks: Vec::new(),
        session_affinity: "NONE".into(),
        custom_request_headers: Vec::new(),
        custom_response_headers: Vec::new(),
        log: LogConfig::default(),
        draining_timeout_seconds: 0,
        outlier_detection: false,
        circuit_breakers: false,
        consistent_hash: false,
        locality_policy: None,
    }))
}

/// One change to a world of a few maps, services and groups, sound or not.
pub(crate) fn change(inventory: &mut Inventory, random: &mut Random) {
    let number = random.below(SERVICES);
    match random.below(7) {
        0 => {
            let mask = random.pick(&["/<service>", "/static"]).to_string();
            inventory.insert(group(number, None, Some(&mask)));
        }
        1 => inventory.insert(group(number, Some("run"), None)),
        2 => {
            inventory.remove(&name(Kind::NetworkEndpointGroup, &format!("g{number}")));
        }
        3 => {
            let protocol = random.pick(&["HTTP", "TCP"]).to_string();
            inventory.insert(backend_service(number, random.one_in(2), &protocol));
        }
        4 => {
            inventory.remove(&name(Kind::BackendService, &format!("s{number}")));
        }
        5 => {
            let mut map = generate::url_map(random);
            map.name = name(Kind::UrlMap, &format!("m{}", random.below(4)));
            if random.one_in(3) {
                map.default = model::url_map::Destination::default();
            }
            inventory.insert(Resource::UrlMap(Arc::new(map)));
        }
        _ => {
            inventory.remove(&name(Kind::UrlMap, &format!("m{}", random.below(4))));
        }
    }
}
