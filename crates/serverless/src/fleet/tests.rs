//! The fleet on a virtual clock, with a runtime that has no containers.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use model::project::Project;
use model::run::{
    Access, Container, ContainerLimits, EnvironmentValue, EnvironmentVariable, Ingress, Outcome,
    Probe, ProbeAction, Revision, RevisionChoice, RevisionScaling, SecretVersion, Service,
    ServiceScaling, TrafficTarget,
};
use model::{Inventory, Kind, Resource, ResourceName};
use plan::Compiled;
use tokio::time::{Instant, sleep};

use super::fake::{FakeImages, FakeRuntime, FakeSecrets};
use super::*;
use crate::logs::Query;
use crate::runtime::Allowance;

/// A small world, its fleet and what comes out of it.
struct World {
    runtime: Arc<FakeRuntime>,
    logs: Arc<LogStore>,
    fleet: Fleet,
    outcomes: mpsc::UnboundedReceiver<RevisionOutcome>,
    inventory: Inventory,
    compiled: Compiled,
    number: u64,
}

impl World {
    fn new() -> World {
        let runtime = FakeRuntime::new();
        let logs = LogStore::new();
        let fakes: Arc<dyn ImageSource> = Arc::new(FakeImages);
        let options = FleetOptions::new(
            Arc::clone(&runtime) as Arc<dyn Runtime>,
            fakes,
            Arc::new(FakeSecrets),
            Arc::clone(&logs),
        );
        let (fleet, outcomes) = Fleet::start(options);
        let mut inventory = Inventory::default();
        let name = ResourceName::project("p");
        inventory.insert(Resource::Project(Arc::new(Project {
            name,
            number: 1,
            common_instance_metadata: Vec::new(),
        })));
        let compiled = Compiled::default();
        World { runtime, logs, fleet, outcomes, inventory, compiled, number: 0 }
    }

    fn put(&mut self, service: Service, revisions: Vec<Revision>) -> &mut World {
        self.inventory.insert(Resource::Service(Arc::new(service)));
        for revision in revisions {
            self.inventory.insert(Resource::Revision(Arc::new(revision)));
        }
        self.apply();
        self
    }

    fn apply(&mut self) {
        self.number += 1;
        self.compiled = plan::compile(&self.inventory, self.number, &self.compiled);
        self.fleet.apply(&self.compiled.plan);
    }

