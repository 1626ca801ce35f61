//! One running generation, and a forward pass over several of them.
//!
//! A generation owns its request, its sequence (tokens and cache) and what turns logits into text. Who steps it
//! is not its concern: [`run`] does it for a session or a fixed batch, the scheduler for a server's. A pass
//! computes some tokens of each, then each whose tokens are all computed chooses its next one. What a sequence
//! says does not depend on its company.

use std::ops::ControlFlow;
use std::time::Instant;

use carat_model::{LanguageModel, LogitRows, Segment, SequenceCache, TokenLogit};
use carat_text::{ControlText, StreamDecoder, Tokenizer};

use crate::constraint::Constraint;
use crate::draft::{Draft, Planner};
use crate::error::Error;
use crate::logprobs::token_logprobs;
use crate::media::{uncut, within};
use crate::request::{Event, FinishReason, Finished, Request, Timings, Usage};
use crate::sampler::Sampler;
use crate::selection::Candidate;
use crate::sequence::Sequence;
use crate::stop_strings::{Flow, StopStrings};

/// Receives the events of the generation with this index; `Break` cancels that generation.
pub(crate) type OnEvent<'f> = dyn FnMut(usize, Event<'_>) -> ControlFlow<()> + 'f;

/// What a pass predicts.
#[derive(Clone, Copy)]
pub(crate) struct Predictions<'a> {
    /// `[rows, width]` of those that wanted whole rows.
    pub(crate) logits: &'a [f32],
    pub(crate) width: usize,
    /// Of each that wanted no more, the largest logits.
    pub(crate) top: &'a [Vec<TokenLogit>],
}

