//! Which route rule of a path matcher answers: the first in order of priority that matches.
//!
//! Rules are found through what can be indexed of each of their matches: an exact path, the literal text
//! a path begins with, and, where many share that, one exact value of a header or parameter. What is left
//! is asked one by one. Every candidate is then asked for what its index has not seen, so an
//! index can only leave out rules that could not have matched.
//!
//! Invariant: rules are in order of priority, and so is every list of candidates.

use super::action::Action;
use super::predicate::{HeaderPredicate, PathPredicate, Subject, Test};
use super::prefix_table::PrefixTable;
use crate::decision::{HeaderAction, RequestHead};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// From how many candidates on a list is worth an index of its own.
const INDEXED_FROM: usize = 8;

/// A compiled route rule.
#[derive(Clone, Debug)]
pub(crate) struct RouteRule {
    pub(crate) priority: i32,
    /// Its position in the document.
    pub(crate) position: usize,
    /// Most rules have one, which then lies beside the rest.
    pub(crate) matches: SmallVec<[RouteMatch; 1]>,
    pub(crate) action: Action,
    pub(crate) header_action: HeaderAction,
}

/// A compiled match rule: all of it must hold.
#[derive(Clone, Debug)]
pub(crate) struct RouteMatch {
    pub(crate) path: PathPredicate,
    /// Conditions on headers and parameters.
    pub(crate) conditions: Vec<HeaderPredicate>,
    /// What logs call the rule when this match made it answer.
    pub(crate) text: Box<str>,
}

impl RouteMatch {
    /// Whether a match that was found by its path holds: of a text, the index has seen all of it.
    fn holds_where_indexed(&self, head: &RequestHead<'_>) -> bool {
        let path = match &self.path {
            PathPredicate::Template(_) | PathPredicate::Regex(_) => self.path.is_match(head.path),
            PathPredicate::Any
            | PathPredicate::Exact(_)
            | PathPredicate::ExactFolded(_)
            | PathPredicate::Prefix(_)
            | PathPredicate::PrefixFolded(_) => true,
        };
        path && self.conditions.iter().all(|c| c.is_match(head))
    }
}

/// A match of a rule: the rule's and the match's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Candidate {
    pub(crate) rule: u32,
    pub(crate) part: u32,
}

/// The route rules of a path matcher.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteTable {
    rules: Vec<RouteRule>,
    lists: Vec<List>,
    exact: FxHashMap<Box<[u8]>, u32>,
    prefixes: PrefixTable,
    /// As `exact` and `prefixes`, for paths in lower case.
    folded_exact: FxHashMap<Box<[u8]>, u32>,
    folded_prefixes: PrefixTable,
    /// Longer paths cannot be in an exact or folded index.
    exact_len_max: usize,
    folded_len_max: usize,
    /// Matches whose path cannot be indexed.
    others: List,
}

/// Candidates by the value they need.
type ByValue = FxHashMap<Box<[u8]>, Vec<Candidate>>;

/// Candidates that share what they are indexed by.
#[derive(Clone, Debug, Default)]
struct List {
    /// Asked one by one.
    scanned: SmallVec<[Candidate; 2]>,
    /// Those that need a certain value of a header or parameter.
    by_value: Vec<(Subject, ByValue)>,
}

impl RouteTable {
    /// Builds the table; rules may come in any order.
    pub(crate) fn new(mut rules: Vec<RouteRule>) -> RouteTable {
        rules.sort_by_key(|rule| rule.priority);
        let mut keys = Keys::default();
        for (rule, number) in rules.iter().zip(0u32..) {
            for (part, part_number) in rule.matches.iter().zip(0u32..) {
                keys.add(&part.path, Candidate { rule: number, part: part_number });
            }
        }
        let mut table = RouteTable::default();
        let mut list = |candidates: Vec<Candidate>| {
            table.lists.push(List::new(candidates, &rules));
            u32::try_from(table.lists.len() - 1).unwrap_or(u32::MAX)
        };
        let longest = |map: &BTreeMap<Vec<u8>, Vec<Candidate>>| map.keys().map(Vec::len).max();
        let exact_len_max = longest(&keys.exact).unwrap_or(0);
        let folded_len_max = longest(&keys.folded_exact).max(longest(&keys.folded_prefixes));
        let exact = keys.exact.into_iter().map(|(k, found)| (k.into(), list(found))).collect();
        let folded =
            keys.folded_exact.into_iter().map(|(k, found)| (k.into(), list(found))).collect();
        let prefixes: Vec<_> =
            keys.prefixes.into_iter().map(|(k, found)| (k, list(found))).collect();
        let folded_prefixes: Vec<_> =
            keys.folded_prefixes.into_iter().map(|(k, found)| (k, list(found))).collect();
        RouteTable {
            others: List::new(keys.others, &rules),
            exact,
            folded_exact: folded,
            prefixes: PrefixTable::new(prefixes),
            folded_prefixes: PrefixTable::new(folded_prefixes),
            exact_len_max,
            folded_len_max: folded_len_max.unwrap_or(0),
            rules,
            ..table
        }
    }

    /// The rules in order of priority.
    pub(crate) fn rules(&self) -> &[RouteRule] {
        &self.rules
    }

