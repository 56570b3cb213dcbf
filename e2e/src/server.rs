//! One Tidegate server as a child process, with its own data directory.
//!
//! Invariant: a server that was started is killed when its value goes, by its process id, and what it
//! left on the host is removed through `tidegate down`.

use crate::api::Api;
use crate::wait;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take until it says it is ready; generous, since this is no benchmark.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a command of the binary may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How much of a server's log a failing test prints.
const LOG_TAIL_LINES: usize = 60;

/// A running server, or one that was killed and can be started again.
#[derive(Debug)]
pub struct Server {
    data: PathBuf,
    child: Option<Child>,
    log: PathBuf,
    environment: BTreeMap<String, String>,
    arguments: Vec<String>,
    /// How long the last start took until the server said it was ready.
    pub ready_after: Duration,
}

impl Server {
    /// Starts a server on `data` and waits until it says that it is ready.
    pub fn start(data: &Path) -> Result<Server> {
        Server::start_with(data, &[])
    }

    /// Starts a server with further arguments of `up`, which it is started with again, too.
    pub fn start_with(data: &Path, arguments: &[&str]) -> Result<Server> {
        let mut server = Server {
            data: data.to_owned(),
            child: None,
            log: data.with_extension("log"),
            environment: BTreeMap::new(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            ready_after: Duration::ZERO,
        };
        server.start_again()?;
        Ok(server)
    }

    /// Starts the server again on the same data directory.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the server is running");
        self.spawn(&[])
    }

    /// Starts another process that takes the place of the one that runs, and waits until that has gone.
    pub fn replace(&mut self) -> Result<()> {
        let mut old = self.child.take().context("the server runs")?;
        self.spawn(&["--replace"])?;
        wait::until("the server that was replaced ends", COMMAND_LIMIT, || {
            old.try_wait().ok().flatten()
        })?;
        Ok(())
    }

    fn spawn(&mut self, arguments: &[&str]) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let said_before = log.metadata()?.len();
        let started = Instant::now();
        let child = Command::new(binary()?)
            .args(["up", "--data-dir"])
            .arg(&self.data)
            .args(&self.arguments)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("the server does not start")?;
        self.child = Some(child);
        let ready = wait::until("the server says that it is ready", READY_LIMIT, || {
            self.has_said(said_before, "ready").then_some(Ok(())).or_else(|| {
                let ended = self.child.as_mut()?.try_wait().ok()??;
                Some(Err(anyhow::anyhow!("the server ended instead of getting ready: {ended}")))
            })
        });
        self.ready_after = started.elapsed();
        ready.and_then(|outcome| outcome).with_context(|| self.log_tail())?;
        self.environment = self.read_environment()?;
        Ok(())
    }

    fn has_said(&self, from: u64, word: &str) -> bool {
        let text = fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(0).min(text.len());
        let said = String::from_utf8_lossy(&text[from..]).into_owned();
        said.lines().any(|line| line.contains(word)) && said.ends_with('\n')
    }

    fn read_environment(&self) -> Result<BTreeMap<String, String>> {
        let output = self.command(&["env", "--format=json"])?;
        ensure!(
            output.status.success(),
            "tidegate env: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout)
            .context("`tidegate env --format=json` prints an object")
    }

    /// The variables `tidegate env` prints.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A client of this server's API.
    pub fn api(&self) -> Result<Api> {
        Api::new(&self.environment)
    }

    /// Runs `tidegate COMMAND… --data-dir DATA` to its end.
    pub fn command(&self, arguments: &[&str]) -> Result<Output> {
        run_binary(&self.data, arguments)
    }

    /// `kill -9`; returns once the process is gone.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// `tidegate down`: the server ends and the host is as it was.
    pub fn down(&mut self) -> Result<()> {
        let output = self.command(&["down"])?;
        ensure!(
            output.status.success(),
            "tidegate down: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log_tail(),
        );
        if let Some(child) = self.child.as_mut() {
            wait::until("the server ends after `down`", COMMAND_LIMIT, || {
                child.try_wait().ok().flatten()
            })?;
            self.child = None;
        }
        Ok(())
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("--- the server's last lines ---\n{}\n---", tail.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.log_tail());
        }
        let _ = self.kill();
        let _ = run_binary(&self.data, &["down"]);
    }
}

/// Runs the binary on a data directory, with a bound on how long.
pub fn run_binary(data: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.args(arguments).arg("--data-dir").arg(data);
    output_within(command, COMMAND_LIMIT)
}

/// Runs a command to its end, and kills it when it takes longer than `limit`.
pub fn output_within(mut command: Command, limit: Duration) -> Result<Output> {
    let name = format!("{command:?}");
    // The output goes to files: a full pipe would hold the command up, and so would a child of its
    // own that outlives it with the pipe open.
    let mut stdout = tempfile::tempfile()?;
    let mut stderr = tempfile::tempfile()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| name.clone())?;
    let ended = wait::until(&name, limit, || child.try_wait().ok().flatten());
    let stdout = read_back(&mut stdout)?;
    let stderr = read_back(&mut stderr)?;
    match ended {
        Ok(status) => Ok(Output { status, stdout, stderr }),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            bail!("{error}\n{}", String::from_utf8_lossy(&stderr))
        }
    }
}

fn read_back(file: &mut File) -> Result<Vec<u8>> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The binary under test: `TIDEGATE_BINARY`, or the one built beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIDEGATE_BINARY") {
        return Ok(path.into());
    }
    let this = std::env::current_exe()?;
    // A test lies in `target/PROFILE/deps`, a benchmark in `target/PROFILE`.
    let beside = this.ancestors().skip(1).take(2).map(|folder| folder.join("tidegate"));
    let found = beside.into_iter().find(|path| path.is_file());
    found.with_context(|| format!("no `tidegate` beside {}: use `make e2e`", this.display()))
}
