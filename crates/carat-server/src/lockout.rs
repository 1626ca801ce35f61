//! Wrong keys cost time: an address that gave too many is told to wait with the next wrong ones.
//!
//! A key of good length cannot be guessed anyway; this tells programs that go on with a wrong one to slow down. Right keys
//! are let in from every address: else whoever shares one, behind a proxy, could shut out all others there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::limits::{WRONG_KEY_ADDRESSES, WRONG_KEYS, WRONG_KEYS_FORGOTTEN};

/// Addresses that gave wrong keys.
#[derive(Default)]
pub(crate) struct Lockout(Mutex<HashMap<IpAddr, Wrong>>);

struct Wrong {
    n: u32,
    since: Instant,
}

impl Wrong {
    fn is_forgotten(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= WRONG_KEYS_FORGOTTEN
    }
}

impl Lockout {
    /// Whether this address gave too many wrong keys lately.
    pub(crate) fn holds(&self, address: IpAddr, now: Instant) -> bool {
        let wrong = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wrong
            .get(&address)
            .is_some_and(|wrong| wrong.n >= WRONG_KEYS && !wrong.is_forgotten(now))
    }

    /// Takes note of a wrong key.
    pub(crate) fn count(&self, address: IpAddr, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= WRONG_KEY_ADDRESSES && !all.contains_key(&address) {
            all.retain(|_, wrong| !wrong.is_forgotten(now));
            // Too many at once are let go together rather than remembered without bound.
            if all.len() >= WRONG_KEY_ADDRESSES {
                all.clear();
            }
        }
        let wrong = all.entry(address).or_insert(Wrong { n: 0, since: now });
        if wrong.is_forgotten(now) {
            *wrong = Wrong { n: 0, since: now };
        }
        wrong.n = wrong.n.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_held_after_many_wrong_keys_and_then_forgotten() {
        let lockout = Lockout::default();
        let [bad, good] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let start = Instant::now();
        for _ in 0..WRONG_KEYS {
            assert!(!lockout.holds(bad, start));
            lockout.count(bad, start);
        }
        assert!(lockout.holds(bad, start) && !lockout.holds(good, start));
        assert!(!lockout.holds(bad, start + WRONG_KEYS_FORGOTTEN));
        for i in 0..2 * WRONG_KEY_ADDRESSES as u32 {
            lockout.count(IpAddr::from(i.to_be_bytes()), start);
        }
        assert!(lockout.0.lock().unwrap().len() <= WRONG_KEY_ADDRESSES);
    }
}
