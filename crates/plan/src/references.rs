//! Who names whom: every reference of the world, and those that lead nowhere.
//!
//! Kept from one compilation to the next and brought forward by what changed, so that the question
//! "who uses this?" costs a look-up, whatever the size of the world.
//!
//! Invariant: `users` holds exactly the references of the inventory it was last brought forward to.

use imbl::{OrdMap, OrdSet};
use model::{Inventory, Problem, Resource, ResourceName};

/// All references, seen from what they point at.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// For each name that is referred to: who refers to it, and in which field.
    users: OrdMap<ResourceName, OrdSet<(ResourceName, String)>>,
    /// The references to what does not exist: user, field, target.
    dangling: OrdSet<(ResourceName, String, ResourceName)>,
}

impl References {
    /// Who refers to `target`, in order of their names.
    pub fn users_of<'a>(&'a self, target: &ResourceName) -> impl Iterator<Item = &'a ResourceName> {
        self.users.get(target).into_iter().flatten().map(|(user, _)| user)
    }

    /// A problem for every reference that leads nowhere.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        let problem = |(user, field, target): &(ResourceName, String, ResourceName)| {
            Problem::dangling(user, field.clone(), target)
        };
        self.dangling.iter().map(problem)
    }

    /// The references of `next`, given that these are those of `previous`.
    pub fn brought_forward(&self, previous: &Inventory, next: &Inventory) -> References {
        let mut references = self.clone();
        let changes = previous.changes(next);
        for change in &changes {
            for (field, target) in change.before.iter().flat_map(Resource::references) {
                if let Some(user) = change.name() {
                    references.forget(user, field, &target);
                }
            }
        }
        for change in &changes {
            for (field, target) in change.after.iter().flat_map(Resource::references) {
                if let Some(user) = change.name() {
                    references.remember(user, field, target);
                }
            }
        }
        // Only now is it known who refers to what came, went or changed its own references.
        for change in &changes {
            let Some(name) = change.name() else { continue };
            references.recheck(name, next.contains(name));
            for (field, target) in change.after.iter().flat_map(Resource::references) {
                if !next.contains(&target) {
                    references.dangling.insert((name.clone(), field, target));
                }
            }
        }
        references
    }

    fn forget(&mut self, user: &ResourceName, field: String, target: &ResourceName) {
        self.dangling.remove(&(user.clone(), field.clone(), target.clone()));
        if let Some(users) = self.users.get_mut(target) {
            users.remove(&(user.clone(), field));
            if users.is_empty() {
                self.users.remove(target);
            }
        }
    }

    fn remember(&mut self, user: &ResourceName, field: String, target: ResourceName) {
        self.users.entry(target).or_default().insert((user.clone(), field));
    }

    fn recheck(&mut self, target: &ResourceName, exists: bool) {
        let Some(users) = self.users.get(target) else { return };
        for (user, field) in users {
            let entry = (user.clone(), field.clone(), target.clone());
            if exists {
                self.dangling.remove(&entry);
            } else {
                self.dangling.insert(entry);
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
