//! What a guest can read, as a tree of names. Pure.
//!
//! Invariant: what costs a signature is in the tree as a place only, and is never part of a
//! recursive answer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Guest, GuestKind, Machine, SCOPES};

/// A place in the tree.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    /// A list of places; the names of some are theirs and not ours to rewrite in JSON.
    Directory(BTreeMap<String, Node>),
    /// The same, whose names are numbers from 0.
    List(Vec<Node>),
    /// One value.
    Text(String),
    /// A value that is a number in JSON.
    Number(u64),
    /// Values a line each.
    Lines(Vec<String>),
    /// An access token of this account.
    AccessToken(String),
    /// An identity token of this account.
    IdentityToken(String),
}

/// Everything this guest can read, below `/computeMetadata/v1/`.
pub(super) fn tree_of(guest: &Guest) -> Node {
    let number = guest.project_number;
    let mut project = vec![
        ("numeric-project-id", Node::Number(number)),
        ("project-id", Node::Text(guest.project.clone())),
    ];
    let accounts = ("service-accounts", service_accounts(&guest.accounts));
    let instance = match &guest.kind {
        GuestKind::Container { id, region } => directory([
            ("id", Node::Text(id.clone())),
            ("region", Node::Text(format!("projects/{number}/regions/{region}"))),
            ("zone", Node::Text(format!("projects/{number}/zones/{region}-1"))),
            accounts,
        ]),
        GuestKind::Machine(machine) => {
            project.push(("attributes", attributes(&guest.project_attributes)));
            let mut places = of_machine(machine, number);
            places.push(accounts);
            directory(places)
        }
    };
    directory([("instance", instance), ("project", directory(project))])
}

fn of_machine(machine: &Machine, number: u64) -> Vec<(&'static str, Node)> {
    let text = |text: &str| Node::Text(text.to_owned());
    let interface = |(address, network): &(std::net::Ipv4Addr, String)| {
        directory([
            ("ip", Node::Text(address.to_string())),
            ("network", Node::Text(format!("projects/{number}/networks/{network}"))),
        ])
    };
    let machine_type = format!("projects/{number}/machineTypes/{}", machine.machine_type);
    vec![
        ("attributes", attributes(&machine.attributes)),
        ("hostname", text(&machine.hostname)),
        ("id", Node::Number(machine.id)),
        ("machine-type", Node::Text(machine_type)),
        ("name", text(&machine.name)),
        ("network-interfaces", Node::List(machine.interfaces.iter().map(interface).collect())),
        ("tags", Node::Lines(machine.tags.clone())),
        ("zone", Node::Text(format!("projects/{number}/zones/{}", machine.zone))),
    ]
}

/// Every account under its address, and the first under `default` too.
fn service_accounts(accounts: &[String]) -> Node {
    let mut places = BTreeMap::new();
    for (index, email) in accounts.iter().enumerate() {
        let aliases = if index == 0 { vec!["default".to_owned()] } else { Vec::new() };
        let scopes = SCOPES.iter().map(|scope| (*scope).to_owned()).collect();
        let account = directory([
            ("aliases", Node::Lines(aliases)),
            ("email", Node::Text(email.clone())),
            ("identity", Node::IdentityToken(email.clone())),
            ("scopes", Node::Lines(scopes)),
            ("token", Node::AccessToken(email.clone())),
        ]);
        if index == 0 {
            places.insert("default".to_owned(), account.clone());
        }
        places.insert(email.clone(), account);
    }
    Node::Directory(places)
}

fn attributes(pairs: &[(String, String)]) -> Node {
    let texts = pairs.iter().map(|(key, value)| (key.clone(), Node::Text(value.clone())));
    Node::Directory(texts.collect())
}

fn directory(places: impl IntoIterator<Item = (&'static str, Node)>) -> Node {
    Node::Directory(places.into_iter().map(|(name, node)| (name.to_owned(), node)).collect())
}

impl Node {
    /// The place at this path, whose segments are decoded.
    pub(super) fn at(&self, path: &[String]) -> Option<&Node> {
        let [first, rest @ ..] = path else { return Some(self) };
        match self {
            Node::Directory(places) => places.get(first)?.at(rest),
            Node::List(places) => places.get(first.parse::<usize>().ok()?)?.at(rest),
            _ => None,
        }
    }

    /// Whether there are places below.
    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Node::Directory(_) | Node::List(_))
    }

    /// The names below, a line each, those with more below them with a slash.
    pub(super) fn listing(&self) -> String {
        let line = |(name, node): (String, &Node)| {
            let slash = if node.is_directory() { "/" } else { "" };
            format!("{name}{slash}\n")
        };
        self.places().into_iter().map(line).collect()
    }

    fn places(&self) -> Vec<(String, &Node)> {
        match self {
            Node::Directory(places) => places.iter().map(|(n, node)| (n.clone(), node)).collect(),
            Node::List(places) => {
                places.iter().enumerate().map(|(n, node)| (n.to_string(), node)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Everything from here on as JSON; nothing for what has to be asked for by its own name.
    pub(super) fn json(&self) -> Option<Value> {
        Some(match self {
            Node::Directory(places) => {
                let entries = places.iter().filter_map(|(n, node)| Some((camel(n), node.json()?)));
                Value::Object(entries.collect::<Map<String, Value>>())
            }
            Node::List(places) => places.iter().filter_map(Node::json).collect(),
            Node::Text(text) => text.as_str().into(),
            Node::Number(number) => (*number).into(),
            Node::Lines(lines) => lines.as_slice().into(),
            Node::AccessToken(_) | Node::IdentityToken(_) => return None,
        })
    }

    /// One value as text.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Node::Text(text) => Some(text.clone()),
            Node::Number(number) => Some(number.to_string()),
            Node::Lines(lines) => Some(lines.iter().map(|line| format!("{line}\n")).collect()),
            _ => None,
        }
    }

    /// Everything from here on as lines of path and value.
    pub(super) fn flat(&self) -> String {
        let mut lines = String::new();
        self.flatten("", &mut lines);
        lines
    }

    fn flatten(&self, path: &str, lines: &mut String) {
        if let Some(text) = self.text() {
            for line in text.lines() {
                lines.push_str(&format!("{path} {line}\n"));
            }
        }
        for (name, node) in self.places() {
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            node.flatten(&path, lines);
        }
    }
}

/// `numeric-project-id` is `numericProjectId` in JSON; names with anything else in them are not
/// ours.
fn camel(name: &str) -> String {
    if name.contains(|c: char| !c.is_ascii_lowercase() && c != '-') {
        return name.to_owned();
    }
    let mut words = name.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut all, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        all.push_str(&head.to_ascii_uppercase());
        all.push_str(tail);
        all
    })
}
