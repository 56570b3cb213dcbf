//! Judging a JSON body against a message's table, in Google's words.
//!
//! Invariant: the walk is as deep as the JSON, which the parser that made it has bounded.

use crate::schema::{Field, Message, Schema, Shape};
use serde_json::{Map, Value};
use std::fmt;

/// How many faults of one body are told; the rest would only lengthen the answer.
const VIOLATIONS_MAX: usize = 20;
/// How much of a wrong value is repeated in the message.
const QUOTED_VALUE_CHARACTERS_MAX: usize = 300;

/// One fault of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path of the message or field at fault, such as `resource.pathMatchers[1]`; empty at the top.
    pub path: String,
    /// The whole sentence.
    pub description: String,
}

/// Everything wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    /// The faults, at least one.
    pub violations: Vec<Violation>,
}

impl fmt::Display for WireError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.violations.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(out, "{separator}{}", violation.description)?;
        }
        Ok(())
    }
}

impl std::error::Error for WireError {}

/// Reads a body as the message `T`. `root` is what paths in errors start with: `resource` for a
/// resource, empty for a method's own request message.
pub fn parse<T: Message>(value: &Value, root: &str) -> Result<T, WireError> {
    check(value, T::schema(), root)?;
    let mut value = value.clone();
    tidy(&mut value, T::schema(), OutputOnly::Keep);
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match error.path().to_string() {
            inner if inner == "." => root.to_string(),
            inner => joined(root, &inner),
        };
        let description = format!("Invalid value at '{path}', {}", error.inner());
        WireError { violations: vec![Violation { path, description }] }
    })
}

/// Judges a body without making anything of it.
pub fn check(value: &Value, schema: &'static Schema, root: &str) -> Result<(), WireError> {
    let mut walk = Walk { violations: Vec::new() };
    walk.message(value, schema, root);
    if walk.violations.is_empty() { Ok(()) } else { Err(WireError { violations: walk.violations }) }
}

/// Judges the text of one query parameter; the error is Google's sentence.
pub fn check_parameter(name: &str, text: &str, shape: &Shape) -> Result<(), WireError> {
    let fits = match shape {
        Shape::Bool => matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "1" | "0"),
        Shape::Int32 => text.parse::<i32>().is_ok(),
        Shape::Uint32 => text.parse::<u32>().is_ok(),
        Shape::Int64 => text.parse::<i64>().is_ok(),
        Shape::Uint64 => text.parse::<u64>().is_ok(),
        Shape::Double => text.parse::<f64>().is_ok(),
        Shape::Enum { values, .. } => values.contains(&text),
        _ => true,
    };
    if fits {
        return Ok(());
    }
    let quoted = shortened(&Value::from(text));
    let description = format!("Invalid value at '{name}' ({}), {quoted}", type_name(shape));
    Err(WireError { violations: vec![Violation { path: name.to_string(), description }] })
}

/// Brings an accepted body into the form that is kept: fields only the server writes and nulls are
/// dropped, 64-bit integers become strings.
pub fn clean(value: &mut Value, schema: &'static Schema) {
    tidy(value, schema, OutputOnly::Drop);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum OutputOnly {
    Keep,
    Drop,
}

fn tidy(value: &mut Value, schema: &'static Schema, output_only: OutputOnly) {
    let Value::Object(object) = value else { return };
    object.retain(|name, inner| {
        let keeps = |field: &Field| output_only == OutputOnly::Keep || !field.output_only;
        !inner.is_null() && schema.field(name).is_some_and(keeps)
    });
    for (name, inner) in object.iter_mut() {
        if let Some(field) = schema.field(name) {
            tidy_shape(inner, &field.shape, output_only);
        }
    }
}

fn tidy_shape(value: &mut Value, shape: &Shape, output_only: OutputOnly) {
    match (shape, value) {
        (Shape::Message(schema), value) => tidy(value, schema(), output_only),
        (Shape::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|item| tidy_shape(item, inner, output_only));
        }
        (Shape::Map(inner), Value::Object(entries)) => {
            entries.values_mut().for_each(|entry| tidy_shape(entry, inner, output_only));
        }
        (Shape::Int64 | Shape::Uint64, value) => {
            if let Some(number) = whole(value).filter(|_| value.is_number()) {
                *value = Value::String(number.to_string());
            }
        }
        (Shape::Int32 | Shape::Uint32, value) => {
            if let Some(number) = whole(value).and_then(|number| i64::try_from(number).ok()) {
                *value = number.into();
            }
        }
        _ => {}
    }
}

/// A whole floating-point number as an integer; callers have checked that it is one and is small.
#[allow(
    clippy::cast_possible_truncation,
    reason = "the value was checked to be a whole 32-bit number"
)]
fn whole_number(value: f64) -> i64 {
    value as i64
}

struct Walk {
    violations: Vec<Violation>,
}

impl Walk {
    fn message(&mut self, value: &Value, schema: &'static Schema, path: &str) {
        let Value::Object(object) = value else {
            return self.wrong_type(value, path, &format!("type.googleapis.com/{}", schema.name));
        };
        self.fields(object, schema, path);
    }

