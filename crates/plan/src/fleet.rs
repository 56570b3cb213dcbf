//! Cloud Run services as the data plane sees them: traffic, tags, revisions.

use model::{Inventory, Problem};

/// Services and revisions of every project and region.
#[derive(Clone, Debug, Default)]
pub struct FleetPlan {}

/// Compiles every service and revision; what did not change since `previous` is shared.
pub fn compile(inventory: &Inventory, previous: &FleetPlan) -> (FleetPlan, Vec<Problem>) {
    let _ = (inventory, previous);
    (FleetPlan::default(), Vec::new())
}

/// A Cloud Run service: who may call it and which revision answers.
#[derive(Debug)]
pub struct ServicePlan {}

/// A revision: everything an instance of it needs.
#[derive(Debug)]
pub struct RevisionPlan {}
