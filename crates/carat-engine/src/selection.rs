//! Finding the largest few of many logits without sorting them.
//!
//! The order is total, so that equal logits never make a result depend on the algorithm: larger key first, then
//! lower token id.

use std::cmp::Ordering;

/// A token that may still be chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    /// What the present stage orders by.
    pub(crate) key: f32,
    /// Unnormalized probability; the likeliest token before the filters has 1.
    pub(crate) weight: f32,
    /// Token id.
    pub(crate) id: u32,
}

/// Larger keys first, lower ids first among equals.
pub(crate) fn by_key(a: &Candidate, b: &Candidate) -> Ordering {
    b.key.total_cmp(&a.key).then(a.id.cmp(&b.id))
}

/// Fills `chosen` with the `k` largest finite logits (fewer if there are not so many), in no particular order.
///
/// Keeps at most `2k` or so candidates and a bar that only rises; blocks with nothing above the bar, which is
/// nearly all of them, cost one vectorized comparison.
pub(crate) fn select_largest(logits: &[f32], k: usize, chosen: &mut Vec<Candidate>) {
    const BLOCK: usize = 64;
    chosen.clear();
    if k == 0 {
        return;
    }
    let full = k.saturating_mul(2).max(256);
    let mut bar = f32::NEG_INFINITY;
    for (i_block, block) in logits.chunks(BLOCK).enumerate() {
        if block.iter().filter(|&&logit| logit > bar).count() == 0 {
            continue;
        }
        for (i, &logit) in block.iter().enumerate() {
            if logit > bar && logit.is_finite() {
                chosen.push(Candidate {
                    key: logit,
                    weight: 0.0,
                    id: token_id(i_block * BLOCK + i),
                });
            }
        }
        if chosen.len() >= full {
            keep_largest(chosen, k);
            // Later tokens with the same logit have higher ids and lose the tie: "above the bar" is enough.
            bar = chosen.iter().map(|c| c.key).fold(f32::INFINITY, f32::min);
        }
    }
    keep_largest(chosen, k);
}

/// Fills `all` with every finite logit, in the order of ids.
pub(crate) fn collect_finite(logits: &[f32], all: &mut Vec<Candidate>) {
    all.clear();
    all.extend(
        logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| logit.is_finite())
            .map(|(i, &logit)| Candidate {
                key: logit,
                weight: 0.0,
                id: token_id(i),
            }),
    );
}

/// Drops all but the `k` largest keys.
fn keep_largest(candidates: &mut Vec<Candidate>, k: usize) {
    if candidates.len() > k {
        candidates.select_nth_unstable_by(k, by_key);
        candidates.truncate(k);
    }
}

/// Keeps the largest keys until their weights reach `mass` of all weights; at least one.
///
/// Sorts only as far as needed: the largest 256, then eight times as many, and so on.
pub(crate) fn keep_mass(candidates: &mut Vec<Candidate>, mass: f32) {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let wanted = f64::from(mass) * total;
    let mut reached = 0.0f64;
    let mut n_sorted = 0;
    while n_sorted < candidates.len() {
        let end = (n_sorted * 8).max(256).min(candidates.len());
        let unsorted = &mut candidates[n_sorted..];
        let n_next = end - n_sorted;
        if n_next < unsorted.len() {
            unsorted.select_nth_unstable_by(n_next, by_key);
        }
        unsorted[..n_next].sort_unstable_by(by_key);
        for (i, candidate) in unsorted[..n_next].iter().enumerate() {
            reached += f64::from(candidate.weight);
            if reached >= wanted {
                candidates.truncate(n_sorted + i + 1);
                return;
            }
        }
        n_sorted = end;
    }
}

/// The id of a logits row's column.
#[expect(
    clippy::cast_possible_truncation,
    reason = "vocabularies have far fewer than 2^32 tokens"
)]
fn token_id(column: usize) -> u32 {
    column as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few different values, so that ties are common, and the values that must never be chosen.
    fn any_logit() -> impl Strategy<Value = f32> {
        prop_oneof![
            8 => (-20i8..20).prop_map(f32::from),
            1 => Just(f32::NEG_INFINITY),
            1 => Just(f32::NAN),
            1 => Just(f32::INFINITY),
        ]
    }

    proptest! {
        #[test]
        fn largest_equal_a_full_sort(logits in prop::collection::vec(any_logit(), 0..2000), k in 0usize..400) {
            let mut fast = Vec::new();
            select_largest(&logits, k, &mut fast);
            fast.sort_unstable_by(by_key);
            let mut slow: Vec<(usize, f32)> =
                logits.iter().copied().enumerate().filter(|(_, l)| l.is_finite()).collect();
            slow.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            slow.truncate(k);
            let fast: Vec<(usize, f32)> = fast.iter().map(|c| (c.id as usize, c.key)).collect();
            prop_assert_eq!(fast, slow);
        }

        #[test]
        fn mass_equals_a_full_sort(weights in prop::collection::vec(0u8..50, 1..3000), mass in 0.0f32..=1.0) {
            let mut fast: Vec<Candidate> = weights
                .iter()
                .enumerate()
                .map(|(i, &w)| Candidate { key: f32::from(w), weight: f32::from(w), id: i as u32 })
                .collect();
            let mut slow = fast.clone();
            keep_mass(&mut fast, mass);
            slow.sort_by(by_key);
            let total: f64 = slow.iter().map(|c| f64::from(c.weight)).sum();
            let mut n = 0;
            let mut reached = 0.0;
            while n < slow.len() && (n == 0 || reached < f64::from(mass) * total) {
                reached += f64::from(slow[n].weight);
                n += 1;
            }
            slow.truncate(n);
            prop_assert_eq!(fast, slow);
        }
    }
}
