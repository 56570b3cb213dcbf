//! A process that is killed with SIGKILL in the middle of writing loses nothing it acknowledged.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use store::{LOG_REVISIONS_MAX, Snapshot, Store, Transaction};

const ROUNDS: u32 = 30;
const WRITERS: u32 = 4;
const FILE_VARIABLE: &str = "STORE_CRASH_TEST_FILE";

/// The body of the process that gets killed; without its variable there is nothing to do.
#[test]
fn writer_process() {
    let Some(path) = env::var_os(FILE_VARIABLE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Store::open(path).unwrap();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| tokio::spawn(write_for_ever(store.clone(), writer)))
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

async fn write_for_ever(store: Store, writer: u32) {
    let key = format!("writer/{writer}");
    let mut number = match store.get(&key) {
        Some(entry) => String::from_utf8_lossy(&entry.value).parse::<u64>().unwrap(),
        None => 0,
    };
    loop {
        number += 1;
        let transaction = Transaction::new()
            .put(key.clone(), number.to_string().into_bytes())
            .put(format!("{key}/{}", number % 50), vec![b'x'; 2048]);
        store.commit(transaction).await.unwrap();
        println!("acknowledged {writer} {number}");
    }
}

/// Runs the writer, kills it after so many acknowledgements, and returns all that it gave.
fn run_and_kill(path: &Path, kill_after: u32) -> BTreeMap<u32, u64> {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "writer_process", "--nocapture", "--test-threads=1"])
        .env(FILE_VARIABLE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut count = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some((_, fact)) = line.split_once("acknowledged ") else { continue };
        let Some((writer, number)) = fact.split_once(' ') else { continue };
        acknowledged.insert(writer.parse().unwrap(), number.parse().unwrap());
        count += 1;
        if count == kill_after {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    acknowledged
}

#[test]
fn no_acknowledged_commit_is_lost_when_the_process_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for round in 0..ROUNDS {
        // Early and late, within and between batches.
        let acknowledged = run_and_kill(&path, 1 + (round * 37) % 101);
        assert!(!acknowledged.is_empty(), "round {round} acknowledged nothing");

        let store = Store::open(&path).unwrap();
        for (writer, number) in &acknowledged {
            let kept = store.get(&format!("writer/{writer}")).unwrap();
            let kept: u64 = String::from_utf8_lossy(&kept.value).parse().unwrap();
            assert!(kept >= *number, "round {round}: writer {writer} lost {number}, has {kept}");
        }
        // What the log says and what the table says must agree after the repair.
        let current = store.snapshot();
        if current.revision <= LOG_REVISIONS_MAX {
            let mut replayed = Snapshot::default();
            let mut watch = store.watch(0);
            while replayed.revision < current.revision {
                replayed.apply(&runtime.block_on(watch.next()).unwrap());
            }
            assert_eq!(replayed, current);
        }
    }
}
