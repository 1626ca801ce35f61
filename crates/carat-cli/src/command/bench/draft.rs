//! `carat bench --draft`: what guessing ahead gives on this machine, for guesses that are right with given probabilities.
//!
//! The engine runs as it is, on the model as it is; only what the model "says" is decided by dice: after each pass the
//! logits are changed so that the next guess is chosen with the given probability, and another token else. So the
//! time is the true time of guessing, checking and taking back, for text that is guessed as well as one wishes.
//! Beside it stands what is to be expected from single passes: `(1 + p + ... + p^k) * t(1) / (t(k + 1) + k * t(guess))`.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;
use carat_engine::{Drafting, Event, MAX_DRAFT, Request, SamplingParams, Session};
use carat_model::{DraftSegment, Error, KvCache, LanguageModel, LogitRows, Model, Segment};
use carat_text::Tokenizer;
use serde_json::json;

use crate::interrupt::Interrupt;
use crate::output;

/// Tokens of the prompt.
const N_PROMPT: usize = 16;
/// Passes by which the time of one is measured.
const N_PASSES: usize = 6;
/// Added to the logit of the token that is to be chosen.
const CERTAIN: f32 = 1e6;

/// Most tokens of a sequence in a measurement of drafts of up to `n_draft` tokens.
pub(super) fn longest(depth: usize, n_tokens: usize, n_draft: usize) -> usize {
    let passes = n_draft.saturating_add(1).saturating_mul(N_PASSES);
    room_for(depth, n_tokens).max(passes)
}

/// Tokens of a sequence with its prompt, an answer of `n_tokens`, and a draft beyond its end.
fn room_for(depth: usize, n_tokens: usize) -> usize {
    let prompt = N_PROMPT.max(depth);
    prompt.saturating_add(n_tokens).saturating_add(MAX_DRAFT + 1)
}

/// What is to be measured.
pub(super) struct DraftBench<'a> {
    /// Lengths of drafts.
    pub(super) lengths: &'a [usize],
    /// Probabilities that a guess is right.
    pub(super) acceptances: &'a [f64],
    pub(super) n_tokens: usize,
    pub(super) n_repeats: u32,
    pub(super) depth: usize,
    pub(super) interrupt: &'a Interrupt,
}

/// One line of the result.
struct Row {
    acceptance: f64,
    /// `None` when the engine chose.
    length: Option<usize>,
    tok_per_s: f64,
    speed_up: f64,
    predicted: Option<f64>,
    drafted: Vec<usize>,
    accepted: Vec<usize>,
}

