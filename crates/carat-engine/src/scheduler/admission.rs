//! Who gets a free place: by priority, then whose client was served least, then who came first.
//!
//! A prompt that begins like one being computed just now waits for that beginning instead of computing it too.

use std::cmp::Ordering;

use carat_model::{LanguageModel, SequenceCache};

use super::{Entry, Scheduler};

/// Common beginnings shorter than this, in tokens, are computed anew rather than waited for.
const LEAST_SHARED: usize = 64;
/// Clients remembered before those without jobs are forgotten.
const MAX_CLIENTS: usize = 4096;

impl<M: LanguageModel> Scheduler<M> {
    /// Fills free places.
    pub(super) fn admit(&mut self) {
        while self.running.len() < self.limits.n_running {
            let Some(i) = self.next_waiting() else { return };
            let mut entry = self.waiting.swap_remove(i);
            self.adopt_prefix(&mut entry);
            let sequence = &entry.generation.sequence;
            let needed = self.model.cache_bytes(sequence.n_tokens() + 1);
            let held = self.model.cache_bytes(sequence.n_cached());
            if !self.running.is_empty() && !self.make_room(needed.saturating_sub(held)) {
                self.waiting.push(entry);
                return;
            }
            entry.place = None;
            entry.generation.restart_clock();
            self.running.push(entry);
        }
    }

    /// The waiting job that comes next and need not wait for another's prompt.
    fn next_waiting(&mut self) -> Option<usize> {
        let mut order: Vec<usize> = (0..self.waiting.len()).collect();
        order.sort_by(|&a, &b| self.compare(&self.waiting[a], &self.waiting[b]));
        order.into_iter().find(|&i| !self.is_better_later(i))
    }

    /// Which of two comes first.
    pub(super) fn compare(&self, a: &Entry<M::Cache>, b: &Entry<M::Cache>) -> Ordering {
        let served = |entry: &Entry<M::Cache>| self.served.get(&entry.client).copied().unwrap_or(0.0);
        (b.was_preempted.cmp(&a.was_preempted))
            .then(b.priority.cmp(&a.priority))
            .then(served(a).total_cmp(&served(b)))
            .then(a.number.cmp(&b.number))
    }

    /// Whether a running sequence is about to compute a beginning that this one could use. It is then asked for
    /// a snapshot there.
    fn is_better_later(&mut self, i: usize) -> bool {
        if self.waiting[i].generation.is_embedding() {
            return false;
        }
        let tokens = self.waiting[i].generation.sequence.tokens();
        let tokens = &tokens[..tokens.len().saturating_sub(1)];
        let mut known = None;
        for entry in &mut self.running {
            let sequence = &entry.generation.sequence;
            let n_prompt = entry.generation.request.prompt.len();
            if sequence.n_cached() >= n_prompt || entry.generation.is_embedding() {
                continue;
            }
            let pairs = sequence.tokens()[..n_prompt].iter().zip(tokens);
            let n_shared = pairs.take_while(|(a, b)| a == b).count();
            if n_shared < LEAST_SHARED || sequence.n_cached() >= n_shared {
                continue;
            }
            let known = *known.get_or_insert_with(|| self.prefix.n_common(tokens));
            if n_shared >= known + LEAST_SHARED {
                entry.want_snapshot(n_shared);
                return true;
            }
        }
        false
    }

    /// Continues from the longest known beginning, and asks for a snapshot where a longer one would have helped.
    fn adopt_prefix(&mut self, entry: &mut Entry<M::Cache>) {
        // A vector needs every token's hidden state, and those are not kept.
        if entry.generation.is_embedding() {
            return;
        }
        let sequence = &mut entry.generation.sequence;
        let n_tokens = sequence.n_tokens();
        let tokens = &sequence.tokens()[..n_tokens.saturating_sub(1)];
        let found = self.prefix.find(tokens);
        let n_known = found.cache.as_ref().map_or(0, SequenceCache::len);
        let cache = self.restore(tokens, n_known).or(found.cache);
        let mut n_reused = 0;
        if let Some(cache) = cache
            && sequence.adopt(cache).is_ok()
        {
            n_reused = sequence.n_cached();
            entry.generation.set_reused(n_reused);
            self.counters.reused.add(n_reused);
        }
        entry.last_snapshot = n_reused;
        entry.snapshot_at.clear();
        if found.n_common >= n_reused + LEAST_SHARED {
            entry.want_snapshot(found.n_common);
        }
    }

    /// A client that was away does not get ahead of those who stayed.
    pub(super) fn join_clients(&mut self, client: u64) {
        let entries = || self.waiting.iter().chain(&self.running);
        let least = entries()
            .filter_map(|entry| self.served.get(&entry.client).copied())
            .min_by(f64::total_cmp);
        let is_active = entries().any(|entry| entry.client == client);
        if self.served.len() > MAX_CLIENTS {
            let active: Vec<u64> = entries().map(|entry| entry.client).collect();
            self.served.retain(|client, _| active.contains(client));
        }
        let served = self.served.entry(client).or_default();
        if let (Some(least), false) = (least, is_active) {
            *served = served.max(least);
        }
    }
}
