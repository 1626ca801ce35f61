//! How long each sequence's next draft is.
//!
//! Every guess adds a row to the pass, which costs what [`Cost`] has measured, and brings a token with the probability
//! that [`Acceptance`] expects, less the further behind it stands. Rows are given to where they bring most, one after
//! another over all sequences of the batch; of all these numbers of rows the one with the most expected tokens per
//! second is taken. With many sequences in the batch a row costs more than it does for one, and drafts get shorter and
//! stop by themselves.
//!
//! A sequence whose guesses do not pay tries one now and then, ever more rarely, if it could pay at all.

use std::time::Instant;

use carat_model::{DraftSegment, LanguageModel, SequenceCache};

use super::acceptance::{Acceptance, Source};
use super::cost::Cost;
use super::{Drafting, MAX_DRAFT};
use crate::error::Error;
use crate::generation::Generation;

/// A plan must promise so much more than none: estimates err.
const LEAST_GAIN: f64 = 1.02;
/// Positions by which two sources are compared.
const COMPARED: usize = 4;

/// What one sequence could guess.
#[derive(Clone, Copy)]
struct Offer {
    source: Source,
    /// For each position, how probable it is that a guess there is reached and right.
    expected: [f64; MAX_DRAFT],
    /// Most guesses.
    limit: usize,
}

/// Chooses drafts for all sequences of a model, from what was seen of them.
#[derive(Debug, Default)]
pub(crate) struct Planner {
    cost: Cost,
    /// Of all generations together.
    others: Acceptance,
}

impl Planner {
    /// Gives each of `generations`, which all decode, the guesses of its next pass, which may have `most_rows` rows.
    ///
    /// # Errors
    /// The model's, from its drafter; nothing is guessed then.
    pub(crate) fn draft<M: LanguageModel>(
        &mut self,
        model: &mut M,
        generations: &mut [&mut Generation<M::Cache>],
        most_rows: usize,
    ) -> Result<(), Error> {
        if generations.iter().all(|g| g.draft.mode == Drafting::Off) {
            return Ok(());
        }
        let vocab_size = model.vocab_size();
        // A draft is no longer than what is computed to the bit as without it.
        let longest = MAX_DRAFT.min(model.n_alike_rows().saturating_sub(1));
        let mut offers: Vec<Option<Offer>> = Vec::with_capacity(generations.len());
        for generation in generations.iter_mut() {
            offers.push(self.look_up(generation, vocab_size, longest));
        }
        let room = most_rows.saturating_sub(generations.len());
        let (mut lengths, rate) = self.allot(&offers, room);
        if model.drafts() {
            let drafted: Vec<Option<Offer>> = (generations.iter().zip(&offers))
                .map(|(generation, offer)| self.or_drafter(generation, offer.as_ref(), longest))
                .collect();
            let (with_drafter, rate_with) = self.allot(&drafted, room);
            let is_fixed = |g: &&mut Generation<_>| matches!(g.draft.mode, Drafting::Fixed(_));
            if rate_with > rate || generations.iter().any(is_fixed) {
                (offers, lengths) = (drafted, with_drafter);
            }
        }
        self.try_idle(generations, &offers, &mut lengths, room);
        for ((generation, offer), length) in generations.iter_mut().zip(&offers).zip(&mut lengths) {
            match (generation.draft.mode, offer) {
                (Drafting::Off, _) | (_, None) => *length = 0,
                (Drafting::Fixed(n), Some(offer)) => *length = n.min(offer.limit).min(room),
                (Drafting::Adaptive, Some(_)) => {}
            }
            let draft = &mut generation.draft;
            match offer {
                Some(offer) if *length > 0 && offer.source != Source::Drafter => {
                    draft.source = offer.source;
                    draft.chain.truncate(*length + 1);
                }
                _ => draft.clear(),
            }
        }
        let result = self.ask_drafter(model, generations, &offers, &lengths);
        if result.is_err() {
            generations
                .iter_mut()
                .for_each(|generation| generation.draft.clear());
        }
        result
    }

    /// Takes note of a pass of nothing but single tokens and drafts.
    pub(crate) fn record_pass(&mut self, n_rows: usize, seconds: f64) {
        self.cost.record(n_rows, seconds);
    }

