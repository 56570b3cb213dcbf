//! Reading a request's body as JSON, within bounds.

use crate::error::{ApiError, Reason};
use crate::http::Request;
use serde_json::Value;
use wire::{Violation, WireError};

/// The longest body of one request, in bytes.
pub const BODY_BYTES_MAX: usize = 10 * 1024 * 1024;
/// The deepest nesting of a body; the JSON parser's own recursion limit lies just above.
pub const JSON_DEPTH_MAX: usize = 100;

/// The body as JSON; none when it is empty.
pub fn json_body(request: &Request) -> Result<Option<Value>, ApiError> {
    let bytes = &request.body;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(ApiError::new(
            Reason::TooLarge,
            format!("Request payload size exceeds the limit: {BODY_BYTES_MAX} bytes."),
        ));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let unreadable = |why: String| {
        let description = format!("Invalid JSON payload received. {why}");
        ApiError::from(WireError {
            violations: vec![Violation { path: String::new(), description }],
        })
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|_| unreadable("Invalid UTF-8 sequence.".to_string()))?;
    if nesting_exceeds(text, JSON_DEPTH_MAX) {
        return Err(unreadable("Message too deep. Max recursion depth reached.".to_string()));
    }
    match serde_json::from_str(text) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(unreadable(sentence(&error, text))),
    }
}

/// Whether brackets outside strings nest deeper than `depth_max`.
fn nesting_exceeds(text: &str, depth_max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// What the parser stumbled over, with the rest of the line and a mark under the place.
fn sentence(error: &serde_json::Error, text: &str) -> String {
    const SHOWN_CHARACTERS_MAX: usize = 60;
    let what = if error.is_eof() { "Unexpected end of string." } else { "Unexpected token." };
    let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or("");
    let column = error.column().saturating_sub(1);
    let from = column.saturating_sub(SHOWN_CHARACTERS_MAX / 2);
    let shown: String = line.chars().skip(from).take(SHOWN_CHARACTERS_MAX).collect();
    format!("{what}\n{shown}\n{}^", " ".repeat(column - from))
}
