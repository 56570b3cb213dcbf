//! The `fields` parameter: which parts of an answer the client wants to see.

use crate::error::{ApiError, Reason};
use serde_json::{Map, Value};

/// The longest mask, in bytes, which also bounds its nesting.
pub(crate) const MASK_BYTES_MAX: usize = 2048;

/// A mask, read: the wanted fields and the masks below them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mask {
    /// Name, or `*`, with what is wanted below it; nothing below means all of it.
    fields: Vec<(String, Option<Mask>)>,
}

impl Mask {
    /// Reads `items(name,id),nextPageToken` or `items/name`.
    pub(crate) fn parse(text: &str) -> Result<Mask, ApiError> {
        let refused =
            || ApiError::new(Reason::BadRequest, format!("Invalid field selection {text}"));
        if text.len() > MASK_BYTES_MAX {
            return Err(refused());
        }
        let mut rest = text;
        let mask = list(&mut rest, 0).ok_or_else(refused)?;
        if rest.is_empty() { Ok(mask) } else { Err(refused()) }
    }

    /// Keeps the wanted parts of a value.
    pub(crate) fn apply(&self, value: Value) -> Value {
        match value {
            Value::Array(items) => items.into_iter().map(|item| self.apply(item)).collect(),
            Value::Object(object) => {
                let mut kept = Map::new();
                for (name, inner) in object {
                    let wanted = self.fields.iter().find(|(n, _)| *n == name || n == "*");
                    match wanted {
                        Some((_, Some(below))) => {
                            kept.insert(name, below.apply(inner));
                        }
                        Some((_, None)) => {
                            kept.insert(name, inner);
                        }
                        None => {}
                    }
                }
                Value::Object(kept)
            }
            scalar => scalar,
        }
    }
}

/// The deepest nesting of a mask.
const DEPTH_MAX: usize = 50;

fn list(rest: &mut &str, depth: usize) -> Option<Mask> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut fields = vec![field(rest, depth)?];
    while let Some(after) = rest.strip_prefix(',') {
        *rest = after;
        fields.push(field(rest, depth)?);
    }
    Some(Mask { fields })
}

fn field(rest: &mut &str, depth: usize) -> Option<(String, Option<Mask>)> {
    if depth > DEPTH_MAX {
        return None;
    }
    let trimmed = rest.trim_start();
    let length = trimmed.find([',', '/', '(', ')']).unwrap_or(trimmed.len());
    let name = trimmed[..length].trim_end();
    let is_name = name == "*"
        || !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "_-.@".contains(c));
    if !is_name {
        return None;
    }
    *rest = &trimmed[length..];
    if let Some(after) = rest.strip_prefix('/') {
        *rest = after;
        let below = Mask { fields: vec![field(rest, depth + 1)?] };
        return Some((name.to_string(), Some(below)));
    }
    if let Some(after) = rest.strip_prefix('(') {
        *rest = after;
        let below = list(rest, depth + 1)?;
        *rest = rest.strip_prefix(')')?;
        return Some((name.to_string(), Some(below)));
    }
    Some((name.to_string(), None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_mask_keeps_what_it_names() {
        let value = json!({"kind": "k", "items": [{"name": "a", "id": "1", "x": {"y": 1, "z": 2}}], "nextPageToken": "t"});
        for (mask, expected) in [
            ("kind", json!({"kind": "k"})),
            ("items/name", json!({"items": [{"name": "a"}]})),
            (
                "items(name,x/y),nextPageToken",
                json!({"items": [{"name": "a", "x": {"y": 1}}], "nextPageToken": "t"}),
            ),
            ("*", value.clone()),
            ("items/x/*", json!({"items": [{"x": {"y": 1, "z": 2}}]})),
            ("none", json!({})),
        ] {
            assert_eq!(Mask::parse(mask).expect(mask).apply(value.clone()), expected, "{mask}");
        }
    }

    #[test]
    fn what_is_no_mask_is_refused() {
        for mask in ["", ",", "a(", "a)", "a/", "a b", "(a)", "a()"] {
            assert!(Mask::parse(mask).is_err(), "{mask}");
        }
        assert!(Mask::parse(&"a/".repeat(1000)).is_err());
        assert!(Mask::parse(&"a(".repeat(1000)).is_err());
    }

    proptest! {
        #[test]
        fn no_mask_panics(text in "[a-c,/()* ]{0,30}") {
            if let Ok(mask) = Mask::parse(&text) {
                mask.apply(json!({"a": [{"b": 1}], "c": "x"}));
            }
        }
    }
}
