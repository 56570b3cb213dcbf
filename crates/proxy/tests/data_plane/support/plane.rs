//! A data plane on loopback: where a rule listens is looked up, never chosen.

use super::world::World;
use model::ResourceName;
use model::run::PortProtocol;
use plan::fleet::RevisionPlan;
use proxy::{
    Acquire, Callers, Config, Dialing, Endpoints, Identity, InstanceId, Lease, Parties, Protocol,
    Proxy, Release, Sockets,
};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Listening sockets on loopback, by the port the plan says.
#[derive(Default)]
pub(crate) struct LoopbackSockets {
    bound: Mutex<HashMap<u16, SocketAddrV4>>,
}

impl LoopbackSockets {
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        let bound = self.bound.lock().unwrap();
        (*bound.get(&port).expect("the plan has a rule for this port")).into()
    }
}

impl Sockets for LoopbackSockets {
    fn listen(
        &self,
        _network: &ResourceName,
        address: SocketAddrV4,
        count: usize,
    ) -> io::Result<Vec<TcpListener>> {
        let anywhere = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let sockets = proxy::sockets::listen_here(anywhere, count)?;
        if let SocketAddr::V4(bound) = sockets[0].local_addr()? {
            self.bound.lock().unwrap().insert(address.port(), bound);
        }
        Ok(sockets)
    }
}

/// How a revision's instances answer.
pub(crate) type Answering = Arc<dyn Fn(&Arc<RevisionPlan>, Lease) -> Acquire + Send + Sync>;

/// One instance per service, wherever a test put it.
#[derive(Default)]
pub(crate) struct Instances {
    addresses: Mutex<HashMap<String, (InstanceId, SocketAddr)>>,
    by_id: Mutex<HashMap<u64, SocketAddr>>,
    next: AtomicU64,
    in_flight: Arc<InFlight>,
    answering: Mutex<Option<Answering>>,
}

#[derive(Default)]
pub(crate) struct InFlight(AtomicUsize);

impl Release for InFlight {
    fn release(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Instances {
    /// Serves `service` from this address from now on, as a new instance.
    pub(crate) fn place(&self, service: &str, address: SocketAddr) {
        let id = InstanceId(self.next.fetch_add(1, Ordering::SeqCst) + 1);
        self.addresses.lock().unwrap().insert(service.to_owned(), (id, address));
        self.by_id.lock().unwrap().insert(id.0, address);
    }

    /// Decides about every lease from now on.
    pub(crate) fn answer_with(&self, answering: Answering) {
        *self.answering.lock().unwrap() = Some(answering);
    }

    /// Leases that are held.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.0.load(Ordering::SeqCst)
    }
}

impl Endpoints for Instances {
    fn acquire(&self, revision: &Arc<RevisionPlan>) -> Acquire {
        let service = &*revision.declared.service.name;
        let placed = self.addresses.lock().unwrap().get(service).copied();
        let (id, _) = placed.unwrap_or_else(|| panic!("no instance of {service}"));
        let protocol = match revision.protocol {
            PortProtocol::Http1 => Protocol::Http1,
            PortProtocol::H2c => Protocol::H2c,
        };
        self.in_flight.0.fetch_add(1, Ordering::SeqCst);
        let lease = Lease::new(id, protocol, self.in_flight.clone());
        let answering = self.answering.lock().unwrap().clone();
        match answering {
            Some(answering) => answering(revision, lease),
            None => Acquire::Ready(lease),
        }
    }

    fn dial(&self, instance: InstanceId) -> Dialing {
        let address = self.by_id.lock().unwrap().get(&instance.0).copied();
        Box::pin(async move {
            let address = address.ok_or(io::ErrorKind::NotConnected)?;
            tokio::net::TcpStream::connect(address).await?.into_std()
        })
    }
}

/// Knows two tokens.
pub(crate) struct TestCallers;

impl Callers for TestCallers {
    fn identify(&self, token: &str) -> Identity {
        match token {
            "good" => Identity::Known {
                member: model::run::Member::User("a@example.com".into()),
                audience: "custom".to_owned(),
            },
            _ => Identity::Invalid,
        }
    }
}

/// A running data plane and the world it serves.
pub(crate) struct Plane {
    pub(crate) proxy: Proxy,
    pub(crate) world: World,
    pub(crate) sockets: Arc<LoopbackSockets>,
    pub(crate) instances: Arc<Instances>,
}

impl Plane {
    /// Starts one worker with defaults.
    pub(crate) fn start(world: World) -> Plane {
        Plane::with(world, Config { workers: 1, ..Config::default() })
    }

    pub(crate) fn with(world: World, config: Config) -> Plane {
        let sockets = Arc::new(LoopbackSockets::default());
        let instances = Arc::new(Instances::default());
        let parties = Parties {
            endpoints: instances.clone(),
            sockets: sockets.clone(),
            callers: Arc::new(TestCallers),
        };
        let proxy = Proxy::start(config, parties).unwrap();
        let mut plane = Plane { proxy, world, sockets, instances };
        plane.apply();
        plane
    }

    /// Serves what is declared now.
    pub(crate) fn apply(&mut self) {
        let failures = self.proxy.apply(&self.world.plan());
        assert!(failures.is_empty(), "{failures:?}");
    }

    /// Where the rule on this port can be reached.
    pub(crate) fn address(&self, port: u16) -> SocketAddr {
        self.sockets.address(port)
    }
}

/// Waits until something is true; fails after a time no sound run needs.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