    fn revision(&self, name: &str) -> Arc<RevisionPlan> {
        let mut services = self.compiled.plan.fleet.services();
        services.find_map(|service| service.revisions.get(name)).unwrap().clone()
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&World) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(3600);
        while !holds(self) {
            assert!(Instant::now() < deadline, "never: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn service(traffic: &[(&str, u32)]) -> Service {
    let target = |(revision, percent): &(&str, u32)| TrafficTarget {
        revision: match *revision {
            "LATEST" => RevisionChoice::Latest,
            name => RevisionChoice::Named(name.into()),
        },
        percent: *percent,
        tag: None,
    };
    Service {
        name: ResourceName::regional("p", "r", Kind::Service, "s"),
        id: 1,
        ingress: Ingress::All,
        default_url_disabled: false,
        access: Access::default(),
        traffic: traffic.iter().map(target).collect(),
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    }
}

/// Revision `s-0000G-x`.
fn revision(generation: u64, concurrency: u32, outcome: Option<Outcome>) -> Revision {
    let name = format!("s-{generation:05}-x");
    Revision {
        name: ResourceName::regional("p", "r", Kind::Revision, &name),
        id: generation,
        service: ResourceName::regional("p", "r", Kind::Service, "s"),
        generation,
        containers: vec![Container {
            name: "".into(),
            image: "app".to_owned(),
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
        }],
        volumes: Vec::new(),
        concurrency,
        timeout_seconds: 300,
        scaling: RevisionScaling::default(),
        cpu_idle: true,
        startup_cpu_boost: false,
        session_affinity: false,
        service_account: None,
        execution_environment: None,
        vpc_access: None,
        outcome,
    }
}

/// A compiled revision that takes so many requests at a time.
pub(crate) fn revision_plan(concurrency: u32) -> Arc<RevisionPlan> {
    let mut inventory = Inventory::default();
    inventory.insert(Resource::Service(Arc::new(service(&[]))));
    inventory.insert(Resource::Revision(Arc::new(revision(1, concurrency, ready()))));
    let compiled = plan::compile(&inventory, 1, &Compiled::default());
    let service = compiled.plan.fleet.services().next().unwrap();
    Arc::clone(service.pick(0).unwrap())
}

fn ready() -> Option<Outcome> {
    Some(Outcome {
        ready: true,
        reason: String::new(),
        message: String::new(),
        image_digests: vec![("".into(), "sha256:pinned".to_owned())],
    })
}

/// How many requests each instance has, and the most it ever had.
#[derive(Debug, Default)]
struct Occupation(Mutex<HashMap<u64, (u32, u32)>>);

impl Occupation {
    fn enter(&self, instance: u64) {
        let mut instances = self.0.lock().unwrap();
        let (now, most) = instances.entry(instance).or_default();
        *now += 1;
        *most = (*most).max(*now);
    }

    fn leave(&self, instance: u64) {
        self.0.lock().unwrap().entry(instance).or_default().0 -= 1;
    }

    fn most(&self) -> u32 {
        self.0.lock().unwrap().values().map(|(_, most)| *most).max().unwrap_or(0)
    }
}

async fn lease(fleet: &Fleet, revision: &Arc<RevisionPlan>) -> Result<Lease, Refusal> {
    match fleet.acquire(revision) {
        Acquired::Ready(lease) => Ok(lease),
        Acquired::Waiting(waiting) => waiting.await,
        Acquired::Refused(refusal) => Err(refusal),
    }
}

/// Sends requests at once, each of which takes this long; returns the refusals.
async fn requests(
    world: &World,
    revision: &Arc<RevisionPlan>,
    count: u32,
    each: Duration,
    occupation: &Arc<Occupation>,
) -> Vec<Refusal> {
    let tasks: Vec<_> = (0..count)
        .map(|_| {
            let (fleet, revision) = (world.fleet.clone(), Arc::clone(revision));
            let occupation = Arc::clone(occupation);
            tokio::spawn(async move {
                let lease = lease(&fleet, &revision).await?;
                occupation.enter(lease.instance());
                sleep(each).await;
                occupation.leave(lease.instance());
                Ok(())
            })
        })
        .collect();
    let mut refusals = Vec::new();
    for task in tasks {
        refusals.extend(task.await.unwrap().err());
    }
    refusals
}

#[tokio::test(start_paused = true)]
async fn a_burst_from_zero_is_served_to_the_last_request() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 10, ready())]);
    let plan = world.revision("s-00001-x");
    let occupation = Arc::default();
    let refusals = requests(&world, &plan, 500, Duration::from_millis(50), &occupation).await;
    assert_eq!(refusals, []);
    assert!(occupation.most() <= 10, "{}", occupation.most());
    assert!(world.runtime.created.load(Ordering::SeqCst) > 1);
}

#[tokio::test(start_paused = true)]
async fn one_request_at_a_time_means_one() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 1, ready())]);
    let plan = world.revision("s-00001-x");
    let occupation = Arc::default();
    for _ in 0..5 {
        let refusals = requests(&world, &plan, 60, Duration::from_millis(20), &occupation).await;
        assert_eq!(refusals, []);
    }
    assert_eq!(occupation.most(), 1);
}

