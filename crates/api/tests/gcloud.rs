//! The real gcloud against the door: what a user of Google's own client would notice.
//!
//! Needs gcloud on PATH; where there is none, each test says loudly what it skips. Nothing leaves
//! loopback: every host gcloud asks for is answered by the door.

#![allow(clippy::print_stdout, reason = "what is skipped is said to whoever runs the tests")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use api::door::{BoxFuture, Config, Door, InstancePort, Pointing, RunAppPort, bundle_file};
use api::logging::{LogEntry, Logs, Payload, Window};
use api::oauth::{Identity, token_file};
use api::{Api, Front, InstanceStatus, Machine, Observed, Platform, Settled, World};
use model::ResourceName;
use model::run::Outcome;
use plan::fleet::Role;
use store::Store;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const PROJECT: &str = "demo-project";

/// Appliers that are always done.
#[derive(Debug)]
struct Done(watch::Sender<u64>);

impl Observed for Done {
    fn progress(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    fn settled(&self, _: u64, _: &ResourceName) -> Settled {
        Settled::Done
    }

    fn instance_status(&self, _: &ResourceName) -> Option<InstanceStatus> {
        Some(InstanceStatus::Running)
    }

    fn serial_output(&self, _: &ResourceName) -> String {
        String::new()
    }

    fn host_keys(&self, _: &ResourceName) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// VMs whose port 22 gives back what it gets.
struct Echo(SocketAddr);

impl Echo {
    async fn start() -> Echo {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.split();
                    let _ = tokio::io::copy(&mut reads, &mut writes).await;
                });
            }
        });
        Echo(address)
    }
}

impl InstancePort for Echo {
    fn connect<'a>(
        &'a self,
        instance: &'a ResourceName,
        port: u16,
    ) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            match (&*instance.name, port) {
                ("vm", 22) => TcpStream::connect(self.0).await,
                _ => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

/// No service can be connected to.
struct Nowhere;

impl RunAppPort for Nowhere {
    fn connect(&self) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
    }
}

/// A service that has written one line.
#[derive(Debug)]
struct OneLine;

impl Logs for OneLine {
    fn entries(&self, window: &Window) -> Vec<LogEntry> {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![LogEntry {
            at: SystemTime::now(),
            insert_id: "1".to_owned(),
            log: "run.googleapis.com/stdout".to_owned(),
            severity: "INFO".to_owned(),
            payload: Payload::Text("hello from the container".to_owned()),
            resource_type: "cloud_run_revision".to_owned(),
            resource_labels: [
                label("project_id", &window.project),
                label("location", "us-west1"),
                label("service_name", "hello"),
            ]
            .into(),
            labels: BTreeMap::new(),
            trace: None,
            span: None,
        }]
    }
}

/// A server whose containers come up at once, but for images that are called broken.
struct Server {
    _runtime: Runtime,
    folder: TempDir,
    address: SocketAddr,
    token: String,
    _door: Door,
}

fn server() -> Option<Server> {
    let found = Command::new("gcloud").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        println!("SKIPPED: gcloud is not on PATH, so nothing was shown about the real client");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Runtime::new().expect("a runtime");
    let identity = Identity::open(folder.path(), "owner@example.com").expect("identities");
    let identity = Arc::new(identity);
    let door = runtime.block_on(async {
        let store = Store::open(folder.path().join("store")).expect("a store");
        let world = World::open(store).expect("a world");
        let observed = Arc::new(Done(watch::Sender::new(u64::MAX)));
        let platform =
            Platform { identity: Arc::clone(&identity), logs: Arc::new(OneLine), builds: None };
        let api = Api::on_platform(world, observed, Arc::new(Machine), platform);
        api.ensure_project(PROJECT, "Demo").await.expect("a project");
        tokio::spawn(start_instances(api.clone()));
        let config = Config {
            data_dir: folder.path().to_owned(),
            address: None,
            inherited: None,
            beyond_loopback: false,
            behind: Arc::new(Front::new(api, Arc::clone(&identity))),
            instances: Arc::new(Echo::start().await),
            run_apps: Arc::new(Nowhere),
        };
        Door::start(config).await.expect("a door")
    });
    let (address, token) = (door.address(), identity.token().to_owned());
    Some(Server { _runtime: runtime, folder, address, token, _door: door })
}

