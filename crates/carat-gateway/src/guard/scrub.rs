//! Marks private things out of a text that comes in pieces.
//!
//! What may be the beginning of something private is held back: the last [`HELD_BYTES`], and from there back to a
//! character that stands in nothing that is looked for. Numbers with spaces in them are shorter than that, and everything
//! else that is found has no such character in it, except private keys, whose lines are swallowed from their beginning.

use super::Look;
use super::find::{KEY_BEGINS, KEY_ENDS, Kind, find, marked};

/// At least so much is held back.
const HELD_BYTES: usize = 64;
/// A word longer than this is no longer held back.
const LONGEST_WORD: usize = 4096;

/// A forbidden word has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied;

/// One text on its way.
#[derive(Debug, Default)]
pub(crate) struct Scrubber {
    held: String,
    /// The end of what was given out, in small letters, as far as a forbidden word may begin in it.
    told: String,
    /// Within a private key, whose mark has been given out.
    is_in_key: bool,
}

impl Scrubber {
    /// Takes a piece and gives out what can be.
    pub(crate) fn push(&mut self, look: &Look, piece: &str) -> Result<String, Denied> {
        self.held.push_str(piece);
        self.check(look)?;
        let mut out = String::new();
        self.swallow_keys(look, &mut out);
        let found = find(&self.held, &look.kinds);
        let mut cut = self.cut();
        // Something found at the very cut goes out as a whole, unless it may go on.
        if let Some((range, _)) = found
            .iter()
            .find(|(range, _)| range.start < cut && range.end > cut)
        {
            cut = if range.end + HELD_BYTES <= self.held.len() {
                range.end
            } else {
                range.start
            };
        }
        let before: Vec<_> = found.into_iter().filter(|(range, _)| range.end <= cut).collect();
        out.push_str(&marked(&self.held[..cut], &before));
        self.tell(look, cut);
        self.held.drain(..cut);
        Ok(out)
    }

    /// Gives out the rest.
    pub(crate) fn finish(&mut self, look: &Look) -> Result<String, Denied> {
        self.check(look)?;
        let mut out = String::new();
        self.swallow_keys(look, &mut out);
        let mut rest = std::mem::take(&mut self.held);
        // What is left of a key that does not end is a part of it, and the next text is none.
        if std::mem::take(&mut self.is_in_key) {
            rest.clear();
        }
        out.push_str(&marked(&rest, &find(&rest, &look.kinds)));
        self.told.clear();
        Ok(out)
    }

    fn check(&self, look: &Look) -> Result<(), Denied> {
        if look.deny.is_empty() {
            return Ok(());
        }
        if look.is_denied(&format!("{}{}", self.told, self.held)) {
            return Err(Denied);
        }
        Ok(())
    }

    /// Remembers the end of what goes out.
    fn tell(&mut self, look: &Look, cut: usize) {
        let Some(longest) = look.deny.iter().map(String::len).max() else {
            return;
        };
        self.told.push_str(&self.held[..cut].to_lowercase());
        let mut from = self.told.len().saturating_sub(longest);
        while !self.told.is_char_boundary(from) {
            from += 1;
        }
        self.told.drain(..from);
    }

    /// Takes private keys out as soon as they begin, since they may be longer than anything that is held back.
    fn swallow_keys(&mut self, look: &Look, out: &mut String) {
        if !look.kinds.contains(&Kind::Secret) {
            return;
        }
        loop {
            if self.is_in_key {
                let Some(end) = self.held.find(KEY_ENDS) else {
                    // The end may be coming.
                    let keep = self.held.len().saturating_sub(KEY_ENDS.len());
                    let keep = (keep..=self.held.len()).find(|i| self.held.is_char_boundary(*i));
                    self.held.drain(..keep.unwrap_or(0));
                    return;
                };
                self.held.drain(..end + KEY_ENDS.len());
                self.is_in_key = false;
            }
            let Some(begins) = self.held.find(KEY_BEGINS) else {
                return;
            };
            let head = begins + KEY_BEGINS.len();
            let Some(end) = self.held[head..].find(KEY_ENDS).filter(|end| *end < 40) else {
                return;
            };
            let before = &self.held[..begins];
            out.push_str(&marked(before, &find(before, &look.kinds)));
            out.push_str(Kind::Secret.mark());
            self.held.drain(..head + end + KEY_ENDS.len());
            self.is_in_key = true;
        }
    }

