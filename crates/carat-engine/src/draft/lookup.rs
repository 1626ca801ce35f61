//! Guesses from the text itself: what came after the same tokens before.
//!
//! Every pair of neighbouring tokens is remembered with the latest place where it ends, and every place with the
//! one before it: some 20 bytes a token. Of the latest [`MAX_PLACES`] places of the last pair, the one with the longest
//! common past is gone on from. Editing, quoting, summing up and writing JSON repeat much; prose does not, and then
//! nothing is found or little of it accepted, which `acceptance` keeps apart by the length of the past.

use std::collections::HashMap;

use super::MAX_DRAFT;

/// Places compared for one guess.
const MAX_PLACES: usize = 16;
/// Tokens of the past compared at each.
const MAX_PAST: usize = 32;
/// There is no such place.
const NOWHERE: u32 = u32::MAX;

/// The pairs of one sequence.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// Where a pair ended last.
    latest: HashMap<(u32, u32), u32>,
    /// For each position, where the pair that ends there ended before.
    before: Vec<u32>,
}

impl Lookup {
    /// Takes in what `tokens` has more than last time.
    pub(crate) fn extend(&mut self, tokens: &[u32]) {
        for i in self.before.len()..tokens.len() {
            let Ok(place) = u32::try_from(i) else { return };
            let before = match i {
                0 => NOWHERE,
                _ => self
                    .latest
                    .insert((tokens[i - 1], tokens[i]), place)
                    .unwrap_or(NOWHERE),
            };
            self.before.push(before);
        }
    }

    /// Up to [`MAX_DRAFT`] guesses of what follows `tokens`, and how many of its last tokens stood before them the
    /// last time. Empty where nothing is found.
    pub(crate) fn guess(&self, tokens: &[u32], guesses: &mut Vec<u32>) -> usize {
        guesses.clear();
        let n = tokens.len();
        let mut place = self.before.get(n.wrapping_sub(1)).copied().unwrap_or(NOWHERE);
        let (mut longest, mut best) = (0, 0);
        for _ in 0..MAX_PLACES {
            if place == NOWHERE {
                break;
            }
            let end = place as usize + 1;
            let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
            let past = pairs.take(MAX_PAST).take_while(|(a, b)| a == b).count();
            if past > longest {
                (longest, best) = (past, end);
            }
            if past == MAX_PAST {
                break;
            }
            place = self.before[place as usize];
        }
        if longest > 0 {
            // What repeats itself with a period shorter than the draft goes on doing so.
            let period = n - best;
            for i in 0..MAX_DRAFT {
                let guess = if i < period {
                    tokens[best + i]
                } else {
                    guesses[i - period]
                };
                guesses.push(guess);
            }
        }
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(tokens: &[u32]) -> (usize, Vec<u32>) {
        let mut lookup = Lookup::default();
        // In two steps: as a generation grows.
        lookup.extend(&tokens[..tokens.len() / 2]);
        lookup.extend(tokens);
        let mut guesses = Vec::new();
        let past = lookup.guess(tokens, &mut guesses);
        (past, guesses)
    }

    #[test]
    fn the_longest_past_wins_over_the_latest() {
        let tokens = [5, 1, 2, 3, 70, 71, 9, 2, 3, 80, 81, 8, 5, 1, 2, 3];
        let (past, guesses) = guess(&tokens);
        assert_eq!((past, &guesses[..3]), (4, &[70, 71, 9][..]));
        let (past, guesses) = guess(&tokens[..9]);
        assert_eq!((past, &guesses[..2]), (2, &[70, 71][..]));
    }

    #[test]
    fn nothing_seen_before_gives_no_guess() {
        for tokens in [&[][..], &[1], &[1, 1], &[1, 2, 3, 4], &[1, 2, 9, 2]] {
            assert_eq!(guess(tokens), (0, vec![]), "{tokens:?}");
        }
    }

    #[test]
    fn a_period_goes_on() {
        let (past, guesses) = guess(&[9, 1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(past, 5);
        assert_eq!(guesses, [3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2]);
        let (past, guesses) = guess(&[4; 100]);
        assert_eq!((past, guesses), (MAX_PAST, vec![4; MAX_DRAFT]));
    }
}
