//! Between which characters a text may be cut before it is merged.
//!
//! A merged piece that spans two neighbouring characters contains them as neighbours. So if no mergeable piece of
//! the vocabulary has `x` directly before `y`, no merge ever crosses a border between `x` and `y`, and both sides
//! can be merged on their own with the same result. Gemma's 255 thousand pieces have only 33,692 different pairs, and just
//! one piece with a blank inside, so nearly every word is on its own.
//!
//! ASCII pairs are kept exactly (2 KiB). Other pairs go through a one-hash Bloom filter of 128 KiB: a false hit
//! (3 % for Gemma) only forgoes a cut.

/// log2 of the filter's bits.
const FILTER_BITS: u32 = 20;

/// The character pairs that occur inside mergeable pieces.
#[derive(Debug)]
pub(crate) struct Borders {
    ascii: Box<[u128; 128]>,
    filter: Box<[u64]>,
}

impl Borders {
    /// No pairs: every border is safe.
    pub(crate) fn new() -> Self {
        Self {
            ascii: Box::new([0; 128]),
            filter: vec![0; 1 << (FILTER_BITS - 6)].into_boxed_slice(),
        }
    }

    /// Notes all pairs of one mergeable piece.
    pub(crate) fn add(&mut self, piece: &str) {
        let mut chars = piece.chars();
        let Some(mut before) = chars.next() else { return };
        for after in chars {
            if before.is_ascii() && after.is_ascii() {
                self.ascii[before as usize] |= 1 << (after as u32);
            } else {
                let bit = filter_bit(before, after);
                self.filter[bit >> 6] |= 1 << (bit & 63);
            }
            before = after;
        }
    }

    /// Whether no merge can join `before` and `after`.
    #[inline]
    pub(crate) fn is_safe(&self, before: char, after: char) -> bool {
        if before.is_ascii() && after.is_ascii() {
            self.ascii[before as usize] >> (after as u32) & 1 == 0
        } else {
            let bit = filter_bit(before, after);
            self.filter[bit >> 6] >> (bit & 63) & 1 == 0
        }
    }
}

/// Position of a pair in the filter.
#[inline]
fn filter_bit(before: char, after: char) -> usize {
    let pair = u64::from(before as u32) << 32 | u64::from(after as u32);
    (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FILTER_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use super::Borders;

    #[test]
    fn pairs_of_pieces_are_never_safe() {
        let mut borders = Borders::new();
        for piece in [" the", "h\u{e9}", "\u{4e2d}\u{6587}", "", "x"] {
            borders.add(piece);
        }
        assert!(!borders.is_safe(' ', 't'));
        assert!(!borders.is_safe('h', 'e'));
        assert!(!borders.is_safe('h', '\u{e9}'));
        assert!(!borders.is_safe('\u{4e2d}', '\u{6587}'));
        assert!(borders.is_safe('e', ' '));
        assert!(borders.is_safe('t', '\u{7f}'));
    }
}
