//! Change without loss: plans, rules, certificates and whole processes come and go under load.

use crate::support::http2::{client_config, connect, read, run, tls};
use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn};
use crate::support::world::{World, network};
use model::Kind;
use proxy::{Config, Parties};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A backend that says which request it answers, and speaks WebSocket lines at `/ws`.
fn backend() -> Backend {
    Backend::start(|mut conn| {
        while let Some((head, _)) = conn.message() {
            if head.contains("upgrade: websocket") {
                conn.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
                while let Some(line) = conn.until("\n") {
                    conn.send(line);
                }
                return;
            }
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    })
}

/// Load that runs until it is told to stop; a failed request fails its thread.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn new() -> Load {
        Load { stop: Arc::default(), done: Arc::default(), threads: Vec::new() }
    }

    fn add(&mut self, mut request: impl FnMut() + Send + 'static) {
        let (stop, done) = (self.stop.clone(), self.done.clone());
        self.threads.push(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                request();
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no request fails");
        }
        self.done.load(Ordering::Relaxed)
    }
}

fn kept_connection(address: SocketAddr) -> impl FnMut() + Send {
    let mut client = Conn::connect(address);
    move || {
        client.send(GET);
        assert_eq!(client.message().expect("an answer").1, b"ok");
    }
}

fn new_connections(address: SocketAddr) -> impl FnMut() + Send {
    move || {
        let mut client = Conn::connect(address);
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(client.rest().ends_with("\r\n\r\nok"));
    }
}

fn websocket(address: SocketAddr) -> impl FnMut() + Send {
    let mut client = Conn::connect(address);
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    client.head().expect("an upgrade");
    move || {
        client.send("line\n");
        assert_eq!(client.until("\n").expect("a line"), "line\n");
    }
}

