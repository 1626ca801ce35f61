//! What is written down about an answer when it ends, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use carat_ledger::Price;

use crate::access::{Before, Bill, Entry};
use crate::clock;
use crate::failure::Failure;
use crate::health::Permit;
use crate::trace::CallTrace;
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
    /// How long nothing was said after the first words.
    silent: Duration,
    is_whole: bool,
    target: String,
    bill: Option<Bill>,
    /// Counted too, at this price.
    variant: Option<(Arc<Variant>, Option<Arc<Price>>)>,
    started: Instant,
    trace: Option<Box<CallTrace>>,
}

impl Account {
    pub(crate) fn new(permit: Permit, target: &str, prompt_bytes: usize) -> Self {
        Self {
            permit,
            prompt_bytes,
            began: None,
            silent: Duration::ZERO,
            is_whole: false,
            target: target.to_string(),
            bill: None,
            variant: None,
            started: clock::now(),
            trace: None,
        }
    }

    /// What happens is told to a trace.
    pub(crate) fn trace(&mut self, trace: Option<Box<CallTrace>>) {
        self.trace = trace;
    }

    /// Takes a piece of the answer as it came.
    pub(crate) fn heard(&self, data: &[u8]) {
        if let Some(trace) = &self.trace {
            trace.heard(data);
        }
    }

    /// The target has begun to answer, and who asked will pay for it. `n_whole`: tokens of an answer that came whole,
    /// of which the first is nobody knows how old.
    pub(crate) fn began(&mut self, bill: Option<Bill>, n_whole: u64) {
        self.bill = bill;
        self.permit.began(self.prompt_bytes, n_whole);
        self.is_whole = n_whole > 0;
        self.began = Some(clock::now());
        if let Some(trace) = &self.trace {
            trace.began();
        }
    }

    /// It goes on with an answer that began elsewhere, and who asked will pay for it.
    pub(crate) fn owe(&mut self, bill: Option<Bill>) {
        self.bill = bill;
    }

    /// The target has begun to go on with an answer.
    pub(crate) fn goes_on(&mut self) {
        if self.began.is_none() {
            self.permit.began(self.prompt_bytes, 0);
            self.began = Some(clock::now());
        }
    }

    /// After its first words nothing was said for so long.
    pub(crate) fn fell_silent(&mut self, time: Duration) {
        self.silent = time;
    }

    /// The answer is one of a variant that is compared with others.
    pub(crate) fn count_for(&mut self, variant: Arc<Variant>, price: Option<Arc<Price>>) {
        self.variant = Some((variant, price));
    }

    /// Takes what a provider says of its limits, and its status.
    pub(crate) fn learn(&self, head: &http::response::Parts) {
        self.permit.health().learn(&head.headers, clock::now());
        if let Some(trace) = &self.trace {
            trace.status(head.status.as_u16());
        }
    }

    /// Whether the target has answered somebody lately.
    pub(crate) fn has_answered_lately(&self) -> bool {
        self.permit.health().has_answered_lately(clock::now())
    }

    /// The target did not answer, or not well.
    pub(crate) fn failed(&self, failure: &Failure) {
        if let Some(usage) = &failure.took {
            self.permit.took(usage, None);
        }
        if let Some(trace) = &self.trace {
            trace.failed(failure);
        }
        self.blame(failure);
    }

    /// Counts a failure against the target, and tells if it is not asked for a while because of it.
    fn blame(&self, failure: &Failure) {
        let health = self.permit.health();
        let rested = health.is_ill();
        self.permit.failed(failure);
        if !rested && health.is_ill() {
            tracing::warn!(
                target = self.target,
                class = failure.class.name(),
                status = failure.status,
                "a target failed and rests; others are asked first"
            );
        }
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
    pub(crate) fn settle(mut self, outcome: &Outcome, mut usage: Usage, is_counted: bool) {
        if let (Outcome::ClientGone, false, Some(bill), Some(began)) =
            (outcome, is_counted, &self.bill, self.began)
        {
            // Thoughts that a provider keeps to itself cost as much as words, and all that is seen of them is their time.
            let unseen = began.saturating_duration_since(self.started) + self.silent;
            usage.output = usage.output.max(bill.entry.unseen(unseen));
        }
        self.close(outcome, &mut usage, is_counted);
        let Some(Bill { entry, price }) = self.bill.take() else {
            return;
        };
        entry.end(
            self.target,
            price.as_deref(),
            outcome,
            &usage,
            is_counted,
            self.began,
        );
    }

    /// The answer was cut, and somebody else goes on with it: what it took is written down with the rest.
    pub(crate) fn hand_over(
        mut self,
        failure: &Failure,
        mut usage: Usage,
        is_counted: bool,
    ) -> Option<Entry> {
        self.close(&Outcome::Cut(failure.clone()), &mut usage, is_counted);
        let Bill { mut entry, price } = self.bill.take()?;
        entry.took_before(Before {
            target: self.target,
            class: failure.class,
            usage,
            is_counted,
            cost: price.map(|price| price.cost(&usage)),
            began: self.began,
        });
        Some(entry)
    }

    /// What is remembered of a target when its answer has ended.
    fn close(&self, outcome: &Outcome, usage: &mut Usage, is_counted: bool) {
        if !is_counted && usage.input == 0 {
            usage.input = self.prompt_bytes.div_ceil(4) as u64;
        }
        if let Some(trace) = &self.trace {
            trace.ended(&self.target, outcome, usage, is_counted);
        }
        match outcome {
            Outcome::Complete => {}
            Outcome::Cut(failure) => {
                self.blame(failure);
                tracing::warn!(
                    target = self.target,
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
        self.permit.took(usage, spoken);
        if let Some((variant, price)) = &self.variant {
            let cost = price.as_ref().map_or(0, |price| price.cost(usage).0);
            let first = self
                .began
                .map(|began| began.saturating_duration_since(self.started));
            let first_ms = first.map_or(0, |first| u64::try_from(first.as_millis()).unwrap_or(u64::MAX));
            variant.ended(matches!(outcome, Outcome::Cut(_)), usage, cost, first_ms);
        }
        if self.bill.as_ref().is_some_and(|bill| bill.price.is_none()) {
            let counts = &self.permit.health().counts;
            counts.without_price.fetch_add(1, Ordering::Relaxed);
        }
    }
}
