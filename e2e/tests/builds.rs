//! Sources deployed by gcloud: functions and web servers in Node.js and Python, built here from what
//! the package registries have, and reached through the balancer.

use crate::Stage;
use crate::gcloud::stage_with_balancer;
use anyhow::{Context, Result, ensure};
use e2e::balancer::Balancer;
use e2e::gcloud::Gcloud;
use e2e::http::Connection;
use e2e::probe;
use e2e::registry::Registry;

use e2e::REGION;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

const NODE: &str = "\
const odd = require('is-odd');
exports.greet = (req, res) => {
  console.log('greeting ' + req.query.name);
  res.send(`hello ${req.query.name}, odd ${odd(3)}`);
};
";
const NODE_PACKAGE: &str = r#"{"main":"index.js","dependencies":{"is-odd":"^3.0.1"}}"#;
const NODE_BROKEN: &str = r#"{"dependencies":{"no-such-package-anywhere-at-all":"1.0.0"}}"#;
const PYTHON: &str = "\
import functions_framework
import idna

@functions_framework.http
def greet(request):
    return 'python ' + idna.encode(request.args['name']).decode()
";
const SERVER: &str = "\
require('http').createServer((req, res) => res.end('server ' + process.env.COLOUR)).listen(process.env.PORT);
";

/// A runtime of this language that can be built for here; says why there is none.
fn runtime(gcloud: &Gcloud, language: &str) -> Result<Option<String>> {
    let line = format!("functions runtimes list --region={REGION} --format=value(name)");
    let listed = gcloud.run(&line)?;
    let found = listed.lines().find(|name| name.starts_with(language)).map(str::to_owned);
    if found.is_none() {
        println!("SKIPPED: {language} is not installed here (scripts/packages run test)");
    }
    Ok(found)
}

fn source(gcloud: &Gcloud, name: &str, files: &[(&str, &str)]) -> Result<String> {
    let folder = gcloud.folder().join(name);
    fs::create_dir_all(&folder)?;
    for (file, text) in files {
        fs::write(folder.join(file), text)?;
    }
    Ok(folder.to_str().context("a path in UTF-8")?.to_owned())
}

/// What the balancer answers to a request from inside the client VM.
fn page(balancer: &Balancer, host: &str, target: &str) -> Result<(u16, String)> {
    let page = balancer.get(host, target)?;
    Ok((page.status, page.text()))
}

/// Whether a directory is absent or has nothing in it.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_node_function_is_deployed_reached_changed_and_deleted() -> Result<()> {
    let Some((stage, gcloud, balancer)) = stage_with_balancer("a Node.js function")? else {
        return Ok(());
    };
    let Some(runtime) = runtime(&gcloud, "nodejs")? else { return stage.strike() };
    let good = source(&gcloud, "good", &[("index.js", NODE), ("package.json", NODE_PACKAGE)])?;
    let deploy = |folder: &str| {
        format!(
            "functions deploy greeter --gen2 --runtime={runtime} --region={REGION} --source={folder} \
             --entry-point=greet --trigger-http --allow-unauthenticated --memory=512Mi"
        )
    };
    let described = gcloud.run(&deploy(&good))?;
    ensure!(described.contains("state: ACTIVE"), "{described}");

    // The function is a service: an endpoint group by its name and the mask find it.
    let expected = (200, "hello you, odd true".to_owned());
    let by_mask = page(&balancer, "example.com", "/greeter?name=you")?;
    ensure!(by_mask == expected, "by the mask: {by_mask:?}");
    gcloud.run(&format!("compute network-endpoint-groups create greeter-neg --region={REGION} --network-endpoint-type=serverless --cloud-run-service=greeter"))?;
    gcloud.run(&format!("compute backend-services create greeter-bs --region={REGION} --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP"))?;
    gcloud.run(&format!("compute backend-services add-backend greeter-bs --region={REGION} --network-endpoint-group=greeter-neg --network-endpoint-group-region={REGION}"))?;
    gcloud.run(&format!("compute url-maps add-path-matcher hello-map --region={REGION} --path-matcher-name=greeter --default-service=greeter-bs --new-hosts=greeter.example.com"))?;
    let by_name = page(&balancer, "greeter.example.com", "/?name=you")?;
    ensure!(by_name == expected, "by its name: {by_name:?}");

    let of = |rest: &str| gcloud.run(&format!("functions {rest} --region={REGION}"));
    let listed = gcloud.run(&format!("functions list --regions={REGION}"))?;
    ensure!(listed.contains("greeter") && listed.contains("2nd gen"), "{listed}");
    let logged = of("logs read greeter --gen2")?;
    ensure!(logged.contains("greeting you"), "{logged}");
    let service = gcloud.run(&format!("run services describe greeter --region={REGION}"))?;
    ensure!(service.contains("greeter"), "{service}");
    let build = of("describe greeter --gen2 --format=value(buildConfig.build)")?;
    let build = build.trim().rsplit('/').next().unwrap_or_default().to_owned();
    let log = gcloud.run(&format!("builds log {build} --region={REGION}"))?;
    ensure!(log.contains("STEP: npm install") && log.contains("DONE"), "{log}");

    // A build that fails says why, and what served goes on serving.
    let bad = source(&gcloud, "bad", &[("index.js", NODE), ("package.json", NODE_BROKEN)])?;
    gcloud.refused("npm error 404", &deploy(&bad))?;
    let messages = of("describe greeter --gen2 --format=value(stateMessages)")?;
    ensure!(messages.contains("no-such-package-anywhere-at-all"), "{messages}");
    let still = page(&balancer, "greeter.example.com", "/?name=you")?;
    ensure!(still == expected, "after a failed build: {still:?}");

    let matcher = "compute url-maps remove-path-matcher hello-map --path-matcher-name=greeter";
    gcloud.run(&format!("{matcher} --region={REGION}"))?;
    for line in [
        "compute backend-services delete greeter-bs",
        "compute network-endpoint-groups delete greeter-neg",
        "functions delete greeter --gen2",
    ] {
        gcloud.run(&format!("{line} --region={REGION} --quiet"))?;
    }
    gcloud.refused(
        "was not found",
        &format!("functions describe greeter --gen2 --region={REGION}"),
    )?;
    let services = gcloud.run("run services list --format=value(metadata.name)")?;
    ensure!(!services.contains("greeter"), "{services}");
    let images =
        String::from_utf8_lossy(&stage.server.command(&["image", "list"])?.stdout).into_owned();
    ensure!(!images.contains("greeter"), "{images}");
    ensure!(is_empty(&stage.server.data().join("builds/work")), "a build left files");
    stage.strike()
}

