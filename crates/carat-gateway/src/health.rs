//! What is known about a target: is it well, how busy, how fast.
//!
//! A target is one model at one provider. Five failures in a row, or more than half of at least ten lately, open its
//! breaker: it rests for 2 s, doubling up to a minute, and then one request probes it. A stated wait (429) lets it rest
//! for that long. Times are means that fade with a time constant of a minute, so that what happened long ago counts for
//! little however few requests came since.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::failure::{Class, Failure};
use crate::usage::Usage;

/// Time constant of means, in seconds.
const FADE_S: f64 = 60.0;
/// Failures in a row that open the breaker.
const FAILURES_IN_ROW: u32 = 5;
/// Requests lately, of which more than half failed, that open it too.
const FAILURES_OF: f64 = 10.0;
/// First rest, and longest.
const RESTS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Most targets that are remembered: names come from clients where any model of a provider may be named.
const MAX_TARGETS: usize = 4096;
/// Upper bounds of times to the first token, in milliseconds.
pub(crate) const BOUNDS_MS: [u64; 10] = [10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000];

/// A mean that fades.
#[derive(Debug, Clone, Copy, Default)]
struct Fading {
    sum: f64,
    weight: f64,
    at: Option<Instant>,
}

impl Fading {
    fn faded(self, now: Instant) -> Self {
        let age = self
            .at
            .map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        let factor = (-age / FADE_S).exp();
        Self {
            sum: self.sum * factor,
            weight: self.weight * factor,
            at: Some(now),
        }
    }

    fn add(&mut self, value: f64, now: Instant) {
        *self = self.faded(now);
        self.sum += value;
        self.weight += 1.0;
    }

    /// The mean, if what it is made of is not forgotten.
    fn mean(&self, now: Instant) -> Option<f64> {
        let faded = self.faded(now);
        (faded.weight > 0.01).then(|| faded.sum / faded.weight)
    }
}

/// Whether a target may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// It rests until then.
    Resting(Instant),
    /// It has as many requests as it may.
    Full,
}

#[derive(Debug, Default)]
struct State {
    failures_in_row: u32,
    /// 1 for a failure, 0 for an answer.
    failing: Fading,
    resting_until: Option<Instant>,
    n_rests: u32,
    /// A request is finding out whether it is well again.
    is_probed: bool,
    /// Seconds to the first token, for prompts that are short and long.
    first_token: [Fading; 2],
    /// Seconds a token after the first.
    per_token: Fading,
}

/// A target's state, shared by all who call it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    in_flight: AtomicUsize,
    pub(crate) counts: Counts,
}

/// What a target did since the gateway started.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answers: AtomicU64,
    pub(crate) failures: [AtomicU64; Class::ALL.len()],
    pub(crate) cut_by_clients: AtomicU64,
    pub(crate) malformed: AtomicU64,
    /// Answers that cost nobody knows what.
    pub(crate) without_price: AtomicU64,
    pub(crate) input_tokens: AtomicU64,
    pub(crate) output_tokens: AtomicU64,
    /// Times to the first token, one more than [`BOUNDS_MS`].
    pub(crate) first_token: [AtomicU64; BOUNDS_MS.len() + 1],
    pub(crate) first_token_ms: AtomicU64,
}

