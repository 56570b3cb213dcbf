//! What an earlier life of this server left on the host, found by our mark and removed.
//!
//! Containers die with their helper and helpers with the server, so after a crash there is usually
//! nothing but empty directories. The rest is for the cases where the kernel was still at it.
//!
//! Invariant: only processes, control groups and directories that carry this server's mark are
//! touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::cgroups::{kill_members, remove_directory};
use super::embedded::Inner;
use super::helper::HELPER_ARGUMENT;
use super::link::MARK_ARGUMENT;
use super::{Reconciled, abandoned};

/// What was killed has to be gone by then.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Kills and removes; answers with what was found.
pub(crate) async fn remove(runtime: &Inner) -> Reconciled {
    let mut instances = BTreeSet::new();
    let mut problems = Vec::new();
    let deadline = Instant::now() + GONE_WITHIN;
    while !kill_helpers(&runtime.mark) {
        if Instant::now() > deadline {
            problems.push("a helper process of an earlier server does not end".to_owned());
            break;
        }
        sleep(POLL).await;
    }
    for (instance, group) in runtime.cgroups.existing() {
        instances.insert(instance);
        while !remove_directory(&group) {
            if Instant::now() > deadline {
                problems.push(format!("the control group {} stays", group.display()));
                break;
            }
            kill_members(&group);
            sleep(POLL).await;
        }
    }
    for directory in instance_directories(runtime) {
        if let Some(name) = directory.file_name() {
            instances.insert(name.to_string_lossy().into_owned());
        }
        if let Err(error) = fs::remove_dir(&directory) {
            problems.push(format!("{} stays: {error}", directory.display()));
        }
    }
    runtime.cgroups.remove_roots();
    let abandoned = abandoned::remove(&runtime.cgroups, SystemTime::now());
    if abandoned > 0 {
        tracing::info!(abandoned, "removed control groups of servers that are gone");
    }
    Reconciled { instances_removed: instances.len() as u64, problems }
}

fn instance_directories(runtime: &Inner) -> Vec<PathBuf> {
    let entries = fs::read_dir(runtime.instance_directory("")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Kills every helper of our mark; true when there was none.
fn kill_helpers(mark: &str) -> bool {
    let mut none = true;
    for (process, command_line) in processes() {
        if is_helper(&command_line, mark) {
            none = false;
            // One that has just ended is what we want.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
    none
}

/// Ends what helpers that were killed had begun: a container that was made and not started yet waits for its
/// helper's word, and nobody else would end it before the next start of the server.
pub(crate) async fn end_orphans(mark: &str) {
    let deadline = Instant::now() + GONE_WITHIN;
    while Instant::now() < deadline {
        let orphans = orphans(mark);
        if orphans.is_empty() {
            return;
        }
        for process in orphans {
            // One that has just ended is what we want.
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
        sleep(POLL).await;
    }
    tracing::warn!("a process that lost its helper does not end");
}

/// Processes of our mark whose parent is neither this server nor a helper.
fn orphans(mark: &str) -> Vec<i32> {
    let mut ours = processes();
    ours.retain(|(_, command_line)| is_helper(command_line, mark));
    let is_parent = |parent: i32| {
        u32::try_from(parent).is_ok_and(|parent| parent == std::process::id())
            || ours.iter().any(|(process, _)| *process == parent)
    };
    let of = |(process, _): &(i32, Vec<u8>)| Some((*process, parent_of(*process)?));
    let with_parents = ours.iter().filter_map(of);
    with_parents.filter(|(_, parent)| !is_parent(*parent)).map(|(process, _)| process).collect()
}

fn parent_of(process: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// Every process with its command line.
pub(crate) fn processes() -> Vec<(i32, Vec<u8>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let known = entries.filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        Some((process, fs::read(entry.path().join("cmdline")).ok()?))
    });
    known.collect()
}

/// Whether a command line is that of a helper with our mark.
fn is_helper(command_line: &[u8], mark: &str) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let wanted = [HELPER_ARGUMENT.as_bytes(), MARK_ARGUMENT.as_bytes(), mark.as_bytes()];
    words.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_helpers_with_our_mark_are_ours() {
        let cases: [(&[u8], bool); 5] = [
            (b"/proc/self/exe\0instance-helper\0--mark\0abc\0", true),
            (b"/proc/self/exe\0instance-helper\0--mark\0abd\0", false),
            (b"tidegate\0up\0--mark\0abc\0", false),
            (b"grep\0instance-helper --mark abc\0", false),
            (b"", false),
        ];
        for (command_line, expected) in cases {
            assert_eq!(is_helper(command_line, "abc"), expected);
        }
    }
}
