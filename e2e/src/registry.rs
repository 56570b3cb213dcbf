//! An image registry on a loopback port: Debian's `docker-registry`, with its storage in a folder of its own.
//!
//! Invariant: the registry that was started ends with this value.

use crate::{probe, wait};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long it may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A registry that answers, without TLS and for everybody.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    folder: TempDir,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Registry {
    /// Starts one; `None`, said aloud, where the program is not installed.
    pub fn start() -> Result<Option<Registry>> {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let (data, config) = (folder.path().join("data"), folder.path().join("config.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {address}\n",
            data.display()
        );
        fs::write(&config, text)?;
        let mut program = Command::new("docker-registry");
        program.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = program.spawn() else {
            println!("SKIPPED: docker-registry is not installed (scripts/packages run test)");
            return Ok(None);
        };
        let registry = Registry { child, folder, address };
        wait::until("the registry listens", START_LIMIT, || {
            TcpStream::connect(&registry.address).ok()
        })?;
        Ok(Some(registry))
    }

    /// Pushes an image whose one layer is a directory.
    pub fn push(&self, name: &str, tag: &str, root: &Path) -> Result<()> {
        let archive = self.folder.path().join("layer.tar");
        let layer = probe::pack(root, &archive)?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
        });
        let config = self.blob(name, config.to_string().as_bytes())?;
        let layer = self.blob(name, &fs::read(archive)?)?;
        let described = |kind: &str, (digest, size): &(String, usize)| {
            let kind = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": kind, "digest": digest, "size": size })
        };
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "config": described("config.v1+json", &config),
            "layers": [described("layer.v1.tar", &layer)],
        });
        self.put(&format!("/v2/{name}/manifests/{tag}"), kind, manifest.to_string().as_bytes())
    }

    /// Puts a blob there; its digest and size.
    fn blob(&self, name: &str, bytes: &[u8]) -> Result<(String, usize)> {
        let hexadecimal: String =
            Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hexadecimal}");
        let begun = ureq::post(format!("http://{}/v2/{name}/blobs/uploads/", self.address));
        let begun = begun.send_empty()?;
        let place = begun.headers().get("location").context("a place to upload to")?.to_str()?;
        // The place is a path or a whole URL, and has a query already.
        let path = place.strip_prefix(&format!("http://{}", self.address)).unwrap_or(place);
        let kind = "application/octet-stream";
        self.put(&format!("{path}&digest={digest}"), kind, bytes)?;
        Ok((digest, bytes.len()))
    }

    fn put(&self, path: &str, kind: &str, bytes: &[u8]) -> Result<()> {
        let url = format!("http://{}{path}", self.address);
        let answer = ureq::put(&url).header("content-type", kind).send(bytes)?;
        ensure!(answer.status() == 201, "PUT {url}: {}", answer.status());
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