#[test]
fn a_thousand_plans_cost_no_request() {
    let mut world = World::new();
    let mut roots = vec![world.certificate("first", &["a.example"])];
    world.https_proxy("secure", "map", &["first"]);
    world.rule("secure", 443, Kind::TargetHttpsProxy, "secure");
    let mut plane = Plane::with(world, Config { workers: 2, ..Config::default() });
    let backends = [backend(), backend()];
    plane.instances.place("app", backends[0].address);
    let (http, https) = (plane.address(80), plane.address(443));
    roots.push(plane.world.certificate("second", &["a.example"]));

    let mut load = Load::new();
    load.add(kept_connection(http));
    load.add(new_connections(http));
    load.add(websocket(http));
    let config = client_config(&roots, &["h2"]);
    let (stop, done) = (load.stop.clone(), load.done.clone());
    let encrypted = std::thread::spawn(move || {
        run(async {
            let client = connect(https, &config, "a.example").await;
            while !stop.load(Ordering::Relaxed) {
                let request = http::Request::get("https://a.example/").body(()).unwrap();
                let mut client = client.clone().ready().await.unwrap();
                let (response, _) = client.send_request(request, true).unwrap();
                let (body, _) = read(response.await.unwrap().into_body()).await.unwrap();
                assert_eq!(body, b"ok");
                tls(https, &config, "a.example").await.expect("a handshake");
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    });

    for change in 0..1000 {
        match change % 5 {
            0 => plane.world.url_map("map", "app", |_| {}),
            1 => plane.world.rule("extra", 8080, Kind::TargetHttpProxy, "proxy"),
            2 => plane.world.remove_rule("extra"),
            3 => {
                let certificate = if change % 2 == 0 { "first" } else { "second" };
                plane.world.https_proxy("secure", "map", &[certificate]);
            }
            _ => plane.instances.place("app", backends[change / 5 % 2].address),
        }
        plane.apply();
    }
    let done = load.finish();
    encrypted.join().expect("no encrypted request fails");
    assert!(done > 100, "only {done} requests ran");
    assert_eq!(plane.proxy.plan_number(), 1001);
}

#[test]
fn when_apply_returns_every_new_request_sees_the_plan() {
    let mut plane = Plane::with(World::new(), Config { workers: 2, ..Config::default() });
    let (one, two) = (
        Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none"),
        Backend::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo"),
    );
    plane.world.service("other", |_| {});
    plane.world.backend("other", |_| {});
    plane.instances.place("app", one.address);
    plane.instances.place("other", two.address);
    let mut clients: Vec<Conn> = (0..8).map(|_| Conn::connect(plane.address(80))).collect();
    for turn in 0..50 {
        let (backend, text) = if turn % 2 == 0 { ("other", "two") } else { ("app", "one") };
        plane.world.url_map("map", backend, |_| {});
        plane.apply();
        for client in &mut clients {
            client.send(GET);
            assert_eq!(client.message().unwrap().1, text.as_bytes(), "turn {turn}");
        }
    }
}

#[test]
fn an_older_plan_is_never_served_over_a_newer_one() {
    let mut plane = Plane::start(World::new());
    let old = plane.world.plan();
    plane.world.rule("extra", 8080, Kind::TargetHttpProxy, "proxy");
    plane.apply();
    plane.proxy.apply(&old);
    assert_eq!(plane.proxy.status().len(), 2);
}

#[test]
fn a_rule_that_is_removed_serves_what_was_already_connected() {
    let mut plane = Plane::with(World::new(), Config { workers: 2, ..Config::default() });
    let backend = backend();
    plane.instances.place("app", backend.address);
    let address = plane.address(80);
    let mut idle = Conn::connect(address);
    idle.send(GET);
    idle.message().unwrap();
    // Connected, and perhaps not yet accepted by anyone.
    let mut queued: Vec<Conn> = (0..64).map(|_| Conn::connect(address)).collect();
    plane.world.remove_rule("web");
    plane.apply();
    for client in &mut queued {
        client.send(GET);
        assert_eq!(client.message().expect("an answer").1, b"ok");
        assert_eq!(client.rest(), "");
    }
    assert_eq!(idle.rest(), "");
    eventually("new connections are refused", || {
        TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err()
    });
}

#[test]
fn a_second_process_takes_the_sockets_over_without_refusing_anyone() {
    let plane = Plane::with(World::new(), Config { workers: 2, ..Config::default() });
    let backend = backend();
    plane.instances.place("app", backend.address);
    let address = plane.address(80);
    let mut load = Load::new();
    load.add(new_connections(address));
    load.add(new_connections(address));
    std::thread::sleep(Duration::from_millis(50));

    let parties = Parties {
        endpoints: plane.instances.clone(),
        sockets: plane.sockets.clone(),
        callers: Arc::new(crate::support::plane::TestCallers),
    };
    let successor =
        proxy::Proxy::start(Config { workers: 2, ..Config::default() }, parties).unwrap();
    let sockets = plane.proxy.hand_over_sockets().unwrap();
    let sockets = sockets.into_iter().map(|(_, socket)| socket).collect();
    successor.inherit(network(), sockets).unwrap();
    let mut world = plane.world;
    let plan = world.plan();
    // The successor finds its sockets by the address they really have.
    let mut moved = (*plan).clone();
    let (name, listener) = moved.listeners.iter().next().unwrap();
    let (name, mut listener) = (name.clone(), (**listener).clone());
    let SocketAddr::V4(v4) = address else { panic!("loopback is IPv4") };
    (listener.address, listener.port) = (*v4.ip(), v4.port());
    moved.listeners.insert(name, Arc::new(listener));
    assert!(successor.apply(&Arc::new(moved)).is_empty());
    plane.proxy.drain(Duration::from_secs(5));
    std::thread::sleep(Duration::from_millis(50));
    assert!(load.finish() > 20);
    assert!(successor.status()[0].requests > 0);
}

#[test]
fn draining_finishes_what_is_under_way_and_ends_at_its_bound() {
    let plane = Plane::start(World::new());
    let slow = Backend::start(|mut conn| {
        while let Some(head) = conn.head() {
            if head.contains("/never") {
                conn.rest();
                return;
            }
            std::thread::sleep(Duration::from_millis(200));
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    plane.instances.place("app", slow.address);
    let mut client = Conn::connect(plane.address(80));
    client.send(GET);
    eventually("the request is under way", || plane.instances.in_flight() == 1);
    let mut stuck = Conn::connect(plane.address(80));
    stuck.send("GET /never HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the other one too", || plane.instances.in_flight() == 2);
    let start = std::time::Instant::now();
    plane.proxy.drain(Duration::from_millis(800));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(client.message().unwrap().1, b"ok");
    assert_eq!(stuck.rest(), "");
    assert_eq!(plane.instances.in_flight(), 0);
}
