//! Who gets a free place: by priority, then whose client was served least, then who came first.
//!
//! Only what a client was served while another waited counts, so that nobody pays later for a server that was idle; and
//! who comes anew begins where those who wait are (Start-time Fair Queueing, by tokens).
//!
//! A prompt that begins like one being computed just now waits for that beginning instead of computing it too.

use std::cmp::Ordering;

use carat_model::LanguageModel;

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
            self.raise_level();
            let mut entry = self.waiting.swap_remove(i);
            let n_common = self.adopt_prefix(&mut entry);
            // It runs from here on, so that what it has adopted counts, even when the snapshot it came from gives way.
            self.running.push(entry);
            let extra = self.bytes_to_come();
            let has_room = self.running.len() == 1 || (self.may_have_room(extra) && self.make_room(extra));
            if !has_room {
                self.send_back_latest();
                return;
            }
            if let Some(mut entry) = self.running.pop() {
                self.restore_longer(&mut entry);
                let n_reused = entry.generation.sequence.n_cached();
                entry.generation.set_reused(n_reused);
                self.counters.reused.add(n_reused);
                entry.last_snapshot = n_reused;
                if n_common >= n_reused + LEAST_SHARED {
                    entry.want_snapshot(n_common);
                }
                entry.generation.restart_clock();
                self.running.push(entry);
            }
        }
    }

    /// Lets the sequence that was admitted last wait again, without a cache: one that waits must not hold memory.
    fn send_back_latest(&mut self) {
        let Some(mut entry) = self.running.pop() else {
            return;
        };
        if let Ok(cache) = self.model.new_cache(self.limits.n_max) {
            // An empty cache fits every sequence.
            let _is_adopted = entry.generation.sequence.adopt(cache);
        }
        self.waiting.push(entry);
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

    /// Continues from the longest beginning in memory, and tells how much of the prompt others began with.
    fn adopt_prefix(&mut self, entry: &mut Entry<M::Cache>) -> usize {
        entry.snapshot_at.clear();
        // A vector needs every token's hidden state, and those are not kept.
        if entry.generation.is_embedding() {
            return 0;
        }
        let sequence = &mut entry.generation.sequence;
        let n_tokens = sequence.n_tokens();
        let found = self.prefix.find(&sequence.tokens()[..n_tokens.saturating_sub(1)]);
        if let Some(cache) = found.cache {
            // What cannot be adopted is computed.
            let _is_adopted = sequence.adopt(cache);
        }
        found.n_common
    }

    /// Continues from a longer beginning that the store has. Only for a sequence that has room for all its prompt: files are
    /// read once, not at every step that it waits.
    fn restore_longer(&mut self, entry: &mut Entry<M::Cache>) {
        if entry.generation.is_embedding() {
            return;
        }
        let sequence = &mut entry.generation.sequence;
        let n_tokens = sequence.n_tokens();
        let tokens = &sequence.tokens()[..n_tokens.saturating_sub(1)];
        if let Some(cache) = self.restore(tokens, sequence.n_cached()) {
            let _is_adopted = sequence.adopt(cache);
        }
    }

    /// A client that did not wait for anything gets neither ahead of those who do nor behind them.
    pub(super) fn join_clients(&mut self, client: u64) {
        self.raise_level();
        if self.served.len() > MAX_CLIENTS {
            let entries = self.waiting.iter().chain(&self.running);
            let active: Vec<u64> = entries.map(|entry| entry.client).collect();
            self.served.retain(|client, _| active.contains(client));
        }
        let waits = self.waiting.iter().any(|entry| entry.client == client);
        let served = self.served.entry(client).or_default();
        if !waits {
            *served = served.max(self.level);
        }
    }

    /// Keeps the level at the least that was served to a client who waits, also when nobody does any more: those who come
    /// then meet those who waited as equals.
    fn raise_level(&mut self) {
        let served = |entry: &Entry<M::Cache>| self.served.get(&entry.client).copied();
        let least = self.waiting.iter().filter_map(served).min_by(f64::total_cmp);
        self.level = least.map_or(self.level, |least| least.max(self.level));
    }
}
