//! Cloud Run services as the data plane sees them: addresses, access, traffic, tags, revisions.
//!
//! A request asks a [`ServicePlan`] three things: may it come in ([`ServicePlan::admits`]), which
//! revision answers ([`ServicePlan::pick`]), and, under a tag, which one that is
//! ([`ServicePlan::tagged`]). The fleet asks which revisions need instances, and how many
//! ([`ServicePlan::deployments`]).
//!
//! Invariant: only a revision whose outcome is ready is ever picked or tagged.

mod access;
mod address;
mod own_address;
mod problems;
mod scaling;
mod traffic;

pub use access::{AccessVerdict, Arrival, Caller, Refusal};
pub use address::{HOST_LABEL_CHARACTERS_MAX, hosts};
pub use own_address::{OwnAddress, explain as explain_own_address};
pub use scaling::Scaling;

use imbl::{OrdMap, OrdSet};
use model::inventory::Collection;
use model::project::Project;
use model::run::{PortProtocol, Revision, RevisionChoice, Service, TrafficTarget};
use model::{Inventory, Name, Problem, ResourceName};
use std::sync::Arc;
use std::time::Duration;
use traffic::Shares;
pub(crate) use traffic::Turns;

/// Services and revisions of every project and region.
#[derive(Clone, Debug, Default)]
pub struct FleetPlan {
    projects: OrdMap<Name, OrdMap<Name, ServiceTable>>,
    /// Where the older form of address leads: project and region by hash.
    homes: OrdMap<Name, (Name, Name)>,
    project_ids: OrdMap<u64, Name>,
    /// What is wrong with each service that has something wrong with it.
    problems: OrdMap<ResourceName, Arc<[Problem]>>,
    /// The revisions of each service, by name.
    revisions: OrdMap<ResourceName, OrdMap<Name, Arc<Revision>>>,
    /// What this was compiled from.
    source: Source,
}

#[derive(Clone, Debug, Default)]
struct Source {
    projects: Collection<Project>,
    services: Collection<Service>,
    revisions: Collection<Revision>,
}

/// The services of one project and region, by name.
pub type ServiceTable = OrdMap<Name, Arc<ServicePlan>>;

/// A Cloud Run service: who may call it and which revision answers.
#[derive(Debug)]
pub struct ServicePlan {
    /// What was declared.
    pub declared: Arc<Service>,
    /// Its `run.app` host names, the one with the project's number first; empty without a project.
    pub hosts: Vec<String>,
    /// All its revisions by name, ready or not.
    pub revisions: OrdMap<Name, Arc<RevisionPlan>>,
    /// Those that have instances or may get some.
    pub deployments: Vec<Deployment>,
    /// The newest revision that is ready.
    pub latest_ready: Option<Arc<RevisionPlan>>,
    /// The newest revision, ready or not.
    pub latest_created: Option<Arc<RevisionPlan>>,
    /// The traffic that is in force, names resolved: what `status.traffic` shows.
    pub traffic_in_force: Vec<TrafficInForce>,
    /// Whether that is the declared traffic; if not, a revision it needs is not ready.
    pub traffic_is_declared: bool,
    tags: OrdMap<Name, Option<Arc<RevisionPlan>>>,
    shares: Shares,
    turns: Arc<Turns>,
}

/// One entry of the traffic in force.
#[derive(Clone, Debug)]
pub struct TrafficInForce {
    /// The revision.
    pub revision: Arc<RevisionPlan>,
    /// The part of the requests it gets.
    pub percent: u32,
    /// Its tag.
    pub tag: Option<Name>,
    /// Whether it was chosen for being the latest.
    pub latest: bool,
}

/// A revision that has instances, or may get some.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Which.
    pub revision: Arc<RevisionPlan>,
    /// Why it needs instances.
    pub role: Role,
    /// How many.
    pub scaling: Scaling,
}

/// Why a revision needs instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nobody knows yet whether it works: one instance is started to find out.
    Check,
    /// It gets this part of the requests.
    Serving {
        /// In percent, at least 1.
        percent: u32,
    },
    /// It answers under a tag only.
    Tagged,
}

/// A revision: everything an instance of it needs.
#[derive(Debug)]
pub struct RevisionPlan {
    /// A number that stands for the revision for ever.
    pub id: u64,
    /// `projects/P/locations/R/revisions/REV`.
    pub name: ResourceName,
    /// What was declared.
    pub declared: Arc<Revision>,
    /// The port requests go to.
    pub port: u16,
    /// What is spoken there.
    pub protocol: PortProtocol,
    /// Requests at a time in one instance, at least 1.
    pub concurrency: u32,
    /// The time a request may take.
    pub timeout: Duration,
}

