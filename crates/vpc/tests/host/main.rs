//! Networks, firewalls and instances on the real host, in namespaces of their own.
//!
//! Needs root; says so and passes without. The binary is its own helper, as the server's is, and plays a
//! server that is killed.

mod world;

use libtest_mimic::{Arguments, Failed, Trial};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use vpc::InstanceStatus;
use world::{World, address, firewall, instance, network, serve, ssh_command, traces};

/// The first argument that makes the binary a server to be killed; the data directory follows.
const SERVER: &str = "server-to-be-killed";

/// How often a server is killed while it starts.
const KILLS: u64 = 30;

const TESTS: [(&str, fn()); 13] = [
    ("a_vm_reaches_a_frontend_and_the_host_does_not", frontends),
    ("nothing_reaches_a_vm_until_a_rule_with_its_tag_says_so", tags_and_ranges),
    ("a_deny_with_a_lower_number_wins_and_its_removal_lets_through_again", denials),
    ("a_session_outlives_the_rule_that_let_it_in", sessions),
    ("vms_reach_each_other_only_as_rules_say", between_vms),
    ("a_static_route_leads_to_the_vm_that_forwards", routes),
    ("keys_are_in_force_when_apply_returns", keys),
    ("a_home_and_the_host_keys_survive_stop_start_and_reset", boots),
    ("a_vm_sees_nothing_of_the_host_and_cannot_become_more", confinement),
    ("a_killed_servers_network_and_vm_are_taken_over_as_they_are", adoption),
    ("a_server_killed_at_any_moment_leaves_one_vm_or_none", kills),
    ("what_nobody_declares_any_more_is_removed_after_a_kill", leftovers),
    ("several_data_directories_live_side_by_side_and_go_without_a_trace", side_by_side),
];

