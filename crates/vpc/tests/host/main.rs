//! Networks, firewalls and instances on the real host, in namespaces of their own.
//!
//! Needs root; says so and passes without. The binary is its own helper, as the server's is.

mod world;

use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use world::{World, address, network, serve};

fn main() -> ExitCode {
    if let Some(code) = vpc::helper_main() {
        return code;
    }
    let arguments = Arguments::from_args();
    let tests: [(&str, fn()); 1] = [("a_vm_reaches_a_frontend_and_the_host_does_not", frontends)];
    let trial = |(name, test): (&'static str, fn())| {
        Trial::test(name, move || {
            if !rustix::process::geteuid().is_root() {
                eprintln!("skipped {name}: it needs root");
                return Ok(());
            }
            test();
            Ok::<(), Failed>(())
        })
    };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

fn frontends() {
    let mut world = World::new();
    let (key, line) = world.new_key("amy");
    world.keys(&line);
    world.vm("vm", 11, "10.1.2.2", &["ssh"]);
    world.firewall("allow-ssh", |rule| rule.target_tags = vec!["ssh".into()]);
    world.apply();
    let started = std::time::Instant::now();
    world.settle("vm");
    eprintln!("ready in {:?}", started.elapsed());
    let listener = world.vpc.listen(&network("n"), "10.1.2.99:80".parse().expect("an address"));
    serve(listener.expect("a listener"));
    assert_eq!(world.told(&key, "amy@10.1.2.2", "curl -sS http://10.1.2.99/"), "hello");
    // Neither an address nor a route of the host leads there.
    let on_host = std::net::TcpListener::bind((address("10.1.2.99"), 0)).map(|_| ());
    assert_eq!(on_host.map_err(|error| error.kind()), Err(std::io::ErrorKind::AddrNotAvailable));
    let table = std::fs::read_to_string("/proc/net/fib_trie").expect("the host's routes");
    assert!(!table.contains("10.1.2."), "{table}");
}
