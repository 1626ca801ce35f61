//! A prompt's text before it is tokenized, for those who put something into it: images, sounds, videos.
//!
//! Which characters came from messages stays known, so that the text can be cut at the placeholders that the *template*
//! wrote, and joined with other text, without a message's text ever being taken for a control token.

use crate::tokenizer::{Special, Tokenizer};

/// Text in which control strings mean tokens, except where characters came from messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptText {
    text: String,
    /// Byte offsets, in order, at which no control token begins.
    shielded: Vec<usize>,
}

impl PromptText {
    pub(crate) fn new(text: String, shielded: Vec<usize>) -> Self {
        Self { text, shielded }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Appends a text that is trusted: control strings in it mean tokens.
    pub fn push_str(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Appends another prompt's text.
    pub fn append(&mut self, other: &PromptText) {
        let at = self.text.len();
        self.text.push_str(&other.text);
        self.shielded
            .extend(other.shielded.iter().map(|offset| offset + at));
    }

    /// Cuts the text at the places where the template wrote one of `names`: each piece with the index of the name
    /// that followed it, and the rest with `None`.
    #[must_use]
    pub fn cut_at(&self, names: &[&str]) -> Vec<(PromptText, Option<usize>)> {
        let mut places: Vec<(usize, usize)> = names
            .iter()
            .enumerate()
            .flat_map(|(i, name)| self.text.match_indices(name).map(move |(at, _)| (at, i)))
            .filter(|(at, _)| self.shielded.binary_search(at).is_err())
            .collect();
        places.sort_unstable();
        let mut pieces = Vec::with_capacity(places.len() + 1);
        let mut start = 0;
        for (at, i) in places {
            // A name within another has begun already.
            if at >= start {
                pieces.push((self.part(start, at), Some(i)));
                start = at + names[i].len();
            }
        }
        pieces.push((self.part(start, self.text.len()), None));
        pieces
    }

    /// Its ids. No token is added.
    #[must_use]
    pub fn encode(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        if self.shielded.is_empty() {
            return tokenizer.encode(&self.text, Special::Parse);
        }
        tokenizer.encode_shielded(&self.text, &self.shielded)
    }

    fn part(&self, start: usize, end: usize) -> PromptText {
        let index = |at| self.shielded.partition_point(|&offset| offset < at);
        let offsets = &self.shielded[index(start)..index(end)];
        PromptText {
            text: self.text[start..end].to_owned(),
            shielded: offsets.iter().map(|offset| offset - start).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_templates_placeholders_are_found() {
        // The second `<i>` came from a message.
        let text = PromptText::new("a<i>b<i>c<v><i>".into(), vec![5]);
        let pieces = text.cut_at(&["<v>", "<i>"]);
        let found: Vec<_> = pieces.iter().map(|(text, i)| (text.as_str(), *i)).collect();
        assert_eq!(
            found,
            [("a", Some(1)), ("b<i>c", Some(0)), ("", Some(1)), ("", None)]
        );
        assert_eq!(pieces[1].0.shielded, [1]);
    }

    #[test]
    fn offsets_move_with_the_text() {
        let mut all = PromptText::new("<x>".into(), vec![0]);
        all.push_str("\n\n");
        all.append(&PromptText::new("a<y>".into(), vec![1]));
        assert_eq!(all, PromptText::new("<x>\n\na<y>".into(), vec![0, 6]));
    }
}