/// The same on real threads, which take and give back permits at the same moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_request_at_a_time_means_one_over_all_threads() {
    let mut world = World::new();
    let mut single = revision(1, 1, ready());
    single.scaling.instances_max = Some(3);
    world.put(service(&[("LATEST", 100)]), vec![single]);
    let plan = world.revision("s-00001-x");
    let occupation: Arc<Occupation> = Arc::default();
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (fleet, revision) = (world.fleet.clone(), Arc::clone(&plan));
            let occupation = Arc::clone(&occupation);
            tokio::spawn(async move {
                for _ in 0..200 {
                    let lease = lease(&fleet, &revision).await?;
                    occupation.enter(lease.instance());
                    tokio::task::yield_now().await;
                    occupation.leave(lease.instance());
                }
                Ok::<_, Refusal>(())
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.await.unwrap(), Ok(()));
    }
    assert_eq!(occupation.most(), 1);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_last_instance_requests_wait_and_then_hear_429() {
    let mut world = World::new();
    let mut bounded = revision(1, 1, ready());
    bounded.scaling.instances_max = Some(2);
    world.put(service(&[("LATEST", 100)]), vec![bounded]);
    let plan = world.revision("s-00001-x");
    let occupation = Arc::default();
    let began = Instant::now();
    let refusals = requests(&world, &plan, 5, Duration::from_secs(8), &occupation).await;
    assert_eq!(refusals, [Refusal::AT_MAXIMUM]);
    assert_eq!(Refusal::AT_MAXIMUM.status, 429);
    assert!(began.elapsed() >= Duration::from_secs(10));
    assert_eq!(world.runtime.alive_most.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_is_checked_once_and_its_digest_reported() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 10, None)]);
    let outcome = world.outcomes.recv().await.unwrap();
    assert_eq!((outcome.id, outcome.outcome.ready), (1, true));
    assert_eq!(outcome.outcome.image_digests, [("".into(), "sha256:3".to_owned())]);

    // Recorded, it takes traffic, with the instance that proved it.
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 10, Some(outcome.outcome))]);
    let plan = world.revision("s-00001-x");
    assert!(matches!(world.fleet.acquire(&plan), Acquired::Ready(_)));
    assert_eq!(world.runtime.created.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_count_of_zero_ends_the_instance_that_proved_its_revision_too() {
    let mut world = World::new();
    let mut declared = service(&[("LATEST", 100)]);
    world.put(declared.clone(), vec![revision(1, 10, None)]);
    let outcome = world.outcomes.recv().await.unwrap().outcome;
    let began = Instant::now();
    declared.scaling.instances_manual = Some(0);
    world.put(declared.clone(), vec![revision(1, 10, Some(outcome))]);
    world.until("none", |world| world.runtime.alive() == 0).await;
    assert!(began.elapsed() < PROVEN_KEPT, "{:?}", began.elapsed());
    // It is kept for its time, and not made again.
    declared.scaling.instances_manual = None;
    world.put(declared, vec![]);
    sleep(PROVEN_KEPT).await;
    assert_eq!(world.runtime.created.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_bad_revision_fails_once_with_its_reason_and_the_old_one_serves() {
    for (image, reason, words) in [
        ("app", "HealthCheckContainerError", "last words"),
        ("missing", "ContainerMissing", "Image 'missing' not found."),
    ] {
        let mut world = World::new();
        *world.runtime.failing.lock().unwrap() = Some(("s-00002".to_owned(), 100));
        let mut bad = revision(2, 10, None);
        bad.containers[0].image = image.to_owned();
        world.put(service(&[("LATEST", 100)]), vec![revision(1, 10, ready()), bad]);
        let outcome = world.outcomes.recv().await.unwrap().outcome;
        assert_eq!((outcome.ready, outcome.reason.as_str()), (false, reason));
        assert!(outcome.message.contains(words), "{}", outcome.message);

        let service = world.compiled.plan.fleet.services().next().unwrap();
        let picked = Arc::clone(service.pick(0).unwrap());
        assert_eq!(&*picked.name.name, "s-00001-x");
        assert!(lease(&world.fleet, &picked).await.is_ok());
        sleep(Duration::from_secs(120)).await;
        assert!(world.outcomes.try_recv().is_err());
        let attempts = 100 - world.runtime.failing.lock().unwrap().as_ref().unwrap().1;
        assert_eq!(attempts, u32::from(image == "app"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_not_there_fails_the_revision() {
    for (secret, is_ready) in [("key", true), ("other", false)] {
        let mut world = World::new();
        let mut with_secret = revision(1, 10, None);
        let version = SecretVersion { secret: secret.into(), version: "1".into() };
        let value = EnvironmentValue::Secret(version);
        with_secret.containers[0].environment =
            vec![EnvironmentVariable { name: "KEY".into(), value }];
        world.put(service(&[("LATEST", 100)]), vec![with_secret]);
        let outcome = world.outcomes.recv().await.unwrap().outcome;
        let reason = if is_ready { "" } else { "SecretsAccessCheckFailed" };
        assert_eq!((outcome.ready, outcome.reason.as_str()), (is_ready, reason));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollout_under_load_loses_no_request_and_drains_the_old_revision() {
    let mut world = World::new();
    let both = vec![revision(1, 5, ready()), revision(2, 5, ready())];
    world.put(service(&[("s-00001-x", 100)]), both);
    let refused = Arc::new(AtomicU32::new(0));
    let served = Arc::new(AtomicU32::new(0));
    let current = Arc::new(Mutex::new(world.compiled.plan.clone()));
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let (fleet, current) = (world.fleet.clone(), Arc::clone(&current));
            let (served, refused) = (Arc::clone(&served), Arc::clone(&refused));
            tokio::spawn(async move {
                for _ in 0..100 {
                    let plan = current.lock().unwrap().clone();
                    let service = plan.fleet.services().next().unwrap();
                    let revision = Arc::clone(service.pick(service.next_turn()).unwrap());
                    let answer = lease(&fleet, &revision).await;
                    sleep(Duration::from_millis(50)).await;
                    match answer {
                        Ok(_) => served.fetch_add(1, Ordering::SeqCst),
                        Err(_) => refused.fetch_add(1, Ordering::SeqCst),
                    };
                }
            })
        })
        .collect();
    for percent in [100, 60, 10, 0] {
        sleep(Duration::from_millis(700)).await;
        let split: Vec<_> = [("s-00001-x", percent), ("s-00002-x", 100 - percent)].into();
        world.put(service(&split), vec![]);
        *current.lock().unwrap() = world.compiled.plan.clone();
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!((refused.load(Ordering::SeqCst), served.load(Ordering::SeqCst)), (0, 4000));
    world.until("the old revision is drained", |w| w.runtime.alive_of("s-00001-x") == 0).await;
    assert!(world.runtime.alive_of("s-00002-x") > 0);
}

#[tokio::test(start_paused = true)]
async fn instances_that_die_are_replaced_and_requests_go_on() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 5, ready())]);
    let plan = world.revision("s-00001-x");
    let occupation = Arc::default();
    for round in 0..20 {
        let refusals = requests(&world, &plan, 20, Duration::from_millis(30), &occupation).await;
        assert_eq!(refusals, [], "round {round}");
        assert!(world.runtime.crash_one());
        sleep(Duration::from_millis(round * 97)).await;
    }
    let query = Query { service: Some("s".to_owned()), limit: 100, ..Query::default() };
    let entries = world.logs.query(&query);
    assert!(entries.iter().any(|entry| entry.text == "Container called exit(1)."));
    let status = world.fleet.status().await;
    assert_eq!(status[0].last_failure.as_ref().unwrap().1, "Container called exit(1).");
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_cannot_start_any_more_backs_off_and_answers_503() {
    let mut world = World::new();
    *world.runtime.failing.lock().unwrap() = Some(("s-00001".to_owned(), u32::MAX));
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 5, ready())]);
    let plan = world.revision("s-00001-x");
    let refusals = requests(&world, &plan, 3, Duration::ZERO, &Arc::default()).await;
    assert_eq!(refusals, vec![Refusal::FAILING; 3]);
    let attempts = world.runtime.created.load(Ordering::SeqCst);
    assert!((3..12).contains(&attempts), "{attempts}");

    // And comes back once it can.
    *world.runtime.failing.lock().unwrap() = None;
    assert_eq!(requests(&world, &plan, 3, Duration::ZERO, &Arc::default()).await, []);
}

#[tokio::test(start_paused = true)]
async fn an_idle_revision_goes_to_zero_after_its_time_and_wakes_again() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 5, ready())]);
    let plan = world.revision("s-00001-x");
    let occupation = Arc::default();
    assert_eq!(requests(&world, &plan, 50, Duration::from_secs(1), &occupation).await, []);
    assert!(world.runtime.alive() > 5);
    sleep(Duration::from_secs(300)).await;
    assert_eq!(world.runtime.alive(), 1);
    let began = Instant::now();
    world.until("zero", |world| world.runtime.alive() == 0).await;
    assert!(began.elapsed() > Duration::from_secs(500), "{:?}", began.elapsed());
    assert_eq!(requests(&world, &plan, 1, Duration::ZERO, &occupation).await, []);
}