/// What is predicted after one token.
#[derive(Clone, Copy)]
enum Row<'a> {
    Whole(&'a [f32]),
    Top(&'a [TokenLogit]),
}

/// What turns a request's logits into its answer: everything but the tokens and the cache.
pub(crate) struct Answer {
    sampler: Sampler,
    decoder: StreamDecoder,
    stops: StopStrings,
    n_reused: usize,
    n_generated: usize,
    started: Instant,
    first_chosen: Option<Instant>,
    last_chosen: Instant,
    finished: Option<Finished>,
    text: String,
    scratch: Vec<Candidate>,
}

impl Answer {
    /// Checks the request; `n_rows` is the width of the model's logits.
    ///
    /// # Errors
    /// When the request makes no sense.
    pub(crate) fn new(request: &Request, tokenizer: &Tokenizer, n_rows: usize) -> Result<Self, Error> {
        if request.max_tokens == Some(0) {
            return Err(Error::NoTokensAllowed);
        }
        let now = Instant::now();
        let params = request.sampling.clone();
        Ok(Self {
            sampler: Sampler::new(params, n_rows, tokenizer.len(), &request.suppressed)?,
            decoder: StreamDecoder::new(ControlText::Hide),
            stops: StopStrings::new(&request.stop_strings)?,
            n_reused: 0,
            n_generated: 0,
            started: now,
            first_chosen: None,
            last_chosen: now,
            finished: None,
            text: String::new(),
            scratch: Vec::new(),
        })
    }
}

/// A request on its sequence, between its first chunk and its end.
pub(crate) struct Generation<C> {
    pub(crate) request: Request,
    pub(crate) sequence: Sequence<C>,
    /// What it guesses ahead.
    pub(crate) draft: Draft,
    answer: Answer,
    /// Boxed: it is large, most have none, and thousands may wait.
    constraint: Option<Box<Constraint>>,
    /// For a vector instead of an answer: the sum of the hidden states so far.
    embedding: Option<Vec<f32>>,
    /// Of the next token, only the largest logits were asked for.
    wants_top: bool,
    /// Why it cannot go on; set instead of an end.
    failure: Option<Error>,
}

impl<C: SequenceCache> Generation<C> {
    /// Joins the parts; the sequence holds the request's prompt.
    pub(crate) fn new(
        request: Request,
        sequence: Sequence<C>,
        answer: Answer,
        constraint: Option<Constraint>,
    ) -> Self {
        Self {
            draft: Draft::new(request.drafting),
            request,
            sequence,
            answer,
            constraint: constraint.map(Box::new),
            embedding: None,
            wants_top: false,
            failure: None,
        }
    }

    /// The same for one vector instead of an answer.
    pub(crate) fn into_embedding(self) -> Self {
        Self {
            embedding: Some(Vec::new()),
            ..self
        }
    }

    /// Whether one vector is wanted instead of an answer.
    pub(crate) fn is_embedding(&self) -> bool {
        self.embedding.is_some()
    }

    /// Its cache is empty again: what was summed up is computed again too.
    pub(crate) fn forget_sum(&mut self) {
        if let Some(sum) = &mut self.embedding {
            sum.clear();
        }
    }

    /// The mean of all hidden states, of length 1; `None` before the end, and where no vector is wanted.
    pub(crate) fn take_vector(&mut self) -> Option<Vec<f32>> {
        if self.failure.is_some() || self.answer.finished.is_some() || self.sequence.n_pending() > 0 {
            return None;
        }
        let mut vector = self.embedding.take()?;
        let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|x| *x /= norm.max(f32::MIN_POSITIVE));
        Some(vector)
    }

    /// Adds hidden states `[n, d_model]` to the sum; fails where the model shows none.
    fn add_hidden(&mut self, rows: &[f32], width: usize) {
        let Some(sum) = &mut self.embedding else { return };
        if width == 0 {
            self.fail(Error::NoEmbeddings);
            return;
        }
        sum.resize(width, 0.0);
        for row in rows.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
    }

    /// The sequence and the end, once it has come, or the failure.
    pub(crate) fn into_parts(self) -> (Sequence<C>, Option<Result<Finished, Error>>) {
        let end = match (self.failure, self.answer.finished) {
            (Some(error), _) => Some(Err(error)),
            (None, finished) => finished.map(Ok),
        };
        (self.sequence, end)
    }

    /// Whether it has ended, well or not.
    pub(crate) fn is_over(&self) -> bool {
        let is_summed = self.embedding.is_some() && self.sequence.n_pending() == 0;
        self.answer.finished.is_some() || self.failure.is_some() || is_summed
    }

    /// Whether its next step computes the one token chosen last.
    pub(crate) fn is_decoding(&self) -> bool {
        self.answer.n_generated > 0 && self.n_wanted() == 1
    }

    /// Tokens chosen so far.
    pub(crate) fn n_generated(&self) -> usize {
        self.answer.n_generated
    }

    /// Records that the first `n` tokens of the prompt came from elsewhere, unless it has begun already.
    pub(crate) fn set_reused(&mut self, n: usize) {
        if self.answer.n_generated == 0 {
            self.answer.n_reused = n;
        }
    }

    /// Starts the clock anew: waiting for a place is no prefill.
    pub(crate) fn restart_clock(&mut self) {
        if self.answer.first_chosen.is_none() {
            self.answer.started = Instant::now();
        }
    }

    /// As many tokens as can be computed together where `n` are asked for: no image is cut.
    pub(crate) fn uncut(&self, n: usize) -> usize {
        uncut(&self.request.media, self.sequence.n_cached(), n)
    }

    /// Tokens that wait to be computed; 0 when the generation has ended.
    pub(crate) fn n_wanted(&self) -> usize {
        if self.is_over() {
            0
        } else {
            self.sequence.n_pending()
        }
    }

    /// Most tokens that may be guessed ahead now: those that the answer and the context have room for.
    pub(crate) fn draft_limit(&self) -> usize {
        let sequence = &self.sequence;
        let in_answer =
            (self.request.max_tokens).map_or(usize::MAX, |n| n.saturating_sub(self.answer.n_generated));
        let in_context = sequence.n_max().saturating_sub(sequence.n_tokens());
        // The model's own choice takes the last place.
        in_answer.min(in_context).saturating_sub(1)
    }

    /// Cuts the guesses where a grammar or the vocabulary forbids them or the answer would end: the choice of a stop
    /// token needs no guess. Returns how many are left.
    pub(crate) fn keep_allowed_guesses(&mut self, vocab_size: usize) -> usize {
        let stop_ids = &self.request.stop_ids;
        let goes_on = |id: &&u32| (**id as usize) < vocab_size && !stop_ids.contains(id);
        let mut n = self.draft.guesses().iter().take_while(goes_on).count();
        if let Some(constraint) = &mut self.constraint {
            n = constraint.n_allowed(&self.draft.guesses()[..n]).min(n);
        }
        self.draft.shorten(n);
        n
    }

    /// Ends it without an answer.
    pub(crate) fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
    }

    /// What the choice of its next token needs to know, where the model gives up to `max_top` of the largest logits.
    fn next_rows(&mut self, max_top: usize) -> LogitRows {
        let is_plain = self.constraint.is_none() && self.request.logprobs.is_none();
        let n_top = self.answer.sampler.n_top().filter(|n| is_plain && *n <= max_top);
        self.wants_top = n_top.is_some();
        n_top.map_or(LogitRows::Last, LogitRows::Top)
    }

    /// Reports progress after a chunk; with what is predicted after the last token, and after guesses behind it, chooses
    /// the next ones.
    fn advance<'a>(
        &mut self,
        tokenizer: &Tokenizer,
        rows: impl ExactSizeIterator<Item = Row<'a>>,
        on_event: &mut Emit<'_>,
    ) {
        if self.answer.n_generated == 0 && !self.is_embedding() {
            let n_done = self.sequence.n_cached();
            let n_prompt = self.request.prompt.len();
            if on_event(Event::Prefill { n_done, n_prompt }).is_break() {
                self.finish(FinishReason::Cancelled, on_event);
                return;
            }
        }
        let n_before = self.sequence.n_cached() - rows.len();
        let mut n_chosen = 0;
        for row in rows {
            let id = match self.choose(row) {
                Ok(id) => id,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            };
            let goes_on = self.draft.compare(n_chosen, id);
            n_chosen += 1;
            self.accept(tokenizer, id, row, on_event);
            if self.is_over() || !goes_on {
                break;
            }
        }
        if self.draft.chain().is_some() {
            self.draft.settle();
            // The first row's token was chosen in an earlier pass, each further one's by the row before it.
            if let Err(error) = self.sequence.take_back(n_before + n_chosen.max(1)) {
                self.fail(error);
            }
        }
    }

    /// The next token; a constraint must have prepared its mask.
    fn choose(&mut self, row: Row<'_>) -> Result<u32, Error> {
        let logits = match row {
            Row::Whole(logits) => logits,
            Row::Top(top) => return self.answer.sampler.sample_top(top),
        };
        let allowed = match &mut self.constraint {
            Some(constraint) => constraint.mask()?,
            None => None,
        };
        let id = self
            .answer
            .sampler
            .sample_allowed(logits, self.sequence.tokens(), allowed)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(id)?;
        }
        Ok(id)
    }

    /// Takes a chosen token: stop ids, text, stop strings, limits, in this order.
    fn accept(&mut self, tokenizer: &Tokenizer, id: u32, row: Row<'_>, on_event: &mut Emit<'_>) {
        let answer = &mut self.answer;
        answer.n_generated += 1;
        answer.last_chosen = Instant::now();
        answer.first_chosen.get_or_insert(answer.last_chosen);
        if self.request.stop_ids.contains(&id) {
            self.finish(FinishReason::Stop, on_event);
            return;
        }
        self.sequence.push(id);
        answer.text.clear();
        let piece = answer.decoder.push(tokenizer, id);
        let flow = if tokenizer.is_special(id) {
            answer.stops.push_mark(piece, &mut answer.text)
        } else {
            answer.stops.push(piece, &mut answer.text)
        };
        let logprobs = match (self.request.logprobs, row) {
            (Some(n_top), Row::Whole(logits)) => Some(token_logprobs(logits, id, n_top, &mut answer.scratch)),
            _ => None,
        };
        let reply = on_event(Event::Token {
            id,
            text: &answer.text,
            logprobs: logprobs.as_ref(),
        });
        let n_generated = answer.n_generated;
        let reason = if flow == Flow::Stop {
            FinishReason::StopString
        } else if reply.is_break() {
            FinishReason::Cancelled
        } else if self
            .constraint
            .as_ref()
            .is_some_and(|constraint| constraint.is_complete())
        {
            FinishReason::Stop
        } else if self.request.max_tokens.is_some_and(|n| n_generated >= n) {
            FinishReason::Length
        } else if self.sequence.n_tokens() == self.sequence.n_max() {
            FinishReason::ContextFull
        } else {
            return;
        };
        self.finish(reason, on_event);
    }

    /// Ends it.
    pub(crate) fn finish(&mut self, reason: FinishReason, on_event: &mut Emit<'_>) {
        let answer = &mut self.answer;
        let mut text = String::new();
        if reason != FinishReason::StopString {
            // The last bytes may complete a stop string too, and then end before it.
            if answer.stops.push(answer.decoder.finish(), &mut text) == Flow::Continue {
                answer.stops.finish(&mut text);
            }
        }
        let n_prompt = self.request.prompt.len();
        let first_chosen = answer.first_chosen.unwrap_or_else(Instant::now);
        let finished = answer.finished.insert(Finished {
            reason,
            stop_string: answer.stops.found(),
            text,
            usage: Usage {
                n_prompt,
                n_reused: answer.n_reused,
                n_generated: answer.n_generated,
                n_max: self.sequence.n_max(),
            },
            timings: Timings {
                n_prefilled: self
                    .sequence
                    .n_cached()
                    .min(n_prompt)
                    .saturating_sub(answer.n_reused),
                prefill: first_chosen.saturating_duration_since(answer.started),
                n_decoded: answer.n_generated.saturating_sub(1),
                decode: answer.last_chosen.saturating_duration_since(first_chosen),
            },
            drafts: self.draft.counts(),
        });
        // Nothing is left to cancel: the answer to the last event has no meaning.
        let _last = on_event(Event::Finished(finished));
    }
}

