//! Docker Engine passes the suite the embedded runtime passes. Needs root and `dockerd`; the engine is
//! started here, in a network of its own and with directories of its own.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serverless::builds::{BuildLog, Builder, BuilderConfig, Method, Order};
use serverless::images::{ImageStore, ImageStoreConfig};
use serverless::runtime::launch::launch;
use serverless::runtime::{DockerConfig, DockerRuntime, LogSink, Runtime};
use support::{Lines, World, get, helper, root, suite, surroundings, until};

/// An engine of our own, ended when dropped.
struct Engine {
    child: Child,
    directory: tempfile::TempDir,
}

impl Engine {
    async fn start() -> Option<Engine> {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let child = Command::new("unshare")
            .args(["--net", "--", "dockerd", "--bridge=none", "--iptables=false"])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--host", &format!("unix://{}", path("socket"))])
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn();
        let Ok(child) = child else {
            eprintln!("SKIPPED: needs `unshare` and `dockerd` (apt-get install docker.io)");
            return None;
        };
        let mut engine = Engine { child, directory };
        let socket = engine.socket();
        for _ in 0..6_000 {
            if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
                return Some(engine);
            }
            if engine.child.try_wait().unwrap().is_some() {
                let log = fs::read_to_string(engine.directory.path().join("log")).unwrap();
                eprintln!(
                    "SKIPPED: `dockerd` does not run here (apt-get install docker.io): {log}"
                );
                return None;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("dockerd does not come up");
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    async fn world(&self) -> World {
        let directory = World::prepare();
        let lines = Arc::new(Lines::default());
        let config = DockerConfig {
            socket: self.socket(),
            directory: directory.path().join("runtime"),
            sink: Arc::clone(&lines) as Arc<dyn LogSink>,
        };
        let runtime = DockerRuntime::open_in(config, surroundings()).await.unwrap();
        let mark = runtime.mark().to_owned();
        World {
            directory,
            runtime: Arc::new(runtime),
            mark,
            lines,
            limits_memory: true,
            limits_processes: true,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It ends its containers and its containerd when it is asked to.
        let process = i32::try_from(self.child.id()).unwrap();
        let _ = kill(Pid::from_raw(process), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

macro_rules! run_suite {
    ($engine:expr; $($name:ident)*) => {
        $(
            println!("{}", stringify!($name));
            suite::$name($engine.world().await).await;
        )*
    };
}

#[tokio::test]
async fn docker_engine_passes_the_suite() {
    if !root() {
        return;
    }
    let Some(engine) = Engine::start().await else { return };
    run_suite! { engine;
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
    println!("what_an_earlier_server_left_is_removed");
    leftovers(&engine).await;
    println!("a_source_with_a_dockerfile_is_built");
    dockerfile(&engine).await;
    println!("a_program_that_cannot_be_executed_is_named");
    let world = engine.world().await;
    let mut spec = world.spec("one", &[]);
    spec.containers[0].command = vec!["/no/such/program".to_owned()];
    let failure = world.launch(spec).await.unwrap_err();
    assert!(failure.detail.contains("/no/such/program"), "{}", failure.detail);
    assert!(!failure.host_fault);
    world.end().await;
}

/// Containers of an engine outlive the server; the next one with the same directory removes them.
async fn leftovers(engine: &Engine) {
    let world = engine.world().await;
    let spec = Arc::new(world.spec("one", &["serve", "0.0.0.0:PORT"]));
    let live = launch(&*world.runtime, spec).await.unwrap();
    assert_eq!(get(live.instance(), "/").await.0, 200);
    let again = DockerRuntime::open(DockerConfig {
        socket: engine.socket(),
        directory: world.directory.path().join("runtime"),
        sink: Arc::clone(&world.lines) as Arc<dyn LogSink>,
    })
    .await
    .unwrap();
    let found = again.reconcile().await;
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!(found.instances_removed, 1);
    live.ended().await;
    live.stop(Duration::ZERO).await;
    let instances = world.directory.path().join("runtime/volumes");
    until("nothing is left", || fs::read_dir(&instances).unwrap().count() == 0).await;
    world.end().await;
}

/// The engine builds what has a Dockerfile, and keeps nothing of it.
async fn dockerfile(engine: &Engine) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let images =
        ImageStore::open(ImageStoreConfig { directory: path("images"), credentials: None });
    let images = images.unwrap();
    let builder = Builder::open(BuilderConfig {
        directory: path("builds"),
        helper: helper(),
        images: images.clone(),
        base_images: None,
        docker_socket: engine.socket(),
    });
    let builder = builder.await.unwrap();
    let build = async |dockerfile: &str| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, text) in [("Dockerfile", dockerfile), ("page", "a page")] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            archive.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        fs::write(path("source.tar"), archive.into_inner().unwrap()).unwrap();
        let order = Order {
            source: path("source.tar"),
            reference: "us-west1-docker.pkg.dev/p/builds/page:latest".to_owned(),
            method: Method::Dockerfile,
        };
        let log = Arc::new(BuildLog::default());
        let built = builder.build(&order, &log).await;
        println!("{}", log.text());
        built.map_err(|error| error.to_string())
    };
    let built = build("FROM scratch\nCOPY page /page\nENTRYPOINT [\"/page\"]\n").await.unwrap();
    let image = images.local(&built.reference).unwrap();
    assert_eq!(image.config.entrypoint, ["/page"]);
    assert_eq!(fs::read(image.layers[0].join("page")).unwrap(), b"a page");
    let told = build("FROM scratch\nCOPY absent /\n").await.unwrap_err();
    assert!(told.starts_with("docker build failed") && told.contains("absent"), "{told}");
    builder.shut_down().await;
}
