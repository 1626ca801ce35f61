//! How surprising a given text is to the model: negative log-likelihoods, for perplexity.
//!
//! A text longer than the context is cut into [`Windows`]. The two ways in use give different numbers for the
//! same text, so both are here, each as its home computes it; only like may be compared with like.

use std::ops::{ControlFlow, Range};

use carat_model::{LanguageModel, LogitRows, Segment, SequenceCache};

use crate::error::Error;
use crate::numeric::log_sum_exp;

/// Most rows of logits at a time: 64 MiB for Gemma's vocabulary.
const ROWS_PER_CALL: usize = 64;

/// How a text is cut into windows that the model sees one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// As llama.cpp's perplexity program: windows of `window` tokens side by side, of which the second half is
    /// scored; an incomplete last window is left out.
    Halves {
        /// Tokens per window, at least 4.
        window: usize,
        /// Takes the place of every window's first token; Gemma's `<bos>`.
        bos: Option<u32>,
    },
    /// As transformers' perplexity guide: windows begin every `stride` tokens, and each scores the tokens that
    /// none before it has scored. Every token but the first is scored when `stride < window`.
    Strided {
        /// Tokens per window, at least 2.
        window: usize,
        /// Tokens from one window's start to the next's, `1..=window`.
        stride: usize,
    },
}

/// A window's place in the text and which of its tokens are scored.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    seen: Range<usize>,
    /// Within `seen`, never its first token.
    scored: Range<usize>,
}

impl Windows {
    fn size(self) -> usize {
        match self {
            Self::Halves { window, .. } | Self::Strided { window, .. } => window,
        }
    }

    /// The windows of a text of `n_tokens`.
    fn over(self, n_tokens: usize) -> Result<Vec<Window>, Error> {
        match self {
            Self::Halves { window, .. } => halves(window, n_tokens),
            Self::Strided { window, stride } => strided(window, stride, n_tokens),
        }
    }
}

fn halves(window: usize, n_tokens: usize) -> Result<Vec<Window>, Error> {
    if window < 4 {
        return Err(Error::Window {
            window,
            stride: window,
            expected: "take at least 4 tokens",
        });
    }
    if n_tokens < window {
        return Err(Error::TooFewTokens {
            found: n_tokens,
            needed: window,
        });
    }
    let starts = (0..n_tokens / window).map(|i| i * window);
    Ok(starts
        .map(|start| Window {
            seen: start..start + window,
            scored: start + window / 2 + 1..start + window,
        })
        .collect())
}

fn strided(window: usize, stride: usize, n_tokens: usize) -> Result<Vec<Window>, Error> {
    if window < 2 || stride == 0 || stride > window {
        let expected = "take at least 2 tokens and a stride from 1 to the window";
        return Err(Error::Window {
            window,
            stride,
            expected,
        });
    }
    if n_tokens < 2 {
        return Err(Error::TooFewTokens {
            found: n_tokens,
            needed: 2,
        });
    }
    let mut windows = Vec::new();
    let mut n_done = 0;
    for start in (0..n_tokens).step_by(stride) {
        let end = n_tokens.min(start + window);
        windows.push(Window {
            seen: start..end,
            scored: n_done.max(start + 1)..end,
        });
        n_done = end;
        if end == n_tokens {
            break;
        }
    }
    Ok(windows)
}

/// The negative log-likelihood, in nats, of every scored token of the text, in order.
///
/// `on_progress` gets the number of tokens scored and to be scored after every step; `Break` gives up.
///
/// # Errors
/// When the windows do not fit the text or the model, when the model fails, and [`Error::Cancelled`].
pub fn score<M: LanguageModel>(
    model: &mut M,
    tokens: &[u32],
    windows: Windows,
    mut on_progress: impl FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<Vec<f32>, Error> {
    let plan = windows.over(tokens.len())?;
    let n_scored: usize = plan.iter().map(|window| window.scored.len()).sum();
    let mut scorer = Scorer {
        cache: model.new_cache(windows.size()).map_err(Error::model)?,
        model,
        logits: Vec::new(),
        nll: Vec::with_capacity(n_scored),
    };
    let mut seen = Vec::new();
    for window in plan {
        seen.clear();
        seen.extend_from_slice(&tokens[window.seen.clone()]);
        if let Windows::Halves { bos: Some(bos), .. } = windows {
            seen[0] = bos;
        }
        let first = window.scored.start - window.seen.start;
        scorer.window(&seen, first, &mut |n_done| on_progress(n_done, n_scored))?;
    }
    Ok(scorer.nll)
}

struct Scorer<'m, M: LanguageModel> {
    model: &'m mut M,
    cache: M::Cache,
    logits: Vec<f32>,
    nll: Vec<f32>,
}

