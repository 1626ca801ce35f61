//! Beginnings that were computed before: a radix tree over token ids whose nodes may hold a snapshot of a cache.
//!
//! A snapshot is a fork: it shares its pages with the sequence that it was taken from and with other snapshots until
//! somebody writes there. A new prompt continues from the deepest snapshot on its path; where it leaves the path
//! inside an edge, a snapshot further down serves too if its cache can go back that far (local layers forget what
//! is behind their window, so often it cannot: that is why snapshots are taken on the way, not only at the end).
//!
//! Memory is counted by piece, so that what is shared counts once. The snapshot used longest ago goes first.

use std::collections::HashMap;

use carat_model::SequenceCache;

/// Most snapshots that are kept, whatever memory there is: each also holds its tokens.
const MAX_SNAPSHOTS: usize = 1024;
/// Nodes below a divergence that are tried for a snapshot that can go back.
const MAX_TRIED: usize = 32;
/// The node of the empty beginning.
const ROOT: usize = 0;

/// The tree. See the module's head.
pub(crate) struct PrefixCache<C> {
    nodes: Vec<Node<C>>,
    free: Vec<usize>,
    clock: u64,
    n_snapshots: usize,
    /// Owners and bytes of each piece of memory that snapshots hold.
    memory: HashMap<usize, (usize, usize)>,
    bytes: usize,
}

struct Node<C> {
    /// Tokens between the parent and this node; empty for the root only.
    edge: Vec<u32>,
    parent: usize,
    /// By the first token of their edge.
    children: HashMap<u32, usize>,
    snapshot: Option<Snapshot<C>>,
}

struct Snapshot<C> {
    cache: C,
    used: u64,
    /// Whether it was taken where a prompt or an answer ended or two prompts part, not only on the way.
    is_mark: bool,
}

/// A beginning that has left the tree.
pub(crate) struct Evicted<C> {
    pub(crate) tokens: Vec<u32>,
    pub(crate) cache: C,
    /// Whether others may well begin with all of it.
    pub(crate) is_mark: bool,
}

/// What the tree knows of a prompt.
pub(crate) struct Found<C> {
    /// A cache with the prompt's first tokens, if a snapshot had any.
    pub(crate) cache: Option<C>,
    /// Tokens of the prompt that some earlier one began with too.
    pub(crate) n_common: usize,
}

/// Where the path of some tokens ends.
struct Walk {
    node: usize,
    /// Tokens down to `node`.
    depth: usize,
    /// The child whose edge the path goes into, and how far.
    inside: Option<(usize, usize)>,
}

impl<C: SequenceCache> PrefixCache<C> {
    /// A tree without snapshots.
    pub(crate) fn new() -> Self {
        let root = Node {
            edge: Vec::new(),
            parent: ROOT,
            children: HashMap::new(),
            snapshot: None,
        };
        Self {
            nodes: vec![root],
            free: Vec::new(),
            clock: 0,
            n_snapshots: 0,
            memory: HashMap::new(),
            bytes: 0,
        }
    }

    /// Bytes that snapshots hold, pieces shared among them once.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Snapshots held.
    pub(crate) fn len(&self) -> usize {
        self.n_snapshots
    }

    /// Whether a piece of memory belongs to a snapshot.
    pub(crate) fn holds(&self, piece: usize) -> bool {
        self.memory.contains_key(&piece)
    }

    /// The longest beginning of `tokens` that a snapshot can be forked to.
    pub(crate) fn find(&mut self, tokens: &[u32]) -> Found<C> {
        self.clock += 1;
        let walk = self.walk(tokens);
        let n_common = walk.depth + walk.inside.map_or(0, |(_, n)| n);
        let below = walk.inside.map_or(walk.node, |(child, _)| child);
        let cache = self
            .fork_below(below, n_common)
            .or_else(|| self.fork_above(walk.node));
        Found { cache, n_common }
    }

    /// How many of the first tokens of `tokens` are in the tree.
    pub(crate) fn n_common(&self, tokens: &[u32]) -> usize {
        let walk = self.walk(tokens);
        walk.depth + walk.inside.map_or(0, |(_, n)| n)
    }

    /// Keeps `cache`, which holds exactly `tokens`. `is_mark`: whether others may well begin with all of them.
    pub(crate) fn insert(&mut self, tokens: &[u32], cache: C, is_mark: bool) {
        debug_assert_eq!(tokens.len(), cache.len());
        self.clock += 1;
        if tokens.is_empty() {
            return;
        }
        let node = self.node_at(tokens);
        let used = self.clock;
        if let Some(old) = &mut self.nodes[node].snapshot {
            old.used = used;
            old.is_mark |= is_mark;
            return;
        }
        self.count(&cache);
        self.nodes[node].snapshot = Some(Snapshot { cache, used, is_mark });
        self.n_snapshots += 1;
    }

    /// As [`PrefixCache::evict`], if there are more than are kept whatever memory there is.
    pub(crate) fn evict_surplus(&mut self) -> Option<Evicted<C>> {
        if self.n_snapshots > MAX_SNAPSHOTS {
            self.evict()
        } else {
            None
        }
    }

