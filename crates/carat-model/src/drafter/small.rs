//! A smaller model as drafter, with a cache of its own for each sequence.
//!
//! The cache lies in the target's cache beside the tokens that it holds. What the two have in common with the sequence
//! is kept, the rest is computed: after a round the guesses that were right are there already. Of what it has to read, as
//! a prompt that the target has just finished, it reads a little each time that it is asked and guesses nothing until it
//! has read all: everybody's next token waits for it. Media are unknown to it; it sees a blank in their place.

use crate::kv_cache::{DrafterCache, KvCache};
use crate::language_model::{DraftSegment, LanguageModel, LogitRows, Segment, SequenceCache};
use crate::{Error, Model};

/// Stands for what the smaller model has no token for.
const BLANK: u32 = 0;
/// Most tokens that are read in one call, of all sequences together. A drafter of a tenth of its target's size reads so
/// many in about the time of one pass of the target; a prompt at once would hold up every stream for seconds.
const MOST_READ: usize = 128;

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

    /// Adds guesses for each sequence that it has read, one token at a time for all together.
    ///
    /// # Errors
    /// No memory for its caches.
    pub(crate) fn draft(&mut self, batch: &mut [DraftSegment<'_, KvCache>]) -> Result<(), Error> {
        let mut unread = Vec::with_capacity(batch.len());
        for (i, segment) in batch.iter_mut().enumerate() {
            unread.extend(self.unread(segment)?.map(|n| (n, i)));
        }
        // Who has a prompt to be read must not keep the others from their guesses.
        unread.sort_unstable();
        let mut room = MOST_READ.min(self.model.max_batch_tokens());
        let mut latest = vec![None; batch.len()];
        for (n_unread, i) in unread {
            let n = n_unread.min(room);
            room -= n;
            latest[i] = self.read(&mut batch[i], n)?;
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
                    logits: LogitRows::Top(1),
                });
            }
            if pass.is_empty() {
                break;
            }
            self.model.forward(&mut pass, &mut self.logits)?;
            drop(pass);
            for (i, top) in indexes.into_iter().zip(self.model.top()) {
                let guess = top.first().map(|likeliest| likeliest.id);
                batch[i].guesses.extend(guess);
                latest[i] = guess;
            }
        }
        Ok(())
    }

    /// Cuts its cache to what it has in common with a sequence; returns how many tokens are then to be read, or nothing
    /// for a sequence that is too long for it.
    fn unread(&self, segment: &mut DraftSegment<'_, KvCache>) -> Result<Option<usize>, Error> {
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
        Ok(Some(segment.tokens.len() - n_common))
    }

    /// Computes the next `n` tokens of a sequence; returns the first guess when these were the last.
    fn read(&mut self, segment: &mut DraftSegment<'_, KvCache>, n: usize) -> Result<Option<u32>, Error> {
        let Some(own) = segment.cache.drafter.as_mut().filter(|_| n > 0) else {
            return Ok(None);
        };
        let rest = &segment.tokens[own.tokens.len()..];
        let (part, is_last) = (&rest[..n], n == rest.len());
        let vocab_size = self.model.vocab_size();
        let known = |id: &u32| if (*id as usize) < vocab_size { *id } else { BLANK };
        let tokens: Vec<u32> = part.iter().map(known).collect();
        let mut pass = [Segment {
            tokens: &tokens,
            media: &[],
            cache: &mut own.cache,
            logits: if is_last {
                LogitRows::Top(1)
            } else {
                LogitRows::None
            },
        }];
        self.model.forward(&mut pass, &mut self.logits)?;
        own.tokens.extend_from_slice(part);
        Ok(if is_last {
            self.model
                .top()
                .first()
                .and_then(|top| top.first())
                .map(|likeliest| likeliest.id)
        } else {
            None
        })
    }
}
