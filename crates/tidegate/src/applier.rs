//! The loop that carries plans out: one after the other, always the newest, and reports when all of one is
//! in force.
//!
//! The order within one plan loses nothing: what is going stops listening and drains before its address
//! goes, and an address is there before anybody listens on it.
//!
//! Invariant: plans are carried out in ascending order, and a number is reported after everything of it.

use crate::joins::metadata::MachineMetadata;
use crate::joins::observed::Progress;
use crate::joins::run_apps::RunApps;
use model::ResourceName;
use plan::Plan;
use proxy::{ListenFailure, Proxy};
use serverless::fleet::Fleet;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use vpc::Vpc;

/// Everyone a plan is carried out by.
#[derive(Debug)]
pub(crate) struct Applier {
    pub(crate) vpc: Vpc,
    pub(crate) fleet: Fleet,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) metadata: Arc<MachineMetadata>,
    pub(crate) run_apps: Arc<RunApps>,
    /// Held while a plan is carried out, and for ever by whoever wants no other to be.
    pub(crate) turn: Arc<Mutex<()>>,
}

impl Applier {
    /// Carries out every plan that comes, until there are no more.
    pub(crate) async fn run(self: Arc<Self>, mut plans: watch::Receiver<Arc<Plan>>) {
        let mut before = Arc::new(Plan::default());
        loop {
            let plan = plans.borrow_and_update().clone();
            let turn = self.turn.lock().await;
            let failures = self.carry_out(&before, &plan).await;
            drop(turn);
            for (resource, message) in &failures {
                tracing::error!(%resource, message, "could not be carried out");
            }
            let retry = !failures.is_empty();
            self.progress.report(plan.clone(), failures);
            before = plan;
            let changed = plans.changed();
            let next = if retry {
                // What failed for a passing reason is put right without waiting for the next change.
                tokio::time::timeout(RETRY_AFTER, changed).await.unwrap_or(Ok(()))
            } else {
                changed.await
            };
            if next.is_err() {
                return;
            }
        }
    }

    async fn carry_out(&self, before: &Plan, plan: &Arc<Plan>) -> HashMap<ResourceName, String> {
        let mut failures = HashMap::new();
        if let Some(remaining) = without_arrivals(before, plan) {
            self.serve(&Arc::new(remaining)).await;
        }
        let (vpc, networks) = (self.vpc.clone(), plan.networks.clone());
        let (metadata, run_apps) = (self.metadata.clone(), self.run_apps.clone());
        let apply = move || {
            run_apps.leave_others(&networks);
            let failures = vpc.apply(&networks);
            metadata.follow(&vpc, &networks);
            run_apps.enter(&networks);
            failures
        };
        match tokio::task::spawn_blocking(apply).await {
            Ok(failed) => failures.extend(failed.into_iter().map(|failure| {
                let message = chain(&failure.source);
                (failure.resource, message)
            })),
            Err(error) => tracing::error!(%error, "carrying out the networks broke off"),
        }
        self.fleet.apply(plan);
        // The fleet ends only with the process.
        let _ = self.fleet.applied().wait_for(|number| *number >= plan.number).await;
        for failure in self.serve(plan).await {
            let (ListenFailure::Socket { rule, .. } | ListenFailure::Tls { rule, .. }) = &failure;
            failures.insert(rule.clone(), chain(&failure));
        }
        failures
    }

    async fn serve(&self, plan: &Arc<Plan>) -> Vec<ListenFailure> {
        let (proxy, plan) = (self.proxy.clone(), plan.clone());
        match tokio::task::spawn_blocking(move || proxy.apply(&plan)).await {
            Ok(failures) => failures,
            Err(error) => {
                tracing::error!(%error, "carrying out the listeners broke off");
                Vec::new()
            }
        }
    }
}

/// How long until what could not be carried out is tried again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// The plan without the listeners that are only coming, if any of the old ones go or move: those have to
/// be gone from the data plane before their addresses are gone from the host.
fn without_arrivals(before: &Plan, plan: &Plan) -> Option<Plan> {
    let stays = |name: &ResourceName| {
        let (Some(old), Some(new)) = (before.listeners.get(name), plan.listeners.get(name)) else {
            return false;
        };
        (old.id, &old.network, old.address, old.port)
            == (new.id, &new.network, new.address, new.port)
    };
    if before.listeners.ptr_eq(&plan.listeners) || before.listeners.keys().all(stays) {
        return None;
    }
    let listeners = plan.listeners.iter().filter(|(name, _)| stays(name));
    let listeners = listeners.map(|(name, listener)| (name.clone(), listener.clone())).collect();
    Some(Plan { listeners, ..Plan::clone(plan) })
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
