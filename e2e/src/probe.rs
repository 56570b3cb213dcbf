//! The test image: a container that tells what it sees and asks others on request.
//!
//! What it can be asked is said by its program, `probe/main.rs`.

use crate::server::{Server, output_within};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The name services deploy it by.
pub const PROBE: &str = "localhost/e2e/probe:latest";

/// How long packing may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The program, a static executable.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));

/// Brings the image into a server's store, from a file as `docker save` writes it.
pub fn load(server: &Server) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    fs::create_dir_all(root.join("tmp"))?;
    fs::create_dir_all(&image)?;
    place(&root)?;
    let layer = pack(&root, &image.join("layer.tar"))?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/probe"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    });
    fs::write(image.join("config.json"), config.to_string())?;
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": [PROBE], "Layers": ["layer.tar"] }]);
    fs::write(image.join("manifest.json"), manifest.to_string())?;
    let place = image.to_str().context("a path in UTF-8")?;
    let output = server.command(&["image", "load", place])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "tidegate image load: {said}");
    Ok(())
}

/// Puts the program into a directory, as `/probe`.
pub fn place(root: &Path) -> Result<()> {
    let program = root.join("probe");
    fs::write(&program, PROGRAM)?;
    Ok(fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?)
}

/// Packs a directory into an archive; its SHA-256.
pub fn pack(directory: &Path, archive: &Path) -> Result<String> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "-C"]).arg(directory);
    tar.arg("-cf").arg(archive).arg(".");
    let output = output_within(tar, LIMIT)?;
    ensure!(output.status.success(), "tar: {}", String::from_utf8_lossy(&output.stderr));
    let digest = Sha256::digest(fs::read(archive)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
