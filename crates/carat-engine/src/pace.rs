//! How many tokens of prompts a step may take on while others wait for their next token.
//!
//! A step that only decodes takes some time; one that also computes a chunk of a prompt takes longer, and everybody's
//! next token waits for it. The chunk is chosen so that such a step takes [`STRETCH`] times as long as one without:
//! both costs are measured as the steps go by. When nobody decodes, nothing is held back.

/// How much longer than a step that only decodes one with a chunk may take. The promise is 4; the rest is for what
/// the estimate does not know: a thread that is taken off its core for a while holds the whole step up.
const STRETCH: f64 = 1.8;
/// Smallest chunk, in tokens: a prompt always goes on.
const LEAST: usize = 8;
/// Weight of a new measurement that asks for smaller chunks.
const QUICK: f64 = 0.5;
/// Weight of one that allows larger ones: a disturbed machine must not be taken for a slow one.
const SLOW: f64 = 0.1;
/// After so many steps with chunks one without is measured again.
const REFRESH: usize = 32;

/// What steps have taken so far.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Seconds of a step that decodes `i` sequences and nothing else.
    decode_s: Vec<Option<f64>>,
    /// Seconds that each token of a chunk adds.
    token_s: Option<f64>,
    n_mixed: usize,
}

impl Pace {
    /// Most tokens of prompts beside `n_decoding` sequences, of `most`. 0 asks for a step to be measured.
    pub(crate) fn chunk(&self, n_decoding: usize, most: usize) -> usize {
        if n_decoding == 0 {
            return most;
        }
        let known = self.decode_s.get(n_decoding).copied().flatten();
        match (known, self.token_s) {
            (None, _) => 0,
            (Some(_), _) if self.n_mixed >= REFRESH => 0,
            (Some(_), None) => LEAST.min(most),
            (Some(decode_s), Some(token_s)) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a small positive number; the cast saturates"
                )]
                let n = ((STRETCH - 1.0) * decode_s / token_s) as usize;
                n.max(LEAST).min(most)
            }
        }
    }

    /// Takes note of a step of `seconds`.
    pub(crate) fn record(&mut self, n_decoding: usize, n_chunk: usize, seconds: f64) {
        if n_decoding == 0 {
            return;
        }
        if n_chunk == 0 {
            self.n_mixed = 0;
            if self.decode_s.len() <= n_decoding {
                self.decode_s.resize(n_decoding + 1, None);
            }
            let old = self.decode_s[n_decoding].unwrap_or(seconds);
            let weight = if seconds < old { QUICK } else { SLOW };
            self.decode_s[n_decoding] = Some(old + weight * (seconds - old));
            return;
        }
        self.n_mixed += 1;
        let Some(decode_s) = self.decode_s.get(n_decoding).copied().flatten() else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
        let per_token = ((seconds - decode_s) / n_chunk as f64).max(1e-7);
        let old = self.token_s.unwrap_or(per_token);
        let weight = if per_token > old { QUICK } else { SLOW };
        self.token_s = Some(old + weight * (per_token - old));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_settle_where_steps_take_the_stretch() {
        let mut pace = Pace::default();
        assert_eq!(pace.chunk(0, 512), 512);
        assert_eq!(pace.chunk(8, 512), 0, "the undisturbed step is measured first");
        pace.record(8, 0, 0.020);
        let mut last = 0.0;
        for _ in 0..50 {
            let n = pace.chunk(8, 512);
            last = 0.020 + n as f64 * 0.001;
            pace.record(8, n, last);
        }
        assert!((0.033..=0.037).contains(&last) || last == 0.020, "{last}");
    }

    /// One disturbed step of either kind does not make later ones longer.
    #[test]
    fn noise_makes_no_chunk_larger_than_the_promise_allows() {
        let mut pace = Pace::default();
        pace.record(8, 0, 0.020);
        for i in 0..2000 {
            let n = pace.chunk(8, 512);
            let undisturbed = 0.020 + n as f64 * 0.001;
            assert!(undisturbed < 0.060, "{n} tokens at step {i}");
            // Every seventh step takes twice its time.
            let noise = if i % 7 == 0 { 2.0 } else { 1.0 };
            pace.record(8, n, undisturbed * noise);
        }
    }

    #[test]
    fn a_prompt_always_goes_on_and_steps_are_measured_again() {
        let mut pace = Pace::default();
        pace.record(1, 0, 0.001);
        pace.record(1, 8, 5.0);
        assert_eq!(pace.chunk(1, 512), LEAST);
        (0..REFRESH).for_each(|_| pace.record(1, 8, 5.0));
        assert_eq!(pace.chunk(1, 512), 0);
        pace.record(1, 0, 0.001);
        assert_eq!(pace.chunk(1, 4), 4);
    }
}