    fn fields(&mut self, object: &Map<String, Value>, schema: &'static Schema, path: &str) {
        for (name, value) in object {
            match schema.field(name) {
                Some(_) if value.is_null() => {}
                Some(field) => self.shape(value, &field.shape, &joined(path, name), path, name),
                None => self.unknown(path, name, "Cannot find field."),
            }
        }
    }

    fn shape(&mut self, value: &Value, shape: &'static Shape, path: &str, owner: &str, name: &str) {
        match shape {
            Shape::Any => {}
            Shape::Message(_) | Shape::Map(_) if value.is_array() => {
                self.unknown(owner, name, "Proto field is not repeating, cannot start list.");
            }
            Shape::Message(schema) => self.message(value, schema(), path),
            Shape::List(inner) => match value {
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.shape(item, inner, &format!("{path}[{index}]"), owner, name);
                    }
                }
                _ => self.wrong_type(value, path, &type_name(inner)),
            },
            Shape::Map(inner) => match value {
                Value::Object(entries) => {
                    for (key, entry) in entries {
                        self.shape(entry, inner, &format!("{path}[\"{key}\"]"), owner, name);
                    }
                }
                _ => self.wrong_type(value, path, "Map"),
            },
            scalar if value.is_array() && !matches!(scalar, Shape::Any) => {
                self.unknown(owner, name, "Proto field is not repeating, cannot start list.");
            }
            scalar if !scalar_fits(value, scalar) => {
                self.wrong_type(value, path, &type_name(scalar));
            }
            _ => {}
        }
    }

    fn unknown(&mut self, path: &str, name: &str, why: &str) {
        let place = if path.is_empty() { String::new() } else { format!(" at '{path}'") };
        let description =
            format!("Invalid JSON payload received. Unknown name \"{name}\"{place}: {why}");
        self.add(path, description);
    }

    fn wrong_type(&mut self, value: &Value, path: &str, type_name: &str) {
        self.add(path, format!("Invalid value at '{path}' ({type_name}), {}", shortened(value)));
    }

    fn add(&mut self, path: &str, description: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation { path: path.to_string(), description });
        }
    }
}

fn scalar_fits(value: &Value, shape: &Shape) -> bool {
    match shape {
        Shape::Text => value.is_string(),
        Shape::Enum { values, .. } => value.as_str().is_some_and(|text| values.contains(&text)),
        Shape::Bytes => value.as_str().is_some_and(is_base64),
        Shape::Timestamp => value.as_str().is_some_and(is_timestamp),
        Shape::Duration => value.as_str().is_some_and(is_duration),
        Shape::Bool => value.is_boolean(),
        Shape::Int32 => whole(value).is_some_and(|number| i32::try_from(number).is_ok()),
        Shape::Uint32 => whole(value).is_some_and(|number| u32::try_from(number).is_ok()),
        Shape::Int64 => whole(value).is_some_and(|number| i64::try_from(number).is_ok()),
        Shape::Uint64 => whole(value).is_some_and(|number| u64::try_from(number).is_ok()),
        Shape::Double => value.is_number(),
        Shape::Any | Shape::Message(_) | Shape::List(_) | Shape::Map(_) => true,
    }
}

/// A number, or a string that is one, as a whole number.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(signed), _) => Some(signed.into()),
            (_, Some(unsigned)) => Some(unsigned.into()),
            // `5.0` is five; JavaScript clients write such things.
            _ => {
                let float = number.as_f64()?;
                let is_small_whole = float.fract() == 0.0 && float.abs() <= f64::from(i32::MAX);
                is_small_whole.then(|| whole_number(float).into())
            }
        },
        _ => None,
    }
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let padding = text.len() - body.len();
    let alphabet = body
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_'));
    alphabet
        && body.len() % 4 != 1
        && (padding == 0 || text.len().is_multiple_of(4) && padding <= 2)
}

fn is_timestamp(text: &str) -> bool {
    let bytes = text.as_bytes();
    let pattern = b"dddd-dd-ddTdd:dd:dd";
    bytes.len() > pattern.len()
        && pattern.iter().zip(bytes).all(|(want, byte)| match want {
            b'd' => byte.is_ascii_digit(),
            b'T' => matches!(byte, b'T' | b't'),
            other => other == byte,
        })
        && text[pattern.len()..]
            .chars()
            .all(|c| c.is_ascii_digit() || matches!(c, '.' | ':' | '+' | '-' | 'Z' | 'z'))
}

fn is_duration(text: &str) -> bool {
    let Some(number) = text.strip_suffix('s') else { return false };
    !number.is_empty() && number.parse::<f64>().is_ok_and(f64::is_finite)
}

