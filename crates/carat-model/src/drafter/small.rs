//! A smaller model as drafter, with a cache of its own for each sequence.
//!
//! The cache lies in the target's cache beside the tokens that it holds. What the two have in common with the sequence
//! is kept, the rest is computed: after a round the guesses that were right are there already. Media are unknown to it;
//! it sees a blank in their place.

use crate::kv_cache::{DrafterCache, KvCache};
use crate::language_model::{DraftSegment, LanguageModel, LogitRows, Segment, SequenceCache};
use crate::{Error, Model};

/// Stands for what the smaller model has no token for.
const BLANK: u32 = 0;

/// See the module's head.
pub(crate) struct Small {
    model: Model,
    logits: Vec<f32>,
}

impl Small {
    pub(crate) fn new(model: Model) -> Small {
        Small {
            model,
            logits: Vec::new(),
        }
    }

    /// Bytes of its cache of `n_tokens` tokens.
    pub(crate) fn cache_bytes(&self, n_tokens: usize) -> usize {
        self.model.cache_bytes(n_tokens)
    }

    /// Adds guesses for each sequence, one token at a time for all together.
    ///
    /// # Errors
    /// No memory for its caches.
    pub(crate) fn draft(&mut self, batch: &mut [DraftSegment<'_, KvCache>]) -> Result<(), Error> {
        let mut latest = Vec::with_capacity(batch.len());
        for segment in batch.iter_mut() {
            latest.push(self.catch_up(segment)?);
        }
        for step in 1.. {
            let mut pass: Vec<Segment<'_, KvCache>> = Vec::with_capacity(batch.len());
            let mut indexes = Vec::with_capacity(batch.len());
            for (i, segment) in batch.iter_mut().enumerate() {
                let Some(guess) = latest[i].filter(|_| segment.n > 0) else {
                    continue;
                };
                if step == 1 {
                    segment.guesses.push(guess);
                }
                let Some(own) = segment.cache.drafter.as_mut().filter(|_| step < segment.n) else {
                    continue;
                };
                own.tokens.push(guess);
                indexes.push(i);
                pass.push(Segment {
                    tokens: &latest[i].as_slice()[..1],
                    media: &[],
                    cache: &mut own.cache,
                    logits: LogitRows::Last,
                });
            }
            if pass.is_empty() {
                break;
            }
            self.model.forward(&mut pass, &mut self.logits)?;
            drop(pass);
            let rows = self.logits.chunks_exact(self.model.vocab_size().max(1));
            for (i, row) in indexes.into_iter().zip(rows) {
                let guess = u32::try_from(super::likeliest(row)).ok();
                batch[i].guesses.extend(guess);
                latest[i] = guess;
            }
        }
        Ok(())
    }

    /// Computes what its cache lacks of a sequence; returns the first guess, or nothing for a sequence that is too long
    /// for it.
    fn catch_up(&mut self, segment: &mut DraftSegment<'_, KvCache>) -> Result<Option<u32>, Error> {
        let limit = segment.cache.max_tokens().min(self.model.context_len());
        if segment.tokens.len() + segment.n > limit || segment.tokens.is_empty() {
            return Ok(None);
        }
        let own = match &mut segment.cache.drafter {
            Some(own) => own,
            none => none.insert(Box::new(DrafterCache {
                tokens: Vec::new(),
                cache: self.model.new_cache(limit)?,
            })),
        };
        // A pass that failed has left a token without its keys.
        own.tokens.truncate(own.cache.len());
        let n_last = segment.tokens.len() - 1;
        let pairs = own.tokens.iter().zip(&segment.tokens[..n_last]);
        let mut n_common = pairs.take_while(|(a, b)| a == b).count();
        if !own.cache.truncate(n_common) {
            n_common = 0;
            let _emptied = own.cache.truncate(0);
        }
        own.tokens.truncate(n_common);
        let vocab_size = self.model.vocab_size();
        while own.tokens.len() < segment.tokens.len() {
            let rest = &segment.tokens[own.tokens.len()..];
            let part = &rest[..rest.len().min(self.model.max_batch_tokens())];
            let known = |id: &u32| if (*id as usize) < vocab_size { *id } else { BLANK };
            let tokens: Vec<u32> = part.iter().map(known).collect();
            let logits = if part.len() == rest.len() {
                LogitRows::Last
            } else {
                LogitRows::None
            };
            let mut pass = [Segment {
                tokens: &tokens,
                media: &[],
                cache: &mut own.cache,
                logits,
            }];
            self.model.forward(&mut pass, &mut self.logits)?;
            own.tokens.extend_from_slice(part);
        }
        Ok(u32::try_from(super::likeliest(&self.logits)).ok())
    }
}
