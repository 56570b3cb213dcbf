//! The helper process of one instance: owns its namespaces, starts its containers, waits for them.
//!
//! The server re-executes its own program as the helper, with the control socket as standard
//! input. A process of its own is needed because `libcontainer` forks, which a program with many
//! threads must not, and because the helper's private mount and network namespaces make everything
//! the instance mounts or opens vanish with the helper. One thread, one loop.
//!
//! Invariant: when the control socket ends or the helper dies, every container dies: the kernel
//! kills each container's first process with its parent, and with it all of that container's
//! process namespace.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use seccompiler::BpfProgram;

use super::bundle::{self, ContainerPaths};
use super::complaints;
use super::orders::{self, ContainerPlan, ExitStatus, Inbox, Order, Report, SandboxPlan};
use super::program::Program;
use super::sandbox;
use super::seccomp;
use super::surroundings::Sockets;

/// The first argument that makes the program a helper.
pub const HELPER_ARGUMENT: &str = "instance-helper";

/// How the library says that the host refuses another process.
const NO_MORE_PROCESSES: &str = "failed to clone process";

/// Runs the helper; called by `main` when the first argument is [`HELPER_ARGUMENT`].
pub fn helper_main() -> ExitCode {
    // SAFETY: standard input is open (the server made it the control socket) and nothing else in
    // this process uses it.
    #[allow(unsafe_code)]
    let control = unsafe { OwnedFd::from_raw_fd(0) };
    complaints::listen();
    let mut helper = Helper {
        control,
        inbox: Inbox::default(),
        filters: Vec::new(),
        sandbox: None,
        running: Vec::new(),
    };
    let result = helper.make_ready().and_then(|()| helper.serve());
    helper.end();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::warn!(%error, "instance helper failed");
            let reason = error.to_string();
            // The server may be gone already; then there is nobody to tell.
            let container = String::new();
            let failed = Report::Failed { container, reason, is_host_fault: true };
            let _ = helper.report(&failed);
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Helper {
    control: OwnedFd,
    inbox: Inbox,
    /// Compiled before there is an instance that would have to wait for it.
    filters: Vec<BpfProgram>,
    sandbox: Option<Sandbox>,
    running: Vec<Running>,
}

/// What the containers of the instance share.
#[derive(Debug)]
struct Sandbox {
    plan: SandboxPlan,
    /// The control groups, for entering and removing them without their mounts.
    groups: Vec<sandbox::HeldGroup>,
}

/// Why a container was not started.
#[derive(Debug)]
enum NotStarted {
    /// What the host had to do for it failed: another attempt may go well.
    Host(io::Error),
    /// Its first process said so, or its files are not what was asked for.
    Container(String),
}

impl From<io::Error> for NotStarted {
    fn from(error: io::Error) -> NotStarted {
        NotStarted::Host(error)
    }
}

impl From<Errno> for NotStarted {
    fn from(error: Errno) -> NotStarted {
        NotStarted::Host(error.into())
    }
}

/// A container whose first process has not been waited for.
#[derive(Debug)]
struct Running {
    name: String,
    process: Pid,
    /// Readable when the process has ended.
    handle: OwnedFd,
}

impl Helper {
    /// Does whatever needs no instance.
    fn make_ready(&mut self) -> io::Result<()> {
        sandbox::enter_own_namespaces()?;
        self.filters = seccomp::filters().map_err(io::Error::other)?;
        let sockets = Sockets::make()?;
        orders::send(self.control.as_fd(), &Report::Ready, &sockets.descriptors())
    }

    fn report(&self, report: &Report) -> io::Result<()> {
        orders::send(self.control.as_fd(), report, &[])
    }

    /// Takes orders and reports ends until the server is gone.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let mut watched = vec![PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            watched.extend(
                self.running.iter().map(|each| PollFd::new(each.handle.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = watched.iter().map(|each| each.any().unwrap_or(false)).collect();
            let ended: Vec<usize> = (1..ready.len()).filter(|index| ready[*index]).collect();
            for index in ended.into_iter().rev() {
                let container = self.running.remove(index - 1);
                let status = wait(container.process);
                self.report(&Report::Exited { container: container.name, status })?;
            }
            if ready[0] {
                if !self.inbox.read(self.control.as_fd())? {
                    return Ok(());
                }
                while let Some(order) = self.inbox.next()? {
                    self.obey(order)?;
                }
            }
        }
    }

    fn obey(&mut self, order: Order) -> io::Result<()> {
        match order {
            Order::Prepare(plan) => {
                let groups = sandbox::hold_groups(&plan)?;
                sandbox::prepare(&plan)?;
                self.sandbox = Some(Sandbox { plan, groups });
                self.report(&Report::Prepared)
            }
            Order::Start(plan) => match self.start(&plan) {
                Ok((running, outputs)) => {
                    let report = Report::Started {
                        container: running.name.clone(),
                        process: running.process.as_raw(),
                    };
                    self.running.push(running);
                    let outputs: Vec<BorrowedFd<'_>> = outputs.iter().map(AsFd::as_fd).collect();
                    orders::send(self.control.as_fd(), &report, &outputs)
                }
                Err(failure) => {
                    let (reason, is_host_fault) = match failure {
                        NotStarted::Host(error) => (error.to_string(), true),
                        NotStarted::Container(reason) => (reason, false),
                    };
                    self.report(&Report::Failed { container: plan.name, reason, is_host_fault })
                }
            },
            Order::Signal(number) => {
                let signal = Signal::try_from(number)?;
                for container in &self.running {
                    deliver(container.process, signal);
                }
                Ok(())
            }
        }
    }

    /// Makes one container and executes its program; answers with the read ends of its outputs.
    fn start(&self, plan: &ContainerPlan) -> Result<(Running, [OwnedFd; 2]), NotStarted> {
        let sandbox = self.sandbox.as_ref().ok_or_else(|| io::Error::other("not prepared"))?;
        let directory = sandbox.plan.directory.join(&plan.name);
        sandbox::mount_root(&directory, plan)?;
        let root = directory.join("root");
        let identity = sandbox::prepare_files(&root, plan)
            .map_err(|error| NotStarted::Container(error.to_string()))?;
        let group = sandbox.plan.groups.iter().find(|group| group.container == plan.name);
        let paths = ContainerPaths {
            root,
            volumes: sandbox.plan.directory.join("volumes"),
            groups: group
                .map(|group| sandbox::bound_groups(&sandbox.plan, group))
                .unwrap_or_default(),
        };
        let spec = bundle::oci_spec(plan, &paths, &identity).map_err(io::Error::other)?;
        spec.save(directory.join("config.json")).map_err(io::Error::other)?;

        let (output, output_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (errors, errors_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (mut executed, executed_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let program = Program::new(
            executed_write.as_raw_fd(),
            sandbox::group_entrances(&sandbox.groups, &plan.name)?,
            self.filters.clone(),
        );
        let nothing = fs::File::open("/dev/null")?;
        let state = directory.join("state");
        fs::create_dir(&state)?;
        complaints::write_to(executed_write.as_raw_fd());
        let process = build(
            &plan.name,
            &state,
            &directory,
            program,
            [nothing.into(), output_write, errors_write],
        );
        complaints::silence();
        drop(executed_write);
        let process = match process {
            Ok(process) => process,
            Err(error) => return Err(first_cause(error, &mut executed)),
        };
        let handle = process_handle(process)?;
        let running = Running { name: plan.name.clone(), process, handle };
        match first_line(&mut executed)? {
            None => Ok((running, [output, errors])),
            Some(reason) => {
                deliver(process, Signal::SIGKILL);
                wait(process);
                Err(NotStarted::Container(reason))
            }
        }
    }

    /// Kills what still runs, waits for it, and removes the control groups.
    fn end(&mut self) {
        for container in &self.running {
            deliver(container.process, Signal::SIGKILL);
        }
        for container in self.running.drain(..) {
            wait(container.process);
        }
        if let Some(sandbox) = self.sandbox.take() {
            sandbox::remove_groups(&sandbox.groups);
        }
    }
}

fn build(
    name: &str,
    state: &Path,
    directory: &Path,
    program: Program,
    [input, output, errors]: [OwnedFd; 3],
) -> Result<Pid, libcontainer::error::LibcontainerError> {
    let mut container = ContainerBuilder::new(name.to_owned(), SyscallType::default())
        .with_executor(program)
        .with_root_path(state)?
        .with_stdin(input)
        .with_stdout(output)
        .with_stderr(errors)
        .as_init(directory)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    container.start()?;
    let process = container.pid().map_or(0, |pid| pid.as_raw());
    Ok(Pid::from_raw(process))
}

/// What went wrong inside the container if it said so, else what the library said.
fn first_cause(
    error: libcontainer::error::LibcontainerError,
    executed: &mut OwnedFd,
) -> NotStarted {
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    match first_line(executed) {
        Ok(Some(reason)) if reason.contains(NO_MORE_PROCESSES) => NotStarted::Host(
            io::Error::other(format!("the host refuses another process: {reason}")),
        ),
        Ok(Some(reason)) => NotStarted::Container(reason),
        _ => NotStarted::Host(io::Error::other(text)),
    }
}

/// The first line that came through the pipe before it was closed.
fn first_line(pipe: &mut OwnedFd) -> io::Result<Option<String>> {
    let mut text = String::new();
    fs::File::from(pipe.try_clone()?).read_to_string(&mut text)?;
    Ok(text.lines().next().map(str::to_owned))
}

fn process_handle(process: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
    #[allow(unsafe_code)]
    let handle = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, process.as_raw(), 0) };
    let handle = i32::try_from(handle).map_err(io::Error::other)?;
    if handle < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    #[allow(unsafe_code)]
    Ok(unsafe { OwnedFd::from_raw_fd(handle) })
}

/// The first process of a process namespace ignores every signal it has no handler for. Cloud Run
/// ends such a container at once, and so does this.
fn deliver(process: Pid, signal: Signal) {
    let deaf = signal == Signal::SIGTERM && !handles(process, signal);
    // A process that has ended but was not waited for takes signals without a complaint; there is
    // no other process it could be mistaken for.
    let _ = kill(process, if deaf { Signal::SIGKILL } else { signal });
}

/// Whether the process has a handler for the signal.
pub(crate) fn handles(process: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = caught.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal as i32 - 1)) != 0
}

fn wait(process: Pid) -> ExitStatus {
    loop {
        match waitpid(process, None) {
            Ok(WaitStatus::Exited(_, code)) => return ExitStatus::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return ExitStatus::Signal(signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            // Not a child of ours any more: it ended and was waited for.
            Err(_) => return ExitStatus::Signal(Signal::SIGKILL as i32),
        }
    }
}
