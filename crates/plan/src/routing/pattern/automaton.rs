//! A regular expression as a deterministic automaton, made in full before the first text is matched.
//!
//! Engines that make their states while they match, or follow many at once, are linear too, but by a factor
//! that whoever wrote the pattern chooses. Here the factor is one table look-up, and it is the pattern
//! that is refused when its table would be too large.
//!
//! Invariant: the table takes no more than [`TABLE_BYTES_MAX`] bytes.

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

/// The largest program a pattern is compiled to on the way, in bytes.
const PROGRAM_BYTES_MAX: usize = 128 * 1024;

/// The largest table of one pattern, in bytes.
pub(super) const TABLE_BYTES_MAX: usize = 512 * 1024;

/// The most memory that making the table may take, in bytes; it bounds the time too.
const MAKING_BYTES_MAX: usize = 512 * 1024;

/// The longest text taken for the common beginning of all matches, in bytes.
const PREFIX_BYTES_MAX: usize = 128;

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Automaton {
    table: dense::DFA<Vec<u32>>,
}

impl Automaton {
    /// Compiles a pattern written for the `regex` crate.
    pub(super) fn new(pattern: &str) -> Result<Automaton, String> {
        let too_large = || "pattern too large - compile failed".to_string();
        let program = thompson::Compiler::new()
            .syntax(syntax::Config::new().utf8(false).nest_limit(250))
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(PROGRAM_BYTES_MAX)),
            )
            .build(&format!(r"(?:{pattern})\z"))
            .map_err(|error| match error.size_limit() {
                Some(_) => too_large(),
                None => "bad pattern".to_string(),
            })?;
        let table = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .accelerate(false)
                    .match_kind(MatchKind::All)
                    .start_kind(StartKind::Anchored)
                    .dfa_size_limit(Some(TABLE_BYTES_MAX))
                    .determinize_size_limit(Some(MAKING_BYTES_MAX)),
            )
            .build_from_nfa(&program)
            .map_err(|_| too_large())?;
        Ok(Automaton { table })
    }

    /// Whether the whole text matches, and how many steps it took to say so.
    pub(super) fn run(&self, text: &[u8]) -> (bool, usize) {
        let table = &self.table;
        let from_start = start::Config::new().anchored(Anchored::Yes);
        let Ok(mut state) = table.start_state(&from_start) else { return (false, 0) };
        for (byte, steps) in text.iter().zip(1..) {
            state = table.next_state(state, *byte);
            if table.is_dead_state(state) {
                return (false, steps);
            }
        }
        (table.is_match_state(table.next_eoi_state(state)), text.len())
    }

    /// The text that every match begins with, up to [`PREFIX_BYTES_MAX`].
    pub(super) fn literal_prefix(&self) -> Vec<u8> {
        let table = &self.table;
        let mut prefix = Vec::new();
        let from_start = start::Config::new().anchored(Anchored::Yes);
        let Ok(mut state) = table.start_state(&from_start) else { return prefix };
        while prefix.len() < PREFIX_BYTES_MAX && !table.is_match_state(table.next_eoi_state(state))
        {
            let next =
                |byte| Some(table.next_state(state, byte)).filter(|s| !table.is_dead_state(*s));
            let mut alive = (0..=u8::MAX).filter_map(|byte| Some((byte, next(byte)?)));
            let (Some((byte, after)), None) = (alive.next(), alive.next()) else { break };
            prefix.push(byte);
            state = after;
        }
        prefix
    }

    /// The memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.table.memory_usage()
    }
}
