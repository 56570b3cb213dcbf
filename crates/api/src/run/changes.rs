//! Making, replacing and deleting services and revisions: what both versions come down to.
//!
//! Invariant: a service, the revision it makes and the operation that reports them are one change.

use model::name::ResourceName;
use serde_json::{Map, Value};
use std::sync::Arc;
use uuid::Builder;

use super::document::{self, ServiceDocument, text};
use super::intent::{self, Context, revision_name};
use super::names;
use super::operations::{self, Report};
use super::status::traffic_v1;
use super::view::{RevisionView, ServiceView};
use super::{Place, missing, policy};
use crate::error::{ApiError, Reason};
use crate::one_platform::Call;
use crate::world::{Changed, Draft, State};

/// Services of one project and region.
pub(crate) const SERVICES_MAX: usize = 1000;
/// Revisions of one service that are kept; beyond that the oldest that serves nobody goes.
pub(crate) const REVISIONS_MAX: usize = 1000;

/// How a service is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
    /// Either way.
    CreateOrReplace,
}

/// What a client wants, and how.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) mode: Mode,
    /// The service as version 1 writes it.
    pub(crate) wanted: Value,
    /// Whether it is only to be judged.
    pub(crate) is_dry_run: bool,
    /// Whether a revision is made although the template is the last one.
    pub(crate) forces_revision: bool,
}

/// A change that was made or judged.
pub(crate) struct Made {
    pub(crate) view: ServiceView,
    /// The operation that reports it.
    pub(crate) operation: String,
    pub(crate) state: Arc<State>,
}

/// Makes or replaces a service.
pub(crate) async fn declare(
    call: &Call<'_>,
    place: &Place,
    name: &ResourceName,
    wish: Wish,
) -> Result<Made, ApiError> {
    let Wish { mode, wanted, is_dry_run, forces_revision } = wish;
    let context = context(call, place, name, forces_revision);
    let operation = context.operation.clone();
    let edit = |draft: &mut Draft| edit(draft, place, mode, context, &wanted);
    let Changed { state, .. } = match is_dry_run {
        true => call.api.world().rehearse(edit)?,
        false => call.api.world().change(edit).await?,
    };
    let view = ServiceView::of(call.api, &state, name)?;
    Ok(Made { view, operation, state })
}

fn context(call: &Call<'_>, place: &Place, name: &ResourceName, forces_revision: bool) -> Context {
    let surroundings = call.api.surroundings();
    let uuid = || {
        let random = u128::from(surroundings.random()) << 64 | u128::from(surroundings.random());
        Builder::from_random_bytes(random.to_be_bytes()).into_uuid().to_string()
    };
    Context {
        name: name.clone(),
        project_number: place.project.number,
        caller: call.caller().to_owned(),
        now: call.now(),
        service_id: call.api.new_id(),
        revision_id: call.api.new_id(),
        service_uid: uuid(),
        revision_uid: uuid(),
        operation: uuid(),
        random: surroundings.random(),
        traffic_in_force: Vec::new(),
        forces_revision,
    }
}

fn edit(
    draft: &mut Draft,
    place: &Place,
    mode: Mode,
    mut context: Context,
    wanted: &Value,
) -> Result<(), ApiError> {
    let name = context.name.clone();
    let key = name.to_string();
    let current: Option<ServiceDocument> =
        draft.get(&key).map(|kept| document::read(&kept)).transpose()?;
    match (mode, &current) {
        (Mode::Create, Some(_)) => {
            let message = format!("Resource '{}' already exists.", name.name);
            return Err(ApiError::new(Reason::AlreadyExists, message));
        }
        (Mode::Replace, None) => return Err(missing(&name)),
        _ => {}
    }
    let before = draft.before().clone();
    if current.is_none() {
        check_room(&before, place)?;
    }
    if let Some(plan) = before.compiled.plan.fleet.service(&name) {
        context.traffic_in_force = traffic_v1(plan);
    }
    let existing = |bare: &str| before.get(&revision_name(&name, bare).to_string());
    let mut intent = intent::declare(&context, current.as_ref(), wanted, existing)?;
    intent.service.project_invokers = policy::project_invokers(&before, &name.project);
    let generation = intent.service.generation();
    draft.put(key, document::write(&intent.service)?);
    if let Some((bare, revision)) = intent.revision {
        draft.put(revision_name(&name, &bare).to_string(), document::write(&revision)?);
        forget_oldest_revision(&before, draft, &name);
    }
    let verb = if current.is_none() { "create" } else { "update" };
    let report = Report { id: &context.operation, verb, service: &name, generation };
    operations::start(draft, &report, &context.now);
    Ok(())
}

