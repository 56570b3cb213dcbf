//! Golden conversations with Cloud Run in both versions, and the laws that hold between them.
//!
//! `> METHOD HOST PATH` starts a request. The lines below it are its body; `$last` is what was last
//! got, and `+ /pointer JSON` changes a field of the body. `= /pointer …` tells only those fields
//! of the answer. `! ready SERVICE` and `! fail SERVICE REASON MESSAGE` say how the newest revision
//! fared. `UPDATE_GOLDEN=1` writes the answers anew. A refused request is checked to change nothing.

mod support;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use api::{Principal, Request};
use http::{HeaderMap, Method};
use model::run::Outcome;
use model::{Kind, ResourceName};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{PROJECT, Server};

struct Run {
    server: Server,
    last: Value,
}

impl Run {
    async fn start() -> Run {
        Run { server: Server::start().await, last: Value::Null }
    }

    async fn send(&self, method: &str, host: &str, target: &str, body: &Value) -> (u16, Value) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (region, service) = match host.strip_suffix("-run") {
            Some(region) => (Some(region.to_owned()), "run"),
            None => (None, host),
        };
        let request = Request {
            service: service.to_owned(),
            host_region: region,
            method: Method::from_bytes(method.as_bytes()).expect("a method"),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            body: if body.is_null() { String::new() } else { body.to_string() }.into(),
            principal: Principal { email: "owner@example.com".into(), is_service_account: false },
        };
        let response = self.server.api.handle(request).await;
        let answer = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
        (response.status.as_u16(), answer)
    }

    /// Says how the newest revision of a service fared.
    async fn outcome(&self, service: &str, ready: bool, reason: &str, message: &str) {
        let name = ResourceName::regional(PROJECT, "us-west1", Kind::Service, service);
        let state = self.server.api.world().state();
        let plan = state.compiled.plan.fleet.service(&name).expect("a service").clone();
        let revision = plan.latest_created.clone().expect("a revision");
        let digest = format!("sha256:{}", "0".repeat(64));
        let outcome = Outcome {
            ready,
            reason: reason.to_owned(),
            message: message.to_owned(),
            image_digests: vec![("".into(), digest)],
        };
        self.server.api.record_outcome(&revision.name, outcome).await.expect("recorded");
    }
}

#[derive(Default)]
struct Asked {
    line: String,
    body: String,
    edits: Vec<(String, String)>,
    pick: Vec<String>,
}

async fn replay(text: &str) -> String {
    let mut run = Run::start().await;
    let mut transcript = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("# ") {
            let gap = if transcript.is_empty() { "" } else { "\n" };
            let _ = writeln!(transcript, "{gap}# {comment}");
        } else if let Some(outcome) = line.strip_prefix("! ") {
            let _ = writeln!(transcript, "{line}");
            let words: Vec<&str> = outcome.splitn(4, ' ').collect();
            match words[..] {
                ["ready", service] => run.outcome(service, true, "", "").await,
                ["fail", service, reason, message] => {
                    run.outcome(service, false, reason, message).await;
                }
                _ => panic!("{line}"),
            }
        } else if let Some(request) = line.strip_prefix("> ") {
            let mut asked = Asked { line: request.to_owned(), ..Asked::default() };
            while let Some(more) = lines.next_if(|line| !line.starts_with(['<', '>', '#', '!'])) {
                match more.split_at_checked(2) {
                    Some(("= ", pick)) => asked.pick = pick.split(' ').map(str::to_owned).collect(),
                    Some(("+ ", edit)) => {
                        let (pointer, value) = edit.split_once(' ').expect("a value");
                        asked.edits.push((pointer.to_owned(), value.to_owned()));
                    }
                    _ => {
                        asked.body.push_str(more);
                        asked.body.push('\n');
                    }
                }
            }
            while lines.next_if(|line| !line.starts_with(['>', '#', '!'])).is_some() {}
            transcript.push_str(&answered(&mut run, &asked).await);
        }
    }
    transcript
}

async fn answered(run: &mut Run, asked: &Asked) -> String {
    let words: Vec<&str> = asked.line.splitn(3, ' ').collect();
    let [method, host, target] = words[..] else { panic!("{}", asked.line) };
    let mut body = match asked.body.trim() {
        "" => Value::Null,
        "$last" => run.last.clone(),
        text => serde_json::from_str(text).expect(text),
    };
    for (pointer, value) in &asked.edits {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let key = key.replace("~1", "/");
        let value: Value = serde_json::from_str(value).expect(value);
        body.pointer_mut(parent).expect(parent)[key] = value;
    }
    let before = run.server.api.world().state().revision;
    let (status, answer) = run.send(method, host, target, &body).await;
    let after = run.server.api.world().state().revision;
    assert!(status < 400 || before == after, "{} was refused and changed something", asked.line);
    let mut text = format!("> {}\n{}", asked.line, asked.body);
    for (pointer, value) in &asked.edits {
        let _ = writeln!(text, "+ {pointer} {value}");
    }
    if !asked.pick.is_empty() {
        let _ = writeln!(text, "= {}", asked.pick.join(" "));
    }
    let error = answer.get("error").filter(|_| status >= 400);
    if let Some(error) = error {
        let word = |field: &str| error[field].as_str().unwrap_or("?").to_owned();
        let _ = writeln!(text, "< {status} {}: {}", word("status"), word("message"));
    } else if asked.pick.is_empty() {
        let _ = writeln!(text, "< {status}\n{answer:#}");
    } else {
        let _ = writeln!(text, "< {status}");
        for pointer in &asked.pick {
            let value = answer.pointer(pointer).cloned().unwrap_or(Value::Null);
            let _ = writeln!(text, "{pointer} {value}");
        }
    }
    if method == "GET" && status == 200 {
        run.last = answer;
    }
    text
}

