//! How long each sequence's next draft is.
//!
//! Every guess adds a row to the pass, which costs what [`Cost`] has measured, and brings a token with the probability
//! that [`Acceptance`] expects, less the further behind it stands. Rows are given to where they bring most, one after
//! another over all sequences of the batch; of all these numbers of rows the one with the most expected tokens per
//! second is taken. With many sequences in the batch a row costs more than it does for one, and drafts get shorter and
//! stop by themselves.
//!
//! A sequence whose guesses do not pay tries one now and then, ever more rarely, if it could pay at all.
//!
//! No pass gets more rows than the model computes to the bit as it computes one: guesses would show in the answers of
//! a batch otherwise. Where more sequences than that decode, nothing is guessed.

use std::time::Instant;

use carat_model::{DraftSegment, LanguageModel, SequenceCache};

use super::acceptance::{Acceptance, Source};
use super::cost::Cost;
use super::{Draft, Drafting, MAX_DRAFT};
use crate::error::Error;
use crate::generation::Generation;

/// A plan must promise so much more than none: estimates err.
const LEAST_GAIN: f64 = 1.02;
/// Positions by which two sources are compared.
const COMPARED: usize = 4;

/// What one sequence could guess.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    source: Source,
    /// For each position, how probable it is that a guess there is reached and right.
    expected: [f64; MAX_DRAFT],
    /// Most guesses.
    limit: usize,
}

/// What one sequence could guess, by who guesses.
#[derive(Clone, Copy, Default)]
pub(super) struct Offers {
    /// Its own text.
    pub(super) text: Option<Offer>,
    /// The model's drafter.
    pub(super) drafter: Option<Offer>,
}

impl Offers {
    /// The one that promises more; where lengths are fixed to be measured, the drafter's.
    fn best(&self, mode: Drafting) -> Option<Offer> {
        let promise = |offer: &Offer| offer.expected[..offer.limit.min(COMPARED)].iter().sum::<f64>();
        match (self.text, self.drafter) {
            (Some(text), Some(drafter))
                if mode == Drafting::Adaptive && promise(&text) >= promise(&drafter) =>
            {
                Some(text)
            }
            (text, drafter) => drafter.or(text),
        }
    }
}

/// A sequence's next draft: whose guesses and how many of them, or none.
#[derive(Clone, Copy)]
pub(super) struct Choice {
    offer: Option<Offer>,
    pub(super) n: usize,
}

impl Choice {
    /// Whose guesses.
    pub(super) fn source(&self) -> Option<Source> {
        self.offer.filter(|_| self.n > 0).map(|offer| offer.source)
    }
}

/// Chooses drafts for all sequences of a model, from what was seen of them.
#[derive(Debug, Default)]
pub(crate) struct Planner {
    pub(super) cost: Cost,
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
        let room = most_rows
            .min(model.n_alike_rows())
            .saturating_sub(generations.len());
        let (vocab_size, has_drafter) = (model.vocab_size(), model.drafts());
        let offers: Vec<Offers> = generations
            .iter_mut()
            .map(|generation| self.offers(generation, vocab_size, room, has_drafter))
            .collect();
        let mut drafts: Vec<&mut Draft> = generations.iter_mut().map(|g| &mut g.draft).collect();
        let choices = self.choose(&mut drafts, &offers, room);
        for (draft, choice) in drafts.into_iter().zip(&choices) {
            match choice.source() {
                Some(Source::Drafter) | None => draft.clear(),
                Some(source) => {
                    draft.source = source;
                    draft.shorten(choice.n);
                }
            }
        }
        let result = self.ask_drafter(model, generations, &choices);
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
    pub(crate) fn record_outcome(&mut self, draft: &mut Draft) {
        if let Some((source, n_tried, n_accepted)) = draft.outcome.take() {
            self.others.record(source, n_tried, n_accepted);
        }
    }

    /// What a sequence could guess. The guesses of its own text are put into its chain.
    fn offers<C: SequenceCache>(
        &self,
        generation: &mut Generation<C>,
        vocab_size: usize,
        room: usize,
        has_drafter: bool,
    ) -> Offers {
        let limit = generation.draft_limit().min(room).min(MAX_DRAFT);
        generation.draft.clear();
        if generation.draft.mode == Drafting::Off || limit == 0 {
            return Offers::default();
        }
        let text = look_up(generation, vocab_size);
        let draft = &generation.draft;
        Offers {
            text: text.map(|(source, n)| self.offer(draft, source, n.min(limit))),
            drafter: has_drafter.then(|| self.offer(draft, Source::Drafter, limit)),
        }
    }

    /// What is expected of a source, up to `limit` guesses.
    pub(super) fn offer(&self, draft: &Draft, source: Source, limit: usize) -> Offer {
        let reach = match draft.mode {
            Drafting::Adaptive => draft.acceptance.reach(source, &self.others),
            Drafting::Fixed(_) | Drafting::Off => limit,
        };
        Offer {
            source,
            expected: draft.acceptance.expected(source, &self.others),
            limit: limit.min(reach),
        }
    }

