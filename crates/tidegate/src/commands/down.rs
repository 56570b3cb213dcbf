//! `tidegate down`: asks the server of a data directory to stop, and waits until it has gone; where the
//! server was killed, removes from the host what it could not remove itself.

use crate::data_dir::DataDir;
use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How long a server may take to drain its connections and clear the host.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the lock is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

pub(crate) async fn run(dir: &DataDir) -> anyhow::Result<String> {
    if !dir.is_held() && dir.last_announced()?.is_some() {
        crate::server::clear(dir).await?;
        let shown = dir.root().display();
        return Ok(format!("No server runs on {shown}; nothing of an earlier one is left."));
    }
    let running = dir.running()?;
    let pid = Pid::from_raw(i32::try_from(running.pid).context("not a process id")?);
    kill(pid, Signal::SIGTERM)
        .with_context(|| format!("could not signal the server, process {pid}"))?;
    let deadline = Instant::now() + PATIENCE;
    while dir.is_held() {
        if Instant::now() > deadline {
            bail!("the server (process {pid}) is still stopping after {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(format!("The server on {} has stopped.", dir.root().display()))
}
