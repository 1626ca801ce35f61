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

    /// Takes the other signals that end a program over too, for a command that leaves a large unfinished file behind when it
    /// is killed: SIGTERM, and SIGHUP when its terminal closes. What the program was started to ignore, as `nohup` does,
    /// stays ignored.
    #[cfg(unix)]
    pub(crate) fn take_endings(&self) {
        use signal_hook::consts::{SIGHUP, SIGTERM};
        let ignored = ignored_signals(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
        // Where the system does not tell, `nohup` is the likelier reason to run on.
        let ignored = ignored.unwrap_or(mask_of(SIGHUP));
        for signal in [SIGTERM, SIGHUP] {
            if ignored & mask_of(signal) == 0 {
                // A second one changes nothing: a shell that ends sends its jobs one, and the system another right behind it.
                let _never_rises = signal_hook::flag::register(signal, Arc::clone(&self.0));
            }
        }
    }

    /// Other systems have no such signals.
    #[cfg(not(unix))]
    pub(crate) fn take_endings(&self) {}

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

/// The signals that a process ignores, as Linux tells them of it: a bit each.
#[cfg(unix)]
fn ignored_signals(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// The bit of a signal in such a mask.
#[cfg(unix)]
fn mask_of(signal: i32) -> u64 {
    let place = u32::try_from(signal - 1).unwrap_or(u32::MAX);
    1u64.checked_shl(place).unwrap_or(0)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGHUP, SIGTERM};

    #[test]
    fn a_command_told_to_end_raises_the_flag() {
        let interrupt = Interrupt::for_test(false);
        interrupt.take_endings();
        assert!(interrupt.check().is_ok());
        for signal in [SIGTERM, SIGHUP, SIGHUP, SIGTERM] {
            signal_hook::low_level::raise(signal).unwrap();
        }
        assert!(interrupt.check().is_err());
    }

    #[test]
    fn what_is_ignored_is_read_from_the_status() {
        let ignored = ignored_signals("Name:\tcarat\nSigIgn:\t0000000000001001\nSigCgt:\t0\n").unwrap();
        assert!(ignored & mask_of(SIGHUP) != 0 && ignored & mask_of(SIGTERM) == 0);
        assert_eq!(ignored_signals("Name:\tcarat\n"), None);
        assert_eq!((mask_of(0), mask_of(1), mask_of(64)), (0, 1, 1 << 63));
    }
}
