//! How much memory this process holds. A test that asks has a process of its own under nextest; where tests
//! share one, its bounds have slack for the others.

/// Resident bytes.
pub(crate) fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kibibytes: usize = line.trim().trim_end_matches(" kB").trim().parse().unwrap();
    kibibytes << 10
}
