//! The process of a running instance: recorded so that another server finds it, watched, and ended.
//!
//! The process is the first of its own process namespace, so when it ends the kernel ends all others of
//! the instance. Its record is written before it does anything, and holds its start time: a process id
//! that was given to somebody else is not mistaken for it.

use super::folder::{Folder, put};
use crate::error::VpcError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long an instance has to end by itself before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to end what was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What is written down about a running instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The process id, as the host sees it.
    pub(crate) pid: u32,
    /// When the process started, in clock ticks since the host's boot.
    pub(crate) started: u64,
    /// The boot of the instance that it is.
    pub(crate) boot: u64,
}

impl Record {
    /// The record of a process that exists now.
    pub(crate) fn of(pid: u32, boot: u64) -> Result<Record, VpcError> {
        let started = start_time(pid).map_err(failed("find", pid))?;
        Ok(Record { pid, started, boot })
    }

    /// Writes the record down.
    pub(crate) fn write(&self, folder: &Folder) -> Result<(), VpcError> {
        let text = format!("{} {} {}\n", self.pid, self.started, self.boot);
        put(&folder.process(), text, 0o644)
    }

    fn read(folder: &Folder) -> Option<Record> {
        let text = fs::read_to_string(folder.process()).ok()?;
        let mut words = text.split_ascii_whitespace();
        let (pid, started) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Record { pid, started, boot: words.next()?.parse().ok()? })
    }
}

/// When a process started: the 22nd field of its `stat`, counted after the name, which may hold spaces.
fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19));
    field.and_then(|field| field.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A running instance's process.
#[derive(Debug)]
pub(crate) struct Process {
    record: Record,
    descriptor: OwnedFd,
}

impl Process {
    /// The process the folder's record names, if it still runs.
    pub(crate) fn recorded(folder: &Folder) -> Option<Process> {
        let record = Record::read(folder)?;
        let pid = Pid::from_raw(i32::try_from(record.pid).ok()?)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after the descriptor was opened: from here on it cannot become another process.
        let is_same = start_time(record.pid).is_ok_and(|started| started == record.started);
        let process = Process { record, descriptor };
        (is_same && !process.has_ended()).then_some(process)
    }

    /// The boot of the instance it is.
    pub(crate) fn boot(&self) -> u64 {
        self.record.boot
    }

    /// Becomes readable when the process ends.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Whether it ends within a time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut watched = [PollFd::new(self.descriptor.as_fd(), PollFlags::POLLIN)];
            match poll(&mut watched, timeout) {
                Ok(ready) => return ready > 0,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Whether something listens on the port inside the instance.
    pub(crate) fn listens_on(&self, port: u16) -> bool {
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", self.record.pid));
        let (local, listening) = (format!(":{port:04X}"), "0A");
        table.unwrap_or_default().lines().any(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            words.next().is_some_and(|address| address.ends_with(&local))
                && words.nth(1) == Some(listening)
        })
    }

    /// Asks it to end, and ends it when it does not.
    pub(crate) fn stop(&self, folder: &Folder) -> Result<(), VpcError> {
        for (signal, limit) in [(Signal::TERM, STOP_GRACE), (Signal::KILL, KILL_DEADLINE)] {
            match pidfd_send_signal(&self.descriptor, signal) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(failed("stop", self.record.pid)(error.into())),
            }
            if self.ends_within(limit) {
                self.forget(folder);
                return Ok(());
            }
        }
        Err(failed("end", self.record.pid)(io::ErrorKind::TimedOut.into()))
    }

    /// Removes the record of a process that has ended.
    pub(crate) fn forget(&self, folder: &Folder) {
        let pid = i32::try_from(self.record.pid).ok().and_then(Pid::from_raw);
        // An orphan is reaped by the first process of the host, which may be this one.
        let _ = waitpid(pid, WaitOptions::NOHANG);
        let _ = fs::remove_file(folder.process());
    }
}

fn failed(what: &'static str, pid: u32) -> impl FnOnce(io::Error) -> VpcError {
    move |source| VpcError::Process { what, pid, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_one_process_and_no_later_one_of_the_same_id() {
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::at(temporary.path().to_owned());
        let record = Record::of(std::process::id(), 3).expect("this process exists");
        record.write(&folder).expect("written");
        assert_eq!(Process::recorded(&folder).map(|process| process.boot()), Some(3));
        Record { started: record.started + 1, ..record }.write(&folder).expect("written");
        assert!(Process::recorded(&folder).is_none());
        fs::write(folder.process(), "not a record").expect("written");
        assert!(Process::recorded(&folder).is_none());
    }
}
