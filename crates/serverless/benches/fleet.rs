//! What the fleet costs: a warm request's permit, waking many services at once, a thousand
//! services that sleep. Starts containers of the shipped image, and so needs root.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use model::project::Project;
use model::run::{
    Access, Container, ContainerLimits, Ingress, Outcome, Revision, RevisionScaling, Service,
    ServiceScaling,
};
use model::{Inventory, Kind, Resource, ResourceName};
use plan::fleet::RevisionPlan;
use plan::{Compiled, Plan};
use serverless::fleet::{Acquired, Fleet, FleetOptions, Lease, SecretFiles, StoreImages};
use serverless::images::{ImageStore, ImageStoreConfig};
use serverless::logs::LogStore;
use serverless::runtime::{EmbeddedConfig, EmbeddedRuntime, HelperProgram, LogSink, Runtime};

const WARM_REQUESTS: u32 = 2_000_000;
const SLEEPING_SERVICES: u64 = 1_000;

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: starting containers needs root");
        return;
    }
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    threads.unwrap().block_on(run());
}

async fn run() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = fleet(directory.path()).await;

    let plan = world(1, 1);
    fleet.apply(&plan);
    let revision = &revisions(&plan)[0];
    drop(lease(&fleet, revision).await);
    for threads in [1, 2] {
        let nanoseconds = warm(&fleet, revision, threads);
        println!(
            "warm_request_permit_under_1_us threads={threads} ns_per_request={nanoseconds:.0}"
        );
    }

    for (number, services) in [(2, 25), (3, 100)] {
        let plan = world(number, services);
        fleet.apply(&plan);
        let began = Instant::now();
        let waking: Vec<_> = revisions(&plan)
            .into_iter()
            .map(|revision| {
                let fleet = fleet.clone();
                tokio::spawn(async move {
                    drop(lease(&fleet, &revision).await);
                    began.elapsed()
                })
            })
            .collect();
        let mut times = Vec::new();
        for woken in waking {
            times.push(woken.await.unwrap());
        }
        times.sort();
        let (first, median) = (times[0], times[times.len() / 2]);
        println!(
            "wake services={services} first={first:?} p50={median:?} all={:?}",
            began.elapsed()
        );
        fleet.apply(&world(number, 0));
        while !fleet.status().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    let before = resident_kibibytes();
    let plan = world(4, SLEEPING_SERVICES);
    let began = Instant::now();
    fleet.apply(&plan);
    let mut applied = fleet.applied();
    applied.wait_for(|number| *number == 4).await.unwrap();
    let took = began.elapsed();
    let grown = resident_kibibytes().saturating_sub(before);
    println!("sleeping services={SLEEPING_SERVICES} applied_in={took:?} resident_kib={grown}");
    fleet.stop(Duration::from_secs(10)).await;
}

async fn fleet(directory: &std::path::Path) -> Fleet {
    let logs = LogStore::new();
    let (runtime, _) = EmbeddedRuntime::open(EmbeddedConfig {
        directory: directory.join("runtime"),
        helper: HelperProgram {
            program: env!("CARGO_BIN_EXE_tidegate-instance-helper").into(),
            arguments: Vec::new(),
            answers_within: serverless::runtime::limits::HELPER_ANSWERS_WITHIN,
        },
        sink: Arc::clone(&logs) as Arc<dyn LogSink>,
        spare_helpers: 2,
    })
    .unwrap();
    runtime.reconcile().await;
    let config = ImageStoreConfig { directory: directory.join("images"), credentials: None };
    let images = StoreImages::new(ImageStore::open(config).unwrap());
    let secrets = SecretFiles::new(directory.join("secrets"));
    let options = FleetOptions::new(Arc::new(runtime), Arc::new(images), Arc::new(secrets), logs);
    Fleet::start(options).0
}

fn warm(fleet: &Fleet, revision: &Arc<RevisionPlan>, threads: u32) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..WARM_REQUESTS {
                    match fleet.acquire(revision) {
                        Acquired::Ready(lease) => drop(lease),
                        other => panic!("not warm: {other:?}"),
                    }
                }
            });
        }
    });
    // Time of one thread for each of its requests.
    began.elapsed().as_secs_f64() * 1e9 / f64::from(WARM_REQUESTS)
}

async fn lease(fleet: &Fleet, revision: &Arc<RevisionPlan>) -> Lease {
    match fleet.acquire(revision) {
        Acquired::Ready(lease) => lease,
        Acquired::Waiting(waiting) => waiting.await.unwrap(),
        Acquired::Refused(refusal) => panic!("{refusal:?}"),
    }
}

fn revisions(plan: &Plan) -> Vec<Arc<RevisionPlan>> {
    plan.fleet.services().filter_map(|service| service.pick(0).cloned()).collect()
}

/// So many services with one revision each, none of which was in an earlier world.
fn world(number: u64, services: u64) -> Arc<Plan> {
    let mut inventory = Inventory::default();
    inventory.insert(Resource::Project(Arc::new(Project {
        name: ResourceName::project("p"),
        number: 1,
        common_instance_metadata: Vec::new(),
    })));
    for index in 0..services {
        let name = format!("s{number}-{index}");
        let (service, revision) = declared(&name, number * 10_000 + index);
        inventory.insert(Resource::Service(Arc::new(service)));
        inventory.insert(Resource::Revision(Arc::new(revision)));
    }
    plan::compile(&inventory, number, &Compiled::default()).plan
}

fn declared(name: &str, id: u64) -> (Service, Revision) {
    let service = Service {
        name: ResourceName::regional("p", "r", Kind::Service, name),
        id,
        ingress: Ingress::All,
        default_url_disabled: false,
        access: Access::default(),
        traffic: Vec::new(),
        traffic_before: Vec::new(),
        scaling: ServiceScaling::default(),
    };
    let revision = Revision {
        name: ResourceName::regional("p", "r", Kind::Revision, &format!("{name}-00001-x")),
        id,
        service: service.name.clone(),
        generation: 1,
        containers: vec![Container {
            name: "".into(),
            image: "localhost/tidegate/hello:latest".to_owned(),
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
    (service, revision)
}

fn resident_kibibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
