//! Which two neighbouring symbols may be merged, and which pair goes first.
//!
//! SentencePiece files give a score per piece: any two neighbours whose bytes together are a piece may merge, the
//! best score first. Hugging Face files list the pairs in order. The first form needs no table of pairs at all: the
//! bytes of the two symbols lie side by side in the text, and the vocabulary's index answers.

use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::piece_index::overlap_reads;
use crate::vocabulary::Vocabulary;

/// Id of a symbol that is no piece (a character outside the vocabulary).
pub(crate) const NO_PIECE: u32 = u32::MAX;

/// A possible merge: lower `rank` goes first, `id` is the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    /// Order among all merges; equal ranks go from left to right.
    pub(crate) rank: u32,
    /// The merged piece.
    pub(crate) id: u32,
}

/// The order of merges of one tokenizer.
#[derive(Debug)]
pub(crate) enum Merges {
    /// Rank of each piece, by id.
    ByPiece(Box<[u32]>),
    /// Listed pairs.
    ByPair(PairTable),
}

impl Merges {
    /// Ranks from scores: the highest score first, equal scores share a rank.
    pub(crate) fn from_scores(scores: &[f32]) -> Result<Self> {
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(Error::ScoreNotNumber { id });
        }
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let score = |id: u32| scores[id as usize];
        // Stable: files are almost in order already, which this sort exploits.
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
        let mut ranks = vec![0; scores.len()].into_boxed_slice();
        let mut rank = 0;
        for (i, &id) in order.iter().enumerate() {
            // Zero and minus zero are the same score but different to `total_cmp`.
            if i > 0 && score(id) != score(order[i - 1]) {
                rank = i as u32;
            }
            ranks[id as usize] = rank;
        }
        Ok(Self::ByPiece(ranks))
    }

    /// The merge of symbols `left` and `right`, whose bytes together are `bytes`.
    #[inline]
    pub(crate) fn find(&self, vocabulary: &Vocabulary, left: u32, right: u32, bytes: &[u8]) -> Option<Merge> {
        match self {
            Self::ByPiece(ranks) => vocabulary.find_mergeable(bytes).map(|id| Merge {
                rank: ranks[id as usize],
                id,
            }),
            Self::ByPair(table) => table.find(left, right),
        }
    }
}

/// Consecutive rules on their way from a file into a [`PairTable`].
#[derive(Debug, Default)]
pub(crate) struct RuleBatch {
    /// Both sides of each rule with plain blanks, one after the other.
    pub(crate) text: String,
    /// Where in `text` the right side of each rule begins, and where it ends.
    pub(crate) cuts: Vec<(usize, usize)>,
}

impl RuleBatch {
    /// Whether there are as many rules as a core's own cache has room for what is read for them.
    pub(crate) fn is_full(&self) -> bool {
        self.cuts.len() >= 256
    }

    /// Each rule with both sides joined, and the length of the left one.
    fn iter(&self) -> impl Iterator<Item = (&str, usize)> + Clone {
        let starts = std::iter::once(0).chain(self.cuts.iter().map(|&(_, end)| end));
        starts
            .zip(&self.cuts)
            .map(|(start, &(middle, end))| (&self.text[start..end], middle - start))
    }
}

/// Listed pairs in an open-addressing table.
#[derive(Debug)]
pub(crate) struct PairTable {
    /// `[left, right, result]`, the rank is the index.
    pairs: Vec<[u32; 3]>,
    /// Index + 1 of a pair, 0 when empty; at most two thirds full.
    slots: Vec<u32>,
}

impl PairTable {
    fn with_capacity(n: usize) -> Self {
        let n = n.min(1 << 20);
        Self {
            pairs: Vec::with_capacity(n),
            slots: vec![0; (n * 3 / 2).next_power_of_two().max(16)],
        }
    }

    /// The table of all rules, which come in rank order. `n`, about how many, comes from a file, so it is only a hint.
    pub(crate) fn from_batches(
        vocabulary: &Vocabulary,
        n: usize,
        batches: impl IntoIterator<Item = RuleBatch>,
    ) -> Result<Self> {
        let mut table = Self::with_capacity(n);
        let mut ids = Vec::new();
        for rules in batches {
            let first = table.pairs.len();
            // Half a million rules need two million reads at random places. One after the other they would wait for
            // memory each time, so the reads of a batch are made to overlap.
            let sides = rules.iter().flat_map(|(joined, middle)| {
                let (left, right) = joined.as_bytes().split_at(middle);
                [left, right]
            });
            vocabulary.find_all(sides, &mut ids);
            for ((joined, middle), sides) in rules.iter().zip(ids.as_chunks::<2>().0) {
                table.push(vocabulary, joined, middle, sides)?;
            }
            table.place_from(first, vocabulary);
        }
        Ok(table)
    }

