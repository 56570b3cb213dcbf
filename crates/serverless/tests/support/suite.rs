//! What every runtime has to do, as functions of a world: the embedded runtime and Docker Engine
//! pass the same.

use std::sync::Arc;
use std::time::Duration;

use serverless::images::ImageConfig;
use serverless::runtime::launch::End;
use serverless::runtime::{
    ContainerSpec, Exit, ExitCause, InstanceId, Probe, ProbeAction, Probes, Volume, VolumeFile,
    VolumeMount, VolumeSource,
};

use super::{World, container, fields, get, image, until};

const SERVE: &[&str] = &["serve", "0.0.0.0:PORT"];
const GRACE: Duration = Duration::from_secs(10);

pub async fn an_instance_serves_and_leaves_nothing_behind(world: World) {
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    assert_eq!(get(live.instance(), "/").await, (200, "ok".to_owned()));
    live.stop(GRACE).await;
    assert_eq!(live.ended().await, End::Stopped);
    assert!(live.instance().dial(8080).await.is_err());
    world.end().await;
}

pub async fn a_container_asks_about_itself_and_still_has_port_80(world: World) {
    let mut spec = world.spec("one", SERVE);
    let other = ["serve", "0.0.0.0:80"];
    spec.containers.push(container("other", world.image(), &other));
    let live = world.launch(spec).await.unwrap();
    let ask = async |path: &str| get(live.instance(), path).await.1;
    assert_eq!(ask("/fetch/169.254.169.254:80/").await, "one of shop-00001-abc");
    until_answer(&live, "/fetch/127.0.0.1:80/", "ok").await;
    let hosts = ask("/file/etc/hosts").await;
    assert!(hosts.contains("169.254.169.254"), "{hosts}");
    assert!(hosts.contains("metadata.google.internal"), "{hosts}");
    // Each instance has its own.
    let second = world.launch(world.spec("two", SERVE)).await.unwrap();
    let answer = get(second.instance(), "/fetch/169.254.169.254:80/").await;
    assert_eq!(answer.1, "two of shop-00001-abc");
    live.stop(GRACE).await;
    second.stop(GRACE).await;
    world.end().await;
}

/// A sidecar without a probe comes up when it does.
async fn until_answer(live: &serverless::runtime::launch::LiveInstance, path: &str, text: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while get(live.instance(), path).await.1 != text {
        assert!(std::time::Instant::now() < deadline, "{path} does not answer");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn the_environment_is_the_images_then_the_users_then_the_platforms(world: World) {
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
    // An engine may add a host name of its own.
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("HOSTNAME=")).collect();
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

pub async fn user_and_working_directory_are_as_the_image_says(world: World) {
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

pub async fn a_container_that_eats_too_much_is_killed_and_told_apart(world: World) {
    if !world.limits_memory {
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

pub async fn files_written_count_as_memory_and_end_at_the_limit(world: World) {
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
    if world.limits_memory {
        assert!(live.instance().usage().memory_bytes > 8 * 1024 * 1024);
    }
    assert_eq!(get(live.instance(), "/write/etc/new").await.1, "written");
    assert!(!world.directory.path().join("layer/etc/new").exists(), "the layer was written to");
    live.stop(GRACE).await;
    world.end().await;
}

pub async fn an_instance_reaches_neither_the_host_nor_another_instance(world: World) {
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = host.local_addr().unwrap();
    let first = world.launch(world.spec("one", SERVE)).await.unwrap();
    let second = world.launch(world.spec("two", SERVE)).await.unwrap();
    let refused = "Connection refused (os error 111)";
    assert_eq!(get(first.instance(), &format!("/connect/{address}")).await.1, refused);
    assert_eq!(get(first.instance(), "/connect/127.0.0.1:8080").await.1, "connected");
    // What leaves it leaves it by the one who carries it, and by nobody else.
    for beyond in ["10.0.0.1:80", "8.8.8.8:443", "8.8.8.8:8080"] {
        let answer = get(first.instance(), &format!("/fetch/{beyond}/")).await.1;
        assert_eq!(answer, format!("one to {beyond}"));
    }
    // Both listen on the same port, each in its own network.
    assert_eq!(get(second.instance(), "/").await.0, 200);
    first.stop(GRACE).await;
    assert_eq!(get(second.instance(), "/").await.0, 200);
    second.stop(GRACE).await;
    world.end().await;
}

pub async fn a_container_that_exits_fails_the_start_with_its_last_lines(world: World) {
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

pub async fn a_container_that_never_listens_fails_its_startup_probe(world: World) {
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

pub async fn a_container_may_take_its_time_to_listen(world: World) {
    let live = world.launch(world.spec("one", &["slow", "0.0.0.0:8080", "400"])).await.unwrap();
    assert_eq!(get(live.instance(), "/").await.0, 200);
    assert!(live.phases().executed <= live.phases().ready);
    live.stop(GRACE).await;
    world.end().await;
}

pub async fn a_failing_liveness_probe_ends_the_instance(world: World) {
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

pub async fn a_failing_readiness_probe_takes_the_instance_out_of_traffic(world: World) {
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

pub async fn stopping_is_sigterm_then_patience_then_sigkill(world: World) {
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

pub async fn the_first_exit_is_told_with_code_or_signal(world: World) {
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    get(live.instance(), "/exit/9").await;
    let exit = Exit { container: "app".to_owned(), cause: ExitCause::Code(9) };
    assert_eq!(live.ended().await, End::Exited(exit.clone()));
    assert_eq!(live.instance().exited().await, exit);
    live.stop(GRACE).await;
    world.end().await;
}

pub async fn sidecars_start_in_order_and_share_loopback_and_volumes(world: World) {
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

pub async fn a_flood_of_lines_is_counted_and_hurts_nobody(world: World) {
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

pub async fn an_instance_needs_a_name_of_its_own(world: World) {
    let live = world.launch(world.spec("one", SERVE)).await.unwrap();
    let again = world.runtime.create(Arc::new(world.spec("one", SERVE))).await;
    assert!(again.is_err());
    assert_eq!(get(live.instance(), "/").await.0, 200, "the first one is untouched");
    live.stop(GRACE).await;
    assert!(InstanceId::new("../x").is_none());
    world.end().await;
}
