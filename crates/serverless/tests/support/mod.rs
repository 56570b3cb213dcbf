//! What the tests of this crate share: a program to run, images to run it from, a runtime of
//! their own, and a look at the host.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

pub mod suite;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use model::run::{PortProtocol, Revision, RevisionScaling};
use model::{Kind, ResourceName};
use plan::fleet::RevisionPlan;
use serverless::images::{ImageConfig, ImagePin, ResolvedImage};
use serverless::runtime::launch::{LiveInstance, StartFailure, launch};
use serverless::runtime::{
    ContainerSpec, EmbeddedConfig, EmbeddedRuntime, HelperProgram, Instance, InstanceId,
    InstanceSpec, Limits, LogLine, LogSink, MetadataServer, Network, Outward, Pending, Probes,
    Reconciled, Runtime, Surroundings,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Whether the test may go on; says why not.
pub fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: starting containers needs root");
    }
    root
}

/// The compiled test program.
pub fn subject() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/subject.rs");
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(&directory).unwrap();
        let program = directory.join("subject");
        // Tests run side by side and in several processes: build aside, then put in place.
        let mine = directory.join(format!("subject-{}", std::process::id()));
        let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let status = Command::new(compiler)
            .args(["--edition=2024", "--crate-name=subject", "-C", "target-feature=+crt-static"])
            .args([
                "-C",
                "panic=abort",
                "-C",
                "strip=symbols",
                "-C",
                "relocation-model=static",
                "-o",
            ])
            .arg(&mine)
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success(), "the test program does not compile");
        fs::rename(&mine, &program).unwrap();
        program
    })
}

/// Keeps every line.
#[derive(Debug, Default)]
pub struct Lines(pub Mutex<Vec<(String, LogLine)>>);

impl LogSink for Lines {
    fn line(&self, instance: &InstanceId, line: &LogLine) {
        self.0.lock().unwrap().push((instance.to_string(), line.clone()));
    }
}

impl Lines {
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, line)| line.text.clone()).collect()
    }
}

/// A metadata server that tells everybody who they are.
#[derive(Debug)]
pub struct WhoAmI;

impl MetadataServer for WhoAmI {
    fn serve(
        &self,
        instance: &InstanceId,
        revision: &Arc<RevisionPlan>,
        listener: std::net::TcpListener,
    ) -> Pending<'static, ()> {
        let text = format!("{instance} of {}", revision.name.name);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        Box::pin(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 4096];
                let _ = stream.read(&mut question).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
    }
}

/// A network that tells every connection where it wanted to go.
#[derive(Debug)]
pub struct Echo;

impl Network for Echo {
    fn attach(
        &self,
        instance: &InstanceId,
        _revision: &Arc<RevisionPlan>,
        outward: Outward,
    ) -> Pending<'static, ()> {
        let instance = instance.clone();
        Box::pin(async move {
            let listener = tokio::net::TcpListener::from_std(outward.connections).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                let text = format!("{instance} to {}", stream.local_addr().unwrap());
                let mut question = [0; 4096];
                let _ = stream.read(&mut question).await;
                let answer =
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
    }
}

pub fn surroundings() -> Surroundings {
    Surroundings { metadata: Some(Arc::new(WhoAmI)), network: Some(Arc::new(Echo)) }
}

/// A revision as the plan has it; what the containers run is said elsewhere.
pub fn revision_plan() -> Arc<RevisionPlan> {
    let name = |kind, name| ResourceName::regional("p", "us-west1", kind, name);
    let declared = Revision {
        name: name(Kind::Revision, "shop-00001-abc"),
        id: 7,
        service: name(Kind::Service, "shop"),
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
        outcome: None,
    };
    Arc::new(RevisionPlan {
        id: declared.id,
        name: declared.name.clone(),
        port: 8080,
        protocol: PortProtocol::Http1,
        concurrency: 80,
        timeout: Duration::from_secs(300),
        declared: Arc::new(declared),
    })
}

/// A runtime with a directory of its own and an image with the test program.
pub struct World {
    pub directory: tempfile::TempDir,
    pub runtime: Arc<dyn Runtime>,
    pub mark: String,
    pub lines: Arc<Lines>,
    /// Whether the host's control groups let it.
    pub limits_memory: bool,
    pub limits_processes: bool,
}

impl World {
    pub async fn new() -> World {
        World::with_spares(0).await
    }

    /// A directory with a layer that has the test program.
    pub fn prepare() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        fs::create_dir_all(layer.join("etc")).unwrap();
        fs::create_dir_all(layer.join("tmp")).unwrap();
        fs::copy(subject(), layer.join("subject")).unwrap();
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/\nbob:x:1000:50::/home/bob:/\n")
            .unwrap();
        directory
    }