fn check_room(state: &State, place: &Place) -> Result<(), ApiError> {
    let services = state.compiled.plan.fleet.services_in(&place.project.id, place.region()?);
    let count = services.map_or(0, |services| services.len());
    if count < SERVICES_MAX {
        return Ok(());
    }
    let message = format!("Quota 'Services' exceeded. Limit: {SERVICES_MAX} in the region.");
    Err(ApiError::new(Reason::QuotaExceeded, message))
}

fn forget_oldest_revision(state: &State, draft: &mut Draft, service: &ResourceName) {
    let Some(plan) = state.compiled.plan.fleet.service(service) else { return };
    if plan.revisions.len() < REVISIONS_MAX {
        return;
    }
    let is_idle =
        |revision: &&Arc<plan::fleet::RevisionPlan>| !is_wanted(plan, &revision.name.name);
    let oldest = plan.revisions.values().filter(is_idle).min_by_key(|r| r.declared.generation);
    if let Some(oldest) = oldest {
        draft.delete(oldest.name.to_string());
    }
}

/// Whether a service needs a revision: it is the newest, gets requests or has a tag.
fn is_wanted(plan: &plan::fleet::ServicePlan, bare: &str) -> bool {
    let is_it = |revision: &plan::fleet::RevisionPlan| revision.name.name.as_str() == bare;
    let named = |target: &model::run::TrafficTarget| matches!(&target.revision, model::run::RevisionChoice::Named(name) if name.as_str() == bare);
    plan.latest_created.as_ref().is_some_and(|latest| is_it(latest))
        || plan.latest_ready.as_ref().is_some_and(|latest| is_it(latest))
        || plan.traffic_in_force.iter().any(|target| is_it(&target.revision))
        || plan.declared.traffic.iter().any(named)
}

/// Deletes a service and all its revisions; returns it as it was, and the operation.
pub(crate) async fn delete_service(
    call: &Call<'_>,
    place: &Place,
    name: &ResourceName,
    is_dry_run: bool,
    check: impl Fn(&ServiceView) -> Result<(), ApiError>,
) -> Result<Made, ApiError> {
    let context = context(call, place, name, false);
    let (operation, now) = (context.operation, context.now);
    let edit = |draft: &mut Draft| {
        let before = draft.before().clone();
        let view = ServiceView::of(call.api, &before, name)?;
        check(&view)?;
        for revision in view.plan.revisions.values() {
            draft.delete(revision.name.to_string());
        }
        draft.delete(name.to_string());
        let generation = view.document.generation();
        let report = Report { id: &operation, verb: "delete", service: name, generation };
        operations::start(draft, &report, &now);
        Ok(view)
    };
    let Changed { value: view, state } = match is_dry_run {
        true => call.api.world().rehearse(edit)?,
        false => call.api.world().change(edit).await?,
    };
    Ok(Made { view, operation, state })
}

/// Deletes a revision that its service does not need; returns it as it was, and the operation.
pub(crate) async fn delete_revision(
    call: &Call<'_>,
    place: &Place,
    name: &ResourceName,
    is_dry_run: bool,
) -> Result<(RevisionView, String), ApiError> {
    let context = context(call, place, name, false);
    let (operation, now) = (context.operation, context.now);
    let edit = |draft: &mut Draft| {
        let before = draft.before().clone();
        let view = RevisionView::of(&before, name)?;
        let service = view.service().ok_or_else(|| missing(name))?;
        let plan = before.compiled.plan.fleet.service(&service);
        if plan.is_some_and(|plan| is_wanted(plan, &name.name)) {
            return Err(ApiError::new(
                Reason::FailedPrecondition,
                format!(
                    "Revision '{}' cannot be deleted: it is actively serving traffic, has a tag, or \
                     is the latest revision of service '{}'.",
                    name.name, service.name
                ),
            ));
        }
        draft.delete(name.to_string());
        let generation = view.document.generation;
        let report = Report { id: &operation, verb: "delete", service: name, generation };
        operations::start(draft, &report, &now);
        Ok(view)
    };
    let changed = match is_dry_run {
        true => call.api.world().rehearse(edit)?,
        false => call.api.world().change(edit).await?,
    };
    Ok((changed.value, operation))
}

/// The name a body gives its resource, judged before it becomes part of a key.
pub(crate) fn wanted_name(wanted: &Value) -> Result<&str, ApiError> {
    let name = text(wanted, "/metadata/name");
    let fits = !name.is_empty()
        && name.len() < 64
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    match fits {
        true => Ok(name),
        false => Err(ApiError::new(
            Reason::Invalid,
            "metadata.name: only lowercase, digits, and hyphens; must begin with letter, and \
             cannot end with hyphen; must be less than 50 characters",
        )),
    }
}

/// The labels and annotations of a resource that are the user's own.
pub(crate) fn users_own(map: Option<&Value>) -> Map<String, Value> {
    let mut own = map.and_then(Value::as_object).cloned().unwrap_or_default();
    own.retain(|name, _| !names::is_system(name));
    own
}
