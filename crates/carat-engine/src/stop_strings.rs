//! Finding stop strings in streamed text.
//!
//! A stop string may lie across tokens, so text that could still become one is held back until more text
//! decides. What is emitted never depends on how the text was cut into pieces: the first stop string to be
//! *completed* ends the text, and of several completed by the same character the one that began first; the text
//! ends before it.

use crate::error::Error;

/// Whether the text goes on after a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// No stop string yet.
    Continue,
    /// A stop string was found; it and what follows are dropped.
    Stop,
}

/// Splits streamed text into what may be shown and what must wait.
#[derive(Debug, Clone)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    /// Text not yet decided: no more than the longest stop string between two calls.
    held: String,
    /// Index of the stop string that was found.
    found: Option<usize>,
}

impl StopStrings {
    /// # Errors
    /// [`Error::EmptyStopString`].
    pub(crate) fn new(stops: &[String]) -> Result<Self, Error> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::EmptyStopString);
        }
        Ok(Self {
            stops: stops.to_vec(),
            held: String::new(),
            found: None,
        })
    }

    /// Takes the next piece and appends to `shown` what is now decided.
    pub(crate) fn push(&mut self, piece: &str, shown: &mut String) -> Flow {
        self.held.push_str(piece);
        if let Some((start, index)) = self.first_completed() {
            self.found = Some(index);
            shown.push_str(&self.held[..start]);
            self.held.clear();
            return Flow::Stop;
        }
        let n_decided = self.held.len() - self.undecided_len();
        shown.push_str(&self.held[..n_decided]);
        self.held.drain(..n_decided);
        Flow::Continue
    }

    /// Takes the text of a token that is none: what waits before it is shown, and only a stop string that is just it
    /// ends the text.
    pub(crate) fn push_mark(&mut self, mark: &str, shown: &mut String) -> Flow {
        self.finish(shown);
        self.found = self.stops.iter().position(|stop| stop == mark);
        if self.found.is_some() {
            return Flow::Stop;
        }
        shown.push_str(mark);
        Flow::Continue
    }

    /// The text that waited for a stop string which did not come; to be shown at the end.
    pub(crate) fn finish(&mut self, shown: &mut String) {
        shown.push_str(&self.held);
        self.held.clear();
    }

    /// Index of the stop string that ended the text.
    pub(crate) fn found(&self) -> Option<usize> {
        self.found
    }

    /// Where the first completed stop string begins, and its index.
    fn first_completed(&self) -> Option<(usize, usize)> {
        self.stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| {
                self.held
                    .find(stop.as_str())
                    .map(|start| (start + stop.len(), start, index))
            })
            .min()
            .map(|(_, start, index)| (start, index))
    }

    /// Length in bytes of the longest end of `held` that begins a stop string.
    fn undecided_len(&self) -> usize {
        let held = self.held.as_bytes();
        self.stops
            .iter()
            .filter_map(|stop| {
                let longest = held.len().min(stop.len() - 1);
                (1..=longest)
                    .rev()
                    .find(|&n| held.ends_with(&stop.as_bytes()[..n]))
            })
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(pieces: &[&str], stops: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut matcher = StopStrings::new(&stops).unwrap();
        let mut shown = String::new();
        for piece in pieces {
            if matcher.push(piece, &mut shown) == Flow::Stop {
                return (shown, true);
            }
        }
        matcher.finish(&mut shown);
        (shown, false)
    }

    #[test]
    fn marks_are_no_text() {
        let stops = [">".to_string(), "ab".to_string(), "<|end|>".to_string()];
        let mut matcher = StopStrings::new(&stops).unwrap();
        let mut shown = String::new();
        assert_eq!(matcher.push("a", &mut shown), Flow::Continue);
        assert_eq!(shown, "");
        assert_eq!(matcher.push_mark("<|x|>", &mut shown), Flow::Continue);
        assert_eq!(matcher.push("b", &mut shown), Flow::Continue);
        assert_eq!(shown, "a<|x|>b");
        assert_eq!(matcher.push_mark("<|end|>", &mut shown), Flow::Stop);
        assert_eq!((shown.as_str(), matcher.found()), ("a<|x|>b", Some(2)));
    }

    /// Character by character, looking at all the text so far: the definition.
    fn plain(text: &str, stops: &[&str]) -> (String, bool) {
        for (i, c) in text.char_indices() {
            let so_far = &text[..i + c.len_utf8()];
            let longest = stops
                .iter()
                .filter(|stop| so_far.ends_with(**stop))
                .map(|stop| stop.len())
                .max();
            if let Some(n) = longest {
                return (so_far[..so_far.len() - n].to_string(), true);
            }
        }
        (text.to_string(), false)
    }

    #[test]
    fn every_cut_of_a_text_gives_the_same() {
        let cases: &[(&str, &[&str])] = &[
            ("one\n\ntwo", &["\n\n"]),
            ("aabaaab", &["aaab", "ba"]),
            ("früh Schluß jetzt", &["ß j", "üh S"]),
            ("abcabcabd!", &["abcabd"]),
            ("no stop here", &["stop!"]),
            ("xxENDyy", &["END", "NDy", "xEN"]),
            ("😀😃😄", &["😃😄"]),
        ];
        for &(text, stops) in cases {
            let borders: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            let expected = plain(text, stops);
            for &a in &borders {
                for &b in borders.iter().filter(|&&b| b >= a) {
                    let found = stream(&[&text[..a], &text[a..b], &text[b..]], stops);
                    assert_eq!(found, expected, "{text:?} cut at {a} and {b}");
                }
            }
        }
    }

    #[test]
    fn text_is_held_only_while_it_may_become_a_stop_string() {
        let mut matcher = StopStrings::new(&["###".to_string()]).unwrap();
        let mut shown = String::new();
        assert_eq!(matcher.push("a#", &mut shown), Flow::Continue);
        assert_eq!(shown, "a");
        assert_eq!(matcher.push("b", &mut shown), Flow::Continue);
        assert_eq!(shown, "a#b");
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(matches!(
            StopStrings::new(&[String::new()]),
            Err(Error::EmptyStopString)
        ));
    }

    proptest! {
        #[test]
        fn streaming_equals_the_plain_definition(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(stream(&pieces, &stops), plain(&pieces.concat(), &stops));
        }
    }
}
