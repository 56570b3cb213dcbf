//! Sources and functions over the API's JSON, with a builder that always fails: uploads, signed
//! addresses, and what a client is told of a build that does not work out.
#![allow(clippy::unwrap_used)]

use api::builds::{BuildOrder, Builder, Builds, Finished, Offer, UnderWay};
use api::door::{Behind, BoxFuture};
use api::logging::{LogEntry, Logs, Window};
use api::oauth::Identity;
use api::{
    Api, Front, InstanceStatus, Machine, Observed, Platform, Principal, Request, Response, Settled,
    World,
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use model::ResourceName;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

const WHY: &str = "npm install failed: npm error code E404";

#[derive(Debug)]
struct Nothing(watch::Sender<u64>);

impl Observed for Nothing {
    fn progress(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn settled(&self, _: u64, _: &ResourceName) -> Settled {
        Settled::Done
    }

    fn instance_status(&self, _: &ResourceName) -> Option<InstanceStatus> {
        None
    }

    fn serial_output(&self, _: &ResourceName) -> String {
        String::new()
    }

    fn host_keys(&self, _: &ResourceName) -> Vec<(String, String)> {
        Vec::new()
    }
}

#[derive(Debug)]
struct Silence;

impl Logs for Silence {
    fn entries(&self, _: &Window) -> Vec<LogEntry> {
        Vec::new()
    }
}

/// Remembers what it was asked to build, and builds nothing.
#[derive(Debug, Default)]
struct Refusing(Mutex<Vec<BuildOrder>>);

impl Builder for Refusing {
    fn runtimes(&self) -> BoxFuture<'_, Vec<Offer>> {
        let offer = Offer { name: "nodejs22".to_owned(), title: "Node.js 22".to_owned() };
        Box::pin(async move { vec![offer] })
    }

    fn start(&self, order: BuildOrder) -> Arc<dyn UnderWay> {
        self.0.lock().unwrap().push(order);
        Arc::new(Failed)
    }

    fn forget(&self, _: &str) {}
}

#[derive(Debug)]
struct Failed;

impl UnderWay for Failed {
    fn log(&self) -> String {
        format!("FETCHSOURCE\n{WHY}\n")
    }

    fn finished(&self) -> BoxFuture<'_, Result<Finished, String>> {
        Box::pin(async { Err(WHY.to_owned()) })
    }
}

struct Server {
    front: Front,
    builder: Arc<Refusing>,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let store = store::Store::open(folder.path().join("store.redb")).unwrap();
        let identity = Arc::new(Identity::open(folder.path(), "owner@example.com").unwrap());
        let builder = Arc::new(Refusing::default());
        let builds = Builds::new(builder.clone(), folder.path().join("objects"));
        let platform = Platform {
            identity: identity.clone(),
            logs: Arc::new(Silence),
            builds: Some(Arc::new(builds)),
        };
        let observed = Arc::new(Nothing(watch::Sender::new(0)));
        let world = World::open(store).unwrap();
        let api = Api::on_platform(world, observed, Arc::new(Machine), platform);
        api.ensure_project("p", "p").await.unwrap();
        Server { front: Front::new(api, identity), builder, folder }
    }

    async fn send(&self, method: Method, url: &str, body: impl Into<Bytes>) -> Response {
        let rest = url.strip_prefix("https://").unwrap();
        let (host, path) = rest.split_once('/').unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (service, path) = (host.split('.').next().unwrap(), format!("/{path}"));
        let owner = Principal { email: "owner@example.com".to_owned(), is_service_account: false };
        // Without a signature the owner's token is on the request.
        let signed = query.contains("X-Goog-Signature");
        let signer = self.front.signer(service, &path, query);
        let principal = if signed { signer.expect("a good signature") } else { owner };
        let request = Request {
            service: service.to_owned(),
            host_region: None,
            method,
            path,
            query: query.to_owned(),
            headers: HeaderMap::new(),
            body: body.into(),
            principal,
        };
        self.front.answer(request).await
    }

    async fn json(&self, method: Method, url: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(method, url, body).await;
        serde_json::from_slice(&response.body).unwrap_or_default()
    }

    /// An operation, once it is done.
    async fn done(&self, url: &str) -> Value {
        let finished = async {
            loop {
                let operation = self.json(Method::GET, url, Value::Null).await;
                if operation["done"] == true {
                    return operation;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), finished).await.expect("it ends")
    }
}

