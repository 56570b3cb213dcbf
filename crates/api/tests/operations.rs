//! Operations: what they promise, how long they are waited for, and what survives.

mod support;

use serde_json::{Value, json};
use std::time::Duration;
use support::{Appliers, Server};

const NETWORKS: &str = "projects/demo-proj/global/networks";

fn network(name: &str) -> Value {
    json!({ "name": name, "autoCreateSubnetworks": false })
}

fn path(operation: &Value) -> String {
    let link = operation["selfLink"].as_str().expect("a link");
    link.trim_start_matches("https://www.googleapis.com/compute/v1/").to_string()
}

#[tokio::test]
async fn an_operation_runs_until_the_plan_with_its_change_is_carried_out() {
    let server = Server::start_with(Appliers::held()).await;
    let operation = server.accept("POST", NETWORKS, network("n")).await;
    assert_eq!((&operation["status"], &operation["progress"]), (&json!("RUNNING"), &json!(0)));
    assert_eq!(operation.get("endTime"), None);

    let revision = server.api.world().state().revision;
    server.appliers.reach(revision - 1);
    let (_, operation) = server.call("GET", &path(&operation), None).await;
    assert_eq!(operation["status"], "RUNNING");

    server.appliers.reach(revision);
    let (_, operation) = server.call("GET", &path(&operation), None).await;
    assert_eq!((&operation["status"], &operation["progress"]), (&json!("DONE"), &json!(100)));
    let (_, again) = server.call("GET", &path(&operation), None).await;
    assert_eq!(again, operation, "what is over does not change");
}

#[tokio::test]
async fn waiting_ends_when_the_operation_does() {
    let server = Server::start_with(Appliers::held()).await;
    let operation = server.accept("POST", NETWORKS, network("n")).await;
    let target = format!("{}/wait", path(&operation));
    let wait = server.call("POST", &target, None);
    let finish = async {
        tokio::task::yield_now().await;
        server.appliers.reach(server.api.world().state().revision);
    };
    let ((status, answer), ()) = tokio::join!(wait, finish);
    assert_eq!((status, &answer["status"]), (200, &json!("DONE")));
}

#[tokio::test(start_paused = true)]
async fn waiting_has_an_end_even_if_the_operation_has_none() {
    let server = Server::start_with(Appliers::held()).await;
    let operation = server.accept("POST", NETWORKS, network("n")).await;
    let started = tokio::time::Instant::now();
    let (status, answer) = server.call("POST", &format!("{}/wait", path(&operation)), None).await;
    assert_eq!((status, &answer["status"]), (200, &json!("RUNNING")));
    assert_eq!(started.elapsed().as_secs(), api::compute::WAIT_MAX.as_secs());
    assert_eq!(api::compute::WAIT_MAX, Duration::from_secs(120));
}

