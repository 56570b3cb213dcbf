//! Kubernetes' label selectors, as `gcloud run revisions list --service` sends them.
//!
//! Pure. Invariant: a selector that cannot be read is refused, never taken for one that fits all.

use serde_json::Value;

/// Conditions on labels, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In { label: String, values: Vec<String> },
    NotIn { label: String, values: Vec<String> },
    Present(String),
    Absent(String),
}

impl Selector {
    /// Reads `a = b, c in (d, e), !f`; spaces do not matter.
    pub(crate) fn parse(text: &str) -> Option<Selector> {
        let terms = split_outside_parentheses(text).into_iter().map(term);
        Some(Selector { terms: terms.collect::<Option<_>>()? })
    }

    /// Whether labels satisfy every condition.
    pub(crate) fn selects(&self, labels: Option<&Value>) -> bool {
        let value = |label: &str| labels.and_then(|labels| labels.get(label)?.as_str());
        self.terms.iter().all(|term| match term {
            Term::In { label, values } => {
                value(label).is_some_and(|value| values.iter().any(|v| v == value))
            }
            Term::NotIn { label, values } => {
                value(label).is_none_or(|value| values.iter().all(|v| v != value))
            }
            Term::Present(label) => value(label).is_some(),
            Term::Absent(label) => value(label).is_none(),
        })
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let parts = text.split(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn term(text: &str) -> Option<Term> {
    let label = |text: &str| {
        let text = text.trim();
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
        (!text.is_empty() && text.bytes().all(is_plain)).then(|| text.to_owned())
    };
    let one = |text: &str| vec![text.trim().to_owned()];
    if let Some((name, value)) = text.split_once("!=") {
        return Some(Term::NotIn { label: label(name)?, values: one(value) });
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Some(Term::In { label: label(name)?, values: one(value) });
    }
    if let Some(open) = text.find('(') {
        let values = text[open + 1..].strip_suffix(')')?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let words: Vec<&str> = text[..open].split_whitespace().collect();
        return match words[..] {
            [name, "in"] => Some(Term::In { label: label(name)?, values }),
            [name, "notin"] => Some(Term::NotIn { label: label(name)?, values }),
            _ => None,
        };
    }
    match text.strip_prefix('!') {
        Some(name) => Some(Term::Absent(label(name)?)),
        None => Some(Term::Present(label(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_selector_selects_what_kubernetes_would() {
        let labels = json!({ "serving.knative.dev/service": "hello", "tier": "web" });
        for (text, expected) in [
            ("", Some(true)),
            ("serving.knative.dev/service = hello", Some(true)),
            ("serving.knative.dev/service=other", Some(false)),
            ("tier==web,serving.knative.dev/service=hello", Some(true)),
            ("tier!=web", Some(false)),
            ("absent!=web", Some(true)),
            ("tier in (db, web)", Some(true)),
            ("tier notin (db)", Some(true)),
            ("tier", Some(true)),
            ("!tier", Some(false)),
            ("a b", None),
            ("tier of (web)", None),
            ("tier in (web", None),
        ] {
            let seen = Selector::parse(text).map(|selector| selector.selects(Some(&labels)));
            assert_eq!(seen, expected, "{text}");
        }
    }
}
