//! Ids to text, all at once or as they arrive.
//!
//! Byte pieces may split a character over several tokens. [`Tokenizer::decode`] follows the reference: a run of byte
//! pieces that is not UTF-8 as a whole becomes one U+FFFD per byte. [`StreamDecoder`] cannot wait for the end of a
//! run: it hands out each character when it is complete, and one U+FFFD per byte that can no longer become part of
//! one. The two agree wherever the bytes are valid, which is all a healthy model produces.

use crate::kind::Kind;
use crate::tokenizer::Tokenizer;

/// Whether control tokens show in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlText {
    /// `<start_of_turn>` is written out.
    Show,
    /// Control tokens leave no trace: for readers.
    Hide,
}

impl Tokenizer {
    /// Text of `ids`. Ids outside the vocabulary give nothing.
    pub fn decode(&self, ids: &[u32], control: ControlText) -> String {
        let mut text = String::new();
        let mut run = Vec::new();
        for &id in ids {
            if self.vocabulary().kind(id) == Some(Kind::Byte) {
                run.extend_from_slice(self.vocabulary().bytes(id));
                continue;
            }
            if control == ControlText::Hide && self.is_control(id) {
                continue;
            }
            flush_run(&mut run, &mut text);
            text.push_str(self.vocabulary().piece(id));
        }
        flush_run(&mut run, &mut text);
        text
    }
}

/// Ends a run of byte pieces: its text, or one U+FFFD per byte.
fn flush_run(run: &mut Vec<u8>, text: &mut String) {
    match std::str::from_utf8(run) {
        Ok(valid) => text.push_str(valid),
        Err(_) => push_replacements(text, run.len()),
    }
    run.clear();
}

fn push_replacements(text: &mut String, n: usize) {
    text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, n));
}

/// Turns ids into text one by one, never half a character.
///
/// Holds no reference to the tokenizer, so that it can live beside other state of a generation; use one tokenizer
/// for all calls.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    control: ControlText,
    /// Bytes of an unfinished character, at most three.
    pending: Vec<u8>,
    /// Text of the last call.
    text: String,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new(control: ControlText) -> Self {
        Self {
            control,
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// The text that became complete with `id`; may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> &str {
        self.text.clear();
        let vocabulary = tokenizer.vocabulary();
        if vocabulary.kind(id) == Some(Kind::Byte) {
            self.pending.extend_from_slice(vocabulary.bytes(id));
            self.take_complete();
        } else if self.control == ControlText::Show || !tokenizer.is_control(id) {
            push_replacements(&mut self.text, self.pending.len());
            self.pending.clear();
            self.text.push_str(vocabulary.piece(id));
        }
        &self.text
    }

    /// What is left at the end: U+FFFD for each byte of an unfinished character. The decoder is then at a start.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        push_replacements(&mut self.text, self.pending.len());
        self.pending.clear();
        &self.text
    }

    /// Moves complete characters from `pending` to `text` and replaces bytes that cannot become one.
    fn take_complete(&mut self) {
        while !self.pending.is_empty() {
            let (taken, wrong) = match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    self.text.push_str(valid);
                    (valid.len(), 0)
                }
                Err(error) => {
                    let (valid, _) = self.pending.split_at(error.valid_up_to());
                    self.text.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        None if valid.is_empty() => return,
                        None => (valid.len(), 0),
                        Some(wrong) => (valid.len(), wrong),
                    }
                }
            };
            push_replacements(&mut self.text, wrong);
            self.pending.drain(..taken + wrong);
        }
    }
}