/// How large a prompt is, as far as speed goes.
fn size_class(prompt_bytes: usize) -> usize {
    usize::from(prompt_bytes > 16_000)
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Seconds that an answer of `n_tokens` is likely to take, a quarter of a second if nothing is known.
    pub(crate) fn expected_s(&self, prompt_bytes: usize, n_tokens: f64, now: Instant) -> f64 {
        let state = self.state();
        let own = state.first_token[size_class(prompt_bytes)].mean(now);
        let other = || state.first_token[1 - size_class(prompt_bytes)].mean(now);
        let first = own.or_else(other).unwrap_or(0.25);
        first + n_tokens * state.per_token.mean(now).unwrap_or(0.0)
    }

    /// Part of the requests lately that failed.
    pub(crate) fn failing(&self, now: Instant) -> f64 {
        self.state().failing.mean(now).unwrap_or(0.0)
    }

    /// Whether it may be called.
    pub(crate) fn readiness(&self, max_in_flight: usize, now: Instant) -> Readiness {
        self.readiness_of(&self.state(), max_in_flight, now)
    }

    fn readiness_of(&self, state: &State, max_in_flight: usize, now: Instant) -> Readiness {
        match state.resting_until {
            Some(until) if until > now => Readiness::Resting(until),
            // It answers a probe first.
            Some(_) if state.is_probed => Readiness::Resting(now + RESTS.0),
            _ if self.in_flight() >= max_in_flight => Readiness::Full,
            _ => Readiness::Ready,
        }
    }

    /// Takes a place. Whoever is first after a rest is the probe; `is_forced` makes a probe of somebody during it.
    pub(crate) fn admit(
        self: &Arc<Self>,
        max_in_flight: usize,
        is_forced: bool,
        now: Instant,
    ) -> Result<Permit, Readiness> {
        let mut state = self.state();
        match self.readiness_of(&state, max_in_flight, now) {
            Readiness::Ready => {}
            Readiness::Resting(_) if is_forced && !state.is_probed => {}
            other => return Err(other),
        }
        let is_probe = state.resting_until.is_some();
        state.is_probed = is_probe;
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        drop(state);
        Ok(Permit {
            health: Arc::clone(self),
            is_probe,
            started: now,
        })
    }

    fn answered(&self, now: Instant) {
        let mut state = self.state();
        state.failures_in_row = 0;
        state.n_rests = 0;
        state.resting_until = None;
        state.failing.add(0.0, now);
        drop(state);
        self.counts.answers.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, failure: &Failure, now: Instant) {
        self.counts.failures[failure.class as usize].fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        if let Some(rest) = failure.class.rest(failure.wait) {
            state.resting_until = state.resting_until.max(now.checked_add(rest));
            return;
        }
        if !failure.class.is_illness() {
            return;
        }
        state.failing.add(1.0, now);
        state.failures_in_row += 1;
        let lately = state.failing;
        let is_mostly_failing = lately.weight >= FAILURES_OF && lately.sum > lately.weight / 2.0;
        let was_resting = state.resting_until.is_some();
        if was_resting || is_mostly_failing || state.failures_in_row >= FAILURES_IN_ROW {
            let rest = RESTS.0.saturating_mul(1 << state.n_rests.min(10)).min(RESTS.1);
            state.n_rests += 1;
            state.resting_until = now.checked_add(rest);
        }
    }
}

/// A request's place at a target, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    health: Arc<Health>,
    is_probe: bool,
    started: Instant,
}

impl Permit {
    pub(crate) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The target failed.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.health.failed(failure, Instant::now());
    }

    /// The target began to answer: it is well.
    pub(crate) fn began(&self, prompt_bytes: usize) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.started);
        self.health.answered(now);
        self.health.state().first_token[size_class(prompt_bytes)].add(took.as_secs_f64(), now);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MS
            .iter()
            .position(|bound| ms <= *bound)
            .unwrap_or(BOUNDS_MS.len());
        self.health.counts.first_token[bucket].fetch_add(1, Ordering::Relaxed);
        self.health.counts.first_token_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// The answer took these tokens; `spoken` is the time from the first of them to the last.
    pub(crate) fn took(&self, usage: &Usage, spoken: Option<Duration>) {
        self.health
            .counts
            .input_tokens
            .fetch_add(usage.input, Ordering::Relaxed);
        self.health
            .counts
            .output_tokens
            .fetch_add(usage.output, Ordering::Relaxed);
        if let Some(spoken) = spoken.filter(|_| usage.output > 1) {
            let per_token = spoken.as_secs_f64() / usage.output as f64;
            self.health.state().per_token.add(per_token, Instant::now());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_probe {
            self.health.state().is_probed = false;
        }
    }
}