#[tokio::test]
async fn a_function_whose_build_fails_says_why_and_is_gone_when_deleted() {
    let server = Server::start().await;
    let functions = "https://cloudfunctions.googleapis.com/v2/projects/p/locations/us-west1";
    let place = server
        .json(Method::POST, &format!("{functions}/functions:generateUploadUrl"), json!({}))
        .await;
    let address = place["uploadUrl"].as_str().unwrap();
    let uploaded = server.send(Method::PUT, address, "PK the source").await;
    assert_eq!(uploaded.status, 200, "{uploaded:?}");
    let wanted = json!({
        "buildConfig": {
            "runtime": "nodejs22",
            "entryPoint": "greet",
            "source": { "storageSource": place["storageSource"] },
        },
    });
    let create = format!("{functions}/functions?functionId=greeter");
    let operation = server.json(Method::POST, &create, wanted).await;
    let name = operation["name"].as_str().expect("an operation");
    let url = format!("https://cloudfunctions.googleapis.com/v2/{name}");
    let operation = server.done(&url).await;
    let message = operation["error"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with(&format!("Build failed; {WHY}.")), "{operation:#}");

    let order = server.builder.0.lock().unwrap()[0].clone();
    assert_eq!(std::fs::read(&order.source).unwrap(), b"PK the source");
    assert_eq!(order.function.as_deref(), Some("greet"));
    assert_eq!(order.reference, "us-west1-docker.pkg.dev/p/gcf-artifacts/greeter:latest");

    let one = format!("{functions}/functions/greeter");
    let function = server.json(Method::GET, &one, Value::Null).await;
    assert_eq!(function["state"], "FAILED");
    let build = function["buildConfig"]["build"].as_str().unwrap();
    let build = server
        .json(Method::GET, &format!("https://cloudbuild.googleapis.com/v1/{build}"), Value::Null)
        .await;
    assert_eq!(build["status"], "FAILURE", "{build:#}");
    let bucket = build["logsBucket"].as_str().unwrap().trim_start_matches("gs://");
    let log = format!(
        "https://storage.googleapis.com/{bucket}/log-{}.txt",
        build["id"].as_str().unwrap()
    );
    let log = server.send(Method::GET, &log, "").await;
    assert!(String::from_utf8_lossy(&log.body).contains(WHY), "{log:?}");

    let deleted = server.json(Method::DELETE, &one, Value::Null).await;
    assert_eq!(deleted["done"], true, "{deleted:#}");
    assert_eq!(server.send(Method::GET, &one, "").await.status, 404);
    assert!(!order.source.exists(), "the source stays");
    assert_eq!(server.folder.path().join("objects").read_dir().unwrap().count(), 1, "the log");
}

#[tokio::test]
async fn objects_are_written_in_every_way_gcloud_writes_them() {
    let server = Server::start().await;
    let storage = "https://storage.googleapis.com";
    let missing = server.send(Method::GET, &format!("{storage}/storage/v1/b/sources"), "").await;
    assert_eq!(missing.status, 404);
    let made = server
        .json(
            Method::POST,
            &format!("{storage}/storage/v1/b?project=p"),
            json!({ "name": "sources", "location": "us-west1" }),
        )
        .await;
    assert_eq!(made["location"], "US-WEST1", "{made:#}");
    let again = server
        .send(
            Method::POST,
            &format!("{storage}/storage/v1/b?project=p"),
            json!({ "name": "sources" }).to_string(),
        )
        .await;
    assert_eq!(again.status, 409);
    let upload = format!("{storage}/upload/storage/v1/b/sources/o?uploadType=media&name=a%2Fb.zip");
    let object = server.json(Method::POST, &upload, json!("bytes")).await;
    assert_eq!((&object["name"], &object["size"]), (&json!("a/b.zip"), &json!("7")), "{object:#}");
    let listed = server
        .json(Method::GET, &format!("{storage}/storage/v1/b/sources/o?prefix=a/"), Value::Null)
        .await;
    assert_eq!(listed["items"][0]["name"], "a/b.zip");
    let read = server
        .send(Method::GET, &format!("{storage}/storage/v1/b/sources/o/a%2Fb.zip?alt=media"), "")
        .await;
    assert_eq!(&read.body[..], b"\"bytes\"");
    let full = server.send(Method::DELETE, &format!("{storage}/storage/v1/b/sources"), "").await;
    assert_eq!(full.status, 409, "a bucket with objects in it");
    for path in ["sources/o/a%2Fb.zip", "sources"] {
        let gone = server.send(Method::DELETE, &format!("{storage}/storage/v1/b/{path}"), "").await;
        assert_eq!(gone.status, 204, "{path}");
    }
}
