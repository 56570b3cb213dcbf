//! An API over a real store in a temporary folder, with a clock and chance that repeat themselves.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of this")]

use api::{
    Api, InstanceStatus, Observed, Principal, Request, Response, Settled, Surroundings, World,
};
use bytes::Bytes;
use http::{HeaderMap, Method};
use model::ResourceName;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use store::Store;
use tempfile::TempDir;
use time::OffsetDateTime;
use time::macros::datetime;
use tokio::sync::watch;

/// Appliers that are always done, or that wait until they are told.
#[derive(Debug)]
pub struct Appliers {
    progress: watch::Sender<u64>,
}

impl Appliers {
    pub fn done() -> Appliers {
        Appliers { progress: watch::Sender::new(u64::MAX) }
    }

    pub fn held() -> Appliers {
        Appliers { progress: watch::Sender::new(0) }
    }

    pub fn reach(&self, number: u64) {
        self.progress.send_replace(number);
    }
}

impl Observed for Appliers {
    fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn settled(&self, _revision: u64, target: &ResourceName) -> Settled {
        if target.name.as_str() == "breaks" {
            let message = format!("The resource '{target}' broke.");
            return Settled::Failed { code: "RESOURCE_ERROR".into(), message };
        }
        Settled::Done
    }

    fn instance_status(&self, _instance: &ResourceName) -> Option<InstanceStatus> {
        Some(InstanceStatus::Running)
    }

    fn serial_output(&self, _instance: &ResourceName) -> String {
        "sshd: Server listening on 0.0.0.0 port 22.\n".into()
    }

    fn host_keys(&self, _instance: &ResourceName) -> Vec<(String, String)> {
        vec![("ssh-ed25519".into(), "AAAAC3Nz".into())]
    }
}

/// A clock that ticks a second at every look, and numbers that only look random.
#[derive(Debug, Default)]
pub struct Repeatable {
    seconds: AtomicU64,
    numbers: AtomicU64,
}

impl Surroundings for Repeatable {
    fn now(&self) -> OffsetDateTime {
        let seconds = self.seconds.fetch_add(1, Ordering::Relaxed);
        datetime!(2027-01-15 12:00:00 UTC) + time::Duration::seconds(seconds.cast_signed())
    }

    fn random(&self) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// An API to call.
pub struct Server {
    pub api: Api,
    pub appliers: Arc<Appliers>,
    /// Removed with the server, unless the caller keeps the folder.
    pub folder: Option<TempDir>,
}

pub const PROJECT: &str = "demo-proj";

impl Server {
    pub async fn start() -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Server::open(folder.path(), Appliers::done()).await;
        server.folder = Some(folder);
        server
    }

    pub async fn start_with(appliers: Appliers) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Server::open(folder.path(), appliers).await;
        server.folder = Some(folder);
        server
    }

    pub async fn open(folder: &Path, appliers: Appliers) -> Server {
        let store = Store::open(folder.join("store")).expect("a store");
        // A server that starts again goes on where it stopped, rather than repeating itself.
        let numbers = AtomicU64::new(store.revision() << 32);
        let surroundings = Repeatable { numbers, ..Repeatable::default() };
        let world = World::open(store).expect("a world");
        let appliers = Arc::new(appliers);
        let api = Api::new(world, appliers.clone(), Arc::new(surroundings));
        api.ensure_project(PROJECT, "Demo").await.expect("a project");
        Server { api, appliers, folder: None }
    }

    /// Sends a request to Compute; `target` is below `/compute/v1/` unless it starts with a slash.
    pub async fn send(&self, method: &str, target: &str, body: impl Into<Bytes>) -> Response {
        let target = match target.strip_prefix('/') {
            Some(_) => target.to_string(),
            None => format!("/compute/v1/{target}"),
        };
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let request = Request {
            service: "compute".into(),
            host_region: None,
            method: Method::from_bytes(method.as_bytes()).expect("a method"),
            path: path.into(),
            query: query.into(),
            headers: HeaderMap::new(),
            body: body.into(),
            principal: Principal { email: "owner@example.com".into(), is_service_account: false },
        };
        self.api.handle(request).await
    }

    /// Sends JSON and reads JSON.
    pub async fn call(&self, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
        let body = body.map(Value::to_string).unwrap_or_default();
        let response = self.send(method, target, body).await;
        let value = serde_json::from_slice(&response.body).unwrap_or(Value::Null);
        (response.status.as_u16(), value)
    }

    /// Sends JSON that must be accepted.
    pub async fn accept(&self, method: &str, target: &str, body: Value) -> Value {
        let (status, answer) = self.call(method, target, Some(&body)).await;
        assert_eq!(status, 200, "{method} {target}: {answer:#}");
        answer
    }
}
