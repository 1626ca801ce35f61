//! What is known about a target: is it well, how busy, how fast.
//!
//! A target is one model at one provider. Five failures in a row, or more than half of at least ten lately, open its
//! breaker: it rests for 2 s, doubling up to a minute, and then one request probes it. A stated wait (429) lets it rest
//! for that long. Where nobody else is left for a request, a target is probed before its rest is over: one request at a
//! time, ten a second at most, and one a second where the provider has said how long it wants to be left alone. A probe
//! that takes long counts as failed until it answers, so that one that stalls keeps nobody else from trying.
//!
//! Requests that were under way when a rest began say nothing about what comes after it: neither do their answers end it,
//! nor their failures lengthen it. Times are means that fade with a time constant of a minute, so that what happened long
//! ago counts for little however few requests came since.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::failure::{Class, Failure};
use crate::quota::Quota;
use crate::usage::Usage;
use crate::waiting::Waiting;

/// Time constant of means, in seconds.
const FADE_S: f64 = 60.0;
/// Failures in a row that open the breaker.
const FAILURES_IN_ROW: u32 = 5;
/// Requests lately, of which more than half failed, that open it too.
const FAILURES_OF: f64 = 10.0;
/// First rest, and longest.
const RESTS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Time between two forced probes of a target that rests, and of one whose provider has asked for the rest.
const PACES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// Who has answered within this time is known to answer.
const LATELY: Duration = Duration::from_secs(60);
/// How long a probe keeps others from probing, at least and at most.
const TRIALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
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

/// How somebody comes to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comes {
    /// On its way.
    Newly,
    /// Though it rests, since nobody else is left: to probe it.
    Forced,
    /// From among those who wait.
    Called,
}

/// A request that finds out whether a target is well again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// Its rest was over.
    Due(u64),
    /// It rested still, but so did everybody else.
    Forced(u64),
}

impl Probe {
    fn id(self) -> u64 {
        match self {
            Self::Due(id) | Self::Forced(id) => id,
        }
    }
}

/// A probe under way.
#[derive(Debug, Clone, Copy)]
struct Trial {
    probe: Probe,
    /// Until when it is waited for.
    until: Instant,
}

/// The latest times, of which a percentile can be told.
#[derive(Debug, Default)]
struct Recent {
    seconds: Vec<f32>,
    next: usize,
}

impl Recent {
    /// How many are kept.
    const KEPT: usize = 64;
    /// How few say nothing.
    const FEW: usize = 20;

    fn add(&mut self, seconds: f64) {
        if self.seconds.len() < Self::KEPT {
            self.seconds.push(seconds as f32);
        } else {
            self.seconds[self.next] = seconds as f32;
        }
        self.next = (self.next + 1) % Self::KEPT;
    }

    fn percentile_95(&self) -> Option<Duration> {
        if self.seconds.len() < Self::FEW {
            return None;
        }
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f32::total_cmp);
        let at = sorted.len() * 95 / 100;
        Duration::try_from_secs_f32(*sorted.get(at)?).ok()
    }
}

#[derive(Debug, Default)]
struct State {
    failures_in_row: u32,
    answered_at: Option<Instant>,
    /// 1 for a failure, 0 for an answer.
    failing: Fading,
    /// It is not asked until then, and probed after it.
    resting_until: Option<Instant>,
    /// Until when its provider wants it to be left alone.
    stated_until: Option<Instant>,
    n_rests: u32,
    /// The request that is finding out whether it is well again.
    trial: Option<Trial>,
    n_probes: u64,
    /// When it may be probed in its rest.
    forced_from: Option<Instant>,
    /// Seconds to the first token, for prompts that are short and long.
    first_token: [Fading; 2],
    recent: Recent,
    /// Seconds a token after the first.
    per_token: Fading,
    /// Tokens of an answer.
    answer_tokens: Fading,
    quota: Quota,
}