/// Says of every revision that is to be tried how it fared.
async fn start_instances(api: Api) {
    let mut plans = api.world().plans();
    loop {
        let plan = plans.borrow_and_update().clone();
        for deployment in plan.fleet.services().flat_map(|service| &service.deployments) {
            if deployment.role != Role::Check {
                continue;
            }
            let revision = &deployment.revision;
            let is_broken = revision.declared.containers.iter().any(|c| c.image.contains("broken"));
            let outcome = Outcome {
                ready: !is_broken,
                reason: if is_broken { "HealthCheckContainerError" } else { "" }.to_owned(),
                message: if is_broken { "The container did not listen. Logs: boom" } else { "" }
                    .to_owned(),
                image_digests: vec![("".into(), format!("sha256:{}", "ab".repeat(32)))],
            };
            api.record_outcome(&revision.name, outcome).await.expect("recorded");
        }
        if plans.changed().await.is_err() {
            return;
        }
    }
}

impl Server {
    fn environment(&self) -> BTreeMap<&'static str, String> {
        let pointing = Pointing {
            address: self.address,
            bundle: bundle_file(self.folder.path()),
            token_file: token_file(self.folder.path()),
            token: self.token.clone(),
            project: PROJECT.to_owned(),
            run_app: None,
            path: std::env::var("PATH").unwrap_or_default(),
        };
        pointing.environment().into_iter().collect()
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("gcloud")
    }

    fn command(&self, line: &str) -> Command {
        let mut words = line.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words).envs(self.environment()).stdin(Stdio::null());
        command.env("CLOUDSDK_CONFIG", self.configuration());
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().expect("runs")
    }

    /// The command must succeed and print all of these.
    fn shows(&self, line: &str, texts: &[&str]) {
        let output = self.output(line);
        let said = said(&output);
        assert!(output.status.success(), "{line}\n{said}");
        for text in texts {
            assert!(said.contains(text), "{line}: no `{text}` in\n{said}");
        }
    }

    /// The command must fail and print all of these.
    fn refuses(&self, line: &str, texts: &[&str]) {
        let output = self.output(line);
        let said = said(&output);
        assert!(!output.status.success(), "{line} was not refused\n{said}");
        for text in texts {
            assert!(said.contains(text), "{line}: no `{text}` in\n{said}");
        }
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    // gcloud prints names in bold even where nobody can see it.
    said.replace("\u{1b}[1m", "").replace("\u{1b}[m", "")
}

#[test]
fn a_service_is_deployed_updated_split_and_deleted() {
    let Some(server) = server() else { return };
    server.shows(
        "gcloud run deploy hello --allow-unauthenticated --ingress=internal --region=us-west1 --image=hello",
        &["has been deployed and is serving 100 percent of traffic", "us-west1.run.app"],
    );
    server.shows("gcloud run services list", &["hello", "us-west1", "owner@example.com"]);
    server.shows(
        "gcloud run deploy hello --region=us-west1 --image=hello:v2 --no-traffic --tag=test",
        &["serving 0 percent of traffic", "https://test---hello-"],
    );
    server.shows(
        "gcloud run services update hello --region=us-west1 --concurrency=10 --update-env-vars=A=B",
        &["has been deployed"],
    );
    server
        .shows("gcloud run services update-traffic hello --region=us-west1 --to-latest", &["100%"]);
    server.refuses(
        "gcloud run deploy hurt --region=us-west1 --image=broken",
        &["is not ready and cannot serve traffic", "Logs: boom"],
    );
    server.shows("gcloud run revisions list --service=hello --region=us-west1", &["hello-0000"]);
    server.shows(
        "gcloud run services get-iam-policy hello --region=us-west1",
        &["allUsers", "roles/run.invoker"],
    );
    server.refuses(
        "gcloud run services update hello --region=us-west1 --concurrency=2000",
        &["INVALID_ARGUMENT", "containerConcurrency"],
    );
    server.shows("gcloud run services delete hello --region=us-west1 --quiet", &["Deleted"]);
    server
        .refuses("gcloud run services describe hello --region=us-west1", &["Cannot find service"]);
    server.shows("gcloud run regions list", &["us-west1"]);
}