impl<M: LanguageModel> Scorer<'_, M> {
    /// Scores `seen[first..]`.
    fn window(
        &mut self,
        seen: &[u32],
        first: usize,
        on_progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        if !self.cache.truncate(0) {
            return Err(Error::CacheLength {
                expected: 0,
                found: self.cache.len(),
            });
        }
        // The row of token i predicts token i + 1, and the last token predicts nothing we know.
        let (context, rows) = seen[..seen.len() - 1].split_at(first - 1);
        let batch = self.model.max_batch_tokens().max(1);
        for chunk in context.chunks(batch) {
            self.forward(chunk, LogitRows::None)?;
            proceed(on_progress(self.nll.len()))?;
        }
        let mut targets = &seen[first..];
        for chunk in rows.chunks(batch.min(ROWS_PER_CALL)) {
            self.forward(chunk, LogitRows::All)?;
            let (now, later) = targets.split_at(chunk.len());
            targets = later;
            for (&target, row) in now.iter().zip(self.logits.chunks_exact(self.model.vocab_size())) {
                self.nll.push(negative_log_likelihood(row, target)?);
            }
            proceed(on_progress(self.nll.len()))?;
        }
        Ok(())
    }

    fn forward(&mut self, tokens: &[u32], rows: LogitRows) -> Result<(), Error> {
        let mut batch = [Segment {
            tokens,
            media: &[],
            cache: &mut self.cache,
            logits: rows,
        }];
        self.model
            .forward(&mut batch, &mut self.logits)
            .map_err(Error::model)?;
        let expected = rows.count(tokens.len()) * self.model.vocab_size();
        let found = self.logits.len();
        if found == expected {
            Ok(())
        } else {
            Err(Error::LogitsShape { expected, found })
        }
    }
}

fn proceed(answer: ControlFlow<()>) -> Result<(), Error> {
    if answer.is_break() {
        Err(Error::Cancelled)
    } else {
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the difference is taken in f64, then rounded once"
)]
fn negative_log_likelihood(row: &[f32], target: u32) -> Result<f32, Error> {
    let vocab_size = row.len();
    let unknown = Error::UnknownToken {
        field: "the text",
        id: target,
        vocab_size,
    };
    let logit = row.get(target as usize).ok_or(unknown)?;
    Ok((log_sum_exp(row) - f64::from(*logit)) as f32)
}

/// A text's perplexity: `e` to the mean negative log-likelihood.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Its standard error, from the spread of the tokens; 0 for a single token.
    pub standard_error: f64,
    /// Tokens scored.
    pub n_tokens: usize,
}

impl Perplexity {
    /// From the negative log-likelihoods of the tokens, in nats, summed in f64; `None` for no tokens.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
    pub fn of(nll: &[f32]) -> Option<Self> {
        if nll.is_empty() {
            return None;
        }
        let n = nll.len() as f64;
        let mean = nll.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let squares = nll.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
        let value = mean.exp();
        let standard_error = if nll.len() > 1 {
            value * (squares / n / (n - 1.0)).sqrt()
        } else {
            0.0
        };
        Some(Self {
            value,
            standard_error,
            n_tokens: nll.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(windows: Windows, n_tokens: usize) -> Vec<(Range<usize>, Range<usize>)> {
        windows
            .over(n_tokens)
            .unwrap()
            .into_iter()
            .map(|w| (w.seen, w.scored))
            .collect()
    }

    #[test]
    fn halves_score_the_second_half_and_drop_the_rest() {
        let found = spans(Windows::Halves { window: 8, bos: None }, 19);
        assert_eq!(found, [(0..8, 5..8), (8..16, 13..16)]);
    }

    #[test]
    fn strides_score_every_token_once() {
        let found = spans(Windows::Strided { window: 4, stride: 2 }, 9);
        assert_eq!(found, [(0..4, 1..4), (2..6, 4..6), (4..8, 6..8), (6..9, 8..9)]);
        let found = spans(Windows::Strided { window: 4, stride: 4 }, 6);
        assert_eq!(found, [(0..4, 1..4), (4..6, 5..6)]);
    }

    #[test]
    fn impossible_windows_are_refused() {
        let error = Windows::Strided { window: 4, stride: 5 }.over(10).unwrap_err();
        assert!(
            error.to_string().contains("a stride from 1 to the window"),
            "{error}"
        );
        let error = Windows::Halves {
            window: 512,
            bos: None,
        }
        .over(10)
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("10 tokens, but scoring needs at least 512"),
            "{error}"
        );
    }

    #[test]
    fn perplexity_of_a_fair_die_is_six() {
        let found = Perplexity::of(&[6.0f32.ln(); 100]).unwrap();
        assert!((found.value - 6.0).abs() < 1e-5);
        assert!(found.standard_error < 1e-5);
        assert_eq!(Perplexity::of(&[]), None);
    }
}