#[tokio::test(start_paused = true)]
async fn bounds_and_manual_scaling_hold_without_any_request() {
    let mut world = World::new();
    let mut declared = service(&[("LATEST", 100)]);
    declared.scaling.instances_min = 3;
    world.put(declared.clone(), vec![revision(1, 5, ready())]);
    world.until("three", |world| world.runtime.alive() == 3).await;
    declared.scaling.instances_manual = Some(5);
    world.put(declared.clone(), vec![]);
    world.until("five", |world| world.runtime.alive() == 5).await;
    declared.scaling.instances_manual = Some(0);
    world.put(declared, vec![]);
    world.until("none", |world| world.runtime.alive() == 0).await;
    let refused = lease(&world.fleet, &world.revision("s-00001-x")).await;
    assert_eq!(refused.unwrap_err(), Refusal::SCALED_TO_ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_loses_its_processor_until_the_next_request() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 5, ready())]);
    let plan = world.revision("s-00001-x");
    drop(lease(&world.fleet, &plan).await.unwrap());
    let allowances = |world: &World| {
        let alive = world.runtime.alive.lock().unwrap();
        let instance = alive.values().next().unwrap();
        instance.allowances.lock().unwrap().clone()
    };
    world.until("throttled", |w| allowances(w) == [Allowance::Throttled]).await;
    let _lease = lease(&world.fleet, &plan).await.unwrap();
    assert_eq!(allowances(&world), [Allowance::Throttled, Allowance::Full]);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(allowances(&world).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_probed_or_asked_to_keeps_its_processor() {
    for edit in
        [(|revision: &mut Revision| revision.cpu_idle = false) as fn(&mut Revision), |revision| {
            revision.containers[0].readiness_probe = Some(Probe {
                action: ProbeAction::Tcp { port: None },
                initial_delay_seconds: 0,
                period_seconds: 10,
                timeout_seconds: 1,
                failure_threshold: 3,
                success_threshold: 1,
            });
        }]
    {
        let mut world = World::new();
        let mut declared = revision(1, 5, ready());
        edit(&mut declared);
        world.put(service(&[("LATEST", 100)]), vec![declared]);
        drop(lease(&world.fleet, &world.revision("s-00001-x")).await.unwrap());
        sleep(Duration::from_secs(30)).await;
        let alive = world.runtime.alive.lock().unwrap();
        let instance = alive.values().next().unwrap();
        assert_eq!(*instance.allowances.lock().unwrap(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_an_older_plan_is_served_by_a_revision_that_is_gone() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 5, ready())]);
    let plan = world.revision("s-00001-x");
    world.inventory.remove(&plan.declared.service);
    world.inventory.remove(&plan.name);
    world.apply();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(requests(&world, &plan, 20, Duration::from_secs(1), &Arc::default()).await, []);
    world.until("nothing is left", |world| world.runtime.alive() == 0).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.fleet.status().await, []);
}

