//! Which host rule a request's authority belongs to.
//!
//! An exact host beats every wildcard, a longer wildcard beats a shorter one, and `*` takes the rest. The
//! port is part of the host, as Google has it; case is not.
//!
//! Invariant: every pattern in the table is in lower case and occurs once.

use super::prefix_table::PrefixTable;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// How long a host with its port may be, in bytes, before it is copied to the heap.
const HOST_BYTES_INLINE: usize = 256;

/// The host patterns of a URL map, each with a number.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostTable {
    exact: FxHashMap<Box<[u8]>, u32>,
    /// What follows the `*`, from the right.
    suffixes: PrefixTable,
    any: Option<u32>,
}

impl HostTable {
    /// Builds the table from patterns that [`check_pattern`] accepts.
    pub(crate) fn new<'p>(patterns: impl Iterator<Item = (&'p str, u32)>) -> HostTable {
        let mut table = HostTable::default();
        let mut suffixes = Vec::new();
        for (pattern, value) in patterns {
            let pattern = pattern.to_ascii_lowercase().into_bytes();
            match pattern.strip_prefix(b"*") {
                Some([]) => table.any = Some(value),
                Some(suffix) => suffixes.push((suffix.iter().rev().copied().collect(), value)),
                None => {
                    table.exact.insert(pattern.into(), value);
                }
            }
        }
        table.suffixes = PrefixTable::new(suffixes);
        table.exact.shrink_to_fit();
        table
    }

    /// The number of the pattern that the authority belongs to.
    pub(crate) fn find(&self, authority: &str) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.bytes() == 0 {
            return self.any;
        }
        let mut host: SmallVec<[u8; HOST_BYTES_INLINE]> =
            SmallVec::from_slice(authority.as_bytes());
        host.make_ascii_lowercase();
        if let Some(value) = self.exact.get(&host[..]) {
            return Some(*value);
        }
        host.reverse();
        self.suffixes.longest(&host).or(self.any)
    }

    /// The memory it takes, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let keys: usize = self.exact.keys().map(|key| key.len()).sum();
        keys + self.exact.capacity() * (size_of::<(Box<[u8]>, u32)>() + 1) + self.suffixes.bytes()
    }
}

/// Why a host pattern cannot be used, if it cannot.
pub(crate) fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    let rest = match pattern.strip_prefix('*') {
        Some("") => return Ok(()),
        Some(rest) if rest.starts_with(['.', '-']) => &rest[1..],
        Some(_) => return Err("A '*' must be followed by '.' or '-' or stand alone."),
        None => pattern,
    };
    if rest.contains('*') {
        return Err("A '*' must be the first character of a host.");
    }
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    let number =
        |port: &str| port.parse::<u16>().is_ok_and(|n| n > 0 && !port.starts_with(['0', '+']));
    if port.is_some_and(|port| !number(port)) {
        return Err("The port of a host must be a number from 1 to 65535.");
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.ends_with('-')
    };
    let starts_well =
        pattern.starts_with('*') || !host.split('.').any(|label| label.starts_with('-'));
    match host.len() <= 253 && host.split('.').all(label) && starts_well {
        true => Ok(()),
        false => Err("A host must be a valid hostname, with an optional port."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(patterns: &[&str], lines: &str) {
        for pattern in patterns {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
        let forward = HostTable::new(patterns.iter().copied().zip(0..));
        let mut backward: Vec<(&str, u32)> = patterns.iter().copied().zip(0..).collect();
        backward.reverse();
        let backward = HostTable::new(backward.into_iter());
        for line in lines.lines().filter(|line| !line.is_empty()) {
            let (host, expected) = line.split_once(" -> ").expect("HOST -> PATTERN");
            for table in [&forward, &backward] {
                let found = table.find(host).map_or("none", |at| patterns[at as usize]);
                assert_eq!(found, expected, "{host}");
            }
        }
    }

    #[test]
    fn exact_beats_wildcard_and_the_longer_wildcard_the_shorter() {
        check(
            &["*", "*.net", "*.example.net", "a.example.net", "*-x.example.net"],
            "
a.example.net -> a.example.net
A.EXAMPLE.Net -> a.example.net
b.example.net -> *.example.net
b-x.example.net -> *-x.example.net
example.net -> *.net
net -> *
example.org -> *
",
        );
    }

    #[test]
    fn the_port_is_part_of_the_host() {
        check(
            &["example.net", "example.net:8080", "*.example.net:443"],
            "
example.net -> example.net
example.net:80 -> none
example.net:8080 -> example.net:8080
a.example.net:443 -> *.example.net:443
a.example.net -> none
",
        );
    }

    #[test]
    fn a_lone_star_takes_every_authority() {
        check(&["*"], "x -> *\n10.1.2.3:8080 -> *\n[::1]:80 -> *\nx_y -> *");
    }

    #[test]
    fn patterns_that_cannot_be_hosts_are_refused() {
        for pattern in [
            "",
            "a*",
            "*a.example.net",
            "a.*.net",
            "*.*.net",
            "*:80",
            "a:0",
            "a:65536",
            "a:x",
            "a:",
            "a:+80",
            "a:080",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a_b",
            "http://a",
            "a/b",
            "[::1]",
            "é.net",
            "a b",
        ] {
            assert!(check_pattern(pattern).is_err(), "{pattern}");
        }
        assert!(check_pattern(&"a".repeat(64)).is_err());
        assert!(check_pattern(&"a.".repeat(127)).is_err());
        for pattern in ["*", "*.a", "*-a", "a", "1.2.3.4", "a.b:80", "A.B", "*.a:8443"] {
            assert_eq!(check_pattern(pattern), Ok(()), "{pattern}");
        }
    }
}
