//! Requests that wait for a place at a target that has as many as it may.
//!
//! A [`Ticket`] may stand in the lines of several targets; whoever has a place free calls the first of its line, by
//! priority and then by age. A ticket that is called and does not take the place, because it got one elsewhere or its
//! client left, calls the next.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::clock;
use crate::health::Health;

/// Longest line; whoever comes then is refused at once.
const LONGEST: usize = 1024;

/// How much a request matters; the highest is served first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Priority {
    /// What nobody waits for.
    Low,
    #[default]
    Normal,
    High,
}

impl Priority {
    /// The priority of this name.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        match name {
            "low" => Some(Self::Low),
            "normal" => Some(Self::Normal),
            "high" => Some(Self::High),
            _ => None,
        }
    }
}

/// A place in line: priority, age, and a number that tells two of the same moment apart.
type Place = (Reverse<Priority>, Instant, u64);

/// A target's line.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    length: AtomicUsize,
    line: Mutex<BTreeMap<Place, Arc<Notify>>>,
}

impl Waiting {
    /// Whether somebody waits.
    pub(crate) fn is_used(&self) -> bool {
        self.length.load(Ordering::Relaxed) > 0
    }

    /// How many wait.
    pub(crate) fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    /// A place is free: calls the first.
    pub(crate) fn call(&self) {
        if !self.is_used() {
            return;
        }
        let mut line = self.line();
        let first = line.pop_first();
        self.length.store(line.len(), Ordering::Relaxed);
        drop(line);
        if let Some((_, bell)) = first {
            bell.notify_one();
        }
    }

    fn line(&self) -> MutexGuard<'_, BTreeMap<Place, Arc<Notify>>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, place: Place, bell: &Arc<Notify>) -> bool {
        let mut line = self.line();
        if line.len() >= LONGEST {
            return false;
        }
        line.insert(place, Arc::clone(bell));
        self.length.store(line.len(), Ordering::Relaxed);
        true
    }

    /// Whether it stood there still.
    fn leave(&self, place: &Place) -> bool {
        let mut line = self.line();
        let stood = line.remove(place).is_some();
        self.length.store(line.len(), Ordering::Relaxed);
        stood
    }
}

/// One request's place in the lines of some targets.
#[derive(Debug)]
pub(crate) struct Ticket {
    place: Place,
    bell: Arc<Notify>,
    /// Targets, and the most requests that each takes.
    lines: Vec<(Arc<Health>, usize)>,
}

impl Ticket {
    pub(crate) fn new(priority: Priority, since: Instant) -> Self {
        Self {
            place: (Reverse(priority), since, fastrand::u64(..)),
            bell: Arc::new(Notify::new()),
            lines: Vec::new(),
        }
    }

    /// Stands in a target's line, unless that is too long.
    pub(crate) fn join(&mut self, health: &Arc<Health>, max_in_flight: usize) -> bool {
        let joined = health.waiting.join(self.place, &self.bell);
        if joined {
            self.lines.push((Arc::clone(health), max_in_flight));
        }
        joined
    }

    /// Whether a place at this target would be this one's: it was called there, or is the first of the line.
    pub(crate) fn may_take(&self, health: &Health) -> bool {
        let line = health.waiting.line();
        let is_first = line
            .first_key_value()
            .is_some_and(|(first, _)| *first == self.place);
        is_first || !line.contains_key(&self.place)
    }

    /// Waits until a target calls.
    pub(crate) async fn called(&self) {
        self.bell.notified().await;
    }

    /// Leaves all lines. `taken`: where it has got a place. Who was called elsewhere calls the next, if there is a place
    /// to be had.
    pub(crate) fn leave(&mut self, taken: Option<&Arc<Health>>) {
        let now = clock::now();
        for (health, max_in_flight) in self.lines.drain(..) {
            let was_called = !health.waiting.leave(&self.place);
            let is_taken = taken.is_some_and(|taken| Arc::ptr_eq(taken, &health));
            if was_called && !is_taken && health.has_place(max_in_flight, now) {
                health.waiting.call();
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Comes, Readiness};

    fn is_called(ticket: &Ticket) -> bool {
        let called = std::pin::pin!(ticket.called());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        called.poll(&mut cx).is_ready()
    }

    #[test]
    fn the_most_important_is_called_first_and_then_the_oldest() {
        let health = Arc::new(Health::default());
        let now = Instant::now();
        let place = health.admit(1, Comes::Newly, now).unwrap();
        let mut tickets: Vec<_> = [Priority::Low, Priority::Normal, Priority::High, Priority::Normal]
            .into_iter()
            .enumerate()
            .map(|(i, priority)| Ticket::new(priority, now + std::time::Duration::from_millis(i as u64)))
            .collect();
        assert!(tickets.iter_mut().all(|ticket| ticket.join(&health, 1)));
        drop(place);
        assert_eq!(
            health.admit(1, Comes::Newly, now).unwrap_err(),
            Readiness::Full,
            "nobody comes before those who wait"
        );
        let mut order = Vec::new();
        while let Some(i) = tickets.iter().position(is_called) {
            let place = health.admit(1, Comes::Called, now).unwrap();
            let mut ticket = tickets.remove(i);
            ticket.leave(Some(&health));
            order.push(ticket.place.0.0);
            drop(place);
        }
        assert_eq!(
            order,
            [Priority::High, Priority::Normal, Priority::Normal, Priority::Low]
        );
        assert!(health.admit(1, Comes::Newly, now).is_ok() && !health.waiting.is_used());
    }

    #[test]
    fn a_call_that_is_not_heard_goes_to_the_next() {
        let health = Arc::new(Health::default());
        let now = Instant::now();
        let (mut gone, mut next) = (Ticket::new(Priority::High, now), Ticket::new(Priority::Low, now));
        assert!(gone.join(&health, 1) && next.join(&health, 1));
        health.waiting.call();
        assert!(!is_called(&next));
        drop(gone);
        assert!(is_called(&next));
    }

    #[test]
    fn where_nobody_can_have_a_place_nobody_is_called() {
        let health = Arc::new(Health::default());
        let now = Instant::now();
        let (mut first, mut next) = (Ticket::new(Priority::High, now), Ticket::new(Priority::Low, now));
        assert!(first.join(&health, 1) && next.join(&health, 1));
        assert!(first.may_take(&health) && !next.may_take(&health));
        let place = health.admit(1, Comes::Called, now).unwrap();
        health.waiting.call();
        drop(first);
        assert!(!is_called(&next), "the place was taken by another");
        assert!(next.may_take(&health));
        drop(place);
        assert!(is_called(&next));
    }

    #[test]
    fn a_line_has_an_end() {
        let health = Arc::new(Health::default());
        let mut tickets: Vec<_> = (0..=LONGEST)
            .map(|_| Ticket::new(Priority::Normal, Instant::now()))
            .collect();
        let joined = tickets
            .iter_mut()
            .filter_map(|ticket| ticket.join(&health, 1).then_some(()));
        assert_eq!(joined.count(), LONGEST);
        drop(tickets);
        assert_eq!(health.waiting.length(), 0);
    }
}
