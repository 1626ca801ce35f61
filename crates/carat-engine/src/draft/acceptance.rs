//! How often guesses were right, by where they came from and by their position in the draft.
//!
//! For each source and position the share of guesses that were right among those whose predecessors were all right,
//! the latest counting most. Where little is known, a position is taken to be like the one before it, and the first
//! like what other generations have seen of the source.
//!
//! A draft is no longer than twice the longest that was right so far: what nobody has seen yet is tried with one token.

use super::MAX_DRAFT;

/// Where guesses come from. Those of the text itself are apart by how long the common past is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// After two tokens that stood somewhere before.
    Pair,
    /// After three or four.
    Phrase,
    /// After five to eight.
    Clause,
    /// After more.
    Passage,
    /// The model's own drafter.
    Drafter,
}

/// Sources.
const N_SOURCES: usize = 5;
/// What is assumed of a source that was never tried.
const ASSUMED: [f64; N_SOURCES] = [0.25, 0.45, 0.65, 0.8, 0.55];
/// Observations that an assumption weighs as much as.
const WEIGHT: f64 = 1.0;
/// What an observation still counts after the next: the last fifteen or so matter.
const DECAY: f64 = 0.93;

impl Source {
    /// The source of guesses after a common past of so many tokens.
    pub(crate) fn after(n_past: usize) -> Self {
        match n_past {
            0..=2 => Self::Pair,
            3..=4 => Self::Phrase,
            5..=8 => Self::Clause,
            _ => Self::Passage,
        }
    }
}

/// Rightly guessed of guessed, decayed.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    right: f64,
    all: f64,
}

impl Share {
    fn record(&mut self, is_right: bool) {
        self.right = self.right * DECAY + f64::from(u8::from(is_right));
        self.all = self.all * DECAY + 1.0;
    }

    fn estimate(&self, assumed: f64) -> f64 {
        (self.right + WEIGHT * assumed) / (self.all + WEIGHT)
    }
}

/// See the module's head.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acceptance {
    /// By source and position; `None` until something was guessed, as it is for all that wait.
    shares: Option<Box<[[Share; MAX_DRAFT]; N_SOURCES]>>,
    /// Most tokens of a draft that were right.
    longest: [usize; N_SOURCES],
}

impl Acceptance {
    /// Takes note of a draft of which the first `n_tried` tokens were compared and the first `n_accepted` right.
    pub(crate) fn record(&mut self, source: Source, n_tried: usize, n_accepted: usize) {
        let longest = &mut self.longest[source as usize];
        *longest = n_accepted.max(*longest);
        let shares = &mut self.shares.get_or_insert_default()[source as usize];
        for (i, share) in shares.iter_mut().enumerate().take(n_tried.min(n_accepted + 1)) {
            share.record(i < n_accepted);
        }
    }

    /// Forgets how often a source's guesses were right.
    pub(crate) fn forget(&mut self, source: Source) {
        if let Some(shares) = &mut self.shares {
            shares[source as usize] = Default::default();
        }
    }

    fn shares(&self, source: Source) -> [Share; MAX_DRAFT] {
        let shares = self.shares.as_ref();
        shares.map_or_else(Default::default, |shares| shares[source as usize])
    }

    /// For each position, how probable it is that a guess there will be reached and right. `others` is what is known
    /// of other generations.
    pub(crate) fn expected(&self, source: Source, others: &Self) -> [f64; MAX_DRAFT] {
        let i = source as usize;
        let (own_shares, other_shares) = (self.shares(source), others.shares(source));
        let (mut assumed, mut other) = (ASSUMED[i], ASSUMED[i]);
        let mut reached = 1.0;
        std::array::from_fn(|position| {
            other = other_shares[position].estimate(other);
            let assumption = if position == 0 { other } else { assumed };
            assumed = own_shares[position].estimate(assumption);
            reached *= assumed;
            reached
        })
    }

    /// Most tokens that may be guessed, after what was seen here and in other generations.
    pub(crate) fn reach(&self, source: Source, others: &Self) -> usize {
        let longest = self.longest[source as usize].max(others.longest[source as usize]);
        (2 * longest).clamp(1, MAX_DRAFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_follow_what_happens() {
        let (mut own, others) = (Acceptance::default(), Acceptance::default());
        for _ in 0..200 {
            own.record(Source::Clause, 4, 2);
        }
        let expected = own.expected(Source::Clause, &others);
        assert!(expected[1] > 0.9, "{expected:?}");
        assert!(expected[2] < 0.08, "{expected:?}");
        assert!(expected.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn a_few_failures_are_enough_to_stop() {
        let (mut own, others) = (Acceptance::default(), Acceptance::default());
        (0..3).for_each(|_| own.record(Source::Phrase, 4, 0));
        assert!(own.expected(Source::Phrase, &others)[0] < 0.2);
        assert!(
            own.expected(Source::Passage, &others)[0] > 0.7,
            "other sources are other matters"
        );
    }

    #[test]
    fn what_others_saw_is_the_first_assumption() {
        let (own, mut others) = (Acceptance::default(), Acceptance::default());
        (0..100).for_each(|_| others.record(Source::Drafter, 2, 0));
        assert!(own.expected(Source::Drafter, &others)[0] < 0.05);
    }

    #[test]
    fn drafts_grow_with_what_was_right() {
        let (mut own, others) = (Acceptance::default(), Acceptance::default());
        let mut reaches = vec![own.reach(Source::Drafter, &others)];
        for n_accepted in [0, 1, 2, 4, 1, 8] {
            own.record(Source::Drafter, 8, n_accepted);
            reaches.push(own.reach(Source::Drafter, &others));
        }
        assert_eq!(reaches, [1, 1, 2, 4, 8, 8, 15]);
        assert_eq!(others.reach(Source::Drafter, &own), 15);
        assert_eq!(own.reach(Source::Pair, &others), 1);
    }

    #[test]
    fn what_lies_behind_a_wrong_guess_is_not_counted() {
        let mut own = Acceptance::default();
        own.record(Source::Drafter, 5, 1);
        let all = own.shares(Source::Drafter).map(|share| share.all);
        assert_eq!(all[..4], [1.0, 1.0, 0.0, 0.0]);
    }
}
