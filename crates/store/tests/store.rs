//! What a caller can rely on: conditions, revisions, reopening, watching, and the law of replay.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use store::{
    CommitError, KEY_BYTES_MAX, LOG_REVISIONS_MAX, OpenError, Snapshot, Store, Transaction,
    VALUE_BYTES_MAX, WatchError,
};
use tempfile::TempDir;

/// How long anything that should happen may take before the test calls it lost.
const DEADLINE: Duration = Duration::from_secs(30);

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(directory: &TempDir) -> Store {
    Store::open(directory.path().join("store.redb")).unwrap()
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.as_bytes())
}

fn text(store: &Store, key: &str) -> Option<String> {
    store.get(key).map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
}

#[tokio::test]
async fn a_revision_grows_by_one_with_each_transaction_that_changes_something() {
    let directory = directory();
    let store = open(&directory);
    assert_eq!(store.revision(), 0);
    assert_eq!(store.commit(put("a", "1").put("b", "2".as_bytes())).await.unwrap(), 1);
    assert_eq!(store.commit(put("a", "3")).await.unwrap(), 2);
    assert_eq!(store.commit(Transaction::new().delete("absent")).await.unwrap(), 2);
    assert_eq!(store.commit(Transaction::new().expect("a", 2)).await.unwrap(), 2);
    assert_eq!(store.commit(Transaction::new().delete("b")).await.unwrap(), 3);
    assert_eq!(store.get("a").unwrap().revision, 2);
    assert_eq!(store.get("b"), None);
}

#[tokio::test]
async fn a_condition_that_fails_names_its_key_and_nothing_happens() {
    let directory = directory();
    let store = open(&directory);
    store.commit(put("a", "1")).await.unwrap();
    let refused = [
        (put("a", "x").expect_absent("a"), None, Some(1)),
        (put("a", "x").expect("a", 7), Some(7), Some(1)),
        (put("a", "x").expect("a", 1).expect("gone", 1), Some(1), None),
    ];
    for (transaction, wanted_expected, wanted_actual) in refused {
        match store.commit(transaction).await {
            Err(CommitError::Conflict { expected, actual, .. }) => {
                assert_eq!((expected, actual), (wanted_expected, wanted_actual));
            }
            other => panic!("not a conflict: {other:?}"),
        }
    }
    assert_eq!((store.revision(), text(&store, "a").unwrap()), (1, "1".to_owned()));
    assert_eq!(store.commit(put("a", "2").expect("a", 1).expect_absent("b")).await.unwrap(), 2);
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening() {
    let directory = directory();
    let store = open(&directory);
    store.commit(put("a/1", "one").put("a/2", "two".as_bytes())).await.unwrap();
    store.commit(Transaction::new().delete("a/1").put("b", "three".as_bytes())).await.unwrap();
    let before = store.snapshot();
    drop(store);
    let store = open(&directory);
    assert_eq!(store.snapshot(), before);
    let keys: Vec<_> = store.scan("a/").into_iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(keys, ["a/2"]);
}

#[tokio::test]
async fn a_scan_returns_exactly_the_keys_with_the_prefix_in_order() {
    let directory = directory();
    let store = open(&directory);
    let mut transaction = Transaction::new();
    for key in ["p/b", "p/a", "p", "p0", "o", "p/a/x"] {
        transaction = transaction.put(key, key.as_bytes());
    }
    store.commit(transaction).await.unwrap();
    let keys =
        |prefix| store.scan(prefix).into_iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys("p/"), ["p/a", "p/a/x", "p/b"]);
    assert_eq!(keys(""), ["o", "p", "p/a", "p/a/x", "p/b", "p0"]);
    assert_eq!(keys("q"), [""; 0]);
}