/// All targets by name. It outlives configurations, so that a reload forgets nothing.
#[derive(Debug, Default)]
pub(crate) struct HealthBook {
    targets: Mutex<HashMap<String, Arc<Health>>>,
}

impl HealthBook {
    /// The health of a target.
    pub(crate) fn of(&self, name: &str) -> Arc<Health> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(health) = targets.get(name) {
            return Arc::clone(health);
        }
        let health = Arc::new(Health::default());
        // Beyond the limit a target is new every time, which costs its memory but no correctness.
        if targets.len() < MAX_TARGETS {
            targets.insert(name.to_string(), Arc::clone(&health));
        }
        health
    }

    /// Every target, by name.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Health>)> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = targets
            .iter()
            .map(|(name, health)| (name.clone(), Arc::clone(health)))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(class: Class) -> Failure {
        Failure::new(class, 500, "x")
    }

    #[test]
    fn failures_in_a_row_open_the_breaker_and_a_probe_closes_it() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        for _ in 0..FAILURES_IN_ROW {
            assert_eq!(health.readiness(9, start), Readiness::Ready);
            health.failed(&failure(Class::ServerFault), start);
        }
        assert_eq!(health.readiness(9, start), Readiness::Resting(start + RESTS.0));
        assert!(health.admit(9, false, start).is_err());
        let later = start + RESTS.0;
        let probe = health.admit(9, false, later).unwrap();
        assert!(health.admit(9, false, later).is_err(), "one probe at a time");
        health.failed(&failure(Class::Network), later);
        drop(probe);
        assert_eq!(
            health.readiness(9, later),
            Readiness::Resting(later + RESTS.0 * 2)
        );
        let forced = health.admit(9, true, later).unwrap();
        assert!(health.admit(9, true, later).is_err(), "one probe at a time");
        forced.began(10);
        assert_eq!(health.readiness(9, later), Readiness::Ready);
        drop(forced);
        assert_eq!(health.in_flight(), 0);
    }

    #[test]
    fn a_probe_whose_client_left_decides_nothing() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        (0..5).for_each(|_| health.failed(&failure(Class::Slow), start));
        let later = start + RESTS.0;
        drop(health.admit(9, false, later).unwrap());
        assert!(health.admit(9, false, later).is_ok());
    }

    #[test]
    fn a_stated_wait_is_kept_and_bad_requests_are_nobodys_illness() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        (0..20).for_each(|_| health.failed(&failure(Class::BadRequest), start));
        assert_eq!(health.readiness(1, start), Readiness::Ready);
        let limited = Failure {
            wait: Some(Duration::from_secs(7)),
            ..failure(Class::RateLimited)
        };
        health.failed(&limited, start);
        assert_eq!(
            health.readiness(1, start),
            Readiness::Resting(start + Duration::from_secs(7))
        );
        let permit = health.admit(1, false, start + Duration::from_secs(8)).unwrap();
        permit.began(1);
        assert_eq!(
            health.readiness(1, start + Duration::from_secs(8)),
            Readiness::Full
        );
    }

    #[test]
    fn half_of_ten_failing_opens_too() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        for i in 0..12 {
            if i % 3 == 0 {
                health.answered(start);
            } else {
                health.failed(&failure(Class::ServerFault), start);
            }
        }
        assert!(matches!(health.readiness(9, start), Readiness::Resting(_)));
    }

    #[test]
    fn means_fade() {
        let mut mean = Fading::default();
        let start = Instant::now();
        (0..100).for_each(|_| mean.add(1.0, start));
        let later = start + Duration::from_secs(300);
        mean.add(3.0, later);
        assert!(
            (mean.mean(later).unwrap() - 2.2).abs() < 0.1,
            "{:?}",
            mean.mean(later)
        );
        assert_eq!(mean.mean(later + Duration::from_secs(3600)), None);
    }
}
