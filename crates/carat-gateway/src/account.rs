//! What is written down about an answer when it ends, however it ends.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::access::Bill;
use crate::failure::Failure;
use crate::health::Permit;
use crate::usage::Usage;

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
    target: String,
    bill: Option<Bill>,
}

impl Account {
    pub(crate) fn new(permit: Permit, target: &str, prompt_bytes: usize) -> Self {
        Self {
            permit,
            prompt_bytes,
            began: None,
            target: target.to_string(),
            bill: None,
        }
    }

    /// The target has begun to answer, and who asked will pay for it.
    pub(crate) fn began(&mut self, bill: Option<Bill>) {
        self.bill = bill;
        self.permit.began(self.prompt_bytes);
        self.began = Some(Instant::now());
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
        let spoken = self.began.map(|began| began.elapsed()).filter(|_| is_counted);
        self.permit.took(&usage, spoken);
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
