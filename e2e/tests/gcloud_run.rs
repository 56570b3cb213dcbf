//! Cloud Run by gcloud: every flag that means something here reaches its field, and those that mean
//! nothing are refused by name; policies, logs and files, as a user would type them.

use crate::Stage;
use crate::run_clients;
use anyhow::{Context, Result, ensure};
use e2e::gcloud::Gcloud;
use e2e::{IMAGE, REGION, wait};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a line that was logged may take to be shown.
const TAIL_LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn described(gcloud: &Gcloud, service: &str) -> Result<Value> {
    let line = format!("run services describe {service} --region={REGION} --format=json");
    Ok(serde_json::from_str(&gcloud.run(&line)?)?)
}

/// What stands at a place, whatever its type, as text.
fn at(described: &Value, place: &str) -> String {
    match described.pointer(place) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "absent".to_owned(),
    }
}

pub(crate) fn check(described: &Value, rows: &[(&str, &str, &str)]) -> Result<()> {
    for (flag, place, expected) in rows {
        let found = at(described, place);
        // gcloud writes the truth values of annotations as Python does.
        ensure!(found.eq_ignore_ascii_case(expected), "{flag}: {place} is {found}\n{described:#}");
    }
    Ok(())
}

/// Annotations of a service, of its template, and the first container, as JSON pointers.
macro_rules! note {
    ($name:literal) => {
        concat!("/metadata/annotations/", $name)
    };
}
macro_rules! template {
    ($name:literal) => {
        concat!("/spec/template/metadata/annotations/", $name)
    };
}
macro_rules! container {
    ($name:literal) => {
        concat!("/spec/template/spec/containers/0/", $name)
    };
}

#[test]
fn every_flag_reaches_its_field() -> Result<()> {
    let Some(stage) = Stage::set("run deploy's flags")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let secret = stage.server.data().join("secrets/tidegate/pass");
    fs::create_dir_all(&secret)?;
    fs::write(secret.join("1"), "sesame")?;
    let deploy = |rest: &str| {
        gcloud.run(&format!("run deploy flags --image={IMAGE} --region={REGION} {rest}"))
    };
    deploy(
        "--allow-unauthenticated --revision-suffix=first --concurrency=7 --cpu=2 --memory=1Gi --cpu-boost \
         --no-cpu-throttling --execution-environment=gen2 --timeout=77 --port=9090 --max-instances=5 \
         --min-instances=1 --min=1 --session-affinity --labels=team=sea --set-env-vars=COLOUR=blue,SIZE=xl \
         --set-secrets=PASS=pass:1,/secrets/pass=pass:1 --description=about --ingress=internal \
         --add-custom-audiences=https://shop.example.com --no-invoker-iam-check \
         --add-volume=name=scratch,type=in-memory,size-limit=16Mi \
         --add-volume-mount=volume=scratch,mount-path=/scratch \
         --startup-probe=httpGet.path=/healthz,httpGet.port=9090,periodSeconds=2,failureThreshold=30 \
         --liveness-probe=httpGet.path=/healthz,httpGet.port=9090,periodSeconds=20",
    )?;
    check(
        &described(&gcloud, "flags")?,
        &[
            ("--revision-suffix", "/status/latestReadyRevisionName", "flags-first"),
            ("--concurrency", "/spec/template/spec/containerConcurrency", "7"),
            ("--timeout", "/spec/template/spec/timeoutSeconds", "77"),
            ("--cpu", container!("resources/limits/cpu"), "2"),
            ("--memory", container!("resources/limits/memory"), "1Gi"),
            ("--port", container!("ports/0/containerPort"), "9090"),
            ("--cpu-boost", template!("run.googleapis.com~1startup-cpu-boost"), "true"),
            ("--no-cpu-throttling", template!("run.googleapis.com~1cpu-throttling"), "false"),
            (
                "--execution-environment",
                template!("run.googleapis.com~1execution-environment"),
                "gen2",
            ),
            ("--max-instances", template!("autoscaling.knative.dev~1maxScale"), "5"),
            ("--min-instances", template!("autoscaling.knative.dev~1minScale"), "1"),
            ("--min", note!("run.googleapis.com~1minScale"), "1"),
            ("--session-affinity", template!("run.googleapis.com~1sessionAffinity"), "true"),
            ("--labels", "/metadata/labels/team", "sea"),
            ("--set-env-vars", container!("env/0/value"), "blue"),
            ("--set-secrets", container!("env/2/valueFrom/secretKeyRef/name"), "pass"),
            ("--description", note!("run.googleapis.com~1description"), "about"),
            ("--ingress", note!("run.googleapis.com~1ingress"), "internal"),
            (
                "--add-custom-audiences",
                note!("run.googleapis.com~1custom-audiences"),
                "[\"https://shop.example.com\"]",
            ),
            ("--no-invoker-iam-check", note!("run.googleapis.com~1invoker-iam-disabled"), "true"),
            ("--startup-probe", container!("startupProbe/httpGet/path"), "/healthz"),
            ("--liveness-probe", container!("livenessProbe/periodSeconds"), "20"),
        ],
    )?;
    // What was given is taken back, one flag each; what is not named stays.
    deploy(
        "--revision-suffix=second --update-env-vars=SIZE=s --remove-env-vars=COLOUR --clear-secrets \
         --remove-labels=team --clear-custom-audiences --clear-volume-mounts --clear-volumes \
         --min-instances=default --min=default --no-session-affinity --cpu-throttling --no-cpu-boost \
         --use-http2 --no-traffic --tag=next --ingress=all --invoker-iam-check --command=/hello --args=",
    )?;
    let second = described(&gcloud, "flags")?;
    check(
        &second,
        &[
            ("--update-env-vars", container!("env/0/value"), "s"),
            ("--remove-env-vars", container!("env/1"), "absent"),
            ("--remove-labels", "/metadata/labels/team", "absent"),
            ("--clear-custom-audiences", note!("run.googleapis.com~1custom-audiences"), "absent"),
            ("--clear-volumes", "/spec/template/spec/volumes", "absent"),
            ("--min-instances=default", template!("autoscaling.knative.dev~1minScale"), "absent"),
            ("--use-http2", container!("ports/0/name"), "h2c"),
            ("--command", container!("command/0"), "/hello"),
            ("--no-traffic", "/status/traffic/0/revisionName", "flags-first"),
            ("--tag", "/status/traffic/1/tag", "next"),
            ("kept", "/spec/template/spec/containerConcurrency", "7"),
        ],
    )?;
    stage.strike()
}

