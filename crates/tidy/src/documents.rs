//! Documents: links between them lead somewhere, and decisions are numbered.

use crate::tree::File;
use std::collections::{BTreeMap, BTreeSet};

/// Relative links in Markdown whose target does not exist.
pub fn links(files: &[File]) -> Vec<String> {
    let paths: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.path.ends_with(".md")) {
        for link in targets(&file.text) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let resolved = resolve(&file.path, target);
            let is_folder = paths.iter().any(|path| path.starts_with(&format!("{resolved}/")));
            if !paths.contains(resolved.as_str()) && !is_folder {
                complaints.push(format!("{}: `{link}` leads nowhere", file.path));
            }
        }
    }
    complaints
}

/// The targets of `[text](target)`.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next())
}

fn resolve(from: &str, target: &str) -> String {
    let mut segments: Vec<&str> = from.split('/').collect();
    segments.pop();
    for segment in target.trim_end_matches('/').split('/') {
        match segment {
            "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    segments.join("/")
}

/// Decisions whose number is taken or whose title does not repeat it.
pub fn decisions(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut by_number: BTreeMap<&str, &str> = BTreeMap::new();
    for file in files {
        let Some(name) = file.path.strip_prefix("docs/decisions/") else { continue };
        let (number, _) = name.split_once('-').unwrap_or((name, ""));
        if number.len() != 4 || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            complaints.push(format!("{}: not named NNNN-title.md", file.path));
        }
        if let Some(other) = by_number.insert(number, name) {
            complaints.push(format!("{}: its number is `{other}`'s", file.path));
        }
        if !file.text.starts_with(&format!("# {number} ")) {
            complaints.push(format!("{}: does not open with `# {number} `", file.path));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_link_is_followed_from_its_own_folder() {
        let files = [
            file("docs/guide.md", "[a](../README.md) [b](parity.md#x) [c](https://example.com)"),
            file("docs/parity.md", "[gone](gone.md)"),
            file("README.md", "[docs](docs/)"),
        ];
        assert_eq!(links(&files), ["docs/parity.md: `gone.md` leads nowhere"]);
    }

    #[test]
    fn two_decisions_do_not_share_a_number() {
        let files = [
            file("docs/decisions/0001-one.md", "# 0001 One\n"),
            file("docs/decisions/0001-two.md", "# Two\n"),
        ];
        assert_eq!(
            decisions(&files),
            [
                "docs/decisions/0001-two.md: its number is `0001-one.md`'s",
                "docs/decisions/0001-two.md: does not open with `# 0001 `",
            ],
        );
    }
}