    /// Takes note of what became of a generation's guesses.
    pub(crate) fn record_outcome<C>(&mut self, generation: &mut Generation<C>) {
        if let Some((source, n_tried, n_accepted)) = generation.draft.outcome.take() {
            self.others.record(source, n_tried, n_accepted);
        }
    }

    /// What the sequence's own text suggests; its guesses are put into the chain.
    fn look_up<C: SequenceCache>(
        &self,
        generation: &mut Generation<C>,
        vocab_size: usize,
        longest: usize,
    ) -> Option<Offer> {
        let limit = generation.draft_limit().min(longest);
        let tokens = generation.sequence.tokens();
        let draft = &mut generation.draft;
        draft.clear();
        if draft.mode == Drafting::Off || limit == 0 {
            return None;
        }
        draft.lookup.extend(tokens);
        let n_past = draft.lookup.guess(tokens, &mut draft.chain);
        if n_past == 0 {
            return None;
        }
        draft.chain.insert(0, *tokens.last()?);
        let n_allowed = generation.keep_allowed_guesses(vocab_size);
        let source = Source::after(n_past);
        (n_allowed > 0).then(|| self.offer(generation, source, n_allowed.min(limit)))
    }

    /// The drafter's offer where it promises more than `other` or is to be measured, else that one.
    fn or_drafter<C: SequenceCache>(
        &self,
        generation: &Generation<C>,
        other: Option<&Offer>,
        longest: usize,
    ) -> Option<Offer> {
        let limit = generation.draft_limit().min(longest);
        if generation.draft.mode == Drafting::Off || limit == 0 {
            return None;
        }
        let drafter = self.offer(generation, Source::Drafter, limit);
        let promise = |offer: &Offer| offer.expected[..offer.limit.min(COMPARED)].iter().sum::<f64>();
        match other {
            Some(other)
                if generation.draft.mode == Drafting::Adaptive && promise(other) >= promise(&drafter) =>
            {
                Some(*other)
            }
            _ => Some(drafter),
        }
    }

    fn offer<C>(&self, generation: &Generation<C>, source: Source, limit: usize) -> Offer {
        Offer {
            source,
            expected: generation.draft.acceptance.expected(source, &self.others),
            limit,
        }
    }

    /// The length of each sequence's draft with which most tokens per second are expected, and that number.
    fn allot(&self, offers: &[Option<Offer>], room: usize) -> (Vec<usize>, f64) {
        let n = offers.len();
        let mut gains: Vec<(f64, usize, usize)> = Vec::new();
        for (i, offer) in offers.iter().enumerate() {
            let Some(offer) = offer else { continue };
            let each = offer.expected[..offer.limit].iter().enumerate();
            gains.extend(each.map(|(position, gain)| (*gain, i, position)));
        }
        // What is further behind never brings more, so that each draft is taken from its beginning.
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
        let mut tokens = count(n);
        let least = LEAST_GAIN * tokens / self.cost.pass(n);
        let (mut best, mut n_best) = (least, 0);
        let mut deepest = 0;
        for (n_taken, (gain, i, position)) in (1..).zip(gains.iter().take(room)) {
            if offers[*i].is_some_and(|offer| offer.source == Source::Drafter) {
                deepest = deepest.max(position + 1);
            }
            tokens += gain;
            let rate = tokens / (self.cost.pass(n + n_taken) + self.cost.guesses(deepest));
            if rate > best {
                (best, n_best) = (rate, n_taken);
            }
        }
        let mut lengths = vec![0; n];
        for (_, i, _) in &gains[..n_best] {
            lengths[*i] += 1;
        }
        (lengths, best)
    }

    /// Lets sequences whose guesses are not expected to pay try one after a while, where a right one would pay.
    fn try_idle<C>(
        &self,
        generations: &mut [&mut Generation<C>],
        offers: &[Option<Offer>],
        lengths: &mut [usize],
        room: usize,
    ) {
        let n = generations.len();
        let rate = |tokens: usize, rows: usize| count(tokens) / self.cost.pass(rows);
        let could_pay = rate(n + 1, n + 1) > rate(n, n);
        let mut left = room.saturating_sub(lengths.iter().sum());
        for ((generation, offer), length) in generations.iter_mut().zip(offers).zip(lengths) {
            if offer.is_none() || *length > 0 {
                continue;
            }
            let draft = &mut generation.draft;
            draft.n_idle += 1;
            if draft.n_idle >= draft.patience && could_pay && left > 0 {
                *length = 1;
                left -= 1;
            }
        }
    }