    /// A world of the embedded runtime.
    pub async fn with_spares(spare_helpers: usize) -> World {
        World::of(helper(), spare_helpers).await
    }

    /// A world of the embedded runtime with helpers of this program.
    pub async fn of(helper: HelperProgram, spare_helpers: usize) -> World {
        let directory = World::prepare();
        let lines = Arc::new(Lines::default());
        let config = EmbeddedConfig {
            directory: directory.path().join("runtime"),
            helper,
            sink: Arc::clone(&lines) as Arc<dyn LogSink>,
            spare_helpers,
        };
        let (runtime, problems) = EmbeddedRuntime::open_in(config, surroundings()).unwrap();
        for problem in &problems {
            eprintln!("NOTE: {problem}");
        }
        let found = runtime.reconcile().await;
        assert_eq!(found.instances_removed, 0);
        let mark = runtime.mark().to_owned();
        let limits = |what: &str| !problems.iter().any(|problem| problem.starts_with(what));
        World {
            directory,
            runtime: Arc::new(runtime),
            mark,
            lines,
            limits_memory: limits("memory limits"),
            limits_processes: limits("process limits"),
        }
    }

    pub fn image(&self) -> ResolvedImage {
        image(self.directory.path().join("layer"), ImageConfig::default())
    }

    /// An instance with one container that runs the test program with these words.
    pub fn spec(&self, id: &str, words: &[&str]) -> InstanceSpec {
        InstanceSpec {
            id: InstanceId::new(id).unwrap(),
            service: "shop".to_owned(),
            revision: "shop-00001-abc".to_owned(),
            configuration: "shop".to_owned(),
            containers: vec![ContainerSpec {
                port: Some(8080),
                ..container("app", self.image(), words)
            }],
            volumes: Vec::new(),
            startup_boost: false,
            host_name: "localhost".to_owned(),
            revision_plan: Some(revision_plan()),
        }
    }

    pub async fn launch(&self, spec: InstanceSpec) -> Result<LiveInstance, StartFailure> {
        launch(&*self.runtime, Arc::new(spec)).await
    }

    /// Ends the test: nothing of the runtime may be left on the host.
    pub async fn end(self) {
        self.runtime.shut_down().await;
        assert_eq!(traces(&self.mark), Vec::<String>::new());
        for name in ["runtime/instances", "runtime/volumes"] {
            let entries = fs::read_dir(self.directory.path().join(name));
            assert_eq!(entries.map_or(0, Iterator::count), 0, "directories of instances are left");
        }
        let found = self.runtime.reconcile().await;
        assert_eq!(found, Reconciled::default());
        self.runtime.shut_down().await;
    }
}

pub fn helper() -> HelperProgram {
    HelperProgram {
        program: env!("CARGO_BIN_EXE_tidegate-instance-helper").into(),
        arguments: Vec::new(),
        answers_within: serverless::runtime::limits::HELPER_ANSWERS_WITHIN,
    }
}

pub fn image(layer: PathBuf, config: ImageConfig) -> ResolvedImage {
    ResolvedImage {
        reference: "subject".to_owned(),
        pinned: "localhost/subject@sha256:0".to_owned(),
        digest: "sha256:0".to_owned(),
        config: Arc::new(ImageConfig { entrypoint: vec!["/subject".to_owned()], ..config }),
        layers: vec![layer],
        substitution: None,
        pin: Arc::new(ImagePin { digest: "sha256:0".to_owned() }),
    }
}

pub fn container(name: &str, image: ResolvedImage, words: &[&str]) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        image,
        command: Vec::new(),
        arguments: words.iter().map(|word| (*word).to_owned()).collect(),
        environment: Vec::new(),
        working_directory: None,
        port: None,
        limits: Limits::default(),
        probes: Probes::default(),
        starts_after: Vec::new(),
        mounts: Vec::new(),
    }
}

/// One request to an instance; status and body.
pub async fn get(instance: &Arc<dyn Instance>, path: &str) -> (u16, String) {
    let mut stream = instance.dial(8080).await.unwrap();
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned());
        (status, body)
    })
    .await
    .unwrap()
}

/// Processes, mounts and control groups that carry a runtime's mark.
pub fn traces(mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() {
            continue;
        }
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(mark) || groups.contains(mark) {
            found.push(format!("process {name}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(mark)).map(str::to_owned));
    found.extend(groups(mark).iter().map(|path| path.display().to_string()));
    found
}

/// Directories of control groups with a runtime's mark, at any depth.
pub fn groups(mark: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((directory, depth)) = todo.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if path.to_string_lossy().contains(mark) {
                found.push(path.clone());
            }
            if depth < 3 {
                todo.push((path, depth + 1));
            }
        }
    }
    found
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(std::time::Instant::now() < deadline, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// `name: value` lines of a `/proc` file.
pub fn fields(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}
