//! Passwords for registries, from a file in the format of Docker's `config.json`.
//!
//! Only what is written in the file itself is used: names of helper programs that would have to be
//! run to get a password are not.
//!
//! Invariant: a password is never part of an error or of a debug print.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// Docker writes its own registry under this name.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

/// How to sign in at a registry; anonymous when the file does not name it.
pub(crate) fn credentials_for(registry: &str, file: Option<&Path>) -> io::Result<RegistryAuth> {
    let Some(path) = file else { return Ok(RegistryAuth::Anonymous) };
    // Read anew each time: signing in with another tool is seen at once.
    match fs::read(path) {
        Ok(bytes) => find(registry, &bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(RegistryAuth::Anonymous),
        Err(error) => Err(error),
    }
}

fn find(registry: &str, bytes: &[u8]) -> io::Result<RegistryAuth> {
    let file: File = serde_json::from_slice(bytes)?;
    let host = |key: &str| {
        let key = key.trim_start_matches("https://").trim_start_matches("http://");
        key.split('/').next().unwrap_or(key).to_owned()
    };
    let fits =
        |key: &str| host(key) == registry || (registry == DOCKER_HUB && key == DOCKER_HUB_KEY);
    let Some((_, entry)) = file.auths.iter().find(|(key, _)| fits(key)) else {
        return Ok(RegistryAuth::Anonymous);
    };
    if let Some(token) = &entry.registrytoken {
        return Ok(RegistryAuth::Bearer(token.clone()));
    }
    if let (Some(name), Some(password)) = (&entry.username, &entry.password) {
        return Ok(RegistryAuth::Basic(name.clone(), password.clone()));
    }
    let unreadable =
        || io::Error::new(io::ErrorKind::InvalidData, "unreadable `auth` of a registry");
    let Some(auth) = &entry.auth else { return Ok(RegistryAuth::Anonymous) };
    let decoded = STANDARD.decode(auth.trim()).map_err(|_| unreadable())?;
    let text = String::from_utf8(decoded).map_err(|_| unreadable())?;
    let (name, password) = text.split_once(':').ok_or_else(unreadable)?;
    Ok(RegistryAuth::Basic(name.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_by_the_host_of_its_registry() {
        // "user:secret", "hub:word"
        let file = br#"{"auths":{
            "registry.example":{"auth":"dXNlcjpzZWNyZXQ="},
            "https://index.docker.io/v1/":{"auth":"aHViOndvcmQ="},
            "http://127.0.0.1:5000/v2/":{"username":"me","password":"p"},
            "tokens.example":{"registrytoken":"t"},
            "helper.example":{}}}"#;
        let basic = |name: &str, word: &str| RegistryAuth::Basic(name.to_owned(), word.to_owned());
        let cases = [
            ("registry.example", basic("user", "secret")),
            ("docker.io", basic("hub", "word")),
            ("127.0.0.1:5000", basic("me", "p")),
            ("tokens.example", RegistryAuth::Bearer("t".to_owned())),
            ("helper.example", RegistryAuth::Anonymous),
            ("other.example", RegistryAuth::Anonymous),
        ];
        for (registry, expected) in cases {
            assert_eq!(find(registry, file).unwrap(), expected, "{registry}");
        }
    }
}