#[tokio::test]
async fn what_the_appliers_cannot_do_is_the_operations_error_and_stays() {
    let server = Server::start().await;
    let operation = server.accept("POST", NETWORKS, network("breaks")).await;
    assert_eq!(operation["status"], "DONE");
    assert_eq!(operation["error"]["errors"][0]["code"], "RESOURCE_ERROR");
    assert_eq!(operation["httpErrorStatusCode"], 400);

    server.accept("POST", NETWORKS, network("other")).await;
    let (_, later) = server.call("GET", &path(&operation), None).await;
    assert_eq!(later, operation);
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_the_operation_it_started_first() {
    let server = Server::start().await;
    let target = format!("{NETWORKS}?requestId=5f3f2f7e-7d6c-4c8e-9f43-0b0a3f6f0001");
    let first = server.accept("POST", &target, network("n")).await;
    assert_eq!(first["clientOperationId"], "5f3f2f7e-7d6c-4c8e-9f43-0b0a3f6f0001");
    let before = server.api.world().state().revision;
    let second = server.accept("POST", &target, network("n")).await;
    assert_eq!(second, first);
    assert_eq!(server.api.world().state().revision, before, "nothing was done twice");

    let (status, _) = server.call("DELETE", &path(&first), None).await;
    assert_eq!(status, 204);
    let (status, answer) = server.call("POST", &target, Some(&network("n"))).await;
    assert_eq!((status, &answer["error"]["errors"][0]["reason"]), (409, &json!("alreadyExists")));
}

#[tokio::test]
async fn operations_are_listed_where_they_belong_and_removed_without_a_body() {
    let server = Server::start().await;
    server.accept("POST", NETWORKS, network("n")).await;
    let subnet =
        json!({ "name": "s", "network": "global/networks/n", "ipCidrRange": "10.0.0.0/24" });
    let subnets = "projects/demo-proj/regions/us-west1/subnetworks";
    let operation = server.accept("POST", subnets, subnet).await;
    assert_eq!(
        operation["region"],
        "https://www.googleapis.com/compute/v1/projects/demo-proj/regions/us-west1"
    );

    let (_, global) = server.call("GET", "projects/demo-proj/global/operations", None).await;
    let (_, regional) =
        server.call("GET", "projects/demo-proj/regions/us-west1/operations", None).await;
    assert_eq!(global["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(regional["items"], json!([operation]));
    let (_, all) = server.call("GET", "projects/demo-proj/aggregated/operations", None).await;
    assert_eq!(all["items"]["regions/us-west1"]["operations"], json!([operation]));
    assert_eq!(all["items"]["global"]["operations"].as_array().map(Vec::len), Some(1));

    let response = server.send("DELETE", &path(&operation), "").await;
    assert_eq!((response.status.as_u16(), response.body.len()), (204, 0));
    let (status, _) = server.call("GET", &path(&operation), None).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_change_whose_client_has_gone_away_still_happens_as_a_whole() {
    let server = Server::start().await;
    let mut states = server.api.world().states();
    states.mark_unchanged();
    let body = network("n").to_string();
    let request = Box::pin(server.send("POST", NETWORKS, body));
    // The client gives up at the first pause, which is when the disk has been asked to write.
    let given_up = futures_util::future::select(request, std::future::ready(())).await;
    drop(given_up);
    states.changed().await.expect("the change is published");
    let (status, _) = server.call("GET", &format!("{NETWORKS}/n"), None).await;
    assert_eq!(status, 200);
    let (_, operations) = server.call("GET", "projects/demo-proj/global/operations", None).await;
    assert_eq!(operations["items"][0]["status"], "DONE");
}

#[tokio::test]
async fn old_finished_operations_make_room_for_new_ones() {
    let server = Server::start().await;
    let first = server.accept("POST", NETWORKS, network("first")).await;
    let many = |draft: &mut api::world::Draft| {
        for index in 1..api::compute::OPERATIONS_MAX {
            let key = format!("projects/demo-proj/global/operations/operation-{index}");
            draft.put(key, json!({ "status": "DONE" }));
        }
        Ok(())
    };
    server.api.world().change(many).await.expect("accepted");
    assert_eq!(server.api.world().state().operations.len(), api::compute::OPERATIONS_MAX);

    server.accept("POST", NETWORKS, network("second")).await;
    assert_eq!(server.api.world().state().operations.len(), api::compute::OPERATIONS_MAX);
    let (status, _) = server.call("GET", &path(&first), None).await;
    assert_eq!(status, 404, "the oldest is forgotten");
    let (status, _) = server.call("GET", &format!("{NETWORKS}/first"), None).await;
    assert_eq!(status, 200, "what it made is not");
}

#[tokio::test]
async fn a_restarted_server_has_the_same_resources_and_operations() {
    let folder = tempfile::tempdir().expect("a folder");
    let (documents, operation) = {
        let server = Server::open(folder.path(), Appliers::done()).await;
        let operation = server.accept("POST", NETWORKS, network("n")).await;
        let (_, shown) = server.call("GET", &format!("{NETWORKS}/n"), None).await;
        ((shown, server.api.world().state().revision), operation)
    };
    let server = Server::open(folder.path(), Appliers::done()).await;
    let (_, shown) = server.call("GET", &format!("{NETWORKS}/n"), None).await;
    assert_eq!((shown, server.api.world().state().revision), documents);
    let (_, again) = server.call("GET", &path(&operation), None).await;
    assert_eq!((&again["status"], &again["name"]), (&json!("DONE"), &operation["name"]));
    let other = server.accept("POST", NETWORKS, network("m")).await;
    assert_ne!(other["targetId"], operation["targetId"]);
}

/// The folder of the store, for the process that is killed.
const FOLDER: &str = "TIDEGATE_TEST_FOLDER";
/// The number that begins the names a killed process makes.
const ROUND: &str = "TIDEGATE_TEST_ROUND";
/// How often a process is killed.
const KILLS: usize = 10;

/// Not a test by itself: the process the next test starts, which makes networks until it is killed.
#[tokio::test]
async fn networks_are_made_until_the_process_is_killed() {
    let (Ok(folder), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else { return };
    let server = Server::open(folder.as_ref(), Appliers::done()).await;
    for index in 0.. {
        let name = format!("n-{round}-{index}");
        let operation = server.accept("POST", NETWORKS, network(&name)).await;
        println!("\nMADE {} {} {}", name, operation["targetId"], path(&operation));
        let (status, _) = server.call("DELETE", &format!("{NETWORKS}/{name}"), None).await;
        assert_eq!(status, 200);
        println!("\nGONE {name}");
        let kept = server.accept("POST", NETWORKS, network(&format!("k{name}"))).await;
        println!("\nMADE k{} {} {}", name, kept["targetId"], path(&kept));
    }
}

/// Makes networks in another process and kills it after some lines; returns what it said.
fn killed_after(folder: &std::path::Path, round: usize, lines: usize) -> Vec<String> {
    let program = std::env::current_exe().expect("this test");
    let mut child = std::process::Command::new(program)
        .args(["--exact", "networks_are_made_until_the_process_is_killed", "--nocapture"])
        .env(FOLDER, folder)
        .env(ROUND, round.to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a process");
    let output = std::io::BufReader::new(child.stdout.take().expect("its output"));
    let said = std::io::BufRead::lines(output).map(|line| line.expect("a line"));
    let told: Vec<String> = said
        .filter(|line| line.starts_with("MADE ") || line.starts_with("GONE "))
        .take(lines)
        .collect();
    child.kill().expect("it was running");
    child.wait().expect("it ended");
    told
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_there_after_it_with_its_operation() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut made: Vec<(String, String, String)> = Vec::new();
    for round in 0..KILLS {
        for line in killed_after(folder.path(), round, 3 + round * 2) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["MADE", name, id, operation] => {
                    made.push((name.into(), id.trim_matches('"').into(), operation.into()));
                }
                ["GONE", name] => made.retain(|(known, ..)| known != name),
                _ => panic!("{line}"),
            }
        }
        let server = Server::open(folder.path(), Appliers::done()).await;
        for (name, id, operation) in &made {
            let (status, shown) = server.call("GET", &format!("{NETWORKS}/{name}"), None).await;
            let is_being_deleted = status == 404 && name.starts_with('n');
            assert!(is_being_deleted || status == 200 && shown["id"] == **id, "{name}: {status}");
            let (status, operation) = server.call("GET", operation, None).await;
            assert_eq!((status, &operation["status"]), (200, &json!("DONE")), "of {name}");
        }
        made.retain(|(name, ..)| name.starts_with('k'));
        let count = |list: (u16, Value)| list.1["items"].as_array().map_or(0, Vec::len);
        let routes = count(server.call("GET", "projects/demo-proj/global/routes", None).await);
        let networks = count(server.call("GET", NETWORKS, None).await);
        assert_eq!(routes, networks, "a network comes and goes with its route");
    }
    assert!(!made.is_empty());
}
