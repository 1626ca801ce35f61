//! How large the codebooks of a Vorbis file claim to be.
//!
//! A codebook of 131,072 entries in 32 dimensions is told in 20 bytes, there may be 256 of them, and the decoder
//! writes each out in full before the first packet. Every one begins with a sync word, at any bit, and its sizes stand
//! right behind (Vorbis I, section 3.2.1):
//!
//! ```text
//! bits, least significant first:   24 sync "BCV" | 16 dimensions | 24 entries | code lengths, values ...
//! ```
//!
//! The sum is over whatever looks like that, wherever it stands. A reader that goes from book to book would have to
//! agree with the decoder about the length of each to the bit, or be led astray; what the decoder reads is always
//! among what is counted here. That other bits of a header look like a book with sizes that a book may have happens by
//! chance once in a hundred million files.

const SYNC: u128 = 0x56_4342;
/// Sizes beyond which the decoder refuses a book by itself. Chance finds sizes beyond them only.
const MAX_DIMENSIONS: u64 = 32;
const MAX_ENTRIES: u64 = 1 << 17;

/// Values of all codebooks in `headers` together: entries times dimensions.
pub(super) fn n_values(headers: &[u8]) -> u64 {
    let mut n_values = 0u64;
    for begin in 0..headers.len() {
        let mut window = [0u8; 16];
        let n_there = window.len().min(headers.len() - begin);
        window[..n_there].copy_from_slice(&headers[begin..begin + n_there]);
        let bits = u128::from_le_bytes(window);
        for shift in 0..8 {
            let book = bits >> shift;
            if book & 0xff_ffff != SYNC {
                continue;
            }
            let dimensions = (book >> 24) as u64 & 0xffff;
            let entries = (book >> 40) as u64 & 0xff_ffff;
            if dimensions <= MAX_DIMENSIONS && entries <= MAX_ENTRIES {
                n_values += dimensions * entries;
            }
        }
    }
    n_values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_VORBIS_VALUES;
    use carat_testkit::fixture;

    #[test]
    fn books_are_found_at_any_bit() {
        let book = SYNC | 3 << 24 | 1000 << 40;
        for shift in 0..8 {
            let bytes = (book << (16 + shift)).to_le_bytes();
            assert_eq!(n_values(&bytes), 3000, "{shift}");
            assert_eq!(n_values(&bytes.repeat(5)), 15_000, "{shift}");
        }
        let beyond = SYNC | 33 << 24 | 1000 << 40;
        assert_eq!(n_values(&beyond.to_le_bytes()), 0);
        for cut in 0..8 {
            // What is cut off counts as 0.
            assert!(n_values(&book.to_le_bytes()[..cut]) <= 3000);
        }
    }

    #[test]
    fn an_encoders_books_are_far_below_the_limit() {
        let file = std::fs::read(fixture("media/tone.ogg")).unwrap();
        let n_values = n_values(&file);
        assert!((1000..MAX_VORBIS_VALUES / 16).contains(&n_values), "{n_values}");
    }
}
