//! Secrets of other projects: an annotation gives their paths the short names that containers and volumes
//! use, as `gcloud` writes it for `NAME=projects/123/secrets/pass:1`.

use model::Name;
use model::run::{Container, EnvironmentValue, Volume, VolumeSource};
use std::collections::BTreeMap;

/// What the annotation says: short names and the paths they stand for.
#[derive(Debug, Default)]
pub(super) struct SecretPaths(BTreeMap<String, Name>);

impl SecretPaths {
    /// Reads `alias:projects/P/secrets/S,…`; `None` when it is something else.
    pub(super) fn parse(annotation: &str) -> Option<SecretPaths> {
        let pairs = annotation.split(',').map(str::trim).filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (alias, path) = pair.split_once(':')?;
            let is_path = matches!(
                path.split('/').collect::<Vec<_>>()[..],
                ["projects", project, "secrets", secret] if !project.is_empty() && !secret.is_empty()
            );
            is_path.then(|| (alias.to_owned(), Name::from(path)))
        };
        pairs.map(pair).collect::<Option<_>>().map(SecretPaths)
    }

    /// Puts paths where their short names stand.
    pub(super) fn put(&self, containers: &mut [Container], volumes: &mut [Volume]) {
        let variables = containers.iter_mut().flat_map(|container| &mut container.environment);
        let of_variables = variables.filter_map(|variable| match &mut variable.value {
            EnvironmentValue::Secret(version) => Some(&mut version.secret),
            EnvironmentValue::Literal(_) => None,
        });
        let of_volumes = volumes.iter_mut().filter_map(|volume| match &mut volume.source {
            VolumeSource::Secret { secret, .. } => Some(secret),
            _ => None,
        });
        for secret in of_variables.chain(of_volumes) {
            if let Some(path) = self.0.get(secret.as_str()) {
                *secret = path.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_stands_for_a_path_and_anything_else_is_refused() {
        let paths = SecretPaths::parse("a-1:projects/7/secrets/pass, b:projects/p/secrets/key");
        let paths = paths.expect("two pairs").0;
        let shown: Vec<String> =
            paths.iter().map(|(name, path)| format!("{name}={path}")).collect();
        assert_eq!(shown, ["a-1=projects/7/secrets/pass", "b=projects/p/secrets/key"]);
        for wrong in ["a", "a:pass", "a:projects/7/secrets/", "a:projects/7/secrets/x/versions/1"] {
            assert!(SecretPaths::parse(wrong).is_none(), "{wrong}");
        }
    }
}
