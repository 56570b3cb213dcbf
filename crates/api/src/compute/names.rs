//! Names, labels and how many there may be.

use crate::error::ApiError;
use crate::world::State;
use model::Kind;
use serde_json::Value;

/// The rule names follow, in Google's words.
pub(crate) const NAME_RULE: &str =
    "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'";
/// The longest name, in characters.
pub(crate) const NAME_CHARACTERS_MAX: usize = 63;
/// The most labels on one resource.
pub(crate) const LABELS_MAX: usize = 64;

/// Refuses a name that is missing or breaks the rule.
pub(crate) fn check(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(ApiError::required("resource.name"));
    }
    if is_name(name) {
        Ok(())
    } else {
        Err(ApiError::invalid_field("resource.name", name, NAME_RULE))
    }
}

/// Whether a text follows the rule of names.
pub(crate) fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= NAME_CHARACTERS_MAX
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase())
        && text.bytes().all(inner)
        && !text.ends_with('-')
}

/// Refuses labels whose keys or values Google refuses.
pub(crate) fn check_labels(labels: &Value) -> Result<(), ApiError> {
    let Value::Object(labels) = labels else { return Ok(()) };
    let fits = |text: &str| {
        let inner = |c: char| {
            c == '-' || c == '_' || c.is_numeric() || c.is_alphabetic() && !c.is_uppercase()
        };
        text.chars().count() <= NAME_CHARACTERS_MAX && text.chars().all(inner)
    };
    if labels.len() > LABELS_MAX {
        let why = format!("At most {LABELS_MAX} labels are allowed.");
        return Err(ApiError::invalid_field("resource.labels", &labels.len().to_string(), &why));
    }
    for (key, value) in labels {
        let starts_well =
            key.chars().next().is_some_and(|c| c.is_alphabetic() && !c.is_uppercase());
        if !starts_well || !fits(key) {
            let why = "Label keys must be lowercase letters, digits, hyphens and underscores, and start with a letter.";
            return Err(ApiError::invalid_field("resource.labels", key, why));
        }
        let value = value.as_str().unwrap_or_default();
        if !fits(value) {
            let why = "Label values must be lowercase letters, digits, hyphens and underscores.";
            return Err(ApiError::invalid_field("resource.labels", value, why));
        }
    }
    Ok(())
}

/// How many resources of a kind a project has; counting stops at `enough`.
pub(crate) fn used(state: &State, kind: Kind, project: &str, enough: usize) -> usize {
    let inventory = state.compiled.inventory();
    macro_rules! count {
        ($collection:ident) => {
            // The count of all projects is there for nothing; one project's has to be walked.
            if inventory.$collection.len() < enough {
                inventory.$collection.len()
            } else {
                let own =
                    inventory.$collection.keys().filter(|name| name.project.as_str() == project);
                own.take(enough).count()
            }
        };
    }
    match kind {
        Kind::Network => count!(networks),
        Kind::Subnetwork => count!(subnetworks),
        Kind::Address => count!(addresses),
        Kind::Firewall => count!(firewalls),
        Kind::Route => count!(routes),
        Kind::Instance => count!(instances),
        Kind::NetworkEndpointGroup => count!(endpoint_groups),
        Kind::BackendService => count!(backend_services),
        Kind::UrlMap => count!(url_maps),
        Kind::TargetHttpProxy => count!(target_http_proxies),
        Kind::TargetHttpsProxy => count!(target_https_proxies),
        Kind::SslCertificate => count!(ssl_certificates),
        Kind::SslPolicy => count!(ssl_policies),
        Kind::HealthCheck => count!(health_checks),
        Kind::ForwardingRule => count!(forwarding_rules),
        Kind::Project
        | Kind::Certificate
        | Kind::Service
        | Kind::Revision
        | Kind::ServiceAccount => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_the_rule() {
        for (name, fits) in [
            ("a", true),
            ("lb-subnet", true),
            ("a1", true),
            ("Bad_Name", false),
            ("1a", false),
            ("-a", false),
            ("a-", false),
            ("a.b", false),
            ("é", false),
        ] {
            assert_eq!(check(name).is_ok(), fits, "{name}");
        }
        assert!(is_name(&"a".repeat(63)) && !is_name(&"a".repeat(64)));
        assert_eq!(
            check("").expect_err("missing").message,
            "Required field 'resource.name' not specified"
        );
    }
}
