//! What the declared world means: [`compile`] turns an [`Inventory`] into one immutable [`Plan`].
//!
//! The function that admits a change is the function that serves it: the API compiles the world as it
//! would become and refuses a change that adds a problem, and the very plan it compiled is then applied.
//! Compiling cannot fail: what is sound is in the plan, the rest is in the problems.
//!
//! Invariant: a part of the world that did not change is the same `Arc` in the next plan.

pub mod decision;
pub mod fleet;
pub mod load_balancer;
pub mod network;
pub mod routing;

use imbl::OrdMap;
use load_balancer::Listener;
use model::{Inventory, Problem, ResourceName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Everything the appliers need to know, complete, numbered and immutable.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The revision of the store this plan was compiled from; an older plan is never applied over a newer.
    pub number: u64,
    /// What the VPCs are: namespaces, addresses, instances, firewall.
    pub networks: network::Networks,
    /// What answers on which address and port, by forwarding rule.
    pub listeners: OrdMap<ResourceName, Arc<Listener>>,
    /// Cloud Run services and their revisions.
    pub fleet: fleet::FleetPlan,
}

/// A plan, what is wrong with the world it came from, and what the next compilation can take over.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The plan.
    pub plan: Arc<Plan>,
    /// All problems of the world.
    pub problems: Arc<BTreeSet<Problem>>,
    inventory: Arc<Inventory>,
    routing: routing::Routing,
    load_balancers: load_balancer::LoadBalancers,
}

impl Compiled {
    /// The world this was compiled from.
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.inventory
    }
}
