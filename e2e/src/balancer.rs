//! The how-to's load balancer, built on a server, and its client VM's view of it.
//!
//! A request for `example.com` finds the service that the first segment of its path names; any other
//! finds the hello page.

use crate::api::Api;
use crate::certificate::{Pair, self_signed};
use crate::howto::{self, DOMAIN, HELLO, Ledger, Step};
use crate::http::{Connection, Page};
use crate::namespace::Namespace;
use crate::server::Server;
use anyhow::{Result, anyhow, ensure};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The host whose paths name services.
pub const BY_PATH: &str = "example.com";

/// A host that no change of a test touches.
const UNTOUCHED: &str = "other.example.com";

/// How many clients ask while something else is done, lightly: the machine has other things to do.
const CLIENTS: usize = 2;

/// The pause between two requests of such a client.
const PAUSE: Duration = Duration::from_millis(2);

/// A load balancer that serves.
#[derive(Debug)]
pub struct Balancer {
    /// A client of the server's API.
    pub api: Api,
    /// The certificate it was built with.
    pub pair: Pair,
    /// Where its clients are.
    pub inside: Namespace,
    /// Its address for plain HTTP.
    pub address: Ipv4Addr,
}

impl Balancer {
    /// Takes the how-to's steps, without asking for a page in between.
    pub fn build(server: &Server) -> Result<Balancer> {
        let api = server.api()?;
        let pair = self_signed(DOMAIN, &[])?;
        let mut ledger = Ledger::default();
        for step in howto::build(&api, &pair) {
            if !matches!(step, Step::Ask(_)) {
                howto::take(&step, server, &api, &pair, &mut ledger)?;
            }
        }
        let inside = howto::inside(server, &api, "vm-client")?;
        let address = howto::address(&api, "hello-http-fr")?;
        Ok(Balancer { api, pair, inside, address })
    }

    /// A connection from inside the client VM.
    pub fn open(&self) -> Result<Connection<TcpStream>> {
        Ok(Connection::over(self.inside.connect((self.address, 80).into())?))
    }

    /// One request from inside the client VM, on a connection of its own.
    pub fn get(&self, host: &str, target: &str) -> Result<Page> {
        self.open()?.get(host, target)
    }

    /// Does something while clients ask for a page that it does not touch; how many requests were
    /// answered meanwhile. One that fails is an error.
    pub fn asked_meanwhile(&self, work: impl FnOnce() -> Result<()>) -> Result<usize> {
        let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| -> Result<()> {
            let clients: Vec<_> =
                (0..CLIENTS).map(|_| scope.spawn(|| self.keep_asking(&stop, &answered))).collect();
            let worked = work();
            stop.store(true, Ordering::Relaxed);
            for client in clients {
                client.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            worked
        })?;
        let answered = answered.load(Ordering::Relaxed);
        println!("{answered} requests answered meanwhile, none failed");
        ensure!(answered > 0, "nobody asked meanwhile");
        Ok(answered)
    }

    fn keep_asking(&self, stop: &AtomicBool, answered: &AtomicUsize) -> Result<()> {
        let mut client = self.open()?;
        while !stop.load(Ordering::Relaxed) {
            let page = client.get(UNTOUCHED, "/")?;
            let text = page.text();
            ensure!(page.status == 200 && text.contains(HELLO), "{}: {text}", page.status);
            answered.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}
