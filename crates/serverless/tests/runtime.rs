//! Does Linux do what the embedded runtime promises? Containers of the test program, looked at from
//! inside and from outside. Needs root, real or a user namespace's.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::time::Duration;

use serverless::runtime::launch::End;
use serverless::runtime::{Allowance, Exit, ExitCause, HelperProgram, Limits};
use support::{World, fields, get, root, suite, until};

const SERVE: &[&str] = &["serve", "0.0.0.0:PORT"];
const GRACE: Duration = Duration::from_secs(10);
/// Longer than a helper takes on a busy machine, and shorter than anybody wants to wait for the test.
const SHORT: Duration = Duration::from_secs(5);

/// The suite every runtime passes, a test each.
macro_rules! suite_on_the_embedded_runtime {
    ($($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                if root() {
                    suite::$name(World::with_spares(1).await).await;
                }
            }
        )*
    };
}

suite_on_the_embedded_runtime! {
    an_instance_serves_and_leaves_nothing_behind
    a_container_asks_about_itself_and_still_has_port_80
    the_environment_is_the_images_then_the_users_then_the_platforms
    user_and_working_directory_are_as_the_image_says
    a_container_that_eats_too_much_is_killed_and_told_apart
    files_written_count_as_memory_and_end_at_the_limit
    an_instance_reaches_neither_the_host_nor_another_instance
    a_container_that_exits_fails_the_start_with_its_last_lines
    a_container_that_never_listens_fails_its_startup_probe
    a_container_may_take_its_time_to_listen
    a_failing_liveness_probe_ends_the_instance
    a_failing_readiness_probe_takes_the_instance_out_of_traffic
    stopping_is_sigterm_then_patience_then_sigkill
    the_first_exit_is_told_with_code_or_signal
    sidecars_start_in_order_and_share_loopback_and_volumes
    a_flood_of_lines_is_counted_and_hurts_nobody
    an_instance_needs_a_name_of_its_own
}

#[tokio::test]
async fn limits_are_set_and_seen_from_both_sides() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut spec = world.spec("one", SERVE);
    spec.containers[0].limits = Limits { processor_millis: 500, memory_bytes: 64 * 1024 * 1024 };
    let live = world.launch(spec).await.unwrap();
    let groups = support::groups(&world.mark);
    let read = |file: &str| {
        let mut found = groups.iter().filter_map(|group| {
            let inside = group.file_name().unwrap().to_string_lossy().contains("one.app");
            std::fs::read_to_string(group.join(file)).ok().filter(|_| inside)
        });
        found.next().map(|text| text.trim().to_owned())
    };
    let memory = read("memory.limit_in_bytes").or_else(|| read("memory.max"));
    let processor = read("cpu.cfs_quota_us").or_else(|| read("cpu.max"));
    if let (Some(memory), Some(processor)) = (memory, processor) {
        assert_eq!(memory, (64 * 1024 * 1024).to_string());
        assert_eq!(processor.split(' ').next(), Some("50000"));
        live.instance().set_processor(Allowance::Throttled);
        let throttled = read("cpu.cfs_quota_us").or_else(|| read("cpu.max")).unwrap();
        assert_eq!(throttled.split(' ').next(), Some("1000"));
        live.instance().set_processor(Allowance::Full);
    } else {
        eprintln!("SKIPPED in part: this host's control groups cannot be written to");
    }
    let inside = get(live.instance(), "/file/sys/fs/cgroup/memory/memory.limit_in_bytes").await;
    if inside.0 == 200 {
        assert_eq!(inside.1.trim(), (64 * 1024 * 1024).to_string());
    }
    if world.limits_memory {
        let usage = live.instance().usage();
        assert!(usage.processor > Duration::ZERO, "{usage:?}");
        assert!(usage.memory_bytes > 0, "{usage:?}");
    }
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_container_is_confined() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    let refused = "Operation not permitted (os error 1)";
    let cases = [
        ("/try/mount", refused),
        ("/try/unshare", refused),
        ("/try/mknod", refused),
        ("/try/bpf", refused),
        ("/try/clone3", "Function not implemented (os error 38)"),
        ("/try/x32", "Function not implemented (os error 38)"),
        ("/write/proc/sys/kernel/hostname", "Read-only file system (os error 30)"),
        (
            "/write/sys/kernel/mm/transparent_hugepage/enabled",
            "Read-only file system (os error 30)",
        ),
        ("/list/sys/firmware", ""),
        ("/file/proc/1/cmdline", "/subject\x00serve\x000.0.0.0:PORT\x00"),
        (
            "/file/etc/hosts",
            "127.0.0.1 localhost app\n::1 localhost\n169.254.169.254 metadata.google.internal metadata\n",
        ),
        ("/file/proc/sys/kernel/hostname", "localhost\n"),
    ];
    for (path, expected) in cases {
        assert_eq!(get(live.instance(), path).await.1, expected, "{path}");
    }
    let status = fields(&get(live.instance(), "/file/proc/self/status").await.1);
    assert_eq!(status["NoNewPrivs"], "1");
    assert_eq!(status["Seccomp"], "2");
    assert_eq!(status["CapBnd"], status["CapEff"]);
    // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot
    assert_eq!(status["CapEff"], "00000000000405fb");
    let processes = get(live.instance(), "/list/proc").await.1;
    let others = processes.lines().filter(|name| name.parse::<u32>().is_ok_and(|pid| pid != 1));
    assert_eq!(others.count(), 0, "other processes are visible");
    let mounts = get(live.instance(), "/file/proc/self/mountinfo").await.1;
    assert!(!mounts.lines().any(|line| line.split(' ').nth(4) == Some("/sys/fs/cgroup/unified")));
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_named() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let cases = [
        ("/no/such/program", "executable '/no/such/program' not found in $PATH"),
        ("missing", "executable 'missing' not found in $PATH"),
        ("/etc/passwd", "does not have correct permissions"),
    ];
    for (program, expected) in cases {
        let mut spec = world.spec("one", &[]);
        spec.containers[0].command = vec![program.to_owned()];
        let failure = world.launch(spec).await.unwrap_err();
        assert!(failure.detail.contains(expected), "{program}: {}", failure.detail);
        assert!(!failure.host_fault);
    }
    world.end().await;
}

