//! What gcloud really sends, command by command, answered by the real API.
//!
//! `transcripts/` holds the requests of recorded commands. Operation names, fingerprints and ids are the
//! recording's own; they are replaced by those of the answers given here, as gcloud would have done.

mod support;

use serde_json::Value;
use std::path::Path;
use support::Server;

#[derive(Default)]
struct Client {
    operation: String,
    /// What was got last, by its path.
    seen: std::collections::BTreeMap<String, Value>,
}

impl Client {
    /// The body as a client would write it who had got this server's answers.
    fn body(&self, target: &str, body: &Value) -> Value {
        let mut body = body.clone();
        if let Value::Object(object) = &mut body {
            for (field, value) in object.iter_mut() {
                let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) else {
                    continue;
                };
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
                assert!(field == "certificate" || field == "privateKey");
                *value = std::fs::read_to_string(folder.join(name)).expect(name).into();
            }
            let path = target.split('?').next().unwrap_or(target);
            // A verb's path goes on after the resource's.
            let parent = path.rsplit_once('/').map_or(path, |(parent, _)| parent);
            if let Some(seen) = self.seen.get(path).or(self.seen.get(parent)) {
                let current = |field: &str| match path.rsplit('/').next() {
                    Some("setMetadata") => seen["metadata"].get(field).cloned(),
                    Some("setCommonInstanceMetadata") => {
                        seen["commonInstanceMetadata"].get(field).cloned()
                    }
                    Some("setTags") => seen["tags"].get(field).cloned(),
                    _ => seen.get(field).cloned(),
                };
                for field in ["fingerprint", "labelFingerprint", "id"] {
                    if let (true, Some(value)) = (object.contains_key(field), current(field)) {
                        object.insert(field.into(), value);
                    }
                }
            }
        }
        body
    }

    async fn send(&mut self, server: &Server, request: &Value) -> (u16, Value) {
        let method = request["method"].as_str().expect("a method");
        let target =
            request["target"].as_str().expect("a target").replace("OPERATION", &self.operation);
        let body = request.get("body").map(|body| self.body(&target, body));
        let (status, answer) = server.call(method, &target, body.as_ref()).await;
        let path = target.split('?').next().unwrap_or(&target).to_string();
        if answer["kind"] == "compute#operation" {
            self.operation = answer["name"].as_str().expect("a name").to_string();
        } else if method == "GET" && status == 200 {
            self.seen.insert(path, answer.clone());
        }
        (status, answer)
    }
}

#[tokio::test]
async fn the_how_to_is_answered_as_gcloud_needs_it() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts/howto.jsonl");
    let text = std::fs::read_to_string(file).expect("the transcript");
    let server = Server::start().await;
    let mut client = Client::default();
    let mut command = String::new();
    for line in text.lines() {
        let request: Value = serde_json::from_str(line).expect("a request");
        if let Some(text) = request["command"].as_str() {
            command = text.to_string();
            continue;
        }
        let (status, answer) = client.send(&server, &request).await;
        assert_eq!(request["status"], status, "{command}\n{request:#}\n{answer:#}");
        if answer["kind"] == "compute#operation" {
            assert_eq!(
                (&answer["status"], answer.get("error")),
                (&"DONE".into(), None),
                "{command}"
            );
            for field in [
                "name",
                "selfLink",
                "targetLink",
                "operationType",
                "targetId",
                "user",
                "insertTime",
            ] {
                assert!(answer[field].is_string(), "{command}: no {field} in {answer:#}");
            }
        }
    }
    let rules =
        server.call("GET", "projects/demo-proj/regions/us-west1/forwardingRules", None).await.1;
    let addresses: Vec<_> =
        rules["items"].as_array().into_iter().flatten().map(|r| r["IPAddress"].clone()).collect();
    assert_eq!(addresses, ["10.1.2.2", "10.1.2.3"]);
}