    /// Has the model's drafter guess for those sequences that were given guesses of it.
    fn ask_drafter<M: LanguageModel>(
        &mut self,
        model: &mut M,
        generations: &mut [&mut Generation<M::Cache>],
        offers: &[Option<Offer>],
        lengths: &[usize],
    ) -> Result<(), Error> {
        let mut segments = Vec::new();
        let mut deepest = 0;
        for ((generation, offer), &n) in generations.iter_mut().zip(offers).zip(lengths) {
            if n == 0 || offer.is_none_or(|offer| offer.source != Source::Drafter) {
                continue;
            }
            deepest = deepest.max(n);
            let Generation { sequence, draft, .. } = &mut **generation;
            let (tokens, cache) = sequence.all();
            draft.source = Source::Drafter;
            draft.chain.extend(tokens.last());
            segments.push(DraftSegment {
                tokens,
                cache,
                n,
                guesses: &mut draft.chain,
            });
        }
        if segments.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        model.draft(&mut segments).map_err(Error::model)?;
        self.cost.record_guesses(deepest, started.elapsed().as_secs_f64());
        let vocab_size = model.vocab_size();
        for ((generation, offer), &n) in generations.iter_mut().zip(offers).zip(lengths) {
            if n > 0 && offer.is_some_and(|offer| offer.source == Source::Drafter) {
                generation.draft.chain.truncate(n + 1);
                if generation.keep_allowed_guesses(vocab_size) == 0 {
                    generation.draft.clear();
                }
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(acceptance: f64, limit: usize) -> Option<Offer> {
        let mut reached = 1.0;
        Some(Offer {
            source: Source::Passage,
            expected: std::array::from_fn(|_| {
                reached *= acceptance;
                reached
            }),
            limit,
        })
    }

    /// A machine on which a pass takes `first` and `each` more for every further row.
    fn planner(first: f64, each: f64) -> Planner {
        let mut planner = Planner::default();
        for n_rows in 1..64 {
            planner.record_pass(n_rows, first + each * count(n_rows - 1));
        }
        planner
    }

    #[test]
    fn the_length_is_the_one_of_most_tokens_per_second() {
        for (acceptance, each) in [(0.5, 0.1), (0.8, 0.1), (0.9, 0.02), (0.8, 0.9), (0.05, 0.1)] {
            let rate = |k: usize| {
                let tokens: f64 = (0..=k).map(|i| f64::powi(acceptance, i as i32)).sum();
                tokens / (1.0 + each * count(k))
            };
            let (lengths, best) = planner(1.0, each).allot(&[offer(acceptance, 15)], 100);
            let most = (0..=15).max_by(|a, b| rate(*a).total_cmp(&rate(*b))).unwrap();
            assert_eq!(lengths, [most], "{acceptance} {each}");
            assert!((best / rate(most) - 1.0).abs() < 0.021);
        }
    }

    #[test]
    fn rows_go_where_they_bring_most_and_none_where_they_do_not_pay() {
        let planner = planner(1.0, 0.2);
        let offers = [offer(0.9, 15), None, offer(0.3, 15), offer(0.9, 2)];
        let (lengths, _) = planner.allot(&offers, 100);
        assert!(
            lengths[0] > 2 && lengths[1] == 0 && lengths[3] == 2,
            "{lengths:?}"
        );
        let (lengths, _) = planner.allot(&offers, 3);
        assert_eq!(lengths.iter().sum::<usize>(), 3);
    }

    #[test]
    fn a_batch_that_waits_for_arithmetic_drafts_nothing() {
        // Beyond eight rows a row costs as much as its share of the pass.
        let mut planner = Planner::default();
        for n_rows in 1..64usize {
            planner.record_pass(n_rows, count(n_rows.max(8)));
        }
        let alone = planner.allot(&[offer(0.8, 15)], 100).0;
        assert!(alone[0] >= 5, "{alone:?}");
        assert_eq!(planner.allot(&[offer(0.8, 15); 16], 100).0, [0; 16]);
    }
}