impl DraftBench<'_> {
    pub(super) fn run(&self, model: Model, tokenizer: &Tokenizer, name: &str, as_json: bool) -> Result<()> {
        let mut forced = Forced {
            model,
            acceptance: 0.0,
            dice: 1,
            guessing: (0, Duration::ZERO),
        };
        // The first passes map the weights in and are not measured.
        self.rate(&mut forced, tokenizer, Drafting::Off)?;
        let mut rows = Vec::new();
        for &acceptance in self.acceptances {
            forced.acceptance = acceptance;
            let (plain, _) = self.rate(&mut forced, tokenizer, Drafting::Off)?;
            let lengths = self.lengths.iter().map(|n| Some(*n));
            for length in lengths.chain([None]) {
                let drafting = length.map_or(Drafting::Adaptive, Drafting::Fixed);
                let (tok_per_s, finished) = self.rate(&mut forced, tokenizer, drafting)?;
                rows.push(Row {
                    acceptance,
                    length,
                    tok_per_s,
                    speed_up: tok_per_s / plain,
                    predicted: None,
                    drafted: finished.drafts.drafted,
                    accepted: finished.drafts.accepted,
                });
            }
        }
        let guess_s = forced.guess_s();
        let one = self.pass(&mut forced.model, 1)?;
        for row in &mut rows {
            if let Some(k) = row.length {
                let expected: f64 = (0..=k).map(|i| row.acceptance.powi(exponent(i))).sum();
                let cost = self.pass(&mut forced.model, k + 1)? + guess_s * count(k);
                row.predicted = Some(expected * one / cost);
            }
        }
        self.print(&rows, name, guess_s, one, as_json)
    }

    /// Tokens of the prompt, behind which the answer is measured.
    fn n_prompt(&self) -> usize {
        N_PROMPT.max(self.depth)
    }

    /// The median speed of an answer, and the last of them.
    fn rate(
        &self,
        forced: &mut Forced,
        tokenizer: &Tokenizer,
        drafting: Drafting,
    ) -> Result<(f64, carat_engine::Finished)> {
        let n_prompt = self.n_prompt();
        let mut rates = Vec::new();
        let mut last = None;
        for _ in 0..self.n_repeats {
            let prompt = (0..n_prompt).map(|_| forced.token(0)).collect();
            let request = Request {
                prompt,
                sampling: SamplingParams::greedy(),
                max_tokens: Some(self.n_tokens),
                drafting,
                ..Request::default()
            };
            let mut session = Session::new(forced, room_for(self.depth, self.n_tokens))?;
            let finished = session.generate(forced, tokenizer, &request, |event| match event {
                Event::Finished(_) => ControlFlow::Continue(()),
                _ if self.interrupt.is_raised() => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            })?;
            self.interrupt.check()?;
            rates.push(finished.timings.decode_tok_per_s());
            last = Some(finished);
        }
        rates.sort_by(f64::total_cmp);
        let median = rates.get(rates.len() / 2).copied().unwrap_or(0.0);
        let last = last.ok_or_else(|| anyhow::anyhow!("--repeat must be at least 1"))?;
        Ok((median, last))
    }

    /// Seconds of a pass of `n` rows with logits: the least of some.
    fn pass(&self, model: &mut Model, n: usize) -> Result<f64> {
        let mut cache = model.new_cache(n * N_PASSES)?;
        let (mut least, mut logits) = (f64::INFINITY, Vec::new());
        let tokens: Vec<u32> = (2..2 + n).filter_map(|id| u32::try_from(id).ok()).collect();
        for _ in 0..N_PASSES {
            self.interrupt.check()?;
            let started = Instant::now();
            model.forward(
                &mut [Segment {
                    tokens: &tokens,
                    media: &[],
                    cache: &mut cache,
                    logits: LogitRows::All,
                }],
                &mut logits,
            )?;
            least = least.min(started.elapsed().as_secs_f64());
        }
        Ok(least)
    }

    fn print(&self, rows: &[Row], name: &str, guess_s: f64, one: f64, as_json: bool) -> Result<()> {
        let depth = self.n_prompt();
        if as_json {
            let results: Vec<_> = rows
                .iter()
                .map(|row| {
                    json!({
                        "acceptance": row.acceptance, "length": row.length, "depth": depth, "tok_per_s": row.tok_per_s,
                        "speed_up": row.speed_up, "predicted": row.predicted, "drafted": row.drafted,
                        "accepted": row.accepted,
                    })
                })
                .collect();
            return output::json(&json!({
                "model": name, "pass_ms": one * 1e3, "guess_ms": guess_s * 1e3, "results": results,
            }));
        }
        let share = |row: &Row, i: usize| {
            let drafted = row.drafted.get(i).filter(|n| **n > 0)?;
            Some(format!("{:.2}", count(*row.accepted.get(i)?) / count(*drafted)))
        };
        let cells: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                let by_position: Vec<String> = (0..4).map_while(|i| share(row, i)).collect();
                vec![
                    format!("{:.2}", row.acceptance),
                    row.length.map_or("adaptive".to_string(), |n| n.to_string()),
                    depth.to_string(),
                    format!("{:.2}", row.tok_per_s),
                    format!("{:.2}", row.speed_up),
                    row.predicted.map_or(String::new(), |x| format!("{x:.2}")),
                    row.drafted.iter().sum::<usize>().to_string(),
                    row.accepted.iter().sum::<usize>().to_string(),
                    by_position.join(" "),
                ]
            })
            .collect();
        output::line(&format!(
            "{}: a pass of one row {:.1} ms, a guess {:.1} ms",
            output::printable(name),
            one * 1e3,
            guess_s * 1e3
        ))?;
        let head = [
            "RIGHT",
            "LENGTH",
            "DEPTH",
            "TOK/S",
            "TIMES",
            "EXPECTED",
            "DRAFTED",
            "ACCEPTED",
            "BY POSITION",
        ];
        Ok(output::table(&head, &cells)?)
    }
}

