//! Images and sounds in a prompt: embedding rows in the place of tokens.
//!
//! Two things follow from them. A chunk of a prompt must not end within an image whose rows see each other in both
//! directions. And a beginning that is cached is the same only if its media are: so in a sequence's history the
//! tokens of media stand as ids above every vocabulary, made from what the media are. Whoever compares
//! beginnings by tokens, as sessions and snapshots do, then compares media too.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use carat_model::{MediaSpan, SpanAttention};

use crate::error::Error;

/// From here on ids stand for media; vocabularies are far smaller.
pub(crate) const FIRST_MEDIA_ID: u32 = 1 << 31;

/// What an image or a sound became, in its place in a prompt.
#[derive(Clone, PartialEq)]
pub struct Media {
    /// Its tokens in the prompt; what ids stand there has no meaning.
    pub tokens: Range<usize>,
    /// As many rows of the model's width, as a media encoder gives them.
    pub rows: Arc<[f32]>,
    /// Which of the rows see each other.
    pub attention: SpanAttention,
    /// A hash of what it was made from: equal for equal media only.
    pub content: u64,
}

impl std::fmt::Debug for Media {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Media")
            .field("tokens", &self.tokens)
            .field("attention", &self.attention)
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

/// The prompt with the ids of its media in their places.
///
/// # Errors
/// [`Error::MediaPlace`] when media lie outside the prompt, over each other or out of order, or have no whole rows.
pub(crate) fn with_media_ids<'a>(prompt: &'a [u32], media: &[Media]) -> Result<Cow<'a, [u32]>, Error> {
    let mut free = 0;
    for one in media {
        let Range { start, end } = one.tokens;
        let n = end.saturating_sub(start);
        if start < free
            || end > prompt.len()
            || n == 0
            || one.rows.is_empty()
            || !one.rows.len().is_multiple_of(n)
        {
            let n_prompt = prompt.len();
            return Err(Error::MediaPlace { start, end, n_prompt });
        }
        free = end;
    }
    if media.is_empty() {
        return Ok(Cow::Borrowed(prompt));
    }
    let mut ids = prompt.to_vec();
    for one in media {
        for (i, id) in ids[one.tokens.clone()].iter_mut().enumerate() {
            *id = FIRST_MEDIA_ID | (mix(one.content.wrapping_add(i as u64)) >> 33) as u32;
        }
    }
    Ok(Cow::Owned(ids))
}

/// A number that looks like chance (the finalizer of splitmix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How many of the tokens from `first` on may be computed together where `n` are asked for: so many fewer, or if that
/// leaves none so many more, that no image is cut.
pub(crate) fn uncut(media: &[Media], first: usize, n: usize) -> usize {
    let end = first + n;
    let is_cut = |one: &&Media| {
        one.attention == SpanAttention::Bidirectional && one.tokens.start < end && end < one.tokens.end
    };
    match media.iter().find(is_cut) {
        Some(one) if n > 0 && one.tokens.start > first => one.tokens.start - first,
        Some(one) if n > 0 => one.tokens.end - first,
        _ => n,
    }
}

/// The media among `tokens` of the prompt, as the model takes them.
pub(crate) fn within(media: &[Media], tokens: Range<usize>) -> Vec<MediaSpan<'_>> {
    let part = |one: &'_ Media| {
        let both = one.tokens.start.max(tokens.start)..one.tokens.end.min(tokens.end);
        (!both.is_empty()).then(|| {
            (
                both.start - tokens.start,
                both.start - one.tokens.start,
                both.len(),
            )
        })
    };
    let spans = media.iter().filter_map(|one| Some((one, part(one)?)));
    spans
        .map(|(one, (start, first, n))| {
            let width = one.rows.len() / one.tokens.len().max(1);
            MediaSpan {
                start,
                rows: &one.rows[first * width..(first + n) * width],
                attention: one.attention,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(tokens: Range<usize>, attention: SpanAttention, content: u64) -> Media {
        Media {
            rows: vec![0.0; 2 * tokens.len()].into(),
            tokens,
            attention,
            content,
        }
    }

    #[test]
    fn no_image_is_cut() {
        let all = [
            media(3..8, SpanAttention::Bidirectional, 1),
            media(9..20, SpanAttention::Causal, 2),
        ];
        for (first, n, expected) in [
            (0, 3, 3),
            (0, 5, 3),
            (0, 8, 8),
            (0, 12, 12),
            (3, 2, 5),
            (3, 9, 9),
            (5, 1, 3),
            (3, 0, 0),
        ] {
            assert_eq!(uncut(&all, first, n), expected, "{n} from {first}");
        }
    }

    #[test]
    fn a_sound_may_be_cut_and_its_rows_with_it() {
        let all = [media(2..6, SpanAttention::Causal, 1)];
        let spans = within(&all, 4..9);
        assert_eq!((spans.len(), spans[0].start, spans[0].rows.len()), (1, 0, 4));
        let spans = within(&all, 0..3);
        assert_eq!((spans.len(), spans[0].start, spans[0].rows.len()), (1, 2, 2));
        assert!(within(&all, 6..9).is_empty());
    }

    #[test]
    fn histories_differ_as_media_do() {
        let prompt = [1, 7, 7, 7, 2];
        let ids = |content| {
            let media = [media(1..4, SpanAttention::Bidirectional, content)];
            with_media_ids(&prompt, &media).unwrap().into_owned()
        };
        assert_eq!(ids(5), ids(5));
        assert!((1..4).all(|i| ids(5)[i] != ids(6)[i] && ids(5)[i] >= FIRST_MEDIA_ID));
        assert_eq!((ids(5)[0], ids(5)[4]), (1, 2));
    }

    #[test]
    fn misplaced_media_are_refused() {
        let causal = |tokens| media(tokens, SpanAttention::Causal, 0);
        for wrong in [
            vec![causal(3..6)],
            vec![causal(2..2)],
            vec![causal(0..2), causal(1..3)],
            vec![causal(2..3), causal(0..1)],
        ] {
            assert!(matches!(
                with_media_ids(&[0; 5], &wrong),
                Err(Error::MediaPlace { .. })
            ));
        }
    }
}
