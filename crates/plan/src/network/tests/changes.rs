//! Networks brought forward by changes are those compiled from nothing, and what no change concerns stays.

use super::*;
use proptest::prelude::*;

/// One change to a world of two networks, sound or not.
fn change(inventory: &mut Inventory, number: u32) {
    let mut rest = number;
    let mut pick = |words: &[&'static str]| {
        let count = u32::try_from(words.len()).expect("a few words");
        let word = words[usize::try_from(rest % count).expect("small")];
        rest /= count;
        word
    };
    let kind = pick(&["rule", "rule", "rule", "address", "vm", "subnet", "firewall", "network"]);
    let removed = pick(&["", "", "gone"]) == "gone";
    let network = pick(&["n", "m"]);
    let name = match kind {
        "network" => network,
        "subnet" => pick(&["s", "t"]),
        _ => pick(&["a", "b", "c", "d"]),
    };
    let ip = pick(&["10.1.2.2", "10.1.2.3", "10.1.3.4", "10.1.2.1"]);
    let subnet = pick(&["s", "t"]);
    let extra = pick(&["", " label=l", " label=k", " port=81", " shared=yes"]);
    let range = pick(&["10.1.2.0/24", "10.1.3.0/24", "10.1.2.0/23"]);
    let line = match kind {
        "address" => format!("address {name} ip={ip} subnet={subnet}{extra}"),
        "subnet" => format!("subnet {name} range={range} network={network}"),
        "firewall" => format!("firewall {name} network={network} allow=tcp:80 from=10.0.0.0/8"),
        "network" => format!("network {name} mtu=1400"),
        kind => format!("{kind} {name} network={network} ip={ip} subnet={subnet}{extra}"),
    };
    let made = Inventory::default().changes(&world(&line)).remove(0);
    match made.after {
        Some(resource) if removed => drop(inventory.remove(resource.name())),
        resource => resource.into_iter().for_each(|resource| inventory.insert(resource)),
    }
}

proptest! {
    #[test]
    fn networks_brought_forward_are_those_compiled_from_nothing(
        numbers in prop::collection::vec(any::<u32>(), 1..40),
    ) {
        let mut inventory = world("network n\nnetwork m\nsubnet s range=10.1.2.0/24");
        let mut networks = Networks::default();
        for number in numbers {
            change(&mut inventory, number);
            let (next, found) = compile(&inventory, &networks);
            let (afresh, expected) = compile(&inventory, &Networks::default());
            let plans = |networks: &Networks| networks.iter().map(|p| (**p).clone()).collect::<Vec<_>>();
            prop_assert_eq!(plans(&next), plans(&afresh));
            let found: BTreeSet<Problem> = found.into_iter().collect();
            prop_assert_eq!(found, expected.into_iter().collect::<BTreeSet<Problem>>());
            networks = next;
        }
    }
}

#[test]
fn a_forwarding_rule_leaves_other_networks_and_all_instances_as_they_are() {
    let text = "network n\nnetwork m\nsubnet s range=10.1.2.0/24\nvm a ip=10.1.2.2";
    let (before, _) = compile(&world(text), &Networks::default());
    let mut changed = before.declared.clone();
    let rule = Inventory::default().changes(&world("rule f ip=10.1.2.9 label=l")).remove(0);
    rule.after.into_iter().for_each(|rule| changed.insert(rule));
    let (after, _) = compile(&changed, &before);
    let [own, other] = [network_name(Some("n")), network_name(Some("m"))];
    assert!(Arc::ptr_eq(before.get(&other).unwrap(), after.get(&other).unwrap()));
    let [old, new] = [before.get(&own).unwrap(), after.get(&own).unwrap()];
    assert!(old.instances.ptr_eq(&new.instances));
    assert_eq!(new.frontends.len(), 1);
    assert_eq!(new.hosts.len(), old.hosts.len() + 1);
}
