//! What is wrong with a resource, gathered while it is compiled: field paths and the problems at them.
//!
//! A path is a chain of borrowed parts and becomes text only when there is a problem to report, so
//! compiling a sound map formats nothing.

use model::{Problem, ResourceName};
use std::fmt;

/// Where in a document the compiler is: `pathMatchers[0].pathRules[2].paths`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl At<'static> {
    /// The resource itself.
    pub(crate) const ROOT: At<'static> = At { parent: None, name: "", index: None };
}

impl At<'_> {
    /// A field below this one.
    pub(crate) fn field<'b>(&'b self, name: &'b str) -> At<'b> {
        At { parent: Some(self), name, index: None }
    }

    /// An entry of a list below this one.
    pub(crate) fn item<'b>(&'b self, name: &'b str, index: usize) -> At<'b> {
        At { parent: Some(self), name, index: Some(index) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent.filter(|parent| !parent.name.is_empty()) {
            write!(out, "{parent}.")?;
        }
        out.write_str(self.name)?;
        self.index.map_or(Ok(()), |index| write!(out, "[{index}]"))
    }
}

/// The problems of one resource.
#[derive(Debug)]
pub(crate) struct Faults<'r> {
    resource: &'r ResourceName,
    found: Vec<Problem>,
}

impl<'r> Faults<'r> {
    pub(crate) fn of(resource: &'r ResourceName) -> Faults<'r> {
        Faults { resource, found: Vec::new() }
    }

    /// A value that can never be right.
    pub(crate) fn invalid(
        &mut self,
        at: &At<'_>,
        value: impl fmt::Display,
        why: impl Into<String>,
    ) {
        self.found.push(Problem::invalid(self.resource, at.to_string(), value, why));
    }

    /// A field that must be given.
    pub(crate) fn required(&mut self, at: &At<'_>) {
        self.found.push(Problem::required(self.resource, at.to_string()));
    }

    /// A refusal whose whole message is Google's.
    pub(crate) fn refused(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.found.push(Problem::refused(self.resource, at.to_string(), message));
    }

    /// A list that is longer than allowed.
    pub(crate) fn at_most(&mut self, at: &At<'_>, count: usize, max: usize, what: &str) {
        if count > max {
            self.invalid(at, count, format!("There must be at most {max} {what}."));
        }
    }

    /// How many there are so far.
    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    pub(crate) fn into_problems(self) -> Vec<Problem> {
        self.found
    }
}

/// A reference as clients see it in messages.
pub(crate) fn link(name: &ResourceName) -> String {
    format!("https://www.googleapis.com/compute/v1/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_as_google_writes_it() {
        let matcher = At::ROOT.item("pathMatchers", 0);
        let rule = matcher.item("pathRules", 2);
        assert_eq!(rule.item("paths", 1).to_string(), "pathMatchers[0].pathRules[2].paths[1]");
        assert_eq!(At::ROOT.field("defaultService").to_string(), "defaultService");
    }
}
