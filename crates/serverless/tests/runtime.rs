//! Does Linux do what the runtime promises? Containers of the test program, looked at from inside
//! and from outside. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use serverless::images::ImageConfig;
use serverless::runtime::launch::End;
use serverless::runtime::{
    Allowance, ContainerSpec, Exit, ExitCause, InstanceId, Limits, Probe, ProbeAction, Probes,
    Runtime, Volume, VolumeFile, VolumeMount, VolumeSource,
};
use support::{World, container, fields, get, image, root, traces, until};

const SERVE: &[&str] = &["serve", "0.0.0.0:PORT"];
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn an_instance_serves_and_leaves_nothing_behind() {
    if !root() {
        return;
    }
    let world = World::with_spares(1).await;
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    assert_eq!(get(live.instance(), "/").await, (200, "ok".to_owned()));
    assert!(traces(world.runtime.mark()).iter().any(|trace| trace.starts_with("process")));
    live.stop(GRACE).await;
    assert_eq!(live.ended().await, End::Stopped);
    assert!(live.instance().dial(8080).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn the_environment_is_the_images_then_the_users_then_the_platforms() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let config = ImageConfig {
        environment: vec!["A=image".to_owned(), "B=image".to_owned(), "K_SERVICE=x".to_owned()],
        ..ImageConfig::default()
    };
    let mut spec = world.spec("one", SERVE);
    let layer = world.directory.path().join("layer");
    spec.containers[0].image = image(layer, config);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    spec.containers[0].environment =
        vec![pair("B", "first"), pair("B", "user"), pair("PORT", "1"), pair("EMPTY", "")];
    let live = world.launch(spec).await.unwrap();
    let (_, text) = get(live.instance(), "/environment").await;
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let expected = [
        "A=image",
        "B=user",
        "EMPTY=",
        "HOME=/root",
        "K_CONFIGURATION=shop",
        "K_REVISION=shop-00001-abc",
        "K_SERVICE=shop",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PORT=8080",
    ];
    assert_eq!(lines, expected);
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn user_and_working_directory_are_as_the_image_says() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let config = ImageConfig {
        user: "bob".to_owned(),
        working_directory: "/srv/app".to_owned(),
        ..ImageConfig::default()
    };
    let mut spec = world.spec("one", SERVE);
    spec.containers[0].image = image(world.directory.path().join("layer"), config);
    let live = world.launch(spec).await.unwrap();
    // Without real root there is no such user; then it is nobody special under another number.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let whole = map.split_whitespace().nth(2) == Some("4294967295");
    assert_eq!(get(live.instance(), "/who").await.1, if whole { "1000:50" } else { "0:0" });
    assert_eq!(get(live.instance(), "/where").await.1, "/srv/app");
    let status = fields(&get(live.instance(), "/file/proc/self/status").await.1);
    assert_eq!(status["CapEff"], "0000000000000000");
    assert_eq!(status["NoNewPrivs"], "1");
    live.stop(GRACE).await;
    world.end().await;
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
    let groups = support::groups(world.runtime.mark());
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
    if support::limits_memory(world.runtime.mark()) {
        let usage = live.instance().usage();
        assert!(usage.processor > Duration::ZERO, "{usage:?}");
        assert!(usage.memory_bytes > 0, "{usage:?}");
    }
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_container_that_eats_too_much_is_killed_and_told_apart() {
    if !root() {
        return;
    }
    let world = World::new().await;
    if !support::limits_memory(world.runtime.mark()) {
        eprintln!("SKIPPED: this host's control groups cannot limit memory");
        return;
    }
    let mut spec = world.spec("one", &["eat", "200"]);
    spec.containers[0].limits.memory_bytes = 32 * 1024 * 1024;
    spec.containers[0].port = None;
    let live = world.launch(spec).await.unwrap();
    let exit = Exit { container: "app".to_owned(), cause: ExitCause::OutOfMemory };
    assert_eq!(live.ended().await, End::Exited(exit));
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn files_written_count_as_memory_and_end_at_the_limit() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut spec = world.spec("one", SERVE);
    spec.containers[0].limits.memory_bytes = 512 * 1024 * 1024;
    spec.volumes = vec![Volume {
        name: "cache".to_owned(),
        source: VolumeSource::Memory { bytes_max: 8 * 1024 * 1024 },
    }];
    spec.containers[0].mounts =
        vec![VolumeMount { volume: "cache".to_owned(), path: "/cache".to_owned() }];
    let live = world.launch(spec).await.unwrap();
    assert_eq!(
        get(live.instance(), "/fill/cache/big").await.1,
        "8 No space left on device (os error 28)"
    );
    if support::limits_memory(world.runtime.mark()) {
        assert!(live.instance().usage().memory_bytes > 8 * 1024 * 1024);
    }
    assert_eq!(get(live.instance(), "/write/etc/new").await.1, "written");
    assert!(!world.directory.path().join("layer/etc/new").exists(), "the layer was written to");
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
        ("/file/etc/hosts", "127.0.0.1 localhost app\n::1 localhost\n"),
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
async fn an_instance_reaches_neither_the_host_nor_another_instance() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    let first = world.launch(world.spec("one", SERVE)).await.unwrap();
    let second = world.launch(world.spec("two", SERVE)).await.unwrap();
    let refused = "Connection refused (os error 111)";
    assert_eq!(get(first.instance(), &format!("/connect/{address}")).await.1, refused);
    assert_eq!(get(first.instance(), "/connect/127.0.0.1:8080").await.1, "connected");
    assert_eq!(
        get(first.instance(), "/connect/10.0.0.1:80").await.1,
        "Network is unreachable (os error 101)"
    );
    // Both listen on the same port, each in its own network.
    assert_eq!(get(second.instance(), "/").await.0, 200);
    first.stop(GRACE).await;
    assert_eq!(get(second.instance(), "/").await.0, 200);
    second.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_container_that_exits_fails_the_start_with_its_last_lines() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let failure = world.launch(world.spec("one", &["exit", "3"])).await.unwrap_err();
    assert!(failure.message.contains("PORT=8080 environment variable"), "{}", failure.message);
    assert_eq!(failure.detail, "Container called exit(3).");
    assert_eq!(failure.container.as_deref(), Some("app"));
    assert!(!failure.host_fault);
    let mut lines: Vec<&str> = failure.log_tail.iter().map(|line| line.text.as_str()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["about to exit", "with 3"]);
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
async fn a_container_that_never_listens_fails_its_startup_probe() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let short = Probe {
        period: Duration::from_millis(200),
        timeout: Duration::from_millis(200),
        ..Probe::default_startup(8080)
    };
    // One listens nowhere, the other where only it can be reached from.
    for words in [&["sleep"][..], &["serve", "127.0.0.1:8080"]] {
        let mut spec = world.spec("one", words);
        spec.containers[0].probes.startup = Some(short.clone());
        let failure = world.launch(spec).await.unwrap_err();
        assert!(
            failure.detail.starts_with(
                "STARTUP TCP probe failed 1 time consecutively for container \"app\" on port \
                 8080. The instance was not started."
            ),
            "{}",
            failure.detail
        );
    }
    world.end().await;
}

#[tokio::test]
async fn a_container_may_take_its_time_to_listen() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", &["slow", "0.0.0.0:8080", "400"])).await.unwrap();
    assert_eq!(get(live.instance(), "/").await.0, 200);
    assert!(live.phases().executed <= live.phases().ready);
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_failing_liveness_probe_ends_the_instance() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut spec = world.spec("one", SERVE);
    let often = |path: &str| Probe {
        period: Duration::from_millis(20),
        failure_threshold: 2,
        ..Probe::with_defaults(ProbeAction::Http {
            port: 8080,
            path: path.to_owned(),
            headers: Vec::new(),
        })
    };
    spec.containers[0].probes =
        Probes { startup: None, liveness: Some(often("/status/500")), readiness: None };
    let live = world.launch(spec).await.unwrap();
    let End::Unhealthy(text) = live.ended().await else { panic!("another end") };
    assert_eq!(
        text,
        "LIVENESS HTTP probe failed 2 times consecutively for container \"app\" on port 8080 path \
         \"/status/500\". The instance has been shut down."
    );
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_failing_readiness_probe_takes_the_instance_out_of_traffic() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut spec = world.spec("one", SERVE);
    spec.containers[0].probes.readiness = Some(Probe {
        period: Duration::from_millis(10),
        failure_threshold: 1,
        ..Probe::with_defaults(ProbeAction::Http {
            port: 8080,
            path: "/file/tmp/ready".to_owned(),
            headers: Vec::new(),
        })
    });
    let live = world.launch(spec).await.unwrap();
    let mut ready = live.ready();
    ready.wait_for(|ready| !ready).await.unwrap();
    assert_eq!(get(live.instance(), "/write/tmp/ready").await.0, 200);
    ready.wait_for(|ready| *ready).await.unwrap();
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn stopping_is_sigterm_then_patience_then_sigkill() {
    if !root() {
        return;
    }
    let world = World::new().await;
    // A program without a handler is gone at once, as the first process it would not hear.
    let deaf = world.launch(world.spec("deaf", SERVE)).await.unwrap();
    deaf.stop(Duration::from_secs(3600)).await;
    // One with a handler is asked and waited for.
    let polite = world.launch(world.spec("polite", SERVE)).await.unwrap();
    get(polite.instance(), "/term/handle").await;
    polite.stop(Duration::from_secs(3600)).await;
    assert_eq!(polite.instance().exited().await.cause, ExitCause::Stopped);
    // One whose handler does nothing is killed when the time is over; stopping again shortens it.
    let mut spec = world.spec("stubborn", SERVE);
    spec.containers[0].arguments = vec!["serve".to_owned(), "0.0.0.0:PORT".to_owned()];
    let stubborn = world.launch(spec).await.unwrap();
    drop(stubborn.stop(Duration::from_secs(3600)));
    stubborn.stop(Duration::from_millis(10)).await;
    world.end().await;
}

#[tokio::test]
async fn the_first_exit_is_told_with_code_or_signal() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    get(live.instance(), "/exit/9").await;
    let exit = Exit { container: "app".to_owned(), cause: ExitCause::Code(9) };
    assert_eq!(live.ended().await, End::Exited(exit.clone()));
    assert_eq!(live.instance().exited().await, exit);
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn sidecars_start_in_order_and_share_loopback_and_volumes() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let mut spec = world.spec("one", SERVE);
    spec.volumes = vec![
        Volume {
            name: "shared".to_owned(),
            source: VolumeSource::Memory { bytes_max: 1024 * 1024 },
        },
        Volume {
            name: "secret".to_owned(),
            source: VolumeSource::Files(vec![VolumeFile {
                path: "deep/key".to_owned(),
                contents: Arc::from(&b"hush"[..]),
                mode: 0o444,
            }]),
        },
    ];
    let mount =
        |volume: &str, path: &str| VolumeMount { volume: volume.to_owned(), path: path.to_owned() };
    spec.containers[0].mounts = vec![mount("shared", "/shared"), mount("secret", "/secret")];
    spec.containers[0].starts_after = vec!["side".to_owned()];
    let startup = Probe { period: Duration::from_secs(10), ..Probe::default_startup(9000) };
    spec.containers.push(ContainerSpec {
        probes: Probes { startup: Some(startup), ..Probes::default() },
        mounts: vec![mount("shared", "/common")],
        ..container("side", world.image(), &["slow", "0.0.0.0:9000", "200"])
    });
    let live = world.launch(spec).await.unwrap();
    assert_eq!(get(live.instance(), "/connect/side:9000").await.1, "connected");
    assert_eq!(get(live.instance(), "/file/secret/deep/key").await.1, "hush");
    assert_eq!(get(live.instance(), "/write/shared/note").await.1, "written");
    let texts = world.lines.texts();
    let side = texts.iter().position(|text| text == "serving on 0.0.0.0:9000").unwrap();
    let app = texts.iter().position(|text| text == "serving on 0.0.0.0:8080").unwrap();
    assert!(side < app, "{texts:?}");
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_flood_of_lines_is_counted_and_hurts_nobody() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", &["flood", "0.0.0.0:8080"])).await.unwrap();
    assert_eq!(get(live.instance(), "/").await.0, 200);
    let lines = Arc::clone(&world.lines);
    until("lines were dropped", || {
        lines.0.lock().unwrap().iter().any(|(_, line)| line.dropped_before > 0)
    })
    .await;
    assert_eq!(get(live.instance(), "/").await.0, 200);
    let kept = live.instance().log_tail(10_000);
    assert!(kept.len() <= serverless::runtime::limits::LOG_LINES_KEPT_MAX);
    live.stop(GRACE).await;
    world.end().await;
}

#[tokio::test]
async fn a_container_that_forks_without_end_is_stopped_by_its_limit() {
    if !root() {
        return;
    }
    let world = World::new().await;
    if !support::limits_processes(world.runtime.mark()) {
        eprintln!("SKIPPED: this host's control groups cannot count processes");
        return;
    }
    let mut spec = world.spec("one", &["fork", "0.0.0.0:8080"]);
    spec.containers[0].limits.memory_bytes = 2 * 1024 * 1024 * 1024;
    let other = world.launch(world.spec("two", SERVE)).await.unwrap();
    let live = world.launch(spec).await.unwrap();
    let groups = support::groups(world.runtime.mark());
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
    for helper in helpers(world.runtime.mark()) {
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
    let mark = world.runtime.mark().to_owned();
    until("the spare helper is there", || !helpers(&mark).is_empty()).await;
    // It reports itself a moment after it exists; only then it is a spare.
    let first = world.launch(world.spec("one", SERVE)).await.unwrap();
    until("another spare helper is there", || helpers(&mark).len() == 2).await;
    for helper in helpers(&mark) {
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
    let mark = world.runtime.mark().to_owned();
    drop(live);
    until("the instance is gone", || helpers(&mark).is_empty()).await;
    // A launch that is given up half way leaves nothing either.
    let given_up = world.launch(world.spec("two", &["sleep"]));
    assert!(tokio::time::timeout(Duration::from_millis(60), given_up).await.is_err());
    until("the second is gone", || helpers(&mark).is_empty()).await;
    let instances = world.directory.path().join("runtime/instances");
    until("the directories are gone", || std::fs::read_dir(&instances).unwrap().count() == 0).await;
    world.end().await;
}

#[tokio::test]
async fn an_instance_needs_a_name_of_its_own() {
    if !root() {
        return;
    }
    let world = World::new().await;
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    let again = world.runtime.create(Arc::new(world.spec("one", SERVE))).await;
    assert!(again.is_err());
    assert_eq!(get(live.instance(), "/").await.0, 200, "the first one is untouched");
    live.stop(GRACE).await;
    assert!(InstanceId::new("../x").is_none());
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
