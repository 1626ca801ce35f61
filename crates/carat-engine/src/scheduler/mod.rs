//! Continuous batching: sequences join and leave the batch at every step.
//!
//! A step is: take out what is cancelled or too late, give free places to jobs that wait, share the batch's tokens,
//! run one forward pass, choose tokens, keep snapshots, let those leave that have ended. Sequences that decode get
//! their one token first; the rest goes to chunks of prompts, no more of them than [`Pace`] finds bearable for those
//! who wait for their next token.
//!
//! Invariants, held after every step: no more than `n_running` sequences run and each fits its context; every
//! cache holds a beginning of its sequence's tokens; each job is told exactly one end. What a job says does not
//! depend on its company, on chunks, on snapshots or on preemption, up to the rounding of the model.

mod admission;
mod memory;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use carat_model::{LanguageModel, SequenceCache};
use carat_text::Tokenizer;

use crate::counters::Counters;
use crate::draft::Planner;
use crate::error::Error;
use crate::generation::{Answer, Generation, Predictions, Work, advance, pass};
use crate::job::{Cancel, Job, Purpose, Sink, Update};
use crate::media::{FIRST_MEDIA_ID, with_media_ids};
use crate::pace::Pace;
use crate::prefix::PrefixCache;
use crate::request::FinishReason;
use crate::sequence::Sequence;
use crate::store::PrefixStore;

/// A snapshot is taken at least every so many tokens of a prompt.
const SNAPSHOT_SPACING: usize = 512;
/// Shorter beginnings are not worth a snapshot.
const LEAST_SNAPSHOT: usize = 16;

/// What a scheduler may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Tokens that prompt and answer of one job may have together.
    pub n_max: usize,
    /// Sequences in the batch, at least 1.
    pub n_running: usize,
    /// Jobs that may wait for one of these places; where some are free, as many more.
    pub n_waiting: usize,
    /// Bytes for the caches of running sequences and the prefix cache. One sequence always runs.
    pub cache_bytes: usize,
}

impl Limits {
    /// Jobs that there may be at the same time, running and waiting.
    pub fn n_jobs(&self) -> usize {
        self.n_running.saturating_add(self.n_waiting)
    }
}

/// Runs jobs on a model, as many together as there is room for. See the module's head.
pub struct Scheduler<M: LanguageModel> {
    model: M,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    waiting: Vec<Entry<M::Cache>>,
    running: Vec<Entry<M::Cache>>,
    prefix: PrefixCache<M::Cache>,
    store: Option<Box<dyn PrefixStore<M::Cache>>>,
    pace: Pace,
    planner: Planner,
    /// Work done for each client while another waited, divided by its weight.
    served: HashMap<u64, f64>,
    /// The least that a client who waited had been served, at its highest: who comes anew begins here.
    level: f64,
    n_submitted: u64,
    counters: Arc<Counters>,
    logits: Vec<f32>,
    shares: Vec<usize>,
}

/// A job with its sequence.
struct Entry<C> {
    generation: Generation<C>,
    client: u64,
    weight: u32,
    priority: i32,
    deadline: Option<Instant>,
    cancel: Cancel,
    sink: Sink,
    /// Order of arrival.
    number: u64,
    /// It ran before and gave up its cache.
    was_preempted: bool,
    /// Lengths at which a snapshot is wanted, in order.
    snapshot_at: Vec<usize>,
    /// Length of the latest snapshot.
    last_snapshot: usize,
}

