//! Limits per minute, as buckets that fill steadily: no two minutes' worth pass at the turn of one.

use std::time::{Duration, Instant};

/// A bucket; full at first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    /// What is missing to the full, at `at`.
    missing: f64,
    at: Option<Instant>,
}

impl Bucket {
    /// How long until `n` can be taken, if not now. More than fits is let through by a full bucket.
    pub(crate) fn check(&mut self, limit: u64, n: u64, now: Instant) -> Result<(), Duration> {
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

    /// Puts what was really used in place of what was taken.
    pub(crate) fn correct(&mut self, taken: u64, used: u64) {
        self.missing = (self.missing + used as f64 - taken as f64).max(0.0);
    }

    fn fill(&mut self, limit: f64, now: Instant) {
        let age = self
            .at
            .map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.missing = (self.missing - limit * age / 60.0).max(0.0);
        self.at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_steadily() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        for _ in 0..60 {
            bucket.check(60, 1, start).unwrap();
            bucket.take(1);
        }
        let wait = bucket.check(60, 1, start).unwrap_err();
        assert!((wait.as_secs_f64() - 1.0).abs() < 1e-3, "{wait:?}");
        assert!(bucket.check(60, 1, start + Duration::from_millis(1001)).is_ok());
        assert!(bucket.check(60, 60, start + Duration::from_secs(59)).is_err());
        assert!(
            bucket.check(60, 500, start + Duration::from_secs(60)).is_ok(),
            "more than fits, by a full bucket"
        );
        bucket.take(500);
        bucket.correct(500, 30);
        assert!(bucket.check(60, 30, start + Duration::from_secs(60)).is_ok());
    }
}
