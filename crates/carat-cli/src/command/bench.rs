//! `carat bench`: how fast a model runs here.

mod check;
mod draft;

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use carat_engine::{MAX_DRAFT, Sampler, SamplingParams};
use carat_kernels::{Pool, read_once};
use carat_model::{Config, KvCache, KvDType, LanguageModel, LogitRows, Model, Segment};
use carat_plan::{Weights, decode_bytes};
use clap::Args;
use serde_json::json;

use crate::compute_args::ComputeArgs;
use crate::draft_args::DraftArgs;
use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::planning::weights_of;
use crate::settings::Settings;
use crate::{memory, output};

/// Measure how fast a model reads prompts (prefill) and writes (decode) on this machine
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat bench gemma3:1b\n  carat bench gemma3:1b --prefill 128,512,2048 --decode 64 \
                        --depth 0,4096\n  carat bench gemma3:1b --batch 1,4,8,16 --verify 2,4,8\n  carat bench gemma3:12b --draft 2,4,8 --accept 0.5,0.8\n  carat bench gemma3:1b --reading \
                        --prefill 0\n  carat bench gemma3:1b \
                        --repeat 10 --threads 4 --json\n\nToken ids are drawn from a \
                        fixed sequence; speed does not depend on them."
)]
pub(crate) struct Bench {
    /// The model
    model: String,
    /// Prompt lengths to measure, in tokens; 0 for none
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [512], value_parser = whole)]
    prefill: Vec<usize>,
    /// Tokens to decode per measurement; 0 for none
    #[arg(long, value_name = "N", default_value_t = 64)]
    decode: usize,
    /// Tokens already in the cache when decoding begins
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [0], value_parser = whole)]
    depth: Vec<usize>,
    /// Sequences that decode together, each at the depth
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1], value_parser = whole)]
    batch: Vec<usize>,
    /// Tokens of one sequence in one pass, each with its logits, as when a draft is checked; none if left out
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = whole)]
    verify: Vec<usize>,
    /// Lengths of drafts to measure instead of all else: tokens guessed ahead and checked in one pass
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = draft_length)]
    draft: Vec<usize>,
    /// With --draft: probabilities that a guess is right; the model's words are decided by dice
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "draft", default_values_t = [0.0, 0.5, 0.8], value_parser = probability)]
    accept: Vec<f64>,
    /// With --draft: the drafter whose time counts too [default: a drafter beside the model]
    #[arg(long, value_name = "MODEL", requires = "draft")]
    drafter: Option<String>,
    /// Measurements of each; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Tokens of a prompt that are computed at a time
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    chunk: u32,
    /// Between decoded tokens read the weights with nothing else to do, and tell what share of that bandwidth decode
    /// reaches
    #[arg(long, conflicts_with = "draft")]
    reading: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Tokens of the first pass, which is not measured.
const N_WARM_UP: usize = 16;
/// Passes of one measurement of `--verify`.
const VERIFY_PASSES: usize = 8;

/// One kind of measurement, repeated.
struct Measured {
    /// `prefill`, `decode` or `verify`.
    kind: &'static str,
    /// Sequences in a pass.
    n_sequences: usize,
    /// Tokens of each sequence: of the prompt, decoded one by one, or in one pass.
    n_tokens: usize,
    depth: usize,
    /// Tokens per second, sorted.
    tok_per_s: Vec<f64>,
    /// Shares of the read bandwidth, sorted; empty where it was not measured.
    shares: Vec<f64>,
}

impl Measured {
    fn median(&self) -> f64 {
        median(&self.tok_per_s)
    }

    /// Share of the read bandwidth, if it was measured.
    fn share(&self) -> Option<f64> {
        (!self.shares.is_empty()).then(|| median(&self.shares))
    }

    fn min(&self) -> f64 {
        self.tok_per_s.first().copied().unwrap_or(0.0)
    }

    fn max(&self) -> f64 {
        self.tok_per_s.last().copied().unwrap_or(0.0)
    }
}

