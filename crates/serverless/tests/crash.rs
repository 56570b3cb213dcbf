//! What is left on the host when the server is killed, and when it is started again. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serverless::runtime::launch::launch;
use serverless::runtime::{
    ContainerSpec, EmbeddedConfig, EmbeddedRuntime, InstanceId, InstanceSpec, LogSink, Runtime,
};
use support::{Lines, container, helper, image, root, subject, traces, until};

const DIRECTORY_VARIABLE: &str = "TIDEGATE_TEST_SERVER_DIRECTORY";
const INSTANCES: usize = 3;

fn open(directory: &Path) -> EmbeddedRuntime {
    let config = EmbeddedConfig {
        directory: directory.join("runtime"),
        helper: helper(),
        sink: Arc::new(Lines::default()) as Arc<dyn LogSink>,
        spare_helpers: 1,
    };
    EmbeddedRuntime::open(config).unwrap().0
}

fn spec(directory: &Path, number: usize) -> InstanceSpec {
    let image = image(directory.join("layer"), Default::default());
    InstanceSpec {
        id: InstanceId::new(&format!("instance-{number}")).unwrap(),
        service: "shop".to_owned(),
        revision: "shop-00001-abc".to_owned(),
        configuration: "shop".to_owned(),
        containers: vec![ContainerSpec {
            port: Some(8080),
            ..container("app", image, &["serve", "0.0.0.0:8080"])
        }],
        volumes: Vec::new(),
        startup_boost: false,
        host_name: "localhost".to_owned(),
        revision_plan: None,
    }
}

/// The server that is killed: this test in a process of its own, told so by the environment.
#[tokio::test]
async fn a_server_to_be_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from) else { return };
    let runtime = open(&directory);
    runtime.reconcile().await;
    let mut live = Vec::new();
    for number in 0..INSTANCES {
        live.push(launch(&runtime, Arc::new(spec(&directory, number))).await.unwrap());
    }
    println!("ready {}", runtime.mark());
    std::future::pending::<()>().await;
}

/// Starts the server above and waits until its instances run; its process and its mark.
fn start_server(directory: &Path) -> (std::process::Child, String) {
    let mut server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_server_to_be_killed", "--nocapture"])
        .env(DIRECTORY_VARIABLE, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let mark = lines
        .map_while(Result::ok)
        .find_map(|line| line.split_once("ready ").map(|(_, mark)| mark.to_owned()))
        .expect("the server starts");
    (server, mark)
}

fn prepare() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("layer")).unwrap();
    fs::copy(subject(), directory.path().join("layer/subject")).unwrap();
    directory
}

fn processes(mark: &str) -> Vec<Pid> {
    let numbers = traces(mark)
        .into_iter()
        .filter_map(|trace| trace.strip_prefix("process ").and_then(|number| number.parse().ok()));
    numbers.map(Pid::from_raw).collect()
}

#[tokio::test]
async fn containers_die_with_the_server_and_the_next_one_finds_a_clean_host() {
    if !root() {
        return;
    }
    let directory = prepare();
    let (mut server, mark) = start_server(directory.path());
    assert!(processes(&mark).len() >= INSTANCES, "helpers run");
    server.kill().unwrap();
    server.wait().unwrap();
    // Nobody tells the helpers anything: the end of their control sockets is enough.
    until("nothing is left", || traces(&mark).is_empty()).await;

    let runtime = open(directory.path());
    let found = runtime.reconcile().await;
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!(found.instances_removed, INSTANCES as u64);
    // The same names can be used at once.
    let live = launch(&runtime, Arc::new(spec(directory.path(), 0))).await.unwrap();
    live.stop(Duration::ZERO).await;
    runtime.shut_down().await;
    assert_eq!(traces(&mark), Vec::<String>::new());
}

#[tokio::test]
async fn what_the_server_and_its_helpers_could_not_clean_up_is_removed_at_the_next_start() {
    if !root() {
        return;
    }
    let directory = prepare();
    let (mut server, mark) = start_server(directory.path());
    // Helpers that cannot react: stopped first, then the server is killed under them.
    for process in processes(&mark) {
        kill(process, Signal::SIGSTOP).unwrap();
    }
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(!processes(&mark).is_empty(), "something is left to be removed");

    let runtime = open(directory.path());
    let found = runtime.reconcile().await;
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!(found.instances_removed, INSTANCES as u64);
    runtime.shut_down().await;
    until("every process is gone", || processes(&mark).is_empty()).await;
    assert_eq!(traces(&mark), Vec::<String>::new());
    let left = fs::read_dir(directory.path().join("runtime/instances")).unwrap().count();
    assert_eq!(left, 0);
}

/// A group of a server with this mark.
fn group_of(hierarchy: &Path, mark: &str) -> PathBuf {
    let group = hierarchy.join(format!("tidegate-{mark}")).join("shop-00001-abc.app");
    fs::create_dir_all(&group).unwrap();
    group
}

/// From now on the group was last touched an hour ago. Tests beside this one remove what is old, too.
fn grow_old(group: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    for directory in [group, group.parent().unwrap()] {
        fs::File::open(directory).unwrap().set_modified(then).unwrap();
    }
}

#[tokio::test]
async fn groups_of_servers_that_are_gone_are_removed_and_no_others() {
    let hierarchy = Path::new("/sys/fs/cgroup/pids");
    if !root() || !hierarchy.is_dir() {
        eprintln!("SKIPPED: needs root and a version 1 hierarchy of control groups");
        return;
    }
    let own = std::process::id();
    let mark = |kind: u8| format!("{kind:02x}{own:010x}");
    let [gone, recent, used, helped] = [1, 2, 3, 4].map(|kind| group_of(hierarchy, &mark(kind)));
    let mut member = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(used.join("cgroup.procs"), member.id().to_string()).unwrap();
    let script = ["-c", "read -r line", "instance-helper", "--mark", &mark(4)];
    let mut helper = Command::new("sh").args(script).stdin(Stdio::piped()).spawn().unwrap();

    for group in [&gone, &used, &helped] {
        grow_old(group);
    }

    let directory = prepare();
    let runtime = open(directory.path());
    runtime.reconcile().await;
    runtime.shut_down().await;
    let left = [&gone, &recent, &used, &helped].map(|group| group.is_dir());
    assert_eq!(left, [false, true, true, true]);
    assert!(!gone.parent().unwrap().exists());

    for process in [&mut member, &mut helper] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    for group in [recent, used, helped] {
        until("the group can be removed", || fs::remove_dir(&group).is_ok()).await;
        fs::remove_dir(group.parent().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_server_without_containers_has_no_groups() {
    if !root() {
        return;
    }
    let directory = prepare();
    let runtime = open(directory.path());
    runtime.reconcile().await;
    let mark = runtime.mark().to_owned();
    // Killed now, there is nothing it could have removed.
    assert_eq!(support::groups(&mark), Vec::<PathBuf>::new());
    let live = launch(&runtime, Arc::new(spec(directory.path(), 0))).await.unwrap();
    assert_ne!(support::groups(&mark), Vec::<PathBuf>::new());
    live.stop(Duration::ZERO).await;
    assert_eq!(support::groups(&mark), Vec::<PathBuf>::new());
    runtime.shut_down().await;
}
