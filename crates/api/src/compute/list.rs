//! Lists: filtered, ordered, in pages, and over all scopes at once.
//!
//! Invariant: walking the pages of an unchanged world shows every item exactly once, whatever the size
//! of the pages.

use super::call::Call;
use super::catalog;
use super::collection::{Collection, Object, View};
use super::engine::shown;
use super::filter::Filter;
use super::link::COMPUTE_BASE;
use super::operations;
use crate::error::ApiError;
use crate::query::Query;
use crate::world::{Document, State};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::ResourceName;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The largest page, and the size of a page that does not say.
pub(crate) const PAGE_ITEMS_MAX: usize = 500;

/// What the query says about a list.
#[derive(Debug)]
pub(crate) struct Paging {
    items_max: usize,
    newest_first: bool,
    after: Option<(String, String)>,
    filter: Option<Filter>,
}

/// One item that may be listed.
pub(crate) enum Item<'a> {
    /// A resource's document.
    Resource(&'a dyn Collection, ResourceName, &'a Document),
    /// An operation's document.
    Operation(&'a Arc<str>, &'a Document),
    /// A value that is the same at all times.
    Fixed(String, Value),
}

impl Item<'_> {
    fn show(&self, view: View<'_>) -> Value {
        match self {
            Item::Resource(collection, name, document) => {
                shown(view, *collection, name, &document.value())
            }
            Item::Operation(key, document) => {
                Value::Object(operations::presented(view, key, document))
            }
            Item::Fixed(_, value) => value.clone(),
        }
    }

    fn key(&self) -> String {
        match self {
            Item::Resource(_, name, _) => name.to_string(),
            Item::Operation(key, _) => key.to_string(),
            Item::Fixed(key, _) => key.clone(),
        }
    }

    fn created(&self) -> String {
        let text = |document: &Value, field: &str| {
            document.get(field).and_then(Value::as_str).unwrap_or_default().to_string()
        };
        match self {
            Item::Resource(_, _, document) => text(&document.value(), "creationTimestamp"),
            Item::Operation(_, document) => text(&document.value(), "insertTime"),
            Item::Fixed(_, value) => text(value, "creationTimestamp"),
        }
    }
}

/// One page: the items with their keys, and the token of the next.
pub(crate) struct Page {
    items: Vec<(String, Value)>,
    next: Option<String>,
}

impl Paging {
    /// Reads the list parameters of a query.
    pub(crate) fn read(query: &Query) -> Result<Paging, ApiError> {
        let items_max = match query.get("maxResults") {
            None => PAGE_ITEMS_MAX,
            Some(text) => match text.parse::<usize>() {
                Ok(0) => PAGE_ITEMS_MAX,
                Ok(number) if number <= PAGE_ITEMS_MAX => number,
                _ => {
                    let why = format!("Values must be within the range: [0, {PAGE_ITEMS_MAX}]");
                    return Err(ApiError::invalid_field("maxResults", text, &why));
                }
            },
        };
        let newest_first = match query.get("orderBy") {
            None | Some("" | "name" | "name asc") => false,
            Some("creationTimestamp desc") => true,
            Some(other) => {
                let why = "Must be 'name' or 'creationTimestamp desc'.";
                return Err(ApiError::invalid_field("orderBy", other, why));
            }
        };
        let after = query.get("pageToken").filter(|token| !token.is_empty()).map(read_token);
        let filter = query.get("filter").filter(|text| !text.trim().is_empty()).map(Filter::parse);
        Ok(Paging {
            items_max,
            newest_first,
            after: after.transpose()?,
            filter: filter.transpose()?,
        })
    }

    /// The page of these items that the query asks for.
    pub(crate) fn page(&self, view: View<'_>, items: Vec<Item<'_>>) -> Page {
        // Only the order by time asks for it: it takes reading every document, not a page of them.
        let created =
            |item: &Item<'_>| if self.newest_first { item.created() } else { String::new() };
        let mut items: Vec<((String, String), Item<'_>)> =
            items.into_iter().map(|item| ((created(&item), item.key()), item)).collect();
        if self.newest_first {
            items.sort_by(|((created, key), _), ((other_created, other), _)| {
                other_created.cmp(created).then_with(|| key.cmp(other))
            });
        } else {
            items.sort_by(|((_, key), _), ((_, other), _)| key.cmp(other));
        }
        let mut page = Page { items: Vec::new(), next: None };
        let mut last = None;
        for (position, item) in items {
            if !self.is_later(&position) {
                continue;
            }
            let value = item.show(view);
            if self.filter.as_ref().is_some_and(|filter| !filter.accepts(&value)) {
                continue;
            }
            if page.items.len() == self.items_max {
                page.next = last.as_ref().map(write_token);
                break;
            }
            page.items.push((position.1.clone(), value));
            last = Some(position);
        }
        page
    }

    fn is_later(&self, (created, key): &(String, String)) -> bool {
        match &self.after {
            None => true,
            Some((_, last)) if !self.newest_first => key > last,
            Some((last_created, last)) => {
                created < last_created || created == last_created && key > last
            }
        }
    }
}

fn write_token((created, key): &(String, String)) -> String {
    URL_SAFE_NO_PAD.encode(format!("{created} {key}"))
}

fn read_token(token: &str) -> Result<(String, String), ApiError> {
    let decoded =
        URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    decoded
        .as_deref()
        .and_then(|text| text.split_once(' '))
        .map(|(created, key)| (created.to_string(), key.to_string()))
        .ok_or_else(|| ApiError::invalid_field("pageToken", token, "The page token is malformed."))
}

/// The resources of a collection below a path prefix.
pub(crate) fn resources<'a>(
    state: &'a State,
    collection: &'a dyn Collection,
    prefix: &str,
) -> Vec<Item<'a>> {
    let item = |(key, document): (&'a Arc<str>, &'a Document)| {
        let name = ResourceName::parse(key).filter(|name| name.kind == collection.kind())?;
        Some(Item::Resource(collection, name, document))
    };
    state.scan(prefix).filter_map(item).collect()
}

