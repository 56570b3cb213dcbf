//! A small world on the real host: a data directory, the networks declared in it, and a key to log in.

use model::firewall::{Direction, Firewall, Protocol, Traffic};
use model::forwarding_rule::ForwardingRule;
use model::instance::{Instance, NetworkInterface};
use model::network::Network;
use model::project::Project;
use model::route::{NextHop, Route};
use model::subnetwork::{Purpose, Role, Subnetwork};
use model::{Inventory, Kind, Resource, ResourceName};
use plan::network::{Networks, compile};
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;
use vpc::Vpc;

/// How long a probe waits before it counts as blocked.
const PROBE_LIMIT: Duration = Duration::from_millis(700);

/// The world of one test.
pub(crate) struct World {
    pub(crate) data_dir: PathBuf,
    /// Removed with the world; absent in a world that plays a server of another process.
    _temporary: Option<tempfile::TempDir>,
    pub(crate) inventory: Inventory,
    pub(crate) vpc: Vpc,
    networks: Networks,
}

pub(crate) fn network(name: &str) -> ResourceName {
    ResourceName::global("p", Kind::Network, name)
}

pub(crate) fn instance(name: &str) -> ResourceName {
    ResourceName::zonal("p", "us-west1-a", Kind::Instance, name)
}

pub(crate) fn address(text: &str) -> Ipv4Addr {
    text.parse().expect(text)
}

fn subnet(name: &str) -> ResourceName {
    ResourceName::regional("p", "us-west1", Kind::Subnetwork, name)
}

impl World {
    /// A network `n` with a subnet, a proxy-only subnet, and the address 10.1.2.99 of a forwarding rule.
    pub(crate) fn new() -> World {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let mut world = World::at(temporary.path());
        world._temporary = Some(temporary);
        world
    }

    /// The same world in a given data directory.
    pub(crate) fn at(data_dir: &Path) -> World {
        let data_dir = data_dir.to_owned();
        let vpc = Vpc::open(&data_dir).expect("a data directory");
        let mut inventory = Inventory::default();
        inventory.insert(Resource::Network(Arc::new(Network {
            name: network("n"),
            id: 900,
            auto_create_subnetworks: false,
            mtu_bytes: 1460,
            routing_mode: Default::default(),
        })));
        for (name, id, range, purpose, role) in [
            ("s", 901, "10.1.2.0/24", Purpose::Private, None),
            ("x", 902, "10.129.0.0/23", Purpose::RegionalManagedProxy, Some(Role::Active)),
        ] {
            inventory.insert(Resource::Subnetwork(Arc::new(Subnetwork {
                name: subnet(name),
                id,
                network: network("n"),
                range: range.parse().expect(range),
                purpose,
                role,
                secondary_ranges: Vec::new(),
                private_google_access: false,
                log_config: None,
            })));
        }
        let networks = Networks::default();
        let mut world = World { data_dir, _temporary: None, inventory, vpc, networks };
        world.frontend("fr", "10.1.2.99");
        world
    }

    pub(crate) fn frontend(&mut self, name: &str, ip: &str) {
        self.inventory.insert(Resource::ForwardingRule(Arc::new(ForwardingRule {
            name: ResourceName::regional("p", "us-west1", Kind::ForwardingRule, name),
            id: 903,
            load_balancing_scheme: "INTERNAL_MANAGED".into(),
            network: network("n"),
            subnetwork: subnet("s"),
            address: address(ip),
            reserved_address: None,
            port: 80,
            target: ResourceName::regional("p", "us-west1", Kind::TargetHttpProxy, "proxy"),
            allow_global_access: false,
            service_label: None,
        })));
    }

    pub(crate) fn vm(&mut self, name: &str, id: u64, ip: &str, tags: &[&str]) {
        self.inventory.insert(Resource::Instance(Arc::new(Instance {
            name: instance(name),
            id,
            interfaces: vec![NetworkInterface {
                network: network("n"),
                subnetwork: subnet("s"),
                address: Some(address(ip)),
                external: true,
            }],
            tags: tags.iter().map(|tag| (*tag).into()).collect(),
            metadata: Vec::new(),
            service_accounts: Vec::new(),
            can_ip_forward: false,
            deletion_protection: false,
            hostname: None,
            running: true,
            boot: 1,
        })));
    }

    /// Changes a declared instance.
    pub(crate) fn change(&mut self, name: &str, change: impl FnOnce(&mut Instance)) {
        let mut changed = Instance::clone(&self.inventory.instances[&instance(name)]);
        change(&mut changed);
        self.inventory.insert(Resource::Instance(Arc::new(changed)));
    }

    /// An ingress rule for TCP ports; `deny` first in the name makes it a denial.
    pub(crate) fn firewall(&mut self, name: &str, change: impl FnOnce(&mut Firewall)) {
        let traffic = vec![Traffic { protocol: Protocol::TCP, ports: Vec::new() }];
        let denies = name.starts_with("deny");
        let mut rule = Firewall {
            name: firewall(name),
            id: 904,
            network: network("n"),
            priority: 1000,
            direction: Direction::Ingress,
            allowed: if denies { Vec::new() } else { traffic.clone() },
            denied: if denies { traffic } else { Vec::new() },
            source_ranges: Vec::new(),
            destination_ranges: Vec::new(),
            source_tags: Vec::new(),
            target_tags: Vec::new(),
            source_service_accounts: Vec::new(),
            target_service_accounts: Vec::new(),
            disabled: false,
        };
        change(&mut rule);
        self.inventory.insert(Resource::Firewall(Arc::new(rule)));
    }

