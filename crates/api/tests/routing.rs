//! Golden worlds of routing: URL maps with requests, and what becomes of each.
//!
//! A file of `routing/` says in its first line what it shows. Then come a URL map as it would be exported,
//! the world around it, and questions, parted by `---`. Every backend service the map names exists and leads
//! to a Cloud Run service of its own name unless the world says otherwise. Lines that begin with `<` are
//! answers; `UPDATE_GOLDEN=1` writes them anew.
//!
//! World: `backend NAME service S | tag T | mask M`, `backend NAME empty`, `backend NAME FIELD VALUE` for a
//! field of the backend service, `service NAME tag T`, `service NAME down`, `service NAME ingress none`,
//! `service NAME private`.
//! Questions: `METHOD URL | header: value | dice N`, `explain METHOD URL …`, `problems`, `tests`, `lint`.

use model::backend_service::{Backend, BackendService, LogConfig};
use model::endpoint_group::{EndpointGroup, Endpoints};
use model::run::{
    Access, Container, ContainerLimits, Ingress, Member, Outcome, Revision, RevisionChoice,
    RevisionScaling, Service, ServiceScaling, TrafficTarget,
};
use model::url_map::UrlMap;
use model::{Inventory, Kind, Problem, Resource, ResourceName};
use plan::decision::{Decision, HeaderEdit, RequestHead, Scheme, TemplatePart};
use plan::fleet::{self, Caller, FleetPlan};
use plan::routing::{self, Routing, UrlMapPlan};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PROJECT: &str = "local";
const REGION: &str = "local";

fn name(kind: Kind, name: &str) -> ResourceName {
    ResourceName::regional(PROJECT, REGION, kind, name)
}

/// A backend service of the world, with its endpoint group.
#[derive(Clone, Debug, Default)]
struct BackendLines {
    service: Option<String>,
    tag: Option<String>,
    mask: Option<String>,
    empty: bool,
    fields: Vec<(String, String)>,
}

#[derive(Clone, Debug, Default)]
struct ServiceLines {
    tags: Vec<String>,
    down: bool,
    private: bool,
    ingress: Ingress,
}

struct World {
    map: Arc<UrlMap>,
    read_problems: Vec<Problem>,
    inventory: Inventory,
    fleet: FleetPlan,
    plan: Arc<UrlMapPlan>,
    problems: Vec<Problem>,
}

impl World {
    fn build(yaml: &str, world: &str) -> World {
        let (map, read_problems) =
            api::compute::url_maps::parse_document(yaml).unwrap_or_else(|error| panic!("{error}"));
        let (backends, services) = declared(&map, world);
        let mut inventory = Inventory::default();
        for (backend, lines) in &backends {
            insert_backend(&mut inventory, backend, lines);
        }
        for (service, lines) in &services {
            insert_service(&mut inventory, service, lines);
        }
        let map = Arc::new(map);
        inventory.insert(Resource::UrlMap(Arc::clone(&map)));
        let (fleet, _) = fleet::compile(&inventory, &FleetPlan::default());
        let (routing, problems) = routing::compile(&inventory, &Routing::default());
        let plan = Arc::clone(routing.url_map(&map.name).expect("the map is compiled"));
        World { map, read_problems, inventory, fleet, plan, problems }
    }

    fn answer(&self, question: &str) -> String {
        let mut words = question.split(" | ");
        let (command, rest) = (words.next().expect("a question"), words);
        match command.split_whitespace().collect::<Vec<_>>()[..] {
            ["problems"] => lines(self.read_problems.iter().chain(&self.problems)),
            ["lint"] => lines(self.plan.lint()),
            ["tests"] => {
                let (problems, failures) = routing::validate(&self.map, &self.inventory);
                lines(&problems) + &lines(&failures)
            }
            ["explain", method, url] => {
                let request = Request::read(method, url, rest);
                let head = request.head();
                let text = self.plan.explain(&self.fleet, &head, Caller::Anonymous, request.dice);
                text.to_string()
            }
            [method, url] => {
                let request = Request::read(method, url, rest);
                let head = request.head();
                describe(&self.plan.decide(&self.fleet, &head, request.dice))
            }
            _ => panic!("not a question: {question}"),
        }
    }
}

fn lines<T: ToString>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().fold(String::new(), |text, line| text + &line.to_string() + "\n")
}

