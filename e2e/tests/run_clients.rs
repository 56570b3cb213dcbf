//! Cloud Run's version 2 by Google's own Python client: one script over both of its transports.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::python;
use e2e::server::{Server, output_within};
use e2e::{IMAGE, REGION};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

/// The packages of the clients.
const PACKAGES: &[&str] = &["google-cloud-run", "google-cloud-logging", "google-auth", "requests"];

/// A Python with Google's clients in it.
pub(crate) fn python() -> Result<std::path::PathBuf> {
    python::with_packages(Path::new(env!("CARGO_TARGET_TMPDIR")), "google-clients", PACKAGES)
}

/// Runs one of the scripts in `clients/` as a user would who pointed the shell at the server, or
/// who gave the client the server's own port as its endpoint.
pub(crate) fn script(server: &Server, name: &str, arguments: &[&str]) -> Result<Command> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
    let mut command = Command::new(python()?);
    command.arg(script).args(arguments).envs(server.environment()).env("PYTHONWARNINGS", "ignore");
    Ok(command)
}

fn ran(command: Command, said: &str) -> Result<()> {
    let output = output_within(command, SCRIPT_LIMIT)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && printed.contains(said), "{printed}{complained}");
    Ok(())
}

#[test]
fn pythons_client_of_version_2_does_everything_over_rest_and_grpc() -> Result<()> {
    let Some(stage) = Stage::set("Cloud Run v2 by Google's Python client")? else { return Ok(()) };
    let proxy = stage.server.environment().get("HTTPS_PROXY").context("a proxy")?;
    let port = proxy.rsplit(':').next().context("its port")?;
    let endpoint = format!("localhost:{port}");
    for transport in ["rest", "grpc"] {
        for way in ["proxy", &endpoint] {
            let mut command = script(&stage.server, "run_v2.py", &[transport, way, IMAGE, REGION])?;
            if way != "proxy" {
                command.env_remove("HTTPS_PROXY").env_remove("https_proxy");
            }
            ran(command, "all methods answered")
                .with_context(|| format!("{transport} by {way}"))?;
        }
    }
    stage.strike()
}