#[tokio::test(start_paused = true)]
async fn stopping_lets_requests_finish_refuses_others_and_leaves_nothing() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 1, ready())]);
    let plan = world.revision("s-00001-x");
    let held = lease(&world.fleet, &plan).await.unwrap();
    let finishing = {
        let fleet = world.fleet.clone();
        tokio::spawn(async move { fleet.stop(Duration::from_secs(60)).await })
    };
    sleep(Duration::from_secs(2)).await;
    assert_eq!(lease(&world.fleet, &plan).await.unwrap_err(), Refusal::STOPPING);
    assert!(!finishing.is_finished());
    drop(held);
    finishing.await.unwrap();
    assert_eq!(world.runtime.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_ends_does_not_keep_the_server_from_stopping() {
    let mut world = World::new();
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 1, ready())]);
    let _held = lease(&world.fleet, &world.revision("s-00001-x")).await.unwrap();
    world.fleet.stop(Duration::from_secs(5)).await;
    assert_eq!(world.runtime.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn starts_are_bounded_over_all_revisions() {
    let mut world = World::new();
    *world.runtime.startup.lock().unwrap() = Duration::from_secs(5);
    world.put(service(&[("LATEST", 100)]), vec![revision(1, 1, ready())]);
    let plan = world.revision("s-00001-x");
    let fleet = world.fleet.clone();
    let waiting: Vec<_> = (0..60)
        .map(|_| {
            let (fleet, plan) = (fleet.clone(), Arc::clone(&plan));
            tokio::spawn(async move { lease(&fleet, &plan).await })
        })
        .collect();
    sleep(Duration::from_secs(2)).await;
    let starting = world.fleet.status().await[0].instances_starting;
    assert_eq!(usize::try_from(starting).unwrap(), LAUNCHES_AT_ONCE_MAX);
    for request in waiting {
        request.abort();
    }
}
