//! What one routing decision costs, and what it costs to compile the rules behind it; the figures go into
//! the section of `docs/benchmarks.md` between this program's markers.
//!
//! A kind of rule is measured alone, with so many rules in one map, over requests that hit all of them
//! evenly. Nothing here judges: a figure that misses its aim is written down as it is.

mod worlds;

use anyhow::{Context, Result};
use model::url_map::UrlMap;
use model::{Inventory, Resource};
use plan::decision::{Decision, RequestHead, Scheme};
use plan::fleet::FleetPlan;
use plan::routing::{self, Routing, UrlMapPlan};
use std::fmt::Write;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use worlds::{Asked, KINDS};

const BEGIN: &str = "<!-- routing: begin -->";
const END: &str = "<!-- routing: end -->";

/// How many rules of a kind there are.
const SIZES: [usize; 4] = [10, 1_000, 10_000, 100_000];
/// How many maps are in the large world.
const MAPS: usize = 10_000;
/// How long each figure is measured.
const MEASURED_FOR: Duration = Duration::from_millis(400);
/// How many decisions are made between two looks at the clock.
const ROUND: usize = 2_000;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("usage: bench-routing docs/benchmarks.md")?;
    let mut table =
        String::from("| rules | number | decision | compile | tables |\n|---|---|---|---|---|\n");
    for kind in KINDS {
        for size in SIZES {
            let (map, asked) = (kind.build)(size);
            let row = measure(kind.what, size, map, &asked);
            writeln!(table, "{row}")?;
        }
    }
    let world = large_world();
    let text = std::fs::read_to_string(&path)?;
    let begin = text.find(BEGIN).context("the file has a marker for the begin")?;
    let end = text.find(END).context("the file has a marker for the end")?;
    let section = format!("{BEGIN}\n\n{}\n\n{table}\n{world}\n", machine()?);
    std::fs::write(&path, format!("{}{section}{}", &text[..begin], &text[end..]))?;
    Ok(())
}

fn machine() -> Result<String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name\t: "));
    let cores = cpus.lines().filter(|line| line.starts_with("processor\t")).count();
    Ok(format!("{cores} cores of {}, one of them used.", model.unwrap_or("an unnamed processor")))
}

fn head(asked: &Asked) -> RequestHead<'_> {
    RequestHead {
        method: "GET",
        scheme: Scheme::Http,
        authority: &asked.authority,
        path: &asked.path,
        query: None,
        headers: &asked.headers,
        client: [10, 1, 2, 3].into(),
    }
}

fn measure(what: &str, size: usize, map: UrlMap, asked: &[Asked]) -> String {
    let mut inventory = worlds::around();
    let map = Arc::new(map);
    inventory.insert(Resource::UrlMap(Arc::clone(&map)));
    let (fleet, _) = plan::fleet::compile(&inventory, &FleetPlan::default());
    let (before, _) = routing::compile(&worlds::around(), &Routing::default());
    let started = Instant::now();
    let (routing, _) = routing::compile(&inventory, &before);
    let compiling = started.elapsed();
    let plan = routing.url_map(&map.name).expect("the map was compiled");
    let nanoseconds = decisions(&[plan], &fleet, asked);
    format!(
        "| {what} | {size} | {nanoseconds:.0} ns | {} | {} |",
        milliseconds(compiling),
        bytes(plan.bytes())
    )
}

/// The time of one decision, in nanoseconds: the least of many rounds, for a machine is never slower
/// than its code.
fn decisions(plans: &[&Arc<UrlMapPlan>], fleet: &FleetPlan, asked: &[Asked]) -> f64 {
    let started = Instant::now();
    let mut best = Duration::MAX;
    let mut dice = 0;
    while started.elapsed() < MEASURED_FOR {
        let round = Instant::now();
        for _ in 0..ROUND {
            // A step that shares no factor with the usual sizes visits everything.
            dice += 7_919;
            let asked = &asked[dice % asked.len()];
            let plan = plans[dice % plans.len()];
            let decision = plan.decide(fleet, &head(black_box(asked)), dice as u64);
            assert!(matches!(black_box(decision), Decision::Forward(_)));
        }
        best = best.min(round.elapsed());
    }
    best.as_secs_f64() * 1e9 / ROUND as f64
}

fn large_world() -> String {
    let mut inventory = worlds::around();
    for number in 0..MAPS {
        inventory.insert(Resource::UrlMap(Arc::new(worlds::small_map(number, 0))));
    }
    let started = Instant::now();
    let (routing, problems) = routing::compile(&inventory, &Routing::default());
    let all = started.elapsed();
    assert!(problems.is_empty(), "{problems:?}");
    let (fleet, _) = plan::fleet::compile(&inventory, &FleetPlan::default());
    let plans: Vec<&Arc<UrlMapPlan>> = routing.url_maps().collect();
    let nanoseconds = decisions(&plans, &fleet, &worlds::asked_of_small_maps());
    let memory: usize = plans.iter().map(|plan| plan.bytes()).sum();

    let one_map = changes(&inventory, &routing, &|inventory, turn| {
        inventory.insert(Resource::UrlMap(Arc::new(worlds::small_map(turn % MAPS, turn + 1))));
    });
    let one_service = changes(&inventory, &routing, &|inventory, turn| {
        inventory.insert(worlds::lone_service(turn));
    });
    let used_service = changes(&inventory, &routing, &|inventory, turn| {
        inventory.insert(worlds::shared_service(turn));
    });
    let mut text = String::from("| a world of 10,000 URL maps | |\n|---|---|\n");
    for (what, figure) in [
        ("compiled at once", milliseconds(all)),
        ("tables of all maps", bytes(memory)),
        ("a decision, of any map", format!("{nanoseconds:.0} ns")),
        ("one URL map changes", milliseconds(one_map)),
        ("a backend service that one map uses changes", milliseconds(one_service)),
        ("the backend service that all 10,000 maps use changes", milliseconds(used_service)),
    ] {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "| {what} | {figure} |");
    }
    text
}

/// The median time to compile a world that differs by one change.
fn changes(
    inventory: &Inventory,
    routing: &Routing,
    change: &dyn Fn(&mut Inventory, usize),
) -> Duration {
    let mut times: Vec<Duration> = (0..51)
        .map(|turn| {
            let mut changed = inventory.clone();
            change(&mut changed, turn);
            let started = Instant::now();
            black_box(routing::compile(&changed, routing));
            started.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1000.0;
    if milliseconds < 1.0 {
        return format!("{:.0} µs", milliseconds * 1000.0);
    }
    format!("{milliseconds:.1} ms")
}

fn bytes(bytes: usize) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
