//! Several tokens in one pass: guesses of what comes next, checked by the model all at once.
//!
//! A sequence that decodes has one token to compute. A [`Planner`] may add a draft behind it: tokens that came after
//! the same words before (`lookup`), or those of a drafter that the model has with it
//! ([`carat_model::LanguageModel::draft`]). The pass gives a row of logits for each; the sampler draws from the rows in
//! order, as ever, for as long as what it draws is what was guessed. The first token drawn otherwise is the model's own
//! and ends the round; what was computed behind it is taken back.
//!
//! That is rejection sampling with a drafter that is sure of its guess: a guess is accepted with the probability that
//! the model gives it, and what is drawn instead has the model's distribution without the guess. Nothing of it shows in
//! the answer: same seed, same random numbers, same text as without drafts, since the rows of a chain are computed to
//! the bit as decoding would (see `carat-model`).
//!
//! How long a draft may be is arithmetic (`plan`): what it is expected to bring ([`acceptance`]) against what rows
//! were measured to cost ([`cost`]).

mod acceptance;
mod cost;
mod lookup;
mod plan;
#[cfg(test)]
mod simulation;

use acceptance::{Acceptance, Source};
use lookup::Lookup;

pub(crate) use plan::Planner;

/// Most tokens of one draft. With the token before it that makes sixteen rows, as many as the kernels for few rows
/// take; caches can take back four times as many.
pub const MAX_DRAFT: usize = 15;

/// Whether and how far a generation guesses ahead. The answer is the same either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Drafting {
    /// Never.
    #[default]
    Off,
    /// As far as it is measured to pay.
    Adaptive,
    /// So many tokens in every pass, where there is anything to guess: for measurements.
    Fixed(usize),
}

/// What became of the drafts of one generation, by their tokens' positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Guesses that were compared with the model's choice: those behind a wrong one are not.
    pub drafted: Vec<usize>,
    /// Of these, the ones that the model chose too.
    pub accepted: Vec<usize>,
}

impl DraftCounts {
    /// Guesses compared.
    #[must_use]
    pub fn n_drafted(&self) -> usize {
        self.drafted.iter().sum()
    }

    /// Tokens guessed rightly.
    #[must_use]
    pub fn n_accepted(&self) -> usize {
        self.accepted.iter().sum()
    }

    fn record(&mut self, position: usize, is_right: bool) {
        if self.drafted.len() <= position {
            self.drafted.resize(position + 1, 0);
            self.accepted.resize(position + 1, 0);
        }
        self.drafted[position] += 1;
        self.accepted[position] += usize::from(is_right);
    }
}

/// What one generation guesses and how it went so far.
#[derive(Debug)]
pub(crate) struct Draft {
    mode: Drafting,
    lookup: Lookup,
    acceptance: Acceptance,
    counts: DraftCounts,
    /// The present pass's: the token to compute, then the guesses. Empty without guesses.
    chain: Vec<u32>,
    source: Source,
    /// Of the present pass: guesses compared, and the right ones among them.
    n_tried: usize,
    n_accepted: usize,
    /// Passes that had nothing to guess that pays, since the last try.
    n_idle: usize,
    /// So many of them before a guess is tried that is not expected to pay.
    patience: usize,
    /// Whether the present pass's guess is such a try.
    is_try: bool,
    /// Tokens of the sequence when the drafter guessed last: up to there it has read.
    n_seen: usize,
    /// Of the last pass: where its guesses came from, how many were compared and how many right.
    outcome: Option<(Source, usize, usize)>,
}

/// Passes without a guess before one is tried, at first and at most: it doubles with every one that fails.
const PATIENCE: std::ops::RangeInclusive<usize> = 16..=64;

impl Draft {
    /// Nothing guessed yet.
    pub(crate) fn new(mode: Drafting) -> Self {
        Self {
            mode,
            lookup: Lookup::default(),
            acceptance: Acceptance::default(),
            counts: DraftCounts::default(),
            chain: Vec::new(),
            source: Source::Drafter,
            n_tried: 0,
            n_accepted: 0,
            n_idle: 0,
            patience: *PATIENCE.start(),
            is_try: false,
            n_seen: 0,
            outcome: None,
        }
    }

    pub(crate) fn counts(&self) -> DraftCounts {
        self.counts.clone()
    }

    /// The tokens of the present pass, when it has guesses.
    pub(crate) fn chain(&self) -> Option<&[u32]> {
        (!self.chain.is_empty()).then_some(&self.chain)
    }

    /// The guesses of the present pass.
    pub(crate) fn guesses(&self) -> &[u32] {
        self.chain.get(1..).unwrap_or_default()
    }

    /// Keeps the first `n` guesses.
    pub(crate) fn shorten(&mut self, n: usize) {
        self.chain.truncate(n + 1);
    }

    /// Gives the present pass's guesses up.
    pub(crate) fn clear(&mut self) {
        self.chain.clear();
    }

    /// Compares the token chosen from row `i` of the present pass with what was guessed: whether they are the same, so
    /// that the next row has something to say.
    pub(crate) fn compare(&mut self, i: usize, id: u32) -> bool {
        let Some(guess) = self.guesses().get(i).copied() else {
            return false;
        };
        let is_right = guess == id;
        self.counts.record(i, is_right);
        self.n_tried = i + 1;
        self.n_accepted += usize::from(is_right);
        is_right
    }

    /// Learns from the comparisons of the present pass and forgets its guesses.
    pub(crate) fn settle(&mut self) {
        let (n_tried, n_accepted) = (self.n_tried, self.n_accepted);
        match n_accepted {
            _ if !self.is_try => {}
            0 => self.patience = (self.patience * 2).min(*PATIENCE.end()),
            _ => {
                // The text has changed: what is known of the source is of another one.
                self.patience = *PATIENCE.start();
                self.acceptance.forget(self.source);
            }
        }
        self.acceptance.record(self.source, n_tried, n_accepted);
        self.outcome = Some((self.source, n_tried, n_accepted));
        (self.n_tried, self.n_accepted) = (0, 0);
        self.chain.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass whose guesses are 1, 2, 3 and whose choices are these.
    fn pass(draft: &mut Draft, choices: &[u32]) {
        draft.chain = vec![0, 1, 2, 3];
        for (i, id) in choices.iter().enumerate() {
            draft.compare(i, *id);
        }
        draft.settle();
    }

    #[test]
    fn counts_are_by_position() {
        let mut draft = Draft::new(Drafting::Adaptive);
        pass(&mut draft, &[1, 9]);
        pass(&mut draft, &[1, 2, 3, 4]);
        let counts = draft.counts();
        assert_eq!(counts.drafted, [2, 2, 1]);
        assert_eq!(counts.accepted, [2, 1, 1]);
        assert_eq!((counts.n_drafted(), counts.n_accepted()), (5, 4));
        assert_eq!(draft.outcome, Some((Source::Drafter, 3, 3)));
    }

    #[test]
    fn patience_grows_while_tries_fail() {
        let mut draft = Draft::new(Drafting::Adaptive);
        for expected in [32, 64, 64] {
            draft.is_try = true;
            pass(&mut draft, &[9]);
            assert_eq!(draft.patience, expected);
        }
        pass(&mut draft, &[1, 9]);
        assert_eq!(draft.patience, 16);
    }
}