    pub(crate) fn route(&mut self, name: &str, to: &str, via: &str) {
        self.inventory.insert(Resource::Route(Arc::new(Route {
            name: ResourceName::global("p", Kind::Route, name),
            id: 905,
            network: network("n"),
            destination: to.parse().expect(to),
            priority: 1000,
            next_hop: NextHop::Instance(instance(via)),
            tags: Vec::new(),
        })));
    }

    pub(crate) fn keys(&mut self, keys: &str) {
        self.inventory.insert(Resource::Project(Arc::new(Project {
            name: ResourceName::project("p"),
            number: 7,
            common_instance_metadata: vec![("ssh-keys".into(), keys.into())],
        })));
    }

    /// Compiles and applies the world.
    pub(crate) fn apply(&mut self) {
        let (networks, problems) = compile(&self.inventory, &self.networks);
        assert_eq!(problems, [], "the world is sound");
        let failures = self.vpc.apply(&networks);
        let told: Vec<String> = failures.iter().map(|f| format!("{f}: {:?}", f.source)).collect();
        assert_eq!(told, Vec::<String>::new());
        self.networks = networks;
    }

    /// Waits until an instance is what it should be.
    pub(crate) fn settle(&self, name: &str) {
        let ready = self.vpc.instance_ready(&instance(name));
        runtime().block_on(ready).unwrap_or_else(|error| {
            panic!("{error}\n{}", self.vpc.serial_output(&instance(name)).unwrap_or_default())
        });
    }

    /// Whether a TCP connection from the tunnel's address gets through; refused is through.
    pub(crate) fn reaches(&self, to: &str) -> bool {
        self.reaches_from(vpc::TUNNEL_ADDRESS, to)
    }

    pub(crate) fn reaches_from(&self, from: Ipv4Addr, to: &str) -> bool {
        let to: SocketAddrV4 = to.parse().expect(to);
        let name = network("n");
        let connect = self.vpc.connect(&name, from, to);
        let limited = async { tokio::time::timeout(PROBE_LIMIT, connect).await };
        match runtime().block_on(limited) {
            Err(_) => false,
            Ok(Ok(_)) => true,
            Ok(Err(error)) => format!("{error:?}").contains("ConnectionRefused"),
        }
    }

    /// Runs a command in an instance over SSH, as gcloud would through the tunnel.
    pub(crate) fn ssh(&self, key: &Path, to: &str, command: &str) -> Output {
        let run = || ssh_command(key, to).arg(command).output().expect("ssh runs");
        self.vpc.within(&network("n"), run).expect("the network is there")
    }

    /// The command's output, which must succeed.
    pub(crate) fn told(&self, key: &Path, to: &str, command: &str) -> String {
        let output = self.ssh(key, to, command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "`{command}`: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// A key pair of the test; the public half as metadata for `user`.
    pub(crate) fn new_key(&self, user: &str) -> (PathBuf, String) {
        let path = self.data_dir.join(format!("{user}.key"));
        let arguments = ["-q", "-t", "ed25519", "-N", "", "-f"];
        let made = Command::new("ssh-keygen").args(arguments).arg(&path).status();
        assert!(made.expect("ssh-keygen runs").success());
        let public = fs::read_to_string(path.with_extension("key.pub")).expect("a public key");
        (path, format!("{user}:{}", public.trim()))
    }

    /// Opens the data directory again, as the next server would; the old server is gone without a word.
    pub(crate) fn reopen(&mut self) {
        self.vpc = Vpc::open(&self.data_dir).expect("a data directory");
        self.networks = Networks::default();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self._temporary.is_some() {
            let failures = self.vpc.down();
            assert!(failures.is_empty() || std::thread::panicking(), "{failures:?}");
        }
    }
}

/// Processes that see anything of the data directory mounted: instances, and everybody while a
/// namespace is pinned.
pub(crate) fn traces(data_dir: &Path) -> Vec<String> {
    let data_dir = data_dir.to_str().expect("a path in UTF-8");
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let sees = |path: PathBuf| {
        let mounts = fs::read_to_string(path.join("mountinfo")).unwrap_or_default();
        mounts.contains(data_dir).then(|| path.display().to_string())
    };
    let is_process = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    let paths = processes.filter(|entry| entry.file_name().to_str().is_some_and(is_process));
    paths.filter_map(|entry| sees(entry.path())).collect()
}

pub(crate) fn firewall(name: &str) -> ResourceName {
    ResourceName::global("p", Kind::Firewall, name)
}

/// The SSH client as gcloud runs it, from the tunnel's address.
pub(crate) fn ssh_command(key: &Path, to: &str) -> Command {
    let mut ssh = Command::new("ssh");
    let from = vpc::TUNNEL_ADDRESS.to_string();
    ssh.args(["-F", "none", "-T", "-b", &from, "-o", "BatchMode=yes"])
        .args(["-o", "ConnectTimeout=5", "-o", "IdentitiesOnly=yes"])
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
        .args(["-o", "LogLevel=ERROR", "-i"])
        .arg(key)
        .arg(to);
    ssh
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Answers every connection on a listener of the network with one word, on a thread.
pub(crate) fn serve(listener: std::net::TcpListener) {
    listener.set_nonblocking(false).expect("blocking");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            answer(stream);
        }
    });
}

fn answer(mut stream: TcpStream) {
    use std::io::Write;
    let mut request = [0; 1024];
    let _ = stream.read(&mut request);
    let _ =
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello");
}
