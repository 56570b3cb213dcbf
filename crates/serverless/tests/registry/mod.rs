//! A registry on a loopback port, and images to put into it or into files.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::manifest::{
    ImageIndexEntry, OciDescriptor, OciImageIndex, OciImageManifest, OciManifest,
};
use oci_client::secrets::RegistryAuth;
use serde_json::json;
use sha2::{Digest, Sha256};

/// `secret`, as htpasswd writes it.
const SECRET_HASH: &str = "$2b$04$6F/BPMGWhZBxQi9T9g2o..rE/XibE2iI9x81ot3RmmKWyRi2Ddmge";

/// Debian's `docker-registry`, ended when dropped.
pub struct Registry {
    child: Child,
    port: u16,
    directory: tempfile::TempDir,
    auth: RegistryAuth,
}

/// An image in the registry.
pub struct Pushed {
    pub digest: String,
    pub bytes: i64,
    pub layers: Vec<String>,
}

impl Registry {
    /// None, with the reason printed, where the program is not installed.
    pub fn start(password: Option<(&str, &str)>) -> Option<Registry> {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            directory.path().join("data").display()
        );
        let mut auth = RegistryAuth::Anonymous;
        if let Some((name, word)) = password {
            let file = directory.path().join("htpasswd");
            fs::write(&file, format!("{name}:{SECRET_HASH}\n")).unwrap();
            text += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display());
            auth = RegistryAuth::Basic(name.to_owned(), word.to_owned());
        }
        let file = directory.path().join("config.yml");
        fs::write(&file, text).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(child) = started else {
            eprintln!("SKIPPED: needs `docker-registry` (apt-get install docker-registry)");
            return None;
        };
        let registry = Registry { child, port, directory, auth };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(registry)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    fn client(&self) -> Client {
        Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() })
    }

    /// Pushes an image of these layers, each packed as said.
    pub async fn push(&self, name: &str, tag: &str, layers: &[Vec<u8>], packed: &[&str]) -> Pushed {
        let client = self.client();
        let reference: Reference = self.reference(&format!("{name}:{tag}")).parse().unwrap();
        client.store_auth_if_needed(&self.address(), &self.auth).await;
        client.auth(&reference, &self.auth, oci_client::RegistryOperation::Push).await.unwrap();
        let mut descriptors = Vec::new();
        for (layer, how) in layers.iter().zip(packed) {
            let (bytes, kind) = match *how {
                "gzip" => (gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip"),
                "zstd" => (
                    zstd::stream::encode_all(&layer[..], 1).unwrap(),
                    "application/vnd.oci.image.layer.v1.tar+zstd",
                ),
                _ => (layer.clone(), "application/vnd.docker.image.rootfs.diff.tar"),
            };
            descriptors.push(self.blob(&client, &reference, bytes, kind).await);
        }
        let kind = "application/vnd.oci.image.config.v1+json";
        let config = self.blob(&client, &reference, config(layers), kind).await;
        let manifest = OciImageManifest {
            config,
            media_type: Some("application/vnd.oci.image.manifest.v1+json".to_owned()),
            layers: descriptors,
            ..OciImageManifest::default()
        };
        let layers = manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
        let manifest = OciManifest::Image(manifest);
        let bytes = serde_json::to_vec(&manifest).unwrap();
        client.push_manifest(&reference, &manifest).await.unwrap();
        let auth = &self.auth;
        let digest = client.fetch_manifest_digest(&reference, auth).await.unwrap();
        Pushed { digest, bytes: i64::try_from(bytes.len()).unwrap(), layers }
    }

    async fn blob(
        &self,
        client: &Client,
        reference: &Reference,
        bytes: Vec<u8>,
        kind: &str,
    ) -> OciDescriptor {
        let digest = digest(&bytes);
        let size = i64::try_from(bytes.len()).unwrap();
        client.push_blob(reference, bytes, &digest).await.unwrap();
        OciDescriptor { digest, size, media_type: kind.to_owned(), ..OciDescriptor::default() }
    }

    /// Pushes an index over images that are there.
    pub async fn push_index(&self, name: &str, tag: &str, images: &[(&str, &Pushed)]) {
        let reference: Reference = self.reference(&format!("{name}:{tag}")).parse().unwrap();
        let entries = images.iter().map(|(architecture, pushed)| {
            let entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": pushed.digest,
                "size": pushed.bytes,
                "platform": { "architecture": architecture, "os": "linux" },
            });
            serde_json::from_value::<ImageIndexEntry>(entry).unwrap()
        });
        let index = OciImageIndex {
            schema_version: 2,
            media_type: Some("application/vnd.oci.image.index.v1+json".to_owned()),
            manifests: entries.collect(),
            artifact_type: None,
            annotations: None,
        };
        let client = self.client();
        client.store_auth_if_needed(&self.address(), &self.auth).await;
        client.push_manifest(&reference, &OciManifest::ImageIndex(index)).await.unwrap();
    }

    /// Changes one byte of a blob where the registry keeps it.
    pub fn tamper(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = self
            .directory
            .path()
            .join("data/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data");
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A layer's archive with these files.
pub fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, path, contents.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image configuration over these layers.
pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/app/run"], "Env": ["A=1"] },
        "rootfs": { "type": "layers", "diff_ids": digests },
    })
    .to_string()
    .into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What `docker save` writes, compressed.
pub fn docker_save(directory: &Path, name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let config = config(layers);
    let mut files = BTreeMap::new();
    let paths: Vec<String> =
        (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    for (path, layer) in paths.iter().zip(layers) {
        files.insert(path.clone(), layer.clone());
    }
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": paths }]);
    files.insert("config.json".to_owned(), config);
    files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
    let mut builder = tar::Builder::new(Vec::new());
    for (path, contents) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        builder.append_data(&mut header, path, &contents[..]).unwrap();
    }
    let path = directory.join("saved.tar.gz");
    fs::write(&path, gzip(&builder.into_inner().unwrap())).unwrap();
    path
}

/// An OCI layout as a directory.
pub fn oci_layout(directory: &Path, tag: &str, layers: &[Vec<u8>]) -> PathBuf {
    let layout = directory.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        json!({ "digest": digest, "size": bytes.len(), "mediaType": "application/x" })
    };
    let packed: Vec<_> = layers.iter().map(|layer| put(&gzip(layer))).collect();
    let config = put(&config(layers));
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": packed });
    let mut entry = put(manifest.to_string().as_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layout
}

/// A directory as an archive.
pub fn pack(directory: &Path, layout: &Path) -> PathBuf {
    let path = directory.join("layout.tar");
    let mut builder = tar::Builder::new(fs::File::create(&path).unwrap());
    builder.append_dir_all(".", layout).unwrap();
    builder.into_inner().unwrap();
    path
}