    /// Lets the snapshot go that was used longest ago; `None` when there is none.
    pub(crate) fn evict(&mut self) -> Option<Evicted<C>> {
        let held = self.nodes.iter().enumerate();
        let oldest = held
            .filter_map(|(i, node)| Some((node.snapshot.as_ref()?.used, i)))
            .min();
        let (_, node) = oldest?;
        let tokens = self.tokens_to(node);
        let snapshot = self.nodes[node].snapshot.take()?;
        self.discount(&snapshot.cache);
        self.n_snapshots -= 1;
        self.tidy(node);
        Some(Evicted {
            tokens,
            cache: snapshot.cache,
            is_mark: snapshot.is_mark,
        })
    }

    /// The tokens from the root to the end of `node`.
    fn tokens_to(&self, mut node: usize) -> Vec<u32> {
        let mut edges = Vec::new();
        while node != ROOT {
            edges.push(self.nodes[node].edge.as_slice());
            node = self.nodes[node].parent;
        }
        edges.into_iter().rev().flatten().copied().collect()
    }

    fn walk(&self, tokens: &[u32]) -> Walk {
        let (mut node, mut depth) = (ROOT, 0);
        loop {
            let rest = &tokens[depth..];
            let child = rest
                .first()
                .and_then(|first| self.nodes[node].children.get(first));
            let Some(&child) = child else {
                return Walk {
                    node,
                    depth,
                    inside: None,
                };
            };
            let edge = &self.nodes[child].edge;
            let n = edge.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if n < edge.len() {
                return Walk {
                    node,
                    depth,
                    inside: Some((child, n)),
                };
            }
            (node, depth) = (child, depth + n);
        }
    }

    /// A fork of `len` tokens from a snapshot in the subtree of `node`, whose tokens all begin with those.
    fn fork_below(&mut self, node: usize, len: usize) -> Option<C> {
        if len == 0 {
            return None;
        }
        let mut open = vec![node];
        let mut n_tried = 0;
        while let Some(node) = open.pop() {
            n_tried += 1;
            if n_tried > MAX_TRIED {
                return None;
            }
            let used = self.clock;
            if let Some(snapshot) = &mut self.nodes[node].snapshot
                && let Some(fork) = snapshot.cache.fork(len)
            {
                snapshot.used = used;
                return Some(fork);
            }
            open.extend(self.nodes[node].children.values());
        }
        None
    }

    /// A fork of the nearest snapshot at `node` or above it.
    fn fork_above(&mut self, mut node: usize) -> Option<C> {
        let used = self.clock;
        while node != ROOT {
            if let Some(snapshot) = &mut self.nodes[node].snapshot {
                let fork = snapshot.cache.fork(snapshot.cache.len());
                snapshot.used = used;
                if fork.is_some() {
                    return fork;
                }
            }
            node = self.nodes[node].parent;
        }
        None
    }

    /// The node at the end of `tokens`, made where there is none.
    fn node_at(&mut self, tokens: &[u32]) -> usize {
        let Walk {
            mut node,
            mut depth,
            inside,
        } = self.walk(tokens);
        if let Some((child, n)) = inside {
            node = self.split(child, n);
            depth += n;
        }
        match tokens[depth..].first() {
            None => node,
            Some(&first) => {
                let leaf = self.add(tokens[depth..].to_vec(), node);
                self.nodes[node].children.insert(first, leaf);
                leaf
            }
        }
    }

    /// Puts a node after the first `n` tokens of `child`'s edge.
    fn split(&mut self, child: usize, n: usize) -> usize {
        let rest = self.nodes[child].edge.split_off(n);
        let edge = std::mem::replace(&mut self.nodes[child].edge, rest);
        let (first, parent, rest_first) = (edge[0], self.nodes[child].parent, self.nodes[child].edge[0]);
        let middle = self.add(edge, parent);
        self.nodes[middle].children.insert(rest_first, child);
        self.nodes[child].parent = middle;
        self.nodes[parent].children.insert(first, middle);
        middle
    }

