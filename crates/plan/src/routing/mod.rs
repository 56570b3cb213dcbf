//! URL maps, backend services and URL masks, compiled.
//!
//! [`compile`] keeps everything that did not change since the last time and what depends on nothing that
//! did: a new endpoint group recompiles its backend services, whose URL maps are linked again to the
//! tables they already have. [`UrlMapPlan::decide`] then answers for one request.
//!
//! Invariant: two routings compiled from the same resources by different ways are equal.

mod action;
mod backend_service;
mod conditions;
mod decide;
mod destination;
mod dice;
mod expectations;
mod explain;
mod fault;
mod header_action;
mod hosts;
mod lint;
mod mask;
mod paths;
mod pattern;
mod predicate;
mod prefix_table;
mod rewrite;
mod routes;
mod rules;
mod run_app;
mod template;

pub use backend_service::{
    BackendServicePlan, EndpointGroupPlan, PROTOCOLS, SCHEME, SERVERLESS_TIMEOUT,
};
pub use dice::ORDINARY_DICE;
pub use expectations::{TestFailure, evaluate};
pub use explain::{Answer, Considered, EndpointGroupExplanation, Explanation, Share};
pub use header_action::VARIABLES;
pub use lint::{Finding, lint, lint_within};
pub use mask::{Extracted, MASK_BYTES_MAX, Placeholder, UrlMask};
pub use pattern::{PATTERN_CHARS_MAX, Pattern};

use fault::{At, Faults, link};
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use model::backend_service::BackendService;
use model::endpoint_group::EndpointGroup;
use model::inventory::Collection;
use model::url_map::UrlMap;
use model::{Inventory, Kind, Problem, ResourceName};
use rules::Rules;
use std::sync::Arc;

/// Every compiled URL map and backend service, kept from one compilation to the next.
#[derive(Clone, Debug, Default)]
pub struct Routing {
    url_maps: OrdMap<ResourceName, Arc<UrlMapPlan>>,
    backend_services: OrdMap<ResourceName, Arc<BackendServicePlan>>,
    endpoint_groups: OrdMap<ResourceName, Arc<EndpointGroupPlan>>,
    /// Who names a group or backend service.
    users: OrdMap<ResourceName, OrdSet<ResourceName>>,
    /// What is wrong with each resource that has something wrong with it.
    problems: OrdMap<ResourceName, Arc<[Problem]>>,
    /// The URL maps that are other than in the routing before.
    renewed: OrdSet<ResourceName>,
    source: Source,
}

/// What a routing was compiled from.
#[derive(Clone, Debug, Default)]
struct Source {
    url_maps: Collection<UrlMap>,
    backend_services: Collection<BackendService>,
    endpoint_groups: Collection<EndpointGroup>,
}

/// One compiled URL map.
#[derive(Debug)]
pub struct UrlMapPlan {
    /// `projects/P/regions/R/urlMaps/M`.
    pub name: ResourceName,
    rules: Arc<Rules>,
    /// What is wrong with the map whatever the services it names.
    own_problems: Arc<[Problem]>,
    /// The backend services by the numbers that actions know them by.
    backends: Vec<Option<Arc<BackendServicePlan>>>,
    declared: Arc<UrlMap>,
}

impl UrlMapPlan {
    /// Whether any redirect of the map sets `httpsRedirect`, which a target HTTPS proxy refuses.
    pub fn redirects_to_https(&self) -> bool {
        self.rules.redirects_to_https
    }

    /// What is wrong with the map whatever the backend services it names.
    pub fn problems(&self) -> &[Problem] {
        &self.own_problems
    }

    /// The map this was compiled from.
    pub fn declared(&self) -> &Arc<UrlMap> {
        &self.declared
    }

    /// The memory its tables take, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        self.rules.bytes() + self.backends.capacity() * size_of::<Arc<BackendServicePlan>>()
    }
}

