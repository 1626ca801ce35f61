//! Choosing the next token.
//!
//! The stages run in this fixed order; each sees only what the one before left over, renormalized:
//!
//! 1. **suppress**: rows beyond the tokenizer (padding) and forbidden ids are masked (those that a grammar forbids too,
//!    after stage 3);
//! 2. **logit bias** is added;
//! 3. **penalties** over the last `penalty_window` tokens, prompt included: the repetition penalty divides a
//!    positive logit and multiplies a negative one, then `count · frequency + presence` is taken off (as in
//!    llama.cpp; the repetition part also as in transformers);
//! 4. **temperature** divides the logits; 0 takes the largest here and ends (no random number is used);
//! 5. **top-k** keeps the k largest, exactly k: among equals the lower id stays;
//! 6. **typical**: the tokens whose surprise `-ln p` lies nearest to the entropy, up to the mass `typical_p`;
//! 7. **top-p**: the likeliest tokens up to and including the one with which the mass `top_p` is reached;
//! 8. **min-p**: tokens at least `min_p` times as likely as the likeliest left;
//! 9. **pick**: one random number walks the rest in the order of ids.
//!
//! Dividing by the temperature before the filters, not after, is what transformers does; llama.cpp's
//! default order has it last. Every filter keeps at least one token. Logits that are NaN or infinite are never
//! chosen. The order of ids in the last stage, the own exponential and the own generator make the choice a
//! function of the logits and the seed alone.

use carat_model::TokenLogit;

use crate::error::Error;
use crate::numeric::exp_nonpositive;
use crate::random::Random;
use crate::recent::Recent;
use crate::sampling_params::SamplingParams;
use crate::selection::{Candidate, by_key, collect_finite, keep_mass, select_largest};

