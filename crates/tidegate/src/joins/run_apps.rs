//! The `run.app` addresses of services, answered by the data plane on loopback.
//!
//! Invariant: a port of the last time is taken again if it is free, so that clients find it.

use crate::data_dir::{DataDir, RunAppAddresses};
use anyhow::Context;
use api::door::{BoxFuture, RunAppPort, run_app_tls};
use model::{Kind, Location, Name, ResourceName};
use plan::decision::Scheme;
use plan::fleet::Arrival;
use plan::load_balancer::Listener;
use proxy::Proxy;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use tokio::net::TcpStream;

/// What the host itself is called where a network would have a name.
const HOST: &str = "host";

/// Reaches services through the data plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunApps {
    pub(crate) addresses: RunAppAddresses,
}

impl RunApps {
    /// Opens both listeners, where they were before if that is possible. Blocks.
    pub(crate) fn open(
        dir: &DataDir,
        proxy: &Proxy,
        before: Option<RunAppAddresses>,
        is_inherited: bool,
    ) -> anyhow::Result<RunApps> {
        let tls = run_app_tls(dir.root()).context("could not make certificates for services")?;
        let open = |scheme: Scheme, before: Option<SocketAddrV4>| {
            let tls = (scheme == Scheme::Https).then(|| tls.clone());
            let at = before.filter(|_| is_inherited).unwrap_or_else(|| again(before));
            let listener = outside(scheme, at);
            proxy.open_run_app(listener, tls).context("could not listen for requests to services")
        };
        let http = open(Scheme::Http, before.map(|before| before.http))?;
        let https = open(Scheme::Https, before.map(|before| before.https))?;
        Ok(RunApps { addresses: RunAppAddresses { http, https } })
    }
}

impl RunAppPort for RunApps {
    fn connect(&self) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(self.addresses.https))
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
