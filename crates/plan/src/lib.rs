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
pub mod references;
pub mod routing;

use imbl::OrdMap;
use load_balancer::Listener;
use model::{Inventory, Problem, ResourceName};
use references::References;
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
    /// Who names whom.
    pub references: References,
    inventory: Inventory,
    routing: routing::Routing,
    load_balancers: load_balancer::LoadBalancers,
}

impl Compiled {
    /// The world this was compiled from.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The compiled URL maps and backend services.
    pub fn routing(&self) -> &routing::Routing {
        &self.routing
    }

    /// What is wrong here and was not wrong in `previous`: the reason to refuse the change between them.
    pub fn problems_since<'a>(
        &'a self,
        previous: &'a Compiled,
    ) -> impl Iterator<Item = &'a Problem> {
        self.problems.difference(&previous.problems)
    }
}

/// Compiles the whole world under the revision `number`; what `previous` holds of unchanged parts is
/// shared, and comparing pointers is all they cost.
pub fn compile(inventory: &Inventory, number: u64, previous: &Compiled) -> Compiled {
    let references = previous.references.brought_forward(&previous.inventory, inventory);
    let mut problems: BTreeSet<Problem> = references.problems().collect();

    let (networks, found) = network::compile(inventory, &previous.plan.networks);
    problems.extend(found);
    let (fleet, found) = fleet::compile(inventory, &previous.plan.fleet);
    problems.extend(found);
    let (routing, found) = routing::compile(inventory, &previous.routing);
    problems.extend(found);
    let world = load_balancer::World {
        before: &previous.inventory,
        inventory,
        routing: &routing,
        networks: &networks,
        references: &references,
    };
    let (load_balancers, found) = load_balancer::compile(world, &previous.load_balancers);
    problems.extend(found);

    let listeners = load_balancers.listeners.clone();
    Compiled {
        plan: Arc::new(Plan { number, networks, listeners, fleet }),
        problems: Arc::new(problems),
        references,
        inventory: inventory.clone(),
        routing,
        load_balancers,
    }
}
