//! The budget of all caches: snapshots give way first, then the sequence that came last.

use std::collections::HashSet;

use carat_model::{LanguageModel, SequenceCache};

use super::Scheduler;
use crate::prefix::Evicted;

/// Shorter beginnings, in tokens, are computed anew sooner than they are read.
const LEAST_STORED: usize = 256;

impl<M: LanguageModel> Scheduler<M> {
    /// Bytes of all caches, counting what sequences share with each other or with snapshots in each.
    pub(super) fn bytes_at_most(&self) -> usize {
        let one = |n_cached| self.model.cache_bytes(n_cached);
        let running = self
            .running
            .iter()
            .map(|entry| one(entry.generation.sequence.n_cached()));
        running.fold(self.prefix.bytes(), usize::saturating_add)
    }

    /// Bytes of all caches, each piece once.
    fn bytes(&self) -> usize {
        let mut seen = HashSet::new();
        let mut bytes = self.prefix.bytes();
        for entry in &self.running {
            entry
                .generation
                .sequence
                .cache()
                .visit_memory(&mut |piece, size| {
                    if !self.prefix.holds(piece) && seen.insert(piece) {
                        bytes = bytes.saturating_add(size);
                    }
                });
        }
        bytes
    }

    /// Bytes that the running sequences will take for the tokens that they have and the next one. Who has just been let in
    /// holds nothing yet: without these all prompts would be let in that fit one by one, and then compute in turns what they
    /// have to give up again.
    pub(super) fn bytes_to_come(&self) -> usize {
        let to_come = self.running.iter().map(|entry| {
            let sequence = &entry.generation.sequence;
            let whole = self.model.cache_bytes(sequence.n_tokens() + 1);
            whole.saturating_sub(self.model.cache_bytes(sequence.n_cached()))
        });
        to_come.fold(0, usize::saturating_add)
    }

    /// Whether `extra` bytes more would be within the budget without any snapshot: if not, none need be given up.
    pub(super) fn may_have_room(&self, extra: usize) -> bool {
        let mut seen = HashSet::new();
        let mut bytes = extra;
        for entry in &self.running {
            let cache = entry.generation.sequence.cache();
            cache.visit_memory(&mut |piece, size| {
                if seen.insert(piece) {
                    bytes = bytes.saturating_add(size);
                }
            });
        }
        bytes <= self.limits.cache_bytes
    }

    /// Whether `extra` bytes more are within the budget, once as many snapshots as it takes are gone.
    pub(super) fn make_room(&mut self, extra: usize) -> bool {
        let limit = self.limits.cache_bytes;
        loop {
            if self.bytes_at_most().saturating_add(extra) <= limit
                || self.bytes().saturating_add(extra) <= limit
            {
                return true;
            }
            let Some(evicted) = self.prefix.evict() else {
                return false;
            };
            self.put_away(evicted, false);
        }
    }

    /// Gives all beginnings that others may well begin with to the store, those used longest ago first. Nothing is run
    /// after this.
    pub fn close(&mut self) {
        if self.store.is_some() {
            while let Some(evicted) = self.prefix.evict() {
                self.put_away(evicted, true);
            }
        }
    }

    fn put_away(&mut self, evicted: Evicted<M::Cache>, is_end: bool) {
        let is_worth_it = evicted.is_mark && evicted.tokens.len() >= LEAST_STORED;
        if let (Some(store), true) = (&mut self.store, is_worth_it) {
            store.keep(evicted.tokens, evicted.cache, is_end);
        }
    }

    /// A cache from the store for the first of `tokens`, if it holds many more than the `n_known` that memory has.
    pub(super) fn restore(&mut self, tokens: &[u32], n_known: usize) -> Option<M::Cache> {
        let store = self.store.as_mut()?;
        if store.n_common(tokens) < n_known.saturating_add(LEAST_STORED) {
            return None;
        }
        let cache = store.load(tokens).filter(|cache| cache.len() > n_known)?;
        self.counters.restored.add(cache.len() - n_known);
        if let Some(fork) = cache.fork(cache.len()) {
            self.prefix.insert(&tokens[..cache.len()], fork, true);
        }
        Some(cache)
    }

    /// Lets snapshots go where there are too many, whatever memory there is. Preempts sequences, the latest first, while
    /// there is no room for all even without snapshots; then snapshots give way. The last sequence stays.
    pub(super) fn keep_within_budget(&mut self) {
        while let Some(evicted) = self.prefix.evict_surplus() {
            self.put_away(evicted, false);
        }
        while self.running.len() > 1 && !self.may_have_room(0) {
            let latest = (0..self.running.len()).max_by(|&a, &b| {
                let (a, b) = (&self.running[a], &self.running[b]);
                b.priority.cmp(&a.priority).then(a.number.cmp(&b.number))
            });
            let (Some(latest), Ok(cache)) = (latest, self.model.new_cache(self.limits.n_max)) else {
                break;
            };
            let mut entry = self.running.remove(latest);
            // Who has nothing computed gives nothing up, and has no claim to come before others for it.
            let has_begun = entry.generation.sequence.n_cached() > 0;
            if entry.generation.sequence.adopt(cache).is_ok() && has_begun {
                entry.generation.forget_sum();
                entry.was_preempted = true;
                self.counters.preempted.add(1);
            }
            self.waiting.push(entry);
        }
        let _is_within = self.make_room(0);
    }
}