#[test]
fn flags_without_a_meaning_are_refused_by_name() -> Result<()> {
    let Some(stage) = Stage::set("flags that are refused")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    for (flags, text) in [
        ("--add-cloudsql-instances=p:us-west1:db", "Cloud SQL is not served here"),
        ("--vpc-connector=c", "VPC Access connector"),
        ("--key=projects/p/locations/us-west1/keyRings/r/cryptoKeys/k", "Cloud KMS is not served"),
        ("--binary-authorization=default", "Binary Authorization is not served here"),
        ("--gpu=1 --gpu-type=nvidia-l4 --no-gpu-zonal-redundancy", "a GPU is not served here"),
    ] {
        gcloud.refused(
            text,
            &format!("run deploy odd --image={IMAGE} --region={REGION} --no-allow-unauthenticated {flags}"),
        )?;
    }
    gcloud
        .refused("Cannot find service", &format!("run services describe odd --region={REGION}"))?;
    stage.strike()
}

#[test]
fn services_are_replaced_from_files_and_policies_are_changed() -> Result<()> {
    let Some(stage) = Stage::set("files and policies by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let file = gcloud.folder().join("service.yaml");
    let path = file.display().to_string();
    let body = |colour: &str| {
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: filed\nspec:\n  template:\n    \
             spec:\n      containers:\n      - image: {IMAGE}\n        env:\n        - name: COLOUR\n          \
             value: {colour}\n"
        )
    };
    fs::write(&file, body("blue"))?;
    let replace = |rest: &str| format!("run services replace {path} --region={REGION} {rest}");
    gcloud.run(&replace("--dry-run"))?;
    gcloud.refused(
        "Cannot find service",
        &format!("run services describe filed --region={REGION}"),
    )?;
    gcloud.run(&replace(""))?;
    fs::write(&file, body("green"))?;
    gcloud.run(&replace("--dry-run"))?;
    check(&described(&gcloud, "filed")?, &[("--dry-run", container!("env/0/value"), "blue")])?;
    gcloud.run(&replace(""))?;
    check(&described(&gcloud, "filed")?, &[("replace", container!("env/0/value"), "green")])?;

    fs::write(&file, body("green").replace("image:", "imaje:"))?;
    gcloud.refused("imaje", &replace(""))?;

    let policy = |verb: &str, rest: &str| {
        gcloud.run(&format!("run services {verb} filed --region={REGION} --format=json {rest}"))
    };
    let binding = "--member=user:guest@example.com --role=roles/run.invoker";
    ensure!(policy("add-iam-policy-binding", binding)?.contains("guest@example.com"), "added");
    let kept = policy("get-iam-policy", "")?;
    ensure!(kept.contains("guest@example.com"), "{kept}");
    ensure!(
        !policy("remove-iam-policy-binding", binding)?.contains("guest@example.com"),
        "removed"
    );
    let file = gcloud.folder().join("policy.json");
    fs::write(&file, &kept)?;
    gcloud.refused(
        "concurrent policy changes",
        &format!("run services set-iam-policy filed {} --region={REGION} --quiet", file.display()),
    )?;
    stage.strike()
}

