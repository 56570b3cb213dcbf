//! A request's query, decoded.

use percent_encoding::percent_decode_str;

/// The parameters in their order; a name may come more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    parameters: Vec<(String, String)>,
}

impl Query {
    /// Reads `a=1&b=x%20y`. What is not UTF-8 is replaced, never refused.
    pub fn parse(text: &str) -> Query {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(name), decoded(value))
        };
        let parameters = text.split('&').filter(|part| !part.is_empty()).map(pair).collect();
        Query { parameters }
    }

    /// The last value of a parameter, as Google's servers take it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whether a boolean parameter is set; gcloud writes `True`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }

    /// All parameters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Undoes percent-encoding and `+` for a space.
fn decoded(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

/// Undoes the percent-encoding of one path segment.
pub fn decoded_segment(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_the_last_of_a_name_counts() {
        let query =
            Query::parse("alt=json&filter=name+eq%20%22a%2Bb%22&x=1&x=2&includeAllScopes=True");
        assert_eq!(query.get("filter"), Some("name eq \"a+b\""));
        assert_eq!(query.get("x"), Some("2"));
        assert!(query.flag("includeAllScopes") && !query.flag("alt"));
        assert_eq!(query.get("none"), None);
    }
}