/// What a tag leads to.
#[derive(Clone, Copy, Debug)]
pub enum Tagged<'p> {
    /// A revision that is ready.
    Revision(&'p Arc<RevisionPlan>),
    /// A revision that is not ready.
    NotReady,
    /// The service has no such tag.
    NoSuchTag,
}

/// The service a `run.app` address leads to.
#[derive(Clone, Copy, Debug)]
pub struct HostMatch<'p, 'h> {
    /// The service.
    pub service: &'p Arc<ServicePlan>,
    /// The tag in front of its name.
    pub tag: Option<&'h str>,
}

/// Compiles every service and revision; what did not change since `previous` is shared.
pub fn compile(inventory: &Inventory, previous: &FleetPlan) -> (FleetPlan, Vec<Problem>) {
    let source = Source {
        projects: inventory.projects.clone(),
        services: inventory.services.clone(),
        revisions: inventory.revisions.clone(),
    };
    let mut plan = previous.clone();
    plan.index_revisions(&source);
    for name in source.stale_services(&previous.source) {
        match source.services.get(&name) {
            Some(service) => plan.put(service, &source),
            None => plan.remove(&name),
        }
    }
    if !source.projects.ptr_eq(&previous.source.projects) {
        let ids = source.projects.values();
        plan.project_ids = ids.map(|project| (project.number, project.name.name.clone())).collect();
        plan.homes = plan.compile_homes(&source);
    }
    plan.source = source;
    let problems = plan.problems.values().flat_map(|found| found.iter().cloned()).collect();
    (plan, problems)
}

impl Source {
    /// The services that differ from those of `previous`, or whose revisions or project do.
    fn stale_services(&self, previous: &Source) -> OrdSet<ResourceName> {
        use imbl::ordmap::DiffItem::{Add, Remove, Update};
        let mut stale = OrdSet::new();
        for change in previous.services.diff(&self.services) {
            match change {
                Add(name, _) | Remove(name, _) | Update { new: (name, _), .. } => {
                    stale.insert(name.clone());
                }
            }
        }
        for change in previous.revisions.diff(&self.revisions) {
            match change {
                Add(_, revision) | Remove(_, revision) | Update { new: (_, revision), .. } => {
                    stale.insert(revision.service.clone());
                }
            }
        }
        for change in previous.projects.diff(&self.projects) {
            let (Add(_, project) | Remove(_, project) | Update { new: (_, project), .. }) = change;
            let services = self.services.keys().filter(|name| name.project == project.name.name);
            stale.extend(services.cloned());
        }
        stale
    }

    fn project_number(&self, project: &Name) -> Option<u64> {
        Some(self.projects.get(&ResourceName::project(project))?.number)
    }
}

impl FleetPlan {
    /// The services of one project and region.
    pub fn services_in(&self, project: &str, region: &str) -> Option<&ServiceTable> {
        self.projects.get(project)?.get(region)
    }

    /// One service by its full name.
    pub fn service(&self, name: &ResourceName) -> Option<&Arc<ServicePlan>> {
        self.services_in(&name.project, name.region()?)?.get(&name.name)
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServicePlan>> {
        self.projects.values().flat_map(|regions| regions.values()).flat_map(OrdMap::values)
    }

    /// The services that are not what they were in an earlier plan: other, new or gone. Costs what the
    /// change costs, whatever the number of services.
    pub fn changed_since(&self, earlier: &FleetPlan) -> OrdSet<ResourceName> {
        self.source.stale_services(&earlier.source)
    }

    /// The service a `run.app` host name leads to; a port and the case do not matter.
    pub fn by_host<'h>(&self, host: &'h str) -> Option<HostMatch<'_, 'h>> {
        let host = host.split_once(':').map_or(host, |(host, _)| host);
        let address = address::parse(host)?;
        let (project, region) = match address.home {
            address::Home::Number { project_number, region } => {
                (self.project_ids.get(&project_number)?.as_str(), region)
            }
            address::Home::Hash { key } => {
                let (project, region) = self.homes.get(key)?;
                (project.as_str(), region.as_str())
            }
        };
        let service = self.services_in(project, region)?.get(address.service)?;
        Some(HostMatch { service, tag: address.tag })
    }

    /// Brings the index forward to `source`; `self.source` is still that of before.
    fn index_revisions(&mut self, source: &Source) {
        use imbl::ordmap::DiffItem::{Add, Remove, Update};
        for change in self.source.revisions.diff(&source.revisions) {
            if let Remove(_, old) | Update { old: (_, old), .. } = change
                && let Some(of_service) = self.revisions.get_mut(&old.service)
            {
                of_service.remove(&old.name.name);
                if of_service.is_empty() {
                    self.revisions.remove(&old.service);
                }
            }
            if let Add(_, new) | Update { new: (_, new), .. } = change {
                let of_service = self.revisions.entry(new.service.clone()).or_default();
                of_service.insert(new.name.name.clone(), Arc::clone(new));
            }
        }
    }