fn declared(
    map: &UrlMap,
    world: &str,
) -> (BTreeMap<String, BackendLines>, BTreeMap<String, ServiceLines>) {
    let mut backends: BTreeMap<String, BackendLines> = BTreeMap::new();
    let mut services: BTreeMap<String, ServiceLines> = BTreeMap::new();
    for line in world.lines().filter(|line| !line.trim().is_empty()) {
        let (subject, rest) = line.split_once(' ').expect("a subject");
        let (own, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let settings = rest.split(" | ").filter(|setting| !setting.is_empty());
        match subject {
            "backend" => {
                let backend = backends.entry(own.to_string()).or_default();
                for setting in settings {
                    let (key, value) = setting.split_once(' ').unwrap_or((setting, ""));
                    let value = value.to_string();
                    match key {
                        "service" => backend.service = Some(value),
                        "tag" => backend.tag = Some(value),
                        "mask" => backend.mask = Some(value),
                        "empty" => backend.empty = true,
                        field => backend.fields.push((field.to_string(), value)),
                    }
                }
            }
            "service" => {
                let service = services.entry(own.to_string()).or_default();
                for setting in settings {
                    match setting.split_whitespace().collect::<Vec<_>>()[..] {
                        ["tag", tag] => service.tags.push(tag.to_string()),
                        ["down"] => service.down = true,
                        ["private"] => service.private = true,
                        ["ingress", "none"] => service.ingress = Ingress::None,
                        _ => panic!("not a setting: {setting}"),
                    }
                }
            }
            _ => panic!("not a part of the world: {line}"),
        }
    }
    for (_, service) in map.references() {
        let own = service.name.to_string();
        if !backends.contains_key(&own) && service.location == map.name.location {
            let service = Some(own.clone());
            backends.insert(own.clone(), BackendLines { service, ..BackendLines::default() });
            services.entry(own).or_default();
        }
    }
    (backends, services)
}

fn insert_backend(inventory: &mut Inventory, own: &str, lines: &BackendLines) {
    let group = name(Kind::NetworkEndpointGroup, &format!("{own}-neg"));
    let endpoints = Endpoints::CloudRun {
        service: lines.service.as_deref().map(Into::into),
        tag: lines.tag.as_deref().map(Into::into),
        url_mask: lines.mask.clone(),
    };
    let backend = Backend { group: group.clone(), balancing_mode: None, capacity_scaler: None };
    let mut service = BackendService {
        name: name(Kind::BackendService, own),
        id: 1,
        load_balancing_scheme: "INTERNAL_MANAGED".into(),
        protocol: "HTTP".into(),
        port_name: None,
        timeout_seconds: 30,
        backends: if lines.empty { Vec::new() } else { vec![backend] },
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
    for (field, value) in &lines.fields {
        set(&mut service, field, value);
    }
    for backend in &service.backends {
        let own = backend.group.name.as_str();
        let endpoints = match own {
            "functions-neg" => Endpoints::CloudFunction,
            "app-engine-neg" => Endpoints::AppEngine,
            _ => endpoints.clone(),
        };
        let group = EndpointGroup { name: backend.group.clone(), id: 1, endpoints };
        inventory.insert(Resource::NetworkEndpointGroup(Arc::new(group)));
    }
    inventory.insert(Resource::BackendService(Arc::new(service)));
}

fn set(service: &mut BackendService, field: &str, value: &str) {
    match field {
        "scheme" => service.load_balancing_scheme = value.into(),
        "protocol" => service.protocol = value.into(),
        "portName" => service.port_name = Some(value.into()),
        "timeoutSec" => service.timeout_seconds = value.parse().expect("seconds"),
        "requestHeader" => service.custom_request_headers.push(value.to_string()),
        "responseHeader" => service.custom_response_headers.push(value.to_string()),
        "balancingMode" => {
            service.backends.iter_mut().for_each(|b| b.balancing_mode = Some(value.into()));
        }
        "capacityScaler" => {
            let scaler = value.parse().expect("a number");
            service.backends.iter_mut().for_each(|b| b.capacity_scaler = Some(scaler));
        }
        "healthCheck" => service.health_checks.push(name(Kind::HealthCheck, value)),
        "outlierDetection" => service.outlier_detection = true,
        "circuitBreakers" => service.circuit_breakers = true,
        "consistentHash" => service.consistent_hash = true,
        "localityLbPolicy" => service.locality_policy = Some(value.into()),
        "sampleRate" => service.log.sample_rate = value.parse().expect("a rate"),
        "optionalFields" => service.log.optional_fields.push(value.to_string()),
        "also" => {
            let group = match value.split_once('/') {
                Some((region, own)) => {
                    ResourceName::regional(PROJECT, region, Kind::NetworkEndpointGroup, own)
                }
                None => name(Kind::NetworkEndpointGroup, value),
            };
            service.backends.push(Backend { group, balancing_mode: None, capacity_scaler: None });
        }
        _ => panic!("not a field: {field}"),
    }
}

fn insert_service(inventory: &mut Inventory, own: &str, lines: &ServiceLines) {
    let revision = format!("{own}-1");
    let mut traffic =
        vec![TrafficTarget { revision: RevisionChoice::Latest, percent: 100, tag: None }];
    let tagged = |tag: &String| TrafficTarget {
        revision: RevisionChoice::Named(format!("{own}-{tag}").into()),
        percent: 0,
        tag: Some(tag.as_str().into()),
    };
    traffic.extend(lines.tags.iter().map(tagged));
    let mut invokers = std::collections::BTreeSet::new();
    if !lines.private {
        invokers.insert(Member::AllUsers);
    }
    inventory.insert(Resource::Service(Arc::new(Service {
        name: name(Kind::Service, own),
        id: 1,
        ingress: lines.ingress,
        default_url_disabled: false,
        access: Access { invokers, ..Access::default() },
        traffic,
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    })));
    let tags = lines.tags.iter().map(|tag| (format!("{own}-{tag}"), 1));
    for (revision, generation) in std::iter::once((revision, 2)).chain(tags) {
        let ready = !lines.down;
        insert_revision(inventory, own, &revision, generation, ready);
    }
}

fn insert_revision(
    inventory: &mut Inventory,
    service: &str,
    own: &str,
    generation: u64,
    ready: bool,
) {
    let container = Container {
        name: "".into(),
        image: "image".into(),
        command: Vec::new(),
        arguments: Vec::new(),
        environment: Vec::new(),
        working_directory: None,
        port: Some(model::run::Port::default()),
        limits: ContainerLimits::default(),
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        mounts: Vec::new(),
        depends_on: Vec::new(),
    };
    let outcome =
        Outcome { ready, reason: String::new(), message: String::new(), image_digests: Vec::new() };
    inventory.insert(Resource::Revision(Arc::new(Revision {
        name: name(Kind::Revision, own),
        id: generation,
        service: name(Kind::Service, service),
        generation,
        containers: vec![container],
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
        outcome: Some(outcome),
    })));
}

struct Request {
    method: String,
    scheme: Scheme,
    authority: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
    dice: u64,
}

impl Request {
    fn read<'q>(method: &str, url: &str, settings: impl Iterator<Item = &'q str>) -> Request {
        let (scheme, rest) = url.split_once("://").expect("a URL with a scheme");
        let slash = rest.find('/').unwrap_or(rest.len());
        let (authority, path_and_query) = rest.split_at(slash);
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query.to_string())),
            None => (path_and_query, None),
        };
        let mut request = Request {
            method: method.to_string(),
            scheme: if scheme == "https" { Scheme::Https } else { Scheme::Http },
            authority: authority.to_string(),
            path: if path.is_empty() { "/".to_string() } else { path.to_string() },
            query,
            headers: Vec::new(),
            dice: routing::ORDINARY_DICE,
        };
        for setting in settings {
            match setting.strip_prefix("dice ") {
                Some(dice) => request.dice = dice.parse().expect("a number"),
                None => {
                    let (name, value) = setting.split_once(':').expect("a header");
                    request.headers.push((name.to_string(), value.trim_start().to_string()));
                }
            }
        }
        request
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            scheme: self.scheme,
            authority: &self.authority,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
            client: [10, 1, 2, 3].into(),
        }
    }
}