/// A target's state, shared by all who call it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    in_flight: AtomicUsize,
    /// Requests that wait for a place at it.
    pub(crate) waiting: Waiting,
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

    /// Seconds to the first token, and tokens a second after it, as far as they are known.
    pub(crate) fn speed(&self, prompt_bytes: usize, now: Instant) -> (Option<f64>, Option<f64>) {
        let state = self.state();
        let first = state.first_token[size_class(prompt_bytes)].mean(now);
        let per_token = state.per_token.mean(now).filter(|seconds| *seconds > 0.0);
        (first, per_token.map(|seconds| 1.0 / seconds))
    }

    /// Tokens of an answer lately.
    pub(crate) fn answer_tokens(&self, now: Instant) -> Option<f64> {
        self.state().answer_tokens.mean(now)
    }

    /// The time within which 95 of 100 of the latest answers began.
    pub(crate) fn percentile_95(&self) -> Option<Duration> {
        self.state().recent.percentile_95()
    }

    /// What its provider says is left of a limit.
    pub(crate) fn learn(&self, headers: &http::HeaderMap, now: Instant) {
        let others = self.in_flight().saturating_sub(1) as u64;
        self.state().quota.learn(headers, others, now);
    }

    /// Until when a request of so many tokens would pass a limit of its provider, as far as it has said so.
    pub(crate) fn is_dry_until(&self, tokens: u64, now: Instant) -> Option<Instant> {
        self.state().quota.is_dry_until(tokens, now)
    }

    /// The part of its provider's limits that is left, 1 if nothing is known.
    pub(crate) fn quota_left(&self, now: Instant) -> f64 {
        self.state().quota.left(now)
    }

    /// Part of the requests lately that failed.
    pub(crate) fn failing(&self, now: Instant) -> f64 {
        self.state().failing.mean(now).unwrap_or(0.0)
    }

    /// Whether it may be called.
    pub(crate) fn readiness(&self, max_in_flight: usize, now: Instant) -> Readiness {
        self.readiness_of(&mut self.state(), max_in_flight, now)
    }

    /// Until when its provider has said that it is not to be asked.
    pub(crate) fn stated_rest(&self, now: Instant) -> Option<Instant> {
        self.state().stated_until.filter(|until| *until > now)
    }

    /// Whether it has answered somebody lately.
    pub(crate) fn has_answered_lately(&self, now: Instant) -> bool {
        self.state().has_answered_lately(now)
    }

    /// Whether somebody is finding out whether it is well again.
    pub(crate) fn is_on_trial(&self, now: Instant) -> bool {
        let mut state = self.state();
        state.end_trial(now);
        state.trial.is_some()
    }

    /// Whether it is thought ill, so that its next request is a probe.
    pub(crate) fn is_ill(&self) -> bool {
        self.state().resting_until.is_some()
    }

    /// Whether what it did last was to answer.
    pub(crate) fn is_well(&self) -> bool {
        let state = self.state();
        state.resting_until.is_none() && state.failures_in_row == 0 && state.answered_at.is_some()
    }

    fn readiness_of(&self, state: &mut State, max_in_flight: usize, now: Instant) -> Readiness {
        state.end_trial(now);
        match state.resting_until {
            Some(until) if until > now => Readiness::Resting(until),
            // It answers a probe first.
            Some(_) if state.trial.is_some() => Readiness::Resting(now + RESTS.0),
            // Who waits is before who comes.
            _ if self.in_flight() >= max_in_flight || self.waiting.is_used() => Readiness::Full,
            _ => Readiness::Ready,
        }
    }

    /// Whether somebody who waits could have a place.
    pub(crate) fn has_place(&self, max_in_flight: usize, now: Instant) -> bool {
        let mut state = self.state();
        state.end_trial(now);
        let rests = state
            .resting_until
            .is_some_and(|until| until > now || state.trial.is_some());
        !rests && self.in_flight() < max_in_flight
    }

    /// Takes a place. Whoever is first after a rest is the probe.
    pub(crate) fn admit(
        self: &Arc<Self>,
        max_in_flight: usize,
        comes: Comes,
        now: Instant,
    ) -> Result<Permit, Readiness> {
        let mut state = self.state();
        let has_place = self.in_flight() < max_in_flight;
        match self.readiness_of(&mut state, max_in_flight, now) {
            Readiness::Ready => {}
            Readiness::Resting(_) if comes == Comes::Forced && has_place && state.may_be_forced(now) => {}
            Readiness::Full if comes == Comes::Called && has_place => {}
            other => return Err(other),
        }
        let probe = state.resting_until.map(|until| {
            state.n_probes += 1;
            if until > now {
                Probe::Forced(state.n_probes)
            } else {
                Probe::Due(state.n_probes)
            }
        });
        if let Some(probe) = probe {
            let until = now + state.patience(now);
            state.trial = Some(Trial { probe, until });
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        drop(state);
        Ok(Permit::new(self, probe, now))
    }

    /// Counts tokens against what the provider says is left.
    pub(crate) fn spend(&self, tokens: u64) {
        self.state().quota.spend(tokens);
    }

    fn answered(&self, probe: Option<Probe>, now: Instant) {
        self.counts.answers.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.failing.add(0.0, now);
        state.answered_at = state.answered_at.max(Some(now));
        if state.resting_until.is_none() {
            state.failures_in_row = 0;
        } else if probe.is_some() {
            state.recover();
        }
    }

    fn failed(&self, failure: &Failure, probe: Option<Probe>, now: Instant) {
        self.counts.failures[failure.class as usize].fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        // Who answers others has the model and a good key: it is this request that names what it may not have.
        let blames_target = matches!(failure.class, Class::BadKey | Class::ModelGone | Class::Moved);
        let is_doubtful = blames_target && state.has_answered_lately(now);
        if let Some(rest) = failure.class.rest(failure.wait).filter(|_| !is_doubtful) {
            let until = now.checked_add(rest);
            state.resting_until = state.resting_until.max(until);
            state.stated_until = state.stated_until.max(until);
            return;
        }
        if !failure.class.is_illness() {
            // Whoever refuses a request for its own sake is well.
            if probe.is_some() {
                state.recover();
            }
            return;
        }
        state.failing.add(1.0, now);
        match (state.resting_until, probe) {
            (Some(_), Some(Probe::Due(id))) if state.is_tried_by(id) => state.take_rest(now),
            // It was thought ill anyway, and this request was sent before that or in spite of it.
            (Some(_), _) => {}
            (None, _) => {
                state.failures_in_row += 1;
                let lately = state.failing;
                let is_mostly_failing = lately.weight >= FAILURES_OF && lately.sum > lately.weight / 2.0;
                if is_mostly_failing || state.failures_in_row >= FAILURES_IN_ROW {
                    state.take_rest(now);
                }
            }
        }
    }
}

