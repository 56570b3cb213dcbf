//! Which of many byte strings begin a given one: a radix tree, built once and then only read.
//!
//! A walk costs time in proportion to what it matches, whatever the number of entries, and never goes
//! back. Host suffixes are the same question asked from the right, so they use it with reversed keys.
//!
//! Invariant: the children of a node are contiguous and ordered by the first byte of their labels, and no
//! two begin with the same byte.

/// Stands for "no value" in a node.
const NONE: u32 = u32::MAX;

/// Byte strings with a number each.
#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixTable {
    nodes: Vec<Node>,
    labels: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    label_start: u32,
    label_len: u32,
    children_start: u32,
    children_len: u16,
    first: u8,
    value: u32,
}

/// A part of the sorted keys whose common beginning is a node.
struct Span {
    node: usize,
    from: usize,
    to: usize,
    depth: usize,
}

impl PrefixTable {
    /// Builds the table. Of equal keys the first one counts; values are below `u32::MAX`.
    pub(crate) fn new(entries: impl IntoIterator<Item = (Vec<u8>, u32)>) -> PrefixTable {
        let mut entries: Vec<(Vec<u8>, u32)> = entries.into_iter().collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries.dedup_by(|(later, _), (earlier, _)| later == earlier);
        let mut table = PrefixTable::default();
        if entries.is_empty() {
            return table;
        }
        table.push(&[]);
        let mut spans = vec![Span { node: 0, from: 0, to: entries.len(), depth: 0 }];
        while let Some(span) = spans.pop() {
            table.branch(&entries, span, &mut spans);
        }
        table.nodes.shrink_to_fit();
        table.labels.shrink_to_fit();
        table
    }

    fn branch(&mut self, entries: &[(Vec<u8>, u32)], span: Span, spans: &mut Vec<Span>) {
        let Span { node, mut from, to, depth } = span;
        if entries[from].0.len() == depth {
            self.nodes[node].value = entries[from].1;
            from += 1;
        }
        let children_start = self.nodes.len();
        while from < to {
            let first = &entries[from].0;
            let end =
                from + entries[from..to].partition_point(|(key, _)| key[depth] == first[depth]);
            let last = &entries[end - 1].0;
            let common = first.iter().zip(last).skip(depth).take_while(|(a, b)| a == b).count();
            let child = self.push(&first[depth..depth + common]);
            spans.push(Span { node: child, from, to: end, depth: depth + common });
            from = end;
        }
        self.nodes[node].children_start = index(children_start);
        // At most 256: one for each first byte.
        self.nodes[node].children_len =
            u16::try_from(self.nodes.len() - children_start).unwrap_or(u16::MAX);
    }

    fn push(&mut self, label: &[u8]) -> usize {
        let label_start = index(self.labels.len());
        self.labels.extend_from_slice(label);
        self.nodes.push(Node {
            label_start,
            label_len: index(label.len()),
            children_start: 0,
            children_len: 0,
            first: label.first().copied().unwrap_or_default(),
            value: NONE,
        });
        self.nodes.len() - 1
    }

    /// Visits every entry that `text` begins with, the shortest first.
    pub(crate) fn walk(&self, text: &[u8], mut visit: impl FnMut(u32)) {
        let Some(mut node) = self.nodes.first() else { return };
        let mut rest = text;
        loop {
            if node.value != NONE {
                visit(node.value);
            }
            let Some(next) = rest.first() else { return };
            let start = node.children_start as usize;
            let children = &self.nodes[start..start + usize::from(node.children_len)];
            let Ok(at) = children.binary_search_by_key(next, |child| child.first) else { return };
            node = &children[at];
            let label = node.label_start as usize;
            match rest.strip_prefix(&self.labels[label..label + node.label_len as usize]) {
                Some(after) => rest = after,
                None => return,
            }
        }
    }

    /// The longest entry that `text` begins with.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<u32> {
        let mut found = None;
        self.walk(text, |value| found = Some(value));
        found
    }

    /// The memory it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.labels.capacity()
    }
}

/// Documents are bounded far below 4 GiB, so positions fit.
fn index(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(keys: &[&str]) -> PrefixTable {
        PrefixTable::new(keys.iter().zip(0..).map(|(key, value)| (key.as_bytes().to_vec(), value)))
    }

    #[test]
    fn every_entry_that_begins_the_text_is_visited_the_shortest_first() {
        let table = table(&["/", "/video/", "/video/live/", "/vid", "/web/"]);
        let mut seen = Vec::new();
        table.walk(b"/video/live/7", |value| seen.push(value));
        assert_eq!(seen, [0, 3, 1, 2]);
        assert_eq!(table.longest(b"/videos"), Some(3));
        assert_eq!(table.longest(b"web"), None);
    }

    #[test]
    fn an_empty_table_finds_nothing_and_the_empty_key_begins_everything() {
        assert_eq!(table(&[]).longest(b"/"), None);
        assert_eq!(table(&[""]).longest(b""), Some(0));
    }

    proptest! {
        #[test]
        fn the_tree_agrees_with_asking_every_entry(
            keys in prop::collection::vec("[ab/]{0,5}", 0..20),
            text in "[ab/]{0,8}",
        ) {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let mut expected: Vec<u32> = Vec::new();
            for length in 0..=text.len() {
                expected.extend(keys.iter().position(|key| *key == &text[..length])
                    .map(|at| u32::try_from(at).expect("small")));
            }
            let mut seen = Vec::new();
            table(&keys).walk(text.as_bytes(), |value| seen.push(value));
            prop_assert_eq!(seen, expected);
        }
    }
}
