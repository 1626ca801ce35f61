//! Finds pieces that are matched in text before any merging: user-defined ones always, special ones on request.
//!
//! At each place the longest match wins, as in the reference. Candidates are kept sorted by their bytes; a match
//! narrows the range of candidates byte by byte. Two tables over the first one and two bytes refuse nearly all
//! places of ordinary text (a single blank could start a run of blanks) without a search.

use crate::kind::Kind;
use crate::vocabulary::Vocabulary;

/// Whether a matched place may use pieces that exist only for the prompt format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// User-defined pieces only.
    UserDefined,
    /// Special pieces too.
    All,
}

/// The pieces matched before merging.
#[derive(Debug)]
pub(crate) struct Matcher {
    /// Ids sorted by piece.
    sorted: Vec<u32>,
    /// Per first byte: nothing, only longer pieces, or a piece of one byte.
    first: [First; 256],
    /// Bit per first two bytes.
    second: Box<[u64; 1024]>,
    /// First characters of special pieces, sorted.
    special_starts: Vec<char>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    None,
    Longer,
    Whole,
}

impl Matcher {
    /// Collects the pieces of `vocabulary` that are matched before merging.
    pub(crate) fn new(vocabulary: &Vocabulary) -> Self {
        let is_matched = |id: u32| {
            vocabulary.kind(id).is_some_and(|kind| kind == Kind::UserDefined || kind.is_parsed_only())
                // Of two spellings of one piece only the first is reachable.
                && vocabulary.find(vocabulary.piece(id).as_bytes()) == Some(id)
        };
        let mut sorted: Vec<u32> = (0..vocabulary.len() as u32)
            .filter(|&id| is_matched(id))
            .collect();
        sorted.sort_unstable_by_key(|&id| vocabulary.piece(id));
        let mut matcher = Self {
            sorted: Vec::new(),
            first: [First::None; 256],
            second: Box::new([0; 1024]),
            special_starts: Vec::new(),
        };
        for &id in &sorted {
            matcher.note_start(vocabulary.piece(id));
            if vocabulary.kind(id).is_some_and(Kind::is_parsed_only) {
                matcher.special_starts.extend(vocabulary.piece(id).chars().next());
            }
        }
        matcher.special_starts.sort_unstable();
        matcher.special_starts.dedup();
        matcher.sorted = sorted;
        matcher
    }

    fn note_start(&mut self, piece: &str) {
        match *piece.as_bytes() {
            [] => {}
            [only] => self.first[only as usize] = First::Whole,
            [a, b, ..] => {
                if self.first[a as usize] == First::None {
                    self.first[a as usize] = First::Longer;
                }
                let pair = usize::from(a) << 8 | usize::from(b);
                self.second[pair >> 6] |= 1 << (pair & 63);
            }
        }
    }

    /// First characters of special pieces: text without them holds no special piece.
    pub(crate) fn special_starts(&self) -> &[char] {
        &self.special_starts
    }

    /// Whether a special piece begins with `text` or is its beginning. Looks through all of them.
    pub(crate) fn may_begin_special(&self, vocabulary: &Vocabulary, text: &str) -> bool {
        let specials = self
            .sorted
            .iter()
            .filter(|&&id| vocabulary.kind(id).is_some_and(Kind::is_parsed_only));
        let mut pieces = specials.map(|&id| vocabulary.piece(id));
        pieces.any(|piece| piece.starts_with(text) || text.starts_with(piece))
    }

    /// The longest piece at the start of `text`, with its length in bytes.
    #[inline]
    pub(crate) fn at_start(&self, vocabulary: &Vocabulary, text: &[u8], mode: Match) -> Option<(u32, usize)> {
        let &a = text.first()?;
        match self.first[a as usize] {
            First::None => return None,
            First::Whole => {}
            First::Longer => {
                let pair = usize::from(a) << 8 | usize::from(*text.get(1)?);
                if self.second[pair >> 6] >> (pair & 63) & 1 == 0 {
                    return None;
                }
            }
        }
        self.search(vocabulary, text, mode)
    }

    fn search(&self, vocabulary: &Vocabulary, text: &[u8], mode: Match) -> Option<(u32, usize)> {
        let mut range = self.sorted.as_slice();
        let mut longest = None;
        for (depth, &byte) in text.iter().enumerate() {
            let at_depth = |id: &u32| vocabulary.piece(*id).as_bytes().get(depth).copied();
            // A piece that ends here sorts first and compares as `None`.
            let from = range.partition_point(|id| at_depth(id) < Some(byte));
            let to = from + range[from..].partition_point(|id| at_depth(id) == Some(byte));
            range = &range[from..to];
            let Some(&id) = range.first() else { break };
            let ends_here = vocabulary.piece(id).len() == depth + 1;
            if ends_here && (mode == Match::All || vocabulary.kind(id) == Some(Kind::UserDefined)) {
                longest = Some((id, depth + 1));
            }
            if range.len() == 1 && ends_here {
                break;
            }
        }
        longest
    }
}