/// Chooses tokens for one sequence. Buffers are kept: no allocation per token once warm.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    /// Rows of the model's logits.
    n_rows: usize,
    /// The first rows, which have a token.
    n_allowed: usize,
    suppressed: Vec<u32>,
    random: Random,
    adjusted: Vec<f32>,
    recent: Recent,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a model with `n_rows` logits per token and a tokenizer of `n_tokens` tokens.
    ///
    /// Rows from `n_tokens` on and the ids in `suppressed` are never chosen.
    ///
    /// # Errors
    /// When a setting is out of range or an id is not in the vocabulary.
    pub fn new(
        params: SamplingParams,
        n_rows: usize,
        n_tokens: usize,
        suppressed: &[u32],
    ) -> Result<Self, Error> {
        params.validate(n_rows)?;
        if let Some(&id) = suppressed.iter().find(|&&id| id as usize >= n_rows) {
            return Err(Error::UnknownToken {
                field: "suppressed",
                id,
                vocab_size: n_rows,
            });
        }
        Ok(Self {
            random: Random::new(params.seed),
            params,
            n_rows,
            n_allowed: n_tokens.min(n_rows),
            suppressed: suppressed.to_vec(),
            adjusted: Vec::new(),
            recent: Recent::default(),
            candidates: Vec::new(),
        })
    }

    /// Chooses the token that follows `history` (prompt and answer so far, oldest first).
    ///
    /// - `logits`: `[V]`, the model's raw row; not changed
    ///
    /// # Errors
    /// [`Error::LogitsShape`] for a row of another length; [`Error::NoCandidate`] when nothing is left to
    /// choose from.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, Error> {
        self.sample_allowed(logits, history, None)
    }

    /// As [`sample`](Self::sample), among the ids whose bit in `allowed` is set, lowest first.
    pub(crate) fn sample_allowed(
        &mut self,
        logits: &[f32],
        history: &[u32],
        allowed: Option<&[u32]>,
    ) -> Result<u32, Error> {
        if logits.len() != self.n_rows {
            return Err(Error::LogitsShape {
                expected: self.n_rows,
                found: logits.len(),
            });
        }
        self.adjust(logits, history);
        if let Some(allowed) = allowed {
            self.mask(allowed);
        }
        if self.params.temperature == 0.0 {
            select_largest(&self.adjusted, 1, &mut self.candidates);
        } else {
            self.collect_candidates();
        }
        self.choose()
    }

    /// So many of a row's largest logits decide the choice, and none of the others can; `None` where others may. See
    /// [`sample_top`](Self::sample_top).
    #[must_use]
    pub fn n_top(&self) -> Option<usize> {
        let params = &self.params;
        let k = if params.temperature == 0.0 {
            1
        } else {
            params.top_k
        };
        // Each of these may take a place among the largest that it does not keep.
        let n_masked = self.suppressed.len() + (self.n_rows - self.n_allowed) + params.logit_bias.len();
        let only_lowers = params.logit_bias.iter().all(|(_, bias)| *bias <= 0.0);
        (k > 0 && only_lowers && !self.penalizes()).then_some(k.saturating_add(n_masked))
    }

    /// Chooses what [`sample`](Self::sample) chooses of the whole row, whose [`n_top`](Self::n_top) largest logits are `top`.
    ///
    /// # Errors
    /// [`Error::NoCandidate`] when nothing is left to choose from.
    pub fn sample_top(&mut self, top: &[TokenLogit]) -> Result<u32, Error> {
        let k = if self.params.temperature == 0.0 {
            1
        } else {
            self.params.top_k
        };
        let (n_allowed, suppressed) = (self.n_allowed, &self.suppressed);
        let is_allowed = |id: u32| (id as usize) < n_allowed && !suppressed.contains(&id);
        let bias = &self.params.logit_bias;
        let biased = |top: &TokenLogit| {
            let own = bias.iter().filter(|(id, _)| *id == top.id);
            own.fold(top.logit, |logit, (_, bias)| logit + bias)
        };
        self.candidates.clear();
        let allowed = top.iter().filter(|top| is_allowed(top.id));
        self.candidates.extend(allowed.map(|top| Candidate {
            key: biased(top),
            weight: 0.0,
            id: top.id,
        }));
        self.candidates.retain(|candidate| candidate.key.is_finite());
        self.candidates.sort_unstable_by(by_key);
        self.candidates.truncate(k);
        self.candidates.sort_unstable_by_key(|c| c.id);
        self.choose()
    }

    /// Stages 4 and 6 to 9.
    fn choose(&mut self) -> Result<u32, Error> {
        let Some(first) = self.candidates.first() else {
            return Err(Error::NoCandidate {
                n_allowed: self.n_allowed,
            });
        };
        if self.params.temperature == 0.0 {
            return Ok(first.id);
        }
        self.weigh();
        self.filter();
        Ok(self.pick())
    }

    /// Stages 1 to 3 into `adjusted`.
    fn adjust(&mut self, logits: &[f32], history: &[u32]) {
        self.adjusted.clear();
        self.adjusted.extend_from_slice(&logits[..self.n_allowed]);
        for &id in &self.suppressed {
            if let Some(logit) = self.adjusted.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        for &(id, bias) in &self.params.logit_bias {
            if let Some(logit) = self.adjusted.get_mut(id as usize) {
                *logit += bias;
            }
        }
        self.penalize(history);
    }

    /// Takes away what `allowed` does not name, a word of 32 ids at a time.
    fn mask(&mut self, allowed: &[u32]) {
        let words = allowed.iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in self.adjusted.chunks_mut(32).zip(words) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                _ => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    fn penalizes(&self) -> bool {
        let params = &self.params;
        params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
    }

    fn penalize(&mut self, history: &[u32]) {
        if !self.penalizes() {
            return;
        }
        let params = &self.params;
        self.recent.follow(history, params.penalty_window);
        for (id, count) in self.recent.counts() {
            let Some(logit) = self.adjusted.get_mut(id as usize) else {
                continue;
            };
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
            #[expect(clippy::cast_precision_loss, reason = "a count of tokens in a context")]
            let count = count as f32;
            *logit -= count * params.frequency_penalty + params.presence_penalty;
        }
    }

    /// Stage 5. The temperature keeps the order, so that the k largest can be found before dividing.
    fn collect_candidates(&mut self) {
        let k = self.params.top_k;
        if k > 0 && k < self.adjusted.len() {
            select_largest(&self.adjusted, k, &mut self.candidates);
            self.candidates.sort_unstable_by_key(|c| c.id);
        } else {
            collect_finite(&self.adjusted, &mut self.candidates);
        }
    }

    /// Stage 4: `key = (logit - max) / temperature`, `weight = e^key`.
    fn weigh(&mut self) {
        let max = self
            .candidates
            .iter()
            .map(|c| c.key)
            .fold(f32::NEG_INFINITY, f32::max);
        let temperature = self.params.temperature;
        for candidate in &mut self.candidates {
            candidate.key = (candidate.key - max) / temperature;
            candidate.weight = exp_nonpositive(candidate.key);
        }
    }

    /// Stages 6 to 8.
    fn filter(&mut self) {
        let mut in_order = true;
        if self.params.typical_p < 1.0 {
            self.order_by_surprise();
            keep_mass(&mut self.candidates, self.params.typical_p);
            in_order = false;
        }
        if self.params.top_p < 1.0 {
            for candidate in &mut self.candidates {
                candidate.key = candidate.weight;
            }
            keep_mass(&mut self.candidates, self.params.top_p);
            in_order = false;
        }
        if self.params.min_p > 0.0 {
            let largest = self.candidates.iter().map(|c| c.weight).fold(0.0, f32::max);
            let bar = self.params.min_p * largest;
            self.candidates.retain(|c| c.weight >= bar);
        }
        if !in_order {
            self.candidates.sort_unstable_by_key(|c| c.id);
        }
    }

    /// Sets every key to minus the distance between the token's surprise and the entropy.
    fn order_by_surprise(&mut self) {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let log_total = total.ln();
        let surprise = |c: &Candidate| log_total - f64::from(c.key);
        // A weight of 0 may have an infinite surprise; its share is 0, not NaN.
        let likely = self.candidates.iter().filter(|c| c.weight > 0.0);
        let entropy: f64 = likely.map(|c| f64::from(c.weight) / total * surprise(c)).sum();
        for candidate in &mut self.candidates {
            #[expect(clippy::cast_possible_truncation, reason = "only an order is wanted")]
            let distance = (surprise(candidate) - entropy).abs() as f32;
            candidate.key = -distance;
        }
    }

    /// Stage 9.
    fn pick(&mut self) -> u32 {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let target = self.random.next_unit() * total;
        let mut reached = 0.0f64;
        let mut chosen = self.candidates[0].id;
        for candidate in self.candidates.iter().filter(|c| c.weight > 0.0) {
            reached += f64::from(candidate.weight);
            chosen = candidate.id;
            if reached > target {
                break;
            }
        }
        chosen
    }
}