impl Bench {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        if !self.draft.is_empty() && self.depth.len() > 1 {
            return Err(Hinted::wrong_arguments(
                "--draft is measured at one depth, and several are given",
                "give one --depth, and run it again for each other one",
            )
            .into());
        }
        let source = ModelSource::open(&self.model, settings, interrupt)?;
        self.check(source.checkpoint.config().context_len)?;
        let mut options = self.compute.options(settings)?;
        options.max_batch_tokens = self.chunk as usize;
        let started = Instant::now();
        let mut model = Model::from_checkpoint(&source.checkpoint, options)?;
        let load = started.elapsed();
        if !self.draft.is_empty() {
            let drafter = DraftArgs {
                draft: self.drafter.clone(),
                no_draft: false,
            };
            let tokenizer = source.tokenizer()?;
            let mut found = drafter.find(&source, settings, interrupt)?;
            drafter.prepare(&mut model, &mut found, &tokenizer)?;
            let bench = draft::DraftBench {
                lengths: &self.draft,
                acceptances: &self.accept,
                n_tokens: self.n_drafted(),
                n_repeats: self.repeat,
                depth: self.draft_depth(),
                interrupt,
            };
            return bench.run(model, &tokenizer, &source.local.name, self.json);
        }
        let mut bench = Runner {
            ids: Ids::new(model.vocab_size()),
            interrupt,
            logits: Vec::new(),
            reading: self.reading.then(|| Reading::new(&source, &model)).transpose()?,
            shares: Vec::new(),
            model,
        };
        // The first pass maps the weights in and is not measured.
        bench.prefill(N_WARM_UP.min(bench.model.context_len()))?;
        let mut measured = Vec::new();
        for &n in self.prefill.iter().filter(|&&n| n > 0) {
            let times = self.times(|| bench.prefill(n))?;
            measured.push(Measured {
                kind: "prefill",
                n_sequences: 1,
                n_tokens: n,
                depth: 0,
                tok_per_s: rates(n, times),
                shares: Vec::new(),
            });
        }
        for &depth in self.depth.iter().filter(|_| self.decode > 0) {
            for &n_sequences in self.batch.iter().filter(|&&n| n > 0) {
                let n = self.decode;
                bench.shares.clear();
                let times = self.decode_times(&mut bench, n, depth, n_sequences)?;
                bench.shares.sort_by(f64::total_cmp);
                measured.push(Measured {
                    kind: "decode",
                    n_sequences,
                    n_tokens: n,
                    depth,
                    tok_per_s: rates(n * n_sequences, times),
                    shares: bench.shares.clone(),
                });
            }
        }
        for &n in self.verify.iter().filter(|&&n| n > 0) {
            let times = self.times(|| bench.verify(n))?;
            measured.push(Measured {
                kind: "verify",
                n_sequences: 1,
                n_tokens: n,
                depth: 0,
                tok_per_s: rates(n * VERIFY_PASSES, times),
                shares: Vec::new(),
            });
        }
        self.print(&source, &bench.model, load, &measured)
    }

    /// Tokens that answers with guesses have: one alone has no speed.
    fn n_drafted(&self) -> usize {
        self.decode.max(2)
    }

    /// The depth at which guesses are measured.
    fn draft_depth(&self) -> usize {
        self.depth.first().copied().unwrap_or(0)
    }

    fn times(&self, mut once: impl FnMut() -> Result<Duration>) -> Result<Vec<Duration>> {
        (0..self.repeat).map(|_| once()).collect()
    }

    /// Each run goes on from the same prompts, which are computed once; the last takes their caches themselves, so that
    /// a single run needs the memory of one.
    fn decode_times(
        &self,
        bench: &mut Runner<'_>,
        n: usize,
        depth: usize,
        n_sequences: usize,
    ) -> Result<Vec<Duration>> {
        let mut prompts = bench.prompts(n_sequences, depth, n)?;
        let mut times = Vec::new();
        for left in (0..self.repeat).rev() {
            let caches = if left == 0 {
                std::mem::take(&mut prompts)
            } else {
                let forks = prompts.iter().map(|cache| cache.fork(depth));
                forks
                    .collect::<Option<_>>()
                    .context("a prompt's cache cannot be used twice")?
            };
            times.push(bench.decode(n, depth, caches)?);
        }
        Ok(times)
    }

    fn print(
        &self,
        source: &ModelSource,
        model: &Model,
        load: Duration,
        measured: &[Measured],
    ) -> Result<()> {
        let options = model.options();
        let rss = memory::peak_rss_bytes();
        if self.json {
            let results: Vec<_> = measured
                .iter()
                .map(|m| {
                    json!({
                        "kind": m.kind, "n_sequences": m.n_sequences, "n_tokens": m.n_tokens, "depth": m.depth, "repeat": m.tok_per_s.len(),
                        "tok_per_s": {"median": m.median(), "min": m.min(), "max": m.max()},
                        "share_of_reading": m.share(),
                    })
                })
                .collect();
            return output::json(&json!({
                "model": source.local.name, "size_bytes": source.local.size_bytes,
                "version": env!("CARGO_PKG_VERSION"), "isa": options.isa.name(), "threads": options.n_threads,
                "dtype": format!("{:?}", self.compute.dtype).to_lowercase(), "kv_type": options.kv_dtype.name(),
                "chunk": self.chunk,
                "load_ms": load.as_secs_f64() * 1e3, "peak_rss_bytes": rss, "results": results,
            }));
        }
        let rows: Vec<Vec<String>> = measured
            .iter()
            .map(|m| {
                let speed = |value: f64| format!("{value:.1}");
                let sizes = [
                    m.kind.to_string(),
                    m.n_sequences.to_string(),
                    m.n_tokens.to_string(),
                    m.depth.to_string(),
                ];
                sizes
                    .into_iter()
                    .chain([m.median(), m.min(), m.max()].map(speed))
                    .chain(self.reading.then(|| {
                        m.share()
                            .map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share))
                    }))
                    .collect()
            })
            .collect();
        output::line(&format!(
            "{}, {} kernels, {}, loaded in {:.0} ms, at most {} of memory",
            output::printable(&source.local.name),
            options.isa.name(),
            output::counted(options.n_threads, "thread"),
            load.as_secs_f64() * 1e3,
            rss.map_or_else(|| "?".to_string(), output::size)
        ))?;
        let heads = [
            "WHAT",
            "BATCH",
            "TOKENS",
            "DEPTH",
            "TOK/S",
            "MIN",
            "MAX",
            "OF READING",
        ];
        let n_heads = heads.len() - usize::from(!self.reading);
        Ok(output::table(&heads[..n_heads], &rows)?)
    }
}

