//! `carat perplexity`: how well a model predicts a text.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use carat_engine::{Perplexity as Value, Windows, score};
use carat_model::LanguageModel;
use carat_text::Special;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::compute_args::ComputeArgs;
use crate::failure::{Hinted, Interrupted};
use crate::interrupt::Interrupt;
use crate::model_source::ModelSource;
use crate::settings::Settings;
use crate::{output, text_input};

/// Measure how well a model predicts a text: its perplexity, lower is better
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat perplexity gemma3:270m wiki.test.raw\n  carat perplexity gemma3:270m text.txt \
                        --method strided --window 1024 --stride 512 --json\n\nThe two methods give different numbers for the \
                        same text: compare only like with like."
)]
pub(crate) struct Perplexity {
    /// The model
    model: String,
    /// Text file
    file: PathBuf,
    /// How a long text is cut
    #[arg(long, default_value = "halves")]
    method: Method,
    /// Tokens that the model sees at a time
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Tokens from one window to the next, for `strided` [default: half a window]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Score only the first N tokens of the text
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// How a long text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Method {
    /// As llama.cpp: windows side by side, each beginning with <bos>, the second half scored
    Halves,
    /// As transformers' guide: overlapping windows, every token scored once
    Strided,
}

impl Perplexity {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        if self.stride.is_some() && self.method != Method::Strided {
            let hint = "add --method strided, or leave --stride out";
            return Err(Hinted::wrong_arguments("--stride is for --method strided", hint).into());
        }
        let text = text_input::file(&self.file)?;
        let source = ModelSource::open(&self.model, settings, interrupt)?;
        let tokenizer = source.tokenizer()?;
        let mut tokens: Vec<u32> = tokenizer
            .bos()
            .into_iter()
            .filter(|_| tokenizer.adds_bos())
            .collect();
        tokenizer.encode_into(&text, Special::AsText, &mut tokens);
        tokens.truncate(self.limit.unwrap_or(usize::MAX));
        let windows = match self.method {
            Method::Halves => Windows::Halves {
                window: self.window,
                bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()),
            },
            Method::Strided => Windows::Strided {
                window: self.window,
                stride: self.stride.unwrap_or(self.window.div_ceil(2)),
            },
        };
        let mut model = self.compute.load(&source.checkpoint, settings)?;
        let started = Instant::now();
        let nll = measure(&mut model, &tokens, windows, interrupt)?;
        let seconds = started.elapsed().as_secs_f64();
        let value = Value::of(&nll).context("the text has no token to score")?;
        if self.json {
            return output::json(&json!({
                "perplexity": value.value,
                "standard_error": value.standard_error,
                "n_scored": value.n_tokens,
                "n_tokens": tokens.len(),
                "window": self.window,
                "method": format!("{:?}", self.method).to_lowercase(),
                "seconds": seconds,
            }));
        }
        let Value {
            value,
            standard_error,
            n_tokens,
        } = value;
        let text = format!(
            "perplexity {value:.4} ± {standard_error:.4} ({} scored in {seconds:.1} s)",
            output::counted(n_tokens, "token")
        );
        Ok(output::line(&text)?)
    }
}

fn measure(
    model: &mut impl LanguageModel,
    tokens: &[u32],
    windows: Windows,
    interrupt: &Interrupt,
) -> Result<Vec<f32>> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar}  {pos}/{len} tokens  {eta}") {
        bar.set_style(style);
    }
    let result = score(model, tokens, windows, |n_done, n| {
        bar.set_length(n as u64);
        bar.set_position(n_done as u64);
        if interrupt.is_raised() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    bar.finish_and_clear();
    match result {
        Err(carat_engine::Error::Cancelled) => Err(Interrupted.into()),
        other => Ok(other?),
    }
}