    fn add(&mut self, edge: Vec<u32>, parent: usize) -> usize {
        let node = Node {
            edge,
            parent,
            children: HashMap::new(),
            snapshot: None,
        };
        match self.free.pop() {
            Some(i) => {
                self.nodes[i] = node;
                i
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Takes nodes out that hold nothing and lead nowhere, or to one child only.
    fn tidy(&mut self, mut node: usize) {
        while node != ROOT && self.nodes[node].snapshot.is_none() {
            let parent = self.nodes[node].parent;
            let mut children = self.nodes[node].children.values().copied();
            match (children.next(), children.next()) {
                (None, _) => {
                    let first = self.nodes[node].edge[0];
                    self.nodes[parent].children.remove(&first);
                    self.release(node);
                    node = parent;
                }
                (Some(child), None) => {
                    let mut edge = std::mem::take(&mut self.nodes[node].edge);
                    let first = edge[0];
                    edge.append(&mut self.nodes[child].edge);
                    self.nodes[child].edge = edge;
                    self.nodes[child].parent = parent;
                    self.nodes[parent].children.insert(first, child);
                    self.release(node);
                    return;
                }
                _ => return,
            }
        }
    }

    fn release(&mut self, node: usize) {
        self.nodes[node].edge = Vec::new();
        self.nodes[node].children = HashMap::new();
        self.free.push(node);
    }

    fn count(&mut self, cache: &C) {
        let (memory, bytes) = (&mut self.memory, &mut self.bytes);
        cache.visit_memory(&mut |piece, size| {
            let (owners, _) = memory.entry(piece).or_insert((0, size));
            *owners += 1;
            if *owners == 1 {
                *bytes += size;
            }
        });
    }

    fn discount(&mut self, cache: &C) {
        let (memory, bytes) = (&mut self.memory, &mut self.bytes);
        cache.visit_memory(&mut |piece, _| {
            if let Some((owners, size)) = memory.get_mut(&piece) {
                *owners -= 1;
                if *owners == 0 {
                    *bytes -= *size;
                    memory.remove(&piece);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Remembers its tokens; goes back at most `window` of them.
    #[derive(Debug, Clone, PartialEq)]
    struct Fake {
        tokens: Vec<u32>,
        window: usize,
    }

    impl SequenceCache for Fake {
        fn len(&self) -> usize {
            self.tokens.len()
        }

        fn max_tokens(&self) -> usize {
            1000
        }

        fn truncate(&mut self, _: usize) -> bool {
            false
        }

        fn fork(&self, len: usize) -> Option<Self> {
            let possible = len <= self.tokens.len() && len + self.window >= self.tokens.len();
            possible.then(|| Fake {
                tokens: self.tokens[..len].to_vec(),
                window: self.window,
            })
        }

        fn visit_memory(&self, visit: &mut dyn FnMut(usize, usize)) {
            // A piece for every beginning of 4 tokens, named by its content.
            for n in (4..=self.tokens.len()).step_by(4) {
                let name = self.tokens[..n].iter().fold(n, |name, &t| name * 31 + t as usize);
                visit(name, 4);
            }
        }
    }

    fn fake(tokens: &[u32], window: usize) -> Fake {
        Fake {
            tokens: tokens.to_vec(),
            window,
        }
    }

    #[test]
    fn a_prompt_continues_from_the_deepest_snapshot_that_can_go_back() {
        let mut tree = PrefixCache::new();
        tree.insert(&[1, 2], fake(&[1, 2], 1), true);
        tree.insert(&[1, 2, 3, 4, 5, 6], fake(&[1, 2, 3, 4, 5, 6], 1), true);
        let found = |tree: &mut PrefixCache<Fake>, tokens: &[u32]| {
            let found = tree.find(tokens);
            (found.cache.map_or(0, |cache| cache.len()), found.n_common)
        };
        assert_eq!(found(&mut tree, &[1, 2, 3, 4, 5, 9]), (5, 5), "one token back");
        assert_eq!(
            found(&mut tree, &[1, 2, 3, 9]),
            (2, 3),
            "two tokens back are too many"
        );
        assert_eq!(found(&mut tree, &[1, 2, 3, 4, 5, 6, 7]), (6, 6));
        assert_eq!(found(&mut tree, &[7]), (0, 0));
    }

    proptest! {
        #[test]
        fn what_is_found_is_a_beginning_and_memory_is_counted_exactly(
            steps in prop::collection::vec((prop::collection::vec(0u32..3, 0..12), 0..10u8), 1..80),
            window in 0usize..4,
        ) {
            let mut tree: PrefixCache<Fake> = PrefixCache::new();
            for (tokens, action) in steps {
                match action {
                    0 => {
                        if let Some(evicted) = tree.evict() {
                            prop_assert_eq!(evicted.tokens, evicted.cache.tokens);
                        }
                    }
                    1..=4 => {
                        let found = tree.find(&tokens);
                        if let Some(cache) = found.cache {
                            prop_assert!(cache.len() <= found.n_common);
                            prop_assert_eq!(&cache.tokens[..], &tokens[..cache.len()]);
                        }
                    }
                    _ => {
                        tree.insert(&tokens, fake(&tokens, window), true);
                        let own = tree.find(&tokens);
                        prop_assert_eq!(own.cache.map_or(0, |cache| cache.len()), tokens.len());
                    }
                }
                let mut pieces = HashMap::new();
                let mut n_snapshots = 0;
                for snapshot in tree.nodes.iter().filter_map(|node| node.snapshot.as_ref()) {
                    n_snapshots += 1;
                    snapshot.cache.visit_memory(&mut |piece, size| { pieces.insert(piece, size); });
                }
                prop_assert_eq!(tree.bytes(), pieces.values().sum::<usize>());
                prop_assert_eq!(tree.len(), n_snapshots);
            }
            while tree.evict().is_some() {}
            prop_assert_eq!((tree.bytes(), tree.nodes.len() - tree.free.len()), (0, 1));
        }
    }
}
