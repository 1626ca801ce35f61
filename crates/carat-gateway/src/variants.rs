//! What became of the variants of routes that compare them: counts for each candidate of each such route.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::usage::Usage;

/// Most variants that are counted; they come from configurations alone.
const MAX_VARIANTS: usize = 4096;

/// One candidate of one route.
#[derive(Debug, Default)]
pub(crate) struct Variant {
    /// Whole answers.
    pub(crate) answers: AtomicU64,
    /// Answers that broke off.
    pub(crate) cut: AtomicU64,
    /// Answers that somebody else had to give.
    pub(crate) failures: AtomicU64,
    pub(crate) input_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
    pub(crate) cost_micros: AtomicU64,
    pub(crate) first_token_ms: AtomicU64,
}

impl Variant {
    /// Counts an answer that has ended.
    pub(crate) fn ended(&self, is_cut: bool, usage: &Usage, cost: u64, first_token_ms: u64) {
        let outcome = if is_cut { &self.cut } else { &self.answers };
        let added = [
            (outcome, 1),
            (&self.input_tokens, usage.input),
            (&self.output_tokens, usage.output),
            (&self.cost_micros, cost),
            (&self.first_token_ms, first_token_ms),
        ];
        for (count, n) in added {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// A route's name and a target's.
type Name = (String, String);

/// All variants.
#[derive(Debug, Default)]
pub(crate) struct Variants {
    all: Mutex<HashMap<Name, Arc<Variant>>>,
}

impl Variants {
    /// The counts of a candidate of a route.
    pub(crate) fn of(&self, route: &str, target: &str) -> Arc<Variant> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (route.to_string(), target.to_string());
        if all.len() >= MAX_VARIANTS && !all.contains_key(&name) {
            return Arc::default();
        }
        Arc::clone(all.entry(name).or_default())
    }

    /// All of them, by name.
    pub(crate) fn all(&self) -> Vec<(Name, Arc<Variant>)> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all
            .iter()
            .map(|(name, one)| (name.clone(), Arc::clone(one)))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
