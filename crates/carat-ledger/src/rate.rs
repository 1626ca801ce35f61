//! Limits per minute, as buckets that fill steadily: no two minutes' worth pass at the turn of one.

use std::time::Duration;

/// How far a bucket's time may be ahead of a clock that is only a little slow, in milliseconds. Beyond it the clock was
/// set back.
const MAX_AHEAD_MS: u64 = 60_000;

/// A bucket; full at first. Times are milliseconds of a clock that whoever keeps it chooses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    /// What is missing to the full, at `at`.
    missing: f64,
    /// Nothing as long as there is no limit.
    at: Option<u64>,
}

impl Bucket {
    /// How long until `n` can be taken, if not now. More than fits is let through by a full bucket.
    pub(crate) fn check(&mut self, limit: u64, n: u64, now: u64) -> Result<(), Duration> {
        let (limit, n) = (limit as f64, n as f64);
        self.fill(limit, now);
        let excess = self.missing + n.min(limit) - limit;
        if excess <= 1e-6 {
            return Ok(());
        }
        Err(Duration::try_from_secs_f64(excess * 60.0 / limit.max(1e-9))
            .unwrap_or(Duration::from_secs(86_400)))
    }

    pub(crate) fn take(&mut self, n: u64) {
        self.missing += n as f64;
    }

    /// Makes up for a limit that was higher: what was taken under it is at most what fits now.
    pub(crate) fn cap(&mut self, limit: u64) {
        self.missing = self.missing.min(limit as f64);
    }

    /// Puts what was really used in place of what was taken.
    pub(crate) fn correct(&mut self, taken: u64, used: u64) {
        // Without a limit nothing was taken.
        if self.at.is_none() {
            return;
        }
        self.missing = (self.missing + used as f64 - taken as f64).max(0.0);
    }

    /// As a database keeps it: thousandths that are missing, and when.
    pub(crate) fn parts(&self) -> (u64, Option<u64>) {
        ((self.missing * 1000.0) as u64, self.at)
    }

    pub(crate) fn of_parts(missing: u64, at: Option<u64>) -> Self {
        // Versions that took from buckets without a limit have left some that are empty and were never filled.
        at.map_or_else(Self::default, |at| Self {
            missing: missing as f64 / 1000.0,
            at: Some(at),
        })
    }

    fn fill(&mut self, limit: f64, now: u64) {
        let at = self.at.unwrap_or(now);
        // Several gateways have clocks that differ a little. If the bucket's time followed a slow one back, the next that
        // is not slow would fill the same time in once more.
        if now < at && at - now <= MAX_AHEAD_MS {
            return;
        }
        self.missing = (self.missing - limit * now.saturating_sub(at) as f64 / 60_000.0).max(0.0);
        self.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_steadily() {
        let (mut bucket, start) = (Bucket::default(), 7_000);
        for _ in 0..60 {
            bucket.check(60, 1, start).unwrap();
            bucket.take(1);
        }
        let wait = bucket.check(60, 1, start).unwrap_err();
        assert!((wait.as_secs_f64() - 1.0).abs() < 1e-3, "{wait:?}");
        assert!(bucket.check(60, 1, start + 1_001).is_ok());
        assert!(bucket.check(60, 60, start + 59_000).is_err());
        assert!(
            bucket.check(60, 500, start + 60_000).is_ok(),
            "more than fits, by a full bucket"
        );
        bucket.take(500);
        bucket.correct(500, 30);
        assert!(bucket.check(60, 30, start + 60_000).is_ok());
    }

    #[test]
    fn clocks_that_differ_a_little_do_not_fill_it_twice() {
        let (mut bucket, start) = (Bucket::default(), 10_000_000);
        bucket.check(60, 60, start).unwrap();
        bucket.take(60);
        // One gateway is two seconds behind the other; both ask all the time.
        for _ in 0..100 {
            assert!(bucket.check(60, 1, start - 2_000).is_err());
            assert!(bucket.check(60, 1, start).is_err());
        }
        // A clock that was set back by an hour does not stop it from filling for an hour.
        assert!(bucket.check(60, 1, start - 3_600_000).is_err());
        assert!(bucket.check(60, 2, start - 3_600_000 + 2_001).is_ok());
    }

    #[test]
    fn what_was_never_limited_is_full() {
        let mut bucket = Bucket::of_parts(9_000_000, None);
        bucket.correct(0, 5_000);
        assert_eq!(bucket.parts(), (0, None));
        bucket.check(60, 60, 1).unwrap();
        bucket.take(60);
        assert_eq!(bucket.parts(), (60_000, Some(1)));
    }
}
