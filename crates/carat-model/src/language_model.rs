//! The seam between the models and whoever runs them.
//!
//! The engine knows a model only through [`LanguageModel`]: give it the new tokens of one or many
//! sequences, each with its cache, and get rows of logits back. The cache and the error are associated
//! types, not fixed ones, so that the engine's tests run on a fake model with a fake cache and so that a
//! second backend may keep its cache elsewhere; the engine is generic over the model and never looks inside.
//!
//! A model knows no request, no time and no randomness: the same segments on the same caches give the same
//! logits. How tokens are cut into calls, and what else is in a batch, changes rounding only.

/// Which rows of a segment the caller wants logits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: the tokens are only written to the cache (all but the last chunk of a prompt).
    None,
    /// The last token's row: what sampling needs.
    Last,
    /// Of the last token's row only the so many largest, which [`LanguageModel::top`] gives: all that sampling needs
    /// of most requests, and less work. At most [`LanguageModel::max_top`].
    Top(usize),
    /// Every token's row: scoring and checking a draft. A few rows ([`MAX_CHAIN`](crate::MAX_CHAIN)) are computed as
    /// decoding them one after another would.
    All,
    /// None, but every token's last hidden state: see [`LanguageModel::hidden`].
    Hidden,
}

impl LogitRows {
    /// Whole rows wanted of a segment of `n_tokens` tokens.
    #[must_use]
    pub fn count(self, n_tokens: usize) -> usize {
        match self {
            Self::None | Self::Hidden | Self::Top(_) => 0,
            Self::Last => n_tokens.min(1),
            Self::All => n_tokens,
        }
    }

    /// Rows of a segment of `n_tokens` tokens from which something is predicted.
    pub(crate) fn predicting(self, n_tokens: usize) -> usize {
        match self {
            Self::Top(_) => n_tokens.min(1),
            _ => self.count(n_tokens),
        }
    }

    /// Rows that the last layers compute of a segment of `n_tokens` tokens.
    pub(crate) fn computed(self, n_tokens: usize) -> usize {
        match self {
            Self::Hidden => n_tokens,
            _ => self.predicting(n_tokens),
        }
    }
}

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogit {
    /// Token id.
    pub id: u32,
    /// Its logit.
    pub logit: f32,
}

/// Which of a span's rows see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanAttention {
    /// Each sees what comes before it, as text does: sounds.
    Causal,
    /// All see all, in the layers where the model has it so: images and frames of a video. Models that never
    /// have it so take these spans as causal.
    Bidirectional,
}

/// Rows that take the place of embedded tokens: what an image or a sound became.
///
/// A bidirectional span is computed in one pass: all of its rows are in one segment.
#[derive(Debug, Clone, Copy)]
pub struct MediaSpan<'a> {
    /// Index of its first row among the segment's tokens. What ids stand there has no meaning.
    pub start: usize,
    /// `[n, d_model]`, as they enter the first layer: they are not scaled as embeddings are.
    pub rows: &'a [f32],
    /// Which of the rows see each other.
    pub attention: SpanAttention,
}

/// What one sequence contributes to a forward pass.
pub struct Segment<'a, C> {
    /// Token ids, in order; they are appended to the cache. Never empty.
    pub tokens: &'a [u32],
    /// Rows that stand in the place of some of the tokens, in order, none over another.
    pub media: &'a [MediaSpan<'a>],
    /// The sequence's cache; its length before the call is the position of `tokens[0]`.
    pub cache: &'a mut C,
    /// Which rows' logits are wanted.
    pub logits: LogitRows,
}

/// One sequence whose next tokens a drafter is asked to guess.
pub struct DraftSegment<'a, C> {
    /// All of its tokens; the cache holds all but the last. Ids beyond the vocabulary stand for media.
    pub tokens: &'a [u32],
    /// The sequence's cache.
    pub cache: &'a mut C,
    /// How many guesses are wanted.
    pub n: usize,
    /// Guesses are appended here: `n` of them, or fewer where the drafter has no more to say. None while it still has
    /// tokens to read: it reads some at every call, so that no call takes long.
    pub guesses: &'a mut Vec<u32>,
}