/// The decision in a few lines: who answers and by which rule, then everything out of the ordinary.
fn describe(decision: &Decision<'_>) -> String {
    let (matched, actions) = match decision {
        Decision::Forward(forward) => (&forward.matched, &forward.header_actions),
        Decision::Respond(respond) => (&respond.matched, &respond.header_actions),
    };
    let matcher = matched.path_matcher.map(|matcher| format!(" of {matcher}")).unwrap_or_default();
    let by = format!("by {}{matcher}", matched.rule);
    let mut text = String::new();
    let mut line = |line: String| {
        let _ = writeln!(text, "{line}");
    };
    match decision {
        Decision::Forward(forward) => {
            let service = &forward.backend_service.name.name;
            line(format!("{service} -> {} {by}", forward.revision.name.name));
            if let Some(host) = forward.authority {
                line(format!("host {host}"));
            }
            if let Some(path) = &forward.path_and_query {
                line(format!("path {path}"));
            }
            for action in actions {
                line_edits("request", &action.request, &mut line);
                line_edits("response", &action.response, &mut line);
            }
            line_edits("request", &forward.backend_service.request_headers, &mut line);
            line_edits("response", &forward.backend_service.response_headers, &mut line);
            if forward.timeout != Some(std::time::Duration::from_secs(3600)) {
                line(format!("timeout {:?}", forward.timeout));
            }
            if let Some(retry) = forward.retry {
                let words: Vec<&str> = retry.conditions.iter().map(|c| c.word()).collect();
                let each = retry.per_try_timeout;
                line(format!("retry {} on {} each {each:?}", retry.retries, words.join(" ")));
            }
            if let Some(delay) = forward.delay {
                line(format!("delay {delay:?}"));
            }
            if let Some(cors) = forward.cors {
                line(format!("CORS for {}", cors.allow_origins.join(" ")));
            }
        }
        Decision::Respond(respond) => {
            line(format!("{} {:?} {by}", respond.status, respond.why));
            for (name, value) in &respond.headers {
                line(format!("{name}: {value}"));
            }
            if !respond.body.is_empty() {
                line(format!("body {}", respond.body.trim_end()));
            }
            for action in actions {
                line_edits("response", &action.response, &mut line);
            }
            if let Some(delay) = respond.delay {
                line(format!("delay {delay:?}"));
            }
        }
    }
    text
}

