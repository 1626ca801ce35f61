//! What a provider says is left of its limits, by the headers of its answers.
//!
//! Names and units differ: a reset may be a duration (`6m0s`), seconds, a time since 1970 in seconds or milliseconds, or
//! RFC 3339, and is told by its size and shape. What is left is counted down here as requests go out, and what an answer
//! says replaces it. A target that would run dry is asked last, before it has to refuse.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::HeaderMap;

use crate::failure::{duration, seconds_of};
use crate::limits::WAIT;

/// How long a limit is taken to last whose reset is not told.
const UNTOLD: Duration = Duration::from_secs(60);

/// Names of headers: what is left, how much there is, when it is full again.
type Names = [&'static str; 3];

const REQUESTS: [Names; 5] = [
    [
        "x-ratelimit-remaining-requests",
        "x-ratelimit-limit-requests",
        "x-ratelimit-reset-requests",
    ],
    [
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-reset",
    ],
    [
        "x-ratelimit-remaining-requests-day",
        "x-ratelimit-limit-requests-day",
        "x-ratelimit-reset-requests-day",
    ],
    [
        "x-ratelimit-remaining-req-minute",
        "x-ratelimit-limit-req-minute",
        "ratelimit-reset",
    ],
    ["x-ratelimit-remaining", "x-ratelimit-limit", "x-ratelimit-reset"],
];

const TOKENS: [Names; 5] = [
    [
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-limit-tokens",
        "x-ratelimit-reset-tokens",
    ],
    [
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-limit",
        "anthropic-ratelimit-tokens-reset",
    ],
    [
        "x-ratelimit-remaining-tokens-minute",
        "x-ratelimit-limit-tokens-minute",
        "x-ratelimit-reset-tokens-minute",
    ],
    [
        "x-tokenlimit-remaining",
        "x-tokenlimit-limit",
        "x-ratelimit-reset",
    ],
    [
        "x-ratelimit-remaining-tokens-per-minute",
        "x-ratelimit-limit-tokens-per-minute",
        "ratelimit-reset",
    ],
];

/// One limit.
#[derive(Debug, Clone, Copy)]
struct Limit {
    left: u64,
    all: Option<u64>,
    until: Instant,
}

impl Limit {
    fn read(headers: &HeaderMap, sorts: &[Names], now: Instant) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
        // Some write fractions.
        let number = |name: &str| {
            text(name)?
                .parse::<f64>()
                .ok()
                .filter(|n| *n >= 0.0)
                .map(|n| n as u64)
        };
        sorts.iter().find_map(|[left, all, reset]| {
            let left = number(left)?;
            let wait = text(reset).and_then(|reset| time_to(reset, SystemTime::now()));
            Some(Self {
                left,
                all: number(all).filter(|all| *all > 0),
                until: now + wait.unwrap_or(UNTOLD).min(WAIT),
            })
        })
    }

    /// Whether taking `n` leaves nothing in reserve: a hundredth of the limit is kept.
    fn is_too_little(&self, n: u64) -> bool {
        self.left < n.saturating_add(self.all.unwrap_or(0) / 100)
    }
}

/// How long it is until a reset.
fn time_to(text: &str, now: SystemTime) -> Option<Duration> {
    let since = now.duration_since(UNIX_EPOCH).ok()?;
    let at = match text.parse::<f64>() {
        Ok(ms) if ms >= 1e11 => Duration::try_from_secs_f64(ms / 1000.0).ok()?,
        Ok(seconds) if seconds >= 1e9 => Duration::try_from_secs_f64(seconds).ok()?,
        Ok(seconds) => return Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => match duration(text) {
            Some(wait) => return Some(wait),
            None => rfc_3339(text)?,
        },
    };
    Some(at.saturating_sub(since))
}

/// `2026-11-21T17:00:00Z`, with a fraction or an offset, as time since 1970.
fn rfc_3339(text: &str) -> Option<Duration> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let end = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at(end);
    let clock = clock.split('.').next()?;
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let at = seconds_of(
        (year, month, day),
        (clock.next()??, clock.next()??, clock.next()??),
    )?;
    let Some((hours, minutes)) = zone.get(1..).and_then(|zone| zone.split_once(':')) else {
        return Some(Duration::from_secs(at));
    };
    let offset = hours.parse::<u64>().ok()?.min(24) * 3600 + minutes.parse::<u64>().ok()?.min(60) * 60;
    let at = match zone.as_bytes().first() {
        Some(b'-') => at.checked_add(offset),
        _ => at.checked_sub(offset),
    };
    at.map(Duration::from_secs)
}

/// What is left at a target.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Quota {
    requests: Option<Limit>,
    tokens: Option<Limit>,
}

