//! The loop that throws away images no revision has any more: at the start, after revisions went, and
//! while the disk is short.
//!
//! Invariant: an image of a declared revision, of an instance, of a pull under way, or from a file that
//! somebody loaded stays.

use model::ResourceName;
use plan::Plan;
use plan::fleet::ServicePlan;
use serverless::images::ImageStore;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Instances of a revision that went hold its image until they have ended; by then they have.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How often the disk is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// The disk is short when less than this is free, in bytes.
const FREE_BYTES_MIN: u64 = 2 * 1024 * 1024 * 1024;

/// The digests of the images that revisions of a plan were resolved to.
pub(crate) fn digests_in_use(plan: &Plan) -> BTreeSet<String> {
    plan.fleet.services().flat_map(|service| digests(service)).collect()
}

/// The digests of the images that revisions of a service were resolved to.
fn digests(service: &ServicePlan) -> impl Iterator<Item = String> {
    let outcomes = service.revisions.values().filter_map(|it| it.declared.outcome.as_ref());
    outcomes.flat_map(|outcome| outcome.image_digests.iter().map(|(_, digest)| digest.clone()))
}

/// Collects until there are no more plans.
pub(crate) async fn run(
    images: ImageStore,
    directory: PathBuf,
    mut plans: watch::Receiver<Arc<Plan>>,
) {
    let mut plan = plans.borrow_and_update().clone();
    collect(&images, &plan).await;
    let mut again = false;
    loop {
        let patience = if again { AGAIN_AFTER } else { LOOK_EVERY };
        match tokio::time::timeout(patience, plans.changed()).await {
            Ok(Err(_)) => return,
            Ok(Ok(())) => {
                let before = std::mem::replace(&mut plan, plans.borrow_and_update().clone());
                if lets_go(&before, &plan) {
                    collect(&images, &plan).await;
                    again = true;
                }
            }
            Err(_) => {
                if again || is_short(&directory) {
                    collect(&images, &plan).await;
                }
                again = false;
            }
        }
    }
}

/// Whether a digest that was in use no longer is. All services are asked only if one of those that
/// changed let go of something.
fn lets_go(before: &Plan, after: &Plan) -> bool {
    let of = |plan: &Plan, name: &ResourceName| -> BTreeSet<String> {
        plan.fleet.service(name).into_iter().flat_map(|service| digests(service)).collect()
    };
    let changed = after.fleet.changed_since(&before.fleet);
    changed.iter().any(|name| !of(before, name).is_subset(&of(after, name)))
        && !digests_in_use(before).is_subset(&digests_in_use(after))
}

async fn collect(images: &ImageStore, plan: &Plan) {
    let keep: Vec<String> = digests_in_use(plan).into_iter().collect();
    match images.collect(&keep).await {
        Ok(collected) if collected == serverless::images::Collected::default() => {}
        Ok(collected) => tracing::info!(?collected, "threw images away that nothing uses"),
        Err(error) => {
            tracing::warn!(error = crate::applier::chain(&error), "unused images stay");
        }
    }
}

/// Whether the disk with this directory is nearly full. One that cannot be asked is not.
fn is_short(directory: &std::path::Path) -> bool {
    let found = nix::sys::statvfs::statvfs(directory);
    found.is_ok_and(|found| found.blocks_available() * found.fragment_size() < FREE_BYTES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::run::{
        Access, Ingress, Outcome, Revision, RevisionScaling, Service, ServiceScaling,
    };
    use model::{Inventory, Kind, Resource};
    use plan::Compiled;

    fn service(name: &str) -> Service {
        Service {
            name: ResourceName::regional("p", "r", Kind::Service, name),
            id: 1,
            ingress: Ingress::All,
            default_url_disabled: false,
            access: Access::default(),
            traffic: Vec::new(),
            traffic_before: Vec::new(),
            scaling: ServiceScaling::default(),
        }
    }

    fn revision(of: &str, name: &str, digest: &str) -> Revision {
        Revision {
            name: ResourceName::regional("p", "r", Kind::Revision, name),
            id: 1,
            service: service(of).name,
            generation: 1,
            containers: Vec::new(),
            volumes: Vec::new(),
            concurrency: 80,
            timeout_seconds: 300,
            scaling: RevisionScaling::default(),
            cpu_idle: true,
            startup_cpu_boost: false,
            session_affinity: false,
            service_account: None,
            execution_environment: None,
            vpc_access: None,
            outcome: Some(Outcome {
                ready: true,
                reason: String::new(),
                message: String::new(),
                image_digests: vec![("".into(), digest.to_owned())],
            }),
        }
    }

    #[test]
    fn a_digest_goes_with_the_last_revision_that_has_it() {
        let mut world = Inventory::default();
        let mut compiled = Compiled::default();
        // Whether what is in use shrinks when this comes or goes.
        let mut step = |comes: bool, of: &str, name: &str, digest: &str| {
            let revision = revision(of, name, digest);
            if comes {
                world.insert(Resource::Service(Arc::new(service(of))));
                world.insert(Resource::Revision(Arc::new(revision)));
            } else {
                world.remove(&revision.name);
            }
            let next = plan::compile(&world, compiled.plan.number + 1, &compiled);
            let goes = lets_go(&compiled.plan, &next.plan);
            compiled = next;
            goes
        };
        let steps = [
            (true, "a", "a-1", "one", false),
            (true, "b", "b-1", "one", false),
            (true, "b", "b-2", "two", false),
            (false, "b", "b-1", "one", false),
            (false, "b", "b-2", "two", true),
            (false, "a", "a-1", "one", true),
        ];
        for (comes, of, name, digest, goes) in steps {
            assert_eq!(step(comes, of, name, digest), goes, "{name}, which comes: {comes}");
        }
    }
}