    /// The first rule that matches, and which of its matches does.
    pub(crate) fn find(&self, head: &RequestHead<'_>) -> Option<(&RouteRule, &RouteMatch)> {
        let mut best = None;
        let path = head.path.as_bytes();
        if path.len() <= self.exact_len_max
            && let Some(list) = self.exact.get(path)
        {
            self.ask(*list, head, &mut best);
        }
        self.prefixes.walk(path, |list| self.ask(list, head, &mut best));
        if self.folded_len_max > 0 {
            // What lies behind the longest folded text cannot matter to a prefix.
            let seen = &path[..path.len().min(self.folded_len_max)];
            let mut folded: SmallVec<[u8; 256]> = SmallVec::from_slice(seen);
            folded.make_ascii_lowercase();
            if path.len() <= self.folded_len_max
                && let Some(list) = self.folded_exact.get(&folded[..])
            {
                self.ask(*list, head, &mut best);
            }
            self.folded_prefixes.walk(&folded, |list| self.ask(list, head, &mut best));
        }
        self.others.ask(&self.rules, head, &mut best);
        let Candidate { rule, part } = best?;
        let rule = self.rules.get(rule as usize)?;
        Some((rule, rule.matches.get(part as usize)?))
    }

    fn ask(&self, list: u32, head: &RequestHead<'_>, best: &mut Option<Candidate>) {
        if let Some(list) = self.lists.get(list as usize) {
            list.ask(&self.rules, head, best);
        }
    }

    /// The memory it takes, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        let matches: usize = self.rules.iter().map(|rule| rule.matches.len()).sum();
        let keys: usize = self.exact.keys().chain(self.folded_exact.keys()).map(|k| k.len()).sum();
        self.rules.len() * size_of::<RouteRule>()
            + matches * (size_of::<RouteMatch>() + 2 * size_of::<Candidate>())
            + self.lists.len() * size_of::<List>()
            + (self.exact.capacity() + self.folded_exact.capacity()) * 24
            + keys
            + self.prefixes.bytes()
            + self.folded_prefixes.bytes()
    }
}

/// What each match can be found by.
#[derive(Default)]
struct Keys {
    exact: BTreeMap<Vec<u8>, Vec<Candidate>>,
    prefixes: BTreeMap<Vec<u8>, Vec<Candidate>>,
    folded_exact: BTreeMap<Vec<u8>, Vec<Candidate>>,
    folded_prefixes: BTreeMap<Vec<u8>, Vec<Candidate>>,
    others: Vec<Candidate>,
}

impl Keys {
    fn add(&mut self, path: &PathPredicate, candidate: Candidate) {
        let (map, key) = match path {
            PathPredicate::Exact(text) => (&mut self.exact, text.as_bytes().to_vec()),
            PathPredicate::Prefix(text) => (&mut self.prefixes, text.as_bytes().to_vec()),
            PathPredicate::Template(template) => {
                (&mut self.prefixes, template.literal_prefix().into_bytes())
            }
            PathPredicate::ExactFolded(text) => {
                (&mut self.folded_exact, text.to_ascii_lowercase().into_bytes())
            }
            PathPredicate::PrefixFolded(text) => {
                (&mut self.folded_prefixes, text.to_ascii_lowercase().into_bytes())
            }
            PathPredicate::Regex(pattern) if !pattern.literal_prefix().is_empty() => {
                (&mut self.prefixes, pattern.literal_prefix())
            }
            PathPredicate::Any | PathPredicate::Regex(_) => return self.others.push(candidate),
        };
        map.entry(key).or_default().push(candidate);
    }
}

impl List {
    fn new(candidates: Vec<Candidate>, rules: &[RouteRule]) -> List {
        if candidates.len() < INDEXED_FROM {
            return List { scanned: candidates.into(), by_value: Vec::new() };
        }
        let mut list = List::default();
        let mut by_value: BTreeMap<Subject, FxHashMap<Box<[u8]>, Vec<Candidate>>> = BTreeMap::new();
        for candidate in candidates {
            let rule = &rules[candidate.rule as usize];
            let conditions = &rule.matches[candidate.part as usize].conditions;
            let exact = conditions.iter().find_map(|condition| match &condition.test {
                Test::Exact(value) if !condition.invert => Some((&condition.subject, value)),
                _ => None,
            });
            match exact {
                Some((subject, value)) => {
                    let values = by_value.entry(subject.clone()).or_default();
                    values.entry(value.clone()).or_default().push(candidate);
                }
                None => list.scanned.push(candidate),
            }
        }
        list.by_value = by_value.into_iter().collect();
        list
    }

    /// Improves `best` by the first candidate that matches.
    fn ask(&self, rules: &[RouteRule], head: &RequestHead<'_>, best: &mut Option<Candidate>) {
        first_match(&self.scanned, rules, head, best);
        for (subject, values) in &self.by_value {
            let candidates = subject.value(head).and_then(|value| values.get(&*value));
            if let Some(candidates) = candidates {
                first_match(candidates, rules, head, best);
            }
        }
    }
}

fn first_match(
    candidates: &[Candidate],
    rules: &[RouteRule],
    head: &RequestHead<'_>,
    best: &mut Option<Candidate>,
) {
    for candidate in candidates {
        if best.is_some_and(|best| best <= *candidate) {
            return;
        }
        let rule = &rules[candidate.rule as usize];
        if rule.matches[candidate.part as usize].holds_where_indexed(head) {
            *best = Some(*candidate);
            return;
        }
    }
}