fn main() -> ExitCode {
    if let Some(code) = vpc::helper_main() {
        return code;
    }
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(SERVER) {
        play_server(Path::new(&words.next().expect("a data directory")));
    }
    let trial = |(name, test): (&'static str, fn())| {
        Trial::test(name, move || {
            match rustix::process::geteuid().is_root() {
                true => test(),
                false => skip(name),
            }
            Ok::<(), Failed>(())
        })
    };
    let trials = TESTS.into_iter().map(trial).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

#[allow(clippy::print_stderr, reason = "a test that does not run says why")]
fn skip(name: &str) {
    eprintln!("skipped {name}: it needs root");
}

/// A world with `vm` at 10.1.2.2, tagged `ssh`, and a key for `amy` and `root`.
fn with_vm() -> (World, std::path::PathBuf) {
    let mut world = World::new();
    let (key, line) = world.new_key("amy");
    world.keys(&format!("{line}\n{}", line.replacen("amy:", "root:", 1)));
    world.vm("vm", 11, "10.1.2.2", &["ssh"]);
    (world, key)
}

fn allow_ssh(world: &mut World) {
    world.firewall("allow-ssh", |rule| rule.target_tags = vec!["ssh".into()]);
}

fn frontends() {
    let (mut world, key) = with_vm();
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    let listener = world.vpc.listen(&network("n"), "10.1.2.99:80".parse().expect("an address"));
    serve(listener.expect("a listener"));
    assert_eq!(world.told(&key, "amy@10.1.2.2", "curl -sS http://10.1.2.99/"), "hello");
    // A second frontend, while everything runs; and both workers' sockets share one address.
    world.frontend("late", "10.1.2.98");
    world.apply();
    for _ in 0..2 {
        let listener = world.vpc.listen(&network("n"), "10.1.2.98:80".parse().expect("an address"));
        serve(listener.expect("a listener"));
    }
    assert_eq!(world.told(&key, "amy@10.1.2.2", "curl -sS http://10.1.2.98/"), "hello");
    // Neither an address nor a route of the host leads there.
    let on_host = TcpListener::bind((address("10.1.2.99"), 0)).map(|_| ());
    assert_eq!(on_host.map_err(|error| error.kind()), Err(std::io::ErrorKind::AddrNotAvailable));
    let table = fs::read_to_string("/proc/net/fib_trie").expect("the host's routes");
    assert!(!table.contains("10.1.2."), "{table}");
}

fn tags_and_ranges() {
    let (mut world, _) = with_vm();
    world.vm("other", 12, "10.1.2.3", &[]);
    world.apply();
    world.settle("vm");
    world.settle("other");
    assert!(!world.reaches("10.1.2.2:22"), "the implied rule denies");
    allow_ssh(&mut world);
    world.apply();
    assert!(world.reaches("10.1.2.2:22"), "the rule is for the tag");
    assert!(!world.reaches("10.1.2.3:22"), "and for nobody without it");
    world.firewall("allow-ssh", |rule| {
        rule.target_tags = vec!["ssh".into()];
        rule.source_ranges = vec!["35.235.240.0/20".parse().expect("a range")];
    });
    world.apply();
    assert!(world.reaches("10.1.2.2:22"), "the tunnel is inside the range");
    let proxy = address("10.129.0.7");
    assert!(!world.reaches_from(proxy, "10.1.2.2:22"), "a proxy is outside");
    world.firewall("allow-proxies", |rule| {
        rule.source_ranges = vec!["10.129.0.0/23".parse().expect("a range")];
    });
    world.apply();
    assert!(world.reaches_from(proxy, "10.1.2.2:22"), "a proxy has its own range");
    world.change("vm", |vm| vm.tags.clear());
    world.change("other", |vm| vm.tags = vec!["ssh".into()]);
    world.apply();
    assert!(!world.reaches("10.1.2.2:22"), "the tag is gone");
    assert!(world.reaches("10.1.2.3:22"), "the tag has moved");
}

fn denials() {
    let (mut world, _) = with_vm();
    allow_ssh(&mut world);
    world.firewall("deny-all", |rule| rule.priority = 900);
    world.apply();
    world.settle("vm");
    assert!(!world.reaches("10.1.2.2:22"));
    world.firewall("deny-all", |rule| rule.priority = 1000);
    world.apply();
    assert!(!world.reaches("10.1.2.2:22"), "a denial wins a tie");
    world.firewall("deny-all", |rule| rule.priority = 1001);
    world.apply();
    assert!(world.reaches("10.1.2.2:22"));
    world.firewall("deny-all", |rule| {
        rule.priority = 1;
        rule.disabled = true;
    });
    world.apply();
    assert!(world.reaches("10.1.2.2:22"));
}

fn sessions() {
    let (mut world, key) = with_vm();
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    let open = || {
        let mut ssh = ssh_command(&key, "amy@10.1.2.2");
        ssh.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ssh runs")
    };
    let mut session = world.vpc.within(&network("n"), open).expect("inside");
    let mut output = BufReader::new(session.stdout.take().expect("an output"));
    echo(&mut session, &mut output, "before");
    world.inventory.firewalls.remove(&firewall("allow-ssh"));
    world.apply();
    assert!(!world.reaches("10.1.2.2:22"), "nothing new comes in");
    echo(&mut session, &mut output, "after");
    drop(session.stdin.take());
    assert!(session.wait().expect("it ends").success());
}

/// Says a line to a session that echoes, and hears it back.
fn echo(session: &mut Child, output: &mut impl BufRead, line: &str) {
    let input = session.stdin.as_mut().expect("an input");
    writeln!(input, "{line}").expect("said");
    let mut heard = String::new();
    output.read_line(&mut heard).expect("heard");
    assert_eq!(heard.trim(), line);
}

fn between_vms() {
    let (mut world, key) = with_vm();
    world.vm("db", 12, "10.1.2.3", &["db"]);
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    world.settle("db");
    let probe = |name: &str| {
        format!("timeout 2 bash -c 'exec 3<>/dev/tcp/{name}/22 && head -c 3 <&3' || echo blocked")
    };
    let by_name = probe("db.us-west1-a.c.p.internal");
    assert_eq!(world.told(&key, "amy@10.1.2.2", &by_name), "blocked\n");
    world.firewall("allow-db", |rule| {
        rule.source_tags = vec!["ssh".into()];
        rule.target_tags = vec!["db".into()];
    });
    world.apply();
    assert_eq!(world.told(&key, "amy@10.1.2.2", &by_name), "SSH");
    world.firewall("deny-out", |rule| {
        rule.direction = model::firewall::Direction::Egress;
        rule.destination_ranges = vec!["10.1.2.3/32".parse().expect("a range")];
        rule.target_tags = vec!["ssh".into()];
    });
    world.apply();
    assert_eq!(world.told(&key, "amy@10.1.2.2", &by_name), "blocked\n");
}

fn routes() {
    let (mut world, key) = with_vm();
    allow_ssh(&mut world);
    world.change("vm", |vm| vm.can_ip_forward = true);
    world.route("before", "192.0.2.0/24", "vm");
    world.apply();
    world.settle("vm");
    // As `/proc/net/route` writes them: the range, and the next hop, in network byte order.
    let leads = |world: &World, range: &str| {
        let table =
            world.vpc.within(&network("n"), || fs::read_to_string("/proc/thread-self/net/route"));
        let table = table.expect("inside").expect("a table");
        table.lines().any(|line| line.contains(&format!("{range}\t0202010A")))
    };
    assert!(leads(&world, "000200C0"));
    world.route("after", "198.51.100.0/24", "vm");
    world.apply();
    assert!(leads(&world, "006433C6"));
    assert_eq!(world.told(&key, "amy@10.1.2.2", "cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    world.inventory.routes = Default::default();
    world.apply();
    assert!(!leads(&world, "000200C0") && !leads(&world, "006433C6"));
}

fn keys() {
    let (mut world, amy) = with_vm();
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    let terminal = || ssh_command(&amy, "-tt").args(["amy@10.1.2.2", "tty"]).output();
    let terminal = world.vpc.within(&network("n"), terminal).expect("inside").expect("ssh runs");
    assert!(String::from_utf8_lossy(&terminal.stdout).starts_with("/dev/pts/"), "{terminal:?}");
    let (bob, bob_line) = world.new_key("bob.builder");
    let home = "whoami; pwd; stat -c %U .";
    assert_eq!(world.told(&amy, "amy@10.1.2.2", home), "amy\n/home/amy\namy\n");
    assert!(!world.ssh(&bob, "bob.builder@10.1.2.2", "true").status.success());
    world.change("vm", |vm| vm.metadata = vec![("ssh-keys".into(), bob_line.clone())]);
    world.apply();
    assert_eq!(world.told(&bob, "bob.builder@10.1.2.2", "whoami"), "bob.builder\n");
    assert_eq!(world.told(&amy, "root@10.1.2.2", "whoami"), "root\n");
    world.change("vm", |vm| {
        vm.metadata.push(("block-project-ssh-keys".into(), "TRUE".into()));
    });
    world.apply();
    assert!(!world.ssh(&amy, "amy@10.1.2.2", "true").status.success(), "blocked at once");
    assert!(!world.ssh(&amy, "root@10.1.2.2", "true").status.success(), "blocked at once");
    assert_eq!(world.told(&bob, "bob.builder@10.1.2.2", "whoami"), "bob.builder\n");
}

fn boots() {
    let (mut world, key) = with_vm();
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    let vm = instance("vm");
    let host_keys = world.vpc.host_keys(&vm);
    let kinds: Vec<&str> = host_keys.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["ssh-ed25519", "ecdsa-sha2-nistp256"]);
    world.told(&key, "amy@10.1.2.2", "echo kept > note; touch /tmp/not-kept");

    world.change("vm", |vm| vm.boot += 1);
    world.apply();
    world.settle("vm");
    assert_eq!(world.told(&key, "amy@10.1.2.2", "cat note; ls /tmp"), "kept\n");

    world.change("vm", |vm| vm.running = false);
    world.apply();
    world.settle("vm");
    assert_eq!(world.vpc.instance_status(&vm), Some(InstanceStatus::Terminated));
    assert!(!world.reaches("10.1.2.2:22"));

    world.change("vm", |vm| vm.running = true);
    world.apply();
    world.settle("vm");
    assert_eq!(world.told(&key, "amy@10.1.2.2", "cat note"), "kept\n");
    assert_eq!(world.vpc.host_keys(&vm), host_keys);
    let console = world.vpc.serial_output(&vm).expect("a console");
    assert!(console.contains("starting vm.us-west1-a.c.p.internal, boot 2"), "{console}");
    assert!(console.contains("Accepted publickey for amy"), "{console}");

    world.inventory.instances.remove(&vm);
    world.apply();
    world.settle("vm");
    assert_eq!(world.vpc.instance_status(&vm), None);
    assert!(!world.data_dir.join("vpc/instances/11").exists());
}

fn confinement() {
    let (mut world, key) = with_vm();
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    fs::write(world.data_dir.join("secret"), "of the host").expect("written");
    let secret = world.data_dir.join("secret");
    let secret = secret.to_str().expect("a path in UTF-8");
    for (command, answer) in [
        ("hostname", "vm\n".to_owned()),
        ("hostname -I | tr -d ' '; ls /sys/class/net 2>&1 | wc -l", "10.1.2.2\n1\n".into()),
        ("ps -e -o comm= | sort -u | head -20 | grep -c systemd", "0\n".into()),
        ("cat /proc/1/comm", "sshd\n".into()),
        (&format!("cat {secret} 2>/dev/null || echo none"), "none\n".into()),
        ("touch /usr/x 2>/dev/null || echo refused", "refused\n".into()),
        ("touch /etc/x 2>/dev/null || echo refused", "refused\n".into()),
        ("echo 1 2>/dev/null > /proc/sys/kernel/panic || echo refused", "refused\n".into()),
        ("mount -t tmpfs none /mnt 2>/dev/null || echo refused", "refused\n".into()),
        ("mknod /tmp/disk b 254 0 2>/dev/null || echo refused", "refused\n".into()),
        ("ip addr add 10.1.2.99/32 dev eth0 2>/dev/null || echo refused", "refused\n".into()),
        ("grep NoNewPrivs /proc/self/status | tr -d '\\t'", "NoNewPrivs:1\n".into()),
        ("grep CapBnd /proc/self/status | tr -d '\\t'", "CapBnd:00000000200424fb\n".into()),
    ] {
        let told = world.told(&key, "root@10.1.2.2", &format!("{command}; true"));
        assert_eq!(told, answer, "{command}");
    }
}

/// What a server does that is killed: it carries the world of [`with_vm`] out, says so, and waits.
fn play_server(data_dir: &Path) -> ! {
    let mut world = World::at(data_dir);
    world.keys(&fs::read_to_string(data_dir.join("keys")).expect("keys"));
    world.vm("vm", 11, "10.1.2.2", &["ssh"]);
    allow_ssh(&mut world);
    world.apply();
    world.settle("vm");
    let listener = world.vpc.listen(&network("n"), "10.1.2.99:80".parse().expect("an address"));
    serve(listener.expect("a listener"));
    writeln!(std::io::stdout(), "ready").expect("said");
    loop {
        std::thread::park();
    }
}

/// Starts such a server in the world's data directory, waits until it is ready, and kills it.
fn run_server_and_kill_it(world: &World, key_line: &str) {
    fs::write(world.data_dir.join("keys"), key_line).expect("written");
    let binary = std::env::current_exe().expect("this binary");
    let mut server = Command::new(binary)
        .arg(SERVER)
        .arg(&world.data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a server");
    let mut line = String::new();
    let output = server.stdout.take().expect("an output");
    BufReader::new(output).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    server.kill().expect("killed");
    server.wait().expect("gone");
}

fn process_of_vm(world: &World) -> String {
    fs::read_to_string(world.data_dir.join("vpc/instances/11/process")).expect("a record")
}

fn adoption() {
    let mut world = World::new();
    let (key, line) = world.new_key("amy");
    run_server_and_kill_it(&world, &line);
    let process = process_of_vm(&world);
    world.keys(&line);
    world.vm("vm", 11, "10.1.2.2", &["ssh"]);
    allow_ssh(&mut world);
    world.reopen();
    world.apply();
    world.settle("vm");
    assert_eq!(process_of_vm(&world), process, "it is the same one");
    let listener = world.vpc.listen(&network("n"), "10.1.2.99:80".parse().expect("an address"));
    serve(listener.expect("nobody listens there any more"));
    assert_eq!(world.told(&key, "amy@10.1.2.2", "curl -sS http://10.1.2.99/"), "hello");
    // A server that ends in peace leaves its instances alone as well.
    world.reopen();
    world.apply();
    world.settle("vm");
    assert_eq!(process_of_vm(&world), process, "it is still the same one");
}

fn kills() {
    let mut world = World::new();
    let (key, line) = world.new_key("amy");
    fs::write(world.data_dir.join("keys"), &line).expect("written");
    for round in 0..KILLS {
        let binary = std::env::current_exe().expect("this binary");
        let mut server = Command::new(binary);
        server.arg(SERVER).arg(&world.data_dir).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = server.spawn().expect("a server");
        // The moments are spread over what a start takes; which one is hit matters to nobody.
        std::thread::sleep(std::time::Duration::from_millis(round * 7 % 61));
        server.kill().expect("killed");
        server.wait().expect("gone");
    }
    world.keys(&line);
    world.vm("vm", 11, "10.1.2.2", &["ssh"]);
    allow_ssh(&mut world);
    world.reopen();
    world.apply();
    world.settle("vm");
    assert_eq!(world.told(&key, "amy@10.1.2.2", "whoami"), "amy\n");
    let only = |pids: Vec<String>| pids.len() == 1;
    assert!(wait_until(|| only(traces(&world.data_dir.join("vpc/instances")))));
}

fn leftovers() {
    let mut world = World::new();
    let (_, line) = world.new_key("amy");
    run_server_and_kill_it(&world, &line);
    let pid = process_of_vm(&world).split(' ').next().expect("a process id").to_owned();
    assert!(!traces(&world.data_dir).is_empty());
    world.inventory = Default::default();
    world.reopen();
    world.apply();
    let gone = wait_until(|| traces(&world.data_dir).is_empty());
    assert!(gone, "{:?}", traces(&world.data_dir));
    assert!(wait_until(|| !Path::new("/proc").join(&pid).exists()));
    assert_eq!(fs::read_dir(world.data_dir.join("vpc/networks")).expect("a folder").count(), 0);
    assert!(wait_until(|| !world.data_dir.join("vpc/instances/11").exists()));
}

/// Waits for a condition, with a deadline.
fn wait_until(condition: impl Fn() -> bool) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !condition() {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

fn side_by_side() {
    let worlds = [(); 3].map(|()| {
        let (mut world, key) = with_vm();
        allow_ssh(&mut world);
        world.apply();
        (world, key)
    });
    for (index, (world, _)) in worlds.iter().enumerate() {
        world.settle("vm");
        let listener = world.vpc.listen(&network("n"), "10.1.2.99:80".parse().expect("an address"));
        serve(listener.expect("a listener"));
        let place = world.vpc.within(&network("n"), || fs::read_link("/proc/thread-self/ns/net"));
        assert!(place.is_ok(), "{index}");
    }
    for (world, key) in &worlds {
        assert_eq!(world.told(key, "amy@10.1.2.2", "curl -sS http://10.1.2.99/"), "hello");
    }
    let folders = worlds.each_ref().map(|(world, _)| world.data_dir.clone());
    for (world, _) in &worlds {
        let failures = world.vpc.down();
        assert!(failures.is_empty(), "{failures:?}");
    }
    for folder in &folders {
        assert_eq!(traces(folder), Vec::<String>::new());
    }
    let links = fs::read_to_string("/proc/net/dev").expect("the host's links");
    assert!(!links.contains(" ib:"), "{links}");
    let gone = worlds[0].0.vpc.listen(&network("n"), "10.1.2.99:80".parse().expect("an address"));
    assert!(gone.is_err());
    // What was down comes up again, with the home as it was.
    let (mut world, key) = worlds.into_iter().next().expect("a world");
    world.reopen();
    world.apply();
    world.settle("vm");
    assert_eq!(world.told(&key, "amy@10.1.2.2", "whoami"), "amy\n");
}