impl State {
    /// A probe that nobody waits for any longer has failed, as far as is known.
    fn end_trial(&mut self, now: Instant) {
        let Some(trial) = self.trial.take_if(|trial| trial.until <= now) else {
            return;
        };
        if matches!(trial.probe, Probe::Due(_)) {
            self.take_rest(now);
        }
    }

    fn has_answered_lately(&self, now: Instant) -> bool {
        self.answered_at
            .is_some_and(|at| now.saturating_duration_since(at) < LATELY)
    }

    fn is_tried_by(&self, id: u64) -> bool {
        self.trial.is_some_and(|trial| trial.probe.id() == id)
    }

    /// How long a probe is waited for: twice the time that answers take to begin.
    fn patience(&self, now: Instant) -> Duration {
        let usual = self.first_token.iter().filter_map(|mean| mean.mean(now));
        let usual = Duration::try_from_secs_f64(2.0 * usual.fold(0.0, f64::max));
        usual.unwrap_or(TRIALS.1).clamp(TRIALS.0, TRIALS.1)
    }

    /// Whether it may be probed though it rests. Who is told so does it.
    fn may_be_forced(&mut self, now: Instant) -> bool {
        if self.trial.is_some() || self.forced_from.is_some_and(|from| from > now) {
            return false;
        }
        let is_stated = self.stated_until.is_some_and(|until| until > now);
        self.forced_from = now.checked_add(if is_stated { PACES.1 } else { PACES.0 });
        true
    }

    fn take_rest(&mut self, now: Instant) {
        let rest = RESTS.0.saturating_mul(1 << self.n_rests.min(10)).min(RESTS.1);
        self.n_rests += 1;
        self.resting_until = now.checked_add(rest);
    }

    /// It is well again: what was before its rest no longer counts.
    fn recover(&mut self) {
        self.failures_in_row = 0;
        self.n_rests = 0;
        self.resting_until = None;
        self.stated_until = None;
        self.trial = None;
        self.failing = Fading::default();
    }
}

/// A request's place at a target, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    health: Arc<Health>,
    probe: Option<Probe>,
    started: Instant,
}

impl Permit {
    fn new(health: &Arc<Health>, probe: Option<Probe>, started: Instant) -> Self {
        Self {
            health: Arc::clone(health),
            probe,
            started,
        }
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Whether it finds out if the target is well.
    pub(crate) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// The target failed.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.health.failed(failure, self.probe, clock::now());
    }

