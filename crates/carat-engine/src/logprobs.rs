//! Log-probabilities of generated tokens.
//!
//! They describe the model, not the sampler: computed from the raw logits over the whole row, before bias,
//! penalties, temperature and filters, as the OpenAI API reports them. A token that a filter would never let
//! through therefore still has its true probability here.

use crate::numeric::log_sum_exp;
use crate::selection::{Candidate, by_key, select_largest};

/// A token's log-probability and the likeliest alternatives at its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability; 0 is certain.
    pub logprob: f32,
    /// The likeliest tokens and their log-probabilities, likeliest first; may hold the token itself.
    pub top: Vec<(u32, f32)>,
}

/// The log-probability of `id` in a row of raw logits, with the `n_top` likeliest tokens.
pub(crate) fn token_logprobs(
    logits: &[f32],
    id: u32,
    n_top: usize,
    scratch: &mut Vec<Candidate>,
) -> TokenLogprobs {
    let denominator = log_sum_exp(logits);
    let logprob = logits
        .get(id as usize)
        .map_or(f32::NEG_INFINITY, |&logit| minus(logit, denominator));
    select_largest(logits, n_top, scratch);
    scratch.sort_unstable_by(by_key);
    let top = scratch
        .iter()
        .map(|c| (c.id, minus(c.key, denominator)))
        .collect();
    TokenLogprobs { logprob, top }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the difference is taken in f64, then rounded once"
)]
fn minus(logit: f32, denominator: f64) -> f32 {
    (f64::from(logit) - denominator) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_a_small_row() {
        let logits = [1.0f32.ln(), 5.0f32.ln(), 2.0f32.ln(), 2.0f32.ln()];
        let found = token_logprobs(&logits, 2, 3, &mut Vec::new());
        assert!((found.logprob - 0.2f32.ln()).abs() < 1e-6);
        let ids: Vec<u32> = found.top.iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert!((found.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn no_alternatives_are_listed_unless_asked_for() {
        assert!(token_logprobs(&[0.0, 1.0], 1, 0, &mut Vec::new()).top.is_empty());
    }
}
