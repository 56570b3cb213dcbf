//! Which package registries this host is set up for, so that a build asks the same ones.
//!
//! Reads what npm and pip themselves read: their files and their variables, of the user the server
//! runs as. What is found goes to the build's container; the addresses in it are the private ones
//! a build may reach.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files in which systems keep the roots they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// What builds are told about registries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registries {
    /// `~/.npmrc` of the build.
    pub(crate) npmrc: String,
    /// `~/.config/pip/pip.conf` of the build.
    pub(crate) pip_conf: String,
    /// Trusted roots.
    pub(crate) roots: String,
    /// Variables of npm and pip.
    pub(crate) environment: BTreeMap<String, String>,
    /// Directories of this host that pip finds packages in.
    pub(crate) folders: Vec<PathBuf>,
    /// `host:port` of every registry that is named.
    pub(crate) named: Vec<String>,
}

/// Reads what this host has; `variables` are those of the server.
pub(crate) fn read(variables: impl Iterator<Item = (String, String)>) -> Registries {
    let variables: BTreeMap<String, String> = variables.collect();
    let home = variables.get("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let variable = |name: &str| variables.get(name).map(PathBuf::from);
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let npm_files = [
        Some(PathBuf::from("/etc/npmrc")),
        Some(PathBuf::from("/usr/etc/npmrc")),
        variable("NPM_CONFIG_GLOBALCONFIG"),
        variable("NPM_CONFIG_USERCONFIG").or_else(|| Some(home.join(".npmrc"))),
    ];
    let npmrc: Vec<String> = npm_files.iter().flatten().map(|path| read(path)).collect();
    let pip_files = [
        variable("PIP_CONFIG_FILE"),
        Some(home.join(".config/pip/pip.conf")),
        Some(home.join(".pip/pip.conf")),
        Some(PathBuf::from("/etc/pip.conf")),
    ];
    // Two files cannot be one: a section may stand in a file once.
    let pip_conf = pip_files.iter().flatten().map(|path| read(path)).find(|text| !text.is_empty());
    collected(npmrc.join("\n"), pip_conf.unwrap_or_default(), &variables, &read)
}

fn collected(
    npmrc: String,
    pip_conf: String,
    variables: &BTreeMap<String, String>,
    read: &dyn Fn(&Path) -> String,
) -> Registries {
    let mut environment = BTreeMap::new();
    for (name, value) in variables {
        let upper = name.to_ascii_uppercase();
        let is_place =
            ["CONFIG_FILE", "USERCONFIG", "GLOBALCONFIG", "PREFIX", "CACHE", "CACHE_DIR"]
                .iter()
                .any(|end| upper.ends_with(end));
        if (upper.starts_with("NPM_CONFIG_") || upper.starts_with("PIP_")) && !is_place {
            environment.insert(name.clone(), value.clone());
        }
    }
    let values = values(&npmrc, &["cafile", "registry"])
        .chain(values(&pip_conf, &["cert", "index-url", "extra-index-url", "find-links"]))
        .chain(environment.values().cloned())
        .collect::<Vec<_>>();
    let words: Vec<&str> = values.iter().flat_map(|value| value.split_whitespace()).collect();
    let mut roots = SYSTEM_ROOTS.iter().map(|path| read(Path::new(path))).find(|t| !t.is_empty());
    let mut folders = Vec::new();
    for word in &words {
        let path = Path::new(word.strip_prefix("file://").unwrap_or(word));
        if path.is_absolute() && path.is_dir() && !folders.iter().any(|known| known == path) {
            folders.push(path.to_owned());
        } else if path.is_absolute() && !SYSTEM_ROOTS.contains(word) {
            let more = read(path);
            if more.contains("BEGIN CERTIFICATE") {
                roots = Some(roots.unwrap_or_default() + "\n" + &more);
            }
        }
    }
    let mut named: Vec<String> = words.iter().filter_map(|word| address(word)).collect();
    // Scoped registries stand under names of their own: `@team:registry=…`.
    named.extend(npmrc.lines().filter_map(|line| address(line.split_once('=')?.1.trim())));
    named.sort();
    named.dedup();
    // pip complains of folders that are not there.
    environment.retain(|name, value| {
        !name.ends_with("FIND_LINKS") || folders.iter().any(|folder| Path::new(value) == folder)
    });
    Registries { npmrc, pip_conf, roots: roots.unwrap_or_default(), environment, folders, named }
}

/// The values of some keys in a file of `key = value` lines.
fn values<'a>(text: &'a str, keys: &'a [&'a str]) -> impl Iterator<Item = String> + 'a {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        keys.contains(&key.trim()).then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// `host:port` of an address.
pub(crate) fn address(url: &str) -> Option<String> {
    let (rest, port) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (rest, "443"),
        (None, Some(rest)) => (rest, "80"),
        (None, None) => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?.to_ascii_lowercase();
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match host.is_empty() {
        true => None,
        false if has_port => Some(host),
        false => Some(format!("{host}:{port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_found_in_files_and_variables() {
        let npmrc = "registry=http://127.0.0.1:4873/\n@team:registry=https://npm.example/x\n";
        let pip = "[global]\nindex-url = https://user:word@pypi.example:8443/simple\n";
        let variables = BTreeMap::from([
            ("PIP_EXTRA_INDEX_URL".to_owned(), "http://10.0.0.9/simple".to_owned()),
            ("PIP_FIND_LINKS".to_owned(), "/no/such/folder".to_owned()),
            ("PIP_CACHE_DIR".to_owned(), "/var/cache".to_owned()),
            ("SECRET".to_owned(), "http://elsewhere.example".to_owned()),
        ]);
        let none = |_: &Path| String::new();
        let found = collected(npmrc.to_owned(), pip.to_owned(), &variables, &none);
        assert_eq!(
            found.named,
            ["10.0.0.9:80", "127.0.0.1:4873", "npm.example:443", "pypi.example:8443"]
        );
        assert_eq!(found.environment.keys().collect::<Vec<_>>(), ["PIP_EXTRA_INDEX_URL"]);
    }
}
