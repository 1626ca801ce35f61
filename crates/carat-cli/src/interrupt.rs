//! Ctrl-C as a flag that long steps look at, so that they end in order instead of being killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::{INTERRUPTED, Interrupted};

/// Whether Ctrl-C was pressed since it was last looked at.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes Ctrl-C (SIGINT) over for the rest of the program. A second press before the first was looked at
    /// ends the program at once.
    ///
    /// Where the system gives no such signal, the flag just never rises.
    pub(crate) fn install() -> Self {
        let flag = Arc::new(AtomicBool::new(false));
        let _not_ended = signal_hook::flag::register_conditional_shutdown(
            signal_hook::consts::SIGINT,
            i32::from(INTERRUPTED),
            Arc::clone(&flag),
        );
        let _never_rises = signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&flag));
        Self(flag)
    }

    /// The flag itself, for those who look at it in their own loop.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// Whether it was pressed.
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends a step between whose parts it was pressed.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.is_raised() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }

    /// Forgets a press.
    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// One without a signal.
    #[cfg(test)]
    pub(crate) fn for_test(is_raised: bool) -> Self {
        Self(Arc::new(AtomicBool::new(is_raised)))
    }
}
