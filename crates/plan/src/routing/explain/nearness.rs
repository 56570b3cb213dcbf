//! How near a miss was: the rule a person most likely meant comes first.

/// How much of a host pattern agrees with an authority, from the right.
pub(super) fn of_host(pattern: &str, authority: &str) -> usize {
    let wildcard = pattern.starts_with('*');
    let pattern = pattern.trim_start_matches('*').to_ascii_lowercase();
    let same = pattern.bytes().rev().zip(authority.bytes().rev()).take_while(|(a, b)| a == b);
    // The port is the usual stumbling block, so a host that differs by it alone is nearest.
    let (known, host) = (without_port(&pattern), without_port(authority));
    let fits_but_for_the_port = if wildcard { host.ends_with(known) } else { host == known };
    same.count() + if fits_but_for_the_port { authority.len() } else { 0 }
}

/// Why a host pattern did not match.
pub(super) fn host_miss(pattern: &str, authority: &str) -> &'static str {
    let lower = pattern.to_ascii_lowercase();
    if without_port(&lower) == without_port(authority) {
        return "differs by its port, which counts";
    }
    match lower.strip_prefix('*') {
        Some(suffix) if without_port(authority).ends_with(without_port(suffix)) => {
            "fits but for the port, which counts"
        }
        Some(suffix) if format!(".{}", without_port(authority)).ends_with(suffix) => {
            "does not take the bare domain itself"
        }
        Some(_) => "ends differently",
        None => "is another host",
    }
}

fn without_port(authority: &str) -> &str {
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

/// How much of a path pattern agrees with a path, from the left.
pub(super) fn of_path(pattern: &str, path: &str) -> usize {
    let pattern = pattern.strip_suffix('*').unwrap_or(pattern);
    let folded = pattern.bytes().zip(path.bytes());
    folded.take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count()
}

/// Why a path pattern did not match.
pub(super) fn path_miss(pattern: &str, path: &str) -> String {
    let prefix = pattern.strip_suffix('*');
    if case_only(prefix.unwrap_or(pattern), path) {
        return "differs only by the case of letters, which counts".to_string();
    }
    match prefix {
        Some(prefix) if path == prefix.trim_end_matches('/') => {
            format!("takes what is below {prefix} and not {path} itself")
        }
        Some(prefix) => format!("the path does not begin with {prefix}"),
        None if path.trim_end_matches('/') == pattern.trim_end_matches('/') => {
            "differs by the slash at the end".to_string()
        }
        None => "is another path".to_string(),
    }
}

/// Whether only the case of letters keeps a path from beginning with a text.
pub(super) fn case_only(prefix: &str, path: &str) -> bool {
    let start = path.as_bytes().get(..prefix.len());
    !path.starts_with(prefix)
        && start.is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}
