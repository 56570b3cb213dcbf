//! Who may speak to the port: tokens of this server, hosts that are meant, no web page's requests.

use crate::Stage;
use anyhow::{Context, Result, ensure};
use e2e::http::Connection;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

#[test]
fn without_a_token_of_this_server_every_call_is_a_401_in_googles_words() -> Result<()> {
    let Some(stage) = Stage::set("calls without a token")? else { return Ok(()) };
    let api = stage.server.api()?;
    let project = &api.project;
    let urls = [
        api.compute_url("global/networks"),
        api.run_url(""),
        format!("https://cloudresourcemanager.googleapis.com/v1/projects/{project}"),
        format!(
            "https://serviceusage.googleapis.com/v1/projects/{project}/services/run.googleapis.com"
        ),
    ];
    for token in ["", "not-a-token", "ya29.a0AfB_byForeign"] {
        let stranger = api.with_token(token);
        for url in &urls {
            let answer = stranger.call("GET", url, None)?;
            ensure!(answer.status == 401, "{url} with {token:?}: {}", answer.status);
            let error = &answer.body["error"];
            ensure!(error["status"] == "UNAUTHENTICATED" && error["code"] == 401, "{error}");
            let message = answer.message();
            ensure!(message.contains("authentication credential"), "not Google's words: {message}");
        }
    }
    for url in &urls {
        ensure!(api.call("GET", url, None)?.status == 200, "{url} with our token");
    }
    stage.strike()
}

#[test]
fn foreign_hosts_and_cross_origin_requests_are_turned_away() -> Result<()> {
    let Some(stage) = Stage::set("foreign hosts and origins")? else { return Ok(()) };
    let api = stage.server.api()?;
    let environment = stage.server.environment();
    let door = environment.get("HTTPS_PROXY").context("HTTPS_PROXY")?.trim_start_matches("http://");
    let ask = |head: &str| -> Result<u16> {
        let stream = TcpStream::connect(door)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        let bearer = format!("Authorization: Bearer {}", api.token());
        Ok(Connection::over(stream).request(&format!("{head}{bearer}\r\n\r\n"))?.status)
    };
    let path = format!("/compute/v1/projects/{}/global/networks", api.project);
    let get =
        |host: &str, fields: &str| ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}"));
    let refused = [
        get("rebound.example.com", "")?,
        get("169.254.169.254", "")?,
        get("compute.googleapis.com", "Origin: https://page.example.com\r\n")?,
        get("compute.googleapis.com", "Origin: null\r\n")?,
        get("compute.googleapis.com", "Sec-Fetch-Site: cross-site\r\n")?,
        get(door, "Origin: http://page.example.com\r\n")?,
    ];
    // A body that is too large is refused by its declared length, before any of it is sent.
    let large = "Content-Length: 9000000\r\nContent-Type: application/json\r\n";
    let head = format!("POST {path} HTTP/1.1\r\nHost: compute.googleapis.com\r\n{large}");
    ensure!(ask(&head)? == 413, "a body of 9 MB");
    for (row, status) in refused.iter().enumerate() {
        ensure!((400..500).contains(status) && *status != 401, "row {row}: {status}");
    }
    stage.strike()
}

#[test]
fn the_port_is_loopback_and_secrets_are_readable_by_their_owner_only() -> Result<()> {
    let Some(stage) = Stage::set("the port and the secrets")? else { return Ok(()) };
    let door = stage.server.environment().get("HTTPS_PROXY").context("HTTPS_PROXY")?;
    ensure!(door.starts_with("http://127.0.0.1:"), "{door}");
    let mut secrets = 0;
    let mut folders = vec![stage.server.data().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)?.flatten() {
            let kind = entry.file_type()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() && !["proc", "sys", "layers", "images"].contains(&name.as_str()) {
                folders.push(entry.path());
            }
            let is_secret = name.contains("token") || name.contains("key");
            if kind.is_file() && is_secret && !name.ends_with(".pub") {
                let mode = entry.metadata()?.permissions().mode() & 0o777;
                ensure!(mode & 0o077 == 0, "{}: {mode:o}", entry.path().display());
                secrets += 1;
            }
        }
    }
    ensure!(secrets > 0, "there is a token and a key");
    stage.strike()
}
