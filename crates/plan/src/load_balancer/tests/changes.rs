//! Load balancers brought forward by changes are those that are judged and compiled all over again.

use super::super::compile as compile_load_balancers;
use super::*;
use proptest::prelude::*;

/// One change to a world of a few rules, proxies and addresses, sound or not.
fn change(world: &mut Inventory, number: u32) {
    let mut rest = number;
    let mut pick = |count: u32| {
        let picked = rest % count;
        rest /= count;
        picked
    };
    let (what, removed) = (pick(8), pick(4) == 0);
    // Each rule has an address of its own: who keeps one that two want depends on who had it first.
    let (name, address) = [("a", 2), ("b", 3), ("c", 4), ("d", 5)][pick(4) as usize];
    let resource = match what {
        0..=3 => {
            let mut rule = rule(name, [10, 1, 2, address], [80, 443][pick(2) as usize]);
            if pick(2) == 0 {
                rule.target = regional(Kind::TargetHttpsProxy, "secure");
            }
            rule.reserved_address = (pick(2) == 0).then(|| regional(Kind::Address, "vip"));
            Resource::ForwardingRule(Arc::new(rule))
        }
        4 => Resource::Address(Arc::new(Address {
            name: regional(Kind::Address, "vip"),
            id: 5,
            address: Some([10, 1, 2, 2].into()),
            address_type: AddressType::Internal,
            purpose: match pick(2) {
                0 => AddressPurpose::GceEndpoint,
                _ => AddressPurpose::SharedLoadBalancerVip,
            },
            subnetwork: Some(regional(Kind::Subnetwork, "lb-subnet")),
            network: None,
        })),
        5 => Resource::TargetHttpProxy(Arc::new(TargetHttpProxy {
            name: regional(Kind::TargetHttpProxy, "proxy"),
            id: 4,
            url_map: regional(Kind::UrlMap, ["map", "other"][pick(2) as usize]),
            keepalive_seconds: [None, Some(4), Some(60)][pick(3) as usize],
        })),
        6 => {
            let map = world.url_maps.values().next().map(|map| UrlMap::clone(map));
            let Some(mut map) = map else { return };
            map.name = regional(Kind::UrlMap, ["map", "other"][pick(2) as usize]);
            let redirect = map.default.url_redirect.get_or_insert_default();
            redirect.https = pick(2) == 0;
            Resource::UrlMap(Arc::new(map))
        }
        _ => {
            let role = Some([Role::Active, Role::Backup][pick(2) as usize]);
            subnet("proxies", "10.129.0.0/23", Purpose::RegionalManagedProxy, role)
        }
    };
    match removed {
        true => drop(world.remove(resource.name())),
        false => world.insert(resource),
    }
}

/// Everything again, knowing of `previous` only who was served.
fn all_over_again(compiled: &Compiled, previous: &Compiled) -> (LoadBalancers, Vec<Problem>) {
    let world = World {
        before: &Inventory::default(),
        inventory: compiled.inventory(),
        routing: compiled.routing(),
        networks: &compiled.plan.networks,
        references: &compiled.references,
    };
    let listeners = previous.plan.listeners.clone();
    // Listeners of rules that are gone are never asked for.
    let listeners = listeners.into_iter().filter(|(name, _)| compiled.inventory().contains(name));
    let served = LoadBalancers { listeners: listeners.collect(), ..LoadBalancers::default() };
    compile_load_balancers(world, &served)
}

proptest! {
    #[test]
    fn load_balancers_brought_forward_are_those_compiled_all_over_again(
        numbers in prop::collection::vec(any::<u32>(), 1..40),
    ) {
        let mut world = world();
        world.insert(Resource::TargetHttpsProxy(Arc::new(https_proxy(&["c"]))));
        let mut previous = compile(&world, 0, &Compiled::default());
        for (number, turn) in numbers.into_iter().zip(1..) {
            change(&mut world, number);
            let compiled = compile(&world, turn, &previous);
            let (expected, found) = all_over_again(&compiled, &previous);
            let told = |listener: &Arc<Listener>| {
                (format!("{:?}", listener.name), listener.address, listener.port, listener.keepalive)
            };
            let all = |listeners: &OrdMap<ResourceName, Arc<Listener>>| {
                listeners.values().map(told).collect::<Vec<_>>()
            };
            prop_assert_eq!(all(&compiled.plan.listeners), all(&expected.listeners));
            for listener in compiled.plan.listeners.values() {
                let map = compiled.routing().url_map(&listener.url_map.name);
                prop_assert!(map.is_some_and(|map| Arc::ptr_eq(map, &listener.url_map)));
            }
            for problem in found {
                prop_assert!(compiled.problems.contains(&problem), "{problem}");
            }
            let own = compiled.load_balancers.problems.values().map(|found| found.len()).sum::<usize>();
            prop_assert_eq!(own, expected.problems.values().map(|found| found.len()).sum::<usize>());
            previous = compiled;
        }
    }
}