/// Receives one generation's events.
pub(crate) type Emit<'f> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'f;

/// What one generation does in a pass.
pub(crate) struct Work<'g, C> {
    /// Whose tokens.
    pub(crate) generation: &'g mut Generation<C>,
    /// How many of them, at least 1.
    pub(crate) n: usize,
}

/// Steps until every generation has ended.
///
/// - `logits`: kept by the caller between runs so that it is allocated once
///
/// # Errors
/// The model's errors and those of single generations; the others that have not ended by then stay unfinished.
pub(crate) fn run<M: LanguageModel>(
    model: &mut M,
    tokenizer: &Tokenizer,
    planner: &mut Planner,
    generations: &mut [Generation<M::Cache>],
    logits: &mut Vec<f32>,
    on_event: &mut OnEvent<'_>,
) -> Result<(), Error> {
    let mut shares = Vec::new();
    loop {
        share_batch(generations, model.max_batch_tokens().max(1), &mut shares);
        draft(model, planner, generations, &shares)?;
        let mut indices = Vec::with_capacity(generations.len());
        let mut work = Vec::with_capacity(generations.len());
        for (i, (generation, &n)) in generations.iter_mut().zip(&shares).enumerate() {
            if n > 0 {
                indices.push(i);
                work.push(Work { generation, n });
            }
        }
        if work.is_empty() {
            return Ok(());
        }
        pass(model, planner, &mut work, logits)?;
        let predictions = Predictions::of(model, logits);
        advance(predictions, tokenizer, &mut work, &mut |i, event| {
            on_event(indices[i], event)
        });
        work.iter_mut()
            .for_each(|w| planner.record_outcome(&mut w.generation.draft));
        if let Some(error) = generations.iter_mut().find_map(|g| g.failure.take()) {
            return Err(error);
        }
    }
}

