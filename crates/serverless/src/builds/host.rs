//! The interpreters this host has, which base images are put together from.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::runtimes::{Language, Runtime};

/// Versions of Node.js that the npm registry has as packages, the newest first.
const NODE_PACKAGED: [u32; 3] = [24, 22, 20];
/// Versions of Python that are looked for, the newest first.
const PYTHON_MINORS: std::ops::RangeInclusive<u32> = 9..=14;

/// What this host has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) node: Option<Node>,
    /// The directory of the package `npm`, with everything it needs in it.
    pub(crate) npm: Option<PathBuf>,
    /// Whether `npm` can be run, whatever it is made of.
    pub(crate) runs_npm: bool,
    /// The default one first.
    pub(crate) pythons: Vec<Python>,
}

/// Node.js, in one executable.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) program: PathBuf,
    pub(crate) major: u32,
    pub(crate) version: String,
}

/// One Python.
#[derive(Clone, Debug)]
pub(crate) struct Python {
    pub(crate) program: PathBuf,
    pub(crate) minor: u32,
    pub(crate) version: String,
    pub(crate) stdlib: PathBuf,
    /// A wheel of pip, or a directory with the package.
    pub(crate) pip: Option<PathBuf>,
}

impl Host {
    /// Looks around; runs each interpreter once.
    pub(crate) fn look() -> Host {
        let mut pythons: Vec<Python> = Vec::new();
        let numbered = PYTHON_MINORS.rev().map(|minor| format!("python3.{minor}"));
        for name in std::iter::once("python3".to_owned()).chain(numbered) {
            for program in programs(&name) {
                let Some(found) = python(&program) else { continue };
                // pip may be missing beside one that is found first.
                match pythons.iter_mut().find(|known| known.minor == found.minor) {
                    Some(known) if known.pip.is_none() && found.pip.is_some() => *known = found,
                    Some(_) => {}
                    None => pythons.push(found),
                }
            }
        }
        let npm = programs("npm").into_iter().next();
        Host {
            node: programs("node").iter().find_map(|program| node(program)),
            runs_npm: npm.is_some(),
            npm: npm.and_then(|program| npm_package(&program)),
            pythons,
        }
    }

    /// The runtimes that can be built for, the preferred first.
    pub(crate) fn offered(&self) -> Vec<Runtime> {
        let node = |major| Runtime { language: Language::Node, major, minor: 0 };
        let own = self.node.as_ref().filter(|_| self.runs_npm).map(|found| found.major);
        let packaged = NODE_PACKAGED.into_iter().filter(|_| self.runs_npm);
        let mut seen = BTreeSet::new();
        let nodes = own.into_iter().chain(packaged).filter(|major| seen.insert(*major)).map(node);
        let pythons = self.pythons.iter().filter(|python| python.pip.is_some());
        let pythons = pythons.map(|python| Runtime {
            language: Language::Python,
            major: 3,
            minor: python.minor,
        });
        nodes.chain(pythons).collect()
    }
}

/// Every program of this name on the server's `PATH`, in its order.
pub(crate) fn programs(name: &str) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let all = std::env::split_paths(&path).map(|directory| directory.join(name));
    all.filter(|program| program.is_file()).collect()
}

fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir("/").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn node(program: &Path) -> Option<Node> {
    let told = output(program, &["-p", "process.version + ' ' + process.execPath"])?;
    let (version, program) = told.trim().strip_prefix('v')?.split_once(' ')?;
    let major = version.split('.').next()?.parse().ok()?;
    // A distribution's Node.js may be a library with its scripts all over the host; what is copied
    // of it would not start.
    let linked = output(Path::new("ldd"), &[program]).unwrap_or_default();
    if linked.contains("libnode.so") {
        return None;
    }
    Some(Node { program: PathBuf::from(program), major, version: version.to_owned() })
}

const ASK_PYTHON: &str = "\
import glob, json, os, sys, sysconfig
stdlib = sysconfig.get_path('stdlib')
wheels = glob.glob(stdlib + '/ensurepip/_bundled/pip-*.whl') + glob.glob('/usr/share/python-wheels/pip-*.whl')
pip = max(wheels) if wheels else None
if pip is None:
    try:
        import pip as found
        pip = os.path.dirname(found.__file__)
    except ImportError:
        pass
print(json.dumps({'program': os.path.realpath(sys.executable), 'minor': sys.version_info[1], 'version': '%d.%d.%d' % sys.version_info[:3], 'stdlib': stdlib, 'pip': pip}))";

fn python(program: &Path) -> Option<Python> {
    // Isolated: the server's own variables and site packages are nobody's business.
    let told: Value =
        serde_json::from_str(&output(program, &["-E", "-s", "-c", ASK_PYTHON])?).ok()?;
    let path = |field: &str| told[field].as_str().map(PathBuf::from);
    Some(Python {
        program: path("program")?,
        minor: u32::try_from(told["minor"].as_u64()?).ok()?,
        version: told["version"].as_str()?.to_owned(),
        stdlib: path("stdlib")?,
        pip: path("pip"),
    })
}

/// The package `npm` is run from, unless its parts are spread over the host.
fn npm_package(program: &Path) -> Option<PathBuf> {
    let package = fs::canonicalize(program).ok()?.parent()?.parent()?.to_owned();
    let brings = ["node_modules/semver", "node_modules/pacote", "node_modules/@npmcli"];
    let is_link = |path: PathBuf| fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    let whole =
        brings.iter().all(|part| package.join(part).is_dir() && !is_link(package.join(part)));
    whole.then_some(package)
}
