//! How long a durable commit of 2 KiB takes, alone and among many writers at once.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use store::{Store, Transaction};

const VALUE_BYTES: usize = 2048;

fn main() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let store = Store::open(directory.path().join("store.redb")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for (writers, commits_each) in [(1, 1_000), (8, 500), (64, 200)] {
        let began = Instant::now();
        let mut times = runtime.block_on(run(&store, writers, commits_each));
        let elapsed = began.elapsed();
        times.sort();
        println!(
            "commit_2_kib writers={writers} p50={:?} p99={:?} commits_per_s={:.0}",
            times[times.len() / 2],
            times[times.len() * 99 / 100],
            times.len() as f64 / elapsed.as_secs_f64(),
        );
    }
    drop(store);
    let began = Instant::now();
    let store = Store::open(directory.path().join("store.redb")).unwrap();
    println!("open keys={} time={:?}", store.snapshot().entries.len(), began.elapsed());
}

async fn run(store: &Store, writers: u32, commits_each: u32) -> Vec<Duration> {
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                for number in 0..commits_each {
                    let key = format!("writer/{writer}/{}", number % 100);
                    let began = Instant::now();
                    let transaction = Transaction::new().put(key, vec![b'x'; VALUE_BYTES]);
                    store.commit(transaction).await.unwrap();
                    times.push(began.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times
}