/// Guesses ahead for all, when nobody's prompt is being computed.
fn draft<M: LanguageModel>(
    model: &mut M,
    planner: &mut Planner,
    generations: &mut [Generation<M::Cache>],
    shares: &[usize],
) -> Result<(), Error> {
    let mut decoding: Vec<&mut Generation<M::Cache>> = Vec::with_capacity(generations.len());
    for (generation, _) in generations.iter_mut().zip(shares).filter(|(_, n)| **n > 0) {
        if !generation.is_decoding() {
            return Ok(());
        }
        decoding.push(generation);
    }
    let most_rows = model.max_batch_tokens();
    planner.draft(model, &mut decoding, most_rows)
}

/// How many tokens each generation computes in the next step: decoding ones first, then chunks of prompts.
fn share_batch<C: SequenceCache>(generations: &[Generation<C>], mut budget: usize, shares: &mut Vec<usize>) {
    shares.clear();
    shares.resize(generations.len(), 0);
    for decoding in [true, false] {
        for (share, generation) in shares.iter_mut().zip(generations) {
            if generation.is_decoding() == decoding {
                *share = generation.uncut(generation.n_wanted().min(budget));
                // An image that is longer than the batch is computed whole.
                budget = budget.saturating_sub(*share);
            }
        }
    }
}