/// A model whose words are dice: guesses come true with a given probability.
struct Forced {
    model: Model,
    acceptance: f64,
    dice: u64,
    /// Steps of the model's own drafter and their time.
    guessing: (usize, Duration),
}

impl Forced {
    fn roll(&mut self) -> u64 {
        self.dice = self
            .dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.dice >> 33
    }

    /// Any token that is not among the first few, which are control tokens, and not `other`.
    fn token(&mut self, other: u32) -> u32 {
        const FIRST: u64 = 300;
        let n = (self.model.vocab_size() as u64).saturating_sub(FIRST + 1).max(1);
        let id = u32::try_from(FIRST.min(n) + self.roll() % n).unwrap_or(0);
        if id == other { id + 1 } else { id }
    }

    /// Seconds of a guess of the model's own drafter; 0 without one.
    fn guess_s(&self) -> f64 {
        self.guessing.1.as_secs_f64() / count(self.guessing.0.max(1))
    }
}

impl LanguageModel for Forced {
    type Cache = KvCache;
    type Error = Error;

    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn context_len(&self) -> usize {
        self.model.context_len()
    }

    fn max_batch_tokens(&self) -> usize {
        self.model.max_batch_tokens()
    }

    fn new_cache(&self, max_tokens: usize) -> Result<KvCache, Error> {
        self.model.new_cache(max_tokens)
    }

    fn cache_bytes(&self, n_tokens: usize) -> usize {
        self.model.cache_bytes(n_tokens)
    }

    fn n_alike_rows(&self) -> usize {
        self.model.n_alike_rows()
    }

    fn forward(&mut self, batch: &mut [Segment<'_, KvCache>], logits: &mut Vec<f32>) -> Result<(), Error> {
        self.model.forward(batch, logits)?;
        let width = self.model.vocab_size();
        let mut rows = logits.chunks_exact_mut(width.max(1));
        for segment in batch {
            let n = segment.tokens.len();
            for i in n - segment.logits.count(n)..n {
                let Some(row) = rows.next() else { return Ok(()) };
                let guess = segment.tokens.get(i + 1).copied();
                let is_right = f64::from(u32::try_from(self.roll() & 0xF_FFFF).unwrap_or(0))
                    < self.acceptance * f64::from(1 << 20);
                let said = guess
                    .filter(|_| is_right)
                    .unwrap_or_else(|| self.token(guess.unwrap_or(0)));
                if let Some(logit) = row.get_mut(said as usize) {
                    *logit += CERTAIN;
                }
            }
        }
        Ok(())
    }

    fn drafts(&self) -> bool {
        true
    }

    fn draft(&mut self, batch: &mut [DraftSegment<'_, KvCache>]) -> Result<(), Error> {
        let n_before: Vec<usize> = batch.iter().map(|segment| segment.guesses.len()).collect();
        if self.model.drafts() {
            let started = Instant::now();
            self.model.draft(batch)?;
            self.guessing.0 += batch.iter().map(|segment| segment.n).max().unwrap_or(0);
            self.guessing.1 += started.elapsed();
        }
        for (segment, n) in batch.iter_mut().zip(n_before) {
            segment.guesses.truncate(n);
            for _ in 0..segment.n {
                let guess = self.token(0);
                segment.guesses.push(guess);
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
fn count(n: usize) -> f64 {
    n as f64
}

fn exponent(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
