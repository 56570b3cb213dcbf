//! The real gcloud against Compute, through the front door: the commands around those of the how-to,
//! which the end-to-end tests run, with appliers that are always done.
//!
//! Needs gcloud on PATH; where there is none, each test says loudly what it skips. Nothing leaves
//! loopback: every host gcloud asks for is answered by the door.

mod support;

use api::door::{BoxFuture, Config, Door, InstancePort, Pointing, RunAppPort, bundle_file};
use api::logging::{LogEntry, Logs, Window};
use api::oauth::{Identity, token_file};
use api::{Api, Front, Machine, Platform, World};
use model::ResourceName;
use std::io;
use std::process::{Command, Stdio};
use std::sync::Arc;
use store::Store;
use support::{Appliers, PROJECT};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

/// Nothing can be connected to, and nothing is logged.
#[derive(Debug)]
struct Nothing;

impl InstancePort for Nothing {
    fn connect<'a>(&'a self, _: &'a ResourceName, _: u16) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
    }
}

impl RunAppPort for Nothing {
    fn connect(&self) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
    }
}

impl Logs for Nothing {
    fn entries(&self, _: &Window) -> Vec<LogEntry> {
        Vec::new()
    }
}

struct Server {
    folder: TempDir,
    environment: Vec<(&'static str, String)>,
    _door: Door,
    _runtime: Runtime,
}

#[allow(clippy::print_stdout, reason = "a test that shows nothing says so")]
fn server() -> Option<Server> {
    let found = Command::new("gcloud").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        println!("SKIPPED: gcloud is not on PATH, so nothing was shown about the real client");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Runtime::new().expect("a runtime");
    let identity =
        Arc::new(Identity::open(folder.path(), "owner@example.com").expect("identities"));
    let door = runtime.block_on(async {
        let store = Store::open(folder.path().join("store")).expect("a store");
        let world = World::open(store).expect("a world");
        let platform =
            Platform { identity: Arc::clone(&identity), logs: Arc::new(Nothing), builds: None };
        let observed = Arc::new(Appliers::done());
        let api = Api::on_platform(world, observed, Arc::new(Machine), platform);
        api.ensure_project(PROJECT, "Demo").await.expect("a project");
        let config = Config {
            data_dir: folder.path().to_owned(),
            address: None,
            beyond_loopback: false,
            behind: Arc::new(Front::new(api, Arc::clone(&identity))),
            instances: Arc::new(Nothing),
            run_apps: Arc::new(Nothing),
            inherited: None,
        };
        Door::start(config).await.expect("a door")
    });
    let pointing = Pointing {
        address: door.address(),
        bundle: bundle_file(folder.path()),
        token_file: token_file(folder.path()),
        token: identity.token().to_owned(),
        project: PROJECT.to_owned(),
        path: std::env::var("PATH").unwrap_or_default(),
        run_app: None,
    };
    let environment = pointing.environment().into_iter().collect();
    Some(Server { folder, environment, _door: door, _runtime: runtime })
}

impl Server {
    /// Runs `gcloud compute …`; whether it succeeded, and all it printed.
    fn run(&self, line: &str) -> (bool, String) {
        let mut command = Command::new("gcloud");
        command.arg("compute").args(line.split_ascii_whitespace()).stdin(Stdio::null());
        command.envs(self.environment.iter().cloned());
        command.env("CLOUDSDK_CONFIG", self.folder.path().join("gcloud"));
        let output = command.output().expect("gcloud runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    /// Every line is a command, and after ` => ` a text it prints; ` !> ` is what a refused one prints.
    fn check(&self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (line, wanted, text) = if let Some((line, text)) = line.split_once(" !> ") {
                (line, false, text)
            } else {
                let (line, text) = line.split_once(" => ").unwrap_or((line, ""));
                (line, true, text)
            };
            let (succeeded, said) = self.run(line);
            assert_eq!(succeeded, wanted, "gcloud compute {line}\n{said}");
            assert!(said.contains(text), "gcloud compute {line}: no `{text}` in\n{said}");
        }
    }
}

const NETWORK: &str = "
networks create lb-network --subnet-mode=custom => Created
networks subnets create lb-subnet --network=lb-network --range=10.1.2.0/24 --region=us-west1 => lb-subnet
networks subnets create proxy-only-subnet --purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE --region=us-west1 --network=lb-network --range=10.129.0.0/23
";

const BACKEND: &str = "
network-endpoint-groups create hello-neg --region=us-west1 --network-endpoint-type=serverless --cloud-run-service=hello
backend-services create hello-bs --load-balancing-scheme=INTERNAL_MANAGED --protocol=HTTP --region=us-west1
backend-services add-backend hello-bs --region=us-west1 --network-endpoint-group=hello-neg --network-endpoint-group-region=us-west1
url-maps create hello-map --default-service=hello-bs --region=us-west1
target-http-proxies create hello-http-proxy --url-map=hello-map --region=us-west1
";

#[test]
fn the_verbs_around_a_load_balancer_work() {
    let Some(server) = server() else { return };
    server.check(NETWORK);
    server.check(BACKEND);
    server.check(
        "
addresses create shared-ip --region=us-west1 --subnet=lb-subnet --addresses=10.1.2.99 --purpose=SHARED_LOADBALANCER_VIP
addresses create a1 a2 a3 --region=us-west1 --subnet=lb-subnet => a3
addresses list => RESERVED
forwarding-rules create fr --load-balancing-scheme=INTERNAL_MANAGED --network=lb-network --subnet=lb-subnet --address=shared-ip --target-http-proxy=hello-http-proxy --target-http-proxy-region=us-west1 --region=us-west1 --ports=80
forwarding-rules create fr2 --load-balancing-scheme=INTERNAL_MANAGED --network=lb-network --subnet=lb-subnet --address=10.1.2.99 --target-http-proxy=hello-http-proxy --target-http-proxy-region=us-west1 --region=us-west1 --ports=80 !> in-use and would result in a conflict
addresses describe shared-ip --region=us-west1 => IN_USE
addresses delete shared-ip --region=us-west1 --quiet !> already being used by
addresses delete a1 a2 a3 --region=us-west1 --quiet => a2
forwarding-rules update fr --region=us-west1 --update-labels=env=prod
forwarding-rules describe fr --region=us-west1 => env: prod
forwarding-rules list => 10.1.2.99
target-http-proxies create other-proxy --url-map=hello-map --region=us-west1
forwarding-rules set-target fr --region=us-west1 --target-http-proxy=other-proxy --target-http-proxy-region=us-west1
forwarding-rules describe fr --region=us-west1 => other-proxy
url-maps create other-map --default-service=hello-bs --region=us-west1
target-http-proxies update other-proxy --url-map=other-map --url-map-region=us-west1 --region=us-west1
target-http-proxies list => other-map
url-maps list => other-map
url-maps describe hello-map --region=us-west1 => fingerprint
backend-services update hello-bs --region=us-west1 --enable-logging --logging-sample-rate=0.5
backend-services describe hello-bs --region=us-west1 => sampleRate: 0.5
backend-services get-health hello-bs --region=us-west1
backend-services list => us-west1/networkEndpointGroups/hello-neg
network-endpoint-groups list => SERVERLESS
network-endpoint-groups list-network-endpoints hello-neg --region=us-west1 => Listed 0 items
health-checks create http hc --region=us-west1 => HTTP
health-checks list => hc
ssl-policies create strict --profile=RESTRICTED --min-tls-version=1.2 --region=us-west1 => RESTRICTED
ssl-policies update strict --profile=MODERN --region=us-west1
ssl-policies list => MODERN
ssl-policies list-available-features --region=us-west1 => TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
url-maps create twice --default-service=hello-bs --region=us-west1
url-maps create twice --default-service=hello-bs --region=us-west1 !> already exists
url-maps create Bad_Name --default-service=hello-bs --region=us-west1 !> Must be a match of regex
url-maps create lost --default-service=nope --region=us-west1 !> was not found
url-maps describe nope --region=us-west1 !> was not found
",
    );
}

#[test]
fn networks_instances_and_projects_answer_as_gcloud_expects() {
    let Some(server) = server() else { return };
    server.check(NETWORK);
    server.check(
        "
networks describe lb-network => routingMode: REGIONAL
networks subnets list --filter=name:lb-subnet => 10.1.2.0/24
networks subnets expand-ip-range lb-subnet --region=us-west1 --prefix-length=23 --quiet
networks subnets describe lb-subnet --region=us-west1 => 10.1.2.0/23
networks subnets update lb-subnet --region=us-west1 --enable-private-ip-google-access
networks subnets create backup --purpose=REGIONAL_MANAGED_PROXY --role=BACKUP --region=us-west1 --network=lb-network --range=10.131.0.0/23
networks subnets update backup --region=us-west1 --role=ACTIVE --drain-timeout=1h
networks subnets describe proxy-only-subnet --region=us-west1 => DRAINING
networks subnets create bad --network=lb-network --range=10.1.2.0/25 --region=us-west1 !> conflicts with existing subnetwork
networks create auto --subnet-mode=auto => AUTO
networks update auto --switch-to-custom-subnet-mode --quiet
routes list --filter=network:lb-network => 10.129.0.0/23
routes create r --network=lb-network --destination-range=192.168.0.0/16 --next-hop-gateway=default-internet-gateway => 192.168.0.0/16
firewall-rules create allow-web --network=lb-network --allow=tcp:80,tcp:443,icmp --source-ranges=10.0.0.0/8
firewall-rules update allow-web --priority=900 --disabled
firewall-rules describe allow-web => disabled: true
firewall-rules list => allow-web
instances create vm-client --network=lb-network --subnet=lb-subnet --zone=us-west1-a --tags=allow-ssh => RUNNING
instances create vm-2 vm-3 --network=lb-network --subnet=lb-subnet --zone=us-west1-a --no-address => vm-3
instances list => vm-2
instances add-tags vm-client --zone=us-west1-a --tags=web
instances add-metadata vm-client --zone=us-west1-a --metadata=a=b
instances describe vm-client --zone=us-west1-a => key: a
instances add-labels vm-client --zone=us-west1-a --labels=env=prod
instances stop vm-client --zone=us-west1-a
instances start vm-client --zone=us-west1-a => Instance internal IP is 10.1.2.2
instances reset vm-client --zone=us-west1-a
instances get-serial-port-output vm-client --zone=us-west1-a => Server listening
instances delete vm-2 vm-3 --zone=us-west1-a --quiet => Deleted
project-info describe => defaultServiceAccount
project-info add-metadata --metadata=a=b
project-info describe => key: a
regions list => us-west1
regions describe us-west1 => quotas
zones list => us-west1-a
machine-types list --zones=us-west1-a => n1-standard-1
images describe-from-family debian-12 --project=debian-cloud => family: debian-12
images list --project=debian-cloud --no-standard-images => debian-12
operations list --filter=operationType=insert => DONE
",
    );
}
