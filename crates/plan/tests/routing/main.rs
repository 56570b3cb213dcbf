//! The compiled router against a second one that was written separately and without any index.
//!
//! Maps and requests are made from small alphabets, so that they meet often. `ROUTING_PAIRS` says how many
//! pairs of map and request are compared; a failure prints the seed that repeats it.

mod generate;
mod limits;
mod naive;
mod world;

use generate::Random;
use model::url_map::UrlMap;
use model::{Inventory, Resource};
use plan::decision::Decision;
use plan::fleet::FleetPlan;
use plan::routing::{self, Routing};
use std::sync::Arc;

/// How many pairs a normal run compares.
const PAIRS_DEFAULT: usize = 200_000;
/// How many requests each map is asked.
const REQUESTS_PER_MAP: usize = 250;

#[allow(
    clippy::disallowed_methods,
    reason = "how long to test is for whoever runs the tests to say"
)]
fn pairs() -> usize {
    let given = std::env::var("ROUTING_PAIRS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(PAIRS_DEFAULT)
}

/// A decision in the words the naive router uses.
fn told(decision: &Decision<'_>) -> naive::Outcome {
    match decision {
        Decision::Forward(forward) => naive::Outcome {
            rule: forward.matched.rule.to_string(),
            matcher: forward.matched.path_matcher.map(str::to_string),
            service: Some(forward.backend_service.name.name.to_string()),
            authority: forward.authority.map(str::to_string),
            path_and_query: forward.path_and_query.clone(),
            location: None,
            status: None,
        },
        Decision::Respond(respond) => naive::Outcome {
            rule: respond.matched.rule.to_string(),
            matcher: respond.matched.path_matcher.map(str::to_string),
            service: respond.matched.backend_service.map(|service| service.name.name.to_string()),
            authority: None,
            path_and_query: None,
            location: respond
                .headers
                .iter()
                .find(|(n, _)| *n == "location")
                .map(|(_, v)| v.clone()),
            status: Some(respond.status),
        },
    }
}

fn compiled(map: UrlMap) -> (Routing, FleetPlan, Arc<UrlMap>) {
    let map = Arc::new(map);
    let mut inventory = world::of_services();
    inventory.insert(Resource::UrlMap(Arc::clone(&map)));
    let (fleet, _) = plan::fleet::compile(&inventory, &FleetPlan::default());
    let (routing, problems) = routing::compile(&inventory, &Routing::default());
    assert_eq!(problems, [], "generated maps are sound: {map:#?}");
    (routing, fleet, map)
}

#[test]
fn the_compiled_router_decides_as_the_naive_one() {
    let maps = pairs().div_ceil(REQUESTS_PER_MAP);
    for seed in 0..maps as u64 {
        let mut random = Random::from(seed);
        let (routing, fleet, map) = compiled(generate::url_map(&mut random));
        let plan = routing.url_map(&map.name).expect("the map is compiled");
        for _ in 0..REQUESTS_PER_MAP {
            let request = generate::request(&mut random);
            let decision = plan.decide(&fleet, &request.head(), random.next());
            let expected = naive::decide(&map, &request);
            assert_eq!(told(&decision), expected, "seed {seed}: {request:?}\n{map:#?}");
        }
    }
}

#[test]
fn the_order_of_declaration_never_matters() {
    for seed in 0..(pairs() / REQUESTS_PER_MAP / 10).max(50) as u64 {
        let mut random = Random::from(seed);
        let map = generate::url_map(&mut random);
        let mut shuffled = map.clone();
        random.shuffle(&mut shuffled.host_rules);
        random.shuffle(&mut shuffled.path_matchers);
        shuffled.host_rules.iter_mut().for_each(|rule| random.shuffle(&mut rule.hosts));
        for matcher in &mut shuffled.path_matchers {
            random.shuffle(&mut matcher.path_rules);
            random.shuffle(&mut matcher.route_rules);
            matcher.path_rules.iter_mut().for_each(|rule| random.shuffle(&mut rule.paths));
        }
        let (one, fleet, map) = compiled(map);
        let (other, ..) = compiled(shuffled);
        let find = |routing: &Routing| Arc::clone(routing.url_map(&map.name).expect("compiled"));
        let (one, other) = (find(&one), find(&other));
        for _ in 0..50 {
            let request = generate::request(&mut random);
            let dice = random.next();
            let decisions = [&one, &other].map(|p| told(&p.decide(&fleet, &request.head(), dice)));
            assert_eq!(decisions[0], decisions[1], "seed {seed}: {request:?}");
        }
    }
}

#[test]
fn an_explanation_tells_the_decision_that_is_made() {
    for seed in 0..300 {
        let mut random = Random::from(seed);
        let (routing, fleet, map) = compiled(generate::url_map(&mut random));
        let plan = routing.url_map(&map.name).expect("the map is compiled");
        for _ in 0..10 {
            let request = generate::request(&mut random);
            let dice = random.next();
            let decision = told(&plan.decide(&fleet, &request.head(), dice));
            let caller = plan::fleet::Caller::Anonymous;
            let explanation = plan.explain(&fleet, &request.head(), caller, dice);
            assert_eq!(explanation.matched_rule, decision.rule);
            assert_eq!(explanation.path_matcher, decision.matcher);
            assert_eq!(explanation.answer.location, decision.location);
            let matched = explanation.rules.iter().any(|rule| rule.matched);
            assert!(matched == (decision.rule != "UNMATCHED") || explanation.rules.len() == 1);
            assert!(explanation.to_string().contains(&decision.rule));
        }
        plan.lint();
    }
}

#[test]
fn a_world_compiled_step_by_step_is_the_world_compiled_at_once() {
    for seed in 0..60 {
        let mut random = Random::from(seed);
        let mut inventory = Inventory::default();
        let mut routing = Routing::default();
        for _ in 0..25 {
            world::change(&mut inventory, &mut random);
            let (next, mut problems) = routing::compile(&inventory, &routing);
            let (from_nothing, mut expected) = routing::compile(&inventory, &Routing::default());
            problems.sort();
            expected.sort();
            assert_eq!(problems, expected, "seed {seed}");
            for plan in next.url_maps() {
                let other = from_nothing.url_map(&plan.name).expect("both have it");
                let fleet = FleetPlan::default();
                for _ in 0..10 {
                    let request = generate::request(&mut random);
                    let decisions =
                        [plan, other].map(|plan| told(&plan.decide(&fleet, &request.head(), 7)));
                    assert_eq!(decisions[0], decisions[1], "seed {seed}");
                }
            }
            assert_eq!(next.url_maps().count(), from_nothing.url_maps().count());
            routing = next;
        }
    }
}

#[test]
fn what_did_not_change_is_the_same_in_the_next_routing() {
    let mut random = Random::from(1);
    let mut inventory = world::of_services();
    let mut maps = Vec::new();
    for number in 0..50 {
        let mut map = generate::url_map(&mut random);
        map.name = world::name(model::Kind::UrlMap, &format!("map-{number}"));
        maps.push(map.name.clone());
        inventory.insert(Resource::UrlMap(Arc::new(map)));
    }
    let (before, _) = routing::compile(&inventory, &Routing::default());
    let mut changed = generate::url_map(&mut random);
    changed.name = maps[0].clone();
    inventory.insert(Resource::UrlMap(Arc::new(changed)));
    let (after, _) = routing::compile(&inventory, &before);
    for name in &maps[1..] {
        let [old, new] = [&before, &after].map(|routing| routing.url_map(name).expect("compiled"));
        assert!(Arc::ptr_eq(old, new), "{name}");
    }
    assert!(!Arc::ptr_eq(
        before.url_map(&maps[0]).expect("compiled"),
        after.url_map(&maps[0]).expect("compiled")
    ));
    let (again, _) = routing::compile(&inventory, &after);
    assert!(maps.iter().all(|name| {
        let [old, new] = [&after, &again].map(|routing| routing.url_map(name).expect("compiled"));
        Arc::ptr_eq(old, new)
    }));
}

#[test]
fn requests_that_take_turns_are_shared_out_exactly() {
    let weighted = |number: usize, weight| model::url_map::WeightedBackendService {
        service: world::name(model::Kind::BackendService, &format!("s{number}")),
        weight,
        header_action: Default::default(),
    };
    let mut map = generate::url_map(&mut Random::from(3));
    map.host_rules = Vec::new();
    map.default = model::url_map::Destination {
        route_action: Some(model::url_map::RouteAction {
            weighted_backend_services: vec![weighted(0, 950), weighted(1, 0), weighted(2, 50)],
            ..Default::default()
        }),
        ..Default::default()
    };
    let (routing, fleet, map) = compiled(map);
    let plan = routing.url_map(&map.name).expect("the map is compiled");
    let request = generate::request(&mut Random::from(3));
    let mut counts = [0; 3];
    for dice in 0..1000 {
        // Asking takes no turn.
        plan.decide(&fleet, &request.head(), dice);
        let decision = plan.decide_in_turn(&fleet, &request.head(), dice);
        let service = told(&decision).service.expect("a backend service");
        counts[service[1..].parse::<usize>().expect("a number")] += 1;
    }
    assert_eq!(counts, [950, 0, 50]);
}