    /// Whose guesses and how many each sequence gets, `room` in all.
    pub(super) fn choose(&self, drafts: &mut [&mut Draft], offers: &[Offers], room: usize) -> Vec<Choice> {
        let texts: Vec<Option<Offer>> = offers.iter().map(|offers| offers.text).collect();
        let (mut lengths, rate) = self.allot(&texts, room);
        let mut chosen = texts;
        if offers.iter().any(|offers| offers.drafter.is_some()) {
            let best: Vec<Option<Offer>> = (offers.iter().zip(&*drafts))
                .map(|(offers, draft)| offers.best(draft.mode))
                .collect();
            let (with_drafter, rate_with) = self.allot(&best, room);
            if rate_with > rate {
                lengths = with_drafter;
            }
            // Who is given nothing may still be given a try, of what promises most.
            for ((chosen, best), length) in chosen.iter_mut().zip(best).zip(&lengths) {
                if rate_with > rate || *length == 0 {
                    *chosen = best;
                }
            }
        }
        if self.cost.is_known(drafts.len()) {
            self.try_idle(drafts, &chosen, &mut lengths, room);
        } else {
            // What a pass without guesses takes is what everything is compared with.
            lengths.fill(0);
        }
        let mut left = room;
        let mut choices = Vec::with_capacity(drafts.len());
        for ((draft, offer), length) in drafts.iter().zip(chosen).zip(lengths) {
            let limit = offer.map_or(0, |offer| offer.limit);
            let n = match draft.mode {
                Drafting::Off => 0,
                Drafting::Fixed(n) => n.min(limit),
                Drafting::Adaptive => length,
            };
            let n = n.min(left);
            left -= n;
            choices.push(Choice { offer, n });
        }
        choices
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
    fn try_idle(
        &self,
        drafts: &mut [&mut Draft],
        offers: &[Option<Offer>],
        lengths: &mut [usize],
        room: usize,
    ) {
        let n = count(drafts.len());
        let plain = n / self.cost.pass(drafts.len());
        let with_one = self.cost.pass(drafts.len() + 1);
        let could_pay = |source: Source| {
            let guess = usize::from(source == Source::Drafter);
            (n + 1.0) / (with_one + self.cost.guesses(guess)) > plain
        };
        // Many sequences together try as often as one alone would: their rows would be felt.
        let mut has_room = lengths.iter().sum::<usize>() < room;
        for ((draft, offer), length) in drafts.iter_mut().zip(offers).zip(lengths) {
            draft.is_try = false;
            let Some(offer) = offer.filter(|_| *length == 0) else {
                continue;
            };
            draft.n_idle += 1;
            if draft.n_idle >= draft.patience * offers.len() && has_room && could_pay(offer.source) {
                (draft.n_idle, draft.is_try, has_room) = (0, true, false);
                *length = 1;
            }
        }
    }

    /// Has the model's drafter guess for those sequences that were given guesses of it.
    fn ask_drafter<M: LanguageModel>(
        &mut self,
        model: &mut M,
        generations: &mut [&mut Generation<M::Cache>],
        choices: &[Choice],
    ) -> Result<(), Error> {
        let mut segments = Vec::new();
        let (mut deepest, mut has_followed) = (0, true);
        for (generation, choice) in generations.iter_mut().zip(choices) {
            if choice.source() != Some(Source::Drafter) {
                continue;
            }
            deepest = deepest.max(choice.n);
            let Generation { sequence, draft, .. } = &mut **generation;
            let (tokens, cache) = sequence.all();
            has_followed &= tokens.len() <= draft.n_seen + MAX_DRAFT + 1;
            draft.source = Source::Drafter;
            draft.chain.extend(tokens.last());
            segments.push(DraftSegment {
                tokens,
                cache,
                n: choice.n,
                guesses: &mut draft.chain,
            });
        }
        if segments.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        model.draft(&mut segments).map_err(Error::model)?;
        // A drafter that had to read first, or still has, says nothing of what its guesses cost.
        if has_followed {
            self.cost.record_guesses(deepest, started.elapsed().as_secs_f64());
        }
        let vocab_size = model.vocab_size();
        for (generation, choice) in generations.iter_mut().zip(choices) {
            if choice.source() == Some(Source::Drafter) {
                if !generation.draft.guesses().is_empty() {
                    generation.draft.n_seen = generation.sequence.n_tokens();
                }
                generation.draft.shorten(choice.n);
                if generation.keep_allowed_guesses(vocab_size) == 0 {
                    generation.draft.clear();
                }
            }
        }
        Ok(())
    }
}

/// What the sequence's own text suggests, left in its chain: where from and how many guesses.
fn look_up<C: SequenceCache>(generation: &mut Generation<C>, vocab_size: usize) -> Option<(Source, usize)> {
    let tokens = generation.sequence.tokens();
    let draft = &mut generation.draft;
    draft.lookup.extend(tokens);
    let n_past = draft.lookup.guess(tokens, &mut draft.chain);
    if n_past == 0 {
        return None;
    }
    draft.chain.insert(0, *tokens.last()?);
    let n_allowed = generation.keep_allowed_guesses(vocab_size);
    (n_allowed > 0).then(|| (Source::after(n_past), n_allowed))
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

    #[test]
    fn fixed_lengths_stay_within_the_room() {
        let mut drafts: Vec<Draft> = (0..3).map(|_| Draft::new(Drafting::Fixed(7))).collect();
        let mut drafts: Vec<&mut Draft> = drafts.iter_mut().collect();
        let offers = Offers {
            text: None,
            drafter: offer(0.5, 15),
        };
        let choices = planner(1.0, 0.1).choose(&mut drafts, &[offers; 3], 12);
        assert_eq!(
            choices.iter().map(|choice| choice.n).collect::<Vec<_>>(),
            [7, 5, 0]
        );
    }

    #[test]
    fn a_drafter_that_failed_is_tried_again() {
        let planner = planner(1.0, 0.1);
        let mut draft = Draft::new(Drafting::Adaptive);
        let offers = Offers {
            text: None,
            drafter: offer(0.01, 15),
        };
        let tries = (0..40).map(|_| planner.choose(&mut [&mut draft], &[offers], 15)[0].n);
        let tries: Vec<usize> = tries.collect();
        assert_eq!(tries.iter().sum::<usize>(), 2, "{tries:?}");
        assert_eq!((tries[15], tries[31]), (1, 1));
    }
}