    /// The target began to answer: it is well. `n_whole`: tokens of an answer that came whole; what they took after the
    /// first is no part of the time to it.
    pub(crate) fn began(&self, prompt_bytes: usize, n_whole: u64) {
        let now = clock::now();
        let took = now.saturating_duration_since(self.started);
        self.health.answered(self.probe, now);
        let mut state = self.health.state();
        let rest = n_whole as f64 * state.per_token.mean(now).unwrap_or(0.0);
        let first = (took.as_secs_f64() - rest).max(0.0);
        state.first_token[size_class(prompt_bytes)].add(first, now);
        state.recent.add(took.as_secs_f64());
        drop(state);
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
        let now = clock::now();
        let mut state = self.health.state();
        state.answer_tokens.add(usage.output as f64, now);
        if let Some(spoken) = spoken.filter(|_| usage.output > 1) {
            state
                .per_token
                .add(spoken.as_secs_f64() / usage.output as f64, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(probe) = self.probe {
            let mut state = self.health.state();
            // A later probe is somebody else's.
            if state.is_tried_by(probe.id()) {
                state.trial = None;
            }
        }
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.health.waiting.call();
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
        // Names that nobody ever answered to make room. Where that is not enough, a target is new every time: it is called
        // all the same, and nobody counts how often.
        if targets.len() >= MAX_TARGETS {
            targets.retain(|_, health| {
                Arc::strong_count(health) > 1 || health.counts.answers.load(Ordering::Relaxed) > 0
            });
        }
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
            health.failed(&failure(Class::ServerFault), None, start);
        }
        assert_eq!(health.readiness(9, start), Readiness::Resting(start + RESTS.0));
        assert!(health.admit(9, Comes::Newly, start).is_err());
        let later = start + RESTS.0;
        let probe = health.admit(9, Comes::Newly, later).unwrap();
        assert!(
            health.admit(9, Comes::Newly, later).is_err(),
            "one probe at a time"
        );
        health.failed(&failure(Class::Network), probe.probe, later);
        drop(probe);
        assert_eq!(
            health.readiness(9, later),
            Readiness::Resting(later + RESTS.0 * 2)
        );
        let forced = health.admit(9, Comes::Forced, later).unwrap();
        assert!(
            health.admit(9, Comes::Forced, later).is_err(),
            "one probe at a time"
        );
        forced.began(10, 0);
        assert_eq!(health.readiness(9, later), Readiness::Ready);
        drop(forced);
        assert_eq!(health.in_flight(), 0);
    }

    #[test]
    fn a_probe_whose_client_left_decides_nothing() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        (0..5).for_each(|_| health.failed(&failure(Class::Slow), None, start));
        let later = start + RESTS.0;
        drop(health.admit(9, Comes::Newly, later).unwrap());
        assert!(health.admit(9, Comes::Newly, later).is_ok());
    }