/// A program whose lines are read as they come, ended with this value.
struct Watched {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: String,
}

impl Watched {
    fn start(mut command: Command) -> Result<Watched> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("its output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Watched { child, lines, seen: String::new() })
    }

    fn has_said(&mut self, text: &str) -> bool {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push_str(&line);
            self.seen.push('\n');
        }
        self.seen.contains(text)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let group = i32::try_from(self.child.id()).map(nix::unistd::Pid::from_raw);
        if let Ok(group) = group {
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

#[test]
fn logs_are_read_and_tailed_while_a_service_writes_them() -> Result<()> {
    let Some(stage) = Stage::set("logs by gcloud")? else { return Ok(()) };
    let Some(gcloud) = Gcloud::at(&stage.server)? else { return Ok(()) };
    let deploy = |colour: &str| {
        gcloud.run(&format!(
            "run deploy talker --image={IMAGE} --region={REGION} --allow-unauthenticated --set-env-vars=COLOUR={colour}"
        ))
    };
    deploy("blue")?;
    let read = || gcloud.run(&format!("run services logs read talker --region={REGION}"));
    let first = wait::until("the first lines are read", TAIL_LIMIT, || {
        read().ok().filter(|said| !said.trim().is_empty())
    })?;
    let line = first.lines().next().context("a line")?;
    // What a container says when it starts is the same for each: its words without the time.
    let words = line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");

    let mut by_gcloud = gcloud.program("gcloud");
    std::os::unix::process::CommandExt::process_group(&mut by_gcloud, 0);
    by_gcloud.args(["beta", "run", "services", "logs", "tail", "talker"]);
    by_gcloud.arg(format!("--region={REGION}"));
    // On a terminal each line is shown as it comes; into a pipe Python would keep them back.
    by_gcloud.env("PYTHONUNBUFFERED", "1");
    let mut by_python = run_clients::script(&stage.server, "tail_logs.py", &["talker", &words])?;
    std::os::unix::process::CommandExt::process_group(&mut by_python, 0);
    let mut gcloud_tail = Watched::start(by_gcloud)?;
    let mut python_tail = Watched::start(by_python)?;
    // A tail shows what comes after it began, so lines are made until both have begun.
    let mut number = 0;
    let mut shown = (false, false);
    while shown != (true, true) {
        number += 1;
        ensure!(
            number < 20,
            "no lines\ngcloud:\n{}\npython:\n{}",
            gcloud_tail.seen,
            python_tail.seen
        );
        deploy(&format!("shade-{number}"))?;
        shown.0 = shown.0 || gcloud_tail.has_said(&words);
        shown.1 = shown.1 || python_tail.has_said(&words);
    }
    drop((gcloud_tail, python_tail));
    stage.strike()
}
