//! Who may ask: API keys, compared in constant time.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

/// The key that a request brings: `Authorization: Bearer KEY`, as OpenAI's clients send it, or `x-api-key: KEY`, as
/// Anthropic's do.
pub(crate) fn key_of(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let plain = || headers.get("x-api-key").and_then(|value| value.to_str().ok());
    bearer.or_else(plain)
}

/// Whether `key` is one of `keys`. Takes the same time whichever it is, and wherever it differs.
pub(crate) fn is_known(keys: &[String], key: &str) -> bool {
    keys.iter().fold(false, |known, other| {
        known | equal(other.as_bytes(), key.as_bytes())
    })
}

/// The share of whoever brings `key`.
pub(crate) fn weight(weights: &[(String, u32)], key: &str) -> u32 {
    let found = weights
        .iter()
        .find(|(other, _)| equal(other.as_bytes(), key.as_bytes()));
    found.map_or(1, |(_, weight)| *weight)
}

fn equal(a: &[u8], b: &[u8]) -> bool {
    let pairs = a.iter().zip(b);
    let differences = pairs.fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_two_headers() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        assert_eq!(key_of(&headers("authorization", "bearer  k1 ")), Some("k1"));
        assert_eq!(key_of(&headers("authorization", "Basic x")), None);
        assert_eq!(key_of(&headers("x-api-key", "k2")), Some("k2"));
        let keys = ["abc".to_string(), "abcd".to_string()];
        assert!(is_known(&keys, "abcd") && !is_known(&keys, "ab") && !is_known(&keys, ""));
    }
}