/// Compiles every backend service and URL map; what did not change since `previous` is shared.
pub fn compile(inventory: &Inventory, previous: &Routing) -> (Routing, Vec<Problem>) {
    let source = Source {
        url_maps: inventory.url_maps.clone(),
        backend_services: inventory.backend_services.clone(),
        endpoint_groups: inventory.endpoint_groups.clone(),
    };
    let mut routing = previous.clone();
    let before = std::mem::replace(&mut routing.source, source);

    let groups = changed(&before.endpoint_groups, &routing.source.endpoint_groups);
    for name in &groups {
        routing.put_group(name);
    }
    let mut services = changed(&before.backend_services, &routing.source.backend_services);
    for name in &services {
        routing.relink(name, before.backend_services.get(name).map(|s| groups_of(s)), false);
        let now = routing.source.backend_services.get(name).map(|s| groups_of(s));
        routing.relink(name, now, true);
    }
    services.extend(routing.users_of(&groups));
    for name in &services {
        routing.put_service(name);
    }
    let mut maps = changed(&before.url_maps, &routing.source.url_maps);
    for name in &maps {
        routing.relink(name, before.url_maps.get(name).map(|map| services_of(map)), false);
        let now = routing.source.url_maps.get(name).map(|map| services_of(map));
        routing.relink(name, now, true);
        routing.compile_map(name);
    }
    maps.extend(routing.users_of(&services));
    for name in &maps {
        routing.link_map(name);
    }
    routing.renewed = maps;
    let problems = routing.problems.values().flat_map(|found| found.iter().cloned()).collect();
    (routing, problems)
}

/// Compiles one map as it would be in a world: what is wrong with it, and the tests that fail.
pub fn validate(map: &Arc<UrlMap>, inventory: &Inventory) -> (Vec<Problem>, Vec<TestFailure>) {
    let mut only = Inventory {
        backend_services: inventory.backend_services.clone(),
        endpoint_groups: inventory.endpoint_groups.clone(),
        ..Inventory::default()
    };
    only.url_maps.insert(map.name.clone(), Arc::clone(map));
    let (routing, _) = compile(&only, &Routing::default());
    let found = routing.problems.get(&map.name).map(|found| found.to_vec()).unwrap_or_default();
    let dangling = map.references().into_iter().filter(|(_, target)| !inventory.contains(target));
    let dangling = dangling.map(|(field, target)| Problem::dangling(&map.name, field, &target));
    // Failed tests are reported by themselves.
    let found = found.into_iter().filter(|problem| problem.field != expectations::FIELD);
    (dangling.chain(found).collect(), evaluate(map))
}

/// What a map counts for against its quota: one unit for each host, path and condition.
pub fn quota_units(map: &UrlMap) -> usize {
    let hosts = map.host_rules.iter().map(|rule| rule.hosts.len());
    let rules = map.path_matchers.iter().map(|matcher| {
        let paths = matcher.path_rules.iter().map(|rule| rule.paths.len());
        let matches = matcher.route_rules.iter().flat_map(|rule| &rule.match_rules);
        let conditions = matches.map(|m| 1 + m.headers.len() + m.query_parameters.len());
        paths.chain(conditions).sum::<usize>()
    });
    hosts.chain(rules).sum()
}

fn changed<T: PartialEq>(before: &Collection<T>, after: &Collection<T>) -> OrdSet<ResourceName> {
    let name = |item: DiffItem<'_, '_, ResourceName, Arc<T>>| match item {
        DiffItem::Add(name, _) | DiffItem::Remove(name, _) => name.clone(),
        DiffItem::Update { new: (name, _), .. } => name.clone(),
    };
    before.diff(after).map(name).collect()
}

fn groups_of(service: &BackendService) -> Vec<ResourceName> {
    service.backends.iter().map(|backend| backend.group.clone()).collect()
}

/// One map by itself, with no world around it: its backend services are names and no more.
pub fn offline(map: Arc<UrlMap>) -> UrlMapPlan {
    let (rules, problems) = Rules::compile(&map);
    UrlMapPlan {
        name: map.name.clone(),
        rules: Arc::new(rules),
        own_problems: problems.into(),
        backends: Vec::new(),
        declared: map,
    }
}

fn services_of(map: &UrlMap) -> Vec<ResourceName> {
    map.backend_services().into_iter().cloned().collect()
}

impl Routing {
    /// The compiled URL map of that name, if it exists.
    pub fn url_map(&self, name: &ResourceName) -> Option<&Arc<UrlMapPlan>> {
        self.url_maps.get(name)
    }

    /// The compiled backend service of that name, if it exists.
    pub fn backend_service(&self, name: &ResourceName) -> Option<&Arc<BackendServicePlan>> {
        self.backend_services.get(name)
    }

    /// The URL maps that are other than in the routing this one was compiled after.
    pub(crate) fn renewed(&self) -> impl Iterator<Item = &ResourceName> {
        self.renewed.iter()
    }

    /// Every compiled URL map.
    pub fn url_maps(&self) -> impl Iterator<Item = &Arc<UrlMapPlan>> {
        self.url_maps.values()
    }

    fn users_of(&self, targets: &OrdSet<ResourceName>) -> OrdSet<ResourceName> {
        targets.iter().filter_map(|target| self.users.get(target)).flatten().cloned().collect()
    }