    #[test]
    fn a_stated_wait_is_kept_and_bad_requests_are_nobodys_illness() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        (0..20).for_each(|_| health.failed(&failure(Class::BadRequest), None, start));
        assert_eq!(health.readiness(1, start), Readiness::Ready);
        let limited = Failure {
            wait: Some(Duration::from_secs(7)),
            ..failure(Class::RateLimited)
        };
        health.failed(&limited, None, start);
        assert_eq!(
            health.readiness(1, start),
            Readiness::Resting(start + Duration::from_secs(7))
        );
        let permit = health
            .admit(1, Comes::Newly, start + Duration::from_secs(8))
            .unwrap();
        permit.began(1, 0);
        assert_eq!(
            health.readiness(1, start + Duration::from_secs(8)),
            Readiness::Full
        );
    }

    #[test]
    fn who_answers_others_has_a_good_key_and_the_model() {
        for class in [Class::BadKey, Class::ModelGone] {
            let health = Arc::new(Health::default());
            let start = Instant::now();
            health.answered(None, start);
            health.failed(&failure(class), None, start + Duration::from_secs(1));
            assert_eq!(
                health.readiness(9, start + Duration::from_secs(1)),
                Readiness::Ready
            );
            let later = start + LATELY;
            health.failed(&failure(class), None, later);
            assert_eq!(
                health.readiness(9, later),
                Readiness::Resting(later + Duration::from_secs(60))
            );
        }
    }

    #[test]
    fn half_of_ten_failing_opens_too() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        for i in 0..12 {
            if i % 3 == 0 {
                health.answered(None, start);
            } else {
                health.failed(&failure(Class::ServerFault), None, start);
            }
        }
        assert!(matches!(health.readiness(9, start), Readiness::Resting(_)));
    }

    #[test]
    fn what_was_sent_before_a_rest_neither_ends_nor_lengthens_it() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        let now = start + Duration::from_secs(1);
        let limited = Failure {
            wait: Some(Duration::from_secs(30)),
            ..failure(Class::RateLimited)
        };
        health.failed(&limited, None, now);
        health.answered(None, now);
        let until = Readiness::Resting(now + Duration::from_secs(30));
        assert_eq!(health.readiness(9, now), until, "an older answer does not end it");
        let other = Arc::new(Health::default());
        // A hundred under way when it dies: it rests for as long as after five.
        (0..100).for_each(|_| other.failed(&failure(Class::Network), None, now));
        assert_eq!(other.readiness(9, now), Readiness::Resting(now + RESTS.0));
        // A forced probe that fails leaves the rest as it is, and so does any number of them.
        let end = now + RESTS.0;
        for i in 0..10 {
            let now = now + PACES.0 * i;
            let forced = other.admit(9, Comes::Forced, now).unwrap();
            other.failed(&failure(Class::Network), forced.probe, now);
        }
        assert_eq!(other.readiness(9, now), Readiness::Resting(end));
    }

    #[test]
    fn who_rests_is_probed_now_and_then_and_less_often_where_that_was_asked_for() {
        let forced = |wait: Option<Duration>| {
            let health = Arc::new(Health::default());
            let start = Instant::now();
            (0..5).for_each(|_| health.failed(&failure(Class::Network), None, start));
            let limited = Failure {
                wait,
                ..failure(Class::RateLimited)
            };
            if wait.is_some() {
                health.failed(&limited, None, start);
            }
            let probes = (0..1990).filter(|ms| {
                let now = start + Duration::from_millis(*ms);
                health.admit(9, Comes::Forced, now).is_ok()
            });
            probes.count()
        };
        assert_eq!(forced(None), 20);
        assert_eq!(forced(Some(Duration::from_secs(60))), 2);
    }

    #[test]
    fn a_probe_that_stalls_keeps_others_from_probing_for_a_second() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        (0..5).for_each(|_| health.failed(&failure(Class::Network), None, start));
        let due = start + RESTS.0;
        let stalled = health.admit(9, Comes::Newly, due).unwrap();
        let later = due + TRIALS.0;
        assert!(health.admit(9, Comes::Forced, later - PACES.0).is_err());
        assert_eq!(
            health.readiness(9, later),
            Readiness::Resting(later + RESTS.0 * 2),
            "it rests on, longer"
        );
        let forced = health.admit(9, Comes::Forced, later).unwrap();
        health.failed(&failure(Class::Slow), stalled.probe, later);
        drop(stalled);
        assert_eq!(
            health.readiness(9, later),
            Readiness::Resting(later + RESTS.0 * 2),
            "its failure was counted before"
        );
        assert!(health.is_on_trial(later), "the other probe goes on");
        forced.began(10, 0);
        assert_eq!(health.readiness(9, later), Readiness::Ready);
    }

    #[test]
    fn one_failure_after_a_recovery_is_one_failure() {
        let health = Arc::new(Health::default());
        let start = Instant::now();
        (0..20).for_each(|_| health.failed(&failure(Class::Slow), None, start));
        let later = start + RESTS.0;
        health.admit(9, Comes::Newly, later).unwrap().began(1, 0);
        health.failed(&failure(Class::Slow), None, later);
        assert_eq!(health.readiness(9, later), Readiness::Ready);
    }

    #[test]
    fn the_slowest_of_twenty_are_told() {
        let mut recent = Recent::default();
        (0..19).for_each(|i| recent.add(f64::from(i)));
        assert_eq!(recent.percentile_95(), None);
        (19..1000).for_each(|i| recent.add(f64::from(i)));
        let at = recent.percentile_95().unwrap().as_secs();
        assert!((990..=997).contains(&at), "{at}");
        assert_eq!(recent.seconds.len(), Recent::KEPT);
    }

    #[test]
    fn names_that_nobody_answers_to_are_forgotten_when_there_are_many() {
        let book = HealthBook::default();
        let known = book.of("a/known");
        known.answered(None, Instant::now());
        drop(known);
        let used = book.of("a/used");
        for i in 0..2 * MAX_TARGETS {
            book.of(&format!("a/{i}"));
        }
        assert!(book.all().len() <= MAX_TARGETS);
        assert!(Arc::ptr_eq(&used, &book.of("a/used")));
        assert_eq!(book.of("a/known").counts.answers.load(Ordering::Relaxed), 1);
        let last = book.of("a/last");
        assert!(Arc::ptr_eq(&last, &book.of("a/last")));
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