/// Runs measurements on a loaded model.
struct Runner<'a> {
    model: Model,
    ids: Ids,
    interrupt: &'a Interrupt,
    logits: Vec<f32>,
    reading: Option<Reading<'a>>,
    /// Of the measurements of decode since it was cleared, the share of the read bandwidth.
    shares: Vec<f64>,
}

impl Runner<'_> {
    /// Time of a prompt of `n` tokens on an empty cache, up to the logits of its last token.
    fn prefill(&mut self, n: usize) -> Result<Duration> {
        let mut cache = self.model.new_cache(n)?;
        let prompt: Vec<u32> = self.ids.by_ref().take(n).collect();
        let started = Instant::now();
        self.feed(&mut cache, &prompt)?;
        Ok(started.elapsed())
    }

    /// Caches of `n_sequences` prompts of `depth` tokens, with room for `n` more.
    fn prompts(&mut self, n_sequences: usize, depth: usize, n: usize) -> Result<Vec<KvCache>> {
        let one = |_| {
            let mut cache = self.model.new_cache(depth + n)?;
            let prompt: Vec<u32> = self.ids.by_ref().take(depth).collect();
            self.feed(&mut cache, &prompt)?;
            Ok(cache)
        };
        (0..n_sequences).map(one).collect()
    }

    /// Time of `n` single tokens behind `depth` others, in each of the sequences at once, and of choosing the next one each
    /// time, as for a request that says nothing of sampling.
    fn decode(&mut self, n: usize, depth: usize, mut caches: Vec<KvCache>) -> Result<Duration> {
        let n_sequences = caches.len();
        let mut tokens: Vec<u32> = self.ids.by_ref().take(n_sequences).collect();
        let sampler = |seed| {
            let params = SamplingParams {
                seed,
                ..SamplingParams::default()
            };
            let n = self.model.vocab_size();
            Sampler::new(params, n, n, &[])
        };
        let mut samplers: Vec<Sampler> = (0..n_sequences as u64).map(sampler).collect::<Result<_, _>>()?;
        let (mut time, mut limit) = (Duration::ZERO, Duration::ZERO);
        for step in 0..n {
            self.interrupt.check()?;
            if let Some(reading) = &self.reading {
                limit += reading.limit(depth + step, n_sequences);
            }
            let started = Instant::now();
            let segments = caches
                .iter_mut()
                .zip(tokens.chunks(1))
                .map(|(cache, token)| Segment {
                    tokens: token,
                    media: &[],
                    cache,
                    logits: LogitRows::Top(SamplingParams::default().top_k),
                });
            let mut segments: Vec<_> = segments.collect();
            self.model.forward(&mut segments, &mut self.logits)?;
            for ((token, sampler), top) in tokens.iter_mut().zip(&mut samplers).zip(self.model.top()) {
                *token = sampler.sample_top(top)?;
            }
            time += started.elapsed();
        }
        if self.reading.is_some() {
            self.shares
                .push(limit.as_secs_f64() / time.as_secs_f64().max(1e-9));
        }
        Ok(time)
    }

    /// Time of [`VERIFY_PASSES`] passes of `n` tokens with the logits of each.
    fn verify(&mut self, n: usize) -> Result<Duration> {
        let mut cache = self.model.new_cache(n * VERIFY_PASSES)?;
        let tokens: Vec<u32> = self.ids.by_ref().take(n * VERIFY_PASSES).collect();
        let started = Instant::now();
        for tokens in tokens.chunks(n) {
            self.interrupt.check()?;
            self.model.forward(
                &mut [Segment {
                    tokens,
                    media: &[],
                    cache: &mut cache,
                    logits: LogitRows::All,
                }],
                &mut self.logits,
            )?;
        }
        Ok(started.elapsed())
    }

    fn feed(&mut self, cache: &mut KvCache, tokens: &[u32]) -> Result<()> {
        let mut chunks = tokens.chunks(self.model.max_batch_tokens()).peekable();
        while let Some(tokens) = chunks.next() {
            self.interrupt.check()?;
            let logits = if chunks.peek().is_none() {
                LogitRows::Last
            } else {
                LogitRows::None
            };
            self.model.forward(
                &mut [Segment {
                    tokens,
                    media: &[],
                    cache: &mut *cache,
                    logits,
                }],
                &mut self.logits,
            )?;
        }
        Ok(())
    }
}

