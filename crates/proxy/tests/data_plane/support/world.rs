//! A declared world with one network, one address and as many services as a test names.

use model::address::{Address, AddressPurpose, AddressType};
use model::backend_service::{Backend, BackendService, LogConfig};
use model::certificate::Certificate;
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::forwarding_rule::ForwardingRule;
use model::network::Network;
use model::project::Project;
use model::run::{
    Access, Container, ContainerLimits, Ingress, Member, Outcome, Port, PortProtocol, Revision,
    RevisionChoice, RevisionScaling, Service, ServiceScaling, TrafficTarget,
};
use model::subnetwork::{Purpose, Role, Subnetwork};
use model::target_proxy::{TargetHttpProxy, TargetHttpsProxy};
use model::url_map::{Destination, HostRule, PathMatcher, UrlMap};
use model::{Inventory, Kind, Resource, ResourceName};
use plan::{Compiled, Plan, compile};
use std::sync::Arc;

const PROJECT: &str = "p";
const REGION: &str = "us-west1";

pub(crate) fn regional(kind: Kind, name: &str) -> ResourceName {
    ResourceName::regional(PROJECT, REGION, kind, name)
}

pub(crate) fn network() -> ResourceName {
    ResourceName::global(PROJECT, Kind::Network, "lb-network")
}

/// What is declared, and what it was compiled to so far.
pub(crate) struct World {
    pub(crate) inventory: Inventory,
    compiled: Compiled,
    number: u64,
    next_id: u64,
}

impl World {
    /// A network, a URL map `map` that sends everything to the service `app`, and the rule `web` on
    /// port 80 in front of it.
    pub(crate) fn new() -> World {
        let mut world = World {
            inventory: Inventory::default(),
            compiled: Compiled::default(),
            number: 0,
            next_id: 100,
        };
        world.insert(Resource::Project(Arc::new(Project {
            name: ResourceName::project(PROJECT),
            number: 4711,
            common_instance_metadata: Vec::new(),
        })));
        world.insert(Resource::Network(Arc::new(Network {
            name: network(),
            id: 1,
            auto_create_subnetworks: false,
            mtu_bytes: 1460,
            routing_mode: Default::default(),
        })));
        world.subnet("lb-subnet", "10.1.0.0/16", Purpose::Private, None);
        world.subnet("proxies", "10.129.0.0/23", Purpose::RegionalManagedProxy, Some(Role::Active));
        world.insert(Resource::Address(Arc::new(Address {
            name: regional(Kind::Address, "vip"),
            id: 2,
            address: Some([10, 1, 2, 2].into()),
            address_type: AddressType::Internal,
            purpose: AddressPurpose::SharedLoadBalancerVip,
            subnetwork: Some(regional(Kind::Subnetwork, "lb-subnet")),
            network: None,
        })));
        world.service("app", |_| {});
        world.backend("app", |_| {});
        world.url_map("map", "app", |_| {});
        world.http_proxy("proxy", "map", None);
        world.rule("web", 80, Kind::TargetHttpProxy, "proxy");
        world
    }