#[tokio::test]
async fn of_many_writers_with_the_same_expectation_one_wins() {
    let directory = directory();
    let store = open(&directory);
    for round in 0..20 {
        let current = store.get("k").map(|entry| entry.revision);
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let store = store.clone();
                let transaction = put("k", &format!("{round}/{writer}"));
                let transaction = match current {
                    Some(revision) => transaction.expect("k", revision),
                    None => transaction.expect_absent("k"),
                };
                tokio::spawn(async move { (writer, store.commit(transaction).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for writer in writers {
            match writer.await.unwrap() {
                (writer, Ok(_)) => winners.push(writer),
                (_, Err(CommitError::Conflict { .. })) => {}
                (_, Err(error)) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(text(&store, "k").unwrap(), format!("{round}/{}", winners[0]));
    }
}

#[tokio::test]
async fn a_watch_replays_the_past_and_follows_the_present() {
    let directory = directory();
    let store = open(&directory);
    for number in 0..700_u32 {
        store.commit(put(&format!("k{}", number % 7), &number.to_string())).await.unwrap();
    }
    let past = store.snapshot();
    let mut watch = store.watch(0);
    let follower = tokio::spawn(async move {
        let mut replayed = Snapshot::default();
        while replayed.revision < 1_000 {
            let commit = tokio::time::timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
            assert_eq!(commit.revision, replayed.revision + 1);
            replayed.apply(&commit);
            if replayed.revision == past.revision {
                assert_eq!(replayed, past);
            }
        }
        (watch, replayed)
    });
    for number in 700..1_000_u32 {
        store.commit(put(&format!("k{}", number % 7), &number.to_string())).await.unwrap();
    }
    let (mut watch, replayed) = follower.await.unwrap();
    assert_eq!(replayed, store.snapshot());
    drop(store);
    assert!(matches!(watch.next().await, Err(WatchError::Closed)));
}

#[tokio::test]
async fn a_watch_after_what_never_happened_says_so() {
    let directory = directory();
    let store = open(&directory);
    store.commit(put("a", "1")).await.unwrap();
    assert!(matches!(store.watch(5).next().await, Err(WatchError::Ahead { newest: 1 })));
}

#[tokio::test]
async fn the_log_forgets_beyond_its_bound_and_the_reader_is_told() {
    let directory = directory();
    let store = open(&directory);
    let beyond = 300;
    let commits: Vec<_> = (0..LOG_REVISIONS_MAX + beyond)
        .map(|number| {
            let store = store.clone();
            let transaction = put("k", &number.to_string());
            tokio::spawn(async move { store.commit(transaction).await.unwrap() })
        })
        .collect();
    for commit in commits {
        commit.await.unwrap();
    }
    let oldest = beyond + 1;
    match store.watch(0).next().await {
        Err(WatchError::Compacted { oldest: told }) => assert_eq!(told, oldest),
        other => panic!("not compacted: {other:?}"),
    }
    assert_eq!(store.watch(oldest - 1).next().await.unwrap().revision, oldest);
}

#[tokio::test]
async fn a_large_log_is_forgotten_by_its_bytes() {
    let directory = directory();
    let store = open(&directory);
    let large: Arc<[u8]> = vec![7; VALUE_BYTES_MAX].into();
    for _ in 0..20 {
        store.commit(Transaction::new().put("k", Arc::clone(&large))).await.unwrap();
    }
    // Sixteen values of 4 MiB fill the log's 64 MiB; their keys push one more out.
    match store.watch(0).next().await {
        Err(WatchError::Compacted { oldest }) => assert_eq!(oldest, 6),
        other => panic!("not compacted: {other:?}"),
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_by_name() {
    let directory = directory();
    let store = open(&directory);
    let key = "k".repeat(KEY_BYTES_MAX + 1);
    let refused = [
        Transaction::new().put(key, b"".as_slice()),
        Transaction::new().put("k", vec![0; VALUE_BYTES_MAX + 1]),
    ];
    for transaction in refused {
        let answer = store.commit(transaction).await;
        assert!(matches!(answer, Err(CommitError::TooLarge { .. })), "{answer:?}");
    }
    assert_eq!(store.revision(), 0);
}

#[test]
fn a_file_in_use_is_refused() {
    let directory = directory();
    let store = open(&directory);
    let second = Store::open(directory.path().join("store.redb"));
    assert!(matches!(second, Err(OpenError::InUse { .. })), "{second:?}");
    drop(store);
    open(&directory);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = directory();
    let path = directory.path().join("store.redb");
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 99).unwrap();
    transaction.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let opened = Store::open(&path);
        assert!(
            matches!(opened, Err(OpenError::FormatNewer { found: 99, known: 1, .. })),
            "{opened:?}"
        );
    }
}

#[test]
fn a_file_of_something_else_is_refused() {
    let directory = directory();
    let path = directory.path().join("store.redb");
    std::fs::write(&path, b"not a database, and longer than a header would be".repeat(100))
        .unwrap();
    let opened = Store::open(&path);
    assert!(matches!(opened, Err(OpenError::Io { .. })), "{opened:?}");
}

#[derive(Clone, Debug)]
enum Step {
    Commit { puts: Vec<(u8, u8)>, deletes: Vec<u8> },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let puts = prop::collection::vec((0..8_u8, any::<u8>()), 0..4);
    let deletes = prop::collection::vec(0..8_u8, 0..3);
    prop_oneof![
        9 => (puts, deletes).prop_map(|(puts, deletes)| Step::Commit { puts, deletes }),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn replaying_the_log_from_any_revision_gives_the_current_state(
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = directory();
        let mut store = open(&directory);
        let mut states = vec![store.snapshot()];
        for step in steps {
            match step {
                Step::Commit { puts, deletes } => {
                    let mut transaction = Transaction::new();
                    for (key, value) in puts {
                        transaction = transaction.put(format!("k{key}"), vec![value]);
                    }
                    for key in deletes {
                        transaction = transaction.delete(format!("k{key}"));
                    }
                    let revision = runtime.block_on(store.commit(transaction)).unwrap();
                    if revision > states.last().unwrap().revision {
                        states.push(store.snapshot());
                    }
                }
                Step::Reopen => {
                    drop(store);
                    store = open(&directory);
                }
            }
        }
        let current = store.snapshot();
        for state in states {
            let mut replayed = state.clone();
            let mut watch = store.watch(state.revision);
            while replayed.revision < current.revision {
                replayed.apply(&runtime.block_on(watch.next()).unwrap());
            }
            prop_assert_eq!(&replayed, &current);
        }
    }
}