impl Quota {
    /// Takes what an answer says. `others` are under way, of which it may not know.
    pub(crate) fn learn(&mut self, headers: &HeaderMap, others: u64, now: Instant) {
        if let Some(mut requests) = Limit::read(headers, &REQUESTS, now) {
            requests.left = requests.left.saturating_sub(others);
            self.requests = Some(requests);
        }
        if let Some(tokens) = Limit::read(headers, &TOKENS, now) {
            self.tokens = Some(tokens);
        }
    }

    /// A request of so many tokens goes out.
    pub(crate) fn spend(&mut self, tokens: u64) {
        for (limit, n) in [(&mut self.requests, 1), (&mut self.tokens, tokens)] {
            if let Some(limit) = limit {
                limit.left = limit.left.saturating_sub(n);
            }
        }
    }

    /// Until when a request of so many tokens is too much.
    pub(crate) fn is_dry_until(&self, tokens: u64, now: Instant) -> Option<Instant> {
        let limits = [(self.requests, 1), (self.tokens, tokens)];
        let dry = limits.into_iter().filter_map(|(limit, n)| {
            let limit = limit.filter(|limit| limit.until > now)?;
            // What is more than the whole limit would never fit: let the provider say so.
            let fits = limit.all.is_none_or(|all| n <= all);
            (fits && limit.is_too_little(n)).then_some(limit.until)
        });
        dry.max()
    }

    /// The smallest part of a limit that is left.
    pub(crate) fn left(&self, now: Instant) -> f64 {
        let limits = [self.requests, self.tokens].into_iter().flatten();
        limits
            .filter(|limit| limit.until > now)
            .filter_map(|limit| Some(limit.left as f64 / limit.all? as f64))
            .fold(1.0, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn resets_of_every_writing_are_read() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_280_400);
        let cases = [
            ("6m0s", 360.0),
            ("120ms", 0.12),
            ("33.5", 33.5),
            ("1795280410", 10.0),
            ("1795280410500", 10.5),
            ("2026-11-21T17:00:20Z", 20.0),
            ("2026-11-21T18:00:20.123+01:00", 20.0),
            ("2026-11-21T16:00:20-01:00", 20.0),
            ("2020-01-01T00:00:00Z", 0.0),
        ];
        for (text, expected) in cases {
            let wait = time_to(text, now).unwrap().as_secs_f64();
            assert!((wait - expected).abs() < 1e-3, "{text}: {wait}");
        }
        for nonsense in [
            "soon",
            "-5",
            "2026-99-99",
            "2026-11-21T",
            "T",
            "1e400",
            "2026-11-21T17:00:00+:",
        ] {
            assert_eq!(time_to(nonsense, now), None, "{nonsense}");
        }
    }

    #[test]
    fn a_target_that_would_run_dry_is_known_before_it_refuses() {
        let now = Instant::now();
        let mut quota = Quota::default();
        assert_eq!(quota.is_dry_until(1 << 40, now), None, "nothing is known");
        let told = headers(&[
            ("x-ratelimit-limit-requests", "100"),
            ("x-ratelimit-remaining-requests", "10"),
            ("x-ratelimit-reset-requests", "30s"),
            ("x-ratelimit-limit-tokens", "10000"),
            ("x-ratelimit-remaining-tokens", "900"),
            ("x-ratelimit-reset-tokens", "5s"),
        ]);
        quota.learn(&told, 2, now);
        assert!((quota.left(now) - 0.08).abs() < 1e-9);
        assert_eq!(quota.is_dry_until(800, now), None);
        assert_eq!(quota.is_dry_until(801, now), Some(now + Duration::from_secs(5)));
        assert_eq!(quota.is_dry_until(20_000, now), None, "it would never fit");
        (0..7).for_each(|_| quota.spend(1));
        assert_eq!(quota.is_dry_until(1, now), Some(now + Duration::from_secs(30)));
        assert_eq!(quota.is_dry_until(1, now + Duration::from_secs(31)), None);
    }

    #[test]
    fn other_names_are_known_too() {
        let now = Instant::now();
        for pairs in [
            [
                ("anthropic-ratelimit-requests-remaining", "0"),
                ("anthropic-ratelimit-requests-reset", "2099-01-01T00:00:00Z"),
            ],
            [
                ("x-ratelimit-remaining-requests-day", "0"),
                ("x-ratelimit-reset-requests-day", "33011.382867"),
            ],
            [("x-tokenlimit-remaining", "0"), ("x-ratelimit-reset", "5")],
        ] {
            let mut quota = Quota::default();
            quota.learn(&headers(&pairs), 0, now);
            let until = quota.is_dry_until(1, now).unwrap();
            assert!(until <= now + WAIT, "{pairs:?}");
        }
    }
}
