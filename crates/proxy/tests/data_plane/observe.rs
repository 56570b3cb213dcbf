//! Metrics, status and the access log: every request leaves exactly one trace of each kind.

use crate::support::plane::{Plane, eventually};
use crate::support::wire::{Backend, Conn};
use crate::support::world::World;
use proxy::{Config, LogTarget};
use serde_json::Value;
use std::sync::mpsc;
use std::time::Duration;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn ask(plane: &Plane, request: &str) {
    let mut client = Conn::connect(plane.address(80));
    client.send(request);
    client.message().expect("an answer");
}

#[test]
fn requests_are_counted_by_rule_backend_and_revision() {
    let plane = Plane::start(World::new());
    let backend = Backend::answering(OK);
    plane.instances.place("app", backend.address);
    for _ in 0..3 {
        ask(&plane, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let labels = "project_id=\"p\",region=\"us-west1\",network_name=\"lb-network\",\
                  forwarding_rule_name=\"web\",target_proxy_name=\"proxy\",backend_target_name=\"app\",\
                  service_name=\"app\",revision_name=\"app-00001-x\",protocol=\"HTTP/1.1\",\
                  response_code=\"200\",response_code_class=\"200\"";
    let prefix = "loadbalancing_googleapis_com:https_internal_";
    let count = format!("{prefix}request_count_total{{{labels}}} 3\n");
    eventually("three requests are counted", || plane.proxy.render_openmetrics().contains(&count));
    let text = plane.proxy.render_openmetrics();
    for line in [
        format!("{prefix}total_latencies_count{{{labels}}} 3\n"),
        format!("{prefix}total_latencies_bucket{{{labels},le=\"+Inf\"}} 3\n"),
        format!("{prefix}backend_latencies_count{{{labels}}} 3\n"),
        format!("{prefix}request_bytes_count_total{{{labels}}} 81\n"),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    let status = &plane.proxy.status()[0];
    assert_eq!((status.requests, status.connections_total), (3, 3));
    assert_eq!(status.responses_by_class, [0, 0, 3, 0, 0, 0]);
}

fn logged(world: World, requests: &[&str]) -> Vec<Value> {
    logged_with(world, &Backend::answering(OK), requests)
}

fn logged_with(world: World, backend: &Backend, requests: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = LogTarget::File(path.clone());
    let plane = Plane::with(world, Config { workers: 1, log, ..Config::default() });
    plane.instances.place("app", backend.address);
    for request in requests {
        ask(&plane, request);
    }
    plane.proxy.drain(Duration::from_secs(1));
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn the_access_log_is_json_in_googles_field_names() {
    let mut world = World::new();
    world.backend("app", |backend| backend.log.enable = true);
    let request = "GET /a?b=\\c HTTP/1.1\r\nHost: a\r\nUser-Agent: me \"too\"\\\r\n\r\n";
    let lines = logged(world, &[request]);
    let entry = &lines[0];
    let http = &entry["httpRequest"];
    assert_eq!(entry["resource"]["type"], "internal_http_lb_rule");
    let labels = &entry["resource"]["labels"];
    assert_eq!(labels["forwarding_rule_name"], "web");
    assert_eq!(labels["backend_target_name"], "app");
    assert_eq!(labels["url_map_name"], "map");
    assert_eq!(labels["matched_url_path_rule"], "UNMATCHED");
    assert_eq!(http["requestMethod"], "GET");
    assert_eq!(http["requestUrl"], "http://a/a?b=\\c");
    assert_eq!(http["userAgent"], "me \"too\"\\");
    assert_eq!(http["status"], 200);
    assert_eq!(http["protocol"], "HTTP/1.1");
    assert!(http["latency"].as_str().unwrap().ends_with('s'));
    assert!(http["responseSize"].as_str().unwrap().parse::<u64>().unwrap() > 2);
    assert!(entry.get("jsonPayload").is_none());
}

#[test]
fn an_entry_names_the_trace_that_the_instance_was_told() {
    let mut world = World::new();
    world.backend("app", |backend| backend.log.enable = true);
    let begun = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let brought = "GET / HTTP/1.1\r\nHost: a\r\nTraceparent: \
                   00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01\r\n\r\n";
    let (heads, seen) = mpsc::channel();
    let backend = Backend::start(move |mut conn| {
        while let Some(head) = conn.head() {
            heads.send(head).unwrap();
            conn.send(OK);
        }
    });
    let lines = logged_with(world, &backend, &[begun, brought]);
    assert_eq!(lines.len(), 2);
    for (line, head) in lines.iter().zip(seen.iter()) {
        let parent = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap();
        let told: Vec<&str> = parent.split('-').collect();
        let trace = line["trace"].as_str().unwrap();
        assert_eq!(trace.rsplit_once("/traces/").unwrap().1, told[1]);
        assert_eq!(line["spanId"], told[2]);
    }
    assert!(lines[0]["trace"].as_str().unwrap().starts_with("projects/"));
    assert!(lines[1]["trace"].as_str().unwrap().ends_with("/0af7651916cd43dd8448eb211c80319c"));
}

#[test]
fn only_what_the_backend_service_wants_is_logged() {
    assert_eq!(logged(World::new(), &["GET / HTTP/1.1\r\nHost: a\r\n\r\n"]).len(), 0);
    let mut world = World::new();
    world.backend("app", |backend| {
        backend.log.enable = true;
        backend.log.sample_rate = 0.5;
    });
    let requests = ["GET / HTTP/1.1\r\nHost: a\r\n\r\n"; 400];
    let lines = logged(world, &requests).len();
    assert!((120..280).contains(&lines), "{lines} of 400");
}