/// Answers `list`: the items of one scope.
pub(crate) fn list(
    call: &Call<'_>,
    word: &str,
    path: &str,
    items: Vec<Item<'_>>,
    state: &State,
) -> Result<Value, ApiError> {
    let paging = Paging::read(&call.query)?;
    let page = paging.page(View { api: call.api, state }, items);
    let mut answer = Object::new();
    answer.insert("kind".into(), format!("compute#{word}List").into());
    answer.insert("id".into(), path.into());
    answer.insert("selfLink".into(), format!("{COMPUTE_BASE}{path}").into());
    if !page.items.is_empty() {
        let items: Vec<Value> = page.items.into_iter().map(|(_, value)| value).collect();
        answer.insert("items".into(), items.into());
    }
    if let Some(token) = page.next {
        answer.insert("nextPageToken".into(), token.into());
    }
    Ok(Value::Object(answer))
}

/// Answers `list` for a collection.
pub(crate) fn list_collection(
    call: &Call<'_>,
    collection: &dyn Collection,
) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let path = format!("{}/{}", call.scope_path(), collection.kind().collection());
    let prefix = format!("{path}/");
    let items = resources(&state, collection, &prefix);
    list(call, collection.word(), &path, items, &state)
}

/// The kinds of scope an aggregated list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scopes {
    /// Resources live in zones.
    Zonal,
    /// Resources live in regions, and in `global`.
    RegionalAndGlobal,
    /// Resources live in regions only.
    Regional,
    /// Resources live everywhere.
    All,
}

/// Answers `aggregatedList`: all scopes at once, an empty one with a warning.
pub(crate) fn aggregated(
    call: &Call<'_>,
    word: &str,
    plural: &str,
    scopes: Scopes,
    items: Vec<Item<'_>>,
    state: &State,
) -> Result<Value, ApiError> {
    let paging = Paging::read(&call.query)?;
    let page = paging.page(View { api: call.api, state }, items);
    let include_all = call.query.flag("includeAllScopes");
    let mut by_scope: BTreeMap<String, Vec<Value>> =
        scope_names(scopes, include_all).into_iter().map(|scope| (scope, Vec::new())).collect();
    for (key, value) in page.items {
        by_scope.entry(scope_of(&key)).or_default().push(value);
    }
    let entry = |(scope, values): (String, Vec<Value>)| {
        let inner = if values.is_empty() { no_results(&scope) } else { json!({ plural: values }) };
        (scope, inner)
    };
    let project = &call.project.id;
    let path = format!("projects/{project}/aggregated/{plural}");
    let mut answer = json!({
        "kind": format!("compute#{word}AggregatedList"),
        "id": path,
        "selfLink": format!("{COMPUTE_BASE}{path}"),
        "items": Object::from_iter(by_scope.into_iter().map(entry)),
    });
    if let (Some(token), Value::Object(object)) = (page.next, &mut answer) {
        object.insert("nextPageToken".into(), token.into());
    }
    Ok(answer)
}

/// `regions/R` of `projects/P/regions/R/…`.
fn scope_of(key: &str) -> String {
    let mut segments = key.split('/').skip(2);
    match (segments.next(), segments.next()) {
        (Some(scope @ ("regions" | "zones")), Some(name)) => format!("{scope}/{name}"),
        _ => "global".to_string(),
    }
}

fn scope_names(scopes: Scopes, include_all: bool) -> Vec<String> {
    let zonal = include_all || matches!(scopes, Scopes::Zonal | Scopes::All);
    let regional = include_all || scopes != Scopes::Zonal;
    let global = include_all || matches!(scopes, Scopes::RegionalAndGlobal | Scopes::All);
    let mut names = Vec::new();
    if global {
        names.push("global".to_string());
    }
    for region in catalog::REGIONS {
        if regional {
            names.push(format!("regions/{}", region.name));
        }
        if zonal {
            names.extend(region.zones().map(|zone| format!("zones/{zone}")));
        }
    }
    names
}

fn no_results(scope: &str) -> Value {
    json!({
        "warning": {
            "code": "NO_RESULTS_ON_PAGE",
            "message": format!("There are no results for scope '{scope}' on this page."),
            "data": [{ "key": "scope", "value": scope }],
        }
    })
}
