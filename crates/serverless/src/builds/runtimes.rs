//! The runtimes sources are built for: a language and its version, as Google names them.
//!
//! Pure.

use std::fmt;

/// A language whose sources can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Language {
    /// JavaScript on Node.js.
    Node,
    /// Python.
    Python,
}

/// A language and its version: `nodejs22`, `python312`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Runtime {
    /// The language.
    pub language: Language,
    /// The major version.
    pub major: u32,
    /// The minor version; 0 for Node.js, whose runtimes name the major one alone.
    pub minor: u32,
}

impl Runtime {
    /// Reads a runtime's name, or a base image whose last word is one, with or without a tag.
    pub fn parse(text: &str) -> Option<Runtime> {
        let last = text.rsplit('/').next()?;
        let word = last.split(['@', ':']).next()?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
            plain.then(|| digits.parse::<u32>().ok()).flatten()
        };
        if let Some(version) = word.strip_prefix("nodejs") {
            return Some(Runtime { language: Language::Node, major: number(version)?, minor: 0 });
        }
        let version = word.strip_prefix("python")?;
        let (major, minor) = version.split_at_checked(1)?;
        Some(Runtime { language: Language::Python, major: number(major)?, minor: number(minor)? })
    }

    /// `Node.js 22`, `Python 3.12`.
    pub fn title(self) -> String {
        match self.language {
            Language::Node => format!("Node.js {}", self.major),
            Language::Python => format!("Python {}.{}", self.major, self.minor),
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.language {
            Language::Node => write!(out, "nodejs{}", self.major),
            Language::Python => write!(out, "python{}{}", self.major, self.minor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_read_from_names_and_base_images() {
        for (text, expected) in [
            ("nodejs22", "nodejs22 Node.js 22"),
            ("python312", "python312 Python 3.12"),
            ("python39", "python39 Python 3.9"),
            (
                "us-central1-docker.pkg.dev/serverless-runtimes/google-22-full/runtimes/nodejs20:x",
                "nodejs20 Node.js 20",
            ),
            ("registry.example/runtimes/python313@sha256:0", "python313 Python 3.13"),
            ("go123", "none"),
            ("nodejs", "none"),
            ("python3", "none"),
            ("nodejs+1", "none"),
            ("", "none"),
        ] {
            let seen = match Runtime::parse(text) {
                Some(runtime) => format!("{runtime} {}", runtime.title()),
                None => "none".to_owned(),
            };
            assert_eq!(seen, expected, "{text}");
        }
    }
}