/// One forward pass. Masks of constraints are computed beside it, on a thread of their own.
///
/// # Errors
/// The model's, and [`Error::LogitsShape`], [`Error::CacheLength`] when it breaks its contract.
pub(crate) fn pass<M: LanguageModel>(
    model: &mut M,
    planner: &mut Planner,
    work: &mut [Work<'_, M::Cache>],
    logits: &mut Vec<f32>,
) -> Result<(), Error> {
    let only_decodes = work.iter().all(|w| w.generation.is_decoding());
    let width = model.vocab_size();
    let mut segments = Vec::with_capacity(work.len());
    let mut media = Vec::with_capacity(work.len());
    let mut masks = Vec::new();
    let mut n_cached = Vec::with_capacity(work.len());
    let (mut n_rows, mut n_topped) = (0, 0);
    for Work { generation, n } in work.iter_mut() {
        let is_embedding = generation.is_embedding();
        let is_last = *n == generation.n_wanted() && !is_embedding;
        let next_rows = generation.next_rows(model.max_top());
        let Generation {
            request,
            sequence,
            draft,
            constraint,
            ..
        } = &mut **generation;
        masks.extend(constraint.as_deref_mut().filter(|_| is_last));
        let first = sequence.n_cached();
        let (tokens, cache) = sequence.work(*n);
        media.push(within(&request.media, first..first + *n));
        let (tokens, logits) = match draft.chain() {
            Some(chain) => (chain, LogitRows::All),
            None if is_embedding => (tokens, LogitRows::Hidden),
            None if is_last => (tokens, next_rows),
            None => (tokens, LogitRows::None),
        };
        n_cached.push(first + tokens.len());
        n_rows += logits.count(tokens.len());
        n_topped += usize::from(matches!(logits, LogitRows::Top(_)));
        segments.push((tokens, cache, logits));
    }
    let mut batch = Vec::with_capacity(segments.len());
    for ((tokens, cache, logits), media) in segments.into_iter().zip(&media) {
        batch.push(Segment {
            tokens,
            media,
            cache,
            logits,
        });
    }
    let started = Instant::now();
    if masks.is_empty() {
        model.forward(&mut batch, logits).map_err(Error::model)?;
    } else {
        std::thread::scope(|scope| {
            // Where the system gives no thread, each is prepared when its token is chosen.
            let _prepared_or_later = std::thread::Builder::new().spawn_scoped(scope, || {
                masks.iter_mut().for_each(|constraint| constraint.prepare())
            });
            model.forward(&mut batch, logits).map_err(Error::model)
        })?;
    }
    if only_decodes {
        planner.record_pass(n_rows + n_topped, started.elapsed().as_secs_f64());
    }
    let expected = n_rows * width;
    if logits.len() != expected {
        let found = logits.len();
        return Err(Error::LogitsShape { expected, found });
    }
    let found = model.top().len();
    if found != n_topped {
        let expected = n_topped;
        return Err(Error::LogitsShape { expected, found });
    }
    for (Work { generation, .. }, expected) in work.iter().zip(n_cached) {
        generation.sequence.check_cached(expected)?;
    }
    add_hidden(model.hidden(), work);
    Ok(())
}

/// Shares a pass's hidden states out among those that want a vector.
fn add_hidden<C: SequenceCache>(mut hidden: &[f32], work: &mut [Work<'_, C>]) {
    let is_wanted = |w: &&mut Work<'_, C>| w.generation.is_embedding();
    let n_rows: usize = work.iter_mut().filter(is_wanted).map(|w| w.n).sum();
    // A model that shows none, or another number, gives no vector.
    let width = if n_rows > 0 && hidden.len().is_multiple_of(n_rows) {
        hidden.len() / n_rows
    } else {
        0
    };
    for Work { generation, n } in work.iter_mut().filter(is_wanted) {
        let (rows, rest) = hidden.split_at((*n * width).min(hidden.len()));
        generation.add_hidden(rows, width);
        hidden = rest;
    }
}

impl<'a> Predictions<'a> {
    /// Of a model's last pass, which gave these logits.
    pub(crate) fn of(model: &'a impl LanguageModel, logits: &'a [f32]) -> Predictions<'a> {
        Predictions {
            logits,
            width: model.vocab_size(),
            top: model.top(),
        }
    }
}

/// What follows from a pass, for each generation in it.
pub(crate) fn advance<C: SequenceCache>(
    predictions: Predictions<'_>,
    tokenizer: &Tokenizer,
    work: &mut [Work<'_, C>],
    on_event: &mut OnEvent<'_>,
) {
    let Predictions { logits, width, top } = predictions;
    let (mut logits, mut top) = (logits, top);
    for (i, Work { generation, .. }) in work.iter_mut().enumerate() {
        // What was wanted before the pass is done, or a chunk of it is.
        let without = usize::from(generation.sequence.n_pending() == 0 && !generation.is_embedding());
        let on_event = &mut |event: Event<'_>| on_event(i, event);
        match generation.draft.chain() {
            None if generation.wants_top => {
                let (own, others) = top.split_at(without);
                top = others;
                generation.advance(tokenizer, own.iter().map(|top| Row::Top(top)), on_event);
            }
            chain => {
                let n_rows = chain.map_or(without, <[u32]>::len);
                let (own, others) = logits.split_at(n_rows * width);
                logits = others;
                let rows = own.chunks_exact(width.max(1)).map(Row::Whole);
                generation.advance(tokenizer, rows, on_event);
            }
        }
    }
}
