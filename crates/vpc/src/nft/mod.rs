//! The firewall of a network as nftables text, and its atomic replacement.
//!
//! [`render`] is pure. Per instance there are two chains: what leaves it and what arrives at it. Packets
//! between instances pass both, packets to a load balancer's address only the sender's, packets from this
//! namespace (the SSH tunnel, proxies) only the receiver's. A session that exists goes on, whatever the
//! rules have become since, as in any stateful firewall.
//!
//! Invariant: without a rule that says otherwise nothing reaches an instance, and a link that no
//! instance of the plan owns passes nothing at all.

use crate::error::VpcError;
use crate::network::METADATA_ADDRESS;
use ipnet::Ipv4Net;
use model::firewall::{Protocol, Traffic};
use plan::network::{Action, InstancePlan, NetworkPlan, Rule};
use std::fmt::Write;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// The program.
pub(crate) const PROGRAM: &str = "nft";
/// The Debian package it is in.
pub(crate) const PACKAGE: &str = "nftables";
/// The name of the one table of a network's namespace.
const TABLE: &str = "inet tidegate";

/// The name of an instance's link in its network's namespace: 14 characters of the 15 there may be.
pub(crate) fn link_name(id: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rest = id;
    let mut digits = Vec::new();
    loop {
        // The remainder is below 36, so the cast keeps it.
        digits.push(DIGITS[usize::try_from(rest % 36).unwrap_or(0)]);
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    digits.push(b'i');
    digits.reverse();
    digits.into_iter().map(char::from).collect()
}

/// The ruleset of a network, which replaces whatever was there when `nft -f` takes it.
pub fn render(network: &NetworkPlan) -> String {
    let mut text = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    let links: Vec<String> = network.instances.values().map(|i| link_name(i.id)).collect();
    let map = |verb: &str, to: &str| -> String {
        let entries = links.iter().map(|link| format!("\"{link}\" : {verb} {to}_{link}"));
        entries.collect::<Vec<_>>().join(", ")
    };
    let hook = |name: &str, rules: &[String]| {
        let mut chain = format!("\tchain on_{name} {{\n");
        let _ = writeln!(chain, "\t\ttype filter hook {name} priority filter; policy drop;");
        chain.push_str("\t\tct state established,related accept\n\t\tct state invalid drop\n");
        for rule in rules {
            let _ = writeln!(chain, "\t\t{rule}");
        }
        chain.push_str("\t}\n");
        chain
    };
    for instance in network.instances.values() {
        text.push_str(&egress_chain(instance));
        text.push_str(&ingress_chain(instance));
    }
    let (mut forward, mut input, mut output) = (Vec::new(), Vec::new(), Vec::new());
    input.push("iifname \"lo\" accept".to_owned());
    output.push("oifname \"lo\" accept".to_owned());
    if !links.is_empty() {
        let egress = format!("iifname vmap {{ {} }}", map("jump", "egress"));
        let ingress = format!("oifname vmap {{ {} }}", map("goto", "ingress"));
        let known = format!(
            "iifname {{ {} }} accept",
            links.iter().map(|link| format!("\"{link}\"")).collect::<Vec<_>>().join(", ")
        );
        forward.extend([egress.clone(), ingress.clone()]);
        input.extend([egress, known]);
        output.push(ingress);
    }
    text.push_str(&hook("forward", &forward));
    text.push_str(&hook("input", &input));
    text.push_str(&hook("output", &output));
    text.push_str("}\n");
    text
}

/// Returns to its caller what may leave.
fn egress_chain(instance: &InstancePlan) -> String {
    let mut chain = format!("\tchain egress_{} {{ # {}\n", link_name(instance.id), instance.name);
    if !instance.can_ip_forward {
        let _ = writeln!(chain, "\t\tip saddr != {} drop", instance.address);
    }
    // The metadata server, which answers names too, tells askers apart by their addresses, and no rule keeps
    // it from them.
    let asks = format!("ip saddr {} ip daddr {METADATA_ADDRESS}", instance.address);
    let _ = writeln!(chain, "\t\t{asks} tcp dport 80 return");
    let _ = writeln!(chain, "\t\t{asks} udp dport 53 return");
    let _ = writeln!(chain, "\t\tip daddr {METADATA_ADDRESS} drop");
    for rule in &instance.firewall.egress {
        lines(&mut chain, rule, "return");
    }
    chain.push_str("\t\treturn\n\t}\n");
    chain
}

/// Accepts what may arrive.
fn ingress_chain(instance: &InstancePlan) -> String {
    let mut chain = format!("\tchain ingress_{} {{ # {}\n", link_name(instance.id), instance.name);
    for rule in &instance.firewall.ingress {
        lines(&mut chain, rule, "accept");
    }
    chain.push_str("\t\tdrop\n\t}\n");
    chain
}

/// One line for each entry of a rule's traffic.
fn lines(chain: &mut String, rule: &Rule, allow: &str) {
    let verdict = match rule.action {
        Action::Allow => allow,
        Action::Deny => "drop",
    };
    for traffic in &rule.traffic {
        let mut words = vec!["meta nfproto ipv4".to_owned()];
        words.extend(addresses("saddr", &rule.sources));
        words.extend(addresses("daddr", &rule.destinations));
        words.extend(protocol(traffic));
        let name = rule.name.name.as_str();
        let _ = writeln!(chain, "\t\t{} {verdict} comment \"{name}\"", words.join(" "));
    }
}

/// The match on a list of ranges; none when they are all addresses there are.
fn addresses(field: &str, ranges: &[Ipv4Net]) -> Option<String> {
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let text = |range: &Ipv4Net| match range.prefix_len() {
        32 => range.addr().to_string(),
        _ => range.to_string(),
    };
    let ranges: Vec<String> = ranges.iter().map(text).collect();
    Some(format!("ip {field} {{ {} }}", ranges.join(", ")))
}

/// The match on protocol and ports.
fn protocol(traffic: &Traffic) -> Option<String> {
    let Protocol::Number(number) = traffic.protocol else { return None };
    if traffic.ports.is_empty() {
        return Some(format!("meta l4proto {number}"));
    }
    let text = |range: &std::ops::RangeInclusive<u16>| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{}-{}", range.start(), range.end()),
    };
    let ports: Vec<String> = traffic.ports.iter().map(text).collect();
    Some(format!("meta l4proto {number} th dport {{ {} }}", ports.join(", ")))
}

/// Replaces the ruleset of the namespace of the calling thread.
pub(crate) fn replace(ruleset: &str) -> Result<(), VpcError> {
    let missing = |source| VpcError::Missing { program: PROGRAM, package: PACKAGE, source };
    let mut nft = Command::new(PROGRAM)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut input) = nft.stdin.take() {
        // When nft ends early the pipe breaks; what it wrote says why.
        let _ = input.write_all(ruleset.as_bytes());
    }
    let output = nft.wait_with_output().map_err(missing)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let says = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(VpcError::Program { program: PROGRAM, says })
        }
    }
}

/// Removes the ruleset of the namespace of the calling thread.
pub(crate) fn remove() -> Result<(), VpcError> {
    replace(&format!("table {TABLE}\ndelete table {TABLE}\n"))
}

#[cfg(test)]
mod tests;