#[tokio::test]
async fn a_container_that_forks_without_end_is_stopped_by_its_limit() {
    if !root() {
        return;
    }
    let world = World::new().await;
    if !world.limits_processes {
        eprintln!("SKIPPED: this host's control groups cannot count processes");
        return;
    }
    let mut spec = world.spec("one", &["fork", "0.0.0.0:8080"]);
    spec.containers[0].limits.memory_bytes = 2 * 1024 * 1024 * 1024;
    let other = world.launch(world.spec("two", SERVE)).await.unwrap();
    let live = world.launch(spec).await.unwrap();
    let groups = support::groups(&world.mark);
    let count = || {
        let one = groups.iter().find(|group| {
            group.to_string_lossy().contains("one.app") && group.join("pids.current").exists()
        });
        one.and_then(|group| std::fs::read_to_string(group.join("pids.current")).ok())
            .and_then(|text| text.trim().parse::<u32>().ok())
    };
    let enough = serverless::runtime::limits::PROCESSES_MAX;
    until("the limit is reached", || count().is_none_or(|count| count + 8 >= enough)).await;
    assert_eq!(get(other.instance(), "/").await.0, 200);
    live.stop(GRACE).await;
    other.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn an_instance_whose_helper_is_killed_ends_and_is_cleaned_up() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    for helper in helpers(&world.mark) {
        nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let exit = Exit { container: "app".to_owned(), cause: ExitCause::HelperLost };
    assert_eq!(live.ended().await, End::Exited(exit));
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_spare_helper_that_was_killed_is_not_used() {
    if !root() {
        return;
    }
    let world = World::with_spares(1).await;
    let mark = &world.mark.clone();
    until("the spare helper is there", || !helpers(mark).is_empty()).await;
    // It reports itself a moment after it exists; only then it is a spare.
    let first = world.launch(world.spec("one", SERVE)).await.unwrap();
    until("another spare helper is there", || helpers(mark).len() == 2).await;
    for helper in helpers(mark) {
        nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let second = world.launch(world.spec("two", SERVE)).await.unwrap();
    assert_eq!(get(second.instance(), "/").await.0, 200);
    first.stop(GRACE).await;
    second.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn an_instance_that_is_dropped_is_stopped() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    let mark = &world.mark.clone();
    drop(live);
    until("the instance is gone", || helpers(mark).is_empty()).await;
    // A launch that is given up half way leaves nothing either.
    let given_up = world.launch(world.spec("two", &["sleep"]));
    assert!(tokio::time::timeout(Duration::from_millis(60), given_up).await.is_err());
    until("the second is gone", || helpers(mark).is_empty()).await;
    let instances = world.directory.path().join("runtime/instances");
    until("the directories are gone", || std::fs::read_dir(&instances).unwrap().count() == 0).await;
    world.end().await;
}

/// A control group for this process that bounds how many processes and threads it may have, with all
/// that descend from it.
struct Bound {
    group: std::path::PathBuf,
}

impl Bound {
    fn here() -> Option<Bound> {
        let group = format!("/sys/fs/cgroup/pids/test-{}", std::process::id());
        if std::fs::create_dir(&group).is_err() {
            eprintln!("SKIPPED: needs a version 1 control group that counts processes");
            return None;
        }
        let bound = Bound { group: group.into() };
        std::fs::write(bound.group.join("cgroup.procs"), "0").unwrap();
        Some(bound)
    }

    /// So many more than there are, or any number.
    fn allow(&self, more: Option<u32>) {
        let current = std::fs::read_to_string(self.group.join("pids.current")).unwrap();
        let most = more.map(|more| current.trim().parse::<u32>().unwrap() + more);
        let most = most.map_or("max".to_owned(), |most| most.to_string());
        std::fs::write(self.group.join("pids.max"), most).unwrap();
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::write("/sys/fs/cgroup/pids/cgroup.procs", "0");
        let _ = std::fs::remove_dir(&self.group);
    }
}

#[tokio::test]
async fn where_the_host_refuses_processes_a_start_fails_by_its_fault_and_the_next_one_goes_well() {
    if !root() {
        return;
    }
    let Some(bound) = Bound::here() else { return };
    for spares in [0, 1] {
        let world = World::with_spares(spares).await;
        let mark = &world.mark.clone();
        until("the spare helper is there", || helpers(mark).len() == spares).await;
        // One starts before, so that threads of this process that are made once are there.
        world.launch(world.spec("before", SERVE)).await.unwrap().stop(GRACE).await;
        until("a spare helper is there again", || helpers(mark).len() == spares).await;
        // Refused are the helper, its first fork, the one after.
        for more in 0..3 {
            bound.allow(Some(more));
            let name = format!("refused-{more}");
            match world.launch(world.spec(&name, SERVE)).await {
                Ok(live) => {
                    assert!(more > 1, "two processes are too few for a container");
                    live.stop(GRACE).await;
                }
                Err(failure) => {
                    assert!(failure.host_fault, "{failure:?}");
                    assert_eq!(failure.message, "An instance could not be started on this host.");
                    let told = "Resource temporarily unavailable";
                    let fork = "the host refuses another process";
                    let said = failure.detail.contains(told) || failure.detail.contains(fork);
                    assert!(said, "{}", failure.detail);
                }
            }
            bound.allow(None);
        }
        let live = world.launch(world.spec("allowed", SERVE)).await.unwrap();
        assert_eq!(get(live.instance(), "/").await.0, 200);
        live.stop(GRACE).await;
        world.end().await;
    }
}

/// How far a helper is, seen from outside.
type Stage = (&'static str, fn(&std::path::Path) -> bool);

fn text(process: &std::path::Path, file: &str) -> String {
    std::fs::read_to_string(process.join(file)).unwrap_or_default()
}

const STAGES: [Stage; 4] = [
    ("it was executed", |process| text(process, "cmdline").contains("instance-helper")),
    ("it has a network of its own", |process| {
        let network = |path: &std::path::Path| std::fs::read_link(path.join("ns/net")).ok();
        let own = network(process);
        own.is_some() && own != network(std::path::Path::new("/proc/self"))
    }),
    ("it has an instance", |process| text(process, "mountinfo").contains("runtime/instances/")),
    ("it has a container", |process| {
        !text(process, &format!("task/{}/children", process.file_name().unwrap().to_string_lossy()))
            .is_empty()
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helper_that_is_killed_at_any_stage_ends_its_instance_and_nothing_else() {
    if !root() {
        return;
    }
    let world = World::with_spares(0).await;
    let other = world.launch(world.spec("other", SERVE)).await.unwrap();
    let known = helpers(&world.mark);
    for (what, is_there) in STAGES {
        let (mark, known) = (world.mark.clone(), known.clone());
        let killer = tokio::task::spawn_blocking(move || {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while std::time::Instant::now() < deadline {
                let new = helpers(&mark).into_iter().find(|helper| {
                    let process = format!("/proc/{helper}");
                    !known.contains(helper) && is_there(std::path::Path::new(&process))
                });
                if let Some(helper) = new {
                    return nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL);
                }
            }
            Err(nix::errno::Errno::ETIMEDOUT)
        });
        match world.launch(world.spec("one", SERVE)).await {
            // The start was faster than the killer.
            Ok(live) => {
                let exit = Exit { container: "app".to_owned(), cause: ExitCause::HelperLost };
                assert_eq!(live.ended().await, End::Exited(exit), "{what}");
                live.stop(GRACE).await;
            }
            Err(failure) => assert!(failure.host_fault, "{what}: {failure:?}"),
        }
        killer.await.unwrap().unwrap_or_else(|error| panic!("not killed when {what}: {error}"));
        let next = world.launch(world.spec("one", SERVE)).await.unwrap();
        assert_eq!(get(next.instance(), "/").await.0, 200, "{what}");
        next.stop(GRACE).await;
        assert_eq!(get(other.instance(), "/").await.0, 200, "{what}");
    }
    other.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_spare_helper_that_does_not_answer_is_given_up() {
    if !root() {
        return;
    }
    let world = World::of(HelperProgram { answers_within: SHORT, ..support::helper() }, 1).await;
    let mark = &world.mark.clone();
    // It is a spare once it sleeps in wait of an order, and not before.
    let waits = || {
        let all = helpers(mark);
        let wchan = |helper| text(std::path::Path::new(&format!("/proc/{helper}")), "status");
        all.len() == 1 && all.iter().all(|helper| wchan(helper).contains("State:\tS"))
    };
    until("the spare helper waits", waits).await;
    for helper in helpers(mark) {
        nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGSTOP).unwrap();
    }
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    assert_eq!(get(live.instance(), "/").await.0, 200);
    live.stop(GRACE).await;
    world.end().await;
}

fn helpers(mark: &str) -> Vec<nix::unistd::Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let name = entry.file_name().to_string_lossy().into_owned();
        if let (true, Ok(process)) =
            (String::from_utf8_lossy(&line).contains(mark), name.parse::<i32>())
        {
            found.push(nix::unistd::Pid::from_raw(process));
        }
    }
    found
}