/// What decode would take if it did nothing but read.
struct Reading<'a> {
    pool: Pool,
    tensors: Vec<&'a [u8]>,
    n_bytes: usize,
    weights: Weights,
    config: &'a Config,
    kv_dtype: KvDType,
}

impl<'a> Reading<'a> {
    fn new(source: &'a ModelSource, model: &Model) -> Result<Self> {
        let tensors = source.checkpoint.tensor_bytes();
        Ok(Reading {
            pool: Pool::new(model.options().n_threads)?,
            n_bytes: tensors.iter().map(|bytes| bytes.len()).sum(),
            tensors,
            weights: weights_of(&source.checkpoint, source.local.size_bytes),
            config: source.checkpoint.config(),
            kv_dtype: model.options().kv_dtype,
        })
    }

    /// The time in which the bytes of one decode step would be read at the bandwidth of this moment.
    #[expect(clippy::cast_precision_loss, reason = "counts of bytes")]
    fn limit(&self, depth: usize, n_sequences: usize) -> Duration {
        let started = Instant::now();
        for bytes in &self.tensors {
            black_box(read_once(&self.pool, bytes));
        }
        let time = started.elapsed();
        let at = |depth| decode_bytes(self.config, &self.weights, self.kv_dtype, depth);
        // Sequences share the weights, not their caches.
        let caches = n_sequences as u64 * at(depth).saturating_sub(at(0));
        time.mul_f64((at(0) + caches) as f64 / self.n_bytes.max(1) as f64)
    }
}

/// A number of a list.
fn whole(text: &str) -> Result<usize, String> {
    let number = text.trim().parse();
    number.map_err(|_| format!("`{text}` is no whole number; a list is written as 128,512"))
}

fn draft_length(text: &str) -> Result<usize, String> {
    let length = text.parse().ok().filter(|n| (1..=MAX_DRAFT).contains(n));
    length.ok_or_else(|| format!("a draft has 1 to {MAX_DRAFT} tokens"))
}

fn probability(text: &str) -> Result<f64, String> {
    let p = text.parse().ok().filter(|p| (0.0..=1.0).contains(p));
    p.ok_or_else(|| "a probability is a number from 0 to 1".to_string())
}

/// A fixed sequence of token ids all over the vocabulary.
struct Ids {
    state: u64,
    vocab_size: u64,
}

impl Ids {
    fn new(vocab_size: usize) -> Self {
        Self {
            state: 1,
            vocab_size: (vocab_size as u64).max(1),
        }
    }
}

impl Iterator for Ids {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.state >> 33) % self.vocab_size).ok()
    }
}

/// The middle of sorted values, or between the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let (n, half) = (sorted.len(), sorted.len() / 2);
    if n % 2 == 1 {
        sorted[half]
    } else {
        (sorted[half - 1] + sorted[half]) / 2.0
    }
}

/// Tokens per second, sorted.
#[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
fn rates(n: usize, times: Vec<Duration>) -> Vec<f64> {
    let mut rates: Vec<f64> = times
        .into_iter()
        .map(|time| n as f64 / time.as_secs_f64().max(1e-9))
        .collect();
    rates.sort_by(f64::total_cmp);
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}
