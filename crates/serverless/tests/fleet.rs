//! The fleet over real containers of the shipped image: check, burst, kills, rollout, stop. Needs
//! root.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use model::project::Project;
use model::run::{
    Access, Container, ContainerLimits, Ingress, Outcome, Revision, RevisionChoice,
    RevisionScaling, Service, ServiceScaling, TrafficTarget,
};
use model::{Inventory, Kind, Resource, ResourceName};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plan::Compiled;
use plan::fleet::RevisionPlan;
use serverless::fleet::{
    Acquired, Fleet, FleetOptions, Lease, Refusal, RevisionOutcome, SecretFiles, StoreImages,
};
use serverless::images::{ImageStore, ImageStoreConfig};
use serverless::logs::{LogStore, Query};
use serverless::runtime::{EmbeddedConfig, EmbeddedRuntime, LogSink, Runtime};
use support::{helper, root, traces, until};
use tokio::sync::mpsc;

const IMAGE: &str = "localhost/tidegate/hello:latest";

struct World {
    _directory: tempfile::TempDir,
    runtime: EmbeddedRuntime,
    logs: Arc<LogStore>,
    fleet: Fleet,
    outcomes: mpsc::UnboundedReceiver<RevisionOutcome>,
    inventory: Inventory,
    compiled: Compiled,
}

impl World {
    async fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let logs = LogStore::new();
        let (runtime, problems) = EmbeddedRuntime::open(EmbeddedConfig {
            directory: directory.path().join("runtime"),
            helper: helper(),
            sink: Arc::clone(&logs) as Arc<dyn LogSink>,
            spare_helpers: 1,
        })
        .unwrap();
        for problem in problems {
            eprintln!("NOTE: {problem}");
        }
        runtime.reconcile().await;
        let store = ImageStore::open(ImageStoreConfig {
            directory: directory.path().join("images"),
            credentials: None,
        })
        .unwrap();
        let options = FleetOptions::new(
            Arc::new(runtime.clone()),
            Arc::new(StoreImages::new(store)),
            Arc::new(SecretFiles::new(directory.path().join("secrets"))),
            Arc::clone(&logs),
        );
        let (fleet, outcomes) = Fleet::start(options);
        let mut inventory = Inventory::default();
        inventory.insert(Resource::Project(Arc::new(Project {
            name: ResourceName::project("p"),
            number: 1,
            common_instance_metadata: Vec::new(),
        })));
        let compiled = Compiled::default();
        World { _directory: directory, runtime, logs, fleet, outcomes, inventory, compiled }
    }

    fn put(&mut self, service: Service, revisions: Vec<Revision>) {
        self.inventory.insert(Resource::Service(Arc::new(service)));
        for revision in revisions {
            self.inventory.insert(Resource::Revision(Arc::new(revision)));
        }
        let number = self.compiled.plan.number + 1;
        self.compiled = plan::compile(&self.inventory, number, &self.compiled);
        assert!(self.compiled.problems.is_empty(), "{:?}", self.compiled.problems);
        self.fleet.apply(&self.compiled.plan);
    }

    fn revision(&self, name: &str) -> Arc<RevisionPlan> {
        let mut services = self.compiled.plan.fleet.services();
        services.find_map(|service| service.revisions.get(name)).unwrap().clone()
    }

    /// Sends requests at once; the refusals, and how many answers were not 200.
    async fn burst(
        &self,
        revision: &Arc<RevisionPlan>,
        count: u32,
        path: &'static str,
    ) -> (Vec<Refusal>, u32, Arc<Occupation>) {
        let occupation: Arc<Occupation> = Arc::default();
        let tasks: Vec<_> = (0..count)
            .map(|_| {
                let (fleet, revision) = (self.fleet.clone(), Arc::clone(revision));
                let occupation = Arc::clone(&occupation);
                tokio::spawn(async move { get(&fleet, &revision, path, &occupation).await })
            })
            .collect();
        let (mut refusals, mut failures) = (Vec::new(), 0);
        for task in tasks {
            match task.await.unwrap() {
                Ok(200) => {}
                Ok(_) => failures += 1,
                Err(refusal) => refusals.push(refusal),
            }
        }
        (refusals, failures, occupation)
    }

    /// Processes of containers, not of their helpers.
    fn container_processes(&self) -> Vec<i32> {
        let traces = traces(self.runtime.mark());
        let processes = traces.iter().filter_map(|trace| trace.strip_prefix("process "));
        let ids = processes.filter_map(|id| id.parse().ok());
        ids.filter(|id: &i32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).starts_with("/hello")
        })
        .collect()
    }

    async fn end(self) {
        self.fleet.stop(Duration::from_secs(10)).await;
        assert_eq!(traces(self.runtime.mark()), Vec::<String>::new());
    }
}

/// How many requests each instance has, and the most it ever had.
#[derive(Debug, Default)]
struct Occupation(Mutex<HashMap<u64, (u32, u32)>>);

impl Occupation {
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

/// One request; 0 when its instance went away under it.
async fn get(
    fleet: &Fleet,
    revision: &Arc<RevisionPlan>,
    path: &'static str,
    occupation: &Occupation,
) -> Result<u16, Refusal> {
    let lease = lease(fleet, revision).await?;
    {
        let mut instances = occupation.0.lock().unwrap();
        let (now, most) = instances.entry(lease.instance()).or_default();
        *now += 1;
        *most = (*most).max(*now);
    }
    let status = match fleet.dial(lease.instance()).await {
        Err(_) => 0,
        Ok(stream) => tokio::task::spawn_blocking(move || ask(stream, path)).await.unwrap(),
    };
    occupation.0.lock().unwrap().entry(lease.instance()).or_default().0 -= 1;
    Ok(status)
}

fn ask(mut stream: std::net::TcpStream, path: &str) -> u16 {
    let mut answer = String::new();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let asked = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(Duration::from_secs(20))))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.read_to_string(&mut answer).map(drop));
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    asked.ok().and(status).unwrap_or(0)
}

