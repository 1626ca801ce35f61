//! How many calls may be made beyond one for each request.
//!
//! Every request earns a part of such a call, and some can be saved up for a burst, so that what retries and hedges add
//! to the load is a part of the load itself, however ill a provider is. A budget may have a trickle beside: so many calls
//! a second that need not be earned, without which nobody could try again where few ask.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Calls that are earned by requests.
#[derive(Debug)]
pub(crate) struct CallBudget {
    parts: AtomicI64,
    /// Parts that one costs.
    price: i64,
    /// Time between two calls that need not be earned, if there are any.
    every: Option<Duration>,
    /// When the next of them may be made.
    next: Mutex<Option<Instant>>,
}

impl CallBudget {
    /// Calls that may be saved up for a burst.
    const MOST: i64 = 20;

    /// A budget of one call for so many requests.
    pub(crate) fn one_in(price: i64) -> Self {
        Self {
            parts: AtomicI64::new(Self::MOST * price),
            price,
            every: None,
            next: Mutex::new(None),
        }
    }

    /// The same, and one call every so often.
    pub(crate) fn one_in_and_every(price: i64, every: Duration) -> Self {
        Self {
            every: Some(every),
            ..Self::one_in(price)
        }
    }

    pub(crate) fn earn(&self) {
        if self.parts.load(Ordering::Relaxed) < Self::MOST * self.price {
            self.parts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a call can be had.
    pub(crate) fn is_left(&self, now: Instant) -> bool {
        self.parts.load(Ordering::Relaxed) >= self.price || self.trickles(now)
    }

    /// Takes a call, if there is one.
    pub(crate) fn spend(&self, now: Instant) -> bool {
        let enough = self.parts.fetch_sub(self.price, Ordering::Relaxed) >= self.price;
        if enough {
            return true;
        }
        self.parts.fetch_add(self.price, Ordering::Relaxed);
        let Some(every) = self.every else { return false };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = next.is_none_or(|next| next <= now);
        if is_due {
            *next = now.checked_add(every);
        }
        is_due
    }

    fn trickles(&self, now: Instant) -> bool {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.every.is_some() && next.is_none_or(|next| next <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_requests() {
        let budget = CallBudget::one_in(5);
        let now = Instant::now();
        let burst = (0..50).filter(|_| budget.spend(now)).count();
        assert_eq!(burst, 20);
        assert!(!budget.is_left(now));
        (0..100).for_each(|_| budget.earn());
        assert_eq!((0..50).filter(|_| budget.spend(now)).count(), 20);
    }

    #[test]
    fn some_need_not_be_earned() {
        let budget = CallBudget::one_in_and_every(5, Duration::from_millis(100));
        let start = Instant::now();
        (0..20).for_each(|_| assert!(budget.spend(start)));
        let spent = (0..1000).filter(|ms| {
            let now = start + Duration::from_millis(*ms);
            assert_eq!(budget.is_left(now), ms % 100 == 0);
            budget.spend(now)
        });
        assert_eq!(spent.count(), 10);
    }
}