    /// Up to where the text can be given out.
    fn cut(&self) -> usize {
        let text = &self.held;
        let Some(latest) = text.len().checked_sub(HELD_BYTES) else {
            return 0;
        };
        let is_in_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._%+-@".contains(&byte);
        let before = text.as_bytes()[..latest]
            .iter()
            .rposition(|byte| !is_in_word(*byte));
        let cut = match before {
            Some(i) => i + 1,
            None if text.len() > LONGEST_WORD => latest,
            None => return 0,
        };
        (0..=cut).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn look() -> Look {
        Look::new(
            vec![
                Kind::Email,
                Kind::Card,
                Kind::Iban,
                Kind::Phone,
                Kind::Ip,
                Kind::Secret,
            ],
            &["forbidden fruit".to_string()],
        )
    }

    fn scrubbed(pieces: &[&str]) -> Result<String, Denied> {
        let (mut scrubber, look) = (Scrubber::default(), look());
        let mut out = String::new();
        for piece in pieces {
            out.push_str(&scrubber.push(&look, piece)?);
        }
        out.push_str(&scrubber.finish(&look)?);
        Ok(out)
    }

    const TEXT: &str = "Write to ann@example.org or pay 4111 1111 1111 1111, better to DE89 3704 0044 0532 0130 00; \
        call +49 30 1234 5678. Key: sk-abcdefghijklmnopqrstuvwxyz0123. \u{4f60}\u{597d}\u{4e16}\u{754c} \u{2014} 192.168.0.1!\n\
        -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nMIIEvQIBADANBgkqh\n-----END PRIVATE KEY-----\n\
        and so on for a good while, until nothing is left to say about it, at all.";

    #[test]
    fn nothing_slips_through_between_two_pieces() {
        let expected = "Write to [email] or pay [card], better to [iban]; call [phone]. Key: [secret]. \
            \u{4f60}\u{597d}\u{4e16}\u{754c} \u{2014} [ip]!\n[secret]\nand so on for a good while, until nothing is left to say about it, at all.";
        assert_eq!(scrubbed(&[TEXT]).unwrap(), expected);
        let single: Vec<String> = TEXT.chars().map(String::from).collect();
        let single: Vec<&str> = single.iter().map(String::as_str).collect();
        assert_eq!(scrubbed(&single).unwrap(), expected);
    }

    #[test]
    fn nothing_is_left_of_a_key_that_does_not_end_and_the_next_text_is_whole() {
        let key = "a -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC";
        assert_eq!(scrubbed(&[key]).unwrap(), "a [secret]");
        let (mut scrubber, look) = (Scrubber::default(), look());
        scrubber.push(&look, key).unwrap();
        scrubber.finish(&look).unwrap();
        let mut next = scrubber.push(&look, "another text").unwrap();
        next.push_str(&scrubber.finish(&look).unwrap());
        assert_eq!(next, "another text");
    }

    #[test]
    fn forbidden_words_are_seen_across_pieces() {
        let far = "x ".repeat(100);
        assert_eq!(scrubbed(&[&far, "Forbid", "den ", "FRUIT"]), Err(Denied));
        assert!(scrubbed(&["forbidden", " vegetables"]).is_ok());
    }

    #[test]
    fn words_flow_on_and_long_ones_are_not_held_for_ever() {
        let (mut scrubber, look) = (Scrubber::default(), look());
        let n_out: usize = (0..100)
            .map(|_| scrubber.push(&look, "word ").unwrap().len())
            .sum();
        assert!(n_out >= 500 - HELD_BYTES - 5, "{n_out}");
        let mut scrubber = Scrubber::default();
        for _ in 0..100 {
            scrubber.push(&look, &"a".repeat(100)).unwrap();
            assert!(scrubber.held.len() <= LONGEST_WORD + 100);
        }
    }

    proptest! {
        #[test]
        fn where_pieces_are_cut_changes_nothing(cuts in proptest::collection::vec(0usize..TEXT.len(), 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| TEXT.is_char_boundary(*cut)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&TEXT[from..cut]);
                from = cut;
            }
            pieces.push(&TEXT[from..]);
            prop_assert_eq!(scrubbed(&pieces).unwrap(), scrubbed(&[TEXT]).unwrap());
        }
    }
}