#[test]
fn projects_services_and_accounts_answer() {
    let Some(server) = server() else { return };
    server
        .shows("gcloud projects describe demo-project", &["lifecycleState: ACTIVE", "name: Demo"]);
    server.shows("gcloud projects list", &["demo-project"]);
    server.shows(
        "gcloud projects add-iam-policy-binding demo-project --member=user:a@example.com --role=roles/compute.networkAdmin --condition=None",
        &["user:a@example.com"],
    );
    server.shows(
        "gcloud run services logs read hello --region=us-west1 --limit=5",
        &["hello from the container"],
    );
    server.shows(
        "gcloud logging read severity>=INFO --limit=2",
        &["logName: projects/demo-project/logs/run.googleapis.com%2Fstdout"],
    );
    server.shows("gcloud logging read severity>=ERROR --limit=2", &[]);
    server.shows("gcloud services list --enabled", &["run.googleapis.com"]);
    server.shows("gcloud services enable run.googleapis.com compute.googleapis.com", &[]);
    server.shows("gcloud iam roles describe roles/run.invoker", &["run.routes.invoke"]);
    server.shows("gcloud iam service-accounts create robot-1 --display-name=Robot", &["Created"]);
    server.shows("gcloud iam service-accounts list", &["robot-1@demo-project"]);
    let key = server.folder.path().join("key.json");
    let email = "robot-1@demo-project.iam.gserviceaccount.com";
    server.shows(
        &format!("gcloud iam service-accounts keys create {} --iam-account={email}", key.display()),
        &["created key"],
    );
    for role in
        ["roles/iam.serviceAccountTokenCreator", "roles/run.viewer", "roles/compute.networkAdmin"]
    {
        server.shows(
            &format!("gcloud projects add-iam-policy-binding demo-project --member=serviceAccount:{email} --role={role} --condition=None"),
            &[email],
        );
    }
    // From here on the account's own credentials speak, and not the owner's token.
    server.shows(
        &format!("env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud auth activate-service-account --key-file={}", key.display()),
        &["Activated service account credentials"],
    );
    server.shows(
        "env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud run services list",
        &["Listed 0 items"],
    );
    server.shows(
        "env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud auth print-identity-token --audiences=https://a.example",
        &["ey"],
    );
    server.shows(
        &format!("env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud run services list --impersonate-service-account={email}"),
        &["Listed 0 items"],
    );
    // It may read services and shape networks, and no more than that.
    server.refuses(
        "env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud run deploy no --region=us-west1 --image=i",
        &["does not have permission", "run.services.create"],
    );
    server.shows(
        "env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud compute networks create net --subnet-mode=custom",
        &["Created"],
    );
    server.refuses(
        "env -u CLOUDSDK_AUTH_ACCESS_TOKEN_FILE gcloud compute firewall-rules create fw --network=net --allow=tcp:22",
        &["Required 'compute.firewalls.create' permission for 'projects/demo-project/global/firewalls/fw'"],
    );
}

#[test]
fn certificates_are_made_listed_changed_and_deleted() {
    let Some(server) = server() else { return };
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["test.example.com".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    let (chain_file, key_file) =
        (server.folder.path().join("chain.pem"), server.folder.path().join("key.pem"));
    std::fs::write(&chain_file, certificate.pem()).expect("written");
    std::fs::write(&key_file, key.serialize_pem()).expect("written");
    let files = format!(
        "--certificate-file={} --private-key-file={}",
        chain_file.display(),
        key_file.display()
    );
    let certificates = "gcloud certificate-manager certificates";
    let at = "--location=us-west1";
    server.shows(
        &format!("{certificates} create mine {at} {files}"),
        &["Created certificate [mine]"],
    );
    server.shows(&format!("{certificates} list"), &["mine", "test.example.com"]);
    server.shows(
        &format!("{certificates} update mine {at} {files}"),
        &["Updated certificate [mine]"],
    );
    let described = server.output(&format!("{certificates} describe mine {at}"));
    assert!(!said(&described).contains("PRIVATE"), "{}", said(&described));
    server.shows(
        &format!("{certificates} delete mine {at} --quiet"),
        &["Deleted certificate [mine]"],
    );
    server.refuses(&format!("{certificates} describe mine {at}"), &["NOT_FOUND"]);
}

#[test]
fn a_tunnel_to_a_vm_carries_what_ssh_would_send() {
    let Some(server) = server() else { return };
    server.shows("gcloud compute networks create net --subnet-mode=custom", &["Created"]);
    server.shows(
        "gcloud compute networks subnets create sub --network=net --range=10.1.2.0/24 --region=us-west1",
        &["Created"],
    );
    server.shows(
        "gcloud compute instances create vm --network=net --subnet=sub --zone=us-west1-a",
        &["RUNNING"],
    );
    let tunnel = "gcloud compute start-iap-tunnel vm 22 --listen-on-stdin --zone=us-west1-a";
    let mut command = server.command(tunnel);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    // More than one message of the subprotocol, in lines.
    let line = "x".repeat(1000) + "\n";
    let lines = 40;
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(line.repeat(lines).as_bytes()).expect("written");
    stdin.flush().expect("flushed");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    for _ in 0..lines {
        let mut back = String::new();
        stdout.read_line(&mut back).expect("a line");
        assert_eq!(back, line);
    }
    drop(stdin);
    assert!(child.wait().expect("ends").success());
    // gcloud prints why there is no connection and ends as if there had been one.
    server.shows(
        "gcloud compute start-iap-tunnel vm 23 --listen-on-stdin --zone=us-west1-a",
        &["4003", "failed to connect to backend", "Failed to connect to port 23"],
    );
}