fn conversations() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run");
    let entries = std::fs::read_dir(folder).expect("the folder of conversations");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn every_conversation_goes_as_it_is_written() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let mut differing = Vec::new();
    for file in conversations() {
        let expected = std::fs::read_to_string(&file).expect("a conversation");
        let transcript = replay(&expected).await;
        if update {
            std::fs::write(&file, &transcript).expect("written");
        } else if transcript != expected {
            let mut lines = transcript.lines().zip(expected.lines());
            let first = lines.find(|(seen, wanted)| seen != wanted);
            differing.push(format!("{}: {first:#?}", file.display()));
        }
    }
    assert!(differing.is_empty(), "UPDATE_GOLDEN=1 writes the answers anew\n{differing:#?}");
}

fn services() -> impl Strategy<Value = Value> {
    let annotations = prop::collection::btree_map(
        prop::sample::select(vec![
            ("autoscaling.knative.dev/minScale", vec!["0", "1"]),
            ("autoscaling.knative.dev/maxScale", vec!["3"]),
            ("run.googleapis.com/cpu-throttling", vec!["true", "True", "false"]),
            ("run.googleapis.com/startup-cpu-boost", vec!["true", "True", "false"]),
            ("run.googleapis.com/sessionAffinity", vec!["true", "false"]),
            ("run.googleapis.com/execution-environment", vec!["gen1", "gen2"]),
            ("run.googleapis.com/scaling-concurrency-target", vec!["0.5"]),
            ("run.googleapis.com/client-name", vec!["gcloud"]),
            ("example.com/own", vec!["x"]),
        ])
        .prop_flat_map(|(name, values)| (Just(name), prop::sample::select(values))),
        Just(()),
        0..6,
    );
    let environment = prop::sample::select(vec![
        json!([]),
        json!([{ "name": "A", "value": "b" }, { "name": "A", "value": "" }]),
        json!([{ "name": "S", "valueFrom": { "secretKeyRef": { "name": "s", "key": "2" } } }]),
    ]);
    let container = prop::sample::select(vec![
        json!({}),
        json!({ "name": "", "ports": [{ "containerPort": 9090 }] }),
        json!({ "name": "web", "command": ["a"], "args": ["", "b"], "workingDir": "/w" }),
        json!({ "resources": { "limits": { "cpu": "2", "memory": "1Gi" } } }),
        json!({ "livenessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 20 } }),
        json!({ "startupProbe": { "grpc": { "port": 8080, "service": "s" } } }),
        json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }),
    ]);
    let volume = prop::sample::select(vec![
        json!({ "name": "v", "emptyDir": { "medium": "Memory", "sizeLimit": "1Gi" } }),
        json!({ "name": "v", "secret": { "secretName": "s", "items": [{ "key": "1", "path": "p" }], "defaultMode": 256 } }),
        json!({ "name": "v", "csi": { "driver": "gcsfuse.run.googleapis.com", "readOnly": true, "volumeAttributes": { "bucketName": "b" } } }),
        json!({ "name": "v", "nfs": { "server": "s", "path": "/p" } }),
    ]);
    let spec = prop::sample::select(vec![
        json!({}),
        json!({ "containerConcurrency": 7, "timeoutSeconds": 9 }),
        json!({ "serviceAccountName": "a@example.com", "nodeSelector": {} }),
    ]);
    (annotations, environment, container, volume, spec).prop_map(
        |(annotations, environment, mut container, volume, mut spec)| {
            container["image"] = "image".into();
            container["env"] = environment;
            spec["containers"] = json!([container]);
            spec["volumes"] = json!([volume]);
            let notes: serde_json::Map<String, Value> = annotations
                .into_keys()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect();
            json!({
                "metadata": { "name": "hello", "annotations": { "example.com/note": "n" } },
                "spec": { "template": {
                    "metadata": {
                        "labels": { "client.knative.dev/nonce": "n", "own": "l" },
                        "annotations": notes,
                    },
                    "spec": spec,
                } },
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_read_through_version_2_and_written_back_changes_nothing(service in services()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let run = Run::start().await;
            let v1 = "/apis/serving.knative.dev/v1/namespaces/demo-proj/services";
            let v2 = "/v2/projects/demo-proj/locations/us-west1/services/hello";
            let (status, answer) = run.send("POST", "us-west1-run", v1, &service).await;
            assert_eq!(status, 200, "{answer:#}");
            run.outcome("hello", true, "", "").await;
            let (_, before) = run.send("GET", "us-west1-run", &format!("{v1}/hello"), &Value::Null).await;
            let (_, shown) = run.send("GET", "run", v2, &Value::Null).await;
            let (status, answer) = run.send("PATCH", "run", v2, &shown).await;
            assert_eq!(status, 200, "{answer:#}");
            let (_, after) = run.send("GET", "us-west1-run", &format!("{v1}/hello"), &Value::Null).await;
            assert_eq!(before["metadata"]["generation"], after["metadata"]["generation"], "{shown:#}\n{before:#}\n{after:#}");
            assert_eq!(before["status"]["latestCreatedRevisionName"], after["status"]["latestCreatedRevisionName"]);
            let (_, again) = run.send("GET", "run", v2, &Value::Null).await;
            for field in ["template", "traffic", "annotations", "labels", "ingress", "scaling"] {
                assert_eq!(shown[field], again[field], "{field}");
            }
        });
    }
}
