//! The `run.app` addresses of services, answered by the data plane: on loopback for those who come from
//! outside, and in every VPC network for those who are in it.
//!
//! Invariant: a port of the last time is taken again if it is free, so that clients find it.

use crate::data_dir::{DataDir, RunAppAddresses};
use anyhow::Context;
use api::door::{BoxFuture, RunAppPort, RunAppTls, run_app_tls};
use model::{Kind, Location, Name, ResourceName};
use plan::decision::Scheme;
use plan::fleet::Arrival;
use plan::load_balancer::Listener;
use plan::network::Networks;
use proxy::Proxy;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::net::TcpStream;
use vpc::RUN_APP_ADDRESS;

/// How services are spoken to, and on which port.
const SCHEMES: [(Scheme, u16); 2] = [(Scheme::Http, 80), (Scheme::Https, 443)];

/// What the host itself is called where a network would have a name.
const HOST: &str = "host";

/// The `run.app` addresses of a server.
#[derive(Debug)]
pub(crate) struct RunApps {
    proxy: Arc<Proxy>,
    tls: RunAppTls,
    /// Where those who come from outside find services, once it is open.
    outside: Arc<OnceLock<RunAppAddresses>>,
    /// The networks that are served, by id.
    networks: Mutex<BTreeSet<u64>>,
}

impl RunApps {
    /// Serves nobody yet; `outside` is told where, once it is known.
    pub(crate) fn new(
        dir: &DataDir,
        proxy: Arc<Proxy>,
        outside: Arc<OnceLock<RunAppAddresses>>,
    ) -> anyhow::Result<RunApps> {
        let tls = run_app_tls(dir.root()).context("could not make certificates for services")?;
        Ok(RunApps { proxy, tls, outside, networks: Mutex::default() })
    }

    /// Serves those who come from outside, where it was before if that is possible. Blocks.
    pub(crate) fn open_outside(
        &self,
        before: Option<RunAppAddresses>,
        is_inherited: bool,
    ) -> anyhow::Result<RunAppAddresses> {
        let open = |scheme: Scheme, before: Option<SocketAddrV4>| {
            let at = before.filter(|_| is_inherited).unwrap_or_else(|| again(before));
            let opened = self.proxy.open_run_app(outside(scheme, at), self.tls_for(scheme));
            opened.context("could not listen for requests to services")
        };
        let http = open(Scheme::Http, before.map(|before| before.http))?;
        let https = open(Scheme::Https, before.map(|before| before.https))?;
        Ok(*self.outside.get_or_init(|| RunAppAddresses { http, https }))
    }

    fn tls_for(&self, scheme: Scheme) -> Option<RunAppTls> {
        (scheme == Scheme::Https).then(|| self.tls.clone())
    }

    /// Leaves the networks that are not among these, while they are still there. Blocks.
    pub(crate) fn leave_others(&self, networks: &Networks) {
        let stays = |id: &u64| networks.iter().any(|network| network.id == *id);
        self.networks().retain(|id| {
            if !stays(id) {
                self.close(*id);
            }
            stays(id)
        });
    }

    /// Serves these networks, which are there. Blocks.
    pub(crate) fn enter(&self, networks: &Networks) {
        let mut served = self.networks();
        for network in networks.iter() {
            if served.contains(&network.id) {
                continue;
            }
            let entered = SCHEMES.iter().try_for_each(|(scheme, port)| {
                let at = SocketAddrV4::new(RUN_APP_ADDRESS, *port);
                let name = name_in_network(*scheme, network.id);
                let id = id_in_network(*scheme, network.id);
                let within = network.name.clone();
                let listener = Listener::run_app(name, id, within, at, *scheme, Arrival::Vpc);
                self.proxy.open_run_app(listener, self.tls_for(*scheme)).map(drop)
            });
            match entered {
                Ok(()) => drop(served.insert(network.id)),
                // The network itself failed, and is tried again with the next plan.
                Err(error) => {
                    self.close(network.id);
                    tracing::warn!(network = %network.name, %error, "no services by `run.app`");
                }
            }
        }
    }

    fn close(&self, network: u64) {
        for (scheme, _) in SCHEMES {
            self.proxy.close_run_app(&name_in_network(scheme, network));
        }
    }

    fn networks(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name_in_network(scheme: Scheme, network: u64) -> ResourceName {
    named(Kind::ForwardingRule, &format!("run-app-{}-{network}", scheme.as_str()))
}

/// Ids of resources are made from the time and leave the upper bits free.
fn id_in_network(scheme: Scheme, network: u64) -> u64 {
    match scheme {
        Scheme::Http => network | 1 << 63,
        Scheme::Https => network | 1 << 62,
    }
}

impl RunAppPort for RunApps {
    fn connect(&self) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(async {
            let at = self.outside.get().ok_or(io::ErrorKind::NotConnected)?;
            TcpStream::connect(at.https).await
        })
    }
}

/// The name under which the data plane serves those who come from outside every network.
pub(crate) fn listener_name(scheme: Scheme) -> ResourceName {
    named(Kind::ForwardingRule, &format!("run-app-{}", scheme.as_str()))
}

/// What stands for the host itself where the data plane asks for a network.
pub(crate) fn host() -> ResourceName {
    named(Kind::Network, HOST)
}

fn named(kind: Kind, name: &str) -> ResourceName {
    let project = Name::default();
    ResourceName { project, location: Location::Global, kind, name: name.into() }
}

fn outside(scheme: Scheme, at: SocketAddrV4) -> Listener {
    // Forwarding rules have ids made from the time, which never come up here.
    let id = match scheme {
        Scheme::Http => u64::MAX,
        Scheme::Https => u64::MAX - 1,
    };
    let (name, network) = (listener_name(scheme), host());
    Listener::run_app(name, id, network, at, scheme, Arrival::Outside)
}

/// The address of the last time. Others may join a socket of the data plane, so whether the port is free
/// is asked by a socket that nobody may join.
fn again(before: Option<SocketAddrV4>) -> SocketAddrV4 {
    let anywhere = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    before.filter(|before| TcpListener::bind(before).is_ok()).unwrap_or(anywhere)
}