    /// Remembers or forgets that `user` names `targets`.
    fn relink(&mut self, user: &ResourceName, targets: Option<Vec<ResourceName>>, uses: bool) {
        for target in targets.into_iter().flatten() {
            if uses {
                self.users.entry(target).or_default().insert(user.clone());
            } else if let Some(users) = self.users.get_mut(&target) {
                users.remove(user);
                if users.is_empty() {
                    self.users.remove(&target);
                }
            }
        }
    }

    fn note(&mut self, name: &ResourceName, found: Vec<Problem>) {
        match found.is_empty() {
            true => self.problems.remove(name),
            false => self.problems.insert(name.clone(), found.into()),
        };
    }

    fn put_group(&mut self, name: &ResourceName) {
        let compiled =
            self.source.endpoint_groups.get(name).map(|g| backend_service::compile_group(g));
        let (plan, found) = compiled.unwrap_or_default();
        self.note(name, found);
        match plan {
            Some(plan) => self.endpoint_groups.insert(name.clone(), Arc::new(plan)),
            None => self.endpoint_groups.remove(name),
        };
    }

    fn put_service(&mut self, name: &ResourceName) {
        let Some(service) = self.source.backend_services.get(name) else {
            self.note(name, Vec::new());
            self.backend_services.remove(name);
            return;
        };
        let group = |name: &ResourceName| self.endpoint_groups.get(name).cloned();
        let (plan, found) = backend_service::compile(service, &self.source.endpoint_groups, group);
        self.note(name, found);
        self.backend_services.insert(name.clone(), Arc::new(plan));
    }

    fn compile_map(&mut self, name: &ResourceName) {
        let Some(declared) = self.source.url_maps.get(name).cloned() else {
            self.note(name, Vec::new());
            self.url_maps.remove(name);
            return;
        };
        let (rules, mut found) = Rules::compile(&declared);
        if found.is_empty() {
            found = expectations::problems(&declared, &rules);
        }
        let plan = UrlMapPlan {
            name: name.clone(),
            rules: Arc::new(rules),
            own_problems: found.into(),
            backends: Vec::new(),
            declared,
        };
        self.url_maps.insert(name.clone(), Arc::new(plan));
    }

    /// Gives a map the backend services of now, and judges how it names them.
    fn link_map(&mut self, name: &ResourceName) {
        let Some(plan) = self.url_maps.get(name) else { return };
        let services = plan.rules.services.iter();
        let backends =
            services.map(|service| self.backend_services.get(service).cloned()).collect();
        let mut found = plan.own_problems.to_vec();
        found.extend(self.unfit_services(&plan.declared));
        let plan = UrlMapPlan {
            name: name.clone(),
            rules: Arc::clone(&plan.rules),
            own_problems: Arc::clone(&plan.own_problems),
            backends,
            declared: Arc::clone(&plan.declared),
        };
        self.url_maps.insert(name.clone(), Arc::new(plan));
        self.note(name, found);
    }

    /// What is wrong with how a map names backend services; whether they exist is judged elsewhere.
    fn unfit_services(&self, map: &UrlMap) -> Vec<Problem> {
        let mut faults = Faults::of(&map.name);
        // Fields are worth writing out only if there is something to say about one.
        let fits = |name: &&ResourceName| {
            let service = self.source.backend_services.get(*name);
            name.kind == Kind::BackendService
                && name.location == map.name.location
                && service.is_none_or(|service| backend_service::unfit(service).is_none())
        };
        let mirrors = map.destinations().filter_map(|to| to.route_action.as_ref()?.mirror.as_ref());
        if mirrors.count() == 0 && map.backend_services().iter().all(fits) {
            return Vec::new();
        }
        for (field, name) in map.references() {
            let at = At::ROOT.field(&field);
            if name.kind != Kind::BackendService {
                faults.invalid(&at, link(&name), "The value is not a backend service.");
                continue;
            }
            if name.location != map.name.location {
                let region = map.name.region().unwrap_or("global");
                let why = format!(
                    "The backend service must be in the region of the URL map, '{region}'."
                );
                faults.invalid(&at, link(&name), why);
                continue;
            }
            let Some(service) = self.source.backend_services.get(&name) else { continue };
            if let Some(why) = backend_service::unfit(service) {
                faults.invalid(&at, link(&name), why);
            } else if field.ends_with("requestMirrorPolicy.backendService")
                && service
                    .backends
                    .iter()
                    .any(|b| self.source.endpoint_groups.contains_key(&b.group))
            {
                let why = "Request mirroring is not supported to a backend service with Serverless \
                           network endpoint groups.";
                faults.invalid(&at, link(&name), why);
            }
        }
        faults.into_problems()
    }
}