fn type_name(shape: &Shape) -> String {
    match shape {
        Shape::Text => "TYPE_STRING".to_string(),
        Shape::Enum { name, .. } => format!("type.googleapis.com/{name}"),
        Shape::Bytes => "TYPE_BYTES".to_string(),
        Shape::Timestamp => "type.googleapis.com/google.protobuf.Timestamp".to_string(),
        Shape::Duration => "type.googleapis.com/google.protobuf.Duration".to_string(),
        Shape::Bool => "TYPE_BOOL".to_string(),
        Shape::Int32 => "TYPE_INT32".to_string(),
        Shape::Uint32 => "TYPE_UINT32".to_string(),
        Shape::Int64 => "TYPE_INT64".to_string(),
        Shape::Uint64 => "TYPE_UINT64".to_string(),
        Shape::Double => "TYPE_DOUBLE".to_string(),
        Shape::Any => "type.googleapis.com/google.protobuf.Value".to_string(),
        Shape::Message(schema) => format!("type.googleapis.com/{}", schema().name),
        Shape::List(inner) | Shape::Map(inner) => type_name(inner),
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_VALUE_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{AttachedDisk, Subnetwork, UrlMap};
    use proptest::prelude::*;
    use serde_json::json;

    fn refusal<T: Message + fmt::Debug>(body: Value) -> String {
        parse::<T>(&body, "resource").expect_err("must be refused").to_string()
    }

    #[test]
    fn faults_are_told_in_googles_words_with_their_path() {
        let cases = [
            (
                json!({"pathMatchers": [{"name": "a"}, {"x": 1}]}),
                "Invalid JSON payload received. Unknown name \"x\" at 'resource.pathMatchers[1]': Cannot find field.",
            ),
            (
                json!({"foo": 1}),
                "Invalid JSON payload received. Unknown name \"foo\" at 'resource': Cannot find field.",
            ),
            (json!({"name": 5}), "Invalid value at 'resource.name' (TYPE_STRING), 5"),
            (
                json!({"hostRules": [{"hosts": "a"}]}),
                "Invalid value at 'resource.hostRules[0].hosts' (TYPE_STRING), \"a\"",
            ),
            (
                json!({"defaultRouteAction": [1]}),
                "Invalid JSON payload received. Unknown name \"defaultRouteAction\" at 'resource': Proto field is not repeating, cannot start list.",
            ),
            (
                json!({"fingerprint": "not base64!"}),
                "Invalid value at 'resource.fingerprint' (TYPE_BYTES), \"not base64!\"",
            ),
            (
                json!([]),
                "Invalid value at 'resource' (type.googleapis.com/google.cloud.compute.v1.UrlMap), []",
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(refusal::<UrlMap>(body), expected);
        }
        assert_eq!(
            refusal::<Subnetwork>(json!({"purpose": "FOO"})),
            "Invalid value at 'resource.purpose' (type.googleapis.com/google.cloud.compute.v1.Subnetwork.Purpose), \"FOO\""
        );
    }

    #[test]
    fn several_faults_are_all_told() {
        let told = refusal::<UrlMap>(json!({"foo": 1, "bar": 2}));
        assert_eq!(told.lines().count(), 2, "{told}");
    }

    #[test]
    fn integers_are_read_from_numbers_and_strings_and_kept_as_google_writes_them() {
        let mut body =
            json!({"id": 7, "name": null, "pathMatchers": [{"routeRules": [{"priority": "3"}]}]});
        let map: UrlMap = parse(&body, "resource").expect("accepted");
        assert_eq!(map.id.map(|id| id.0), Some(7));
        clean(&mut body, UrlMap::schema());
        assert_eq!(body, json!({"pathMatchers": [{"routeRules": [{"priority": 3}]}]}));
        let mut disk = json!({"diskSizeGb": 10, "initializeParams": {"diskSizeGb": "20"}});
        clean(&mut disk, AttachedDisk::schema());
        assert_eq!(disk, json!({"diskSizeGb": "10", "initializeParams": {"diskSizeGb": "20"}}));
    }

    #[test]
    fn what_only_the_server_writes_is_dropped() {
        let mut body =
            json!({"name": "s", "gatewayAddress": "10.0.0.1", "region": "r", "state": "READY"});
        clean(&mut body, Subnetwork::schema());
        assert_eq!(body.get("gatewayAddress"), None);
        assert_eq!(body.get("name"), Some(&json!("s")));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let keys = proptest::sample::select(vec![
            "name",
            "pathMatchers",
            "routeRules",
            "hosts",
            "hostRules",
            "id",
            "foo",
            "fingerprint",
            "defaultRouteAction",
            "timeout",
            "seconds",
            "weight",
            "priority",
            "matchRules",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(keys.clone().prop_map(String::from), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_body_panics_and_what_is_accepted_is_accepted_again(body in any_json()) {
            if parse::<UrlMap>(&body, "resource").is_ok() {
                let mut kept = body;
                clean(&mut kept, UrlMap::schema());
                let typed: UrlMap = parse(&kept, "resource").expect("still accepted");
                let written = serde_json::to_value(&typed).expect("serializes");
                prop_assert_eq!(parse::<UrlMap>(&written, "resource").expect("round trip"), typed);
            }
        }
    }
}
