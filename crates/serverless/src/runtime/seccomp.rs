//! The system calls a container may make.
//!
//! Two filters, built with `seccompiler` and installed one above the other just before the
//! container's program is executed. The first knows which calls exist and answers any other with
//! ENOSYS, so that programs fall back as they would on an older kernel, and the x32 interface is
//! closed. The second answers EPERM to those that reach for the host: mounts, namespaces, modules,
//! keys, clocks, tracing of the kernel. `clone3` hides its flags behind a pointer no filter can
//! read, so it does not exist here and C libraries fall back to `clone`.
//!
//! Invariant: whatever is not allowed by both is refused, and only a call of another architecture
//! kills the process that makes it.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

/// The newest call of the tables this was written against (`lsm_list_modules`).
const SYSCALL_NUMBER_MAX: i64 = 461;

/// Calls that pretend not to exist.
const ABSENT: &[i64] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

/// Calls that only make sense for somebody who runs the host.
const REFUSED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[i64] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[i64] = &[];

/// New namespaces are refused to `clone` as they are to `unshare`.
const NAMESPACE_FLAGS: &[i32] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// The filters, compiled; installed in this order.
pub(crate) fn filters() -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(vec![existing_calls(), host_calls(architecture)?])
}

/// A dozen instructions by hand: written as a list of calls the filter would have two thousand, and
/// the kernel tries each call through it once when a container starts.
fn existing_calls() -> BpfProgram {
    let number = |call: &i64| u32::try_from(*call).unwrap_or(u32::MAX);
    let load = instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0);
    let answer = |action: u32| instruction(libc::BPF_RET | libc::BPF_K, 0, action);
    let mut program = vec![load];
    // Each test jumps over the rest to the last instruction when it holds.
    let mut left = u8::try_from(ABSENT.len()).unwrap_or(u8::MAX) + 1;
    let beyond = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    program.push(instruction(beyond, left, number(&SYSCALL_NUMBER_MAX)));
    for call in ABSENT {
        left -= 1;
        program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, left, number(call)));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program.push(answer(libc::SECCOMP_RET_ERRNO | errno(libc::ENOSYS)));
    program
}

/// One instruction; a test that holds jumps over `over` instructions.
fn instruction(code: u32, over: u8, value: u32) -> sock_filter {
    // Codes are made of the lower sixteen bits by definition.
    let code = u16::try_from(code).unwrap_or(u16::MAX);
    sock_filter { code, jt: over, jf: 0, k: value }
}

fn host_calls(architecture: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        REFUSED.iter().chain(REFUSED_HERE).map(|number| (*number, Vec::new())).collect();
    let mut clone = Vec::new();
    for flag in NAMESPACE_FLAGS {
        let bits = u64::from(flag.unsigned_abs());
        let set =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(bits), bits)?;
        clone.push(SeccompRule::new(vec![set])?);
    }
    rules.insert(libc::SYS_clone, clone);
    SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno(libc::EPERM)),
        architecture,
    )?
    .try_into()
}

fn errno(number: i32) -> u32 {
    number.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_exists_passes_and_one_that_does_not_is_absent() {
        let program = existing_calls();
        let answer = |number: u32| {
            let mut at = 1;
            loop {
                let step = &program[at];
                let code = u32::from(step.code);
                if code == libc::BPF_RET | libc::BPF_K {
                    return step.k == libc::SECCOMP_RET_ALLOW;
                }
                let holds = match code & 0xf0 {
                    libc::BPF_JGT => number > step.k,
                    _ => number == step.k,
                };
                at += 1 + usize::from(if holds { step.jt } else { step.jf });
            }
        };
        let call = |number: i64| u32::try_from(number).unwrap();
        for allowed in [0, call(libc::SYS_openat), call(SYSCALL_NUMBER_MAX)] {
            assert!(answer(allowed), "{allowed}");
        }
        let x32 = 0x4000_0000;
        for absent in
            [call(ABSENT[0]), call(ABSENT[3]), call(SYSCALL_NUMBER_MAX) + 1, x32, u32::MAX]
        {
            assert!(!answer(absent), "{absent}");
        }
    }

    #[test]
    fn both_filters_compile_within_the_kernels_bound() {
        for program in filters().expect("the filters compile") {
            assert!(program.len() <= 4096, "{} instructions", program.len());
        }
    }
}