/// The keys and values that a sequence has computed so far.
pub trait SequenceCache {
    /// Tokens held; the position of the next token.
    fn len(&self) -> usize;

    /// Whether nothing is held yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most tokens that can be held.
    fn max_tokens(&self) -> usize;

    /// Forgets all but the first `len` tokens and says whether that was possible.
    ///
    /// Local layers keep only their window, so going back further than what is kept is refused: the answer is
    /// `false` and the cache is unchanged. `len` 0 (empty the cache) and `len >= self.len()` (nothing to do)
    /// always succeed.
    #[must_use]
    fn truncate(&mut self, len: usize) -> bool;

    /// A second cache with the first `len` tokens, as long as [`truncate`](Self::truncate) could go back to them;
    /// `None` otherwise. The two share memory until one of them writes there.
    fn fork(&self, len: usize) -> Option<Self>
    where
        Self: Sized;

    /// Tells `visit` the name and the size in bytes of every piece of memory held. Caches that share a piece name
    /// it alike; a name is not used again while somebody holds the piece.
    fn visit_memory(&self, visit: &mut dyn FnMut(usize, usize));
}

/// A model that predicts the next token.
pub trait LanguageModel {
    /// One sequence's cache.
    type Cache: SequenceCache;
    /// Why a call could not be done.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Width of a logits row. May exceed the tokenizer's size: the extra rows are padding, never to be sampled.
    fn vocab_size(&self) -> usize;

    /// Longest sequence the model was trained for, in tokens.
    fn context_len(&self) -> usize;

    /// Most tokens in one [`forward`](Self::forward) call, summed over its segments. At least 1. Rows of
    /// bidirectional spans do not count: a pass may be longer by them, so that none need be cut.
    fn max_batch_tokens(&self) -> usize;

    /// An empty cache that may grow to `max_tokens` tokens. Its memory grows with use.
    ///
    /// # Errors
    /// When `max_tokens` exceeds [`context_len`](Self::context_len).
    fn new_cache(&self, max_tokens: usize) -> Result<Self::Cache, Self::Error>;

    /// Bytes of a cache that holds `n_tokens` tokens and shares nothing.
    fn cache_bytes(&self, n_tokens: usize) -> usize;

    /// Runs the segments' tokens, appends them to the caches and computes the wanted logits.
    ///
    /// - `logits`: `[wanted rows, vocab_size]` row-major, in segment order; resized to exactly that. Keep it
    ///   between calls so that it is allocated once.
    ///
    /// # Errors
    /// When a segment is empty, the batch is too large, media rows do not fit their segment or are too many for a
    /// span, a token id is no row of the embedding, a cache is full or
    /// memory for it cannot be had. The caches are then as before the call.
    fn forward(
        &mut self,
        batch: &mut [Segment<'_, Self::Cache>],
        logits: &mut Vec<f32>,
    ) -> Result<(), Self::Error>;

    /// `[rows, d_model]`: what the final norm made of the rows that the last pass's segments wanted as
    /// [`LogitRows::Hidden`], in their order. Empty for models that do not show it.
    fn hidden(&self) -> &[f32] {
        &[]
    }

    /// For each of the last pass's segments that wanted [`LogitRows::Top`], in their order, that many of its largest
    /// logits, the largest first: the same numbers as in the whole row. Fewer where a row has not so many that are finite.
    fn top(&self) -> &[Vec<TokenLogit>] {
        &[]
    }

    /// The most that may be asked for as [`LogitRows::Top`]; 0 for models that only give whole rows.
    fn max_top(&self) -> usize {
        0
    }

    /// Rows of one pass up to which each gives, to the bit, the logits that it gives alone.
    fn n_alike_rows(&self) -> usize {
        usize::MAX
    }

    /// Whether it has a drafter with it.
    fn drafts(&self) -> bool {
        false
    }

    /// Guesses the next tokens of sequences. The caches hold the same tokens afterwards. A model without a drafter
    /// guesses nothing.
    ///
    /// # Errors
    /// When the drafter's own memory cannot be had.
    fn draft(&mut self, _batch: &mut [DraftSegment<'_, Self::Cache>]) -> Result<(), Self::Error> {
        Ok(())
    }
}
