//! The last moments before a container's own program takes over its first process.
//!
//! Runs inside the container, after its namespaces, files, user and capabilities are set.
//!
//! Invariant: from the first instruction of the user's program on, the process is limited by its
//! control groups, filtered by seccomp, and dies with the helper that started it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use seccompiler::BpfProgram;

use super::complaints;

/// Executes the user's program as libcontainer's executor.
#[derive(Clone)]
pub(crate) struct Program {
    /// Closed by the kernel when the program is executed; carries the reason when it is not.
    executed: RawFd,
    /// `cgroup.procs` of every control group, open for writing.
    groups: Rc<Vec<OwnedFd>>,
    filters: Rc<Vec<BpfProgram>>,
}

impl Program {
    pub(crate) fn new(executed: RawFd, groups: Vec<OwnedFd>, filters: Vec<BpfProgram>) -> Program {
        Program { executed, groups: Rc::new(groups), filters: Rc::new(filters) }
    }

    /// Tells the helper why the program was not executed.
    fn fail(&self, reason: &str) -> ExecutorError {
        // SAFETY: the descriptor was open in the helper that forked this process, and is closed
        // only by executing a program.
        #[allow(unsafe_code)]
        let executed = unsafe { BorrowedFd::borrow_raw(self.executed) };
        if let Ok(pipe) = executed.try_clone_to_owned() {
            // The helper reads the reason; when it is gone there is nobody to tell.
            let _ = File::from(pipe).write_all(format!("{reason}\n").as_bytes());
        }
        ExecutorError::Other(reason.to_owned())
    }

    /// Whether the helper still waits at the other end of the pipe.
    fn helper_is_alive(&self) -> bool {
        // SAFETY: as in `fail`.
        #[allow(unsafe_code)]
        let executed = unsafe { BorrowedFd::borrow_raw(self.executed) };
        let mut watched = [PollFd::new(executed, PollFlags::empty())];
        match poll(&mut watched, PollTimeout::ZERO) {
            Ok(0) => true,
            Ok(_) => {
                let seen = watched[0].revents().unwrap_or(PollFlags::empty());
                !seen.contains(PollFlags::POLLERR)
            }
            Err(_) => false,
        }
    }
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        complaints::silence();
        for group in self.groups.iter() {
            if let Err(error) = nix::unistd::write(group, b"0") {
                return Err(self.fail(&format!("cannot enter its control group: {error}")));
            }
        }
        // Setting the user cleared this, so it comes after; the check closes the gap in which the
        // helper may have died already.
        if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
            return Err(self.fail(&format!("cannot be bound to its helper: {error}")));
        }
        if !self.helper_is_alive() {
            return Err(ExecutorError::Other("the helper is gone".to_owned()));
        }
        for filter in self.filters.iter() {
            if let Err(error) = seccompiler::apply_filter(filter) {
                return Err(self.fail(&format!("its system calls cannot be filtered: {error}")));
            }
        }
        DefaultExecutor {}.exec(spec).map_err(|error| self.fail(&plain(&error)))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // It complains before it tells; what it tells is the better sentence.
        complaints::silence();
        DefaultExecutor {}.validate(spec).inspect_err(|error| {
            let _ = self.fail(&error.to_string());
        })
    }
}

/// The cause of a failed execution, without the wrapping.
fn plain(error: &ExecutorError) -> String {
    match error {
        ExecutorError::Execution(cause) => cause.to_string(),
        other => other.to_string(),
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Program").field("executed", &self.executed).finish()
    }
}
