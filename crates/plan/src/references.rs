//! Who names whom: every reference of the world, and those that lead nowhere.
//!
//! Kept from one compilation to the next and brought forward by what changed, so that the question
//! "who uses this?" costs a look-up, whatever the size of the world.
//!
//! Invariant: `users` holds exactly the references of the inventory it was last brought forward to.

use imbl::{OrdMap, OrdSet};
use model::{Inventory, Problem, Resource, ResourceName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A field and the name in it.
type Reference = (String, ResourceName);

/// All references, seen from what they point at.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// For each name that is referred to: who refers to it.
    users: OrdMap<ResourceName, OrdSet<ResourceName>>,
    /// The references to what does not exist, of each that has some.
    dangling: OrdMap<ResourceName, Arc<[Reference]>>,
}

impl References {
    /// Who refers to `target`, in order of their names.
    pub fn users_of<'a>(&'a self, target: &ResourceName) -> impl Iterator<Item = &'a ResourceName> {
        self.users.get(target).into_iter().flatten()
    }

    /// A problem for every reference that leads nowhere.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        self.dangling.iter().flat_map(|(user, references)| {
            let problem =
                |(field, target): &Reference| Problem::dangling(user, field.clone(), target);
            references.iter().map(problem)
        })
    }

    /// The references of `next`, given that these are those of `previous`.
    pub fn brought_forward(&self, previous: &Inventory, next: &Inventory) -> References {
        let mut references = self.clone();
        let changes = previous.changes(next);
        for change in &changes {
            let Some(user) = change.name() else { continue };
            let before = change.before.as_ref().map(Resource::targets).unwrap_or_default();
            let after = change.after.as_ref().map(Resource::targets).unwrap_or_default();
            for target in before.iter().filter(|target| after.binary_search(target).is_err()) {
                references.forget(user, target);
            }
            references.note(user, change.after.as_ref(), &after, next);
            for target in after {
                if before.binary_search(&target).is_err() {
                    references.users.entry(target).or_default().insert(user.clone());
                }
            }
        }
        // Only now is it known who refers to what came or went without having changed itself.
        let mut concerned = BTreeSet::new();
        for change in &changes {
            let Some(name) = change.name() else { continue };
            match (&change.before, &change.after) {
                (Some(_), None) => concerned.extend(references.users_of(name).cloned()),
                (None, Some(_)) if !references.dangling.is_empty() => {
                    let users = references.users_of(name);
                    let waiting = users.filter(|user| references.dangling.contains_key(*user));
                    concerned.extend(waiting.cloned());
                }
                _ => {}
            }
        }
        for user in concerned {
            let resource = next.get(&user);
            let targets = resource.as_ref().map(Resource::targets).unwrap_or_default();
            references.note(&user, resource.as_ref(), &targets, next);
        }
        references
    }

    /// Remembers which references of a resource lead nowhere in `world`.
    fn note(
        &mut self,
        user: &ResourceName,
        resource: Option<&Resource>,
        targets: &[ResourceName],
        world: &Inventory,
    ) {
        let resource = resource.filter(|_| targets.iter().any(|target| !world.contains(target)));
        let Some(resource) = resource else {
            if !self.dangling.is_empty() {
                self.dangling.remove(user);
            }
            return;
        };
        let all = resource.references().into_iter();
        let dangling: Vec<Reference> = all.filter(|(_, target)| !world.contains(target)).collect();
        self.dangling.insert(user.clone(), dangling.into());
    }

    fn forget(&mut self, user: &ResourceName, target: &ResourceName) {
        if let Some(users) = self.users.get_mut(target) {
            users.remove(user);
            if users.is_empty() {
                self.users.remove(target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Kind;
    use model::network::Network;
    use std::sync::Arc;

    fn network() -> Resource {
        let name = ResourceName::global("p", Kind::Network, "n");
        let (auto_create_subnetworks, mtu_bytes) = (false, 1460);
        let network = Network {
            name,
            id: 1,
            auto_create_subnetworks,
            mtu_bytes,
            routing_mode: <_>::default(),
        };
        Resource::Network(Arc::new(network))
    }

    fn rule(name: &str, network: &Resource) -> Resource {
        let missing = |kind, name| ResourceName::regional("p", "r", kind, name);
        Resource::ForwardingRule(Arc::new(model::forwarding_rule::ForwardingRule {
            name: missing(Kind::ForwardingRule, name),
            id: 2,
            load_balancing_scheme: "INTERNAL_MANAGED".into(),
            network: network.name().clone(),
            subnetwork: missing(Kind::Subnetwork, "s"),
            address: [10, 0, 0, 2].into(),
            reserved_address: None,
            port: 80,
            target: missing(Kind::TargetHttpProxy, "t"),
            allow_global_access: false,
            service_label: None,
        }))
    }

    fn dangling(references: &References) -> Vec<String> {
        references.problems().map(|p| format!("{} {}", p.resource.name, p.field)).collect()
    }

    #[test]
    fn a_reference_dangles_until_its_target_is_there_and_again_when_it_is_gone() {
        let network = network();
        let mut worlds = vec![Inventory::default()];
        let mut step = |change: &dyn Fn(&mut Inventory)| {
            let mut next = worlds[worlds.len() - 1].clone();
            change(&mut next);
            worlds.push(next);
        };
        step(&|world| world.insert(rule("f", &network)));
        step(&|world| world.insert(network.clone()));
        step(&|world| world.insert(rule("g", &network)));
        step(&|world| assert!(world.remove(network.name())));

        let mut references = References::default();
        let mut seen: Vec<Vec<String>> = Vec::new();
        for pair in worlds.windows(2) {
            references = references.brought_forward(&pair[0], &pair[1]);
            let from_nothing =
                References::default().brought_forward(&Inventory::default(), &pair[1]);
            assert_eq!(dangling(&references), dangling(&from_nothing));
            seen.push(
                dangling(&references).into_iter().filter(|d| d.ends_with(" network")).collect(),
            );
        }
        let none: Vec<String> = Vec::new();
        assert_eq!(
            seen,
            [
                vec!["f network".into()],
                none.clone(),
                none,
                vec!["f network".into(), "g network".into()]
            ]
        );
        assert_eq!(references.users_of(network.name()).count(), 2);
    }
}
