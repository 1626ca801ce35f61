//! What a generation is asked for and what it tells: the engine's border.
//!
//! A [`Request`] goes in; [`Event`]s come out through the caller's function, in this order: prompt progress
//! after every chunk, a token event for every token of the answer, and one [`Event::Finished`], always last.
//! The caller's function may return `Break` at any event to cancel.

use std::time::Duration;

use crate::draft::{DraftCounts, Drafting};
use crate::logprobs::TokenLogprobs;
use crate::media::Media;
use crate::sampling_params::SamplingParams;

/// One prompt and how to go on from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Request {
    /// Token ids of the whole prompt, `<bos>` included where the model wants one. Not empty.
    pub prompt: Vec<u32>,
    /// Images and sounds in the prompt, in order.
    pub media: Vec<Media>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens to generate, at least 1; `None` goes on until something else ends the answer.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; they are not shown. Empty: only length or a stop string ends it.
    pub stop_ids: Vec<u32>,
    /// Texts that end the answer; the text ends before them. They may lie across tokens.
    pub stop_strings: Vec<String>,
    /// Tokens that are never generated, such as placeholders of images.
    pub suppressed: Vec<u32>,
    /// Whether tokens are guessed ahead and checked together. The answer does not depend on it.
    pub drafting: Drafting,
    /// Report each token's log-probability with this many likeliest alternatives (0: only its own).
    pub logprobs: Option<usize>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model chose one of the stop tokens.
    Stop,
    /// A stop string appeared.
    StopString,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    ContextFull,
    /// The caller asked to stop.
    Cancelled,
    /// The request's deadline has passed.
    Deadline,
}

/// How many tokens a generation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of these, tokens whose keys and values were still cached from the turn before.
    pub n_reused: usize,
    /// Tokens generated; the stop token counts too.
    pub n_generated: usize,
    /// Tokens that the context holds.
    pub n_max: usize,
}

/// How long a generation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt that were computed (not reused).
    pub n_prefilled: usize,
    /// From the start to the first chosen token, or to the end when there is none.
    pub prefill: Duration,
    /// Tokens chosen after the first.
    pub n_decoded: usize,
    /// From the first chosen token to the last.
    pub decode: Duration,
}

impl Timings {
    /// Tokens per second of the prompt; 0 when nothing was computed.
    #[must_use]
    pub fn prefill_tok_per_s(&self) -> f64 {
        rate(self.n_prefilled, self.prefill)
    }

    /// Tokens per second of the answer after its first token; 0 when there are none.
    #[must_use]
    pub fn decode_tok_per_s(&self) -> f64 {
        rate(self.n_decoded, self.decode)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() {
        0.0
    } else {
        n as f64 / time.as_secs_f64()
    }
}

/// The end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Index of the stop string that ended it, if one did.
    pub stop_string: Option<usize>,
    /// The last of the text: what was held back for a stop string that did not come. Usually empty.
    pub text: String,
    /// Tokens used.
    pub usage: Usage,
    /// Time used.
    pub timings: Timings,
    /// Tokens guessed ahead.
    pub drafts: DraftCounts,
}

/// What happens during a generation.
#[derive(Debug)]
pub enum Event<'a> {
    /// A chunk of the prompt was computed.
    Prefill {
        /// Tokens of the prompt that are cached now, reused ones included.
        n_done: usize,
        /// Tokens of the prompt.
        n_prompt: usize,
    },
    /// A token of the answer was chosen.
    Token {
        /// Its id.
        id: u32,
        /// Text that is decided now. Empty while a character is incomplete or a stop string may be coming.
        text: &'a str,
        /// Log-probabilities, when asked for.
        logprobs: Option<&'a TokenLogprobs>,
    },
    /// The generation ended; always the last event.
    Finished(&'a Finished),
}
