//! The latest tokens of a history, counted, for the sampler's penalties.
//!
//! A history grows by a token at a time and a window over it may be all of it: to count that anew for every token would
//! take longer than to compute the token where histories are long. So counts are kept, and changed by what has entered the
//! window and left it. A history that does not go on where the last one ended is counted from its beginning.

use std::collections::HashMap;

/// See the module's head.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent {
    /// Where the window begins in the history.
    start: usize,
    /// What is in it.
    tokens: Vec<u32>,
    /// How often; nothing is kept of what is not in it.
    counts: HashMap<u32, usize>,
}

impl Recent {
    /// Counts the last `size` tokens of `history`.
    pub(crate) fn follow(&mut self, history: &[u32], size: usize) {
        let start = history.len().saturating_sub(size);
        let end = self.start + self.tokens.len();
        let n_left = start.checked_sub(self.start);
        let staying = n_left.and_then(|n| self.tokens.get(n..));
        let goes_on = match (staying, history.get(start..end)) {
            (Some(staying), Some(known)) => staying == known,
            _ => false,
        };
        let (n_left, n_known) = match n_left {
            Some(n) if goes_on => (n, end),
            _ => (self.tokens.len(), start),
        };
        for id in self.tokens.drain(..n_left) {
            if let Some(count) = self.counts.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&id);
                }
            }
        }
        self.start = start;
        for &id in &history[n_known..] {
            *self.counts.entry(id).or_default() += 1;
            self.tokens.push(id);
        }
    }

    /// Every token of the window once, with its count, in no order.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (u32, usize)> {
        self.counts.iter().map(|(id, count)| (*id, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a history becomes before it is counted again.
    fn changes() -> impl Strategy<Value = (u8, Vec<u32>)> {
        (0..8u8, prop::collection::vec(0..6u32, 0..5))
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_window(
            size in prop_oneof![0..12usize, Just(usize::MAX)],
            changes in prop::collection::vec(changes(), 1..40),
        ) {
            let (mut recent, mut history) = (Recent::default(), Vec::new());
            for (kind, tokens) in changes {
                match kind {
                    // Another history, of any length, or the same cut short.
                    0 => history = tokens,
                    1 => history.truncate(tokens.len() * 2),
                    _ => history.extend(tokens),
                }
                recent.follow(&history, size);
                let mut expected = HashMap::new();
                for id in history.iter().rev().take(size) {
                    *expected.entry(*id).or_insert(0) += 1;
                }
                prop_assert_eq!(recent.counts().collect::<HashMap<_, _>>(), expected);
            }
        }
    }
}
