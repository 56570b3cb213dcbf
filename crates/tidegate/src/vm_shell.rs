//! A command in a client VM, over SSH, the way every client gets in: through the tunnel's address and the
//! firewall, with a key the VM's metadata names and a host key that is checked.

use crate::joins::instance_port::VpcPorts;
use anyhow::{Context, bail};
use api::door::InstancePort;
use model::ResourceName;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::process::Command;

/// The login name in the VM.
pub(crate) const USER: &str = "demo";

/// How long one command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// A key pair that is kept in a directory, made by ssh-keygen at the first use.
#[derive(Debug)]
pub(crate) struct SshKey {
    directory: PathBuf,
}

impl SshKey {
    pub(crate) fn open(directory: PathBuf) -> anyhow::Result<SshKey> {
        fs::create_dir_all(&directory)
            .with_context(|| format!("could not make `{}`", directory.display()))?;
        let key = SshKey { directory };
        if !key.private().exists() {
            let made = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", USER, "-f"])
                .arg(key.private())
                .status()
                .context("could not run ssh-keygen (package openssh-client)")?;
            if !made.success() {
                bail!("ssh-keygen could not make a key");
            }
        }
        Ok(key)
    }

    fn private(&self) -> PathBuf {
        self.directory.join("id_ed25519")
    }

    /// The line for the `ssh-keys` metadata item.
    pub(crate) fn metadata_line(&self) -> anyhow::Result<String> {
        let path = self.private().with_extension("pub");
        let public = fs::read_to_string(&path)
            .with_context(|| format!("could not read `{}`", path.display()))?;
        Ok(format!("{USER}:{}", public.trim()))
    }

    /// Runs a shell command in the VM and returns what it printed.
    pub(crate) async fn run(
        &self,
        ports: &VpcPorts,
        vm: &ResourceName,
        command: &str,
    ) -> anyhow::Result<String> {
        let known_hosts = self.directory.join("known_hosts");
        let keys = ports.vpc.host_keys(vm);
        let lines: String = keys.iter().map(|(kind, key)| format!("vm {kind} {key}\n")).collect();
        fs::write(&known_hosts, lines)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let tunnel = async {
            let (mut near, _) = listener.accept().await?;
            let mut far = ports.connect(vm, 22).await?;
            copy_bidirectional(&mut near, &mut far).await
        };
        let mut ssh = Command::new("ssh");
        ssh.args(["-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"])
            .args(["-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=vm", "-F", "/dev/null"])
            .arg("-o")
            .arg(known_hosts_option(&known_hosts))
            .arg("-i")
            .arg(self.private())
            .args(["-p", &port.to_string(), &format!("{USER}@127.0.0.1"), "--", command])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_PATIENCE, async {
            let mut ended = std::pin::pin!(ssh.output());
            tokio::select! {
                output = &mut ended => output.context("could not run ssh (package openssh-client)"),
                carried = tunnel => {
                    carried.context("could not reach the client VM")?;
                    ended.await.context("could not run ssh")
                }
            }
        })
        .await
        .with_context(|| {
            format!("`{command}` took longer than {} s", COMMAND_PATIENCE.as_secs())
        })??;
        if !output.status.success() {
            bail!("`{command}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn known_hosts_option(path: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from("UserKnownHostsFile=");
    option.push(path);
    option
}
