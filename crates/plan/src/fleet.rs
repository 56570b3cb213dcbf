//! Cloud Run services as the data plane sees them: traffic, tags, revisions.

/// Services and revisions of every project and region.
#[derive(Clone, Debug, Default)]
pub struct FleetPlan {}

/// A Cloud Run service: who may call it and which revision answers.
#[derive(Debug)]
pub struct ServicePlan {}

/// A revision: everything an instance of it needs.
#[derive(Debug)]
pub struct RevisionPlan {}
