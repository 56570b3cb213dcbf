//! A full disk refuses changes, loses nothing, and the store goes on once there is room.
//!
//! The disk is a small tmpfs in a mount namespace of this test's own thread, so it needs root and
//! leaves nothing behind.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use store::{CommitError, Store, Transaction};

const DISK_BYTES: usize = 8 * 1024 * 1024;

#[test]
fn a_full_disk_refuses_changes_and_loses_nothing() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED a_full_disk_refuses_changes_and_loses_nothing: mounting needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let size = format!("size={DISK_BYTES}");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(fill_and_recover(&path));
    })
    .join()
    .unwrap();
}

async fn fill_and_recover(directory: &std::path::Path) {
    let file = directory.join("store.redb");
    let store = Store::open(&file).unwrap();
    store.commit(Transaction::new().put("first", b"kept".as_slice())).await.unwrap();
    let ballast = directory.join("ballast");
    fs::write(&ballast, vec![1; 4 * 1024 * 1024]).unwrap();

    let mut acknowledged = 0_u32;
    let refusal = loop {
        let key = format!("large/{acknowledged}");
        match store.commit(Transaction::new().put(key, vec![2; 200_000])).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, CommitError::DiskFull { .. }), "{refusal:?}");
    let before = store.snapshot();

    // Still full: still refused, still readable, also for a reader of the log.
    for _ in 0..3 {
        let again = store.commit(Transaction::new().put("again", vec![3; 200_000])).await;
        assert!(matches!(again, Err(CommitError::DiskFull { .. })), "{again:?}");
    }
    assert_eq!(store.snapshot(), before);
    assert_eq!(store.watch(0).next().await.unwrap().revision, 1);

    fs::remove_file(&ballast).unwrap();
    let revision = store.commit(Transaction::new().put("after", vec![4; 200_000])).await.unwrap();
    assert_eq!(revision, before.revision + 1);
    let after = store.snapshot();
    drop(store);
    assert_eq!(Store::open(&file).unwrap().snapshot(), after);
    assert_eq!(after.scan("large/").count(), acknowledged as usize);
}
