//! One running generation and the step loop over all of them.
//!
//! A step gives every sequence that decodes its one token first and what remains of the model's batch to chunks
//! of prompts, so that a long prompt neither stalls the others nor exceeds the batch; then one forward pass, then
//! one choice for each sequence whose tokens are all computed. One sequence is the same loop with a batch of one,
//! and what a sequence says does not depend on its company.

use std::ops::ControlFlow;
use std::time::Instant;

use carat_model::{LanguageModel, LogitRows, Segment, SequenceCache};
use carat_text::{ControlText, StreamDecoder, Tokenizer};

use crate::error::Error;
use crate::logprobs::token_logprobs;
use crate::request::{Event, FinishReason, Finished, Request, Timings, Usage};
use crate::sampler::Sampler;
use crate::selection::Candidate;
use crate::sequence::Sequence;
use crate::stop_strings::{Flow, StopStrings};

/// Receives the events of the generation with this index; `Break` cancels that generation.
pub(crate) type OnEvent<'f> = dyn FnMut(usize, Event<'_>) -> ControlFlow<()> + 'f;

/// A request on its sequence, between its first chunk and its end.
pub(crate) struct Generation<'a, C> {
    request: &'a Request,
    sequence: &'a mut Sequence<C>,
    sampler: Sampler,
    tokenizer: &'a Tokenizer,
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

impl<'a, C: SequenceCache> Generation<'a, C> {
    /// Puts the request's prompt on the sequence; `n_rows` is the width of the model's logits.
    ///
    /// # Errors
    /// When the request makes no sense or its prompt does not fit; the sequence is then unchanged.
    pub(crate) fn new(
        request: &'a Request,
        sequence: &'a mut Sequence<C>,
        tokenizer: &'a Tokenizer,
        n_rows: usize,
    ) -> Result<Self, Error> {
        if request.max_tokens == Some(0) {
            return Err(Error::NoTokensAllowed);
        }
        let sampler = Sampler::new(
            request.sampling.clone(),
            n_rows,
            tokenizer.len(),
            &request.suppressed,
        )?;
        let stops = StopStrings::new(&request.stop_strings)?;
        let n_reused = sequence.begin(&request.prompt)?;
        let now = Instant::now();
        Ok(Self {
            request,
            sequence,
            sampler,
            tokenizer,
            decoder: StreamDecoder::new(ControlText::Hide),
            stops,
            n_reused,
            n_generated: 0,
            started: now,
            first_chosen: None,
            last_chosen: now,
            finished: None,
            text: String::new(),
            scratch: Vec::new(),
        })
    }

    /// The end, once it has come.
    pub(crate) fn into_finished(self) -> Option<Finished> {
        self.finished
    }

    fn is_decoding(&self) -> bool {
        self.n_generated > 0
    }

    /// Tokens that wait to be computed; 0 when the generation has ended.
    fn n_wanted(&self) -> usize {
        if self.finished.is_some() {
            0
        } else {
            self.sequence.n_pending()
        }
    }

    /// Reports progress after a chunk; with `logits` of the last token, chooses the next one.
    fn advance(&mut self, logits: Option<&[f32]>, on_event: &mut Emit<'_>) -> Result<(), Error> {
        if !self.is_decoding() {
            let n_done = self.sequence.n_cached();
            let n_prompt = self.request.prompt.len();
            if on_event(Event::Prefill { n_done, n_prompt }).is_break() {
                self.finish(FinishReason::Cancelled, on_event);
                return Ok(());
            }
        }
        if let Some(logits) = logits {
            let id = self.sampler.sample(logits, self.sequence.tokens())?;
            self.accept(id, logits, on_event);
        }
        Ok(())
    }

    /// Takes a chosen token: stop ids, text, stop strings, limits, in this order.
    fn accept(&mut self, id: u32, logits: &[f32], on_event: &mut Emit<'_>) {
        self.n_generated += 1;
        self.last_chosen = Instant::now();
        self.first_chosen.get_or_insert(self.last_chosen);
        if self.request.stop_ids.contains(&id) {
            self.finish(FinishReason::Stop, on_event);
            return;
        }
        self.sequence.push(id);
        self.text.clear();
        let flow = self
            .stops
            .push(self.decoder.push(self.tokenizer, id), &mut self.text);
        let logprobs = self
            .request
            .logprobs
            .map(|n_top| token_logprobs(logits, id, n_top, &mut self.scratch));
        let answer = on_event(Event::Token {
            id,
            text: &self.text,
            logprobs: logprobs.as_ref(),
        });
        let reason = if flow == Flow::Stop {
            FinishReason::StopString
        } else if answer.is_break() {
            FinishReason::Cancelled
        } else if self.request.max_tokens.is_some_and(|n| self.n_generated >= n) {
            FinishReason::Length
        } else if self.sequence.n_tokens() == self.sequence.n_max() {
            FinishReason::ContextFull
        } else {
            return;
        };
        self.finish(reason, on_event);
    }