    fn put(&mut self, service: &Arc<Service>, source: &Source) {
        let Some(region) = service.name.region() else { return };
        let previous = self.service(&service.name).cloned();
        let revisions = self.revisions.get(&service.name).cloned().unwrap_or_default();
        let found = problems::find(service, &revisions);
        match found.is_empty() {
            true => self.problems.remove(&service.name),
            false => self.problems.insert(service.name.clone(), found.into()),
        };
        let number = source.project_number(&service.name.project);
        if let Some(number) = number {
            let home = (service.name.project.clone(), region.into());
            self.homes.insert(address::hash_key(number, region), home);
        }
        let plan = ServicePlan::compile(service, &revisions, number, previous.as_deref());
        self.projects
            .entry(service.name.project.clone())
            .or_default()
            .entry(region.into())
            .or_default()
            .insert(service.name.name.clone(), Arc::new(plan));
    }

    fn remove(&mut self, name: &ResourceName) {
        self.problems.remove(name);
        let Some(region) = name.region() else { return };
        let Some(regions) = self.projects.get_mut(name.project.as_str()) else { return };
        let Some(table) = regions.get_mut(region) else { return };
        table.remove(&name.name);
        if table.is_empty() {
            regions.remove(region);
        }
        if regions.is_empty() {
            self.projects.remove(name.project.as_str());
        }
    }

    fn compile_homes(&self, source: &Source) -> OrdMap<Name, (Name, Name)> {
        let regions = self.projects.iter().flat_map(|(project, regions)| {
            regions.keys().map(move |region| (project.clone(), region.clone()))
        });
        regions
            .filter_map(|(project, region)| {
                let number = source.project_number(&project)?;
                Some((address::hash_key(number, &region), (project, region)))
            })
            .collect()
    }
}

impl ServicePlan {
    /// The name of the service.
    pub fn name(&self) -> &ResourceName {
        &self.declared.name
    }

    /// The revision that answers at this turn, or none if none is ready. The same turn gives the
    /// same revision; consecutive turns give exact shares.
    pub fn pick(&self, turn: u64) -> Option<&Arc<RevisionPlan>> {
        self.shares.pick(turn)
    }

    /// The next turn. Every request that asks for no tag takes one, in whatever thread: this is
    /// what makes the shares exact.
    pub fn next_turn(&self) -> u64 {
        self.turns.take()
    }

    /// What a tag leads to.
    pub fn tagged(&self, tag: &str) -> Tagged<'_> {
        match self.tags.get(tag) {
            Some(Some(revision)) => Tagged::Revision(revision),
            Some(None) => Tagged::NotReady,
            None => Tagged::NoSuchTag,
        }
    }

    fn compile(
        service: &Arc<Service>,
        revisions: &OrdMap<Name, Arc<Revision>>,
        project_number: Option<u64>,
        previous: Option<&ServicePlan>,
    ) -> ServicePlan {
        let revisions: OrdMap<Name, Arc<RevisionPlan>> = revisions
            .iter()
            .map(|(name, declared)| {
                let known = previous.and_then(|previous| previous.revisions.get(name));
                (name.clone(), RevisionPlan::compile(declared, known))
            })
            .collect();
        let newest = |wanted: &dyn Fn(&Revision) -> bool| {
            let candidates = revisions.values().filter(|revision| wanted(&revision.declared));
            candidates.max_by_key(|revision| revision.declared.generation).cloned()
        };
        let latest_ready = newest(&Revision::is_ready);
        let latest_created = newest(&|_| true);
        let resolver = Resolver { revisions: &revisions, latest_ready: latest_ready.as_ref() };
        let (traffic_in_force, traffic_is_declared) = resolver.in_force(service);
        let weighted: Vec<_> = traffic_in_force
            .iter()
            .map(|target| (Arc::clone(&target.revision), target.percent))
            .collect();
        let region = service.name.region().unwrap_or_default();
        let hosts = project_number.map(|number| hosts(&service.name.name, number, region));
        ServicePlan {
            declared: Arc::clone(service),
            hosts: hosts.into_iter().flatten().collect(),
            deployments: deployments(service, &revisions, &traffic_in_force),
            tags: resolver.tags(service),
            shares: Shares::new(&weighted),
            turns: previous.map(|previous| Arc::clone(&previous.turns)).unwrap_or_default(),
            revisions,
            latest_ready,
            latest_created,
            traffic_in_force,
            traffic_is_declared,
        }
    }
}

