//! What is written down about an answer when it ends, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use carat_ledger::Price;

use crate::access::Bill;
use crate::failure::Failure;
use crate::health::Permit;
use crate::usage::Usage;
use crate::variants::Variant;

/// How an answer ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Complete,
    /// In the middle, by the upstream's fault.
    Cut(Failure),
    ClientGone,
}

/// An answer under way at a target.
#[derive(Debug)]
pub(crate) struct Account {
    permit: Permit,
    prompt_bytes: usize,
    began: Option<Instant>,
    is_whole: bool,
    target: String,
    bill: Option<Bill>,
    /// Counted too, at this price.
    variant: Option<(Arc<Variant>, Option<Arc<Price>>)>,
    started: Instant,
}

impl Account {
    pub(crate) fn new(permit: Permit, target: &str, prompt_bytes: usize) -> Self {
        Self {
            permit,
            prompt_bytes,
            began: None,
            is_whole: false,
            target: target.to_string(),
            bill: None,
            variant: None,
            started: Instant::now(),
        }
    }

    /// The target has begun to answer, and who asked will pay for it. `n_whole`: tokens of an answer that came whole,
    /// of which the first is nobody knows how old.
    pub(crate) fn began(&mut self, bill: Option<Bill>, n_whole: u64) {
        self.bill = bill;
        self.permit.began(self.prompt_bytes, n_whole);
        self.is_whole = n_whole > 0;
        self.began = Some(Instant::now());
    }

    /// The answer is one of a variant that is compared with others.
    pub(crate) fn count_for(&mut self, variant: Arc<Variant>, price: Option<Arc<Price>>) {
        self.variant = Some((variant, price));
    }

    /// Takes what a provider says of its limits.
    pub(crate) fn learn(&self, headers: &http::HeaderMap) {
        self.permit.health().learn(headers, Instant::now());
    }

    /// The target did not answer.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.permit.failed(failure);
    }

    /// A record made no sense.
    pub(crate) fn malformed(&self) {
        self.permit
            .health()
            .counts
            .malformed
            .fetch_add(1, Ordering::Relaxed);
    }

    /// The answer has ended. `is_counted`: the usage is the provider's, not an estimate.
    pub(crate) fn settle(self, outcome: &Outcome, mut usage: Usage, is_counted: bool) {
        if !is_counted && usage.input == 0 {
            usage.input = self.prompt_bytes.div_ceil(4) as u64;
        }
        match outcome {
            Outcome::Complete => {}
            Outcome::Cut(failure) => {
                self.permit.failed(failure);
                tracing::warn!(
                    class = failure.class.name(),
                    message = failure.message,
                    "an answer was cut"
                );
            }
            Outcome::ClientGone => {
                self.permit
                    .health()
                    .counts
                    .cut_by_clients
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
        let spoken = self
            .began
            .map(|began| began.elapsed())
            .filter(|_| is_counted && !self.is_whole);
        self.permit.took(&usage, spoken);
        if let Some((variant, price)) = &self.variant {
            let cost = price.as_ref().map_or(0, |price| price.cost(&usage).0);
            let first = self
                .began
                .map(|began| began.saturating_duration_since(self.started));
            let first_ms = first.map_or(0, |first| u64::try_from(first.as_millis()).unwrap_or(u64::MAX));
            variant.ended(matches!(outcome, Outcome::Cut(_)), &usage, cost, first_ms);
        }
        if let Some(Bill { entry, price }) = self.bill {
            if price.is_none() {
                self.permit
                    .health()
                    .counts
                    .without_price
                    .fetch_add(1, Ordering::Relaxed);
            }
            entry.end(
                self.target,
                price.as_deref(),
                outcome,
                &usage,
                is_counted,
                self.began,
            );
        }
    }
}