    fn finish(&mut self, reason: FinishReason, on_event: &mut Emit<'_>) {
        let mut text = String::new();
        if reason != FinishReason::StopString {
            // The last bytes may complete a stop string too, and then end before it.
            if self.stops.push(self.decoder.finish(), &mut text) == Flow::Continue {
                self.stops.finish(&mut text);
            }
        }
        let n_prompt = self.request.prompt.len();
        let first_chosen = self.first_chosen.unwrap_or_else(Instant::now);
        let finished = self.finished.insert(Finished {
            reason,
            text,
            usage: Usage {
                n_prompt,
                n_reused: self.n_reused,
                n_generated: self.n_generated,
                n_max: self.sequence.n_max(),
            },
            timings: Timings {
                n_prefilled: self
                    .sequence
                    .n_cached()
                    .min(n_prompt)
                    .saturating_sub(self.n_reused),
                prefill: first_chosen.duration_since(self.started),
                n_decoded: self.n_generated.saturating_sub(1),
                decode: self.last_chosen.saturating_duration_since(first_chosen),
            },
        });
        // Nothing is left to cancel: the answer to the last event has no meaning.
        let _last = on_event(Event::Finished(finished));
    }
}

/// Receives one generation's events.
type Emit<'f> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'f;

/// Steps until every generation has ended.
///
/// - `logits`: kept by the caller between runs so that it is allocated once
///
/// # Errors
/// The model's errors and [`Error::NoCandidate`]; the generations that have not ended by then stay unfinished.
pub(crate) fn run<M: LanguageModel>(
    model: &mut M,
    generations: &mut [Generation<'_, M::Cache>],
    logits: &mut Vec<f32>,
    on_event: &mut OnEvent<'_>,
) -> Result<(), Error> {
    let mut shares = Vec::new();
    loop {
        share_batch(generations, model.max_batch_tokens().max(1), &mut shares);
        if shares.iter().all(|&n| n == 0) {
            return Ok(());
        }
        step(model, generations, &shares, logits, on_event)?;
    }
}

/// How many tokens each generation computes in the next step: decoding ones first, then chunks of prompts.
fn share_batch<C: SequenceCache>(
    generations: &[Generation<'_, C>],
    mut budget: usize,
    shares: &mut Vec<usize>,
) {
    shares.clear();
    shares.resize(generations.len(), 0);
    for decoding in [true, false] {
        for (share, generation) in shares.iter_mut().zip(generations) {
            if generation.is_decoding() == decoding {
                *share = generation.n_wanted().min(budget);
                budget -= *share;
            }
        }
    }
}

/// One forward pass and what follows from its logits.
fn step<M: LanguageModel>(
    model: &mut M,
    generations: &mut [Generation<'_, M::Cache>],
    shares: &[usize],
    logits: &mut Vec<f32>,
    on_event: &mut OnEvent<'_>,
) -> Result<(), Error> {
    let n_rows = model.vocab_size();
    let mut batch = Vec::with_capacity(generations.len());
    let mut expected = Vec::with_capacity(generations.len());
    for (generation, &n) in generations.iter_mut().zip(shares).filter(|(_, n)| **n > 0) {
        let last = n == generation.n_wanted();
        expected.push((last, generation.sequence.n_cached() + n));
        let (tokens, cache) = generation.sequence.work(n);
        batch.push(Segment {
            tokens,
            media: &[],
            cache,
            logits: if last { LogitRows::Last } else { LogitRows::None },
        });
    }
    model.forward(&mut batch, logits).map_err(Error::model)?;
    drop(batch);
    let n_wanted = expected.iter().filter(|(last, _)| *last).count() * n_rows;
    if logits.len() != n_wanted {
        return Err(Error::LogitsShape {
            expected: n_wanted,
            found: logits.len(),
        });
    }
    let mut rows = logits.chunks_exact(n_rows.max(1));
    let advanced = generations
        .iter_mut()
        .enumerate()
        .zip(shares)
        .filter(|(_, n)| **n > 0);
    for (((i, generation), _), (last, n_cached)) in advanced.zip(expected) {
        generation.sequence.check_cached(n_cached)?;
        let row = if last { rows.next() } else { None };
        generation.advance(row, &mut |event| on_event(i, event))?;
    }
    Ok(())
}
