//! Tells which characters of a rendered prompt came from messages, through whatever the template does to them.
//!
//! A message may hold `<end_of_turn>`; tokenized with the rest it would end the turn. So the conversation is rendered
//! a second time with each character that could start a special piece (`<` and `[` for Gemma) replaced,
//! in messages only, by a private character that occurs nowhere. Both renderings then have the same length, and
//! where the second has a stand-in, the first has a character of a message: no special piece may start there.
//! Trimming, joining and moving of texts by the template do not matter, nor do strings that only arise when
//! the template joins two texts.
//!
//! A template that looks for such characters renders the second conversation differently. Gemma 4's does, to cut
//! thoughts out of earlier answers: for answers, its two channel markers are then left as they are. If that does not
//! help either, the conversation is refused.

use crate::chat::{Message, Part, Role};
use crate::error::{Error, Result};

/// Markers that templates look for in earlier answers.
const CHANNEL_MARKERS: [&str; 2] = ["<|channel>", "<channel|>"];

/// Byte offsets in `rendered`, in order, of characters from messages that could start a special piece.
pub(crate) fn shielded_offsets(
    messages: &[Message],
    rendered: &str,
    special_starts: &[char],
    render: impl Fn(&[Message]) -> Result<String>,
) -> Result<Vec<usize>> {
    let stand_ins = StandIns::choose(messages, rendered, special_starts)?;
    if stand_ins.pairs.is_empty() {
        return Ok(Vec::new());
    }
    for kept in [&[][..], &CHANNEL_MARKERS] {
        // A template may well refuse what it does not expect: then the next attempt decides.
        let Ok(replaced) = render(&stand_ins.apply(messages, kept)) else {
            continue;
        };
        if let Some(offsets) = stand_ins.compare(rendered, &replaced) {
            return Ok(offsets);
        }
    }
    Err(Error::UntraceableText)
}

/// Characters and the private ones that stand for them.
struct StandIns {
    pairs: Vec<(char, char)>,
}

impl StandIns {
    /// Stand-ins for those of `special_starts` that occur in messages.
    fn choose(messages: &[Message], rendered: &str, special_starts: &[char]) -> Result<Self> {
        let texts = || {
            messages
                .iter()
                .flat_map(|message| &message.content)
                .filter_map(text_of)
        };
        let is_start = |c: &char| special_starts.binary_search(c).is_ok();
        let mut needed: Vec<char> = texts().flat_map(str::chars).filter(is_start).collect();
        needed.sort_unstable();
        needed.dedup();
        if needed.is_empty() {
            return Ok(Self { pairs: Vec::new() });
        }
        // Noncharacters first: honest text never holds them. Then planes 15 and 16, for private use.
        let candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{f0000}'..='\u{10fffd}');
        let mut used: Vec<char> = texts()
            .chain([rendered])
            .flat_map(str::chars)
            .filter(|&c| c >= '\u{fdd0}')
            .collect();
        used.sort_unstable();
        used.dedup();
        let mut free = candidates.filter(|c| used.binary_search(c).is_err());
        let pairs: Option<Vec<_>> = needed.into_iter().map(|c| Some((c, free.next()?))).collect();
        Ok(Self {
            pairs: pairs.ok_or(Error::UntraceableText)?,
        })
    }

    /// The messages with stand-ins; in answers the strings `kept` stay.
    fn apply(&self, messages: &[Message], kept: &[&str]) -> Vec<Message> {
        let apply_to = |message: &Message, part: &Part| match part {
            Part::Text(text) if message.role == Role::Assistant => Part::Text(self.replace(text, kept)),
            Part::Text(text) => Part::Text(self.replace(text, &[])),
            Part::Image => Part::Image,
        };
        let apply = |message: &Message| Message {
            role: message.role,
            content: message
                .content
                .iter()
                .map(|part| apply_to(message, part))
                .collect(),
        };
        messages.iter().map(apply).collect()
    }

    fn replace(&self, text: &str, kept: &[&str]) -> String {
        let mut replaced = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let is_kept = kept.iter().any(|marker| text[at..].starts_with(marker));
            replaced.push(if is_kept { c } else { self.stand_in(c) });
        }
        replaced
    }

    fn stand_in(&self, c: char) -> char {
        self.pairs
            .iter()
            .find(|(from, _)| *from == c)
            .map_or(c, |&(_, to)| to)
    }

    /// Offsets of stand-ins, if the two texts differ in nothing else.
    fn compare(&self, rendered: &str, replaced: &str) -> Option<Vec<usize>> {
        let mut offsets = Vec::new();
        let mut others = replaced.chars();
        for (at, c) in rendered.char_indices() {
            let other = others.next()?;
            if other == c {
                continue;
            }
            if !self.pairs.contains(&(c, other)) {
                return None;
            }
            offsets.push(at);
        }
        others.next().is_none().then_some(offsets)
    }
}

fn text_of(part: &Part) -> Option<&str> {
    match part {
        Part::Text(text) => Some(text),
        Part::Image => None,
    }
}