/// Turns declared targets into revisions that may serve.
struct Resolver<'a> {
    revisions: &'a OrdMap<Name, Arc<RevisionPlan>>,
    latest_ready: Option<&'a Arc<RevisionPlan>>,
}

impl Resolver<'_> {
    /// The traffic that applies, and whether it is the declared one.
    ///
    /// Requests never go to a revision that is not ready. While the declared traffic needs one,
    /// the traffic of before stays; where there was none, the ready part of the declared one
    /// shares the requests; and failing that, the newest revision that is ready takes them.
    fn in_force(&self, service: &Service) -> (Vec<TrafficInForce>, bool) {
        let latest = TrafficTarget { revision: RevisionChoice::Latest, percent: 100, tag: None };
        let everything_to_latest = [latest];
        let declared = match &service.traffic[..] {
            [] => &everything_to_latest,
            some => some,
        };
        let (resolved, complete) = self.resolve(declared);
        if complete {
            return (resolved, true);
        }
        let gets_requests =
            |targets: &[TrafficInForce]| targets.iter().any(|target| target.percent > 0);
        let (before, _) = self.resolve(&service.traffic_before);
        let in_force = match (gets_requests(&before), gets_requests(&resolved)) {
            (true, _) => before,
            (false, true) => resolved,
            (false, false) => self.resolve(&everything_to_latest).0,
        };
        (in_force, false)
    }

    /// The targets that are ready, and whether those that get requests all are.
    fn resolve(&self, targets: &[TrafficTarget]) -> (Vec<TrafficInForce>, bool) {
        let mut complete = true;
        let mut resolved = Vec::new();
        for target in targets {
            match self.ready(&target.revision) {
                Some(revision) => resolved.push(TrafficInForce {
                    revision: Arc::clone(revision),
                    percent: target.percent,
                    tag: target.tag.clone(),
                    latest: target.revision == RevisionChoice::Latest,
                }),
                None => complete &= target.percent == 0,
            }
        }
        (resolved, complete)
    }

    /// Tags follow the declaration at once: they take nothing away from another revision.
    fn tags(&self, service: &Service) -> OrdMap<Name, Option<Arc<RevisionPlan>>> {
        let tagged = service.traffic.iter().filter_map(|target| {
            Some((target.tag.clone()?, self.ready(&target.revision).cloned()))
        });
        tagged.collect()
    }

    fn ready(&self, choice: &RevisionChoice) -> Option<&Arc<RevisionPlan>> {
        match choice {
            RevisionChoice::Latest => self.latest_ready,
            RevisionChoice::Named(name) => {
                self.revisions.get(name).filter(|revision| revision.declared.is_ready())
            }
        }
    }
}

fn deployments(
    service: &Service,
    revisions: &OrdMap<Name, Arc<RevisionPlan>>,
    in_force: &[TrafficInForce],
) -> Vec<Deployment> {
    let percent_of = |revision: &RevisionPlan| -> u32 {
        let targets = in_force.iter().filter(|target| target.revision.id == revision.id);
        targets.map(|target| target.percent).sum()
    };
    let is_tagged = |revision: &RevisionPlan| {
        let name = &revision.name.name;
        let named = |choice: &RevisionChoice| *choice == RevisionChoice::Named(name.clone());
        service.traffic.iter().any(|target| target.tag.is_some() && named(&target.revision))
            || in_force
                .iter()
                .any(|target| target.tag.is_some() && target.revision.id == revision.id)
    };
    let deployment = |revision: &Arc<RevisionPlan>| {
        let percent = percent_of(revision);
        let role = match &revision.declared.outcome {
            None => Role::Check,
            Some(outcome) if !outcome.ready => return None,
            Some(_) if percent > 0 => Role::Serving { percent },
            Some(_) if is_tagged(revision) => Role::Tagged,
            Some(_) => return None,
        };
        let scaling = Scaling::of(&service.scaling, &revision.declared, percent);
        Some(Deployment { revision: Arc::clone(revision), role, scaling })
    };
    revisions.values().filter_map(deployment).collect()
}

impl RevisionPlan {
    fn compile(declared: &Arc<Revision>, known: Option<&Arc<RevisionPlan>>) -> Arc<RevisionPlan> {
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.declared, declared)) {
            return Arc::clone(known);
        }
        let port = declared.port();
        Arc::new(RevisionPlan {
            id: declared.id,
            name: declared.name.clone(),
            port: port.number,
            protocol: port.protocol,
            concurrency: declared.concurrency.max(1),
            timeout: Duration::from_secs(declared.timeout_seconds.into()),
            declared: Arc::clone(declared),
        })
    }
}

#[cfg(test)]
mod tests;
