//! How long it takes from wanting an instance to its first byte, in phases; how long many at once
//! take; and what an idle instance costs. Needs root. Prints a table; decides nothing.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::fs;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serverless::images::{ImageStore, ImageStoreConfig, ResolvedImage};
use serverless::runtime::launch::{LiveInstance, launch};
use serverless::runtime::{
    ContainerSpec, EmbeddedConfig, EmbeddedRuntime, HelperProgram, InstanceId, InstanceSpec,
    Limits, LogLine, LogSink, Probes, Runtime,
};

const ROUNDS: usize = 100;
/// Between two rounds, so that spare helpers are there again, as after a quiet moment.
const REST: Duration = Duration::from_millis(50);
const HELLO: &str = "localhost/tidegate/hello:latest";

#[derive(Debug)]
struct Nowhere;

impl LogSink for Nowhere {
    fn line(&self, _: &InstanceId, _: &LogLine) {}
}

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: starting containers needs root");
        return;
    }
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        bare_process();
        one_at_a_time(0).await;
        one_at_a_time(2).await;
        for count in [25, 100] {
            many_at_once(count).await;
        }
    });
}

fn open(directory: &tempfile::TempDir, spare_helpers: usize) -> EmbeddedRuntime {
    let config = EmbeddedConfig {
        directory: directory.path().join("runtime"),
        helper: HelperProgram {
            program: env!("CARGO_BIN_EXE_tidegate-instance-helper").into(),
            arguments: Vec::new(),
            answers_within: serverless::runtime::limits::HELPER_ANSWERS_WITHIN,
        },
        sink: Arc::new(Nowhere),
        spare_helpers,
    };
    EmbeddedRuntime::open(config).unwrap().0
}

async fn image(directory: &tempfile::TempDir) -> ResolvedImage {
    let directory = directory.path().join("images");
    let store = ImageStore::open(ImageStoreConfig { directory, credentials: None }).unwrap();
    store.resolve(HELLO, &|_| ()).await.unwrap()
}

fn spec(image: &ResolvedImage, number: usize) -> Arc<InstanceSpec> {
    Arc::new(InstanceSpec {
        id: InstanceId::new(&format!("hello-{number}")).unwrap(),
        service: "hello".to_owned(),
        revision: "hello-00001-abc".to_owned(),
        configuration: "hello".to_owned(),
        containers: vec![ContainerSpec {
            name: "hello".to_owned(),
            image: image.clone(),
            command: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: None,
            port: Some(8080),
            limits: Limits::default(),
            probes: Probes::default(),
            starts_after: Vec::new(),
            mounts: Vec::new(),
        }],
        volumes: Vec::new(),
        startup_boost: false,
        host_name: "localhost".to_owned(),
        revision_plan: None,
    })
}

/// The floor: the same program as a plain child process, until its port is open.
fn bare_process() {
    let directory = tempfile::tempdir().unwrap();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // A runtime of its own on a thread of its own: this one is inside another already.
    let program = std::thread::spawn(move || {
        let image = tokio.block_on(image(&directory));
        (directory, image.layers[0].join("hello"))
    });
    let (_directory, program) = program.join().unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let began = Instant::now();
        let mut child = std::process::Command::new(&program)
            .env("PORT", port.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_micros(100));
        }
        times.push(began.elapsed());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    row("bare process, spawn to open port", &mut times);
}

async fn one_at_a_time(spare_helpers: usize) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(&directory, spare_helpers);
    runtime.reconcile().await;
    let image = image(&directory).await;
    let (mut created, mut executed, mut ready) = (Vec::new(), Vec::new(), Vec::new());
    let (mut first_byte, mut stopped) = (Vec::new(), Vec::new());
    for number in 0..ROUNDS {
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        let live = launch(&runtime, spec(&image, number)).await.unwrap();
        ask(&live).await;
        first_byte.push(began.elapsed());
        created.push(live.phases().created);
        executed.push(live.phases().executed);
        ready.push(live.phases().ready);
        let began = Instant::now();
        live.stop(Duration::from_secs(10)).await;
        stopped.push(began.elapsed());
    }
    runtime.shut_down().await;
    println!("one instance at a time, {spare_helpers} spare helpers:");
    row("  sandbox created", &mut created);
    row("  program executed", &mut executed);
    row("  ready (port open)", &mut ready);
    row("  first byte of an answer", &mut first_byte);
    row("  stopped and removed", &mut stopped);
}

async fn many_at_once(count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let runtime = open(&directory, 2);
    runtime.reconcile().await;
    let image = image(&directory).await;
    let began = Instant::now();
    let launches = (0..count).map(|number| launch(&runtime, spec(&image, number)));
    let live = try_join_all(launches).await.unwrap();
    println!("{count} at once: all ready after {:.1} ms", milliseconds(began.elapsed()));
    let mut memory = Vec::new();
    for each in &live {
        memory.push(each.instance().usage().memory_bytes);
    }
    memory.sort_unstable();
    println!(
        "  memory of a container, median: {} KiB; of its helper (private): {} KiB",
        memory[memory.len() / 2] / 1024,
        helper_private_kibibytes(runtime.mark())
    );
    let began = Instant::now();
    for stop in live.iter().map(|each| each.stop(Duration::from_secs(10))).collect::<Vec<_>>() {
        stop.await;
    }
    println!("  all stopped after {:.1} ms", milliseconds(began.elapsed()));
    runtime.shut_down().await;
}

/// Private memory of one helper of ours.
fn helper_private_kibibytes(mark: &str) -> u64 {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(mark) {
            let rollup = fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
            let private = rollup.lines().filter(|line| line.starts_with("Private_"));
            let numbers =
                private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            return numbers.sum();
        }
    }
    0
}

async fn ask(live: &LiveInstance) {
    let mut stream = live.instance().dial(8080).await.unwrap();
    tokio::task::spawn_blocking(move || {
        stream.set_nonblocking(false).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
    })
    .await
    .unwrap();
}

fn row(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: usize| milliseconds(times[(times.len() - 1) * part / 100]);
    println!("{name:<34} p50 {:>6.1} ms   p99 {:>6.1} ms   min {:>6.1} ms", at(50), at(99), at(0));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
