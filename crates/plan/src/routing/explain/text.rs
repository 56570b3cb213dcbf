//! The explanation as a person reads it: one fact a line, in the order in which things happen.

use super::{Considered, Explanation};
use std::fmt;

/// The width of the left column.
const LABEL: usize = 16;

impl fmt::Display for Explanation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}", self.request)?;
        line(out, "URL map", short(&self.url_map))?;
        considered(out, "host", &self.hosts)?;
        if let Some(matcher) = &self.path_matcher {
            line(out, "path matcher", matcher)?;
        }
        considered(out, "rule", &self.rules)?;
        if self.more > 0 {
            line(out, "", &format!("and {} more", self.more))?;
        }
        line(out, "matched", &self.matched_rule)?;
        for share in &self.shares {
            let chosen = if share.chosen { "" } else { "not this time: " };
            let weight =
                share.weight.map(|weight| format!(" (weight {weight}, {:.1}%)", share.percent));
            let text =
                format!("{chosen}{}{}", short(&share.backend_service), weight.unwrap_or_default());
            line(out, "backend service", &text)?;
        }
        for change in &self.changes {
            line(out, "change", change)?;
        }
        if let Some(group) = &self.endpoint_group {
            line(out, "endpoint group", short(&group.name))?;
            if let (Some(mask), Some(url)) = (&group.url_mask, &group.url) {
                let fits = if group.service.is_some() { "fits" } else { "does not fit" };
                line(out, "URL mask", &format!("{mask} {fits} {url}"))?;
            }
            let named = group.service.iter().map(|service| format!("service {service}"));
            let named: Vec<String> =
                named.chain(group.tag.iter().map(|tag| format!("tag {tag}"))).collect();
            if !named.is_empty() {
                line(out, "names", &named.join(", "))?;
            }
        }
        for policy in &self.policies {
            line(out, "policy", policy)?;
        }
        if let Some(revision) = &self.answer.revision {
            line(out, "revision", revision)?;
        }
        if let Some(access) = &self.answer.access {
            line(out, "access", access)?;
        }
        line(out, "so", &self.answer.summary)
    }
}

fn considered(out: &mut fmt::Formatter<'_>, label: &str, all: &[Considered]) -> fmt::Result {
    for Considered { rule, matched, why } in all {
        let sign = if *matched { "+" } else { "-" };
        line(out, label, &format!("{sign} {rule}: {why}"))?;
    }
    Ok(())
}

fn line(out: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    writeln!(out, "  {label:LABEL$}{text}")
}

/// A resource by the last part of its name, as people call it.
fn short(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
