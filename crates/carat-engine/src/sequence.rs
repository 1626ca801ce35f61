//! The tokens of one sequence and how many of them its cache holds.
//!
//! `n_cached <= n_tokens <= n_max` always. The work to do is `tokens[n_cached..]`: for a fresh prompt that is all
//! of it, with a reused prefix the rest, while decoding the one token chosen last. One formula for all.

use carat_model::SequenceCache;

use crate::error::Error;

/// Token history and cache of one sequence.
#[derive(Debug)]
pub(crate) struct Sequence<C> {
    tokens: Vec<u32>,
    cache: C,
}

impl<C: SequenceCache> Sequence<C> {
    /// A sequence without tokens; `cache` is empty.
    pub(crate) fn new(cache: C) -> Self {
        Self {
            tokens: Vec::new(),
            cache,
        }
    }

    /// A sequence whose tokens are all cached.
    ///
    /// # Errors
    /// [`Error::CacheLength`] when `cache` holds another number of tokens.
    pub(crate) fn cached(tokens: Vec<u32>, cache: C) -> Result<Self, Error> {
        let sequence = Self { tokens, cache };
        sequence.check_cached(sequence.tokens.len())?;
        Ok(sequence)
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn n_cached(&self) -> usize {
        self.cache.len()
    }

    pub(crate) fn n_max(&self) -> usize {
        self.cache.max_tokens()
    }

    /// Tokens that are not cached yet.
    pub(crate) fn n_pending(&self) -> usize {
        self.tokens.len().saturating_sub(self.cache.len())
    }

    /// The next `n` tokens to compute, with the cache to put them in.
    pub(crate) fn work(&mut self, n: usize) -> (&[u32], &mut C) {
        let start = self.cache.len();
        (&self.tokens[start..start + n], &mut self.cache)
    }

    /// All tokens, and the cache.
    pub(crate) fn all(&mut self) -> (&[u32], &mut C) {
        (&self.tokens, &mut self.cache)
    }

    /// Forgets what was computed behind the first `n_cached` tokens.
    ///
    /// # Errors
    /// [`Error::CacheLength`] when the cache cannot go back to them.
    pub(crate) fn take_back(&mut self, n_cached: usize) -> Result<(), Error> {
        let _checked_below = self.cache.truncate(n_cached);
        self.check_cached(n_cached)
    }

    /// Replaces the tokens by `prompt`, keeping what the cache holds of a common beginning.
    ///
    /// Returns the number of tokens kept. The prompt's last token is always computed anew, since its logits are
    /// wanted. A cache that cannot go back to the common beginning is emptied.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`]; the sequence is then unchanged.
    pub(crate) fn begin(&mut self, prompt: &[u32]) -> Result<usize, Error> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() >= self.n_max() {
            return Err(Error::PromptTooLong {
                n_prompt: prompt.len(),
                n_max: self.n_max(),
            });
        }
        let cached = &self.tokens[..self.cache.len()];
        let common = cached
            .iter()
            .zip(&prompt[..prompt.len() - 1])
            .take_while(|(a, b)| a == b)
            .count();
        let kept = if self.cache.truncate(common) {
            common
        } else {
            let _emptied = self.cache.truncate(0);
            0
        };
        self.check_cached(kept)?;
        self.tokens.clear();
        self.tokens.extend_from_slice(prompt);
        Ok(kept)
    }

    /// Puts another cache in place, which holds the first tokens of this sequence, all but the last at most.
    ///
    /// # Errors
    /// [`Error::CacheLength`] when it holds more than that.
    pub(crate) fn adopt(&mut self, cache: C) -> Result<(), Error> {
        if cache.len() >= self.tokens.len() {
            let (expected, found) = (self.tokens.len().saturating_sub(1), cache.len());
            return Err(Error::CacheLength { expected, found });
        }
        self.cache = cache;
        Ok(())
    }

    /// The cache.
    pub(crate) fn cache(&self) -> &C {
        &self.cache
    }

    /// The tokens that are cached, and the cache.
    pub(crate) fn into_cached(mut self) -> (Vec<u32>, C) {
        self.tokens.truncate(self.cache.len());
        (self.tokens, self.cache)
    }

    /// Appends a chosen token. There must be room: `n_tokens < n_max`.
    pub(crate) fn push(&mut self, id: u32) {
        assert!(
            self.tokens.len() < self.n_max(),
            "a token was chosen for a full sequence"
        );
        self.tokens.push(id);
    }

    /// Checks that the cache holds as many tokens as it must by now.
    ///
    /// # Errors
    /// [`Error::CacheLength`]: the model did not keep to its contract. Nothing may be built on such a cache.
    pub(crate) fn check_cached(&self, expected: usize) -> Result<(), Error> {
        let found = self.cache.len();
        if found == expected {
            Ok(())
        } else {
            Err(Error::CacheLength { expected, found })
        }
    }
}
