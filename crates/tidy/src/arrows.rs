//! Which crate may use which: the arrows between the rooms, and what a pure room may be built from.
//!
//! The facts come from `cargo metadata`; an arrow that is not drawn in [`ROOMS`] is a complaint.

use serde_json::Value;
use std::collections::BTreeMap;

/// One room: its package, the rooms it may use, and, where it is pure, every outside crate it may use.
#[derive(Debug)]
pub struct Room {
    /// The package's name.
    pub package: &'static str,
    /// Our crates it may depend on.
    pub may_use: &'static [&'static str],
    /// The only outside crates it may depend on; `None` where I/O is its business.
    pub outside: Option<&'static [&'static str]>,
}

const EVERY_ROOM: &[&str] = &[
    "tidegate-api",
    "tidegate-model",
    "tidegate-plan",
    "tidegate-proxy",
    "tidegate-serverless",
    "tidegate-store",
    "tidegate-vpc",
    "tidegate-wire",
];

const fn room(package: &'static str, may_use: &'static [&'static str]) -> Room {
    Room { package, may_use, outside: None }
}

/// The arrows. Effects know the plan and what it is made of; only `api` knows Google's JSON and the
/// store; only the binary knows everybody.
pub const ROOMS: &[Room] = &[
    Room {
        package: "tidegate-model",
        may_use: &[],
        outside: Some(&["imbl", "ipnet", "thiserror"]),
    },
    Room {
        package: "tidegate-plan",
        may_use: &["tidegate-model"],
        outside: Some(&[
            "aho-corasick",
            "imbl",
            "ipnet",
            "memchr",
            "regex",
            "regex-automata",
            "regex-syntax",
            "rustc-hash",
            "serde",
            "smallvec",
        ]),
    },
    room("tidegate-store", &[]),
    Room {
        package: "tidegate-wire",
        may_use: &[],
        outside: Some(&["prost-reflect", "serde", "serde_json", "serde_path_to_error"]),
    },
    room("tidegate-api", &["tidegate-wire", "tidegate-model", "tidegate-plan", "tidegate-store"]),
    room("tidegate-proxy", &["tidegate-plan", "tidegate-model"]),
    room("tidegate-serverless", &["tidegate-plan", "tidegate-model"]),
    room("tidegate-vpc", &["tidegate-plan", "tidegate-model"]),
    room("tidegate", EVERY_ROOM),
    room("tidegate-tidy", &[]),
    room("e2e", &[]),
    room("data-plane-bench", EVERY_ROOM),
    room("bench-routing", &["tidegate-model", "tidegate-plan", "tidegate-proxy"]),
    room("bench-report", &[]),
    room("bench-serverless", &["bench-report", "e2e"]),
    room("bench-control-plane", &["bench-report", "e2e", "tidegate-model", "tidegate-plan"]),
];

/// Complaints about the arrows in the output of `cargo metadata --no-deps`.
pub fn complaints(metadata: &Value, rooms: &[Room]) -> Vec<String> {
    let by_name: BTreeMap<&str, &Room> = rooms.iter().map(|room| (room.package, room)).collect();
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut complaints = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(room) = by_name.get(name) else {
            complaints.push(format!("{name}: no room of that name is drawn in tidy's arrows"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            // Tests may look at more than the code they test; they ship nothing.
            if dependency["kind"].as_str().is_some() {
                continue;
            }
            let used = dependency["name"].as_str().unwrap_or_default();
            if ours.contains(&used) {
                if !room.may_use.contains(&used) {
                    complaints.push(format!("{name} -> {used}: this arrow points the wrong way"));
                }
            } else if room.outside.is_some_and(|allowed| !allowed.contains(&used)) {
                complaints
                    .push(format!("{name} -> {used}: not among what this room is built from"));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn world(dependencies: &[(&str, &str)]) -> Value {
        let package = |name: &str| {
            let uses: Vec<Value> = dependencies
                .iter()
                .filter(|(from, _)| *from == name)
                .map(|(_, to)| json!({ "name": to, "kind": null }))
                .collect();
            json!({ "name": name, "dependencies": uses })
        };
        let names = ["tidegate-model", "tidegate-plan", "tidegate-proxy", "tidegate-store"];
        json!({ "packages": names.map(package) })
    }

    #[test]
    fn an_arrow_that_is_drawn_is_fine() {
        let world = world(&[("tidegate-plan", "tidegate-model"), ("tidegate-plan", "regex")]);
        assert_eq!(complaints(&world, ROOMS), Vec::<String>::new());
    }

    #[test]
    fn the_data_plane_never_sees_the_store() {
        let world = world(&[("tidegate-proxy", "tidegate-store")]);
        assert_eq!(
            complaints(&world, ROOMS),
            ["tidegate-proxy -> tidegate-store: this arrow points the wrong way"],
        );
    }

    #[test]
    fn a_pure_room_is_built_from_value_crates_only() {
        let world = world(&[("tidegate-model", "tokio")]);
        assert_eq!(
            complaints(&world, ROOMS),
            ["tidegate-model -> tokio: not among what this room is built from"],
        );
    }

    #[test]
    fn a_crate_nobody_drew_is_asked_about() {
        let world = json!({ "packages": [{ "name": "tidegate-utils", "dependencies": [] }] });
        assert_eq!(complaints(&world, ROOMS).len(), 1);
    }
}
