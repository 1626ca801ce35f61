//! Whose turn it is, where a model's passes and other work share threads.
//!
//! A *pass* (a decode step, a piece of a prompt) may be one that somebody watches, *work beside* it (an image on its way
//! through a tower) may take seconds. So a region of work beside passes ends at its next chunk when a pass begins, and goes
//! on after it. And so that passes that follow each other closely leave something for it, the next one waits, if there is
//! work beside, as long as the one before took: each has half of the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// See the module's head.
pub(crate) struct Turns {
    state: Mutex<State>,
    /// A pass or work beside has ended.
    ended: Condvar,
    /// Written with `state` locked; read without by those who look before every chunk.
    in_pass: AtomicBool,
}

struct State {
    /// Works beside passes that are under way.
    n_beside: usize,
    /// Until then passes wait while there is work beside them.
    until: Instant,
}

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns {
            state: Mutex::new(State {
                n_beside: 0,
                until: Instant::now(),
            }),
            ended: Condvar::new(),
            in_pass: AtomicBool::new(false),
        }
    }

    /// Waits for the pass's turn; when it began.
    pub(crate) fn begin_pass(&self) -> Instant {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            let rest = state.until.saturating_duration_since(now);
            if self.is_in_pass() {
                state = self.wait(state);
            } else if state.n_beside > 0 && !rest.is_zero() {
                let waited = self.ended.wait_timeout(state, rest);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                self.in_pass.store(true, Ordering::Relaxed);
                return now;
            }
        }
    }

    /// Ends the pass that `begun` was given to.
    pub(crate) fn end_pass(&self, begun: Instant) {
        let mut state = self.state();
        let now = Instant::now();
        state.until = now + (now - begun);
        self.in_pass.store(false, Ordering::Relaxed);
        self.ended.notify_all();
    }

    pub(crate) fn begin_beside(&self) {
        self.state().n_beside += 1;
    }

    pub(crate) fn end_beside(&self) {
        self.state().n_beside -= 1;
        self.ended.notify_all();
    }

    /// Returns when no pass is under way.
    pub(crate) fn wait_for_passes(&self) {
        let mut state = self.state();
        while self.is_in_pass() {
            state = self.wait(state);
        }
    }

    pub(crate) fn is_in_pass(&self) -> bool {
        self.in_pass.load(Ordering::Relaxed)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.ended.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// No code panics while it holds this lock: go on.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pass_waits_as_long_as_the_last_one_took_for_work_beside() {
        let turns = Turns::new();
        turns.begin_beside();
        let first = turns.begin_pass();
        std::thread::sleep(Duration::from_millis(30));
        let took = first.elapsed();
        let ended = Instant::now();
        turns.end_pass(first);
        let second = turns.begin_pass();
        assert!(second - ended >= took);
        turns.end_pass(second);
    }

    #[test]
    fn a_pass_waits_for_nobody_where_there_is_no_work_beside() {
        let turns = Turns::new();
        turns.state().until = Instant::now() + Duration::from_secs(3600);
        let begun = turns.begin_pass();
        turns.end_pass(begun);
        turns.state().until = Instant::now() + Duration::from_secs(3600);
        turns.begin_beside();
        std::thread::scope(|scope| {
            let pass = scope.spawn(|| turns.begin_pass());
            std::thread::sleep(Duration::from_millis(10));
            assert!(!pass.is_finished());
            turns.end_beside();
            turns.end_pass(pass.join().unwrap());
        });
    }

    #[test]
    fn passes_of_two_callers_take_turns() {
        let turns = Turns::new();
        let begun = turns.begin_pass();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| turns.begin_pass());
            std::thread::sleep(Duration::from_millis(10));
            assert!(!other.is_finished());
            turns.end_pass(begun);
            turns.end_pass(other.join().unwrap());
        });
        assert!(!turns.is_in_pass());
    }
}