fn service(traffic: &[(&str, u32)]) -> Service {
    let target = |(revision, percent): &(&str, u32)| TrafficTarget {
        revision: RevisionChoice::Named((*revision).into()),
        percent: *percent,
        tag: None,
    };
    Service {
        name: ResourceName::regional("p", "r", Kind::Service, "shop"),
        id: 1,
        ingress: Ingress::All,
        default_url_disabled: false,
        access: Access::default(),
        traffic: traffic.iter().map(target).collect(),
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    }
}

/// Revision `shop-0000G-x`.
fn revision(generation: u64, concurrency: u32, outcome: Option<Outcome>) -> Revision {
    let name = format!("shop-{generation:05}-x");
    Revision {
        name: ResourceName::regional("p", "r", Kind::Revision, &name),
        id: generation,
        service: ResourceName::regional("p", "r", Kind::Service, "shop"),
        generation,
        containers: vec![Container {
            name: "".into(),
            image: IMAGE.to_owned(),
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
        scaling: RevisionScaling { instances_max: Some(5), ..RevisionScaling::default() },
        cpu_idle: true,
        startup_cpu_boost: false,
        session_affinity: false,
        service_account: None,
        execution_environment: None,
        vpc_access: None,
        outcome,
    }
}

fn ready() -> Option<Outcome> {
    Some(Outcome {
        ready: true,
        reason: String::new(),
        message: String::new(),
        image_digests: Vec::new(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_revision_proves_itself_and_then_serves_a_burst() {
    if !root() {
        return;
    }
    let mut world = World::new().await;
    world.put(service(&[]), vec![revision(1, 20, None)]);
    let outcome = world.outcomes.recv().await.unwrap().outcome;
    assert!(outcome.ready, "{}", outcome.message);
    assert!(outcome.image_digests[0].1.starts_with("sha256:"), "{outcome:?}");
    world.put(service(&[]), vec![revision(1, 20, Some(outcome))]);

    let plan = world.revision("shop-00001-x");
    let (refusals, failures, occupation) = world.burst(&plan, 300, "/").await;
    assert_eq!((refusals, failures), (vec![], 0));
    assert!(occupation.most() <= 20);
    let status = world.fleet.status().await;
    assert!(status[0].instances_ready >= 1, "{status:?}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_from_zero_waits_for_the_first_instances_and_none_is_lost() {
    if !root() {
        return;
    }
    let mut world = World::new().await;
    world.put(service(&[]), vec![revision(1, 1, ready())]);
    let plan = world.revision("shop-00001-x");
    let began = Instant::now();
    let (refusals, failures, occupation) = world.burst(&plan, 200, "/").await;
    println!("200 requests from zero took {:?}", began.elapsed());
    assert_eq!((refusals, failures, occupation.most()), (vec![], 0, 1));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_are_killed_are_replaced() {
    if !root() {
        return;
    }
    let mut world = World::new().await;
    world.put(service(&[]), vec![revision(1, 10, ready())]);
    let plan = world.revision("shop-00001-x");
    for round in 0..5 {
        let (refusals, failures, _) = world.burst(&plan, 20, "/").await;
        assert_eq!((refusals, failures), (vec![], 0), "round {round}");
        let victim = *world.container_processes().first().unwrap();
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        // A request that is sent before the death is noticed fails, as it would anywhere.
        until("the death is noticed", || {
            let query = Query { limit: 100, ..Query::default() };
            let told = world.logs.query(&query);
            let deaths = told.iter().filter(|entry| entry.text.contains("terminated on signal"));
            deaths.count() > round
        })
        .await;
    }
    let failure = world.fleet.status().await[0].last_failure.clone().unwrap();
    assert!(failure.0 <= SystemTime::now());
    assert_eq!(failure.1, "Container terminated on signal 9.");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_under_load_loses_nothing() {
    if !root() {
        return;
    }
    let mut world = World::new().await;
    let both = vec![revision(1, 10, ready()), revision(2, 10, ready())];
    world.put(service(&[("shop-00001-x", 100)]), both);
    let current = Arc::new(Mutex::new(Arc::clone(&world.compiled.plan)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (fleet, current) = (world.fleet.clone(), Arc::clone(&current));
            tokio::spawn(async move {
                let mut lost = Vec::new();
                for _ in 0..100 {
                    let plan = current.lock().unwrap().clone();
                    let service = plan.fleet.services().next().unwrap().clone();
                    let revision = service.pick(service.next_turn()).unwrap();
                    match get(&fleet, revision, "/", &Occupation::default()).await {
                        Ok(200) => {}
                        other => lost.push(other),
                    }
                }
                lost
            })
        })
        .collect();
    for percent in [50, 0, 100, 0] {
        let split: Vec<(&str, u32)> =
            [("shop-00001-x", percent), ("shop-00002-x", 100 - percent)].into();
        tokio::time::sleep(Duration::from_millis(100)).await;
        world.put(service(&split), vec![]);
        *current.lock().unwrap() = Arc::clone(&world.compiled.plan);
    }
    for client in clients {
        assert_eq!(client.await.unwrap(), []);
    }
    world.end().await;
}
