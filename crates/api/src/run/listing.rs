//! All services or revisions a request can see.

use model::{Kind, ResourceName};

use super::Place;
use super::view::{RevisionView, ServiceView};
use crate::Api;
use crate::error::ApiError;
use crate::world::State;

/// The services of a place, by region and name.
pub(crate) fn services(
    api: &Api,
    state: &State,
    place: &Place,
) -> Result<Vec<ServiceView>, ApiError> {
    names(state, place, Kind::Service).map(|name| ServiceView::of(api, state, &name)).collect()
}

/// The revisions of a place, the newest first.
pub(crate) fn revisions(state: &State, place: &Place) -> Result<Vec<RevisionView>, ApiError> {
    let views = names(state, place, Kind::Revision).map(|name| RevisionView::of(state, &name));
    let mut views = views.collect::<Result<Vec<_>, _>>()?;
    let age = |view: &RevisionView| {
        let created = super::document::text(&view.document.resource, "/metadata/creationTimestamp");
        (created.to_owned(), view.document.generation)
    };
    views.sort_by_cached_key(|view| std::cmp::Reverse(age(view)));
    Ok(views)
}

fn names(state: &State, place: &Place, kind: Kind) -> impl Iterator<Item = ResourceName> {
    let mut names = Vec::new();
    for prefix in place.prefixes(kind) {
        names.extend(state.scan(&prefix).filter_map(|(key, _)| ResourceName::parse(key)));
    }
    names.into_iter().filter(move |name| name.kind == kind)
}