fn line_edits(side: &str, edit: &HeaderEdit, line: &mut impl FnMut(String)) {
    for name in &edit.remove {
        line(format!("{side} - {name}"));
    }
    for addition in &edit.add {
        let parts = addition.value.0.iter().map(|part| match part {
            TemplatePart::Literal(text) => text.clone(),
            TemplatePart::Variable(name) => format!("{{{name}}}"),
        });
        let sign = if addition.replace { '=' } else { '+' };
        line(format!("{side} {sign} {}: {}", addition.name, parts.collect::<String>()));
    }
}

/// The file with its answers written anew.
fn answered(text: &str) -> String {
    let parts: Vec<&str> = text.split("\n---\n").collect();
    let (map, world, questions) = match parts[..] {
        [map, questions] => (map, "", questions),
        [map, world, questions] => (map, world, questions),
        _ => panic!("a world has two or three parts"),
    };
    let world = World::build(map, world);
    let mut out = parts[..parts.len() - 1].join("\n---\n") + "\n---\n";
    for line in questions.lines().filter(|line| !line.starts_with('<')) {
        let _ = writeln!(out, "{line}");
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        for line in world.answer(line).lines() {
            let _ = writeln!(out, "< {line}");
        }
    }
    out
}

fn world_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/routing");
    let entries = std::fs::read_dir(folder).expect("the folder of worlds");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "world"));
    files.sort();
    files
}

#[test]
fn every_world_answers_as_it_is_written() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let files = world_files();
    for file in &files {
        let text = std::fs::read_to_string(file).expect("a world");
        let title = text.lines().next().unwrap_or_default();
        assert!(title.starts_with("# ") && title.ends_with('.'), "{} shows what?", file.display());
        let found = std::panic::catch_unwind(|| answered(&text))
            .unwrap_or_else(|_| panic!("while reading {}", file.display()));
        if update {
            std::fs::write(file, &found).expect("to write the world");
        } else if found != text {
            wrong.push(format!("{}:\n{found}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}\nUPDATE_GOLDEN=1 writes them anew", wrong.join("\n"));
    assert!(files.len() >= 150, "only {} worlds", files.len());
}
