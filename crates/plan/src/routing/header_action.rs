//! Header edits compiled: names in lower case, values taken apart at their `{variables}`.
//!
//! URL maps (`headerAction`) and backend services (`customRequestHeaders`) share the rules about names
//! and values.

use super::fault::{At, Faults};
use crate::decision::{HeaderAction, HeaderAddition, HeaderEdit, HeaderTemplate, TemplatePart};
use model::url_map;

/// The most custom headers of each direction on one backend service.
pub(crate) const CUSTOM_HEADERS_MAX: usize = 16;
/// The most bytes of all custom headers of one direction, before variables are filled in.
pub(crate) const CUSTOM_HEADERS_BYTES_MAX: usize = 8 * 1024;

/// Fields that belong to one connection or to the balancer itself.
const RESERVED_NAMES: &[&str] = &[
    "x-user-ip",
    "cdn-loop",
    "keep-alive",
    "transfer-encoding",
    "te",
    "connection",
    "trailer",
    "upgrade",
    "proxy-connection",
    "host",
    "content-length",
];
/// Beginnings of names that belong to the platform.
const RESERVED_PREFIXES: &[&str] = &["x-google", "x-goog-", "x-gfe", "x-amz-"];

/// Every variable a header value may contain.
pub const VARIABLES: &[&str] = &[
    "cdn_cache_id",
    "cdn_cache_status",
    "origin_request_header",
    "client_rtt_msec",
    "client_region",
    "client_region_subdivision",
    "client_city",
    "client_city_lat_long",
    "client_ip_address",
    "client_port",
    "client_encrypted",
    "client_protocol",
    "device_request_type",
    "server_ip_address",
    "server_port",
    "tls_sni_hostname",
    "tls_version",
    "tls_cipher_suite",
    "tls_ja3_fingerprint",
    "tls_ja4_fingerprint",
    "user_agent_family",
    "client_cert_present",
    "client_cert_chain_verified",
    "client_cert_error",
    "client_cert_sha256_fingerprint",
    "client_cert_serial_number",
    "client_cert_spiffe_id",
    "client_cert_uri_sans",
    "client_cert_dnsname_sans",
    "client_cert_valid_not_before",
    "client_cert_valid_not_after",
    "client_cert_issuer_dn",
    "client_cert_subject_dn",
    "client_cert_leaf",
    "client_cert_chain",
];

/// Compiles a `headerAction`.
pub(crate) fn compile(
    action: &url_map::HeaderAction,
    at: &At<'_>,
    faults: &mut Faults<'_>,
) -> HeaderAction {
    let mut additions = |headers: &[url_map::HeaderToAdd], field: &str| -> Vec<HeaderAddition> {
        let compiled = headers
            .iter()
            .enumerate()
            .filter_map(|(i, header)| addition(header, &at.item(field, i), faults));
        compiled.collect()
    };
    let request_add = additions(&action.request_add, "requestHeadersToAdd");
    let response_add = additions(&action.response_add, "responseHeadersToAdd");
    let mut removals = |names: &[String], field: &str| -> Vec<String> {
        let compiled = names.iter().enumerate().filter_map(|(i, name)| match check_name(name) {
            Ok(()) => Some(name.to_ascii_lowercase()),
            Err(why) => {
                faults.invalid(&at.item(field, i), name, why);
                None
            }
        });
        compiled.collect()
    };
    let request_remove = removals(&action.request_remove, "requestHeadersToRemove");
    let response_remove = removals(&action.response_remove, "responseHeadersToRemove");
    HeaderAction {
        request: HeaderEdit { remove: request_remove, add: request_add },
        response: HeaderEdit { remove: response_remove, add: response_add },
    }
}

fn addition(
    header: &url_map::HeaderToAdd,
    at: &At<'_>,
    faults: &mut Faults<'_>,
) -> Option<HeaderAddition> {
    if let Err(why) = check_name(&header.name) {
        faults.invalid(&at.field("headerName"), &header.name, why);
        return None;
    }
    match template(&header.value) {
        Ok(value) => {
            // Google replaces unless told otherwise, and appends when the value has a variable in it.
            let replace = header.replace.unwrap_or(!value.has_variables());
            Some(HeaderAddition { name: header.name.to_ascii_lowercase(), value, replace })
        }
        Err(why) => {
            faults.invalid(&at.field("headerValue"), &header.value, why);
            None
        }
    }
}