    /// Gives the pair with ids `sides` the next rank; `joined` is the text of both, the left one up to `middle`.
    fn push(
        &mut self,
        vocabulary: &Vocabulary,
        joined: &str,
        middle: usize,
        sides: &[Option<u32>; 2],
    ) -> Result<()> {
        // Files list all ways to cut a piece one after the other, and the pieces in order.
        let last = self.pairs.last().map_or(0, |&[.., result]| result);
        let is_joined = |id: &u32| vocabulary.piece(*id) == joined;
        let result = [last, last + 1].into_iter().find(is_joined);
        let result = result.or_else(|| vocabulary.find(joined.as_bytes()));
        let (&[Some(left), Some(right)], Some(result)) = (sides, result) else {
            let (left, right) = joined.split_at(middle);
            return Err(Error::MergeRule {
                index: self.pairs.len(),
                rule: format!("{left} {right}"),
            });
        };
        self.pairs.push([left, right, result]);
        Ok(())
    }

    /// Makes the pairs from rank `first` on findable. Those whose result merges may not produce only use up a rank.
    fn place_from(&mut self, first: usize, vocabulary: &Vocabulary) {
        let mut first = first;
        while self.pairs.len() * 3 > self.slots.len() * 2 {
            self.slots = vec![0; self.slots.len() * 2];
            first = 0;
        }
        let mask = self.slots.len() - 1;
        let slot = |&[left, right, _]: &[u32; 3]| self.slots[slot_of(left, right) & mask];
        overlap_reads(&self.pairs[first..], |pair| slot(pair).into());
        // Pairs that hold a slot already are compared with those that want it.
        overlap_reads(&self.pairs[first..], |pair| {
            let holder = (slot(pair) as usize).wrapping_sub(1);
            self.pairs.get(holder).map_or(0, |&[left, ..]| left.into())
        });
        for index in first..self.pairs.len() {
            if vocabulary
                .kind(self.pairs[index][2])
                .is_some_and(Kind::is_mergeable)
            {
                self.place(index);
            }
        }
    }

    /// Enters pair `index` unless the same pair is there with a better rank.
    fn place(&mut self, index: usize) {
        let [left, right, _] = self.pairs[index];
        let mask = self.slots.len() - 1;
        let mut at = slot_of(left, right) & mask;
        while self.slots[at] != 0 {
            let held = self.pairs[self.slots[at] as usize - 1];
            if held[0] == left && held[1] == right {
                return;
            }
            at = (at + 1) & mask;
        }
        // Ranks fit: a rule takes at least four bytes of its file.
        self.slots[at] = index as u32 + 1;
    }

    #[inline]
    fn find(&self, left: u32, right: u32) -> Option<Merge> {
        let mask = self.slots.len() - 1;
        let mut at = slot_of(left, right) & mask;
        loop {
            let rank = self.slots[at].checked_sub(1)?;
            let pair = self.pairs[rank as usize];
            if pair[0] == left && pair[1] == right {
                return Some(Merge { rank, id: pair[2] });
            }
            at = (at + 1) & mask;
        }
    }
}

/// Hash of a pair of ids; ids are below 2^20, so distinct pairs have distinct products before the shift.
#[inline]
fn slot_of(left: u32, right: u32) -> usize {
    let pair = u64::from(left) << 32 | u64::from(right);
    (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 28) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_share_a_rank_and_higher_scores_go_first() {
        let Merges::ByPiece(ranks) = Merges::from_scores(&[-2.0, 0.0, -0.0, -1.0, -2.0]).unwrap() else {
            panic!("scores give ranks by piece")
        };
        assert_eq!(*ranks, [3, 0, 0, 2, 3]);
        assert!(matches!(
            Merges::from_scores(&[0.0, f32::NAN]),
            Err(Error::ScoreNotNumber { id: 1 })
        ));
    }
}
