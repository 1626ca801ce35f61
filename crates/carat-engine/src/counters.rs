//! What an engine has done so far and does now, readable from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::draft::{DraftCounts, MAX_DRAFT};

/// One number that only the engine's thread changes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: usize) {
        self.0.store(n as u64, Ordering::Relaxed);
    }
}

/// Totals since the start, and the present state.
#[derive(Debug, Default)]
pub struct Counters {
    /// Forward passes.
    pub steps: Counter,
    /// Tokens of prompts that were computed.
    pub prefilled: Counter,
    /// Tokens of prompts that came from the prefix cache.
    pub reused: Counter,
    /// Of these, tokens whose keys and values were read from the prefix store.
    pub restored: Counter,
    /// Tokens generated.
    pub generated: Counter,
    /// Tokens guessed ahead, by their position in the draft.
    pub drafted: [Counter; MAX_DRAFT],
    /// Of these, the ones that the model chose too.
    pub accepted: [Counter; MAX_DRAFT],
    /// Times that the drafter failed and nothing was guessed.
    pub draft_failures: Counter,
    /// Answers that came to an end of their own.
    pub finished: Counter,
    /// Answers that were cancelled or too late.
    pub cancelled: Counter,
    /// Jobs that failed.
    pub failed: Counter,
    /// Times that a sequence gave up its cache to others and was computed again.
    pub preempted: Counter,
    /// Sequences in the batch now.
    pub running: Counter,
    /// Jobs that wait for a place now.
    pub waiting: Counter,
    /// Bytes of all caches now; an upper bound while sequences share memory.
    pub cache_bytes: Counter,
    /// Beginnings in the prefix cache now.
    pub snapshots: Counter,
}

impl Counters {
    /// Adds what one answer guessed.
    pub(crate) fn add_drafts(&self, drafts: &DraftCounts) {
        for (totals, counts) in [
            (&self.drafted, &drafts.drafted),
            (&self.accepted, &drafts.accepted),
        ] {
            totals
                .iter()
                .zip(counts)
                .for_each(|(total, count)| total.add(*count));
        }
    }
}