/// Compiles `customRequestHeaders` or `customResponseHeaders`: `Name:Value`, overwriting what is there.
pub(crate) fn compile_custom(
    headers: &[String],
    field: &str,
    faults: &mut Faults<'_>,
) -> HeaderEdit {
    let at = At::ROOT.field(field);
    faults.at_most(&at, headers.len(), CUSTOM_HEADERS_MAX, "custom headers");
    let bytes = headers.iter().map(String::len).sum();
    faults.at_most(&at, bytes, CUSTOM_HEADERS_BYTES_MAX, "bytes of custom headers");
    let mut edit = HeaderEdit::default();
    for (i, header) in headers.iter().enumerate() {
        let at = At::ROOT.item(field, i);
        let compiled = match header.split_once(':') {
            None => Err("Custom headers must have the form 'Name:Value'.".to_string()),
            Some((name, value)) => check_name(name.trim()).map_err(String::from).and_then(|()| {
                let name = name.trim().to_ascii_lowercase();
                Ok(HeaderAddition { name, value: template(value.trim())?, replace: true })
            }),
        };
        match compiled {
            Ok(addition) if edit.add.iter().any(|known| known.name == addition.name) => {
                faults.invalid(&at, header, "Custom header names must be unique.");
            }
            Ok(addition) => edit.add.push(addition),
            Err(why) => faults.invalid(&at, header, why),
        }
    }
    edit
}

/// Why a field may not be edited, if it may not.
fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err("Header names must be non-empty tokens of RFC 9110.");
    }
    let lower = name.to_ascii_lowercase();
    let reserved = RESERVED_NAMES.contains(&lower.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
    match reserved {
        true => Err("The header is reserved and cannot be added or removed."),
        false => Ok(()),
    }
}

/// Whether a byte may stand in a field name.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Takes a header value apart; the error is a sentence that says what is wrong with it.
fn template(value: &str) -> Result<HeaderTemplate, String> {
    let visible = |c: char| c == '\t' || (' '..='~').contains(&c);
    if let Some(c) = value.chars().find(|c| !visible(*c)) {
        return Err(format!("Header values must not contain {c:?}."));
    }
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = value;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
            literal.push_str(&rest[..1]);
            rest = after;
            continue;
        }
        let close = rest.find('}').filter(|_| rest.starts_with('{'));
        let close =
            close.ok_or("Braces in header values must be balanced; '{{' stands for a brace.")?;
        let variable = &rest[1..close];
        if !VARIABLES.contains(&variable) {
            return Err(format!("'{variable}' is not a header variable."));
        }
        if !literal.is_empty() {
            parts.push(TemplatePart::Literal(std::mem::take(&mut literal)));
        }
        parts.push(TemplatePart::Variable(variable.to_string()));
        rest = &rest[close + 1..];
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(TemplatePart::Literal(literal));
    }
    Ok(HeaderTemplate(parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Kind, ResourceName};

    #[test]
    fn values_are_taken_apart_at_their_variables() {
        for (value, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("{client_ip_address}", "<client_ip_address>"),
            ("a={client_port}, b={tls_version}", "a=|<client_port>|, b=|<tls_version>"),
            ("{{not}} {client_port}", "{not} |<client_port>"),
        ] {
            let parts = template(value).expect(value).0;
            let parts: Vec<String> = parts
                .into_iter()
                .map(|part| match part {
                    TemplatePart::Literal(text) => text,
                    TemplatePart::Variable(name) => format!("<{name}>"),
                })
                .collect();
            assert_eq!(parts.join("|"), expected, "{value}");
        }
        for value in ["{", "}", "{x", "x}", "{unknown}", "{}", "a\nb", "é"] {
            assert!(template(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn reserved_and_malformed_names_are_refused() {
        for name in [
            "",
            "X-User-IP",
            "CDN-Loop",
            "Connection",
            "TE",
            "X-Goog-A",
            "X-Google-A",
            "X-GFE-A",
            "x-amz-a",
            "Host",
            ":method",
            "a b",
            "a:b",
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["X-A", "Cache-Control", "x_goo", "X-Forwarded-For"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn custom_headers_are_counted_unique_and_overwrite() {
        let resource = ResourceName::regional("p", "r", Kind::BackendService, "b");
        let problems = |headers: &[&str]| {
            let headers: Vec<String> = headers.iter().map(ToString::to_string).collect();
            let mut faults = Faults::of(&resource);
            let edit = compile_custom(&headers, "customRequestHeaders", &mut faults);
            assert!(edit.add.iter().all(|addition| addition.replace));
            faults.into_problems().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(problems(&["X-A: 1", "X-B:{client_port}", "X-Empty:"]), Vec::<String>::new());
        assert_eq!(
            problems(&["X-A:1", "x-a:2"]),
            ["Invalid value for field 'resource.customRequestHeaders[1]': 'x-a:2'. \
              Custom header names must be unique."]
        );
        let many: Vec<String> = (0..17).map(|i| format!("X-{i}:v")).collect();
        assert_eq!(problems(&many.iter().map(String::as_str).collect::<Vec<_>>()).len(), 1);
    }
}
