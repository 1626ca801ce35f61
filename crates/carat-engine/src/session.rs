//! Generating for one conversation, for one request or for many at once.

use std::ops::ControlFlow;

use carat_model::{LanguageModel, SequenceCache};
use carat_text::Tokenizer;

use crate::draft::Planner;
use crate::error::Error;
use crate::generation::{Answer, Generation, run};
use crate::media::with_media_ids;
use crate::request::{Event, Finished, Request};
use crate::sequence::Sequence;

/// A conversation: a cache that lives from one prompt to the next.
///
/// Each prompt is the *whole* conversation so far as token ids. The longest beginning that equals what is cached
/// is not computed again; when local layers have already forgotten what going back would need, the prompt is
/// computed from its start. Either way the answer is the same, only the time differs.
#[derive(Debug)]
pub struct Session<C> {
    sequence: Sequence<C>,
    logits: Vec<f32>,
    planner: Planner,
}

impl<C: SequenceCache> Session<C> {
    /// A session whose prompt and answer together take at most `n_max` tokens.
    ///
    /// # Errors
    /// [`Error::Model`] when the model has no cache of that size.
    pub fn new<M: LanguageModel<Cache = C>>(model: &M, n_max: usize) -> Result<Self, Error> {
        let cache = model.new_cache(n_max).map_err(Error::model)?;
        Ok(Self {
            sequence: Sequence::new(cache),
            logits: Vec::new(),
            planner: Planner::default(),
        })
    }

    /// A session that goes on from a cache of `tokens`, as [`Session::cached`] gave them earlier.
    ///
    /// # Errors
    /// [`Error::CacheLength`] when the cache holds another number of tokens.
    pub fn resume(tokens: Vec<u32>, cache: C) -> Result<Self, Error> {
        Ok(Self {
            sequence: Sequence::cached(tokens, cache)?,
            logits: Vec::new(),
            planner: Planner::default(),
        })
    }

    /// The tokens that are cached now, those of media by ids of their own, and the cache.
    #[must_use]
    pub fn cached(&self) -> (&[u32], &C) {
        (&self.sequence.tokens()[..self.n_cached()], self.sequence.cache())
    }

    /// Tokens whose keys and values are cached now.
    #[must_use]
    pub fn n_cached(&self) -> usize {
        self.sequence.n_cached()
    }

    /// Tokens that prompt and answer together may have.
    #[must_use]
    pub fn n_max(&self) -> usize {
        self.sequence.n_max()
    }

    /// Answers `request`, telling `on_event` what happens; `Break` from it cancels.
    ///
    /// A cancelled or failed generation leaves the session usable: what was computed stays cached.
    ///
    /// # Errors
    /// When the request makes no sense, its prompt does not fit, or the model fails.
    pub fn generate<M: LanguageModel<Cache = C>>(
        &mut self,
        model: &mut M,
        tokenizer: &Tokenizer,
        request: &Request,
        mut on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Finished, Error> {
        let answer = Answer::new(request, tokenizer, model.vocab_size())?;
        let n_reused = self
            .sequence
            .begin(&with_media_ids(&request.prompt, &request.media)?)?;
        let spare = Sequence::new(model.new_cache(self.n_max()).map_err(Error::model)?);
        let sequence = std::mem::replace(&mut self.sequence, spare);
        let mut generation = Generation::new(request.clone(), sequence, answer, None);
        generation.set_reused(n_reused);
        let mut generations = [generation];
        let result = run(
            model,
            tokenizer,
            &mut self.planner,
            &mut generations,
            &mut self.logits,
            &mut |_, event| on_event(event),
        );
        let [generation] = generations;
        let (sequence, end) = generation.into_parts();
        self.sequence = sequence;
        result?;
        end.unwrap_or(Err(Error::Cancelled))
    }
}

/// Answers one request on a fresh cache of `n_max` tokens. See [`Session::generate`].
///
/// # Errors
/// When the request makes no sense, its prompt does not fit, or the model fails.
pub fn generate<M: LanguageModel>(
    model: &mut M,
    tokenizer: &Tokenizer,
    n_max: usize,
    request: &Request,
    on_event: impl FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Finished, Error> {
    Session::new(model, n_max)?.generate(model, tokenizer, request, on_event)
}

/// Answers several requests together, each on a fresh cache of `n_max` tokens.
///
/// `on_event` gets the request's index; `Break` cancels that request only. The answers are the same as one by
/// one, in the order of the requests.
///
/// # Errors
/// When a request makes no sense (nothing has run then) or the model fails (no request finishes then).
pub fn generate_batch<M: LanguageModel>(
    model: &mut M,
    tokenizer: &Tokenizer,
    n_max: usize,
    requests: &[Request],
    mut on_event: impl FnMut(usize, Event<'_>) -> ControlFlow<()>,
) -> Result<Vec<Finished>, Error> {
    let mut generations = requests
        .iter()
        .map(|request| {
            let answer = Answer::new(request, tokenizer, model.vocab_size())?;
            let mut sequence = Sequence::new(model.new_cache(n_max).map_err(Error::model)?);
            sequence.begin(&with_media_ids(&request.prompt, &request.media)?)?;
            Ok(Generation::new(request.clone(), sequence, answer, None))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let planner = &mut Planner::default();
    let logits = &mut Vec::new();
    run(model, tokenizer, planner, &mut generations, logits, &mut on_event)?;
    generations
        .into_iter()
        .map(|generation| generation.into_parts().1.unwrap_or(Err(Error::Cancelled)))
        .collect()
}
