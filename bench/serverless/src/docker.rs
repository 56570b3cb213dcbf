//! Docker Engine starting the same images on the same machine, asked through its own socket.
//!
//! An engine of our own, in a network of its own; what is timed is creating and starting a container
//! and the first byte of an answer from inside its network, without a balancer in between.

use crate::images::Image;
use anyhow::{Context, Result, ensure};
use bench_report::Report;
use e2e::http::Connection;
use e2e::namespace::Namespace;
use e2e::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the engine may take to come up.
const ENGINE_LIMIT: Duration = Duration::from_secs(60);
/// How long a container may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How often an engine that takes ten times as long is asked, at most.
const ROUNDS_MAX: usize = 30;

struct Engine {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It ends its containers and its containerd when it is asked to.
        if let Ok(process) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(process), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

pub(crate) fn measure(report: &mut Report, images: &[Image], rounds: usize) -> Result<()> {
    let Some(engine) = Engine::start()? else { return Ok(()) };
    for image in images {
        let Some(archive) = &image.archive else { continue };
        engine.load(archive)?;
        let (mut created, mut started, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds.min(ROUNDS_MAX) {
            let [create, start, answer] = engine.once(&image.reference)?;
            created.push(create);
            started.push(start);
            answered.push(answer);
        }
        let title = image.title;
        report.durations(&format!("Docker Engine, create to first byte, {title}"), answered, "");
        report.durations(&format!("— Docker, {title}: container created"), created, "");
        report.durations(&format!("— Docker, {title}: started"), started, "");
    }
    Ok(())
}

impl Engine {
    fn start() -> Result<Option<Engine>> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        let child = Command::new("unshare")
            .args(["--net", "--", "dockerd", "--bridge=none", "--iptables=false"])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--host", &format!("unix://{}", path("socket"))])
            .stdout(Stdio::null())
            .stderr(File::create(path("log"))?)
            .spawn();
        let Ok(child) = child else {
            println!("SKIPPED: no `dockerd` (apt-get install docker.io)");
            return Ok(None);
        };
        let mut engine = Engine { child, folder };
        let socket = engine.socket();
        let came_up =
            wait::until("the engine comes up", ENGINE_LIMIT, || {
                match UnixStream::connect(&socket) {
                    Ok(_) => Some(true),
                    Err(_) => engine.child.try_wait().ok().flatten().map(|_| false),
                }
            })?;
        if !came_up {
            let log = fs::read_to_string(engine.folder.path().join("log"))?;
            println!("SKIPPED: `dockerd` does not run here: {log}");
            return Ok(None);
        }
        Ok(Some(engine))
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn load(&self, archive: &Path) -> Result<()> {
        let host = format!("unix://{}", self.socket().display());
        let mut load = Command::new("docker");
        load.args(["--host", &host, "load", "--quiet", "--input"])
            .arg(archive)
            .stdout(Stdio::null());
        ensure!(load.status().context("docker")?.success(), "docker load");
        Ok(())
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let page = Connection::over(UnixStream::connect(self.socket())?).request(&head)?;
        ensure!(page.status < 300, "{method} {path}: {} {}", page.status, page.text());
        Ok(serde_json::from_str(&page.text()).unwrap_or_default())
    }

    /// One container from nothing to its first answer and away: created, started, answered.
    fn once(&self, reference: &str) -> Result<[Duration; 3]> {
        let wanted = json!({
            "Image": reference,
            "Env": ["PORT=8080"],
            "HostConfig": { "NetworkMode": "none", "Memory": 512 << 20 },
        });
        let began = Instant::now();
        let made = self.ask("POST", "/containers/create", Some(&wanted))?;
        let created = began.elapsed();
        let id = made["Id"].as_str().context("a container has an id")?;
        self.ask("POST", &format!("/containers/{id}/start"), None)?;
        let started = began.elapsed();
        let state = self.ask("GET", &format!("/containers/{id}/json"), None)?;
        let pid = state["State"]["Pid"].as_u64().context("a container runs as a process")?;
        let inside = Namespace::of_process(u32::try_from(pid)?)?;
        let address = (Ipv4Addr::LOCALHOST, 8080).into();
        let answered = wait::until("the container answers", ANSWER_LIMIT, || {
            let page = Connection::over(inside.connect(address).ok()?).get("h", "/").ok()?;
            (page.status == 200).then(|| began.elapsed())
        })?;
        self.ask("DELETE", &format!("/containers/{id}?force=true"), None)?;
        Ok([created, started.saturating_sub(created), answered])
    }
}
