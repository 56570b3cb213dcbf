//! The images that are woken: put together from what the host has, packed as `docker save` packs.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One image: its name, and the archive it comes in.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) title: &'static str,
    pub(crate) reference: String,
    /// None for the image the server brings along.
    pub(crate) archive: Option<PathBuf>,
}

/// Puts an image together, with a folder for what it makes on the way.
type Maker = fn(&Path) -> Result<Tree>;

/// The images this host can make; what it cannot is said aloud.
pub(crate) fn all(folder: &Path) -> Vec<Image> {
    let shipped = Image { title: "shipped", reference: e2e::IMAGE.to_owned(), archive: None };
    let makers: [(&'static str, Maker); 3] =
        [("static", of_static), ("Node.js", of_node), ("Python", of_python)];
    let mut images = vec![shipped];
    for (title, maker) in makers {
        let name = title.to_ascii_lowercase().replace('.', "");
        let place = folder.join(&name);
        let made = fs::create_dir_all(&place)
            .map_err(anyhow::Error::from)
            .and_then(|()| maker(&place))
            .and_then(|tree| tree.pack(&place, &name));
        match made {
            Ok((reference, archive)) => {
                images.push(Image { title, reference, archive: Some(archive) });
            }
            Err(error) => println!("SKIPPED: no {title} image: {error:#}"),
        }
    }
    images
}

/// What an image holds.
#[derive(Debug)]
struct Tree {
    /// Files of the host, by their place in the image.
    files: BTreeSet<(PathBuf, PathBuf)>,
    command: Vec<String>,
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images").join(name)
}

fn of_static(folder: &Path) -> Result<Tree> {
    let program = folder.join("server");
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-static", "-o"]).arg(&program).arg(source("static.c"));
    ensure!(compile.status().context("cc")?.success(), "cc -static failed");
    Ok(Tree {
        files: BTreeSet::from([(program, "server".into())]),
        command: vec!["/server".into()],
    })
}

fn of_node(_: &Path) -> Result<Tree> {
    let node = fs::canonicalize("/usr/bin/node").context("/usr/bin/node (package nodejs)")?;
    let mut files = libraries(&node)?;
    files.insert((node, "usr/bin/node".into()));
    files.insert((source("server.js"), "server.js".into()));
    Ok(Tree { files, command: vec!["/usr/bin/node".into(), "/server.js".into()] })
}

fn of_python(_: &Path) -> Result<Tree> {
    let python = fs::canonicalize("/usr/bin/python3").context("/usr/bin/python3")?;
    let name = python.file_name().context("a name")?.to_string_lossy().into_owned();
    let mut files = libraries(&python)?;
    let library = Path::new("/usr/lib").join(&name);
    walk(&library, &mut |file| {
        let is_compiled_elsewhere = file.components().any(|part| part.as_os_str() == "test");
        if !is_compiled_elsewhere {
            if file.extension().is_some_and(|extension| extension == "so") {
                files.extend(libraries(file).unwrap_or_default());
            }
            files.insert((file.to_owned(), below_root(file)));
        }
    })?;
    files.insert((python, "usr/bin/python3".into()));
    files.insert((source("server.py"), "server.py".into()));
    Ok(Tree { files, command: vec!["/usr/bin/python3".into(), "/server.py".into()] })
}

fn below_root(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn walk(folder: &Path, seen: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => walk(&path, seen)?,
            Ok(_) => seen(&path),
            // A link to a file of a package that is not installed.
            Err(_) => {}
        }
    }
    Ok(())
}

/// The shared libraries of a program, and the loader, where they stand on the host.
fn libraries(program: &Path) -> Result<BTreeSet<(PathBuf, PathBuf)>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(|word| (PathBuf::from(word), below_root(Path::new(word)))).collect())
}

impl Tree {
    /// Writes the image; its reference and its archive.
    fn pack(&self, folder: &Path, name: &str) -> Result<(String, PathBuf)> {
        let layer = folder.join("layer.tar");
        let mut tar = tar::Builder::new(File::create(&layer)?);
        tar.follow_symlinks(true);
        for (file, place) in &self.files {
            tar.append_path_with_name(file, place).with_context(|| file.display().to_string())?;
        }
        tar.into_inner()?.sync_all()?;
        let digest = hex(&Sha256::digest(fs::read(&layer)?));
        let configuration = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Cmd": self.command, "Env": ["PATH=/usr/bin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        })
        .to_string();
        let reference = format!("localhost/bench/{name}:latest");
        let config_name = format!("{}.json", hex(&Sha256::digest(&configuration)));
        let manifest = json!([{
            "Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"],
        }])
        .to_string();
        let archive = folder.join("image.tar");
        let mut tar = tar::Builder::new(File::create(&archive)?);
        tar.append_path_with_name(&layer, "layer.tar")?;
        for (name, text) in [(config_name.as_str(), &configuration), ("manifest.json", &manifest)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, text.as_bytes())?;
        }
        tar.into_inner()?.sync_all()?;
        Ok((reference, archive))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