    pub(crate) fn insert(&mut self, resource: Resource) {
        self.inventory.insert(resource);
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn subnet(&mut self, name: &str, range: &str, purpose: Purpose, role: Option<Role>) {
        let id = self.id();
        self.insert(Resource::Subnetwork(Arc::new(Subnetwork {
            name: regional(Kind::Subnetwork, name),
            id,
            network: network(),
            range: range.parse().unwrap(),
            purpose,
            role,
            secondary_ranges: Vec::new(),
            private_google_access: false,
            log_config: None,
        })));
    }

    /// A public service with one ready revision.
    pub(crate) fn service(&mut self, name: &str, change: impl FnOnce(&mut Revision)) {
        let (id, revision_id) = (self.id(), self.id());
        self.insert(Resource::Service(Arc::new(Service {
            name: regional(Kind::Service, name),
            id,
            ingress: Ingress::All,
            default_url_disabled: false,
            access: Access { invokers: [Member::AllUsers].into(), ..Access::default() },
            traffic: vec![TrafficTarget {
                revision: RevisionChoice::Latest,
                percent: 100,
                tag: None,
            }],
            traffic_before: Vec::new(),
            scaling: ServiceScaling::default(),
        })));
        let mut revision = Revision {
            name: regional(Kind::Revision, &format!("{name}-00001-x")),
            id: revision_id,
            service: regional(Kind::Service, name),
            generation: 1,
            containers: vec![container()],
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
        };
        change(&mut revision);
        self.insert(Resource::Revision(Arc::new(revision)));
    }

    /// A service whose port is named `h2c`.
    pub(crate) fn h2c_service(&mut self, name: &str) {
        self.service(name, |revision| {
            revision.containers[0].port = Some(Port { number: 8080, protocol: PortProtocol::H2c });
        });
    }

    /// A backend service in front of the service of the same name.
    pub(crate) fn backend(&mut self, name: &str, change: impl FnOnce(&mut BackendService)) {
        self.backend_of(name, Some(name), None, change);
    }

    /// A backend service in front of an endpoint group with a service, a mask, or both.
    pub(crate) fn backend_of(
        &mut self,
        name: &str,
        service: Option<&str>,
        mask: Option<&str>,
        change: impl FnOnce(&mut BackendService),
    ) {
        let (id, group_id) = (self.id(), self.id());
        self.insert(Resource::NetworkEndpointGroup(Arc::new(EndpointGroup {
            name: regional(Kind::NetworkEndpointGroup, name),
            id: group_id,
            endpoints: Endpoints::CloudRun {
                service: service.map(Into::into),
                tag: None,
                url_mask: mask.map(str::to_owned),
            },
        })));
        let mut backend = BackendService {
            name: regional(Kind::BackendService, name),
            id,
            load_balancing_scheme: "INTERNAL_MANAGED".into(),
            protocol: "HTTP".into(),
            port_name: None,
            timeout_seconds: 30,
            backends: vec![Backend {
                group: regional(Kind::NetworkEndpointGroup, name),
                balancing_mode: None,
                capacity_scaler: None,
            }],
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
        };
        change(&mut backend);
        self.insert(Resource::BackendService(Arc::new(backend)));
    }

    /// A URL map whose default is a backend service.
    pub(crate) fn url_map(&mut self, name: &str, backend: &str, change: impl FnOnce(&mut UrlMap)) {
        let id = self.id();
        let mut map = UrlMap {
            name: regional(Kind::UrlMap, name),
            id,
            host_rules: Vec::new(),
            path_matchers: Vec::new(),
            default: to(backend),
            header_action: Default::default(),
            tests: Vec::new(),
            document_bytes: 0,
        };
        change(&mut map);
        self.insert(Resource::UrlMap(Arc::new(map)));
    }

    pub(crate) fn http_proxy(&mut self, name: &str, map: &str, keepalive_seconds: Option<u32>) {
        let id = self.id();
        self.insert(Resource::TargetHttpProxy(Arc::new(TargetHttpProxy {
            name: regional(Kind::TargetHttpProxy, name),
            id,
            url_map: regional(Kind::UrlMap, map),
            keepalive_seconds,
        })));
    }

    pub(crate) fn https_proxy(&mut self, name: &str, map: &str, certificates: &[&str]) {
        let id = self.id();
        self.insert(Resource::TargetHttpsProxy(Arc::new(TargetHttpsProxy {
            name: regional(Kind::TargetHttpsProxy, name),
            id,
            url_map: regional(Kind::UrlMap, map),
            keepalive_seconds: None,
            certificates: certificates
                .iter()
                .map(|certificate| regional(Kind::SslCertificate, certificate))
                .collect(),
            ssl_policy: None,
        })));
    }

    /// A self-signed certificate for some names.
    pub(crate) fn certificate(&mut self, name: &str, dns_names: &[&str]) -> Vec<u8> {
        let names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        let id = self.id();
        self.insert(Resource::SslCertificate(Arc::new(Certificate {
            name: regional(Kind::SslCertificate, name),
            id,
            chain_pem: made.cert.pem(),
            private_key_pem: made.signing_key.serialize_pem(),
            dns_names: names,
            expires_at_seconds: i64::MAX,
        })));
        made.cert.der().to_vec()
    }

    pub(crate) fn rule(&mut self, name: &str, port: u16, kind: Kind, target: &str) {
        let id = self.id();
        self.insert(Resource::ForwardingRule(Arc::new(ForwardingRule {
            name: regional(Kind::ForwardingRule, name),
            id,
            load_balancing_scheme: "INTERNAL_MANAGED".into(),
            network: network(),
            subnetwork: regional(Kind::Subnetwork, "lb-subnet"),
            address: [10, 1, 2, 2].into(),
            reserved_address: Some(regional(Kind::Address, "vip")),
            port,
            target: regional(kind, target),
            allow_global_access: false,
            service_label: None,
        })));
    }

    pub(crate) fn remove_rule(&mut self, name: &str) {
        self.inventory.remove(&regional(Kind::ForwardingRule, name));
    }

    /// Compiles what is declared now into the next plan.
    pub(crate) fn plan(&mut self) -> Arc<Plan> {
        self.number += 1;
        self.compiled = compile(&self.inventory, self.number, &self.compiled);
        let problems: Vec<String> =
            self.compiled.problems.iter().map(|p| format!("{}: {p}", p.resource)).collect();
        assert!(problems.is_empty(), "{problems:#?}");
        self.compiled.plan.clone()
    }
}

fn container() -> Container {
    Container {
        name: "".into(),
        image: "registry.example/app".to_owned(),
        command: Vec::new(),
        arguments: Vec::new(),
        environment: Vec::new(),
        working_directory: None,
        port: None,
        limits: ContainerLimits::default(),
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        mounts: Vec::new(),
        depends_on: Vec::new(),
    }
}

/// The destination that is a backend service.
pub(crate) fn to(backend: &str) -> Destination {
    Destination { service: Some(regional(Kind::BackendService, backend)), ..Destination::default() }
}

/// Sends every request of a host to its own path matcher with these paths.
pub(crate) fn host(map: &mut UrlMap, host: &str, matcher: PathMatcher) {
    map.host_rules
        .push(HostRule { hosts: vec![host.to_owned()], path_matcher: matcher.name.clone() });
    map.path_matchers.push(matcher);
}
