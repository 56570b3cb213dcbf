//! Certificates made as the how-to makes them: by `openssl`.

use crate::server::output_within;
use anyhow::{Result, ensure};
use std::fs;
use std::process::Command;
use std::time::Duration;

/// How long making one key may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A certificate and its key in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// A self-signed certificate for `domain`; `extra` are further arguments of `openssl req`.
pub fn self_signed(domain: &str, extra: &[&str]) -> Result<Pair> {
    let folder = tempfile::tempdir()?;
    let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("crt.pem"));
    let subject = format!("/CN={domain}");
    let alternative = format!("subjectAltName=DNS:{domain}");
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-subj", &subject, "-addext", &alternative]);
    command.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    let defaults = ["-newkey", "rsa:2048", "-days", "30"];
    command.args(if extra.is_empty() { &defaults } else { extra });
    let output = output_within(command, LIMIT)?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Pair { certificate: fs::read_to_string(certificate)?, key: fs::read_to_string(key)? })
}

/// A self-signed certificate for `domain` whose time is over.
pub fn expired(domain: &str) -> Result<Pair> {
    let folder = tempfile::tempdir()?;
    let at = folder.path();
    let pair = self_signed(domain, &[])?;
    fs::write(at.join("key.pem"), &pair.key)?;
    fs::write(at.join("index.txt"), "")?;
    fs::write(at.join("serial"), "01\n")?;
    fs::write(
        at.join("ca.cnf"),
        "[ca]\ndefault_ca = one\n[one]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n\
         default_md = sha256\npolicy = any\n[any]\ncommonName = supplied\n",
    )?;
    let subject = format!("/CN={domain}");
    let request = ["req", "-new", "-key", "key.pem", "-subj", &subject, "-out", "request.pem"];
    let sign = [
        "ca",
        "-selfsign",
        "-batch",
        "-notext",
        "-config",
        "ca.cnf",
        "-keyfile",
        "key.pem",
        "-startdate",
        "20200101000000Z",
        "-enddate",
        "20200201000000Z",
        "-in",
        "request.pem",
        "-out",
        "crt.pem",
    ];
    for arguments in [&request[..], &sign[..]] {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(at);
        let output = output_within(command, LIMIT)?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Pair { certificate: fs::read_to_string(at.join("crt.pem"))?, key: pair.key })
}
