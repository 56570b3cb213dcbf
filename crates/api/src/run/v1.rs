//! Version 1: Knative's shape, which gcloud speaks.

use model::Kind;
use serde_json::{Value, json};
use wire::run_v1;

use super::changes::{self, Mode, Wish};
use super::operations::{self, Version};
use super::selector::Selector;
use super::view::{RevisionView, ServiceView};
use super::{Place, listing, names, policy};
use crate::error::{ApiError, Reason};
use crate::one_platform::Call;

/// Answers what comes after the namespace or location.
pub(crate) async fn answer(
    call: &Call<'_>,
    place: &Place,
    rest: &[&str],
) -> Result<Value, ApiError> {
    match (rest, call.action()) {
        (["operations"], _) => operations::answer(call, place, None, Version::V1).await,
        (["operations", id], _) => operations::answer(call, place, Some(id), Version::V1).await,
        (["services"], ("POST", "")) => create(call, place).await,
        (["services", name], ("GET", "")) => {
            let name = place.resource(Kind::Service, name)?;
            Ok(ServiceView::of(call.api, &call.api.world().state(), &name)?.v1())
        }
        (["services", name], ("PUT", "")) => replace(call, place, name).await,
        (["services", name], ("DELETE", "")) => {
            let name = place.resource(Kind::Service, name)?;
            changes::delete_service(call, place, &name, is_dry_run(call)?, |_| Ok(())).await?;
            Ok(success(&name.name, "services"))
        }
        (["services", name], (_, verb)) if !verb.is_empty() => {
            policy::answer(call, &place.resource(Kind::Service, name)?).await
        }
        (["revisions", name], ("GET", "")) => {
            let name = place.resource(Kind::Revision, name)?;
            Ok(RevisionView::of(&call.api.world().state(), &name)?.v1())
        }
        (["revisions", name], ("DELETE", "")) => {
            let name = place.resource(Kind::Revision, name)?;
            changes::delete_revision(call, place, &name, is_dry_run(call)?).await?;
            Ok(success(&name.name, "revisions"))
        }
        (["configurations" | "routes", name], ("GET", "")) => {
            let name = place.resource(Kind::Service, name)?;
            let view = ServiceView::of(call.api, &call.api.world().state(), &name)?;
            Ok(if rest[0] == "routes" { view.route_v1() } else { view.configuration_v1() })
        }
        ([collection], ("GET", "")) => list(call, place, collection),
        _ => Err(call.unserved()),
    }
}

async fn create(call: &Call<'_>, place: &Place) -> Result<Value, ApiError> {
    let wanted = call.required_body::<run_v1::Service>("service")?;
    let name = place.resource(Kind::Service, changes::wanted_name(&wanted)?)?;
    let is_dry_run = is_dry_run(call)?;
    let wish = Wish { mode: Mode::Create, wanted, is_dry_run, forces_revision: false };
    Ok(changes::declare(call, place, &name, wish).await?.view.v1())
}

async fn replace(call: &Call<'_>, place: &Place, name: &str) -> Result<Value, ApiError> {
    let wanted = call.required_body::<run_v1::Service>("service")?;
    let name = place.resource(Kind::Service, name)?;
    let is_dry_run = is_dry_run(call)?;
    let wish = Wish { mode: Mode::Replace, wanted, is_dry_run, forces_revision: false };
    Ok(changes::declare(call, place, &name, wish).await?.view.v1())
}

fn is_dry_run(call: &Call<'_>) -> Result<bool, ApiError> {
    match call.query.get("dryRun") {
        None | Some("") => Ok(false),
        Some("all") => Ok(true),
        Some(other) => {
            let message = format!("dryRun: '{other}' is not supported; use 'all'.");
            Err(ApiError::new(Reason::Invalid, message))
        }
    }
}

fn success(name: &str, kind: &str) -> Value {
    json!({
        "status": "Success",
        "details": { "name": name, "group": "serving.knative.dev", "kind": kind },
    })
}

fn list(call: &Call<'_>, place: &Place, collection: &str) -> Result<Value, ApiError> {
    let state = call.api.world().state();
    let (kind, items): (_, Vec<Value>) = match collection {
        "services" => {
            let views = listing::services(call.api, &state, place)?;
            ("ServiceList", views.iter().map(ServiceView::v1).collect())
        }
        "configurations" => {
            let views = listing::services(call.api, &state, place)?;
            ("ConfigurationList", views.iter().map(ServiceView::configuration_v1).collect())
        }
        "routes" => {
            let views = listing::services(call.api, &state, place)?;
            ("RouteList", views.iter().map(ServiceView::route_v1).collect())
        }
        "revisions" => {
            let views = listing::revisions(&state, place)?;
            ("RevisionList", views.iter().map(RevisionView::v1).collect())
        }
        _ => return Err(call.unserved()),
    };
    let selector = call.query.get("labelSelector").unwrap_or_default();
    let selector = Selector::parse(selector).ok_or_else(|| {
        let message = format!("labelSelector: '{selector}' cannot be read.");
        ApiError::new(Reason::Invalid, message)
    })?;
    let selected = |item: &Value| selector.selects(item.pointer("/metadata/labels"));
    let key = |item: &Value| {
        let labels = item.pointer("/metadata/labels");
        let location = labels.and_then(|labels| labels.get(names::LOCATION_LABEL)?.as_str());
        let link = super::document::text(item, "/metadata/selfLink");
        format!("{}{link}", location.unwrap_or_default())
    };
    let items = items.into_iter().filter(selected).map(|item| (key(&item), item)).collect();
    let (items, next) = match call.query.get("limit") {
        // Without a limit everything is one page: gcloud asks for one page only.
        None | Some("" | "0") => (all(items), None),
        Some(_) => call.page(items, "limit", "continue")?,
    };
    let mut metadata = json!({});
    if let Some(next) = next {
        metadata["continue"] = next.into();
    }
    Ok(json!({
        "apiVersion": names::API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "items": items,
    }))
}

fn all(items: Vec<(String, Value)>) -> Vec<Value> {
    items.into_iter().map(|(_, item)| item).collect()
}
