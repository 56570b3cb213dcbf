//! The server's side of one helper process: started, spoken to, waited for.
//!
//! Invariant: dropping a link ends its helper, because the helper's control socket ends with it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::embedded::HelperProgram;
use super::helper::HELPER_ARGUMENT;
use super::orders::{Inbox, Order, Report, SandboxPlan, frame};
use super::surroundings::Sockets;

/// A helper that was told to end and has not by then is killed.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Names our helpers in the process table.
pub(crate) const MARK_ARGUMENT: &str = "--mark";

/// A helper whose namespaces exist.
#[derive(Debug)]
pub(crate) struct Link {
    child: Child,
    control: UnixStream,
    inbox: Inbox,
    /// A helper that was asked and has not answered by then never will.
    pub(crate) answers_within: Duration,
    /// The network namespace of the instance.
    pub(crate) namespace: Arc<OwnedFd>,
    /// The sockets in that network, until somebody answers there.
    pub(crate) sockets: Option<Sockets>,
}

impl Link {
    /// Starts a helper and waits until its namespaces exist.
    pub(crate) async fn open(program: &HelperProgram, mark: &str) -> io::Result<Link> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let child = Command::new(&program.program)
            .args(&program.arguments)
            .args([HELPER_ARGUMENT, MARK_ARGUMENT, mark])
            .current_dir("/")
            .env_clear()
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("its process could not be started: {error}"))
            })?;
        let mut link =
            Starting { child, control: UnixStream::from_std(ours)?, inbox: Inbox::default() };
        match timeout(program.answers_within, link.next()).await {
            Ok(Ok(Some(Report::Ready))) => {}
            Ok(Ok(Some(Report::Failed { reason, .. }))) => return Err(io::Error::other(reason)),
            Ok(Ok(_)) => return Err(io::Error::other("it ended at once")),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                // Killing a process that has just ended is no error worth telling.
                let _ = link.child.kill().await;
                return Err(silent());
            }
        }
        let process = link.child.id().ok_or_else(|| io::Error::other("the helper ended"))?;
        let namespace = File::open(format!("/proc/{process}/ns/net"))?;
        let Starting { child, control, mut inbox } = link;
        let sockets = Sockets::from_descriptors(inbox.take_descriptors());
        let answers_within = program.answers_within;
        let namespace = Arc::new(namespace.into());
        Ok(Link { child, control, inbox, answers_within, namespace, sockets })
    }

    /// Makes the helper the sandbox of an instance.
    pub(crate) async fn prepare(&mut self, plan: &SandboxPlan) -> io::Result<()> {
        self.send(&Order::Prepare(plan.clone())).await?;
        let answers_within = self.answers_within;
        let answer = timeout(answers_within, self.next()).await;
        match answer.map_err(|_| silent())?? {
            Some(Report::Prepared) => Ok(()),
            Some(Report::Failed { reason, .. }) => Err(io::Error::other(reason)),
            _ => Err(io::Error::other("it ended while preparing the instance")),
        }
    }

    /// Sends one order.
    pub(crate) async fn send(&self, order: &Order) -> io::Result<()> {
        let bytes = frame(order)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            self.control.writable().await?;
            match self.control.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next report, or none when the helper is gone. Cancelling loses nothing.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Report>> {
        next_report(&self.control, &mut self.inbox).await
    }

    /// The descriptors that came beside the last reports.
    pub(crate) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        self.inbox.take_descriptors()
    }

    /// Ends the helper, and with it whatever it still runs; waits until it is gone.
    pub(crate) async fn end(self) {
        let Link { mut child, control, .. } = self;
        drop(control);
        if timeout(END_WITHIN, child.wait()).await.is_err() {
            // Killing a process that has just ended is no error worth telling.
            let _ = child.kill().await;
        }
    }
}

/// What is said of a helper that does not answer.
pub(crate) fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not answer")
}

#[derive(Debug)]
struct Starting {
    child: Child,
    control: UnixStream,
    inbox: Inbox,
}

impl Starting {
    async fn next(&mut self) -> io::Result<Option<Report>> {
        next_report(&self.control, &mut self.inbox).await
    }
}

async fn next_report(control: &UnixStream, inbox: &mut Inbox) -> io::Result<Option<Report>> {
    loop {
        if let Some(report) = inbox.next()? {
            return Ok(Some(report));
        }
        control.readable().await?;
        match control.try_io(Interest::READABLE, || inbox.read(control.as_fd())) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
