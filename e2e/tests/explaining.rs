//! Why a request is answered as it is: asked of a running server, and of an exported map without one.

use crate::Stage;
use crate::gcloud::stage_with_balancer;
use anyhow::{Context, Result, ensure};
use e2e::{REGION, howto};
use serde_json::Value;
use std::fs;

/// Standard output of a command that succeeds.
fn told(stage: &Stage, words: &[&str]) -> Result<String> {
    let output = stage.server.command(words)?;
    let said = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tidegate {}\n{said}{errors}", words.join(" "));
    Ok(said)
}

#[test]
fn a_request_is_explained_from_the_rule_to_the_revision() -> Result<()> {
    let Some((stage, gcloud, _)) = stage_with_balancer("explain")? else { return Ok(()) };
    let api = stage.server.api()?;
    let address = howto::address(&api, "hello-http-fr")?.to_string();
    let at = ["--network", "lb-network", "--address", &address];
    let url = "http://example.com/login/web?a=1";

    let text = told(&stage, &[&["explain", url], &at[..]].concat())?;
    for part in ["hello-http-fr", "by-mask", "mask-bs", "login", "login-00001"] {
        ensure!(text.contains(part), "{part} is not in\n{text}");
    }
    let fields = told(&stage, &[&["explain", url, "--format", "json"], &at[..]].concat())?;
    let fields: Value = serde_json::from_str(&fields)?;
    let rule = fields["forwardingRule"].as_str().context("a forwarding rule")?;
    ensure!(rule.ends_with("hello-http-fr"), "{fields:#}");
    ensure!(fields["explanation"].is_object(), "{fields:#}");

    let unknown = told(&stage, &[&["explain", "http://example.com/nobody"], &at[..]].concat())?;
    ensure!(unknown.contains("nobody") && unknown.contains("404"), "{unknown}");

    // The same map as a file, decided without a server.
    let file = gcloud.folder().join("map.yaml");
    let path = file.display().to_string();
    let export =
        format!("compute url-maps export hello-map --region={REGION} --destination={path}");
    gcloud.run(&export)?;
    let offline = told(&stage, &["explain", "--map", &path, url])?;
    ensure!(offline.contains("by-mask") && offline.contains("mask-bs"), "{offline}");

    // Nothing to remark about the map of the how-to; a path matcher that no host leads to is named.
    ensure!(told(&stage, &["lint", &path])?.contains("nothing to remark"), "the exported map");
    let exported = fs::read_to_string(&file)?;
    let service = exported.lines().find_map(|line| line.strip_prefix("defaultService: "));
    let service = service.with_context(|| format!("no default service in\n{exported}"))?;
    let matcher = format!("pathMatchers:\n- defaultService: {service}\n  name: unreached\n");
    fs::write(&file, exported.replace("pathMatchers:\n", &matcher))?;
    let lint = stage.server.command(&["lint", &path])?;
    let said = String::from_utf8_lossy(&lint.stderr);
    ensure!(!lint.status.success() && said.contains("unreached"), "{said}");
    stage.strike()
}