#[test]
fn sources_are_deployed_as_services() -> Result<()> {
    let Some((stage, gcloud, balancer)) = stage_with_balancer("services from source")? else {
        return Ok(());
    };
    let Some(python) = runtime(&gcloud, "python")? else { return stage.strike() };
    let deploy = |name: &str, folder: &str, rest: &str| {
        format!(
            "run deploy {name} --source={folder} --region={REGION} --allow-unauthenticated --quiet {rest}"
        )
    };
    let function = source(&gcloud, "py", &[("main.py", PYTHON), ("requirements.txt", "idna\n")])?;
    let rest = format!("--function=greet --base-image={python}");
    gcloud.run(&deploy("pyfn", &function, &rest))?;
    let answer = page(&balancer, "example.com", "/pyfn?name=%C3%BC.example")?;
    ensure!(answer == (200, "python xn--tda.example".to_owned()), "{answer:?}");

    if runtime(&gcloud, "nodejs")?.is_some() {
        let package = r#"{"scripts":{"start":"node server.js"}}"#;
        let files = [("server.js", SERVER), ("package.json", package)];
        let server = source(&gcloud, "web", &files)?;
        gcloud.run(&deploy("web", &server, "--set-env-vars=COLOUR=blue"))?;
        let answer = page(&balancer, "example.com", "/web")?;
        ensure!(answer == (200, "server blue".to_owned()), "{answer:?}");
    }

    let broken = source(
        &gcloud,
        "broken",
        &[("main.py", PYTHON), ("requirements.txt", "no-such-package-anywhere-at-all\n")],
    )?;
    gcloud.refused("No matching distribution found", &deploy("broken", &broken, &rest))?;
    let other = source(&gcloud, "other", &[("main.go", "package main")])?;
    gcloud.refused("No buildpack fits", &deploy("other", &other, ""))?;
    stage.strike()
}

/// A directory with the host's shell, what it needs, and the test program, with a mark to tell it by.
fn base_image(root: &Path, mark: &str) -> Result<()> {
    fs::create_dir_all(root.join("etc"))?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::write(root.join("etc/mark"), mark)?;
    probe::place(root)?;
    let listed = Command::new("ldd").arg("/bin/sh").output()?;
    let listed = String::from_utf8(listed.stdout)?;
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain(["/bin/sh"]) {
        let to = root.join(file.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a file in a folder")?)?;
        fs::copy(file, to)?;
    }
    Ok(())
}

#[test]
fn a_source_is_built_on_the_base_image_of_a_registry() -> Result<()> {
    if e2e::skipped_without_root("base images of a registry") {
        return Ok(());
    }
    let Some(registry) = Registry::start()? else { return Ok(()) };
    let root = tempfile::tempdir()?;
    base_image(root.path(), "first")?;
    // No host has this one, so nothing here can stand in for the registry's.
    registry.push("runtimes/python399", "latest", root.path())?;
    let prefix = format!("{}/runtimes", registry.address);
    let Some(stage) = Stage::set_with("base images", &["--base-images", &prefix])? else {
        return Ok(());
    };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let folder = source(&gcloud, "based", &[("Procfile", "web: /probe\n"), ("note", "mine\n")])?;
    let deploy = |runtime: &str| {
        format!(
            "run deploy based --source={folder} --base-image={runtime} --region={REGION} \
             --allow-unauthenticated --quiet"
        )
    };
    gcloud.run(&deploy("python399"))?;
    let service = stage.server.api()?.ready("based")?;
    let url = service["status"]["url"].as_str().context("a service has a URL")?;
    let host = url.trim_start_matches("https://");
    let asked = |target: &str| -> Result<String> {
        let at = &stage.server.environment()["TIDEGATE_RUN_APP_HTTP"];
        let page = Connection::over(TcpStream::connect(at)?).get(host, target)?;
        ensure!(page.status == 200, "{target}: {}: {}", page.status, page.text());
        Ok(page.text())
    };
    ensure!(asked("/file/etc/mark")? == "first", "another base image");
    ensure!(asked("/file/workspace/note")? == "mine\n", "the source is not in it");

    // The tag is asked for again with each build.
    base_image(root.path(), "second")?;
    registry.push("runtimes/python399", "latest", root.path())?;
    gcloud.run(&deploy("python399"))?;
    ensure!(asked("/file/etc/mark")? == "second", "the base image before");

    // What neither has is refused with what each says.
    gcloud.refused("Nor is it in the registry: ", &deploy("python398"))?;
    stage.strike()
}