impl<M: LanguageModel> Scheduler<M> {
    /// A scheduler without jobs.
    pub fn new(model: M, tokenizer: Arc<Tokenizer>, limits: Limits) -> Self {
        // More than a pass has rows would keep each other, and every prompt, from ever getting one.
        let most_running = model.max_batch_tokens().saturating_sub(1).max(1);
        Self {
            model,
            tokenizer,
            limits: Limits {
                n_running: limits.n_running.clamp(1, most_running),
                ..limits
            },
            waiting: Vec::new(),
            running: Vec::new(),
            prefix: PrefixCache::new(),
            store: None,
            pace: Pace::default(),
            planner: Planner::default(),
            served: HashMap::new(),
            level: 0.0,
            n_submitted: 0,
            counters: Arc::default(),
            logits: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// Gives beginnings a place to go to when memory has no room for them, and at the end.
    pub fn set_store(&mut self, store: Box<dyn PrefixStore<M::Cache>>) {
        self.store = Some(store);
    }

    /// What it may take: no more sequences at once than a pass has rows for.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Totals and present state.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Takes a job. One that cannot be run fails at once.
    pub fn submit(&mut self, mut job: Job) {
        match self.generation(&mut job) {
            Ok(generation) => {
                self.join_clients(job.client);
                self.n_submitted += 1;
                self.waiting.push(Entry {
                    generation,
                    client: job.client,
                    weight: job.weight.max(1),
                    priority: job.priority,
                    deadline: job.deadline,
                    cancel: job.cancel,
                    sink: job.sink,
                    number: self.n_submitted,
                    was_preempted: false,
                    snapshot_at: Vec::new(),
                    last_snapshot: 0,
                });
            }
            Err(error) => {
                self.counters.failed.add(1);
                let _nobody_goes_on = (job.sink)(Update::Failed(Box::new(error)));
            }
        }
        self.publish();
    }

    /// Fails every job: nothing more will be done.
    pub fn fail_all(&mut self, error: impl Fn() -> Error) {
        for mut entry in self.waiting.drain(..).chain(self.running.drain(..)) {
            self.counters.failed.add(1);
            let _nobody_goes_on = (entry.sink)(Update::Failed(Box::new(error())));
        }
        self.publish();
    }

    /// One step, if there is anything to do.
    pub fn step(&mut self) {
        self.end_unwanted(Instant::now());
        self.admit();
        self.share();
        self.draft();
        if self.shares.iter().any(|&n| n > 0) {
            self.compute();
            self.take_snapshots();
        }
        self.retire();
        self.keep_within_budget();
        self.publish();
    }

    /// The job's prompt on a sequence of its own.
    fn generation(&self, job: &mut Job) -> Result<Generation<M::Cache>, Error> {
        let limit = self.limits.n_jobs();
        if self.waiting.len() + self.running.len() >= limit {
            return Err(Error::QueueFull { limit });
        }
        let vocab_size = self.model.vocab_size();
        let prompt = with_media_ids(&job.request.prompt, &job.request.media)?;
        let is_unknown = |id: &&u32| **id as usize >= vocab_size && **id < FIRST_MEDIA_ID;
        if let Some(&id) = prompt.iter().find(is_unknown) {
            let field = "prompt";
            return Err(Error::UnknownToken {
                field,
                id,
                vocab_size,
            });
        }
        let answer = Answer::new(&job.request, &self.tokenizer, vocab_size)?;
        let cache = self.model.new_cache(self.limits.n_max).map_err(Error::model)?;
        let mut sequence = Sequence::new(cache);
        sequence.begin(&prompt)?;
        let request = std::mem::take(&mut job.request);
        let generation = Generation::new(request, sequence, answer, job.constraint.take());
        Ok(match job.purpose {
            Purpose::Answer => generation,
            Purpose::Embedding => generation.into_embedding(),
        })
    }

    /// Ends jobs whose owners have left or whose time is over.
    fn end_unwanted(&mut self, now: Instant) {
        for entry in self.waiting.iter_mut().chain(&mut self.running) {
            let reason = if entry.cancel.is_raised() {
                FinishReason::Cancelled
            } else if entry.deadline.is_some_and(|deadline| deadline <= now) {
                FinishReason::Deadline
            } else {
                continue;
            };
            let Entry { generation, sink, .. } = entry;
            generation.finish(reason, &mut |event| tell(sink, event));
        }
        let counters = &self.counters;
        self.waiting.retain(|entry| {
            let over = entry.generation.is_over();
            counters.cancelled.add(usize::from(over));
            !over
        });
        self.retire();
    }

    /// How many tokens each running sequence computes in the next pass.
    fn share(&mut self) {
        let mut left = self.model.max_batch_tokens().max(1);
        self.shares.clear();
        self.shares.resize(self.running.len(), 0);
        let mut n_decoding = 0;
        for (share, entry) in self.shares.iter_mut().zip(&self.running) {
            if entry.generation.is_decoding() && left > 0 {
                *share = 1;
                left -= 1;
                n_decoding += 1;
            }
        }
        let mut left = left.min(self.pace.chunk(n_decoding, left));
        let mut order: Vec<usize> = (0..self.running.len())
            .filter(|&i| !self.running[i].generation.is_decoding())
            .collect();
        order.sort_by(|&a, &b| self.compare(&self.running[a], &self.running[b]));
        for i in order {
            let entry = &self.running[i];
            self.shares[i] = entry.generation.uncut(entry.chunk().min(left));
            left = left.saturating_sub(self.shares[i]);
        }
    }

    /// Guesses ahead, when everybody decodes. While a prompt is being computed the time is the prompt's, also in the steps
    /// that it sits out so that the others can be timed.
    fn draft(&mut self) {
        if !self.running.iter().all(|entry| entry.generation.is_decoding()) {
            return;
        }
        let working = self.running.iter_mut().zip(&self.shares).filter(|(_, n)| **n > 0);
        let mut decoding: Vec<_> = working.map(|(entry, _)| &mut entry.generation).collect();
        let most_rows = self.model.max_batch_tokens();
        // A drafter that fails is no reason to fail: the sequences decode as without one.
        let result = self.planner.draft(&mut self.model, &mut decoding, most_rows);
        self.counters.draft_failures.add(usize::from(result.is_err()));
    }

    /// The forward pass and the choices that follow.
    fn compute(&mut self) {
        let mut work = Vec::with_capacity(self.running.len());
        let mut sinks = Vec::with_capacity(self.running.len());
        let waiting = &self.waiting;
        let (mut n_decoding, mut n_chunk, mut n_guessed) = (0, 0, 0);
        for (entry, &n) in self.running.iter_mut().zip(&self.shares).filter(|(_, n)| **n > 0) {
            if entry.generation.is_decoding() {
                n_decoding += 1;
            } else {
                n_chunk += n;
            }
            let n_guesses = entry.generation.draft.guesses().len();
            n_guessed += n_guesses;
            // What nobody else waited for was taken from nobody.
            if waiting.iter().any(|other| other.client != entry.client) {
                #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
                let cost = (n + n_guesses) as f64 / f64::from(entry.weight);
                *self.served.entry(entry.client).or_default() += cost;
            }
            work.push(Work {
                generation: &mut entry.generation,
                n,
            });
            sinks.push(&mut entry.sink);
        }
        let started = Instant::now();
        let n_before: usize = work.iter().map(|w| w.generation.n_generated()).sum();
        run(
            &mut self.model,
            &self.tokenizer,
            &mut self.planner,
            &mut work,
            &mut sinks,
            &mut self.logits,
        );
        let n_after: usize = work.iter().map(|w| w.generation.n_generated()).sum();
        if n_guessed == 0 {
            self.pace
                .record(n_decoding, n_chunk, started.elapsed().as_secs_f64());
        }
        self.counters.steps.add(1);
        self.counters.prefilled.add(n_chunk);
        self.counters.generated.add(n_after.saturating_sub(n_before));
    }

    /// Keeps what others may begin with too.
    fn take_snapshots(&mut self) {
        for (entry, &n) in self.running.iter_mut().zip(&self.shares) {
            let sequence = &entry.generation.sequence;
            let (n_cached, n_prompt) = (sequence.n_cached(), entry.generation.request.prompt.len());
            let is_done = entry.generation.is_over() || entry.generation.is_embedding();
            if n == 0 || n_cached > n_prompt || is_done {
                continue;
            }
            let is_due = entry.next_snapshot().is_some_and(|at| at <= n_cached);
            let is_wanted = n_cached == n_prompt || is_due || entry.snapshot_at.contains(&n_cached);
            if is_wanted && n_cached >= LEAST_SNAPSHOT {
                entry.last_snapshot = n_cached;
                let is_mark = n_cached == n_prompt || entry.snapshot_at.contains(&n_cached);
                if let Some(fork) = sequence.cache().fork(n_cached) {
                    self.prefix.insert(&sequence.tokens()[..n_cached], fork, is_mark);
                }
            }
            entry.snapshot_at.retain(|&at| at > n_cached);
        }
    }

    /// Lets those leave that have ended; their caches stay as snapshots.
    fn retire(&mut self) {
        for entry in self.running.extract_if(.., |entry| entry.generation.is_over()) {
            let Entry {
                mut generation,
                mut sink,
                ..
            } = entry;
            if let Some(vector) = generation.take_vector() {
                self.counters.finished.add(1);
                let _nobody_goes_on = sink(Update::Embedded(vector));
                continue;
            }
            let (sequence, end) = generation.into_parts();
            match end {
                Some(Err(error)) => {
                    self.counters.failed.add(1);
                    let _nobody_goes_on = sink(Update::Failed(Box::new(error)));
                    continue;
                }
                Some(Ok(finished)) => {
                    self.counters.add_drafts(&finished.drafts);
                    match finished.reason {
                        FinishReason::Cancelled | FinishReason::Deadline => self.counters.cancelled.add(1),
                        _ => self.counters.finished.add(1),
                    }
                }
                None => {}
            }
            let (tokens, cache) = sequence.into_cached();
            if tokens.len() >= LEAST_SNAPSHOT {
                self.prefix.insert(&tokens, cache, true);
            }
        }
    }

    fn publish(&self) {
        self.counters.running.set(self.running.len());
        self.counters.waiting.set(self.waiting.len());
        self.counters.cache_bytes.set(self.bytes_at_most());
        self.counters.snapshots.set(self.prefix.len());
    }
}

impl<C: SequenceCache> Entry<C> {
    /// Tokens that it can compute at once: to the end, or to where a snapshot is wanted.
    fn chunk(&self) -> usize {
        let n_cached = self.generation.sequence.n_cached();
        let asked = self.snapshot_at.iter().copied();
        let next = asked
            .chain(self.next_snapshot())
            .filter(|&at| at > n_cached)
            .min();
        let n_wanted = self.generation.n_wanted();
        next.map_or(n_wanted, |at| n_wanted.min(at - n_cached))
    }

    /// The length at which, or soon after which, one of the regular snapshots is wanted, if that is within the prompt. What
    /// must be computed whole, as an image, may lie across it.
    fn next_snapshot(&self) -> Option<usize> {
        let at = self.last_snapshot + SNAPSHOT_SPACING;
        (!self.generation.is_embedding() && at < self.generation.request.prompt.len()).then_some(at)
    }

    /// Asks for a snapshot at `len`.
    fn want_snapshot(&mut self, len: usize) {
        if let Err(i) = self.snapshot_at.binary_search(&len) {
            self.snapshot_at.insert(i, len);
        }
    }
}

/// Passes an event on.
fn tell(sink: &mut Sink, event: crate::request::Event<'_>) -> ControlFlow<()> {
    match Update::of(event) {
        Some(update) => sink(update),
        None => ControlFlow::Continue(()),
    }
}

/// Runs a batch. When the model refuses it, each sequence runs alone, so that only the guilty fail.
fn run<M: LanguageModel>(
    model: &mut M,
    tokenizer: &Tokenizer,
    planner: &mut Planner,
    work: &mut [Work<'_, M::Cache>],
    sinks: &mut [&mut Sink],
    logits: &mut Vec<f32>,
) {
    match pass(model, planner, work, logits) {
        Ok(()) => {
            let predictions = Predictions::of(model, logits);
            advance(predictions, tokenizer, work, &mut |i, event| {
                tell(sinks[i], event)
            });
            work.iter_mut()
                .for_each(|w| planner.record_outcome(&mut w.generation.draft));
        }
        // Guesses must not be what a pass fails for.
        Err(Error::Model(_)) if work.iter().any(|w| w.generation.draft.chain().is_some()) => {
            work.iter_mut().for_each(|w| w.generation.draft.clear());
            run(model, tokenizer, planner, work, sinks, logits);
        }
        Err(Error::Model(_)) if work.len() > 1 => {
            for (one, sink) in work.chunks_mut(1).zip(sinks.chunks_mut(1)) {
                run(model, tokenizer, planner, one, sink, logits);
            }
        }
        Err(Error::Model(error)) => work.iter_mut().for_each(|w| {
            let reason = error.to_string();
            w.generation.fail(Error::Pass { reason });
        }),
        // The model broke its contract: no cache of the batch can be trusted.
        Err(error) => work.iter_mut().for_each(|w| {
            let reason = error.to_string();
            w.generation.fail(Error::Pass { reason });
        }),
    }
}
