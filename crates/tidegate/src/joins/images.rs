//! Images for the fleet, from the image store.

use serverless::fleet::{ImageFailure, ImageSource, ImageTrouble};
use serverless::images::{ImageError, ImageStore, Progress, ResolvedImage};
use serverless::runtime::Pending;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Answers from the store; with a digest, by the reference that has it.
#[derive(Debug)]
pub(crate) struct StoreImages {
    store: ImageStore,
    /// How far each pull that is under way is.
    pulls: Mutex<HashMap<String, Progress>>,
}

impl StoreImages {
    pub(crate) fn new(store: ImageStore) -> StoreImages {
        StoreImages { store, pulls: Mutex::default() }
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<String, Progress>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ImageSource for StoreImages {
    fn resolve<'a>(
        &'a self,
        image: &'a str,
        digest: Option<&'a str>,
    ) -> Pending<'a, Result<ResolvedImage, ImageFailure>> {
        Box::pin(async move {
            let pinned = digest.map(|digest| pinned(image, digest));
            let reference = pinned.as_deref().unwrap_or(image);
            let on_progress = |progress| {
                self.pulls().insert(image.to_owned(), progress);
            };
            let found = self.store.resolve(reference, &on_progress).await;
            self.pulls().remove(image);
            found.map_err(|error| ImageFailure {
                trouble: trouble(&error),
                message: crate::applier::chain(&error),
            })
        })
    }

    fn progress(&self, image: &str) -> Option<Progress> {
        self.pulls().get(image).copied()
    }
}

/// `repository:tag` or `repository@digest` as `repository@digest`.
fn pinned(image: &str, digest: &str) -> String {
    let named = image.split_once('@').map_or(image, |(name, _)| name);
    let repository = match named.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => named,
    };
    format!("{repository}@{digest}")
}

fn trouble(error: &ImageError) -> ImageTrouble {
    match error {
        ImageError::NotFound { .. } => ImageTrouble::Missing,
        ImageError::Forbidden { .. } => ImageTrouble::Unauthorized,
        ImageError::Unreachable { .. } | ImageError::Disk { .. } => ImageTrouble::Unavailable,
        ImageError::Reference { .. }
        | ImageError::Corrupt { .. }
        | ImageError::Unusable { .. }
        | ImageError::Archive { .. } => ImageTrouble::Unusable,
    }
}

#[cfg(test)]
mod tests {
    use super::pinned;

    #[test]
    fn a_digest_takes_the_place_of_a_tag_and_a_port_is_not_a_tag() {
        for (image, expected) in [
            ("nginx", "nginx@sha256:1"),
            ("nginx:1", "nginx@sha256:1"),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app@sha256:1"),
            ("127.0.0.1:5000/app:2", "127.0.0.1:5000/app@sha256:1"),
            ("nginx:1@sha256:0", "nginx@sha256:1"),
        ] {
            assert_eq!(pinned(image, "sha256:1"), expected);
        }
    }
}
